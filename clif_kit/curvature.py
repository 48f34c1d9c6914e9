r"""Curvature of the mean training loss: Hessian-vector products, the dense Hessian, the Gauss-Newton matrix.

Everything here is of the *whole* data. ``chunk`` only bounds the memory: sums over unequal chunks are divided by ``n``
once, never averaged over chunks, and nothing is ever inverted chunk by chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from clif_kit.gradients import Losses, Params, flatten, unflatten


def hvp(
    losses: Losses, params: Params, batch: tuple[Tensor, ...], *, chunk: int | None = None, damping: float = 0.0
) -> Callable[[Tensor], Tensor]:
    r"""The map :math:`v \mapsto (H + \lambda I) v` with :math:`H = \tfrac1n \sum_i \nabla^2 \ell(z_i; \theta)`.

    Args:
        losses: The training loss, ``losses(params, *batch) -> (n,)``.
        params: Where to differentiate.
        batch: The full training data, examples first.
        chunk: Examples at a time. None keeps the graph of the whole batch, so that a product costs one backward pass
            (quickest when many follow, as in CG); a number rebuilds the graph of each chunk in every product.
        damping: :math:`\lambda`, added to every eigenvalue.

    Returns:
        A function from ``(p,)`` to ``(p,)``, in units of the loss per squared unit of the parameter times ``v``.

    Raises:
        ValueError: If ``chunk`` is less than 1.

    >>> times = hvp(lambda params, x: x * params["w"] ** 2, {"w": torch.tensor(1.0)}, (torch.tensor([1.0, 2.0]),))
    >>> times(torch.tensor([10.0]))
    tensor([30.])
    """
    n = len(batch[0])
    parts = _parts(batch, chunk)

    def pullback(part: tuple[Tensor, ...]) -> Callable:
        return vjp(grad(lambda theta: losses(theta, *part).sum() / n), params)[1]

    whole = pullback(batch) if len(parts) == 1 else None

    def matvec(vector: Tensor) -> Tensor:
        direction = unflatten(vector, params)
        pulls = [whole] if whole is not None else map(pullback, parts)
        return sum((flatten(pull(direction)[0]) for pull in pulls), start=damping * vector)

    return matvec


def hessian(
    losses: Losses, params: Params, batch: tuple[Tensor, ...], *, chunk: int | None = None, rows: int = 64
) -> Tensor:
    r"""The dense Hessian :math:`H = \tfrac1n \sum_i \nabla^2 \ell(z_i; \theta)` of the mean training loss.

    Reverse over reverse, one parameter tensor after the other, and only against itself and the tensors behind it: the
    backward pass then skips the earlier layers, and the other triangle is a mirror image. That halves the work.

    Args:
        losses: The training loss, ``losses(params, *batch) -> (n,)``.
        params: Where to differentiate.
        batch: The full training data, examples first.
        chunk: Examples at a time (None: all); does not change the result.
        rows: Rows of the Hessian at a time. Memory is about ``rows`` times that of one backward pass.

    Returns:
        Shape ``(p, p)``, exactly symmetric, rows and columns in the order of :func:`clif_kit.gradients.flatten`.

    Raises:
        ValueError: If ``chunk`` is less than 1.

    >>> hessian(lambda params, x: x * params["w"].prod(), {"w": torch.tensor([1.0, 2.0])}, (torch.tensor([1.0, 3.0]),))
    tensor([[0., 2.],
            [2., 0.]])
    """
    n, names = len(batch[0]), list(params)
    p = sum(value.numel() for value in params.values())
    upper = torch.zeros(p, p, dtype=params[names[0]].dtype, device=params[names[0]].device)
    for part in _parts(batch, chunk):
        start = 0
        for k, name in enumerate(names):
            stop = start + params[name].numel()
            block = _block_rows(lambda theta, part=part: losses(theta, *part).sum() / n, params, names[k:], rows)
            upper[start:stop, start:] += block  # (size of this tensor, parameters from here on)
            start = stop
    return upper.triu() + upper.triu(1).T


def gauss_newton(
    outputs: Callable[..., Tensor],
    loss_of_outputs: Callable[..., Tensor],
    params: Params,
    batch: tuple[Tensor, ...],
    l2: float = 0.0,
    *,
    chunk: int = 256,
) -> Tensor:
    r"""The generalised Gauss-Newton matrix :math:`G = \tfrac1n \sum_i J_i^\top \nabla^2_o L_i\, J_i + \gamma I`.

    :math:`J_i` is the Jacobian of the outputs of example i, :math:`\nabla^2_o L_i` the Hessian of its loss in those
    outputs. G drops the curvature of the network itself (Schraudolph 2002), so it is positive semi-definite whenever
    the loss is convex in the outputs, and equals the Hessian when the outputs are linear in the parameters.

    Args:
        outputs: The model, ``outputs(params, inputs) -> (n, ...)``.
        loss_of_outputs: ``loss_of_outputs(out, *targets) -> (n,)``, the loss *without* penalty.
        params: Where to differentiate.
        batch: ``(inputs, *targets)``, examples first.
        l2: :math:`\gamma`, the strength of the penalty that :func:`clif_kit.gradients.with_l2` adds to the loss.
        chunk: Examples at a time; does not change the result.

    Returns:
        Shape ``(p, p)``, symmetric.

    Raises:
        ValueError: If ``chunk`` is less than 1.

    >>> square = lambda out, y: (out - y).square() / 2
    >>> gauss_newton(lambda params, x: x @ params["w"], square, {"w": torch.ones(2)},
    ...              (torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2)))
    tensor([[1., 1.],
            [1., 2.]])
    """

    def one_output(theta: Params, x: Tensor) -> Tensor:
        return outputs(theta, x.unsqueeze(0)).reshape(-1)  # (k,)

    def one_loss(out: Tensor, *example: Tensor) -> Tensor:  # example: (input, *targets)
        shaped = out.reshape(outputs(params, example[0].unsqueeze(0)).shape)
        return loss_of_outputs(shaped, *(value.unsqueeze(0) for value in example[1:])).squeeze(0)

    def jacobian_and_hessian(*example: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = flatten(jacrev(one_output)(params, example[0]), leading=1)  # (k, p)
        return jacobian, jacrev(grad(one_loss))(one_output(params, example[0]), *example)  # (k, k)

    total = torch.zeros((), dtype=batch[0].dtype, device=batch[0].device)
    for part in _parts(batch, chunk):
        jacobian, inner = vmap(jacobian_and_hessian)(*part)  # (c, k, p), (c, k, k)
        total = total + jacobian.flatten(0, 1).T @ (inner @ jacobian).flatten(0, 1)  # (p, p)
    matrix = total / len(batch[0])
    return (matrix + matrix.T) / 2 + l2 * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def softmax_hessian(inputs: Tensor, probabilities: Tensor, l2: float = 0.0) -> Tensor:
    r"""The Hessian of multinomial logistic regression in closed form: what :func:`hessian` gives, many times faster.

    .. math:: H_{ab} = \frac1n \sum_i \pi_{ia} (\delta_{ab} - \pi_{ib})\, \tilde x_i \tilde x_i^\top
              + \gamma\, \delta_{ab} I, \qquad \tilde x = (x, 1)

    Labels do not enter. Memory is that of the result; with 10 classes and 28 x 28 pixels (p = 7850) half a gigabyte.

    Args:
        inputs: x, shape ``(n, d)``.
        probabilities: :math:`\pi`, the model's softmax outputs, shape ``(n, classes)``.
        l2: :math:`\gamma`, the strength that :func:`clif_kit.gradients.with_l2` adds to each loss.

    Returns:
        Shape ``(p, p)``, in the order of :func:`clif_kit.models.logistic`: weight ``(classes, d)``, then bias.

    Raises:
        ValueError: If the rows of ``probabilities`` do not sum to 1 (logits, say).

    >>> softmax_hessian(torch.tensor([[2.0]]), torch.tensor([[0.5, 0.5]]))[:2, :2]
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """
    (n, d), classes = inputs.shape, probabilities.shape[1]
    if not ((probabilities.sum(1) - 1).abs() < 1e-3).all():  # NaN too
        raise ValueError("softmax_hessian needs probabilities, rows that sum to 1: torch.softmax(logits, dim=1)")
    extended = torch.cat([inputs, inputs.new_ones(n, 1)], dim=1)  # (n, d + 1)
    index = torch.arange(classes * (d + 1), device=inputs.device)
    place = torch.cat([index[: classes * d].view(classes, d), index[classes * d :, None]], dim=1)  # (classes, d + 1)
    matrix = inputs.new_zeros(len(index), len(index))
    for a in range(classes):
        for b in range(a, classes):
            weight = probabilities[:, a] * (float(a == b) - probabilities[:, b]) / n
            block = extended.T @ (weight[:, None] * extended)
            block = (block + block.T) / 2  # exactly symmetric, whatever the order of the sums
            matrix[place[a][:, None], place[b]] = block
            matrix[place[b][:, None], place[a]] = block
    matrix.diagonal().add_(l2)
    return matrix


def _parts(batch: tuple[Tensor, ...], chunk: int | None) -> list[tuple[Tensor, ...]]:
    """The batch in pieces of ``chunk`` examples, the last one shorter where it must be."""
    if chunk is None:
        return [batch]
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1, got {chunk}")
    return list(zip(*(value.split(chunk) for value in batch), strict=True))


def _block_rows(total: Callable[[Params], Tensor], params: Params, free: list[str], rows: int) -> Tensor:
    """Second derivatives of ``total`` between the first tensor of ``free`` and all of ``free``: ``(size, p_free)``."""
    first = free[0]

    def block_gradient(theta: Params) -> Tensor:
        return grad(lambda value: total({**params, **theta, first: value}))(theta[first])

    _, pull = vjp(block_gradient, {name: params[name] for name in free})
    size, like = params[first].numel(), params[first]
    basis = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *like.shape)
    return flatten(vmap(pull, chunk_size=rows)(basis)[0], leading=1)
