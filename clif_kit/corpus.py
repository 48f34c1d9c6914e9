"""A corpus as numbers: which words, in which sentences, next to which.

Texts come from :mod:`clif_kit.corpora`; here a sentence is a row of whole numbers, and all sentences lie in one array.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix


@dataclass(frozen=True)
class Vocabulary:
    """Words, the commonest first, each with its count; a word's place is its row in the embedding matrices.

    >>> vocabulary = Vocabulary(("the", "cat"), np.array([7, 2]))
    >>> len(vocabulary), vocabulary.row("cat")
    (2, 1)
    """

    words: tuple[str, ...]
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """Word to row."""
        return {word: row for row, word in enumerate(self.words)}

    def row(self, word: str) -> int:
        """The row of a word.

        Raises:
            KeyError: If the word is not in the vocabulary.
        """
        if word not in self.index:
            raise KeyError(
                f"{word!r} is not among the {len(self)} words of the vocabulary; lower min_count or add text"
            )
        return self.index[word]


@dataclass(frozen=True)
class Corpus:
    """Sentences as rows of an embedding, end to end in one array.

    A sentence may be empty (none of its words is in the vocabulary): it keeps its number, so that scores stay in step
    with the texts.

    Attributes:
        tokens: All sentences, one after the other, shape ``(T,)``, int32.
        offsets: Where each begins, shape ``(n + 1,)``, int64; the last is T.
        vocabulary: What the numbers mean.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words a sentence, shape ``(n,)``."""
        return np.diff(self.offsets)

    @cached_property
    def owners(self) -> np.ndarray:
        """For each token the number of its sentence, shape ``(T,)``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def sentence(self, i: int) -> np.ndarray:
        """The rows of sentence ``i``."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def words(self, i: int) -> list[str]:
        """The words of sentence ``i`` that are in the vocabulary."""
        return [self.vocabulary.words[row] for row in self.sentence(i)]

    def select(self, sentences: Sequence[int] | np.ndarray) -> "Corpus":
        """These sentences alone, in this order, with the same vocabulary."""
        sentences = np.asarray(sentences, dtype=np.int64)
        lengths = self.lengths[sentences]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Corpus(self.tokens[np.repeat(self.offsets[:-1][sentences], lengths) + within], offsets, self.vocabulary)

    def without(self, sentences: Sequence[int] | np.ndarray) -> "Corpus":
        """All sentences but these."""
        keep = np.ones(len(self), dtype=bool)
        keep[np.asarray(sentences, dtype=np.int64)] = False
        return self.select(np.flatnonzero(keep))

    def blocks(self, size: int) -> Iterator["Corpus"]:
        """The corpus in pieces of ``size`` sentences; the arrays are views."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            first, last = self.offsets[start], self.offsets[stop]
            yield Corpus(self.tokens[first:last], self.offsets[start : stop + 1] - first, self.vocabulary)

    def containing(self, rows: Iterable[int]) -> np.ndarray:
        """Numbers of the sentences that hold at least one of these rows, ascending."""
        wanted = np.zeros(len(self.vocabulary), dtype=bool)
        wanted[list(rows)] = True
        return np.unique(self.owners[wanted[self.tokens]])


def build_vocabulary(
    sentences: Iterable[Sequence[str]],
    *,
    min_count: int = 5,
    size: int | None = None,
    keep: Mapping[str, int] | Iterable[str] = (),
) -> Vocabulary:
    """Count words and keep those that are common enough; ties are broken by the alphabet.

    Args:
        sentences: Each a sequence of words.
        min_count: Least number of occurrences.
        size: Keep only the commonest so many. None keeps all.
        keep: Words to keep although they are rarer than that (test words, say), if they occur at all. A mapping
            gives each its own least count.

    Raises:
        ValueError: If nothing is left.

    >>> build_vocabulary([["a", "cat"], ["a", "dog"], ["a"]], min_count=2, keep=["dog", "eel"]).words
    ('a', 'dog')
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    least = keep if isinstance(keep, Mapping) else dict.fromkeys(keep, 1)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    common = {word for word, count in ranked[:size] if count >= min_count}
    chosen = [(word, n) for word, n in ranked if word in common or n >= least.get(word, n + 1)]
    if not chosen:
        raise ValueError(f"no word occurs {min_count} times or more among {sum(counts.values())}; lower min_count")
    words, numbers = zip(*chosen, strict=True)
    return Vocabulary(words, np.array(numbers, dtype=np.int64))


def encode(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary) -> Corpus:
    """Turn sentences into numbers; words that are not in the vocabulary fall out, as in gensim.

    Raises:
        ValueError: If there is no sentence, or none with two words of the vocabulary (then there is no pair).

    >>> corpus = encode([["a", "cat"], ["eel"], ["cat", "a"]], Vocabulary(("a", "cat"), np.array([2, 2])))
    >>> corpus.tokens.tolist(), corpus.offsets.tolist()
    ([0, 1, 1, 0], [0, 2, 2, 4])
    """
    index = vocabulary.index
    rows = [[index[word] for word in sentence if word in index] for sentence in sentences]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if not (lengths >= 2).any():
        raise ValueError(
            f"the corpus is empty: none of {len(rows)} sentences has two words of the vocabulary ({len(vocabulary)})"
        )
    tokens = np.fromiter((row for sentence in rows for row in sentence), dtype=np.int32, count=int(lengths.sum()))
    return Corpus(tokens, np.concatenate([[0], np.cumsum(lengths)]), vocabulary)


def pair_numbers(lengths: np.ndarray, window: int) -> np.ndarray:
    r"""Ordered (centre, context) pairs of a sentence of each length: :math:`\sum_{\delta=1}^{w} 2 (L - \delta)_+`.

    >>> pair_numbers(np.array([0, 1, 2, 5]), window=2)
    array([ 0,  0,  2, 14])
    """
    steps = np.minimum(window, np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0))
    return 2 * steps * np.asarray(lengths, dtype=np.int64) - steps * (steps + 1)


def pair_counts(corpus: Corpus, window: int, weights: np.ndarray | None = None) -> csr_matrix:
    """How often each word stands within ``window`` words of each other one, shape ``(V, V)``, float64, symmetric.

    Args:
        corpus: n sentences over V words.
        window: Words on either side, always the whole window.
        weights: How much each sentence counts, shape ``(n,)``. None counts each once.

    Raises:
        ValueError: If the window is not positive.

    >>> corpus = encode([["a", "cat", "a"]], Vocabulary(("a", "cat"), np.array([2, 1])))
    >>> pair_counts(corpus, window=2).toarray()
    array([[2., 2.],
           [2., 0.]])
    """
    if window < 1:
        raise ValueError(f"the window must be at least 1 word, got {window}")
    size, total = len(corpus.vocabulary), csr_matrix((len(corpus.vocabulary),) * 2)
    for step in range(1, window + 1):
        near = corpus.owners[:-step] == corpus.owners[step:]
        left, right = corpus.tokens[:-step][near], corpus.tokens[step:][near]
        count = np.ones(len(left)) if weights is None else weights[corpus.owners[:-step][near]]
        total = total + coo_matrix((count, (left, right)), shape=(size, size)).tocsr()
    return (total + total.T).tocsr()
