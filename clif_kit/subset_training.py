r"""Many small nets, each trained on a subset of its own, in one stack of tensors with a leading dimension of models.

Model j minimises the mean loss over its subset S_j by gradient descent with momentum; L2 counts for all parameters:

.. math:: \frac{1}{|B|} \sum_{i \in B} \ell(z_i; \theta_j) + \frac{\lambda}{2} |\theta_j|^2, \qquad
          v \leftarrow 0.9 v + \nabla, \quad \theta_j \leftarrow \theta_j - \eta (1 - t/T) v, \quad t = 0, \dots, T - 1

B is all of S_j for "logistic" (zero start, so nothing is left to chance); else a minibatch, from shuffles of S_j that
follow one another. Model j draws its start, then its shuffles, from one generator of seed ``seed + j``: it does not
depend on what is trained beside it. Two stacks whose seeds are closer than their lengths share generators.
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from clif_kit.parallel import map_seeds
from clif_kit.store import Store, fingerprint

Params = dict[str, Tensor]
MOMENTUM = 0.9
CHANNELS = 8, 16  # of the convolutions
CHUNKS = {"logistic": 32, "mlp": 64, "cnn": 16}  # models trained together, so that they stay in the processor's cache
TOGETHER = 128  # test images that a stack of convolutions sees at once


def sample_masks(m: int, n: int, share: float, seed: int) -> Tensor:
    """Return ``(m, n)`` bool: m random subsets of exactly ``round(share * n)`` of n examples.

    Raises:
        ValueError: If a subset would hold no example, or all.

    >>> sample_masks(3, 4, 0.5, seed=0).sum(1)
    tensor([2, 2, 2])
    """
    size = round(share * n)
    if not 0 < size < n:
        raise ValueError(f"a share of {share:g} of {n} examples is {size}: take one that leaves some in and some out")
    generator, masks = torch.Generator().manual_seed(seed), torch.zeros(m, n, dtype=torch.bool)
    for rows in masks.split(1024):
        rows.scatter_(1, torch.rand(rows.shape, generator=generator).topk(size, dim=1).indices, True)
    return masks


def train_subsets(
    kind: str,
    x: Tensor,
    y: Tensor,
    masks: Tensor,
    *,
    classes: int,
    steps: int,
    lr: float,
    seed: int = 0,
    batch: int = 64,
    hidden: int = 32,
    l2: float = 0.0,
    chunk: int | None = None,
    progress: bool = False,
) -> Params:
    """Train a net on each subset; all in one dtype, that of ``x``.

    Args:
        kind: "logistic"; "mlp", one hidden layer of tanh; "cnn", two 3x3 convolutions with tanh and 2x2 means, then a
            linear layer. All smooth: a kink that rounding tips would make the same net come out differently.
        x: Inputs, ``(n, d)``, or ``(n, h, w)`` for "cnn".
        y: Classes 0, ..., classes - 1, ``(n,)``.
        masks: Subsets, ``(m, n)`` bool; they may differ in size.
        classes: Number of classes.
        steps: T, updates of each model.
        lr: Step size at the start; it falls to 0 in a straight line.
        seed: Of the first model; model j has ``seed + j``.
        batch: Examples of a minibatch; "logistic" has none.
        hidden: Width of "mlp".
        l2: Weight decay of all parameters.
        chunk: Models trained together; changes speed and memory only.
        progress: Draw a bar on the error stream.

    Returns:
        Parameters by name, each ``(m, ...)``, the rest of the shape as in ``torch.nn``.

    Raises:
        ValueError: If the shapes or classes do not fit, or a subset is empty.
        FloatingPointError: If a model diverged.

    >>> x, y = torch.tensor([[-1.0], [1.0], [2.0]]), torch.tensor([0, 1, 1])
    >>> masks = torch.tensor([[True, True, False], [True, True, True]])
    >>> found = train_subsets("logistic", x, y, masks, classes=2, steps=50, lr=0.5)
    >>> {name: tuple(value.shape) for name, value in found.items()}
    {'weight': (2, 2, 1), 'bias': (2, 2)}
    """
    _check(kind, x, y, masks, classes)
    chunk, parts = chunk or CHUNKS[kind], []
    with tqdm(total=len(masks), disable=not progress, unit="model") as bar, torch.no_grad():
        for start in range(0, len(masks), chunk):
            some = masks[start : start + chunk]
            if kind == "logistic":
                found = _descend_together(x, y, some, classes, steps, lr, l2)
            else:
                draws = [torch.Generator().manual_seed(seed + start + j) for j in range(len(some))]
                params = _start(_shapes(kind, x, classes, hidden), draws, x.dtype)
                order = torch.stack(list(map(_shuffles, some, draws, [steps * batch] * len(some))))
                found = _descend(kind, params, x, y, order.view(len(some), steps, batch), lr, l2)
            if not all(value.isfinite().all() for value in found.values()):
                raise FloatingPointError(f"training diverged at lr={lr:g}: take a smaller one, or scale the inputs")
            parts.append(found)
            bar.update(len(some))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def subset_logits(kind: str, params: Params, x: Tensor) -> Tensor:
    """Return the logits of every model on the same inputs, ``(m, t, classes)``.

    Raises:
        KeyError: If the parameters are not those of the kind.
    """
    parts = x.split(TOGETHER) if kind == "cnn" else [x]
    return torch.cat([_FORWARD[kind](params, part).mT for part in parts], dim=1)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of the right class minus the largest other one: ``(m, t, classes)``, ``(t,)`` to ``(m, t)``.

    Higher is better, positive where the model is right. As a query it enters negated, see :mod:`clif_kit.datamodels`.

    >>> margins(torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([1]))
    tensor([[-2.]])
    """
    right = y.expand(logits.shape[:-1])[..., None]
    return logits.gather(-1, right)[..., 0] - logits.scatter(-1, right, -torch.inf).amax(-1)


