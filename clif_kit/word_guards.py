"""Is it still a useful set of word vectors? Three numbers that a correction of bias should leave alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from clif_kit.corpus import Vocabulary
from clif_kit.datasets import analogies, word_pairs
from clif_kit.evaluate import spearman
from clif_kit.skipgram import Params

GUARDS = ("wordsim", "analogy", "neighbours")
QUESTIONS, CANDIDATES, NEIGHBOURS = 2000, 10_000, 10


def make_guards(before: Params, vocabulary: Vocabulary, rows: Sequence[int]) -> Callable[[Params], np.ndarray]:
    """A function from the two matrices to the three numbers of ``GUARDS``, higher is better, shape ``(3,)``.

    Rank correlation of cosine and human rating over WordSim-353's pairs; the share of analogies answered right (at
    most 2000 of gensim's questions, evenly drawn, with the 10,000 commonest words as candidates); the share of the ten
    nearest words of each of ``rows`` that were among its ten nearest before. The input matrix is judged.

    Args:
        before: The matrices to compare with.
        vocabulary: Of the rows; pairs and questions with a word that it lacks are left out.
        rows: Words whose neighbours are looked at.

    Raises:
        ValueError: If the vocabulary has fewer than two of the rated pairs (when the function is called).
    """
    (first, second, rated), questions = similarity_rows(vocabulary), analogy_rows(vocabulary)
    nearest = [set(found) - {row} for row, found in zip(rows, _nearest(_unit(before), rows), strict=True)]

    def measure(params: Params) -> np.ndarray:
        unit = _unit(params)
        similar = spearman((unit[first] * unit[second]).sum(1), rated)
        now = _nearest(unit, rows)
        kept = [len(set(found) & then) / NEIGHBOURS for found, then in zip(now, nearest, strict=True)]
        return np.array([similar, analogy_share(unit, questions), np.mean(kept)])

    return measure


def analogy_share(unit: torch.Tensor, questions: torch.Tensor) -> float:
    """The share of questions a : b = c : ? whose answer d has the largest cosine with b - a + c; NaN without questions.

    Args:
        unit: Rows of length 1, ``(V, d)``.
        questions: Rows of a, b, c, d, ``(m, 4)``; a, b and c are no candidates.
    """
    right, common = 0, unit[:CANDIDATES]
    for a, b, c, d in (part.T for part in questions.split(500)):
        scores = (unit[b] - unit[a] + unit[c]) @ common.T
        for known in (a, b, c):
            scores[torch.arange(len(a)), known] = -torch.inf
        right += int((scores.argmax(1) == d).sum())
    return right / len(questions) if len(questions) else float("nan")


def similarity_rows(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of both words of the rated pairs in the vocabulary, and the ratings from 0 to 10."""
    index, frame = vocabulary.index, word_pairs()
    words = frame[["first", "second"]].apply(lambda column: column.str.lower())
    found = frame[words.isin(list(index)).all(axis=1)].index
    first, second = (words.loc[found, name].map(index).to_numpy(np.int64, copy=True) for name in words)
    return first, second, frame.loc[found, "similarity"].to_numpy()


def analogy_rows(vocabulary: Vocabulary) -> torch.Tensor:
    """Rows of the questions whose four words are all common enough, ``(m, 4)``."""
    index = {word: row for word, row in vocabulary.index.items() if row < CANDIDATES}
    every = [question for section in analogies().values() for question in section]
    found = [[index[word] for word in question] for question in every if all(word in index for word in question)]
    return torch.tensor(found[:: max(1, -(-len(found) // QUESTIONS))], dtype=torch.int64).reshape(-1, 4)


def _unit(params: Params) -> torch.Tensor:
    return torch.nn.functional.normalize(params["input"].float(), dim=1)


def _nearest(unit: torch.Tensor, rows: Sequence[int]) -> list[list[int]]:
    """The ten nearest words of each, and itself."""
    return (unit[rows] @ unit.T).topk(NEIGHBOURS + 1).indices.tolist()
