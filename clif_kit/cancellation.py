r"""How much the gradients of different examples cancel, layer by layer (section 3 of the TracIn-WE paper).

A layer whose examples pull in opposite directions moves little, though every example has a large gradient in it: its
influence scores are large and say little. Two measures of it: the cancellation ratio of a training run, and the cosine
between gradients of two examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from clif_kit.text_models import Params
from clif_kit.traced import Traced
from clif_kit.tracin_layers import by_layer, example_gradients, tracin_layers

Groups = Mapping[str, Sequence[str]]  # parameter names by layer


@dataclass(frozen=True)
class Cancellation:
    r"""The cancellation ratio of one layer.

    Attributes:
        g: :math:`G_c = \eta_c \sum_i \|\partial \ell_i / \partial W_c\|` for each stretch between checkpoints.
        delta: :math:`\Delta_c = \|W_{c+1} - W_c\|`, likewise.
        each: What each example adds, n-fold, ``(n,)``: their mean is ``ratio``, to take intervals over.
        scale: What ``normalised`` multiplies by.
    """

    g: np.ndarray
    delta: np.ndarray
    each: np.ndarray
    scale: float

    @property
    def ratio(self) -> float:
        r"""The paper's :math:`C(W) = \sum_c G_c / \sum_c \Delta_c`: the larger, the more cancels. It grows with n."""
        return float(self.g.sum() / self.delta.sum())

    @property
    def normalised(self) -> float:
        r"""How many times further the steps could have gone had all gradients agreed; 1: nothing cancels.

        The ratio divided by n, times the steps of a stretch, over 1 - momentum. It compares runs of one optimiser
        with other batch sizes or data; the plain ratio has a floor near the batch size and does not.
        """
        return self.ratio * self.scale


def cancellation(
    traced: Traced, groups: Groups, *, steps: int, momentum: float = 0.0, chunk: int = 16
) -> dict[str, Cancellation]:
    """Cancellation ratios of layers, or of all weights and all biases; a group's tensors count as one long vector.

    Args:
        traced: The training texts, at two or more checkpoints in order (take the start in, too); the last serves as an
            end only.
        groups: Parameter names by layer, see :meth:`clif_kit.text_models.TextModel.layers`.
        steps: Optimizer steps from one checkpoint to the next.
        momentum: Of SGD; for Adam there is no such bound, and ``normalised`` means little.
        chunk: Gradients in memory at a time.

    Raises:
        ValueError: If there are fewer than two checkpoints, or a layer has not moved at all.
    """
    points = traced.checkpoints
    if len(points) < 2:
        raise ValueError("cancellation needs two checkpoints at least: keep the start and some in training")
    norms = gradient_norms(replace(traced, checkpoints=points[:-1]), groups, chunk=chunk)
    rates, found = np.array([point.lr for point in points[:-1]]), {}
    for layer, names in groups.items():
        delta = np.array([_distance(a.params, b.params, names) for a, b in pairwise(points)])
        weighed = rates[:, None] * norms[layer]  # (c,), (c, n)
        if not delta.sum() > 0:
            raise ValueError(f"{layer} does not move between the checkpoints (frozen?): leave it out")
        each = len(traced) * weighed.sum(0) / delta.sum()
        found[layer] = Cancellation(weighed.sum(1), delta, each, steps / (1 - momentum) / len(traced))
    return found


def gradient_norms(traced: Traced, groups: Groups, *, chunk: int = 16) -> dict[str, np.ndarray]:
    """Norms of each example's gradient by layer, ``(checkpoints, n)``; the table of vectors goes the sparse way."""
    names = {name for group in groups.values() for name in group}
    squares = {name: np.zeros((len(traced.checkpoints), len(traced))) for name in names}
    dense = sorted(names - {traced.model.embedding})
    for c in range(len(traced.checkpoints)):
        if traced.model.embedding in names:
            read = traced.reader(c)
            for which in traced.ranges():
                squares[traced.model.embedding][c, which] = read(which).norms() ** 2
        for rows, found in example_gradients(traced, c, dense, chunk=chunk) if dense else ():
            for name in dense:
                squares[name][c, rows.numpy()] = found[name].double().square().sum(1).cpu().numpy()
    return {layer: np.sqrt(total) for layer, total in by_layer(squares, groups).items()}


def gradient_cosines(traced: Traced, groups: Groups, c: int = -1, *, chunk: int = 16) -> dict[str, np.ndarray]:
    """Cosines between the gradients of all pairs of examples at checkpoint ``c``, by layer: ``(n, n)`` each.

    NaN where an example has no gradient in the layer. Memory: the gradients of all n examples in one layer.
    """
    here = replace(traced, checkpoints=[SimpleNamespace(params=traced.checkpoints[c].params, lr=1.0)], store=None)
    found = {}
    for layer, names in groups.items():
        products = by_layer(tracin_layers(here, here, names, chunk=chunk), {layer: names})[layer]
        size = np.sqrt(np.diag(products))
        with np.errstate(invalid="ignore", divide="ignore"):
            found[layer] = products / size / size[:, None]
    return found


def mean_cosine(cosines: np.ndarray) -> float:
    """The mean over pairs of two different examples; pairs without a gradient are left out.

    >>> mean_cosine(np.array([[1.0, 0.5, np.nan], [0.5, 1.0, np.nan], [np.nan, np.nan, np.nan]]))
    0.5
    """
    return float(np.nanmean(cosines[np.triu_indices(len(cosines), 1)]))


def _distance(a: Params, b: Params, names: Sequence[str]) -> float:
    return sum(float((b[name] - a[name]).double().square().sum()) for name in names) ** 0.5
