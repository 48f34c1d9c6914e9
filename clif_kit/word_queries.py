r"""Queries on word vectors: scalars of the two matrices whose change is to be explained.

Each function returns a query: a callable that maps ``{"input": (V, d), "context": (V, d)}`` to a scalar. Queries are
losses (lower is better), so that a positive score is a sentence that helps; similarity and displacement, where more
is meant to be better, enter negated.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clif_kit.skipgram import Params
from clif_kit.weat import Resolved, effect

Query = Callable[[Params], Tensor]


def weat_query(test: Resolved, *, absolute: bool = True, ddof: int = 0) -> Query:
    r"""The size of a WEAT effect, :math:`f = |\mathrm{effect}|` (the paper's words); signed as in the public code.

    Sign of a score: positive = mitigating (removing the sentence raises the bias), negative = amplifying.

    Args:
        test: Rows of the words.
        absolute: False takes the signed effect: a score is then the change towards X with A.
        ddof: Of the standard deviation, see :func:`clif_kit.weat.effect`.
    """

    def query(params: Params) -> Tensor:
        value = effect(params["input"], test, ddof=ddof)
        return value.abs() if absolute else value

    return query


def displacement_query(row: int, initial: Tensor) -> Query:
    r"""How far a word moved in training, negated: :math:`f = -\tfrac{1}{d} |u_w - u_w^0|^2` (CLIF section 4.2).

    Sign of a score: positive = reinforcing (it pulled the word to its place), negative = it pulls the word back.

    Args:
        row: Of the word.
        initial: Its vector before training, shape ``(d,)``.

    >>> displacement_query(0, torch.zeros(2))({"input": torch.tensor([[3.0, 4.0]])})
    tensor(-12.5000)
    """
    return lambda params: -(params["input"][row] - initial.to(params["input"])).square().mean()


def cosine_query(row: int, other: int) -> Query:
    r"""The similarity of two words, negated: :math:`f = -\cos(u_w, u_{w'})`.

    Sign of a score: positive = the sentence draws the two together.

    >>> cosine_query(0, 1)({"input": torch.tensor([[1.0, 0.0], [3.0, 4.0]])})
    tensor(-0.6000)
    """
    return lambda params: -torch.cosine_similarity(params["input"][row], params["input"][other], dim=0)


def cluster_query(row: int, cluster: Sequence[int]) -> Query:
    r"""The squared distance of a word to the centre of others, :math:`f = |u_w - \tfrac{1}{m} \sum_j u_j|^2`.

    Sign of a score: positive = the sentence keeps the word in the cluster.

    >>> cluster_query(0, [1, 2])({"input": torch.tensor([[1.0], [3.0], [5.0]])})
    tensor(9.)
    """
    rows = torch.as_tensor(list(cluster))
    return lambda params: (params["input"][row] - params["input"][rows].mean(0)).square().sum()


def query_gradient(query: Query, params: Params) -> Params:
    """The gradient of any query, ``{"input": (V, d), "context": (V, d)}``; a matrix it does not see is left out.

    Raises:
        ValueError: If the query does not return one finite number, or does not depend on the vectors.

    >>> params = {"input": torch.tensor([[1.0, 2.0]]), "context": torch.zeros(1, 2)}
    >>> query_gradient(lambda p: p["input"].square().sum(), params)
    {'input': tensor([[2., 4.]])}
    """
    leaves = {name: matrix.detach().clone().requires_grad_() for name, matrix in params.items()}
    value = torch.as_tensor(query(leaves))
    if value.numel() != 1 or not torch.isfinite(value):
        raise ValueError(f"a query returns one finite number, this one returned {value.detach().tolist()}")
    if not value.requires_grad:
        raise ValueError("the query does not depend on the vectors that it was given")
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
