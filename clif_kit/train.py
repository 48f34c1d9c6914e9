"""One training loop, one way to an optimum, and checkpoints that cannot run code.

A training loss is ``losses(params, *batch) -> (n,)``, the loss of each example. The objective is its mean; with
``weights`` it is the weighted mean, so that weight 0 is the same as the example not being there. No models, no data and
no scores here.
"""

import json
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.func import grad, vjp
from tqdm import tqdm

Params = dict[str, Tensor]
Losses = Callable[..., Tensor]


def set_seed(seed: int) -> None:
    """Seed the global streams of Python, NumPy and torch, for libraries that draw from them.

    >>> set_seed(3); a = torch.rand(2); set_seed(3); torch.equal(a, torch.rand(2))
    True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - gensim and scikit-learn draw from the legacy stream
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Checkpoint:
    """Parameters after ``step`` steps, and the learning rate of that step (TracIn weighs by it).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "c.safetensors"
    >>> Checkpoint({"w": torch.ones(2)}, lr=0.1, step=7).save(path)
    >>> Checkpoint.load(path)
    Checkpoint(params={'w': tensor([1., 1.])}, lr=0.1, step=7)
    """

    params: Params
    lr: float
    step: int

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all; learning rate, step and order of names are its metadata."""
        path, part = Path(path), Path(f"{path}.part")
        label = {"lr": repr(float(self.lr)), "step": str(int(self.step)), "names": json.dumps(list(self.params))}
        save_file({name: value.detach().clone().contiguous() for name, value in self.params.items()}, part, label)
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike, like: Params | None = None) -> "Checkpoint":
        """Read a checkpoint; with ``like``, only one of that architecture.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, no checkpoint, or its names or shapes are not those of ``like``.
        """
        try:
            with safe_open(path, "pt") as file:
                label = file.metadata() or {}
                params = {name: file.get_tensor(name) for name in json.loads(label["names"])}
            checkpoint = cls(params, float(label["lr"]), int(label["step"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no checkpoint of clif_kit") from error
        if like is not None:
            _same_architecture(path, params, like)
        return checkpoint


def _same_architecture(path: str | os.PathLike, found: Params, like: Params) -> None:
    got, want = ({name: tuple(value.shape) for name, value in params.items()} for params in (found, like))
    if got != want:
        differ = [n for n in (*want, *(n for n in got if n not in want)) if got.get(n) != want.get(n)]
        first = ", ".join(
            f"{n}: {got.get(n, 'missing')} where {want.get(n, 'nothing')} is expected" for n in differ[:3]
        )
        raise ValueError(f"{path} is a checkpoint of another architecture ({first}; {len(differ)} differences)")


@dataclass(frozen=True)
class Fitted:
    """What training made.

    Attributes:
        params: The parameters at the end, detached.
        loss: The objective at ``params`` over the whole batch.
        history: The (minibatch) objective before each step, ``(steps,)``.
        checkpoints: As asked for; the last one holds ``params``.
        grad_norm: Euclidean norm of the objective's gradient at ``params``; only :func:`converge` knows it.
    """

    params: Params
    loss: float
    history: Tensor = field(repr=False)
    checkpoints: tuple[Checkpoint, ...] = field(default=(), repr=False)
    grad_norm: float = math.nan


def fit(
    losses: Losses,
    params: Params,
    batch: tuple[Tensor, ...],
    *,
    steps: int,
    lr: float | Callable[[int], float],
    batch_size: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    weights: Tensor | None = None,
    seed: int = 0,
    checkpoint_every: int | None = None,
    progress: bool = False,
) -> Fitted:
    """Minimise the mean of ``losses`` by ``steps`` steps of an optimizer; bit for bit the same for the same seed.

    Args:
        losses: Called as ``losses(params, *examples) -> (len(examples),)``.
        params: Where to start; left as they are.
        batch: The training set: tensors that share their first dimension.
        steps: Parameter updates, 0 or more.
        lr: Learning rate, or a function from the step (0, 1, ...) to it.
        batch_size: Examples a step, in a fresh random order every epoch, the last batch of which may be smaller. None
            takes all of them every step, in order.
        optimizer: Called as ``optimizer(tensors, lr=...)``; bind other settings with ``functools.partial``.
        weights: One number an example, ``(n,)``. Scaled to mean 1: the objective is the weighted mean.
        seed: Decides the order and whatever ``losses`` draws (dropout). The global stream is left alone.
        checkpoint_every: Keep a checkpoint after every so many steps, and after the last.
        progress: Draw a bar on the error stream.

    Raises:
        FloatingPointError: If the objective is not finite at some step.
        ValueError: If weights are negative, all zero or of another length.

    >>> square = lambda params, x: (params["w"] - x) ** 2
    >>> x = torch.tensor([0.0, 1.0, 5.0])
    >>> fit(square, {"w": torch.tensor(9.0)}, (x,), steps=200, lr=0.1, optimizer=torch.optim.SGD)
    Fitted(params={'w': tensor(2.0000)}, loss=4.666..., grad_norm=nan)
    """
    n = len(batch[0])
    scaled = _mean_one(weights, n)
    rate = lr if callable(lr) else lambda _: lr
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    machine, history, checkpoints = optimizer(list(leaves.values()), lr=rate(0)), [], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step, rows in zip(tqdm(range(steps), disable=not progress), _batches(n, batch_size, seed), strict=False):
            for group in machine.param_groups:
                group["lr"] = rate(step)
            machine.zero_grad()
            objective = _mean(losses(leaves, *(value[rows] for value in batch)), scaled, rows)
            history.append(_finite(objective, step, "lower the learning rate"))
            objective.backward()
            machine.step()
            if checkpoint_every and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
                checkpoints.append(Checkpoint(_frozen(leaves), rate(step), step + 1))
        loss = _objective(losses, leaves, batch, scaled, batch_size or n)
    return Fitted(_frozen(leaves), loss, torch.tensor(history, dtype=torch.float64), tuple(checkpoints))


def converge(
    losses: Losses,
    params: Params,
    batch: tuple[Tensor, ...],
    *,
    tol: float = 1e-8,
    max_iter: int = 2000,
    weights: Tensor | None = None,
) -> Fitted:
    """Minimise the mean of ``losses`` until its gradient is shorter than ``tol``: full-batch L-BFGS in float64.

    The strong-Wolfe line search stops where values of the objective differ by rounding only, which is long before the
    gradient is small. Newton steps, by conjugate gradients, then look at gradients alone.

    Args:
        losses: As for :func:`fit`; without randomness, and twice differentiable.
        params: Where to start; left as they are. They and the batch are taken to float64.
        batch: The training set.
        tol: Bound on the Euclidean norm of the gradient.
        max_iter: L-BFGS iterations allowed.
        weights: As for :func:`fit`.

    Returns:
        Float64 parameters, loss and ``grad_norm``. A ``RuntimeWarning`` says when ``grad_norm`` is above ``tol``: that
        is no optimum, and influence functions do not describe it.

    Raises:
        FloatingPointError: If the objective is not finite.

    >>> converge(lambda params, x: torch.cosh(params["w"] - x), {"w": torch.zeros(1)}, (torch.tensor([3.0, 3.0]),))
    Fitted(params={'w': tensor([3.0000], dtype=torch.float64)}, loss=1.0, grad_norm=...e-...)
    """
    batch = tuple(value.double() if value.is_floating_point() else value for value in batch)
    scaled, shapes = _mean_one(weights, len(batch[0])), {name: value.shape for name, value in params.items()}
    theta = torch.cat([value.detach().double().reshape(-1) for value in params.values()]).requires_grad_()
    history: list[float] = []

    def unpack(vector: Tensor) -> Params:
        pieces = vector.split([shape.numel() for shape in shapes.values()])
        return {name: piece.reshape(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}

    def objective(vector: Tensor) -> Tensor:
        return _mean(losses(unpack(vector), *batch), scaled, slice(None))

    def closure() -> Tensor:
        value = objective(theta)
        history.append(_finite(value, len(history), "start elsewhere, or look for NaN in the data"))
        (theta.grad,) = torch.autograd.grad(value, theta)
        return value

    bound = tol / math.sqrt(len(theta))  # torch looks at the largest entry
    settings = {"max_iter": max_iter, "tolerance_grad": bound, "tolerance_change": 1e-16, "history_size": 50}
    torch.optim.LBFGS([theta], line_search_fn="strong_wolfe", **settings).step(closure)
    found, loss, grad_norm = _polish(objective, theta.detach(), tol)
    if not grad_norm <= tol:
        warnings.warn(f"converge: |gradient| is {grad_norm:.1e}, above tol={tol:.0e}", RuntimeWarning, stacklevel=2)
    return Fitted(_frozen(unpack(found)), loss, torch.tensor(history, dtype=torch.float64), (), grad_norm)


def _polish(objective: Callable[[Tensor], Tensor], theta: Tensor, tol: float) -> tuple[Tensor, float, float]:
    """Newton steps while the gradient shrinks and the objective does not rise: point, objective, gradient norm."""
    gradient, times = vjp(grad(objective), theta)
    loss = float(objective(theta))
    for _ in range(50):
        if gradient.norm() <= tol:
            break
        new = theta - _conjugate_gradients(lambda v, times=times: times(v)[0], gradient)
        new_gradient, times = vjp(grad(objective), new)
        new_loss = float(objective(new))
        # a smaller gradient alone could be a saddle's or a maximum's
        if not (new_gradient.norm() < gradient.norm() and new_loss <= loss + 1e-12 * abs(loss)):
            break
        theta, gradient, loss = new, new_gradient, new_loss
    return theta, loss, float(gradient.norm())


def _conjugate_gradients(times: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Solve H x = b to a hundredth, or as far as the curvature is positive."""
    x, residual, direction = torch.zeros_like(b), b, b
    for _ in range(2 * len(b)):
        product = times(direction)
        if direction @ product <= 0:
            break
        step = (residual @ residual) / (direction @ product)
        x, rest = x + step * direction, residual - step * product
        if rest.norm() <= 1e-2 * b.norm():
            break
        direction, residual = rest + (rest @ rest) / (residual @ residual) * direction, rest
    return x


def _batches(n: int, size: int | None, seed: int) -> Iterator[Tensor | slice]:
    """Rows of one batch after the other, for ever."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        if size is None:
            yield slice(None)
        else:
            yield from torch.randperm(n, generator=draw).split(size)


def _mean_one(weights: Tensor | None, n: int) -> Tensor | None:
    """Weights scaled to mean 1, so that a plain mean over examples becomes the weighted mean."""
    if weights is None:
        return None
    if weights.shape != (n,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"weights must be {n} numbers, none negative and not all zero")
    return weights.double() / weights.double().mean()


def _mean(each: Tensor, scaled: Tensor | None, rows: Tensor | slice) -> Tensor:
    return (each if scaled is None else scaled[rows].to(each) * each).mean()


def _objective(losses: Losses, params: Params, batch: tuple[Tensor, ...], scaled: Tensor | None, size: int) -> float:
    """The objective over all examples, ``size`` at a time."""
    parts = torch.arange(len(batch[0])).split(size)
    with torch.no_grad():
        means = [_mean(losses(params, *(value[rows] for value in batch)), scaled, rows) for rows in parts]
    return sum(float(mean) * len(rows) for mean, rows in zip(means, parts, strict=True)) / len(batch[0])


def _finite(objective: Tensor, step: int, advice: str) -> float:
    if not torch.isfinite(objective):
        raise FloatingPointError(f"the objective is {objective.item()} at step {step}: {advice}")
    return objective.item()


def _frozen(leaves: Params) -> Params:
    return {name: value.detach().clone() for name, value in leaves.items()}
