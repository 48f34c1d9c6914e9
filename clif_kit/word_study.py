"""A corpus, its bias tests, word vectors trained on it, and every estimator's scores: what the word chapters share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gensim
import numpy as np
import torch

from clif_kit.corpora import Sentences
from clif_kit.corpus import Corpus, build_vocabulary, encode
from clif_kit.parallel import map_seeds
from clif_kit.sentence_stream import stream_scores, word_parts
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import Fit, Trained, fit, start, train_gensim
from clif_kit.skipgram import Params, SkipgramLoss, noise_distribution
from clif_kit.store import Store, fingerprint
from clif_kit.weat import SIDES, Resolved, WordTest, effect, resolve
from clif_kit.word_influence import (
    algorithm_one_scores,
    dot_direction,
    full_direction,
    lissa_published_direction,
    per_word_direction,
)
from clif_kit.word_queries import query_gradient, weat_query

ESTIMATORS = ("dot", "algorithm_one", "lissa_published", "per_word", "cg_full")
BASELINES = ("overlap", "overlap_signed")


@dataclass(frozen=True)
class Study:
    """A corpus with its tests.

    Attributes:
        sentences: The texts.
        corpus: The same as numbers.
        tests: By name, those that the corpus can answer.
        unavailable: By name, why a test cannot be answered.
        loss: What training minimises.
    """

    sentences: Sentences
    corpus: Corpus
    tests: dict[str, Resolved]
    unavailable: dict[str, str]
    loss: SkipgramLoss

    @property
    def test_rows(self) -> np.ndarray:
        """Rows of all words of all tests, ascending."""
        return np.unique(
            [row for test in self.tests.values() for side in SIDES for row in getattr(test, side).tolist()]
        )


def make_study(
    sentences: Sentences,
    tests: Mapping[str, WordTest],
    *,
    window: int = 5,
    negatives: int = 5,
    min_count: int = 5,
    test_count: int = 4,
    size: int | None = None,
    like: "Study | None" = None,
) -> Study:
    """Build the vocabulary, look the test words up, encode.

    Args:
        sentences: The texts.
        tests: Bias tests; words rarer than ``test_count`` fall out, and a test that loses too many is unavailable.
        window: Words on either side.
        negatives: Noise words a pair.
        min_count: Occurrences that a word needs.
        test_count: Occurrences that a test word needs.
        size: Keep only so many words, and the test words.
        like: Take the vocabulary, the tests and the loss of this study, so that two corpora can be compared word by
            word (the paper has one vocabulary, built on the biased corpus). The other arguments then count for nothing.
    """
    if like is not None:
        return replace(like, sentences=sentences, corpus=encode(sentences.words, like.corpus.vocabulary))
    wanted = {word for test in tests.values() for side in SIDES for word in getattr(test, side)}
    vocabulary = build_vocabulary(
        sentences.words, min_count=min_count, size=size, keep=dict.fromkeys(wanted, test_count)
    )
    corpus = encode(sentences.words, vocabulary)
    return study_of(sentences, corpus, tests, test_count=test_count, window=window, negatives=negatives)


def study_of(
    sentences: Sentences, corpus: Corpus, tests: Mapping[str, WordTest], *, test_count: int, window: int, negatives: int
) -> Study:
    """A study of a corpus that is encoded already: which tests its words allow, and the loss."""
    counts, vocabulary = sentences.counts(), corpus.vocabulary
    found, unavailable = {}, {}
    for name, test in tests.items():
        try:
            found[name] = resolve(test, counts, vocabulary.index, test_count)
        except ValueError as error:
            unavailable[name] = str(error)
    loss = SkipgramLoss(window=window, negatives=negatives, noise=noise_distribution(vocabulary.counts))
    return Study(sentences, corpus, found, unavailable, loss)


def about_tests(sentences: Sentences, tests: Iterable[WordTest]) -> np.ndarray:
    """Numbers of the sentences that hold at least one word of one of the tests."""
    wanted = {word for test in tests for side in SIDES for word in getattr(test, side)}
    return np.flatnonzero([not wanted.isdisjoint(words) for words in sentences.words])


# ---- models


def fit_optimum(
    study: Study, *, width: int, l2: float, seed: int = 0, gtol: float = 1e-8
) -> tuple[CorpusObjective, Fit]:
    """The deterministic model of the study: its objective and its optimum."""
    objective = CorpusObjective(study.corpus, study.loss, width=width, l2=l2)
    return objective, fit(objective, start(objective, seed), gtol=gtol)


def train_seeds(
    study: Study, seeds: Iterable[int], *, width: int, epochs: int, folder: str | Path, n_jobs: int = 2,
    progress: bool = False,
) -> list[Trained]:  # fmt: skip
    """Train gensim's vectors for each seed, or read them from the store, which all chapters share.

    Args:
        study: The corpus, the window and the number of noise words.
        seeds: Each once.
        width: d.
        epochs: Passes over the corpus.
        folder: Where the stores of all corpora and settings lie.
        n_jobs: Models at a time.
        progress: Draw a bar on the error stream.
    """
    corpus, settings = study.corpus, {"width": width, "epochs": epochs, "window": study.loss.window}
    settings["negatives"] = int(study.loss.negatives)

    def train(seed: int) -> dict[str, np.ndarray]:
        done = train_gensim(corpus, seed=seed, **settings)
        return {
            f"{when}.{name}": m.numpy() for when in ("params", "initial") for name, m in getattr(done, when).items()
        }

    mark = fingerprint(
        corpus.tokens,
        corpus.offsets,
        list(corpus.vocabulary.words),
        corpus.vocabulary.counts,
        settings,
        gensim.__version__,
    )
    store = Store(Path(folder) / f"gensim-{mark[:16]}", fingerprint=mark)
    found = map_seeds(train, list(seeds), store=store, n_jobs=n_jobs, progress=progress)
    return [Trained(*(_matrices(arrays, when) for when in ("params", "initial"))) for arrays in found]


def _matrices(arrays: Mapping[str, np.ndarray], when: str) -> Params:
    return {name: torch.from_numpy(arrays[f"{when}.{name}"]) for name in ("input", "context")}


def effects(params: Params, tests: Mapping[str, Resolved]) -> np.ndarray:
    """The signed WEAT effect of each test, shape ``(tests,)``."""
    return np.array([float(effect(params["input"].double(), test)) for test in tests.values()])


# ---- scores


def weat_gradients(params: Params, tests: Mapping[str, Resolved]) -> dict[str, Params]:
    """The gradient of the absolute effect of each test."""
    return {name: query_gradient(weat_query(test), params) for name, test in tests.items()}


def directions(
    study: Study, params: Params, objective: CorpusObjective, *, gauss_newton: bool = False,
    damping: float | None = None, repeats: int = 10,
) -> dict[str, list[Params]]:  # fmt: skip
    """For each estimator that is an inner product, its direction for each test of the study."""
    corpus, published = study.corpus, SkipgramLoss.published(study.loss.window)
    grads = list(weat_gradients(params, study.tests).values())
    return {
        "dot": [dot_direction(grad, corpus, study.loss) for grad in grads],
        "lissa_published": [
            lissa_published_direction(params, corpus, grad, published, repeats=repeats) for grad in grads
        ],
        "per_word": [per_word_direction(params, corpus, grad, published) for grad in grads],
        "cg_full": [
            full_direction(objective, params, grad, gauss_newton=gauss_newton, damping=damping) for grad in grads
        ],
    }


def all_scores(
    study: Study,
    params: Params,
    objective: CorpusObjective,
    *,
    gauss_newton: bool = False,
    damping: float | None = None,
    literal: bool = True,
    repeats: int = 10,
    engine: str = "auto",
) -> dict[str, np.ndarray]:
    """Scores of every sentence by every estimator and by word overlap, each ``(tests, n)``.

    Args:
        study: The corpus and the tests; the query is the absolute effect of each.
        params: Word vectors trained on it.
        objective: For the full inverse Hessian.
        gauss_newton: See :func:`clif_kit.word_influence.full_direction`.
        damping: Likewise.
        literal: Also Algorithm 1 read literally, which goes through the sentences one by one.
        repeats: Runs of the published recursion.
        engine: See :func:`clif_kit.sentence_stream.stream_scores`.
    """
    found = directions(study, params, objective, gauss_newton=gauss_newton, damping=damping, repeats=repeats)
    published = SkipgramLoss.published(study.loss.window)
    out = {}
    for names, loss in ((("dot", "cg_full"), study.loss), (("lissa_published", "per_word"), published)):
        stacked = [h for name in names for h in found[name]]
        scores = stream_scores(study.corpus, params, stacked, loss, engine=engine)
        out |= dict(zip(names, scores.reshape(len(names), len(study.tests), -1), strict=True))
    if literal:
        grads = list(weat_gradients(params, study.tests).values())
        out["algorithm_one"] = algorithm_one_scores(params, study.corpus, grads, published)
    return out | overlap_scores(study, params)


def overlap_scores(study: Study, params: Params) -> dict[str, np.ndarray]:
    """Two baselines that look at words and at no gradient, each ``(tests, n)``.

    ``overlap``: minus the number of test words in the sentence (the more, the more its removal should lower the bias).
    ``overlap_signed``: pairs of a target and an attribute in it, X with A and Y with B against X with B and Y with A,
    turned by the sign of the effect, so that a pair that speaks for the bias counts as amplifying.
    """
    plain, signed = [], []
    for test, sign in zip(study.tests.values(), np.sign(effects(params, study.tests)), strict=True):
        x, y, a, b = (side_counts(study.corpus, getattr(test, side)) for side in SIDES)
        plain.append(-(x + y + a + b))
        signed.append(-sign * (x - y) * (a - b))
    return {"overlap": np.stack(plain), "overlap_signed": np.stack(signed)}


def side_counts(corpus: Corpus, rows: torch.Tensor) -> np.ndarray:
    """How many words of each sentence are among these rows, shape ``(n,)``."""
    wanted = np.zeros(len(corpus.vocabulary))
    wanted[rows.numpy()] = 1
    return np.bincount(corpus.owners, weights=wanted[corpus.tokens], minlength=len(corpus))


def causes(
    study: Study, i: int, params: Params, direction: Params, loss: SkipgramLoss, test: Resolved
) -> dict[str, dict[str, float]]:
    """The score of sentence ``i`` split by the word that carries it: ``{"x": {word: part}, ..., "other": {...}}``.

    The parts add up to the score. A word of the test carries what moves its own row; all other words are "other", and
    have a part only with estimators that move every row.
    """
    parts = word_parts(study.corpus, i, params, direction, loss).sum(1)
    found: dict[str, dict[str, float]] = {side: {} for side in (*SIDES, "other")}
    sides = {row: side for side in SIDES for row in getattr(test, side).tolist()}
    for row, part in zip(study.corpus.sentence(i).tolist(), parts.tolist(), strict=True):
        word, side = study.corpus.vocabulary.words[row], sides.get(row, "other")
        found[side][word] = found[side].get(word, 0.0) + part
    return found


def subset(study: Study, numbers: np.ndarray) -> Study:
    """The study of some of its sentences, with the vocabulary and the tests unchanged."""
    return replace(study, sentences=study.sentences.select(numbers), corpus=study.corpus.select(numbers))
