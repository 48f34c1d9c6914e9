r"""Linear layers under an elastic net for many penalties side by side, to the conditions of a minimum.

.. math:: W \leftarrow \arg\min_V \; \langle \nabla L(W), V - W \rangle + \tfrac12 \langle V - W, H (V - W) \rangle
          + \lambda \Bigl(\frac{1 - a}2 \|V\|_2^2 + a \|V\|_1\Bigr), \qquad
          H_c = \frac1n \sum_i p_{ic} (1 - p_{ic}) \, x_i x_i^\top

L is the mean cross-entropy and p its probabilities. Penalties go in groups from strong to weak; the layers of a group
share H, so that a step is two matrix products with the data for all of them. A model whose minimum is no better is
made steeper: for a softmax, where 2 H bounds the curvature, once is enough. The minimum of a model is found without the
data, by proximal steps with momentum (FISTA, Beck & Teboulle 2009) that starts again where it points uphill (O'Donoghue
& Candès 2015).

A group sees the features that its predecessor uses and those whose gradient asks to be let in; in the end all features
are looked at. Where H would be too large, the proximal steps are taken on the loss itself.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

GROUP = 10  # penalties side by side
EVERY = 10  # steps between two looks at the conditions
NEAR = 0.9  # share of the threshold from which a feature is let in
INNER, INSIDE = 0.05, 1000  # how far the miss falls in a model, and its steps
REFRESH = 4  # models with one curvature
STEEPEST = 1e6  # a model that steep says that rounding decides
LARGEST = 20_000_000  # entries of the curvature; beyond it, momentum on the loss itself
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
        layers, residuals = _solve_group(x, single, target, group, ratio, tol * scale, max_steps, layers)
        found.append(layers)
        missed.append(residuals / scale)
        layer = layers[-1]
        say(f"{sum(map(len, missed))} of {len(lambdas)} penalties done")
    layers = torch.cat(found)
    if layers.shape[1] > 1:
        layers[..., -1] -= layers[..., -1].mean(1, keepdim=True)  # a softmax does not see a shift of all biases
    return layers, torch.cat(missed)


def _solve_group(
    x: Tensor, single: Tensor, target: Tensor, lambdas: Tensor, ratio: float, goal: float, max_steps: int,
    layers: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Steps on the features let in so far, until all features are content; layers and residuals."""
    inside = torch.zeros(x.shape[1], dtype=torch.bool)
    while True:
        gradient = _gradient(x, target, layers)
        residuals = _residual(gradient, layers, lambdas, ratio)
        if max_steps <= 0 or (residuals <= goal).all():
            return layers, residuals
        # whoever is close to the edge is let in before it asks
        asks = (gradient[..., :-1].abs().amax(1) > NEAR * ratio * lambdas[:, None]).any(0)
        inside[:-1] |= asks | (layers[..., :-1] != 0).any(0).any(0)
        inside[-1] = True
        if target.shape[1] * int(inside.sum()) ** 2 <= LARGEST:
            part, steps = _newton(
                x[:, inside], single[:, inside], target, lambdas, ratio, layers[..., inside], goal / 2, max_steps
            )
        else:
            part, steps = _gradient_steps(
                x[:, inside], target, lambdas, ratio, layers[..., inside], goal / 2, max_steps
            )
        layers, max_steps = torch.zeros_like(layers), max_steps - max(steps, 1)
        layers[..., inside] = part


def _gradient_steps(
    x: Tensor, target: Tensor, lambdas: Tensor, ratio: float, layers: Tensor, goal: float, max_steps: int
) -> tuple[Tensor, int]:
    """Momentum on the loss itself: little memory, many passes over the data."""
    step = torch.full_like(lambdas, 1 / ((0.25 if target.shape[1] == 1 else 0.5) * largest_eigenvalue(x)))
    goals = torch.full_like(lambdas, goal)
    return _fista(lambda at, _: _gradient(x, target, at), step, lambdas, ratio, layers, goals, max_steps)


