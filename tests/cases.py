"""Small models x losses x data in float64, each a function that returns a :class:`Case`. ``ALL`` lists them.

The models are written by hand, so that a case depends on nothing but torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, softplus


@dataclass(frozen=True)
class Case:
    """A training loss (the penalty is in it), a point that is no optimum, and data whose size is prime."""

    losses: Callable[..., Tensor]
    params: dict[str, Tensor]
    batch: tuple[Tensor, ...]


def _normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}


def _labels(seed: int, n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def _penalty(params: dict[str, Tensor], l2: float) -> Tensor:
    return l2 / 2 * sum((value**2).sum() for value in params.values())


def softmax_outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ params["weight"].T + params["bias"]


def mlp_outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["w1"].T + params["b1"])
    return hidden @ params["w2"].T + params["b2"]


def softmax(n: int = 23, d: int = 4, classes: int = 3, l2: float = 0.1) -> Case:
    """Convex; closed forms in ``oracles.softmax_*``."""

    def losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(softmax_outputs(params, x), y, reduction="none") + _penalty(params, l2)

    params = _normal(1, weight=(classes, d), bias=(classes,))
    return Case(losses, params, (2 * _normal(2, x=(n, d))["x"], _labels(3, n, classes)))


def mlp(n: int = 29, l2: float = 0.05) -> Case:
    """Not convex; tanh, two layers, 3-5-2."""

    def losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(mlp_outputs(params, x), y, reduction="none") + _penalty(params, l2)

    params = _normal(4, w1=(5, 3), b1=(5,), w2=(2, 5), b2=(2,))
    return Case(losses, params, (2 * _normal(5, x=(n, 3))["x"], _labels(6, n, 2)))


def cnn(n: int = 7) -> Case:
    """A convolution with a mean pool, softplus, and a scalar parameter (a temperature)."""

    def losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        pooled = softplus(conv2d(x, params["kernel"])).mean(dim=(2, 3))  # (n, 3)
        return cross_entropy(params["heat"] * pooled @ params["head"], y, reduction="none") + _penalty(params, 0.1)

    params = _normal(7, kernel=(3, 1, 3, 3), heat=(), head=(3, 2))
    return Case(losses, params, (2 * _normal(8, x=(n, 1, 5, 5))["x"], _labels(9, n, 2)))


def tied_words(n: int = 11) -> Case:
    """One table is both input and output embedding, tokens repeat inside an example, row 0 is padding."""

    def losses(params: dict[str, Tensor], tokens: Tensor, target: Tensor) -> Tensor:
        mask = (tokens > 0).to(params["table"].dtype).unsqueeze(-1)
        mean = (params["table"][tokens] * mask).sum(dim=1) / mask.sum(dim=1)  # (n, d)
        return cross_entropy(mean @ params["table"].T, target, reduction="none")

    tokens = torch.randint(1, 6, (n, 4), generator=torch.Generator().manual_seed(10))
    tokens[:, 1] = tokens[:, 0]
    tokens[::2, 3] = 0
    return Case(losses, _normal(11, table=(6, 3)), (tokens, _labels(12, n, 6)))


ALL = {"softmax": softmax, "mlp": mlp, "cnn": cnn, "tied_words": tied_words}
