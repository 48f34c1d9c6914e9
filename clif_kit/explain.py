r"""From texts to ranked sentences: why do word vectors show a bias, or stand where they stand?

:func:`explain` takes a reader's own file and one question; the explorer page (:mod:`clif_kit.explorer`) asks several
of one corpus. Both train the deterministic model of :mod:`clif_kit.sgns_objective`: the same text, the same answer.

A score is :math:`\langle h, \nabla \ell(z) \rangle` with the direction h of an estimator
(:mod:`clif_kit.word_influence`): the predicted change of the question's loss when the sentence is removed. Positive =
helpful, negative = harmful, in the unit of the question.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clif_kit import corpora, report
from clif_kit.corpora import BadCorpus, Sentences
from clif_kit.corpus import Vocabulary, build_vocabulary, encode
from clif_kit.csv_contract import content_id
from clif_kit.sentence_stream import stream_scores
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import Fit, start
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.weat import SIDES, TESTS, WordTest, effect
from clif_kit.word_influence import dot_direction, full_direction, lissa_published_direction, safe_damping
from clif_kit.word_queries import Query, cosine_query, displacement_query, query_gradient
from clif_kit.word_study import Study, effects, fit_optimum, study_of

METHODS = ("cg_full", "dot", "lissa_published")
UNITS = {"test": "effect size", "displacement": "squared vector units", "cosine": "cosine"}


# ---- the text


def question_study(
    sentences: Sentences, tests: Mapping[str, WordTest] | None = None, words: Iterable[str] = (), *, window: int = 5,
    negatives: int = 5, min_count: int = 2, test_count: int = 2, size: int | None = None,
) -> Study:  # fmt: skip
    """The study of some bias tests and some single words. Words without a neighbour are left out: they have no vector.

    Args:
        sentences: The texts.
        tests: Bias tests; one that lacks words is unavailable.
        words: Words that the vocabulary must have.
        window: Words on either side.
        negatives: Noise words a pair.
        min_count: Occurrences that a word needs.
        test_count: Occurrences that a word of a question needs.
        size: Keep only the commonest so many, and the words of the questions.

    Raises:
        BadCorpus: If nothing occurs often enough, one of ``words`` does not or has no neighbour, or there is no pair.
    """
    counts, tests = sentences.counts(), tests or {}
    asked = {*words, *(word for test in tests.values() for side in SIDES for word in getattr(test, side))}
    try:
        keep = dict.fromkeys(asked, test_count)
        vocabulary = build_vocabulary(sentences.words, min_count=min_count, size=size, keep=keep)
        corpus = encode(sentences.words, with_neighbours(sentences.words, vocabulary))
    except ValueError as error:
        raise BadCorpus(str(error)) from None
    vocabulary = corpus.vocabulary
    for word in words:
        if word not in vocabulary.index:
            raise BadCorpus(
                f"{word!r} occurs {counts[word]} times in the text (words are lower case, letters only); "
                f"need {test_count}, next to other words of the vocabulary"
            )
    return study_of(sentences, corpus, tests, test_count=test_count, window=window, negatives=negatives)


def with_neighbours(sentences: Iterable[Sequence[str]], vocabulary: Vocabulary) -> Vocabulary:
    """The words that stand in a sentence with another token of the vocabulary at least once.

    >>> with_neighbours([["a", "cat"], ["eel"]], Vocabulary(("a", "cat", "eel"), np.array([1, 1, 1]))).words
    ('a', 'cat')
    """
    met: set[str] = set()
    for sentence in sentences:
        known = [word for word in sentence if word in vocabulary.index]
        met.update(known if len(known) > 1 else ())
    kept = [row for row, word in enumerate(vocabulary.words) if word in met]
    return Vocabulary(tuple(vocabulary.words[row] for row in kept), vocabulary.counts[kept])


# ---- the vectors


@dataclass(frozen=True)
class Model:
    """The deterministic model of a study.

    Attributes:
        study: Corpus and tests.
        objective: What was minimised.
        best: Its minimum.
        initial: The two matrices that training began with.
        damping: That the Hessian at the minimum needs; usually none.
    """

    study: Study
    objective: CorpusObjective
    best: Fit
    initial: Params
    damping: float


def make_model(study: Study, *, width: int = 10, l2: float = 0.003, seed: int = 0) -> Model:
    """Train until the gradient vanishes."""
    objective, best = fit_optimum(study, width=width, l2=l2, seed=seed)
    damping = safe_damping(objective.hessian_at(best.x), len(best.x), best.x.dtype)
    return Model(study, objective, best, objective.unpack(start(objective, seed)), damping)


# ---- the questions


@dataclass(frozen=True)
class Question:
    """One property of the vectors that is to be explained.

    Attributes:
        name: ``career``, ``displacement/apollo`` or ``cosine/apollo/nasa``.
        kind: ``test``, ``displacement`` or ``cosine``.
        loss: The query. Of a test: the effect times its sign, which has the gradient of ``|effect|`` and no kink where
            leaving sentences out turns the bias over.
        words: What it asks about: ``x``, ``y``, ``a``, ``b`` of a test, else ``word``.
    """

    name: str
    kind: str
    loss: Query
    words: Mapping[str, tuple[str, ...]]


def ask_test(model: Model, name: str) -> Question:
    """How large is the bias? Positive score = mitigating, negative = amplifying.

    Raises:
        BadCorpus: If the text has too few words of the test.
    """
    study = model.study
    if name not in study.tests:
        raise BadCorpus(study.unavailable[name])
    test = study.tests[name]
    sign = float(np.sign(effects(model.best.params, {name: test})[0]))
    words = {side: getattr(test.words, side) for side in SIDES if getattr(test.words, side)}
    return Question(name, "test", lambda params: sign * effect(params["input"], test), words)


def ask_words(model: Model, *words: str) -> Question:
    """How far did a word move (positive = reinforcing), or how alike are two (positive = drawing together)?"""
    rows = [model.study.corpus.vocabulary.row(word) for word in words]
    if len(rows) == 1:
        kind, loss = "displacement", displacement_query(rows[0], model.initial["input"][rows[0]])
    else:
        kind, loss = "cosine", cosine_query(*rows)
    return Question("/".join((kind, *words)), kind, loss, {"word": words})


# ---- the scores


def direction(model: Model, question: Question, method: str, *, repeats: int = 1) -> tuple[Params, SkipgramLoss]:
    """The direction h of an estimator, and the loss of a sentence that it goes with.

    Args:
        model: The vectors.
        question: Its loss is the query.
        method: ``cg_full`` (full inverse Hessian), ``dot`` (gradient dot) or ``lissa_published``.
        repeats: Runs of the published recursion that are averaged.

    Raises:
        ValueError: If there is no such method.
    """
    study, params = model.study, model.best.params
    gradient = query_gradient(question.loss, params)
    if method == "dot":
        return dot_direction(gradient, study.corpus, study.loss), study.loss
    if method == "cg_full":
        return full_direction(model.objective, params, gradient, damping=model.damping), study.loss
    if method == "lissa_published":
        loss = SkipgramLoss.published(study.loss.window)
        return lissa_published_direction(params, study.corpus, gradient, loss, repeats=repeats), loss
    raise ValueError(f"no method is called {method!r}; there are: {', '.join(METHODS)}")


def explain(
    path: str | Path, out: str | Path | None = None, *, test: str | WordTest | None = None, words: Sequence[str] = (),
    method: str = "cg_full", size: int = 400, min_count: int = 2, width: int = 10, l2: float = 0.003, window: int = 5,
    negatives: int = 5, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Which sentences of a text made its word vectors biased, moved a word, or drew two words together?

    Args:
        path: A ``.csv`` (columns ``text`` and ``label``) or ``.txt`` (a sentence a line) in UTF-8, or a name that
            :func:`clif_kit.corpora.load` knows.
        out: Where the table goes too, as CSV.
        test: Name of a test in ``weat.TESTS``, or a test of your own: how large is its bias?
        words: Instead of a test one word (how far it moved) or two (how alike they are).
        method: See :func:`direction`.
        size: Words of the vocabulary besides those of the question; time grows with its square.
        min_count: Occurrences that a word needs, also one of the question.
        width: d.
        l2: Penalty of the deterministic model.
        window: Words on either side.
        negatives: Noise words a pair.
        seed: Of the start, and so of the optimum that is found.

    Returns:
        All sentences, the most helpful first: ``id, method, query, score, unit, source, text``. The id is the number of
        the line, the id of the row or the title; where that has several sentences, their number follows it.

    Raises:
        FileNotFoundError: If there is no such file.
        BadCorpus: If it holds no sentence or is not UTF-8, a word is too rare, or the test has too few words.
        BadCSV: If a ``.csv`` breaks its contract.
        ValueError: If there is not exactly one question, or no such test or method.
    """
    if (test is None) == (not words) or isinstance(words, str) or not len(words) == len(set(words)) <= 2:
        raise ValueError(f"ask one question: a test, or a list of one or two words; got test={test!r}, words={words!r}")
    words = [word.lower() for word in words]
    for what, name, known in (("test", test, TESTS), ("method", method, METHODS)):
        if isinstance(name, str) and name not in known:
            raise ValueError(f"no {what} is called {name!r}; there are: {', '.join(known)}")
    if isinstance(test, str):
        test = TESTS[test]
    study = question_study(
        corpora.load(path), {test.name: test} if test else {}, words, window=window, negatives=negatives,
        min_count=min_count, test_count=min_count, size=size,
    )  # fmt: skip
    if study.unavailable:  # before the training
        raise BadCorpus(f"{path}: {study.unavailable[test.name]}")
    model = make_model(study, width=width, l2=l2, seed=seed)
    question = ask_test(model, test.name) if test else ask_words(model, *words)
    h, loss = direction(model, question, method)
    table = ranked(study.sentences, stream_scores(study.corpus, model.best.params, [h], loss)[0], method, question)
    if out is not None:
        report._write(Path(out), table.to_csv(index=False, lineterminator="\n").encode())
    return table


def ranked(sentences: Sentences, scores: np.ndarray, method: str, question: Question) -> pd.DataFrame:
    """The table of :func:`explain`; equal scores keep the order of the text."""
    columns = {
        "id": sentence_ids(sentences),
        "method": method,
        "query": question.name,
        "score": scores,
        "unit": UNITS[question.kind],
        "source": sentences.source,
        "text": [sentences.text(i) for i in range(len(sentences))],
    }
    return pd.DataFrame(columns).iloc[np.argsort(-scores, kind="stable")].reset_index(drop=True)


def sentence_ids(sentences: Sentences) -> list[str]:
    """The title of each sentence, with its number where several share one; without a title a hash of its words.

    >>> sentence_ids(Sentences([["a", "b"], ["c", "d"], ["e", "f"]], ["x"] * 3, ["csv"] * 3, ["r1", "r1", "r2"]))
    ['r1:1', 'r1:2', 'r2']
    """
    titles = [
        title or content_id(" ".join(words)) for title, words in zip(sentences.title, sentences.words, strict=True)
    ]
    total, seen = Counter(titles), Counter()
    ids = []
    for title in titles:
        seen[title] += 1
        ids.append(f"{title}:{seen[title]}" if total[title] > 1 else title)
    return ids