def _newton(
    x: Tensor, single: Tensor, target: Tensor, lambdas: Tensor, ratio: float, layers: Tensor, goal: float,
    max_steps: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """Minima of quadratic models that share their curvature; a model whose minimum is no better is made steeper."""
    layers, old, left = layers.clone(), layers.clone(), torch.arange(len(lambdas))
    steep, value, slope = torch.ones_like(lambdas), torch.full_like(lambdas, torch.inf), torch.zeros_like(layers)
    trial, since, refresh = old, 0, True
    for done in range(max_steps + 1):
        given, slopes, values = _evaluate(x, target, trial, lambdas[left], ratio)
        better = values <= value + 1e-13 * value.abs().clamp(max=1)
        old, value = torch.where(better[:, None, None], trial, old), torch.where(better, values, value)
        slope, steep = torch.where(better[:, None, None], slopes, slope), torch.where(better, steep, 2 * steep)
        layers[left] = old
        missed = _residual(slope, old, lambdas[left], ratio)
        keep = missed > goal
        if done == max_steps or not keep.any() or steep.max() > STEEPEST:
            break
        left, old, value, slope, steep, missed = (v[keep] for v in (left, old, value, slope, steep, missed))
        if refresh or since == REFRESH:
            curvature = _curvature(single, given[:, keep])
            top, refresh, since = torch.linalg.eigvalsh(curvature)[:, -1].max() * 1.0001, False, 0
            steep = torch.ones_like(steep)
        since += 1

        def model(at: Tensor, rows: Tensor, old=old, slope=slope, steep=steep, curvature=curvature) -> Tensor:
            return slope[rows] + steep[rows, None, None] * torch.einsum("kcd,cde->kce", at - old[rows], curvature)

        goals = (missed * INNER).clamp(min=goal / 4)
        trial, _ = _fista(model, 1 / (steep * top), lambdas[left], ratio, old, goals, INSIDE)
    return layers, done


def _fista(
    gradient: Callable[[Tensor, Tensor], Tensor], step: Tensor, lambdas: Tensor, ratio: float, layers: Tensor,
    goals: Tensor, max_steps: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """Proximal steps with momentum until each penalty meets the conditions to its goal; layers, and the steps."""
    left, layers = torch.arange(len(lambdas)), layers.clone()
    old, ahead, speed = layers.clone(), layers.clone(), torch.ones_like(lambdas)
    for done in range(max_steps + 1):
        if done % EVERY == 0 or done == max_steps:
            layers[left] = old
            keep = _residual(gradient(old, left), old, lambdas[left], ratio) > goals[left]
            if done == max_steps or not keep.any():
                break
            left, old, ahead, speed = left[keep], old[keep], ahead[keep], speed[keep]
        slope = gradient(ahead, left)
        new = _shrink(ahead - step[left, None, None] * slope, step[left] * lambdas[left], ratio)
        move = new - old
        uphill = ((ahead - new) * move).sum((1, 2)) > 0
        speed = torch.where(uphill, torch.ones_like(speed), speed)
        following = (1 + torch.sqrt(1 + 4 * speed**2)) / 2
        push = torch.where(uphill, torch.zeros_like(speed), (speed - 1) / following)
        old, ahead, speed = new, new + push[:, None, None] * move, following
    return layers, done


def _evaluate(
    x: Tensor, target: Tensor, layers: Tensor, lambdas: Tensor, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities ``(n, k, C)``, gradient of the mean loss ``(k, C, d + 1)``, loss with penalty ``(k,)``."""
    k, outputs, _ = layers.shape
    logits = (x @ layers.flatten(0, 1).T).unflatten(1, (k, outputs))  # (n, k, C)
    if outputs == 1:
        given, total = torch.sigmoid(logits), torch.nn.functional.softplus(logits[..., 0])
    else:
        total = torch.logsumexp(logits, 2)
        given = torch.exp(logits - total[..., None])
    slope = ((given - target[:, None]).flatten(1).T @ x / len(x)).unflatten(0, (k, outputs))
    loss = total.mean(0) - torch.einsum("nkc,nc->k", logits, target) / len(x)
    weights = layers[..., :-1]
    cost = (1 - ratio) / 2 * weights.square().sum((1, 2)) + ratio * weights.abs().sum((1, 2))
    return given, slope, loss + lambdas * cost


def _curvature(x: Tensor, given: Tensor) -> Tensor:
    """A matrix for each output, shape ``(C, d + 1, d + 1)``, at the middle of the given probabilities."""
    spread = (given * (1 - given)).mean(1).float()
    return torch.stack([(x * one[:, None]).T @ x for one in spread.T]).double() / len(x)


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
    """How far zero is from the subdifferential, the largest entry of each layer, shape ``(k,)``."""
    weights, lambdas = layers[..., :-1], lambdas[:, None, None]
    slope = gradient[..., :-1] + (1 - ratio) * lambdas * weights
    used = (slope + ratio * lambdas * torch.sign(weights)).abs()
    idle = (slope.abs() - ratio * lambdas).clamp(min=0)
    missed = torch.cat([torch.where(weights != 0, used, idle), gradient[..., -1:].abs()], 2)
    return missed.amax((1, 2))


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
