r"""Why does a word stand where it stands? Its sentences, ranked, and whether the top ones are from the right show.

The query is that of Silva et al. (2022), section 4.2: how far the word moved in training (equation 9), here as a loss,
:math:`f = -\tfrac1d |u_w - u_w^0|^2`. Sign of a score: positive = reinforcing (without the sentence the word moves
less), negative = removing. Sentences without the word are left out of every ranking, as in the public code.
"""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from gensim.parsing.preprocessing import STOPWORDS
from scipy.stats import hypergeom

from clif_kit.corpora import Sentences
from clif_kit.corpus import Corpus, build_vocabulary, encode
from clif_kit.sentence_stream import stream_scores
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import Trained
from clif_kit.skipgram import Params, SkipgramLoss, noise_distribution
from clif_kit.word_influence import dot_direction, full_direction, lissa_published_direction, per_word_direction
from clif_kit.word_queries import cosine_query, displacement_query, query_gradient
from clif_kit.word_study import Study

METHODS = ("lissa_published", "per_word", "dot_published", "dot", "cg_full", "dot_neighbours")
BASELINES = ("pairs", "short")


@dataclass(frozen=True)
class Case:
    """A word to be explained.

    Attributes:
        word: The word.
        row: Of the matrices.
        holds: Numbers of the sentences that hold the word and have a pair, ascending.
        right: Whether a sentence is from the right show, shape ``(n,)``.
        show: What the right show is: patterns of ``"source: title"``.
    """

    word: str
    row: int
    holds: np.ndarray
    right: np.ndarray
    show: str

    @property
    def base(self) -> float:
        """Share of the right show among the sentences that hold the word: what a random choice of them has."""
        return float(self.right[self.holds].mean())


# ---- the corpus, which words, and which show is the right one


def make_word_study(
    sentences: Sentences, *, window: int = 3, negatives: int = 5, min_count: int = 5, size: int | None = None,
    stop_words: bool = True,
) -> Study:  # fmt: skip
    """A study without bias tests. The texts stay whole; words outside the vocabulary fall out of the corpus only.

    Args:
        sentences: The texts.
        window: Words on either side.
        negatives: Noise words a pair.
        min_count: Occurrences that a word needs.
        size: Keep only so many words.
        stop_words: Leave out gensim's stop words, as the paper says that it does (its public code keeps them).
    """
    content = (words if not stop_words else [w for w in words if w not in STOPWORDS] for words in sentences.words)
    vocabulary = build_vocabulary(content, min_count=min_count, size=size)
    loss = SkipgramLoss(window=window, negatives=negatives, noise=noise_distribution(vocabulary.counts))
    return Study(sentences, encode(sentences.words, vocabulary), {}, {}, loss)


def largest_sources(sentences: Sentences, count: int) -> Sentences:
    """The sentences of the ``count`` sources with most of them (ties: the first in the alphabet); 0 takes all."""
    numbers = Counter(sentences.source)
    chosen = sorted(numbers, key=lambda name: (-numbers[name], name))[: count or None]
    return sentences.select(np.isin(sentences.source, chosen))


def make_case(study: Study, word: str, show: str = "") -> Case:
    """Find the sentences of a word and those of its right show.

    Args:
        study: The corpus.
        word: In the vocabulary.
        show: Patterns in the manner of file names, parted by ``;``; a sentence is right if its ``"source: title"`` fits
            one. Empty takes the source with most sentences of the word (the first in the alphabet if there are more).

    Raises:
        KeyError: If the word is not in the vocabulary.
        ValueError: If no sentence fits the patterns.
    """
    corpus, source, title = study.corpus, study.sentences.source, study.sentences.title
    row = corpus.vocabulary.row(word)
    holds = corpus.containing([row])
    holds = holds[corpus.lengths[holds] > 1]
    if not show:
        counts = Counter(source[i] for i in holds)
        show = glob.escape(min(counts, key=lambda name: (-counts[name], name))) + ": *"
    patterns = [pattern.strip() for pattern in show.split(";")]
    labels = [f"{a}: {b}" for a, b in zip(source, title, strict=True)]
    right = np.array([any(fnmatchcase(label, pattern) for pattern in patterns) for label in labels])
    if not right.any():
        raise ValueError(f"no sentence is from the show {show!r}; patterns are matched with 'source: title'")
    return Case(word, row, holds, right, show)


