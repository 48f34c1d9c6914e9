r"""One vector an example, as a differentiable function of the parameters: its loss gradient, or its hidden state.

The influence between two examples is the product or the cosine of their vectors. Influence tuning takes the gradient
:math:`\nabla_\theta \ell(z; \theta)` in any named subset of the parameters, embedding tuning a hidden state. Dropout is
off. Texts have theirs in :mod:`clif_kit.text_vectors`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from clif_kit.gradients import Losses, Params

Batch = tuple[Tensor, ...]
Vectors = Callable[..., "ExampleVectors"]  # vectors(params, *batch): the vector of each example of the batch


@dataclass(frozen=True)
class ExampleVectors:
    """Vectors of n examples, cut into named blocks, which are never joined: that would copy all of them.

    Attributes:
        values: Blocks, each ``(n, ...)``.
        rows: For a block that holds some rows of a parameter only: which, ascending, ``(u,)``; the block is
            ``(n, u, ...)`` and the rows that are not there are zero.
    """

    values: Params
    rows: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def gram(self) -> Tensor:
        """Inner products of all pairs, ``(n, n)``.

        >>> ExampleVectors({"w": torch.tensor([[1.0, 0.0], [1.0, 2.0]])}).gram()
        tensor([[1., 1.],
                [1., 5.]])
        """
        flat = [value.flatten(1) for value in self.values.values()]
        return sum(block @ block.mT for block in flat)

    def squares(self) -> Tensor:
        """Squared Euclidean norms, ``(n,)``."""
        return sum(value.flatten(1).square().sum(1) for value in self.values.values())

    def scales(self, cosine: bool) -> Tensor:
        """One over the Euclidean norm for cosines, 1 for products, ``(n,)``."""
        if cosine:
            return self.squares().rsqrt()
        return next(iter(self.values.values())).new_ones(len(self))

    def dot(self, dense: Params) -> Tensor:
        """Inner products with g dense vectors, whose blocks are ``(g, ...)`` and have all rows: ``(n, g)``."""
        return sum(
            value.flatten(1) @ (dense[name][:, self.rows[name]] if name in self.rows else dense[name]).flatten(1).mT
            for name, value in self.values.items()
        )

    def add_to(self, dense: Params, weights: Tensor) -> None:
        """Add the weighted sums over the examples, ``weights`` being ``(g, n)``, to g dense vectors, in place."""
        for name, value in self.values.items():
            summed = (weights @ value.flatten(1)).reshape(len(weights), *value.shape[1:])
            if name in self.rows:
                dense[name].index_add_(1, self.rows[name], summed)
            else:
                dense[name].add_(summed)

    def detach(self) -> "ExampleVectors":
        """The same vectors, outside any graph."""
        return replace(self, values={name: value.detach() for name, value in self.values.items()})

    def zeros(self, count: int, params: Params) -> Params:
        """``count`` dense vectors of zeros, for :meth:`add_to`."""
        return {
            name: value.new_zeros(count, *(params[name].shape if name in self.rows else value.shape[1:]))
            for name, value in self.values.items()
        }


def pieces(vectors: Vectors, params: Params, batch: Batch, chunk: int) -> Iterator[ExampleVectors]:
    """The vectors of a batch, ``chunk`` examples at a time."""
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1, got {chunk}")
    for start in range(0, len(batch[0]), chunk):
        yield vectors(params, *(value[start : start + chunk] for value in batch))


def loss_gradients(losses: Losses, names: Sequence[str] | None = None) -> Vectors:
    r"""The gradient :math:`\nabla_S \ell(z_i; \theta)` of each example, S a subset of the parameters; any model.

    Args:
        losses: ``losses(params, *batch) -> (n,)``, without randomness; it must not mix examples.
        names: S, names of parameters. None: all.

    Returns:
        ``vectors(params, *batch)``; blocks are ``(n, *shape)``, in units of the loss per unit of the parameter.

    Raises:
        ValueError: When called, if a name is no parameter.

    >>> vectors = loss_gradients(lambda params, x: x * params["w"] ** 2 + params["b"], names=["w"])
    >>> vectors({"w": torch.tensor(3.0), "b": torch.tensor(0.0)}, torch.tensor([1.0, 2.0])).values
    {'w': tensor([ 6., 12.])}
    """

    def vectors(params: Params, *batch: Tensor) -> ExampleVectors:
        free, rest = _split(params, names)

        def one(theta: Params, *example: Tensor) -> Tensor:
            return losses({**rest, **theta}, *(value.unsqueeze(0) for value in example)).squeeze(0)

        with _ExactNorm() if torch.is_grad_enabled() else nullcontext():
            return ExampleVectors(vmap(grad(one), in_dims=(None, *(0 for _ in batch)))(free, *batch))

    return vectors


class _ExactNorm(TorchFunctionMode):
    """Layer norms written out, so that what comes out can be differentiated again.

    Under ``vmap``, torch 2.13 takes mean and deviation for constants in the backward pass of a layer norm. The second
    derivative through the gradient of its weight is then wrong, and nothing says so.
    """

    def __torch_function__(self, function, _, args=(), kwargs=None):
        if function is not functional.layer_norm:
            return function(*args, **(kwargs or {}))
        return _layer_norm(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    places = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(places, keepdim=True)
    found = centred * (centred.square().mean(places, keepdim=True) + eps).rsqrt()
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def check_names(names: Collection[str], params: Collection[str]) -> None:
    """Refuse a subset of the parameters that is empty, or has a name that is none of theirs.

    Raises:
        ValueError: If it is so.
    """
    wrong = [name for name in names if name not in params]
    if wrong or not names:
        raise ValueError(f"{wrong[0] if wrong else 'nothing'} is no parameter; there are {', '.join(params)}")


def _split(params: Params, names: Sequence[str] | None) -> tuple[Params, Params]:
    chosen = list(params) if names is None else list(names)
    check_names(chosen, params)
    return {name: params[name] for name in chosen}, {n: value for n, value in params.items() if n not in chosen}