def train_outputs(
    kind: str,
    x: Tensor,
    y: Tensor,
    masks: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    folder: str | os.PathLike | None = None,
    output: Callable[[Tensor, Tensor], Tensor] = margins,
    seed: int = 0,
    shard: int = 256,
    n_jobs: int = 1,
    progress: bool = True,
    **training: float,
) -> Tensor:
    """Train on every subset and keep what the models say on test points: ``(m, t)`` float32.

    A killed run goes on where it was: each ``shard`` of models is a file. Other data, settings or code start afresh in
    a folder of their own.

    Args:
        kind: As the next arguments, see :func:`train_subsets`.
        x: Training inputs.
        y: Their classes.
        masks: Subsets, ``(m, n)``.
        x_test: Test inputs.
        y_test: Their classes, ``(t,)``.
        folder: Where the stores lie; None keeps nothing.
        output: ``output(logits, y_test) -> (m, t)``, higher is better.
        seed: Of the first model.
        shard: Models a file.
        n_jobs: Processes, one torch thread each; 1 stays in this one.
        progress: Draw a bar of shards on the error stream.
        training: ``classes``, ``steps``, ``lr`` and what else :func:`train_subsets` takes.

    Raises:
        ValueError: If the shapes or classes do not fit.
        FloatingPointError: If a model diverged.
    """
    _check(kind, x, y, masks, training.get("classes", 0))

    def part(start: int) -> dict:
        params = train_subsets(kind, x, y, masks[start : start + shard], seed=seed + start, **training)
        logits = (
            subset_logits(kind, {name: value[j : j + CHUNKS[kind]] for name, value in params.items()}, x_test)
            for j in range(0, len(params["bias"]), CHUNKS[kind])
        )
        return {"outputs": torch.cat([output(few, y_test) for few in logits]).float().numpy()}

    mark = fingerprint(kind, x, y, masks, x_test, y_test, output, seed, shard, training, sys.modules[__name__])
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(folder or scratch) / mark[:16], fingerprint=mark)
        found = map_seeds(part, range(0, len(masks), shard), store=store, n_jobs=n_jobs, progress=progress)
    return torch.cat([torch.from_numpy(one["outputs"]) for one in found])


