r"""A whole elastic-net path of a last layer on frozen features: from no weight at all to a nearly dense layer.

.. math:: \min_{W, b} \; \frac1n \sum_i \ell(W x_i + b, y_i)
          + \lambda \Bigl(\frac{1 - a}2 \|W\|_2^2 + a \|W\|_1\Bigr), \qquad
          \lambda_{max} = \frac{\max |X^\top (Y - \bar Y)|}{n \, \max(a, .001)}

:math:`\ell` is the cross-entropy in nats of one logistic output (two classes) or of a softmax (three and more), b is
not penalised, X is standardised. At :math:`\lambda_{max}` every weight is zero. Wong, Santurkar & Madry, "Leveraging
sparse linear layers for debuggable deep networks" (ICML 2021), section 2.

**How.** Proximal gradient steps with momentum (FISTA, Beck & Teboulle 2009) for all penalties side by side, so that
each step is two matrix products; the momentum of a penalty starts again where it points uphill (O'Donoghue & Candès
2015). Single precision first, then double. A point is done when the Karush-Kuhn-Tucker conditions hold to ``tol``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EVERY = 10  # steps between two looks at the conditions
ROUGH = 1e-4  # of the largest gradient: what single precision is asked for before double takes over


class NotConverged(RuntimeError):
    """A point of the path does not meet the conditions of a minimum after all steps."""


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
        max_steps: Steps of each precision.
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
    scale = top * max(l1_ratio, 0.001)
    k, outputs = len(grid), target.shape[1]
    weights, bias = torch.zeros(k, outputs, x.shape[1]), _start(target).expand(k, -1).clone()
    if tol < ROUGH:
        weights, bias, _ = _fista(
            x.float(), target.float(), grid.float(), l1_ratio, weights, bias.float(), ROUGH * scale, max_steps, say
        )
    weights, bias, residual = _fista(
        x, target, grid, l1_ratio, weights.double(), bias.double(), tol * scale, max_steps, say
    )
    residual = residual / scale
    if not (residual <= tol).all():
        missed = int((~(residual <= tol)).sum())
        raise NotConverged(
            f"{missed} of {k} penalties miss the conditions of a minimum by up to {float(residual.max()):.1e} of the "
            f"largest gradient after {max_steps} steps, wanted {tol:g}; standardise the features, or raise eps or tol"
        )
    return Path(grid, weights, bias, l1_ratio, residual)


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
    path = elastic_net_path(x, y, classes=classes, l1_ratio=0.0, lambdas=ridges, tol=1e-5)
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


def _fista(
    x: Tensor, target: Tensor, lambdas: Tensor, ratio: float, weights: Tensor, bias: Tensor, goal: float,
    max_steps: int, say: Callable[[str], None],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Steps for all penalties until each meets the conditions to ``goal``; layers and residuals."""
    residuals = torch.full_like(lambdas, float("inf"), dtype=torch.float64)
    curved = 0.25 if target.shape[1] == 1 else 0.5  # the largest curvature of the loss in its logits
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    step = 1 / (curved * _largest_eigenvalue(ones) * 1.0001)
    layers = torch.cat([weights, bias[..., None]], 2)  # (k, C, d + 1)
    left = torch.arange(len(lambdas))
    old, ahead, speed = layers.clone(), layers.clone(), torch.ones(len(lambdas), dtype=x.dtype)
    for done in range(max_steps + 1):
        if done % EVERY == 0:
            missed = _residual(_gradient(ones, target, old), old, lambdas[left], ratio)
            layers[left], residuals[left] = old, missed.double()
            keep = missed > goal
            if done == max_steps or not keep.any():
                break
            if not keep.all():
                left, old, ahead, speed = left[keep], old[keep], ahead[keep], speed[keep]
            if done % (20 * EVERY) == 0:
                say(f"{len(lambdas) - len(left)} of {len(lambdas)} penalties done after {done} steps")
        new = _shrink(ahead - step * _gradient(ones, target, ahead), step * lambdas[left], ratio)
        move = new - old
        uphill = ((ahead - new) * move).sum((1, 2)) > 0
        speed = torch.where(uphill, torch.ones_like(speed), speed)
        following = (1 + torch.sqrt(1 + 4 * speed**2)) / 2
        push = torch.where(uphill, torch.zeros_like(speed), (speed - 1) / following)
        old, ahead, speed = new, new + push[:, None, None] * move, following
    return layers[..., :-1], layers[..., -1], residuals


def _gradient(x: Tensor, target: Tensor, layers: Tensor) -> Tensor:
    """Of the mean loss in each layer, shape ``(k, C, d + 1)``."""
    k, outputs, _ = layers.shape
    logits = (x @ layers.flatten(0, 1).T).unflatten(1, (k, outputs))  # (n, k, C)
    given = torch.sigmoid(logits) if outputs == 1 else torch.softmax(logits, 2)
    return ((given - target[:, None]).flatten(1).T @ x / len(x)).unflatten(0, (k, outputs))


def _shrink(layers: Tensor, amount: Tensor, ratio: float) -> Tensor:
    """The proximal step of the penalty; the last column, the bias, stays."""
    weights, amount = layers[..., :-1], amount[:, None, None]
    shrunk = torch.sign(weights) * (weights.abs() - ratio * amount).clamp(min=0) / (1 + (1 - ratio) * amount)
    return torch.cat([shrunk, layers[..., -1:]], 2)


def _residual(gradient: Tensor, layers: Tensor, lambdas: Tensor, ratio: float) -> Tensor:
    """How far zero is from the subdifferential, largest over the entries, shape ``(k,)``."""
    weights, lambdas = layers[..., :-1], lambdas[:, None, None]
    slope = gradient[..., :-1] + (1 - ratio) * lambdas * weights
    used = (slope + ratio * lambdas * torch.sign(weights)).abs()
    idle = (slope.abs() - ratio * lambdas).clamp(min=0)
    missed = torch.where(weights != 0, used, idle).amax((1, 2))
    return torch.maximum(missed, gradient[..., -1].abs().amax(1))


def _largest_eigenvalue(x: Tensor) -> float:
    """Of ``x.T @ x / n``."""
    return float(torch.linalg.eigvalsh((x.T @ x / len(x)).double())[-1])


def _start(target: Tensor) -> Tensor:
    """The bias of the empty layer, shape ``(C,)``."""
    share = target.mean(0)
    return torch.logit(share) if len(share) == 1 else share.log() - share.log().mean()


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
