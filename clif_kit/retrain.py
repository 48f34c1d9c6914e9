r"""The ground truth of every score: train again without some examples, and look at the query.

A *removal* is a sequence of indices; leave-one-out is ``[[i] for i in range(n)]``. The retrained model minimises

.. math:: \frac{1}{|K|} \sum_{i \in K} \ell(z_i; \theta), \qquad K = \text{the examples that are kept,}

the mean over what is kept, so that an L2 term inside :math:`\ell` keeps its strength. Four ways, each for models of
another kind: Newton or quasi-Newton steps from the full model's optimum, many small models in one tensor, or any
training run at all in parallel processes (:mod:`clif_kit.parallel`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.func import hessian as func_hessian
from tqdm import tqdm

from clif_kit.curvature import hessian
from clif_kit.gradients import Losses, Params, Query, flatten, unflatten
from clif_kit.parallel import Removals, keep_weights, retrain_parallel
from clif_kit.solvers import Solve

__all__ = [
    "Retrained",
    "actual_change",
    "keep_weights",
    "retrain_batched",
    "retrain_newton",
    "retrain_parallel",
    "retrain_quasi_newton",
]


@dataclass(frozen=True)
class Retrained:
    """One model a removal.

    Attributes:
        params: Tensors with a leading dimension ``m``, in the order of the removals.
        grad_norm: Norm of the gradient of each model's own objective, ``(m,)``.
        steps: Newton steps that each model took, ``(m,)``.
        converged: Whether ``grad_norm`` is within the tolerance, ``(m,)``. Leave the others out, or say how many.
    """

    params: Params
    grad_norm: Tensor
    steps: Tensor
    converged: Tensor


def retrain_newton(
    losses: Losses,
    params: Params,
    batch: tuple[Tensor, ...],
    removals: Removals,
    *,
    tol: float = 1e-10,
    max_iter: int = 20,
    chunk: int = 32,
    damping: float = 0.0,
    progress: bool = False,
) -> Retrained:
    r"""Retrain by Newton's method from the full model, each model with its own gradient and its own Hessian.

    .. math:: \theta \leftarrow \theta - (|H_K| + \mu I)^{+} g_K

    :math:`|H|` has the absolute eigenvalues, so that negative curvature is left downhill. :math:`\mu` starts at
    ``damping`` and grows (Levenberg-Marquardt) when a step does not lower the objective. A Hessian serves as long as it
    cuts the gradient tenfold. Directions without curvature or gradient (eigenvalue below 1e-8 of the largest) are left
    alone. Only the gradient decides when a model is done, so nothing of the influence approximation enters the result.

    Args:
        losses: The training loss, twice differentiable, one example independent of the other.
        params: Where to start: the optimum on all examples, in float64.
        batch: The full training set.
        removals: Indices to leave out, one sequence a model.
        tol: A model is done when the norm of its gradient is at most this.
        max_iter: Hessians allowed per model.
        chunk: Models at a time.
        damping: First :math:`\mu`, in units of the Hessian.
        progress: Draw a bar on the error stream.

    Returns:
        Models in the order of ``removals``; a ``RuntimeWarning`` says how many did not converge.

    Raises:
        FloatingPointError: If the objective of a model is not finite at the start.

    >>> square = lambda params, x: (params["w"] - x) ** 2 / 2
    >>> x = torch.tensor([0.0, 3.0, 6.0], dtype=torch.float64)
    >>> retrain_newton(square, {"w": x.mean()}, (x,), [[0], [1], [2], [0, 1]]).params["w"]
    tensor([4.5000, 3.0000, 1.5000, 6.0000], dtype=torch.float64)
    """
    family = _Family(losses, params, batch, tol, damping)
    keep = keep_weights(len(batch[0]), removals).to(flatten(params))
    theta = flatten(params).expand(len(keep), -1)
    return _finish(family, theta, keep, max_iter, chunk, progress)


def retrain_quasi_newton(
    losses: Losses,
    params: Params,
    batch: tuple[Tensor, ...],
    removals: Removals,
    solve: Solve,
    *,
    tol: float = 1e-10,
    max_iter: int = 100,
    memory: int = 10,
    newton: bool = True,
    chunk: int = 32,
    progress: bool = False,
) -> Retrained:
    r"""Retrain from the full model's optimum by L-BFGS, with one factorised Hessian as the start for all models.

    Removing one example in hundreds hardly changes the curvature, so a few steps do and no model needs a Hessian of its
    own: many times faster than :func:`retrain_newton`.

    The first step is the influence approximation (divided by :math:`|K|`, where a score has n), what follows is not:
    every model goes on until the gradient of its own objective vanishes. Where :math:`H_K \succeq \gamma I`
    everywhere, that bounds the error whatever the steps were:
    :math:`\|\theta - \hat\theta_K\| \le \|g_K\| / \gamma`.

    Args:
        losses: The training loss, twice differentiable, one example independent of the other.
        params: Where to start: the optimum on all examples, in float64.
        batch: The full training set.
        removals: Indices to leave out, one sequence a model.
        solve: ``b -> (H + damping I)^-1 b`` of the full model, positive definite, for a stack ``(c, p)`` of vectors.
        tol: A model is done when the norm of its gradient is at most this.
        max_iter: L-BFGS steps allowed per model.
        memory: Past steps that L-BFGS remembers, 1 or more.
        newton: Finish what is not converged by then as :func:`retrain_newton` does, each model with its own Hessian.
        chunk: Models at a time.
        progress: Draw a bar on the error stream.

    Returns:
        Models in the order of ``removals``; with ``newton`` a ``RuntimeWarning`` says how many did not converge.

    Raises:
        FloatingPointError: If the objective of a model is not finite at the start.

    >>> square = lambda params, x: (params["w"] - x) ** 2 / 2
    >>> x = torch.tensor([0.0, 3.0, 6.0], dtype=torch.float64)
    >>> retrain_quasi_newton(square, {"w": x.mean()}, (x,), [[0], [1], [2]], lambda b: b).params["w"]
    tensor([4.5000, 3.0000, 1.5000], dtype=torch.float64)
    """
    family = _Family(losses, params, batch, tol, 0.0)
    keep = keep_weights(len(batch[0]), removals).to(flatten(params))
    done = [
        _quasi_newton(family, flatten(params).repeat(len(part), 1), part, solve, max_iter, memory)
        for part in tqdm(keep.split(chunk), disable=not progress, unit="chunk")
    ]
    theta, norms, steps = (torch.cat(column) for column in zip(*done, strict=True))
    if newton and (rest := ~(norms <= tol)).any():  # NaN too
        if theta.shape[1] > 2000:
            text = f"{int(rest.sum())} models did not converge in {max_iter} steps; Newton is slow"
            advice = f"with {theta.shape[1]} parameters: raise max_iter or tol, or pass newton=False"
            warnings.warn(f"{text} {advice}", RuntimeWarning, stacklevel=2)
        finished = _finish(family, theta[rest], keep[rest], 20, chunk, progress)
        theta[rest], norms[rest] = flatten(finished.params, leading=1), finished.grad_norm
        steps[rest] += finished.steps
    return Retrained(unflatten(theta, params), norms, steps, norms <= tol)


def _quasi_newton(family, theta, keep, solve, max_iter, memory) -> tuple[Tensor, Tensor, Tensor]:
    """L-BFGS for one chunk: parameters ``(c, p)``, gradient norms ``(c,)``, steps ``(c,)``."""
    slope, value = _finite_slopes(family, theta, keep)
    steps, length = torch.zeros_like(value, dtype=torch.long), torch.ones_like(value)
    moves: list[tuple[Tensor, Tensor]] = []  # changes of theta and of the slope, (c, p) each
    for _ in range(max_iter):
        todo = (slope.norm(dim=1) > family.tol).nonzero()[:, 0]
        if not len(todo):
            break
        step = -length[todo, None] * _two_loops(slope[todo], [(s[todo], y[todo]) for s, y in moves], solve)
        new_slope, new_value = family.slopes(theta[todo] + step, keep[todo])
        good = new_value <= value[todo] + 1e-12 * value[todo].abs()  # False for NaN
        moved, s, y = todo[good], torch.zeros_like(theta), torch.zeros_like(theta)
        s[moved], y[moved] = step[good], new_slope[good] - slope[moved]
        moves = [*moves[-memory + 1 :], (s, y)] if memory > 1 else [(s, y)]
        theta[moved] += step[good]
        slope[moved], value[moved] = new_slope[good], new_value[good]
        length[todo] = torch.where(good, 1.0, length[todo] / 4)
        steps[moved] += 1
    return theta, slope.norm(dim=1), steps


def _two_loops(slope: Tensor, moves: list[tuple[Tensor, Tensor]], solve: Solve) -> Tensor:
    """L-BFGS's inverse Hessian times each row of ``slope``; rows that did not move in a step leave that step out."""
    q, used = slope, []
    for s, y in reversed(moves):
        turn = (s * y).sum(1, keepdim=True)  # (c, 1)
        rho = torch.where(turn > 0, 1 / turn, 0.0)
        alpha = rho * (s * q).sum(1, keepdim=True)
        q = q - alpha * y
        used.append((s, y, rho, alpha))
    q = solve(q)
    for s, y, rho, alpha in reversed(used):
        q = q + (alpha - rho * (y * q).sum(1, keepdim=True)) * s
    return q


