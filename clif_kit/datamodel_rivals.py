r"""Scores that datamodels are measured against: gradients, influence functions, nearest neighbours, chance.

All are computed on nets trained on *all* examples, with the query minus the margin of a test point (a smooth margin,
with the log-sum-exp of the other logits in place of the largest):

.. math:: \text{gradients}: \tfrac1n \nabla f^\top \nabla \ell(z_i), \qquad
          \text{influence}: \tfrac1n \nabla f^\top (G + \delta I)^{-1} \nabla \ell(z_i)

with the Gauss-Newton matrix G (for the logistic regression the Hessian). Both are averaged over nets. Sign: positive =
helpful, predicted change of minus the margin when the example is removed. Shape ``(t, n)``, like datamodel weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from clif_kit.curvature import gauss_newton
from clif_kit.gradients import per_example_gradients, query_gradient
from clif_kit.influence import cross_loss_influence, gradient_dot
from clif_kit.models import Net, cross_entropy, logistic, mlp, negative_margin
from clif_kit.solvers import exact

Params = dict[str, Tensor]


def one_net(kind: str, params: Params, j: int) -> tuple[Net, Params]:
    """Net j of a stack of :func:`clif_kit.subset_training.train_subsets`, as a function that can be differentiated.

    Returns:
        The net and its parameters in float64.

    Raises:
        ValueError: If the kind is not "logistic" or "mlp".
    """
    found = {name: value[j].double() for name, value in params.items()}
    if kind == "logistic":
        classes, d = found["weight"].shape
        return logistic(d, classes), found
    if kind != "mlp":
        raise ValueError(f"gradients are there for 'logistic' and 'mlp', not for {kind!r}")
    (hidden, d), classes = found["inner.weight"].shape, len(found["weight"])
    names = {"inner.weight": "0.weight", "inner.bias": "0.bias", "weight": "2.weight", "bias": "2.bias"}
    return mlp([d, hidden, classes]), {new: found[old] for old, new in names.items()}


def average(score: Callable[[Net, Params], Tensor], kind: str, stacks: list[Params]) -> Tensor:
    """The mean of a score over all nets of some stacks."""
    nets = [one_net(kind, stack, j) for stack in stacks for j in range(len(stack["bias"]))]
    return torch.stack([score(net, params) for net, params in nets]).mean(0)


def gradient_scores(
    kind: str, stacks: list[Params], train: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]
) -> Tensor:
    """Inner products of gradients, ``(t, n)``, averaged over nets: TracIn, whose checkpoints are the nets handed in.

    Args:
        kind: "logistic" or "mlp".
        stacks: Parameters, from :func:`clif_kit.subset_training.train_subsets`; all count alike.
        train: Training inputs ``(n, d)`` and classes ``(n,)``.
        queries: Test inputs ``(t, d)`` and classes ``(t,)``.
    """

    def score(net: Net, params: Params) -> Tensor:
        return gradient_dot(*_gradients(net, params, train, queries))

    return average(score, kind, stacks)


def influence_scores(
    kind: str,
    stacks: list[Params],
    train: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    *,
    dampings: list[float],
    l2: float,
) -> dict[float, Tensor]:
    """Influence functions with the Gauss-Newton matrix, ``(t, n)`` for each damping, averaged over nets.

    Args:
        kind: "logistic" or "mlp".
        stacks: As for :func:`gradient_scores`.
        train: Training inputs and classes.
        queries: Test inputs and classes.
        dampings: Added to the eigenvalues, beside ``l2``.
        l2: The weight decay of the training.
    """

    def score(net: Net, params: Params) -> Tensor:
        x, y = train[0].double(), train[1]
        matrix = gauss_newton(net, _classification, params, (x, y), l2, chunk=64)
        grads, query = _gradients(net, params, train, queries)
        return torch.stack([cross_loss_influence(grads, query, exact(matrix, damping)) for damping in dampings])

    return dict(zip(dampings, average(score, kind, stacks), strict=True))


def representation(kind: str, stacks: list[Params], x: Tensor) -> Tensor:
    """What enters the last layer of each net, ``(nets, n, hidden)``; the logits for a net that has no hidden layer.

    >>> stack = {"weight": torch.ones(1, 2, 1), "bias": torch.zeros(1, 2)}
    >>> representation("logistic", [stack], torch.tensor([[3.0]]))
    tensor([[[3., 3.]]])
    """
    if kind == "logistic":
        parts = [x @ stack["weight"].mT + stack["bias"][:, None] for stack in stacks]
    else:
        parts = [torch.tanh(x @ stack["inner.weight"].mT + stack["inner.bias"][:, None]) for stack in stacks]
    return torch.cat(parts)


def neighbour_scores(x: Tensor, x_test: Tensor) -> Tensor:
    """Minus the Euclidean distance, ``(t, n)``; of ``(nets, n, h)`` its mean over nets, each scaled to mean one.

    >>> neighbour_scores(torch.tensor([[0.0], [3.0]]), torch.tensor([[4.0]]))
    tensor([[-4., -1.]])
    """
    distance = torch.cdist(x_test, x)
    if x.ndim == 2:
        return -distance
    return -(distance / distance.mean((1, 2), keepdim=True)).mean(0)


def within_class(scores: Tensor, y: Tensor, y_test: Tensor) -> Tensor:
    """The scores with all training examples of other classes put last, ``(t, n)``.

    >>> within_class(torch.tensor([[5.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([1]))
    tensor([[-inf, 1.]])
    """
    return scores.masked_fill(y[None] != y_test[:, None], -torch.inf)


def choose_damping(scores: dict[float, Tensor], masks: Tensor, outputs: Tensor) -> float:
    """The damping whose scores, summed over subsets, follow the trained margins best; for points not reported on.

    Args:
        scores: By damping, ``(t, n)``.
        masks: Subsets, ``(m, n)``.
        outputs: Margins of the nets trained on them, ``(m, t)``.
    """

    def fit(score: Tensor) -> float:
        predicted = masks.to(score.dtype) @ score.T
        a, b = (value - value.mean(0) for value in (predicted, outputs.to(score.dtype)))
        return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-30)).mean())

    return max(scores, key=lambda damping: fit(scores[damping]))


def _classification(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


def _gradients(
    net: Net, params: Params, train: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of the training loss ``(n, p)`` and of minus the margins ``(t, p)``."""
    x, y = train[0].double(), train[1]
    x_test, y_test = queries[0].double(), queries[1]
    grads = per_example_gradients(cross_entropy(net), params, (x, y))
    query = query_gradient(lambda theta: negative_margin(net)(theta, x_test, y_test), params)
    return grads, query
