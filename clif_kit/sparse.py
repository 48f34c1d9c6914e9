r"""A whole elastic-net path of a last layer on frozen features: from no weight at all to a nearly dense layer.

.. math:: \min_{W, b} \; \frac1n \sum_i \ell(W x_i + b, y_i)
          + \lambda \Bigl(\frac{1 - a}2 \|W\|_2^2 + a \|W\|_1\Bigr), \qquad
          \lambda_{max} = \frac{\max |X^\top (Y - \bar Y)|}{n \, \max(a, .001)}

:math:`\ell` is the cross-entropy in nats of one logistic output (two classes) or of a softmax (three and more), b is
not penalised, X is standardised. At :math:`\lambda_{max}` every weight is zero. Wong, Santurkar & Madry, "Leveraging
sparse linear layers for debuggable deep networks" (ICML 2021), section 2.

How the minimum is found: :mod:`clif_kit.proximal`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clif_kit.proximal import solve_path
from clif_kit.solvers import NotConverged


@dataclass(frozen=True)
class Path:
    """One layer for each penalty, from the strongest to the weakest.

    Attributes:
        lambdas: Shape ``(k,)``, falling.
        weights: Shape ``(k, C, d)``; two classes have one output, C = 1, that is the logit of class 1.
        bias: Shape ``(k, C)``.
        l1_ratio: a.
        residual: Shape ``(k,)``: how far the conditions of a minimum are missed, as a share of the largest gradient of
            the empty layer.
    """

    lambdas: Tensor
    weights: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    l1_ratio: float = 0.99
    residual: Tensor | None = field(default=None, repr=False)

    @property
    def nonzero(self) -> Tensor:
        """Weights that are not zero, all classes together, shape ``(k,)``."""
        return (self.weights != 0).sum((1, 2))

    @property
    def features(self) -> Tensor:
        """Features that some class uses, shape ``(k,)``."""
        return (self.weights != 0).any(1).sum(1)

    def logits(self, x: Any) -> Tensor:
        """Shape ``(k, n, C)``; ``x`` is standardised as for the fit, shape ``(n, d)``."""
        return torch.einsum("nd,kcd->knc", _matrix(x), self.weights) + self.bias[:, None]

    def predict(self, x: Any) -> Tensor:
        """The likeliest class, shape ``(k, n)``."""
        logits = self.logits(x)
        return (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)

    def accuracy(self, x: Any, y: Any) -> Tensor:
        """Share that is classified correctly, between 0 and 1, shape ``(k,)``."""
        return (self.predict(x) == torch.as_tensor(y)).double().mean(1)


def standardise(x: Any, *others: Any) -> tuple[Tensor, ...]:
    """Features with mean 0 and standard deviation 1 over the rows of ``x``; the others moved and scaled alike.

    Returns:
        One tensor in double precision for each argument. A feature that is constant in ``x`` becomes 0 everywhere.

    >>> train, test = standardise([[0.0, 5.0], [2.0, 5.0]], [[4.0, 6.0]])
    >>> train.tolist(), test.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0]])
    """
    given = [_matrix(value) for value in (x, *others)]
    mean, sd = given[0].mean(0), given[0].std(0, correction=0)
    constant = sd <= 1e-12 * given[0].abs().amax(0).clamp(min=1e-300)
    return tuple(((value - mean) / sd.masked_fill(constant, 1)).masked_fill(constant, 0) for value in given)


def lambda_max(x: Any, y: Any, *, classes: int, l1_ratio: float = 0.99) -> float:
    """The weakest penalty at which every weight is zero.

    >>> lambda_max([[1.0], [-1.0]], [1, 0], classes=2, l1_ratio=1.0)
    0.5
    """
    x, target = _matrix(x), _targets(y, classes)
    return float((x.T @ (target - target.mean(0))).abs().max() / len(x) / max(l1_ratio, 0.001))


def elastic_net_path(
    x: Any,
    y: Any,
    *,
    classes: int,
    l1_ratio: float = 0.99,
    n_lambdas: int = 50,
    eps: float = 0.01,
    lambdas: Sequence[float] | Tensor | None = None,
    tol: float = 1e-6,
    max_steps: int = 20_000,
    progress: bool | Callable[[str], None] = False,
) -> Path:
    r"""The layers of a whole path.

    Args:
        x: Frozen features, shape ``(n, d)``, standardised (:func:`standardise`).
        y: Classes 0 .. C - 1, shape ``(n,)``; each must occur.
        classes: C; 2 gives one logistic output.
        l1_ratio: a, from 0 (ridge) to 1 (lasso).
        n_lambdas: Points, evenly spaced in :math:`\log \lambda`.
        eps: The last penalty as a share of :math:`\lambda_{max}`.
        lambdas: Penalties instead of those.
        tol: Largest miss of the conditions, as a share of the largest gradient of the empty layer.
        max_steps: Steps of ten neighbouring points together.
        progress: True prints how many points are done; or a function of a line.

    Raises:
        NotConverged: If points miss the conditions after all steps.
        ValueError: If the data or an argument cannot be used; says which and what to do.

    >>> path = elastic_net_path([[1.0], [-1.0]], [1, 0], classes=2, l1_ratio=1.0, n_lambdas=3, eps=0.25)
    >>> path.lambdas.tolist(), path.nonzero.tolist()
    ([0.5, 0.25, 0.125], [0, 1, 1])
    >>> path.weights.flatten().exp().round(decimals=3).tolist()  # 1 / (1 + e^w) is the penalty
    [1.0, 3.0, 7.0]
    """
    x, target = _matrix(x), _targets(y, classes)
    _check(x, target, l1_ratio, n_lambdas, eps, tol)
    top = lambda_max(x, y, classes=classes, l1_ratio=l1_ratio)
    if top == 0:
        raise ValueError("no feature goes with a class: all of them are constant, or alike in every class")
    if lambdas is None:
        grid = top * torch.logspace(0, math.log10(eps), n_lambdas, dtype=torch.float64)
    else:
        grid = torch.as_tensor(lambdas, dtype=torch.float64).flatten()
        if not len(grid) or not (grid > 0).all() or not (grid.diff() < 0).all():
            raise ValueError("lambdas must be positive and fall from one to the next")
    say = print if progress is True else progress or (lambda _: None)
    layers, residual = solve_path(x, target, grid, l1_ratio, tol, top * max(l1_ratio, 0.001), max_steps, say)
    if not (residual <= tol).all():
        missed, worst = int((~(residual <= tol)).sum()), float(residual.max())
        raise NotConverged(
            f"{missed} of {len(grid)} penalties miss the conditions of a minimum after {max_steps} steps, by up to "
            f"{worst:.1e} of the largest gradient, wanted {tol:g}; standardise the features, or raise eps or tol"
        )
    return Path(grid, layers[..., :-1].contiguous(), layers[..., -1].contiguous(), l1_ratio, residual)


def dense(
    x: Any, y: Any, validation: tuple[Any, Any], *, classes: int, ridges: Sequence[float] = (0.1, 0.01, 1e-3, 1e-4)
) -> Path:
    """The dense end of the path, a path of one point: no absolute values, a small ridge chosen on validation data.

    Args:
        x: Standardised features.
        y: Classes.
        validation: Features and classes that choose the ridge by accuracy; the strongest of equally good ones.
        classes: C.
        ridges: To choose from, falling.
    """
    path = elastic_net_path(x, y, classes=classes, l1_ratio=0.0, lambdas=ridges)
    best = int(path.accuracy(*validation).argmax())
    keep = slice(best, best + 1)
    return Path(path.lambdas[keep], path.weights[keep], path.bias[keep], 0.0, path.residual[keep])


def select_sparse(path: Path, accuracies: Any, within: float) -> int:
    """Position of the sparsest layer whose validation accuracy is at most ``within`` points below the best.

    Args:
        path: k layers.
        accuracies: Of each on validation data, shares between 0 and 1, shape ``(k,)``.
        within: Percentage points, e.g. 0.5. Of equally sparse layers the more accurate one, then the more penalised.

    Raises:
        ValueError: If there is not one accuracy for each layer, or one is not a share.

    >>> path = Path(torch.ones(3), torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]]), torch.zeros(3, 1))
    >>> select_sparse(path, [0.5, 0.895, 0.9], within=1), select_sparse(path, [0.5, 0.895, 0.9], within=0.1)
    (1, 2)
    """
    accuracies = torch.as_tensor(accuracies, dtype=torch.float64)
    if accuracies.shape != path.lambdas.shape:
        raise ValueError(f"{len(path.lambdas)} layers need as many accuracies, got {tuple(accuracies.shape)}")
    if not ((accuracies >= 0) & (accuracies <= 1)).all() or not within >= 0:
        raise ValueError("accuracies must be shares between 0 and 1, and within is in points, at least 0")
    near = torch.nonzero(accuracies >= accuracies.max() - within / 100 - 1e-12).flatten().tolist()
    return min(near, key=lambda i: (int(path.nonzero[i]), -float(accuracies[i]), i))


def _matrix(x: Any) -> Tensor:
    return torch.as_tensor(x).detach().double()


def _targets(y: Any, classes: int) -> Tensor:
    """Classes as numbers 0 and 1, shape ``(n, C)``, one column for two classes.

    Raises:
        ValueError: If a class is missing or unknown.
    """
    y = torch.as_tensor(y)
    if classes < 2 or y.ndim != 1 or y.is_floating_point():
        raise ValueError(f"y must be whole numbers of shape (n,) and classes at least 2, got {y.dtype} and {classes}")
    counts = {int(c): int((y == c).sum()) for c in y.unique()}
    if set(counts) != set(range(classes)):
        raise ValueError(f"classes must be 0 to {classes - 1} and each must occur, got {sorted(counts)}")
    return y[:, None].double() if classes == 2 else torch.nn.functional.one_hot(y.long(), classes).double()


def _check(x: Tensor, target: Tensor, ratio: float, count: int, eps: float, tol: float) -> None:
    if x.ndim != 2 or len(x) != len(target):
        raise ValueError(f"x must have shape (n, d) with a row for each of {len(target)} labels, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError(f"row {int(torch.nonzero(~torch.isfinite(x))[0, 0])} of x holds a value that is not finite")
    if not 0 <= ratio <= 1:
        raise ValueError(f"l1_ratio must be between 0 and 1, got {ratio}")
    if count < 2 or not 0 < eps < 1 or not tol > 0:
        raise ValueError(f"a path needs 2 points or more, 0 < eps < 1 and tol > 0; got {count}, {eps} and {tol}")