def retrain_batched(
    losses: Losses,
    params0: Params,
    batch: tuple[Tensor, ...],
    removals: Removals,
    *,
    steps: int,
    lr: float,
    newton: bool = True,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    tol: float = 1e-10,
    max_iter: int = 20,
    chunk: int = 32,
    progress: bool = False,
) -> Retrained:
    """Retrain from the same initial parameters, many models in one tensor: full-batch steps, then a Newton finish.

    Independent of the full model's optimum, so it shows what a warm start hides: models that end in another basin.

    Args:
        losses: The training loss, one example independent of the other.
        params0: Where every model starts.
        batch: The full training set.
        removals: Indices to leave out, one sequence a model.
        steps: Optimizer steps.
        lr: Learning rate.
        newton: Finish as :func:`retrain_newton` does.
        optimizer: Called as ``optimizer(tensors, lr=...)``; must treat each number alone, as Adam and SGD do.
        tol: As for :func:`retrain_newton`.
        max_iter: As for :func:`retrain_newton`.
        chunk: Models at a time; 32 stay in the cache.
        progress: Draw a bar on the error stream.

    Raises:
        FloatingPointError: If the objective of a model is not finite after the steps.
    """
    family = _Family(losses, params0, batch, tol, 0.0)
    keep = keep_weights(len(batch[0]), removals).to(flatten(params0))
    trained = []
    for weights in tqdm(keep.split(chunk), disable=not progress, unit="chunk"):
        theta = flatten(params0).repeat(len(weights), 1)  # (c, p)
        machine = optimizer([theta], lr=lr)
        for _ in range(steps):
            theta.grad = family.slopes(theta, weights)[0]
            machine.step()
        trained.append(theta.detach())
    return _finish(family, torch.cat(trained), keep, max_iter if newton else 0, chunk, progress)


