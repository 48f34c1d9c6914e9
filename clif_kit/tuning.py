r"""Influence between single examples, and the confound loss J of influence tuning with its gradient.

.. math:: I(z, z') = \frac{v \cdot v'}{\|v\|\, \|v'\|}, \qquad
          J = \Bigl(\frac1{|A|}\sum_{a \in A} I(z_a, z_{prb}) - \frac1{|B|}\sum_{b \in B} I(z_b, z_{prb})\Bigr)^2

v is the vector of an example (:mod:`clif_kit.example_vectors`): its loss gradient, or a hidden state. A holds examples
with the probe's label and its confound, B examples with its label and another confound. Han & Tsvetkov, "Influence
tuning" (2021), sections 2 and 4.

**Sign.** I is :math:`-d\ell(z_{prb})/d\epsilon_z` to first order. Positive: up-weighting z lowers the probe's loss, so
removing z is predicted to raise it, which is this library's sign: positive = helpful = a proponent. The cosine has no
unit; the product is in squared units of the loss per squared unit of the parameter.

A *tuple* is a batch with the probe first, then the ``k`` examples of A, then those of B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clif_kit.example_vectors import Batch, Vectors, pieces
from clif_kit.gradients import Losses, Params


@dataclass(frozen=True)
class ConfoundGradient:
    """J of one tuple, and its gradient.

    Attributes:
        loss: J.
        gap: mean over A minus mean over B of the influences; J is its square.
        gradient: Of J, in every parameter, with its name.
    """

    loss: float
    gap: float
    gradient: Params = field(repr=False)


def influence(
    vectors: Vectors, params: Params, train: Batch, probes: Batch, *, cosine: bool = True, chunk: int = 16
) -> Tensor:
    """The influence of each training example on each probe.

    Args:
        vectors: See :mod:`clif_kit.text_vectors`.
        params: Where to look.
        train: n examples.
        probes: q examples; their vectors are held densely, q times the number of parameters.
        cosine: False for the gradient product, which a few examples with long gradients dominate.
        chunk: Examples whose vectors are held at a time; changes nothing but speed and memory.

    Returns:
        Shape ``(q, n)``, positive = helpful. The cosine is between -1 and 1.

    Raises:
        FloatingPointError: If an influence is not a number: an example whose vector is zero has no cosine.

    >>> from clif_kit.example_vectors import loss_gradients
    >>> vectors = loss_gradients(lambda params, x: x @ params["w"])
    >>> x, w = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.zeros(2)
    >>> influence(vectors, {"w": w}, (x,), (x[:1],)), influence(vectors, {"w": w}, (x,), (x[:1],), cosine=False)
    (tensor([[1.0000, 0.7071]]), tensor([[9., 3.]]))
    """
    with torch.no_grad():
        dense, q, at = {}, len(probes[0]), 0
        for part in pieces(vectors, params, probes, chunk):
            dense = dense or part.zeros(q, params)
            scale = part.scales(cosine)
            part.add_to(dense, torch.eye(q, dtype=scale.dtype, device=scale.device)[:, at : at + len(part)] * scale)
            at += len(part)
        columns = [part.dot(dense).T * part.scales(cosine) for part in pieces(vectors, params, train, chunk)]
        found = torch.cat(columns, 1)
    if not torch.isfinite(found).all():
        row, column = torch.nonzero(~torch.isfinite(found))[0].tolist()
        raise FloatingPointError(f"the influence of example {column} on probe {row} is not a number: {ZERO}")
    return found


def influence_gap(vectors: Vectors, params: Params, batch: Batch, k: int, *, cosine: bool = True) -> Tensor:
    """Mean influence of A minus that of B on the probe, a scalar that can be differentiated; J is its square.

    Args:
        vectors: See :mod:`clif_kit.text_vectors`.
        params: Where to look.
        batch: The tuple: probe, k examples of A, then B.
        k: Size of A.
        cosine: False for the gradient product.

    Raises:
        ValueError: If A or B is empty.

    >>> from clif_kit.example_vectors import ExampleVectors
    >>> plain = lambda params, x: ExampleVectors({"x": x * params["w"]})
    >>> tuple_ = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    >>> influence_gap(plain, {"w": torch.ones(2)}, (tuple_,), k=1)
    tensor(1.)
    """
    _check_tuple(batch, k)
    gram = vectors(params, *batch).gram()  # (n, n)
    return _gap(gram[0, 1:], gram.diagonal(), k, cosine)


def confound_gradient(
    vectors: Vectors, params: Params, batch: Batch, k: int, *, cosine: bool = True
) -> ConfoundGradient:
    """J and its gradient by one double backward: the graph of the whole tuple at once. The fastest way.

    Args:
        vectors: See :mod:`clif_kit.text_vectors`.
        params: Where to differentiate; the gradient is in all of them, whatever subset the influence is taken in.
        batch: The tuple: probe, k examples of A, then B.
        k: Size of A.
        cosine: False for the gradient product.

    Raises:
        FloatingPointError: If J or its gradient is not finite.
        ValueError: If A or B is empty.

    >>> from clif_kit.example_vectors import loss_gradients
    >>> vectors = loss_gradients(lambda params, x: (x * params["w"] ** 2).sum(1) / 2)
    >>> tuple_ = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    >>> confound_gradient(vectors, {"w": torch.tensor([1.0, 2.0])}, (tuple_,), k=1, cosine=False)
    ConfoundGradient(loss=4.0, gap=2.0)
    """
    leaves = _leaves(params)
    with torch.enable_grad():
        gap = influence_gap(vectors, leaves, batch, k, cosine=cosine)
        found = torch.autograd.grad(gap.square(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return _checked(gap, dict(zip(leaves, found, strict=True)))


def confound_gradient_grouped(
    vectors: Vectors, params: Params, batch: Batch, k: int, *, cosine: bool = True
) -> ConfoundGradient:
    r"""The same by one Hessian-vector product an example, holding one graph at a time. Slower, with little memory.

    .. math:: \nabla J = \sum_{i \ne prb} H_i \Bigl(\frac{\partial J}{\partial d_i} v_{prb}
              + 2 \frac{\partial J}{\partial n_i} v_i\Bigr) + H_{prb} \Bigl(\sum_i
              \frac{\partial J}{\partial d_i} v_i + 2 \frac{\partial J}{\partial n_{prb}} v_{prb}\Bigr),
              \qquad d_i = v_i \cdot v_{prb}, \quad n_i = \|v_i\|^2

    What the paper's p, q, r and s have in front of the same Hessian is summed before it is multiplied. Arguments and
    errors are those of :func:`confound_gradient`.
    """
    k, leaves = _check_tuple(batch, k), _leaves(params)
    probe, *others = [tuple(value[i : i + 1] for value in batch) for i in range(len(batch[0]))]
    with torch.no_grad():
        first = vectors(params, *probe)
        slope, pull, one = first.zeros(1, params), first.zeros(1, params), first.squares().new_ones(1, 1)
        first.add_to(slope, one)
        seen = [(part.dot(slope)[0], part.squares()) for part in (vectors(params, *other) for other in others)]
    with torch.enable_grad():
        dots, squares = torch.cat([dot for dot, _ in seen]), torch.cat([first.squares(), *(each for _, each in seen)])
        gap = _gap(dots.requires_grad_(), squares.requires_grad_(), k, cosine)
        by_dot, by_square = torch.autograd.grad(
            gap.square(), (dots, squares), allow_unused=True, materialize_grads=True
        )
        total = [torch.zeros_like(value) for value in params.values()]
        for i, example in enumerate([*others, probe]):  # the probe last: its direction is the sum over the others
            part = vectors(leaves, *example)
            if i < len(others):
                product = by_dot[i] * part.dot(slope).sum() + by_square[i + 1] * part.squares().sum()
                part.detach().add_to(pull, by_dot[i] * one)
            else:
                product = part.dot(pull).sum() + by_square[0] * part.squares().sum()
            found = torch.autograd.grad(product, list(leaves.values()), allow_unused=True, materialize_grads=True)
            total = [old.add_(new) for old, new in zip(total, found, strict=True)]
    return _checked(gap, dict(zip(leaves, total, strict=True)))


def four_terms(
    losses: Losses, params: Params, train: Batch, probe: Batch, names: Sequence[str] | None = None
) -> dict[str, Params]:
    r"""The paper's p, q, r and s: :math:`\nabla I(z_{trn}, z_{prb}) = p + q - r - s`. For reference, four products.

    .. math:: p = \frac{H g'}{\|g\| \|g'\|}, \quad q = \frac{H' g}{\|g\| \|g'\|}, \quad
              r = \frac{g \cdot g'}{\|g\|^3 \|g'\|} H g, \quad s = \frac{g \cdot g'}{\|g\| \|g'\|^3} H' g'

    with g and H of the training example, g' and H' of the probe, the gradients in ``names``. Every product has a
    forward pass of its own, as in the authors' code (section 4 and appendix B).

    Args:
        losses: ``losses(params, *batch) -> (n,)``, without randomness.
        params: Where to differentiate.
        train: One example.
        probe: One example.
        names: The subset that influence is taken in. None: all parameters.

    Returns:
        Under "p", "q", "r" and "s" a dictionary over all parameters.
    """
    inside = list(params) if names is None else list(names)
    leaves = _leaves(params)

    def slope(one: Batch, graph: bool) -> tuple[Tensor, ...]:
        loss = losses(leaves, *one).sum()
        return torch.autograd.grad(loss, [leaves[name] for name in inside], create_graph=graph)

    def product(one: Batch, direction: tuple[Tensor, ...], scale: Tensor) -> Params:
        found = torch.autograd.grad(
            slope(one, True), list(leaves.values()), direction, allow_unused=True, materialize_grads=True
        )
        return {name: scale * value for name, value in zip(leaves, found, strict=True)}

    with torch.enable_grad():
        g, other = slope(train, False), slope(probe, False)
        a, b = (sum(value.square().sum() for value in gradient).sqrt() for gradient in (g, other))
        dot = sum((x * y).sum() for x, y in zip(g, other, strict=True))
        return {
            "p": product(train, other, 1 / (a * b)),
            "q": product(probe, g, 1 / (a * b)),
            "r": product(train, g, dot / (a**3 * b)),
            "s": product(probe, other, dot / (a * b**3)),
        }


ZERO = "its vector is zero (the model is certain of it), or the model has diverged; lower the learning rates"


def _gap(dots: Tensor, squares: Tensor, k: int, cosine: bool) -> Tensor:
    """From the products with the probe, ``(n - 1,)``, and the squared norms, the probe's first, ``(n,)``."""
    norms = squares.sqrt()  # before they are multiplied: squares of small ones would underflow
    scores = dots / (norms[0] * norms[1:]) if cosine else dots
    return scores[:k].mean() - scores[k:].mean()


def _leaves(params: Params) -> Params:
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def _check_tuple(batch: Batch, k: int) -> int:
    if not 1 <= k <= len(batch[0]) - 2:
        raise ValueError(
            f"a tuple is a probe, k of group A, then B: with k={k} and {len(batch[0])} examples one is empty"
        )
    return k


def _checked(gap: Tensor, gradient: Params) -> ConfoundGradient:
    loss = gap.detach().square()
    if not torch.isfinite(loss) or not all(torch.isfinite(value).all() for value in gradient.values()):
        raise FloatingPointError(f"J is {loss.item()}, or its gradient is not finite: for some example {ZERO}")
    return ConfoundGradient(loss.item(), gap.item(), gradient)
