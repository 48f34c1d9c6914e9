r"""The last layer on frozen features, converged in float64, and exact influence through it.

.. math:: F(W) = \frac1n \sum_i w_i\, \ell(W \tilde x_i, y_i) + \tfrac\gamma2 \|W\|^2, \qquad \tilde x = (x, 1)

Memory is that of the features and of one Hessian: everything else goes in chunks, so that 200,000 texts are feasible.
Sign: positive = helpful, the loss of the query is predicted to rise when the text is removed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from clif_kit.curvature import softmax_hessian
from clif_kit.solvers import NotConverged, exact

CHUNK = 4096
MAX_SIZE = 4000  # numbers in W: its Hessian has the square of it
GTOL = 1e-9


@dataclass(frozen=True)
class Layer:
    r"""A trained last layer.

    Attributes:
        x: Features with a column of ones, float32 or float64, ``(n, d + 1)``.
        y: Labels, int64, ``(n,)``.
        weight: W, float64, ``(classes, d + 1)``.
        l2: :math:`\gamma`; the bias is penalised too.
        solve: ``b -> H^{-1} b`` at W, H with the penalty, for ``(classes * (d + 1),)`` or rows of such.
    """

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    l2: float
    solve: Callable[[Tensor], Tensor] = field(repr=False)


def with_one(x: np.ndarray | Tensor) -> Tensor:
    """Features with a column of ones behind."""
    x = torch.as_tensor(x)
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def fit_layer(x: Tensor, y: Tensor, classes: int, l2: float) -> Layer:
    """Train to the optimum: L-BFGS, then Newton steps until the gradient is below ``GTOL``.

    Args:
        x: Features with a column of ones, ``(n, d + 1)``.
        y: Labels, ``(n,)``.
        classes: Number of classes.
        l2: Strength of the penalty, above 0.

    Raises:
        ValueError: If ``l2`` is not positive, or W has more than ``MAX_SIZE`` numbers.
        NotConverged: If the optimum is not reached.

    >>> layer = fit_layer(torch.ones(2, 1), torch.tensor([0, 1]), 2, 1.0)
    >>> float(layer.weight.abs().max()) < 1e-8
    True
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}: without it the optimum does not exist or is not unique")
    shape = (classes, x.shape[1])
    if classes * x.shape[1] > MAX_SIZE:
        raise ValueError(f"{shape[0]} classes x {shape[1]} features are more than {MAX_SIZE}: use fewer features")

    def both(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = value_and_gradient(x, y, torch.from_numpy(z).view(shape), l2)
        return value, slope.flatten().numpy()

    found = minimize(
        both, np.zeros(classes * x.shape[1]), jac=True, options={"maxiter": 1000, "gtol": 1e-6}, method="L-BFGS-B"
    )
    weight = torch.from_numpy(found.x).view(shape)
    for _ in range(20):
        solve = exact(hessian(x, weight, l2))
        slope = value_and_gradient(x, y, weight, l2)[1]
        if slope.norm() < GTOL:
            return Layer(x, y, weight, l2, solve)
        weight = weight - solve(slope.flatten()).view(shape)
    raise NotConverged(f"the last layer did not converge: |gradient| is {float(slope.norm()):.1e}; raise l2")


def refit(layer: Layer, keep: np.ndarray, *, gtol: float = 1e-9, steps: int = 50) -> Tensor:
    """W trained again without some texts, the others with the weight that they had: ``(classes, d + 1)``.

    Newton steps from the optimum with all texts, each solved by conjugate gradients with the factor of the full Hessian
    as the preconditioner: it is there already, and with few texts gone it is nearly right.

    Args:
        layer: The optimum with all texts.
        keep: Which texts stay, bool, ``(n,)``.
        gtol: Largest norm of the gradient at the end.
        steps: Newton steps at most.

    Raises:
        NotConverged: If they are not enough.
    """
    rows, n = torch.from_numpy(np.flatnonzero(keep)), len(layer.x)
    x, y, weight = layer.x[rows], layer.y[rows], layer.weight
    value, slope = value_and_gradient(x, y, weight, layer.l2, n=n)
    for _ in range(steps):
        if slope.norm() < gtol:
            return weight
        p, size = torch.cat([torch.softmax(part @ weight.T, 1) for part, _ in _chunks(x, y)]), 1.0
        step = _conjugate_gradients(lambda v, p=p: _times(x, p, v, layer.l2, n), slope, layer.solve)
        fall = float((step * slope).sum())
        while True:
            trial = weight - size * step
            new, after = value_and_gradient(x, y, trial, layer.l2, n=n)
            if new <= value - 1e-4 * size * fall + 1e-13 or size < 1e-6:
                break
            size /= 2
        weight, value, slope = trial, new, after
    raise NotConverged(f"refitting did not converge: |gradient| is {float(slope.norm()):.1e}; remove fewer or raise l2")


def value_and_gradient(
    x: Tensor, y: Tensor, weight: Tensor, l2: float, *, n: int | None = None
) -> tuple[float, Tensor]:
    """F and its gradient ``(classes, d + 1)``; ``n`` divides the sum instead of the number of texts."""
    n, value, slope = n or len(x), 0.0, l2 * weight
    for part, label in _chunks(x, y):
        log = torch.log_softmax(part @ weight.T, 1)
        value -= float(log.gather(1, label[:, None]).sum()) / n
        slope = slope + (log.exp() - _one_hot(label, weight)).T @ part / n
    return value + l2 / 2 * float(weight.square().sum()), slope


def hessian(x: Tensor, weight: Tensor, l2: float) -> Tensor:
    """The Hessian of F at ``weight``, in its order: ``(classes * (d + 1),) * 2``."""
    size = weight.numel()
    total = torch.zeros(size, size, dtype=torch.float64)
    for part, _ in _chunks(x, torch.zeros(len(x), dtype=torch.long)):
        total += softmax_hessian(part, torch.softmax(part @ weight.T, 1))[:size, :size] * (len(part) / len(x))
    total.diagonal().add_(l2)
    return total


def losses(x: Tensor, y: Tensor, weight: Tensor) -> np.ndarray:
    """Cross-entropy of each text in nats, ``(n,)``."""
    parts = [-torch.log_softmax(a @ weight.T, 1).gather(1, b[:, None])[:, 0] for a, b in _chunks(x, y)]
    return torch.cat(parts).numpy()


def residuals(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Probabilities minus the truth, ``(n, classes)``: the gradient of the loss by the logits."""
    return torch.cat([torch.softmax(a @ weight.T, 1) - _one_hot(b, weight) for a, b in _chunks(x, y)])


def pulls(layer: Layer, query_x: Tensor, query_y: Tensor) -> Tensor:
    """:math:`H^{-1} g'` of each query's loss, ``(q, classes, d + 1)``."""
    r = residuals(query_x, query_y, layer.weight)
    gradients = (r.unsqueeze(2) * query_x.double().unsqueeze(1)).flatten(1)
    return layer.solve(gradients).view(len(r), *layer.weight.shape)


def influence(layer: Layer, query_x: Tensor, query_y: Tensor) -> np.ndarray:
    r""":math:`\tfrac1n g'^\top H^{-1} g_i` for queries and training texts, ``(q, n)``, in nats per removed text.

    Args:
        layer: At its optimum.
        query_x: Features with a column of ones, ``(q, d + 1)``.
        query_y: Labels, ``(q,)``.
    """
    pulled, n = pulls(layer, query_x, query_y), len(layer.x)
    parts = []
    for x, y in _chunks(layer.x, layer.y):
        r = torch.softmax(x @ layer.weight.T, 1) - _one_hot(y, layer.weight)
        parts.append(((pulled @ x.T) * r.T).sum(1) / n)
    return torch.cat(parts, 1).numpy()


def self_influence(layer: Layer, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    r""":math:`\tfrac1n g_i^\top H^{-1} g_i \ge 0` of training texts (None: all): how a text holds its own loss down.

    A text that only its own presence explains, such as one with a wrong label, has a large one.
    """
    rows = torch.arange(len(layer.x)) if rows is None else torch.as_tensor(np.asarray(rows))
    found = []
    for part in rows.split(512):
        x, y = layer.x[part].double(), layer.y[part]
        r = torch.softmax(x @ layer.weight.T, 1) - _one_hot(y, layer.weight)
        g = (r.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        found.append((g * layer.solve(g)).sum(1) / len(layer.x))
    return torch.cat(found).numpy() if found else np.zeros(0)


def choose_l2(
    x: Tensor, y: Tensor, classes: int, grid: Sequence[float] = (1e-4, 1e-3, 1e-2), *, most: int = 4000, seed: int = 0
) -> float:
    """The penalty with the least loss on a fifth of the training texts that is held out (of ``most`` texts at most)."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))[:most])
    val, train = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    scores = [losses(x[val], y[val], fit_layer(x[train], y[train], classes, l2).weight).mean() for l2 in grid]
    return grid[int(np.argmin(scores))]


def _times(x: Tensor, p: Tensor, v: Tensor, l2: float, n: int) -> Tensor:
    """The Hessian at probabilities p times v, ``(classes, d + 1)``, without making it."""
    total = l2 * v
    for part, q in zip(x.split(CHUNK), p.split(CHUNK), strict=True):
        part = part.double()
        u = q * (part @ v.T)
        total = total + (u - q * u.sum(1, keepdim=True)).T @ part / n
    return total


def _conjugate_gradients(times: Callable[[Tensor], Tensor], b: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """``times(s) = b`` up to a hundredth of ``min(1, |b|)``: a Newton step needs no more to converge superlinearly."""
    s, r = torch.zeros_like(b), b
    z = solve(r.flatten()).view_as(b)
    d, rz, aim = z, (r * z).sum(), 0.01 * min(1.0, float(b.norm())) * b.norm()
    for _ in range(200):
        if r.norm() <= aim:
            break
        hd = times(d)
        a = rz / (d * hd).sum()
        s, r = s + a * d, r - a * hd
        z = solve(r.flatten()).view_as(b)
        rz, before = (r * z).sum(), rz
        d = z + rz / before * d
    return s


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        yield a.double(), b


def _one_hot(y: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, len(weight)).double()