def choose_words(study: Study, count: int = 3, *, least: int = 40, most: int = 80) -> list[str]:
    """Words that part the sources, chosen by a rule that looks at no vector.

    Among the words that stand in ``least`` to ``most`` sentences of three sources or more: those whose commonest source
    has the share of their sentences that is nearest to one half, at most one word a source; ties by the alphabet.

    Raises:
        ValueError: If there are not that many.
    """
    corpus, names = study.corpus, sorted(set(study.sentences.source))
    place = {name: k for k, name in enumerate(names)}
    of = np.array([place[name] for name in study.sentences.source])
    cells = np.unique(corpus.tokens.astype(np.int64) * len(corpus) + corpus.owners)  # each word once a sentence
    table = np.zeros((len(corpus.vocabulary), len(names)), dtype=np.int64)
    np.add.at(table, (cells // len(corpus), of[cells % len(corpus)]), 1)
    total = table.sum(1)
    fit = np.flatnonzero((total >= least) & (total <= most) & ((table > 0).sum(1) >= 3))
    words, found = corpus.vocabulary.words, {}
    for row in sorted(fit, key=lambda r: (abs(table[r].max() / total[r] - 0.5), words[r])):
        found.setdefault(int(table[row].argmax()), words[row])
    if len(found) < count:
        raise ValueError(f"{len(found)} words stand in {least} to {most} sentences of three sources, need {count}")
    return list(found.values())[:count]


# ---- scores


def displacement_scores(
    study: Study, model: Trained, cases: Sequence[Case], *, damping: float = 0.1, neighbours: int = 10
) -> dict[str, np.ndarray]:
    """Scores of every sentence by every method, each ``(cases, n)``.

    ``lissa_published`` is the public code's; ``per_word`` its exact limit; ``dot_published`` the same without an
    inverse; ``dot`` has the loss as trained, ``cg_full`` also the inverse over both matrices. ``dot_neighbours`` asks
    another question: what draws the word to its nearest words?

    Args:
        study: The corpus.
        model: Word vectors trained on it, and where they began.
        cases: The words.
        damping: Of the Gauss-Newton matrix of ``cg_full``, in the objective's scaled variables.
        neighbours: Of ``dot_neighbours``.
    """
    corpus, params, published = study.corpus, model.params, SkipgramLoss.published(study.loss.window)
    grads = [query_gradient(displacement_query(c.row, model.initial["input"][c.row]), params) for c in cases]
    near = nearest(params, [c.row for c in cases], neighbours)
    asked = [query_gradient(_neighbour_query(c.row, rows), params) for c, rows in zip(cases, near, strict=True)]
    objective = CorpusObjective(corpus, study.loss, width=params["input"].shape[1], l2=0.0, dtype=torch.float32)
    plain = [dot_direction(grad, corpus, study.loss) for grad in grads]
    found = {
        "dot_published": plain,
        "lissa_published": [lissa_published_direction(params, corpus, g, published, repeats=1) for g in grads],
        "per_word": [per_word_direction(params, corpus, g, published) for g in grads],
    }
    trained = {
        "dot": plain,
        "cg_full": [full_direction(objective, params, g, damping=damping, gauss_newton=True, rtol=1e-2) for g in grads],
        "dot_neighbours": [dot_direction(grad, corpus, study.loss) for grad in asked],
    }
    return _stream(corpus, params, found, published) | _stream(corpus, params, trained, study.loss)


def _stream(corpus: Corpus, params: Params, found: Mapping[str, list[Params]], loss: SkipgramLoss):
    stacked = [h for directions in found.values() for h in directions]
    scores = stream_scores(corpus, params, stacked, loss)
    return dict(zip(found, scores.reshape(len(found), -1, len(corpus)), strict=True))


def _neighbour_query(row: int, others: np.ndarray):
    """Minus the mean cosine with the other words."""
    parts = [cosine_query(row, int(other)) for other in others]
    return lambda params: torch.stack([part(params) for part in parts]).mean()


def plain_scores(study: Study, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Two rankings that need no model, each ``(cases, n)``.

    ``pairs``: how many pairs of the sentence have the word at the centre; ``short``: minus the length of the sentence.
    """
    corpus, window = study.corpus, study.loss.window
    place = np.arange(len(corpus.tokens)) - corpus.offsets[corpus.owners]
    after = corpus.lengths[corpus.owners] - 1 - place
    near = np.minimum(place, window) + np.minimum(after, window)  # contexts of each token
    pairs = [np.bincount(corpus.owners, near * (corpus.tokens == case.row), len(corpus)) for case in cases]
    return {"pairs": np.stack(pairs), "short": np.tile(-corpus.lengths.astype(float), (len(cases), 1))}


def nearest(params: Params, rows: Sequence[int], count: int) -> np.ndarray:
    """The words with the largest cosine to each, the nearest first and without itself, ``(len(rows), count)``."""
    unit = torch.nn.functional.normalize(params["input"].double(), dim=1)
    cosines = unit[list(rows)] @ unit.T
    cosines[torch.arange(len(rows)), list(rows)] = -2.0
    return cosines.topk(count).indices.numpy()


# ---- rankings and their show


def excerpts(study: Study, case: Case, scores: np.ndarray, k: int) -> list[str]:
    """One line for each of the top ``k``: ``*`` if it is from the right show, source and title, words in use."""
    corpus, texts = study.corpus, study.sentences
    names = [a if b in ("", a) else f"{a}: {b}" for a, b in zip(texts.source, texts.title, strict=True)]
    return [f"{'*' if case.right[i] else ' '} {names[i]} | {' '.join(corpus.words(i))}" for i in top(scores, case, k)]


def top(scores: np.ndarray, case: Case, k: int) -> np.ndarray:
    """The ``k`` sentences with the word that have the largest of the scores ``(n,)``; ties go to the earlier one.

    Raises:
        ValueError: If fewer than ``2 k`` sentences hold the word, so that the two ends of a ranking would share some.

    >>> top(np.array([3.0, 1.0, 9.0]), Case("kirk", 0, np.array([0, 1]), np.ones(3, dtype=bool), ""), 1)
    array([0])
    """
    if len(case.holds) < 2 * k:
        raise ValueError(f"{case.word!r} stands in {len(case.holds)} sentences, need {2 * k}: choose k smaller")
    return case.holds[np.argsort(-scores[case.holds], kind="stable")[:k]]


def relevance(scores: np.ndarray, cases: Sequence[Case], k: int) -> np.ndarray:
    """Share of the right show among the top ``k``: scores ``(seeds, cases, n)``, result ``(seeds, cases)``."""
    every = [zip(one, cases, strict=True) for one in scores]
    return np.array([[case.right[top(s, case, k)].mean() for s, case in pairs] for pairs in every])


def chance(case: Case, chosen: np.ndarray) -> tuple[float, float]:
    """How likely a random choice of so many sentences with the word has as many of the right show or more, or less.

    Both tails of the hypergeometric distribution.

    >>> case = Case("kirk", 0, np.arange(4), np.array([True, True, False, False]), "")
    >>> [round(p, 3) for p in chance(case, np.array([0, 1]))]  # one choice of six has both
    [0.167, 1.0]
    """
    hits, of = int(case.right[chosen].sum()), (len(case.holds), int(case.right[case.holds].sum()), len(chosen))
    return float(hypergeom.sf(hits - 1, *of)), float(hypergeom.cdf(hits, *of))


def neighbour_share(study: Study, case: Case, rows: np.ndarray) -> float:
    """Mean share of the right show among the sentences of these words, those of the word itself left out."""
    others = [np.setdiff1d(study.corpus.containing([row]), case.holds) for row in rows.tolist()]
    return float(np.mean([case.right[numbers].mean() for numbers in others if len(numbers)]))