class _Family:
    """Objectives that differ in the examples they keep: values, gradients and Hessians of many models at once."""

    def __init__(self, losses: Losses, like: Params, batch: tuple[Tensor, ...], tol: float, damping: float) -> None:
        self.losses, self.like, self.batch, self.tol, self.damping = losses, like, batch, tol, damping
        self.slopes = vmap(grad_and_value(self._objective))  # (c, p), (c, n) -> gradients (c, p), values (c,)
        self._hessians = vmap(func_hessian(self._objective))

    def _objective(self, vector: Tensor, weights: Tensor) -> Tensor:
        return (weights * self.losses(unflatten(vector, self.like), *self.batch)).sum() / weights.sum()

    def hessians(self, theta: Tensor, keep: Tensor) -> Tensor:
        """Each model's own Hessian on the examples that it keeps, ``(c, p, p)``."""
        if theta.shape[1] * keep.shape[1] < 10_000:  # small: the calls cost more than the numbers
            return self._hessians(theta, keep)
        return torch.stack([self._hessian(*pair) for pair in zip(theta, keep, strict=True)])

    def _hessian(self, vector: Tensor, keep: Tensor) -> Tensor:
        kept = tuple(value[keep > 0] for value in self.batch)
        return hessian(self.losses, unflatten(vector, self.like), kept)