def _check(kind: str, x: Tensor, y: Tensor, masks: Tensor, classes: int) -> None:
    if kind not in _FORWARD:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(_FORWARD)}")
    if x.ndim != (3 if kind == "cnn" else 2) or not x.is_floating_point():
        wanted = "(n, h, w)" if kind == "cnn" else "(n, d)"
        raise ValueError(f"{kind!r} needs floating inputs {wanted}, got {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"needs {len(x)} classes in 0, ..., {classes - 1}, got {tuple(y.shape)} up to {int(y.max())}")
    if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != len(x):
        raise ValueError(f"masks must be (m, {len(x)}) bool, got {tuple(masks.shape)} {masks.dtype}")
    if not masks.any(1).all():
        raise ValueError(f"subset {int(masks.any(1).int().argmin())} holds no example")


# --- logistic regression: one matrix product for all models


def _descend_together(
    x: Tensor, y: Tensor, masks: Tensor, classes: int, steps: int, lr: float, l2: float
) -> Params:  # fmt: skip
    """Full-batch descent; the models share the inputs, so that each step is two products of two large matrices."""
    (n, d), m = x.shape, len(masks)
    x = torch.cat([x, x.new_ones(n, 1)], 1)  # (n, d + 1)  the last column is the bias
    scaled = x / math.log(2)  # logits in bits: exp2 is several times faster than exp
    share = (masks.to(x.dtype) / masks.sum(1, keepdim=True)).T.contiguous()[:, None]  # (n, 1, m)
    right = functional.one_hot(y, classes).to(x.dtype)[:, :, None]  # (n, classes, 1)
    target = x.T @ (right * share).view(n, -1)  # (d + 1, classes * m)
    theta, speed, z = torch.zeros_like(target), torch.zeros_like(target), x.new_empty(n, classes * m)
    each = z.view(n, classes, m)
    for step in range(steps):
        torch.mm(scaled, theta, out=z)
        each.sub_(each.amax(1, keepdim=True)).exp2_()
        each.mul_(share / each.sum(1, keepdim=True))  # probabilities, divided by the size of the subset
        speed.mul_(MOMENTUM).addmm_(x.T, z).sub_(target).add_(theta, alpha=l2)
        theta.sub_(speed, alpha=lr * (1 - step / steps))
    theta = theta.view(d + 1, classes, m).permute(2, 1, 0)
    return {"weight": theta[:, :, :d].contiguous(), "bias": theta[:, :, d].contiguous()}


def _logistic(params: Params, x: Tensor) -> Tensor:
    return params["weight"] @ x.mT + params["bias"][:, :, None]


# --- nets with minibatches; logits are (m, classes, batch), so that the softmax runs over long rows


def _halve(maps: Tensor) -> Tensor:
    """Means of 2 x 2, what is over left out; as sums of slices, faster than torch's pooling."""
    h, w = maps.shape[-2] // 2 * 2, maps.shape[-1] // 2 * 2
    maps = maps[..., 0:h:2, :w] + maps[..., 1:h:2, :w]
    return (maps[..., 0::2] + maps[..., 1::2]) / 4


def _mlp(params: Params, x: Tensor) -> Tensor:
    """Inputs ``(m, batch, d)``, or ``(t, d)`` for all models."""
    inner = torch.tanh(params["inner.weight"] @ x.mT + params["inner.bias"][:, :, None])  # (m, hidden, batch)
    return params["weight"] @ inner + params["bias"][:, :, None]


def _cnn(params: Params, x: Tensor) -> Tensor:
    """Inputs ``(m, batch, h, w)``, or ``(t, h, w)`` for all models: each model is a group of channels."""
    m = len(params["bias"])
    maps = x.transpose(0, 1) if x.ndim == 4 else x[:, None].expand(-1, m, -1, -1)  # (batch, m, h, w)
    for name in ("first", "second"):
        weight, bias = params[f"{name}.weight"].flatten(0, 1), params[f"{name}.bias"].flatten()
        maps = _halve(torch.tanh(functional.conv2d(maps, weight, bias, padding=1, groups=m)))
    inner = maps.reshape(len(maps), m, -1).permute(1, 2, 0)  # (m, features, batch)
    return params["weight"] @ inner + params["bias"][:, :, None]


_FORWARD = {"logistic": _logistic, "mlp": _mlp, "cnn": _cnn}


def _shapes(kind: str, x: Tensor, classes: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Weights of the layers in order, as in ``torch.nn``; a bias each follows from them."""
    if kind == "mlp":
        return {"inner.weight": (hidden, x.shape[1]), "weight": (classes, hidden)}
    (a, b), (h, w) = CHANNELS, x.shape[1:]
    return {
        "first.weight": (a, 1, 3, 3), "second.weight": (b, a, 3, 3), "weight": (classes, b * (h // 4) * (w // 4))
    }  # fmt: skip


def _start(shapes: dict[str, tuple[int, ...]], draws: list[torch.Generator], dtype: torch.dtype) -> Params:
    """Uniform within 1 / sqrt(inputs of a unit), as ``torch.nn`` has it; in double precision, then rounded."""
    params = {}
    for name, shape in shapes.items():
        bound = torch.Size(shape[1:]).numel() ** -0.5
        for part, size in ((name, shape), (name.replace("weight", "bias"), shape[:1])):
            drawn = torch.stack([torch.rand(size, generator=one, dtype=torch.float64) for one in draws])
            params[part] = ((2 * drawn - 1) * bound).to(dtype)
    return params


def _shuffles(mask: Tensor, draw: torch.Generator, length: int) -> Tensor:
    """The subset in random order again and again, cut at ``length``."""
    subset = mask.nonzero()[:, 0]
    rounds = -(-length // len(subset))
    return torch.cat([subset[torch.randperm(len(subset), generator=draw)] for _ in range(rounds)])[:length]


def _descend(kind: str, params: Params, x: Tensor, y: Tensor, order: Tensor, lr: float, l2: float) -> Params:
    """Minibatch descent of a stack; ``order`` is ``(m, steps, batch)``. The sum of the losses keeps models apart."""
    steps, batch = order.shape[1:]
    speed = {name: torch.zeros_like(value) for name, value in params.items()}
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    for step in range(steps):
        chosen = order[:, step]
        with torch.enable_grad():
            loss = functional.cross_entropy(_FORWARD[kind](leaves, x[chosen]), y[chosen], reduction="sum") / batch
            grads = torch.autograd.grad(loss, list(leaves.values()))
        for (name, value), grad in zip(leaves.items(), grads, strict=True):
            speed[name].mul_(MOMENTUM).add_(grad).add_(value, alpha=l2)
            value.sub_(speed[name], alpha=lr * (1 - step / steps))
    return {name: value.detach() for name, value in leaves.items()}
