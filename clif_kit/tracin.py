r"""TracIn on word embeddings: which training texts moved the word vectors that a query reads, and by which words.

.. math:: \text{TR-WE}(x, x') = \sum_c \eta_c \sum_{w \in x \cap x'} G_w^c(x) \cdot G_w^c(x'),
          \qquad G_w(x) = \sum_{i : x^i = w} \frac{\partial \ell(x)}{\partial x^i}

over checkpoints c with learning rates :math:`\eta_c` (Yeh et al. 2022, equations 2 to 6). Sign: a score is the
predicted change of the query loss when the training text is REMOVED: positive = helpful = proponent. The paper prints a
minus sign and calls positive scores proponents; the prose is right, and the minus is not here.

Unit: the query loss, for one plain gradient step on that text alone at each checkpoint. With minibatches of B and s
visits of the text between two checkpoints multiply by s / B; ranks within one run stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from clif_kit.store import resumable
from clif_kit.text_tokens import Tokens
from clif_kit.token_gradients import RowMap, TokenGradients, row_map
from clif_kit.traced import Traced


@dataclass(frozen=True)
class WordScores:
    """TR-WE scores of n training texts for q queries, split by the kind of token that carries them; they add up.

    Attributes:
        words: Carried by all other tokens, ``(q, n)``, in the units of the query loss: the paper's TR-WE-NoC.
        frequent: Carried by the tokens that were named frequent, ``(q, n)``.
        special: Carried by the tokens that the tokenizer adds (start, end), ``(q, n)``: the paper's TR-common.
    """

    words: np.ndarray
    frequent: np.ndarray
    special: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The score, ``(q, n)``: TR-WE."""
        return self.words + self.frequent + self.special

    @property
    def special_share(self) -> np.ndarray:
        """What of each query's score mass the special tokens carry, 0 to 1, ``(q,)``; NaN if there is none.

        Mass is the sum of absolute values over training texts, special tokens and the others apart.

        >>> WordScores(np.array([[1.0, 0.0]]), np.zeros((1, 2)), np.array([[-2.0, 1.0]])).special_share
        array([0.75])
        """
        special, rest = (np.abs(part).sum(1) for part in (self.special, self.words + self.frequent))
        with np.errstate(invalid="ignore"):
            return special / (special + rest)


def tracin_we(
    train: Traced,
    query: Traced,
    *,
    top: int | None = None,
    frequent: Sequence[int] = (),
    store: str | Path | None = None,
    progress: bool = False,
) -> WordScores:
    """TR-WE scores of all training texts for all queries, in one pass over the training texts in bounded memory.

    Sign: positive = helpful (a proponent; removing the text is predicted to raise the query loss).

    Args:
        train: n training texts.
        query: q texts at the same checkpoints, see :meth:`clif_kit.traced.Traced.of`; their loss is the query loss.
        top: Count only so many places of each text, those with the largest gradients at that checkpoint, on both sides
            (TR-WE-topk; 10 in the paper). None: all.
        frequent: Rows of frequent words, kept apart in the result, see :func:`frequent_rows`.
        store: A folder for finished blocks of scores, so that a killed run goes on.
        progress: Draw a bar on the error stream.

    Raises:
        ValueError: If the two sides are traced through different checkpoints or tokenizers, or fewer places were kept
            than ``top`` wants.
    """
    return tracin_we_tops(train, query, [top], frequent=frequent, store=store, progress=progress)[0]


def tracin_we_tops(
    train: Traced,
    query: Traced,
    tops: Sequence[int | None],
    *,
    frequent: Sequence[int] = (),
    store: str | Path | None = None,
    progress: bool = False,
) -> list[WordScores]:
    """:func:`tracin_we` for several numbers of places at once: the gradients are taken once. None: all places."""
    check_sides(train, query)
    if any(kept is not None and (top or 0) > kept for top in tops for kept in (train.top, query.top)):
        raise ValueError(
            f"top = {max(top or 0 for top in tops)}, but only the first {train.top or query.top} were kept"
        )
    kinds = _kinds(train, frequent)
    settings = [train.model, train.loss, train.top or 0, train.dtype, [top or 0 for top in tops], kinds]
    out = np.zeros((len(tops), 3, len(query), len(train)))
    with tqdm(total=len(train) * len(train.checkpoints), disable=not progress, unit="text") as bar:
        for c, point in enumerate(train.checkpoints):
            read, whole = train.reader(c), query.gradients(c)
            wanted = [row_map(_cut(whole, top)) for top in tops]
            once = resumable(store, settings, point.params, [vars(one) for one in wanted])
            for which in train.ranges():

                def compute(which=which, read=read, wanted=wanted) -> dict[str, np.ndarray]:
                    block = read(which)
                    maps = [row_map(_cut(block, top)) for top in tops]
                    size = (len(block), len(query), kinds)
                    return {"scores": np.stack([pair_scores(a, b, *size) for a, b in zip(maps, wanted, strict=True)])}

                out[..., which] += point.lr * once(train.key(which) if store else "", compute)["scores"]
                bar.update(which.stop - which.start)
    return [WordScores(*parts) for parts in out]


