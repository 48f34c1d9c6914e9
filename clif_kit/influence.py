r"""Influence functions: what the query loss would do if a training example, or a group, were removed or changed.

One sign everywhere: a score is the predicted change of the query loss when the example is REMOVED, so positive =
helpful. A score knows neither loss, only their gradients: they may be two losses (cross-loss) or the same one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from clif_kit.gradients import Losses, Params, Query, flatten, query_gradient
from clif_kit.solvers import Solve


def cross_loss_influence(train_grads: Tensor, query_grad: Tensor, solve: Solve) -> Tensor:
    r"""First-order change in the query loss if each training example were removed.

    .. math:: \Delta_i = \tfrac{1}{n}\, \nabla f(\hat\theta)^\top (H + \lambda I)^{-1} \nabla \ell(z_i; \hat\theta)

    where :math:`H` is the Hessian of the *mean* training loss :math:`\ell` and :math:`f` is any query loss. It is
    :math:`-1/n` times Eq. 2 of Koh & Liang (2017), with :math:`f \neq \ell` allowed as in Silva et al. (2022).

    Sign: positive = helpful (removing example i is predicted to raise ``f``).

    Args:
        train_grads: Per-example gradients of the training loss, shape ``(n, p)``.
        query_grad: Gradient of the query loss, shape ``(p,)``, or of several, ``(q, p)``.
        solve: Maps ``b`` to ``(H + λI)⁻¹ b``, same shape, row by row.

    Returns:
        Scores, shape ``(n,)`` or ``(q, n)``, in the units of ``f`` per removed example.

    Raises:
        ValueError: If the two gradients disagree on ``p``, or ``solve`` changes the shape.
        FloatingPointError: If ``solve`` returns a value that is not finite.

    >>> cross_loss_influence(torch.tensor([[2.0], [-2.0]]), torch.tensor([1.0]), lambda b: b / 4)
    tensor([ 0.2500, -0.2500])
    """
    _check_gradients(train_grads, query_grad)
    s = _checked(solve, query_grad)  # (p,) or (q, p): one solve serves all n examples, since H is symmetric
    return s @ train_grads.T / len(train_grads)


def gradient_dot(train_grads: Tensor, query_grad: Tensor) -> Tensor:
    r"""The cheap baseline: :math:`\tfrac1n \nabla f^\top \nabla \ell(z_i)`, the influence with :math:`H = I`.

    Sign: positive = helpful. Arguments, shapes and errors as for :func:`cross_loss_influence`. Its unit is that of
    ``f`` only up to the missing inverse, so compare ranks with it, not values.

    >>> gradient_dot(torch.tensor([[2.0], [-2.0]]), torch.tensor([1.0]))
    tensor([ 1., -1.])
    """
    _check_gradients(train_grads, query_grad)
    return query_grad @ train_grads.T / len(train_grads)


def self_influence(train_grads: Tensor, solve: Solve) -> Tensor:
    r"""The predicted rise of each example's own loss when it is removed: :math:`g_i^\top (H + \lambda I)^{-1} g_i / n`.

    Large where an example carries its own prediction, as a mislabelled one does (Koh & Liang 2017, section 5.4).

    Sign: positive = helpful to itself; never negative when :math:`H + \lambda I` is positive definite.

    Args:
        train_grads: Per-example gradients of the training loss, shape ``(n, p)``.
        solve: Maps ``(n, p)`` to ``(H + λI)⁻¹`` of each row.

    Returns:
        Scores, shape ``(n,)``, in the units of the training loss per removed example.

    Raises:
        ValueError: If ``solve`` changes the shape.
        FloatingPointError: If ``solve`` returns a value that is not finite.

    >>> self_influence(torch.tensor([[2.0], [-4.0]]), lambda b: b / 4)
    tensor([0.5000, 2.0000])
    """
    return (train_grads * _checked(solve, train_grads)).sum(dim=-1) / len(train_grads)


def group_influence(scores: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    r"""The predicted change of the query loss if a whole group were removed: the sum of its members' scores.

    First order, so it misses what the members do for each other; the error grows with the square of the group's share
    (Koh et al. 2019). Sign and unit as the scores': positive = helpful, units of the query loss per removed group.

    Args:
        scores: Shape ``(n,)`` or ``(q, n)``.
        groups: m sequences of indices of training examples, without repetitions inside a group.

    Returns:
        Shape ``(m,)`` or ``(q, m)``.

    Raises:
        ValueError: If a group names an example twice.
        IndexError: If an index does not lie in ``0 ... n - 1``.

    >>> group_influence(torch.tensor([1.0, 2.0, 4.0]), [[0, 2], [1], []])
    tensor([5., 2., 0.])
    """
    sums = []
    for group in groups:
        index = torch.as_tensor(group, dtype=torch.long, device=scores.device)
        if len(index.unique()) < len(index):
            raise ValueError(f"a group names an example twice: {index.tolist()}")
        if (index < 0).any():  # torch itself refuses what lies past the end
            raise IndexError(f"a group names a negative index: {index.tolist()}")
        sums.append(scores[..., index].sum(dim=-1))
    return torch.stack(sums, dim=-1)


def attack_direction(
    losses: Losses, params: Params, batch: tuple[Tensor, ...], solved: Tensor, indices: Sequence[int]
) -> Tensor:
    r"""How the query loss *after retraining* changes with the inputs of chosen training examples.

    .. math:: \frac{d f(\hat\theta(x))}{d x_i} =
              -\tfrac1n\, s^\top \frac{\partial^2 \ell(z_i; \hat\theta)}{\partial\theta\, \partial x_i}, \qquad
              s = (H + \lambda I)^{-1} \nabla f(\hat\theta)

    by the implicit function theorem, exact at an optimum of the mean training loss and
    :math:`\lambda = 0`. Koh & Liang (2017), Eq. 5, divided by n.

    Sign: this is a derivative, not a removal score: a step along it raises the query loss.

    Args:
        losses: The training loss.
        params: Its minimiser on ``batch``.
        batch: ``(inputs, ...)``, examples first; the inputs are a floating-point tensor ``(n, ...)``.
        solved: s, shape ``(p,)``.
        indices: The m training examples to perturb.

    Returns:
        Shape ``(m, ...)``, in units of the query loss per unit of the input.

    >>> half_square = lambda params, x: (params["w"] - x).square() / 2  # the optimum is the mean of x
    >>> attack_direction(half_square, {"w": torch.tensor(2.0)}, (torch.tensor([1.0, 3.0]),), torch.tensor([1.0]), [0])
    tensor([0.5000])
    """
    index = torch.as_tensor(indices, dtype=torch.long, device=batch[0].device)
    rest = [value[index] for value in batch[1:]]

    def slope(inputs: Tensor) -> Tensor:  # s · ∇θ of the chosen examples' loss
        return flatten(grad(lambda theta: losses(theta, inputs, *rest).sum())(params)) @ solved

    return -grad(slope)(batch[0][index]) / len(batch[0])


@dataclass(frozen=True)
class Attacked:
    """What :func:`training_attack` ended with.

    Attributes:
        inputs: The training inputs, shape ``(n, ...)``, changed at the attacked indices only.
        params: The minimiser on these inputs.
        query: The query loss after each refit, shape ``(iterations + 1,)``; entry 0 is before the attack.
    """

    inputs: Tensor
    params: Params
    query: Tensor


def training_attack(
    losses: Losses,
    refit: Callable[[tuple[Tensor, ...]], Params],
    query: Query,
    batch: tuple[Tensor, ...],
    indices: Sequence[int],
    solver: Callable[[Params, tuple[Tensor, ...]], Solve],
    *,
    step: float,
    box: float,
    clip: tuple[float, float] = (-torch.inf, torch.inf),
    iterations: int = 100,
) -> Attacked:
    r"""Change the inputs of some training examples a little, so that the query loss rises once the model is retrained.

    Iterates :math:`x \leftarrow \Pi\bigl(x + \alpha\, \mathrm{sign}\, d f(\hat\theta(x)) / d x\bigr)`, refitting after
    every step so that each derivative (:func:`attack_direction`) is taken at an optimum. :math:`\Pi` projects onto the
    box around the original inputs and onto the valid range. Koh & Liang (2017), section 5.2.

    Args:
        losses: The training loss.
        refit: ``batch -> params``, a minimiser of the mean of ``losses`` on the batch.
        query: A scalar query; the attack raises it.
        batch: ``(inputs, ...)``, examples first. It is not modified.
        indices: The training examples that may be changed.
        solver: ``(params, batch) -> solve``, as in ``lambda params, batch: exact(hessian(losses, params, batch))``.
        step: :math:`\alpha`, in units of the input.
        box: How far each input may move from its original value, in units of the input.
        clip: The smallest and largest valid input.
        iterations: Steps, each with one refit.

    Raises:
        ValueError: If ``step`` or ``box`` is not positive, or the query is not a scalar.
        FloatingPointError: If a solve returns a value that is not finite.

    >>> half_square = lambda params, x: (params["w"] - x).square() / 2
    >>> attacked = training_attack(half_square, lambda batch: {"w": batch[0].mean()}, lambda params: params["w"],
    ...                            (torch.tensor([1.0, 3.0]),), [0], lambda params, batch: lambda b: b,
    ...                            step=0.5, box=1.0, iterations=3)
    >>> attacked.inputs, attacked.query
    (tensor([2., 3.]), tensor([2.0000, 2.2500, 2.5000, 2.5000]))
    """
    if step <= 0 or box <= 0:
        raise ValueError(f"step and box must be > 0, got {step} and {box}")
    index = torch.as_tensor(indices, dtype=torch.long, device=batch[0].device)
    original = batch[0][index]
    lowest, highest = (original - box).clamp(*clip), (original + box).clamp(*clip)
    params = refit(batch)
    history = [query(params)]
    if history[0].ndim != 0:
        raise ValueError(f"the attack needs a scalar query, this one returned the shape {tuple(history[0].shape)}")
    for _ in range(iterations):
        solved = _checked(solver(params, batch), query_gradient(query, params))
        direction = attack_direction(losses, params, batch, solved, indices).sign()
        inputs = batch[0].clone()
        inputs[index] = torch.clamp(inputs[index] + step * direction, lowest, highest)
        batch = (inputs, *batch[1:])
        params = refit(batch)
        history.append(query(params))
    return Attacked(batch[0], params, torch.stack(history))


def _check_gradients(train_grads: Tensor, query_grad: Tensor) -> None:
    if train_grads.ndim != 2 or query_grad.ndim not in (1, 2) or query_grad.shape[-1] != train_grads.shape[1]:
        shapes = f"{tuple(train_grads.shape)} and {tuple(query_grad.shape)}"
        raise ValueError(f"train_grads must be (n, p) and query_grad (p,) or (q, p), got {shapes}")


def _checked(solve: Solve, b: Tensor) -> Tensor:
    s = solve(b)
    if s.shape != b.shape:
        raise ValueError(f"solve() turned the shape {tuple(b.shape)} into {tuple(s.shape)}")
    if not torch.isfinite(s).all():
        raise FloatingPointError("solve() returned values that are not finite; raise the damping")
    return s