def _finish(family: _Family, theta: Tensor, keep: Tensor, max_iter: int, chunk: int, progress: bool) -> Retrained:
    """Run Newton's method chunk by chunk and put the results together."""
    size = max(1, min(chunk, 20_000_000 // theta.shape[1] ** 2)) if max_iter else chunk  # 160 MB of Hessians
    parts = list(zip(theta.split(size), keep.split(size), strict=True))
    done = [_newton(family, *part, max_iter) for part in tqdm(parts, disable=not progress, unit="chunk")]
    theta, norms, steps = (torch.cat(column) for column in zip(*done, strict=True))
    converged = norms <= family.tol
    if max_iter and not converged.all():
        bad = f"{int((~converged).sum())} of {len(norms)} retrained models did not converge"
        warnings.warn(f"{bad} (|gradient| up to {norms.max():.1e}, tol {family.tol:.0e})", RuntimeWarning, stacklevel=3)
    return Retrained(unflatten(theta, family.like), norms, steps, converged)


def _finite_slopes(family: _Family, theta: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients ``(c, p)`` and values ``(c,)`` where the steps begin; a value that is not finite ends the run."""
    slope, value = family.slopes(theta, keep)
    if not torch.isfinite(value).all():
        raise FloatingPointError(f"the objective of {int((~torch.isfinite(value)).sum())} models is not finite")
    return slope, value


def _newton(family: _Family, theta: Tensor, keep: Tensor, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method for one chunk: parameters ``(c, p)``, gradient norms ``(c,)``, steps ``(c,)``."""
    theta, (slope, value) = theta.clone(), _finite_slopes(family, theta, keep)
    steps = torch.zeros_like(value, dtype=torch.long)
    stuck = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(max_iter):
        todo = ((slope.norm(dim=1) > family.tol) & ~stuck).nonzero()[:, 0]
        if not len(todo):
            break
        before = steps.clone()
        eigen = torch.linalg.eigh(family.hessians(theta[todo], keep[todo]))
        _descend(family, eigen, todo, keep, theta, slope, value, steps)
        stuck[todo] = steps[todo] == before[todo]
    return theta, slope.norm(dim=1), steps


def _descend(
    family: _Family, eigen: tuple[Tensor, Tensor], todo: Tensor, keep: Tensor, theta: Tensor, slope: Tensor,
    value: Tensor, steps: Tensor,
) -> None:  # fmt: skip
    """Take steps with one eigendecomposition a model, in place, for as long as they pay."""
    (lam, vectors), damping = eigen, theta.new_full((len(todo), 1), family.damping)
    top = lam.abs().amax(1, keepdim=True)
    pending = torch.arange(len(todo), device=todo.device)  # rows of ``eigen`` still in use
    for _ in range(40):
        rows = todo[pending]
        step = _step(lam[pending], vectors[pending], slope[rows], damping[pending], family.tol)
        new_slope, new_value = family.slopes(theta[rows] + step, keep[rows])
        good = new_value <= value[rows] + 1e-12 * value[rows].abs()  # False for NaN
        fast = good & (new_slope.norm(dim=1) <= 0.1 * slope[rows].norm(dim=1))
        again = (fast & (new_slope.norm(dim=1) > family.tol)) | ~good
        moved = rows[good]
        theta[moved] += step[good]
        slope[moved], value[moved] = new_slope[good], new_value[good]
        steps[moved] += 1
        damping[pending[~good]] = torch.maximum(10 * damping, 1e-3 * top)[pending[~good]]
        pending = pending[again]
        if not len(pending):
            return


def _step(lam: Tensor, vectors: Tensor, slope: Tensor, damping: Tensor, tol: float) -> Tensor:
    """Minus ``(|H| + damping I)^+ slope`` for each row, nothing along directions with neither curvature nor slope."""
    along = (slope.unsqueeze(1) @ vectors).squeeze(1)  # (c, p)
    floor = 1e-8 * lam.abs().amax(1, keepdim=True)
    flat = (lam.abs() <= floor) & (along.abs() <= tol / lam.shape[1] ** 0.5)
    along = (along / (torch.maximum(lam.abs(), floor) + damping)).masked_fill(flat, 0)
    return -(vectors @ along.unsqueeze(2)).squeeze(2)


def actual_change(query: Query, params: Params, retrained: Retrained | Params) -> Tensor:
    r"""What really happens to the query when the examples are removed: :math:`f(\theta_K) - f(\theta)`.

    Sign: as a score. Positive = helpful (without the examples the query loss is higher). Units: those of the query.

    Args:
        query: ``query(params) -> ()`` or ``(q,)``; lower is better.
        params: The model trained on everything.
        retrained: One model a removal, or just their parameters with a leading dimension ``m``.

    Returns:
        ``(m,)``, or ``(q, m)`` for a vector of queries.

    >>> actual_change(lambda params: params["w"] ** 2, {"w": torch.tensor(3.0)}, {"w": torch.tensor([3.0, 4.0])})
    tensor([0., 7.])
    """
    after = retrained.params if isinstance(retrained, Retrained) else retrained
    m = len(next(iter(after.values())))
    with torch.no_grad():
        values = torch.stack([query({name: value[i] for name, value in after.items()}) for i in range(m)], dim=-1)
        return values - query(params).unsqueeze(-1)
