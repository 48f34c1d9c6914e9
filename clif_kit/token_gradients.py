r"""The gradient of each example's loss at each of its tokens: what TracIn on word embeddings is made of.

The gradient in the table of word vectors has a row for every token of the text and no other: the sum, over the places
where the token stands, of the gradient at the *output* of the look-up. Those outputs are separate for each example, so
one backward pass of the summed loss yields the gradients of a whole batch, and stops before any weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clif_kit.text_models import LogitLoss, Params, TextModel, check, cross_entropy, each_loss
from clif_kit.text_tokens import Tokens, alike


@dataclass(frozen=True)
class TokenGradients:
    r"""Gradients at m tokens of n examples, one after the other, without padding.

    Attributes:
        tokens: Row of the table of word vectors, ``(m,)``.
        places: Place in the text, ``(m,)``; -k, ..., -1 for the k label words of a tied model.
        offsets: Example i has the tokens ``offsets[i]`` to ``offsets[i + 1]``, ``(n + 1,)``.
        values: :math:`\partial \ell_i / \partial x_{\text{place}}`, ``(m, d)``, in units of the loss per unit of the
            vector.
    """

    tokens: np.ndarray
    places: np.ndarray
    offsets: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owners(self) -> np.ndarray:
        """The example of each token, ``(m,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def top(self, k: int) -> "TokenGradients":
        """Of each example the k places with the largest gradient alone (the first of equals): TR-WE-topk's.

        >>> values = np.array([[1.0], [-4.0], [2.0]])
        >>> largest = TokenGradients(np.array([7, 5, 7]), np.arange(3), np.array([0, 3]), values).top(2)
        >>> largest.tokens, largest.places
        (array([5, 7]), array([1, 2]))
        """
        if k < 1:
            raise ValueError(f"top must be at least 1, got {k}")
        owners, size = self.owners, np.square(self.values.astype(np.float64)).sum(1)
        order = np.lexsort((-size, owners))  # by example, the largest first; stable
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - self.offsets[owners]
        return self._only(rank < k)

    def norms(self) -> np.ndarray:
        r"""Norm of each example's gradient in the whole table, ``(n,)``: places of one token are summed first."""
        summed = row_map(self)
        squares = np.square(summed.values.astype(np.float64)).sum(1)
        return np.sqrt(np.bincount(summed.owners, weights=squares, minlength=len(self)))

    def _only(self, keep: np.ndarray) -> "TokenGradients":
        counts = np.bincount(self.owners[keep], minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return TokenGradients(self.tokens[keep], self.places[keep], offsets, self.values[keep])


@dataclass(frozen=True)
class RowMap:
    """Gradients in the table, sorted by row: token ``tokens[k]`` has the entries ``starts[k]`` to ``starts[k + 1]``.

    Attributes:
        tokens: Rows of the table that occur, ascending, ``(u,)``.
        starts: ``(u + 1,)``.
        owners: The example of each entry; within a token each example comes once, ascending. ``(e,)``
        values: The gradient of that example in that row, ``(e, d)``.
    """

    tokens: np.ndarray
    starts: np.ndarray
    owners: np.ndarray
    values: np.ndarray


def row_map(gradients: TokenGradients) -> RowMap:
    """Sum the places of one token within an example, and sort by token."""
    owners = gradients.owners
    order = np.lexsort((owners, gradients.tokens))
    tokens, owners = gradients.tokens[order], owners[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(tokens) != 0) | (np.diff(owners) != 0)
    begin = np.flatnonzero(first)
    values = gradients.values[order[begin]].astype(np.result_type(gradients.values, np.float32))
    again = np.flatnonzero(~first)  # few: only what repeats is added
    np.add.at(values, np.cumsum(first)[again] - 1, gradients.values[order[again]])
    tokens, starts = np.unique(tokens[begin], return_index=True)
    return RowMap(tokens, np.append(starts, len(begin)), owners[begin], values)


def concatenate(pieces: Sequence[TokenGradients]) -> TokenGradients:
    """The examples of all pieces, one piece after the other."""
    counts = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    tokens, places, values = (
        np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("tokens", "places", "values")
    )
    return TokenGradients(tokens, places, np.concatenate([[0], np.cumsum(counts)]), values)


def token_gradients(
    model: TextModel,
    params: Params,
    tokens: Tokens,
    y: Tensor,
    loss: LogitLoss = cross_entropy,
    *,
    chunk: int = 32,
) -> TokenGradients:
    """The gradient of each example's loss at each of its tokens: one forward and one backward pass.

    Args:
        model: The classifier.
        params: Where to differentiate.
        tokens: n texts.
        y: n labels, or whatever else the loss takes.
        loss: ``loss(logits, y) -> (n,)``.
        chunk: Texts at a time, those of like length together; changes nothing but speed and memory.

    Raises:
        ValueError: If model, parameters, texts, labels and loss do not fit together, see
            :func:`clif_kit.text_models.check`.
        FloatingPointError: If a gradient is not finite.
    """
    check(model, params, tokens.ids, tokens.parts, y)
    params = {name: value.detach() for name, value in params.items()}
    rows, real = model.rows(tokens.ids, tokens.parts)  # (n, L + tied)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), real.sum(1).cumsum(0)])
    table = params[model.embedding]
    values = torch.empty(int(offsets[-1]), table.shape[1], dtype=table.dtype)
    for some in alike(tokens.parts, chunk):
        part = tokens.take(some)
        found, counts = _gradient(model, params, part, y[some], loss)
        before = offsets[some] - (counts.cumsum(0) - counts)
        values[torch.repeat_interleave(before, counts) + torch.arange(len(found))] = found
    if not torch.isfinite(values).all():
        raise FloatingPointError("a token gradient is not finite: look for a diverged checkpoint or an infinite loss")
    spots = torch.arange(rows.shape[1]).expand_as(rows).clone()
    spots[:, tokens.ids.shape[1] :] -= rows.shape[1]
    return TokenGradients(rows[real].numpy(), spots[real].numpy(), offsets.numpy(), values.numpy())


def _gradient(model, params, part: Tokens, y: Tensor, loss: LogitLoss) -> tuple[Tensor, Tensor]:
    """Gradients at the tokens of one padded batch, ``(m, d)``, and how many each text has."""
    device = params[model.embedding].device
    ids, parts = part.to(device).ids, part.to(device).parts
    embedded = model.embed(params, ids, parts).requires_grad_()
    logits = model.classify(params, embedded, model.features(params, embedded, parts))
    (found,) = torch.autograd.grad(each_loss(loss, logits, y.to(device)).sum(), embedded)
    real = model.rows(ids, parts)[1]
    return found[real].cpu(), real.sum(1).cpu()