def pair_scores(train: RowMap, query: RowMap, n: int, q: int, kinds: np.ndarray | None = None) -> np.ndarray:
    """Inner products of n and q gradients in the table, by matrix products over the rows that both sides have.

    Args:
        train: Gradients of n texts.
        query: Gradients of q texts.
        n: Number of training texts.
        q: Number of queries.
        kinds: 0, 1 or 2 for each row of the table, whose products are summed apart. None: all are of one kind.

    Returns:
        Shape ``(3, q, n)``, or ``(1, q, n)`` without kinds; float64.
    """
    out = np.zeros((1 if kinds is None else 3, n, q))
    shared, first, second = np.intersect1d(train.tokens, query.tokens, assume_unique=True, return_indices=True)
    where = np.zeros(len(shared), dtype=np.int64) if kinds is None else kinds[shared]
    for kind, t, u in zip(where.tolist(), first.tolist(), second.tolist(), strict=True):
        a, b = slice(train.starts[t], train.starts[t + 1]), slice(query.starts[u], query.starts[u + 1])
        out[kind][train.owners[a, None], query.owners[b]] += train.values[a] @ query.values[b].T
    return out.swapaxes(1, 2)


class WordParts(NamedTuple):
    """One score taken apart. Each of the three arrays sums to the score.

    ``names`` are the tokens that both texts have and ``parts`` what each carries; ``train`` and ``query`` say what each
    place of the two texts carries, padding left out (the label words of a tied model stand at the end).
    """

    names: list[str]
    parts: np.ndarray
    train: np.ndarray
    query: np.ndarray


def word_parts(train: Traced, query: Traced, i: int, q: int, *, top: int | None = None) -> WordParts:
    """Take the score of training text i for query q apart, by token and by place (section 4.3 of the paper).

    Signs as the score's: a word with a positive part makes the training text helpful to the query.

    Args:
        train: The training texts.
        query: The queries.
        i: The training text.
        q: The query.
        top: As for :func:`tracin_we`.
    """
    check_sides(train, query)
    one, other = train.take([i]), query.take([q])
    sides = [np.zeros(side.tokens.ids.shape[1] + len(train.model.label_words)) for side in (one, other)]
    by_token: dict[int, float] = {}
    for c, point in enumerate(train.checkpoints):
        found = [_cut(side.gradients(c), top) for side in (one, other)]
        a, b = (row_map(gradients) for gradients in found)
        shared, first, second = np.intersect1d(a.tokens, b.tokens, return_indices=True)
        carried = point.lr * (a.values[first] * b.values[second]).sum(1)
        for token, part in zip(shared.tolist(), carried.tolist(), strict=True):
            by_token[token] = by_token.get(token, 0.0) + part
        for side, mine, yours in zip(sides, found, (b, a), strict=True):
            np.add.at(side, mine.places % len(side), point.lr * _along(mine, yours))
    names = [train.tokens.names[token] for token in by_token]
    return WordParts(names, np.array(list(by_token.values())), *sides)


def frequent_rows(tokens: Tokens, share: float = 0.1) -> list[int]:
    """Rows, special tokens left out, that stand in at least this share of the texts: stop words, punctuation."""
    special = set(tokens.special)
    texts = [set(ids[real].tolist()) for ids, real in zip(tokens.ids, tokens.parts > 0, strict=True)]
    counts: dict[int, int] = {}
    for row in (row for text in texts for row in text - special):
        counts[row] = counts.get(row, 0) + 1
    return sorted(row for row, count in counts.items() if count >= share * len(tokens))


def normalised(scores: np.ndarray) -> np.ndarray:
    r"""Scores of texts among themselves as cosines, :math:`s_{ij} / \sqrt{s_{ii} s_{jj}}`, to cluster by.

    >>> normalised(np.array([[4.0, -1.0], [-1.0, 1.0]]))
    array([[ 1. , -0.5],
           [-0.5,  1. ]])
    """
    size = np.sqrt(np.diag(scores))
    return scores / np.where(size > 0, size, 1) / np.where(size > 0, size, 1)[:, None]


def check_sides(train: Traced, query: Traced) -> None:
    """Refuse two sides that do not belong together.

    Raises:
        ValueError: If their checkpoints, learning rates or tokenizers differ.
    """
    same = len(train.checkpoints) == len(query.checkpoints) and all(
        a.lr == b.lr and all(b.params[name] is value for name, value in a.params.items())
        for a, b in zip(train.checkpoints, query.checkpoints, strict=True)
    )
    if not same:
        raise ValueError("training texts and queries have different checkpoints: make the queries with train.of(...)")
    if (train.tokens.names, train.tokens.special) != (query.tokens.names, query.tokens.special):
        raise ValueError("training texts and queries have different tokenizers: encode (and compact) them together")


def _cut(gradients: TokenGradients, top: int | None) -> TokenGradients:
    return gradients if top is None else gradients.top(top)


def _kinds(train: Traced, frequent: Sequence[int]) -> np.ndarray:
    """0, 1 (frequent) or 2 (special) for each row of the table."""
    kinds = np.zeros(len(train.checkpoints[0].params[train.model.embedding]), dtype=np.int64)
    kinds[list(frequent)] = 1
    kinds[list(train.tokens.special)] = 2
    return kinds


def _along(gradients: TokenGradients, row: RowMap) -> np.ndarray:
    """Inner product of the gradient at each place with that of the one text of ``row`` for the same token, ``(m,)``."""
    found = np.searchsorted(row.tokens, gradients.tokens).clip(max=len(row.tokens) - 1)
    return (gradients.values * row.values[found]).sum(1) * (row.tokens[found] == gradients.tokens)
