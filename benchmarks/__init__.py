"""Side-by-side measurements against peers and against the authors' algorithm; ``make bench`` runs them.

A row of ``results.json`` is one function of ours and one rival, on the same input and in turns. It is written only if
both give the same answer.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before anybody imports torch: two threads on a busy machine only spin
