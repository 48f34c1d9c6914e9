"""clif_kit: which training examples made a model what it is, and how to check the answer.

One module, one idea. Read them in this order: ``gradients``, ``curvature``, ``solvers``, ``influence``, ``retrain``,
``evaluate``.
"""

__version__ = "0.1.0"
