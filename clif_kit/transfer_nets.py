r"""Hundreds of small nets trained at once: pre-train each on its own source classes, then move it to a target task.

A net is :math:`z = W_2^\top \max(0, W_1^\top x + b_1) + b_2` with softmax cross-entropy. The ``m`` nets of a stack are
trained together by batched matrix products (gradients in closed form), each on its own examples and with its own
weights: what one would get one after the other. Nothing here scores anything.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Stack = dict[str, Tensor]  # w1 (m, d, h), b1 (m, 1, h), w2 (m, h, c), b2 (m, 1, c)


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """How long and how fast a net learns, before and after the move; the same for every choice of source classes.

    Attributes:
        hidden: Units of the hidden layer.
        steps: Steps of pre-training, whatever the number of source classes.
        batch: Source images a step, drawn with replacement from the classes that the net may see.
        lr: Learning rate of both phases; momentum is 0.9.
        target_steps: Full-batch steps on the target task.
        full: Train all layers on the target (full transfer) or the new head alone (fixed features).
    """

    hidden: int = 64
    steps: int = 200
    batch: int = 32
    lr: float = 0.1
    target_steps: int = 60
    full: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "batch", "lr", "target_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps must be 0 (no pre-training) or more, got {self.steps}")


def fresh_stack(m: int, d: int, classes: int, hidden: int, seed: int) -> Stack:
    """``m`` nets with He's random weights, zero biases and a head of zeros; ``w1`` is ``(m, d, h)``."""
    draw = torch.Generator().manual_seed(seed)
    w1 = torch.randn(m, d, hidden, generator=draw) * (2 / d) ** 0.5
    return {
        "w1": w1,
        "b1": torch.zeros(m, 1, hidden),
        "w2": torch.zeros(m, hidden, classes),
        "b2": torch.zeros(m, 1, classes),
    }


def logits(stack: Stack, x: Tensor) -> Tensor:
    """Shape ``(m, n, c)`` for images ``x`` of shape ``(n, d)`` shown to all nets, or ``(m, n, d)`` for each its own."""
    return hidden(stack, x) @ stack["w2"] + stack["b2"]


def hidden(stack: Stack, x: Tensor) -> Tensor:
    """Features after the first layer, shape ``(m, n, h)``."""
    return torch.relu(x @ stack["w1"] + stack["b1"])


def gradients(stack: Stack, x: Tensor, y: Tensor, full: bool = True) -> Stack:
    r"""Gradient of each net's mean cross-entropy in its own weights, in closed form.

    With features ``a`` and residual :math:`g = (p - e_y) / n`: :math:`\nabla W_2 = a^\top g`,
    :math:`\nabla W_1 = x^\top (g W_2^\top \odot [a > 0])`.

    Args:
        stack: The nets.
        x: Images, ``(m, n, d)``, or ``(n, d)`` for all nets.
        y: Labels, ``(m, n)`` or ``(n,)``.
        full: All layers, or the head (``w2``, ``b2``) alone.
    """
    a = hidden(stack, x)
    g = torch.softmax(a @ stack["w2"] + stack["b2"], -1)  # (m, n, c)
    y = y.expand(g.shape[:2])[..., None]
    g.scatter_add_(-1, y, torch.full(y.shape, -1.0, dtype=g.dtype))
    g /= y.shape[1]
    found = {"w2": a.mT @ g, "b2": g.sum(1, keepdim=True)}
    if full:
        back = (g @ stack["w2"].mT) * (a > 0)  # (m, n, h)
        found |= {"w1": x.mT @ back, "b1": back.sum(1, keepdim=True)}
    return found


def descend(stack: Stack, batches: Iterable[tuple[Tensor, Tensor]], lr: float, full: bool = True) -> Stack:
    """New weights after one step with momentum 0.9 for each ``(x, y)`` of ``batches``.

    Raises:
        FloatingPointError: If a weight is not finite afterwards.
    """
    stack = {name: value.clone() for name, value in stack.items()}
    velocity: Stack = {}
    for x, y in batches:
        for name, slope in gradients(stack, x, y, full).items():
            velocity[name] = slope if name not in velocity else velocity[name].mul_(0.9).add_(slope)
            stack[name].sub_(velocity[name], alpha=lr)
    if not all(torch.isfinite(value).all() for value in stack.values()):
        raise FloatingPointError(f"the nets diverged: lower lr, which is {lr}")
    return stack


def pretrain(x: Tensor, y: Tensor, group: Tensor, keep: Tensor, config: NetConfig, seed: int) -> Stack:
    """Train one net for each row of ``keep``, on the images of the source classes that the row keeps.

    Args:
        x: Source images, ``(n, d)``.
        y: Their labels in the source task, ``(n,)``.
        group: The source class of each image, ``(n,)``; its label too, unless classes share labels.
        keep: Which classes each net may see, ``(m, classes)``, bool.
        config: Sizes and steps; with ``steps=0`` the random start is returned.
        seed: Of the starts and of the batches.

    Raises:
        ValueError: If a net has no image left.
    """
    mine = keep[:, group]  # (m, n)
    counts = mine.sum(1)
    if not counts.all():
        raise ValueError("a net has no source image left: each row of keep needs a class that has images")
    order = torch.argsort(mine.to(torch.int8), dim=1, descending=True, stable=True)  # own images first
    draw = torch.Generator().manual_seed(seed + 1)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(config.steps):
            at = (torch.rand(len(keep), config.batch, generator=draw, dtype=torch.float64) * counts[:, None]).long()
            rows = order.gather(1, at)
            yield x[rows], y[rows]

    return descend(fresh_stack(len(keep), x.shape[1], int(y.max()) + 1, config.hidden, seed), batches(), config.lr)


def transfer(stack: Stack, x: Tensor, y: Tensor, config: NetConfig) -> Stack:
    """The stack with a new head (zeros, one column a target class), trained on the target images ``x``, ``y``."""
    m, h, _ = stack["w2"].shape
    classes = int(y.max()) + 1
    moved = stack | {"w2": torch.zeros(m, h, classes), "b2": torch.zeros(m, 1, classes)}
    return descend(moved, ((x, y) for _ in range(config.target_steps)), config.lr, config.full)


def target_quality(stack: Stack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the right class, and whether it is the most probable: both ``(m, n)``; larger is better."""
    out = logits(stack, x)
    probability = torch.softmax(out, -1).gather(-1, y.expand(out.shape[:2])[..., None])[..., 0]
    return probability, out.argmax(-1) == y
