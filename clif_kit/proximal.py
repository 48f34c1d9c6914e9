r"""Linear layers under an elastic net for many penalties side by side, to the conditions of a minimum.

.. math:: W \leftarrow S_{\lambda a t}\bigl(V - t \nabla L(V)\bigr) / (1 + \lambda (1 - a) t), \qquad
          S_c(v) = \mathrm{sign}(v) \max(|v| - c, 0), \qquad t = 1 / (\kappa \, \sigma_{max}(X)^2 / n)

L is the mean cross-entropy, V the layer pushed ahead by momentum (FISTA, Beck & Teboulle 2009), :math:`\kappa` the
largest curvature of the loss in its logits: 1/4 for one logistic output, 1/2 for a softmax. The momentum of a penalty
starts again where it points uphill (O'Donoghue & Candès 2015).

Penalties go in groups from strong to weak. A group sees the features that its predecessor uses and those whose gradient
asks to be let in, in single precision; then double precision looks at all features, lets in who was missed, and ends.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

GROUP = 10  # penalties side by side
EVERY = 10  # steps between two looks at the conditions
SINGLE = 3e-5  # of the largest gradient: single precision is not asked for less
PATIENCE = 1000  # steps after which single precision hands over in any case
SMALL = 512  # columns up to which eigenvalues are computed outright


def solve_path(
    x: Tensor, target: Tensor, lambdas: Tensor, ratio: float, tol: float, scale: float, max_steps: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""The layer of each penalty, and how far it misses the conditions of a minimum.

    Args:
        x: Features, shape ``(n, d)``, double precision.
        target: Classes as numbers 0 and 1, shape ``(n, C)``; C = 1 is one logistic output.
        lambdas: Falling, shape ``(k,)``.
        ratio: a.
        tol: Largest miss, as a share of ``scale``.
        scale: The largest gradient of the empty layer.
        max_steps: Steps of a group, after which it is left as it is.
        say: Gets a line after each group.

    Returns:
        Layers of shape ``(k, C, d + 1)``, the bias in the last column, and misses as shares of ``scale``, shape
        ``(k,)``; larger than ``tol`` where the steps did not suffice.

    >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> layers, missed = solve_path(x, torch.tensor([[1.0], [0.0]]).double(), torch.tensor([0.25]), 1.0, 1e-8, 0.5, 999)
    >>> layers.exp().round(decimals=6).tolist()  # 1 / (1 + e^w) is the penalty
    [[[3.0, 1.0]]]
    """
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    single, layer = x.float(), torch.cat([torch.zeros(target.shape[1], x.shape[1] - 1).double(), _start(target)], 1)
    found, missed = [], []
    for group in lambdas.double().split(GROUP):
        layers = layer.expand(len(group), -1, -1).clone()
        layers, residuals = _solve_group(x, single, target, group, ratio, tol * scale, scale, max_steps, layers)
        found.append(layers)
        missed.append(residuals / scale)
        layer = layers[-1]
        say(f"{sum(map(len, missed))} of {len(lambdas)} penalties done")
    return torch.cat(found), torch.cat(missed)


def _solve_group(
    x: Tensor, single: Tensor, target: Tensor, lambdas: Tensor, ratio: float, goal: float, scale: float,
    max_steps: int, layers: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Steps in single precision, then in double, on the features let in so far, until all features are content."""
    inside, left, rough = torch.zeros(x.shape[1], dtype=torch.bool), max_steps, max(goal / 2, SINGLE * scale)
    while True:
        gradient = _gradient(x, target, layers)
        residuals = _residual(gradient, layers, lambdas, ratio).amax((1, 2))
        if left <= 0 or (residuals <= goal).all():
            return layers, residuals
        # a share of the wish to come in: whoever is close to the edge is let in before it asks
        asks = (gradient[..., :-1].abs().amax(1) > 0.9 * ratio * lambdas[:, None]).any(0)
        new = torch.cat([asks | (layers[..., :-1] != 0).any(0).any(0), torch.ones(1, dtype=torch.bool)])
        grown, inside = bool((new & ~inside).any()), inside | new
        part = layers[..., inside]
        if grown:
            part, steps = _fista(
                single[:, inside], target.float(), lambdas.float(), ratio, part.float(), rough, min(left, PATIENCE)
            )
        else:
            part, steps = _fista(x[:, inside], target, lambdas, ratio, part, goal / 2, left)
        layers, left = torch.zeros_like(layers), left - steps
        layers[..., inside] = part.double()


def _fista(
    x: Tensor, target: Tensor, lambdas: Tensor, ratio: float, layers: Tensor, goal: float, max_steps: int
) -> tuple[Tensor, int]:
    """Steps until each penalty meets the conditions to ``goal``; layers, and how many steps there were."""
    step = 1 / ((0.25 if target.shape[1] == 1 else 0.5) * largest_eigenvalue(x))
    left, layers = torch.arange(len(lambdas)), layers.clone()
    old, ahead, speed = layers.clone(), layers.clone(), torch.ones(len(lambdas), dtype=x.dtype)
    for done in range(max_steps + 1):
        if done % EVERY == 0 or done == max_steps:
            layers[left] = old
            keep = _residual(_gradient(x, target, old), old, lambdas[left], ratio).amax((1, 2)) > goal
            if done == max_steps or not keep.any():
                break
            left, old, ahead, speed = left[keep], old[keep], ahead[keep], speed[keep]
        new = _shrink(ahead - step * _gradient(x, target, ahead), step * lambdas[left], ratio)
        move = new - old
        uphill = ((ahead - new) * move).sum((1, 2)) > 0
        speed = torch.where(uphill, torch.ones_like(speed), speed)
        following = (1 + torch.sqrt(1 + 4 * speed**2)) / 2
        push = torch.where(uphill, torch.zeros_like(speed), (speed - 1) / following)
        old, ahead, speed = new, new + push[:, None, None] * move, following
    return layers, max(done, 1)


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
    """How far zero is from the subdifferential, entry by entry, shape ``(k, C, d + 1)``."""
    weights, lambdas = layers[..., :-1], lambdas[:, None, None]
    slope = gradient[..., :-1] + (1 - ratio) * lambdas * weights
    used = (slope + ratio * lambdas * torch.sign(weights)).abs()
    idle = (slope.abs() - ratio * lambdas).clamp(min=0)
    return torch.cat([torch.where(weights != 0, used, idle), gradient[..., -1:].abs()], 2)


def largest_eigenvalue(x: Tensor) -> float:
    """Of ``x.T @ x / n``, a hair above it, so that it bounds.

    >>> round(largest_eigenvalue(torch.tensor([[3.0, 0.0], [0.0, 1.0]])), 2)
    4.5
    """
    if min(x.shape) <= SMALL:
        gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
        return float(torch.linalg.eigvalsh(gram.double())[-1]) / len(x) * 1.0001
    rows = x.numpy()
    operator = LinearOperator((x.shape[1],) * 2, matvec=lambda v: rows.T @ (rows @ v), dtype=rows.dtype)
    start = np.random.default_rng(0).normal(size=x.shape[1]).astype(rows.dtype)
    return float(eigsh(operator, k=1, v0=start, tol=1e-3, return_eigenvectors=False)[0]) / len(x) * 1.01


def _start(target: Tensor) -> Tensor:
    """The bias of the empty layer, shape ``(C, 1)``."""
    share = target.mean(0)
    return (torch.logit(share) if len(share) == 1 else share.log() - share.log().mean())[:, None]
