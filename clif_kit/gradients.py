r"""Gradients of training losses, one example at a time, and of queries. Parameters are plain dictionaries of tensors.

A **training loss** is a callable ``losses(params, *batch) -> (n,)``: the loss of each example of ``batch``, a tuple of
tensors that share their first dimension. The objective is its mean, so an L2 penalty belongs into every example
(:func:`with_l2`). A **query** is any callable ``query(params) -> scalar`` or ``-> (q,)``; lower is better.

Device and dtype are those of the tensors that come in.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

Params = dict[str, Tensor]
Losses = Callable[..., Tensor]  # losses(params, *batch) -> (n,)
Query = Callable[[Params], Tensor]  # query(params) -> () or (q,)


def parameters(module: torch.nn.Module) -> Params:
    """Copies of a module's parameters, detached, in module order (a tied parameter comes once).

    >>> {name: tuple(value.shape) for name, value in parameters(torch.nn.Linear(3, 2)).items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def flatten(params: Params, leading: int = 0) -> Tensor:
    """One vector ``(p,)`` from a parameter dictionary, in its order.

    Args:
        params: Tensors, each with the same first ``leading`` dimensions (0 for one model, 1 for a stack of models).
        leading: How many dimensions to keep in front: the result is ``(*kept, p)``.

    >>> flatten({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
    tensor([1., 2., 3.])
    """
    return torch.cat([value.reshape(*value.shape[:leading], -1) for value in params.values()], dim=-1)


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of :func:`flatten`: ``(..., p)`` becomes a dictionary with the names and shapes of ``like``.

    Leading dimensions are kept, so ``(m, p)`` gives a stack of ``m`` models.

    Raises:
        ValueError: If the last dimension is not the number of parameters in ``like``.

    >>> unflatten(torch.arange(3.0), {"w": torch.zeros(1, 2), "b": torch.zeros(())})
    {'w': tensor([[0., 1.]]), 'b': tensor(2.)}
    """
    sizes = [value.numel() for value in like.values()]
    if vector.shape[-1] != sum(sizes):
        raise ValueError(f"vector has {vector.shape[-1]} entries, the parameters have {sum(sizes)}")
    pieces = vector.split(sizes, dim=-1)
    return {
        name: piece.reshape((*vector.shape[:-1], *value.shape))
        for (name, value), piece in zip(like.items(), pieces, strict=True)
    }


def with_l2(losses: Losses, l2: float) -> Losses:
    r"""The same losses, each with the penalty :math:`\tfrac{\gamma}{2}\|\theta\|^2` added (``l2`` is :math:`\gamma`).

    The mean is then the penalised objective, and removing an example takes its share of the penalty with it, as with
    the "total loss" of Koh & Liang (2017).

    Raises:
        ValueError: If ``l2`` is negative.

    >>> penalised = with_l2(lambda params, x: x * params["w"], l2=0.5)
    >>> penalised({"w": torch.tensor(2.0)}, torch.tensor([0.0, 1.0]))
    tensor([1., 3.])
    """
    if l2 < 0:
        raise ValueError(f"l2 must be >= 0, got {l2}")

    def penalised(params: Params, *batch: Tensor) -> Tensor:
        return losses(params, *batch) + 0.5 * l2 * sum(value.square().sum() for value in params.values())

    return penalised


def mean_loss(losses: Losses, params: Params, batch: tuple[Tensor, ...], weights: Tensor | None = None) -> Tensor:
    r"""The objective :math:`\tfrac1n \sum_i w_i\, \ell(z_i; \theta)`, a scalar.

    The divisor stays ``n`` whatever the weights (0 for a removed example), which does not move the minimiser and keeps
    gradients comparable between removals.

    >>> mean_loss(lambda params, x: x * params["w"], {"w": torch.tensor(2.0)}, (torch.tensor([1.0, 3.0]),))
    tensor(4.)
    """
    each = losses(params, *batch)  # (n,)
    return each.mean() if weights is None else (weights * each).mean()


def gradient(losses: Losses, params: Params, batch: tuple[Tensor, ...], weights: Tensor | None = None) -> Tensor:
    r"""Gradient ``(p,)`` of :func:`mean_loss`: :math:`\tfrac1n \sum_i w_i \nabla \ell(z_i; \theta)`.

    >>> gradient(lambda params, x: x * params["w"], {"w": torch.tensor([2.0])}, (torch.tensor([1.0, 3.0]),))
    tensor([2.])
    """
    return flatten(grad(lambda theta: mean_loss(losses, theta, batch, weights))(params))


def per_example_gradients(
    losses: Losses, params: Params, batch: tuple[Tensor, ...], *, chunk: int | None = 256
) -> Tensor:
    r"""The gradient :math:`\nabla_\theta \ell(z_i; \theta)` of every example.

    Args:
        losses: The training loss. It is called with one example at a time under ``vmap``, so it must not mix examples.
        params: Where to differentiate.
        batch: Tensors with the examples along the first dimension.
        chunk: Examples at a time; bounds the memory and does not change the result. None takes all at once.

    Returns:
        Shape ``(n, p)``, in units of the loss per unit of the parameter. Row i is not divided by ``n``.

    >>> per_example_gradients(lambda params, x: x * params["w"] ** 2, {"w": torch.tensor(2.0)}, (torch.arange(3.0),))
    tensor([[0.],
            [4.],
            [8.]])
    """

    def one(theta: Params, *example: Tensor) -> Tensor:
        return losses(theta, *(value.unsqueeze(0) for value in example)).squeeze(0)

    def one_gradient(*example: Tensor) -> Tensor:
        return flatten(grad(one)(params, *example))

    return vmap(one_gradient, chunk_size=chunk)(*batch)


def query_gradient(query: Query, params: Params) -> Tensor:
    r"""The gradient :math:`\nabla_\theta f(\theta)` of one query, or of many at once.

    Args:
        query: Any differentiable callable ``params -> ()`` or ``params -> (q,)``, free of the training loss.
        params: Where to differentiate.

    Returns:
        ``(p,)`` for a scalar query, ``(q, p)`` for a vector of queries: one forward pass, ``q`` backward passes.

    Raises:
        ValueError: If the query returns more than one dimension.

    >>> query_gradient(lambda params: params["w"] @ params["w"], {"w": torch.tensor([1.0, 2.0])})
    tensor([2., 4.])
    >>> query_gradient(lambda params: params["w"] ** 2, {"w": torch.tensor([1.0, 2.0])})
    tensor([[2., 0.],
            [0., 4.]])
    """
    value, pull = vjp(query, params)
    if value.ndim == 0:
        return flatten(pull(torch.ones_like(value))[0])
    if value.ndim > 1:
        raise ValueError(f"a query returns a scalar or a vector, this one returned the shape {tuple(value.shape)}")
    basis = torch.eye(len(value), dtype=value.dtype, device=value.device)
    return flatten(vmap(pull)(basis)[0], leading=1)  # (q, p)
