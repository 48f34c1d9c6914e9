"""A reader's own word vectors, corpus and word lists: how biased are they, which sentences carry it, is it so?

The effect (WEAT) of given vectors is measured as it is. Which sentences carry it can be said only of vectors that are
known to come from the text: so the deterministic model of :mod:`clif_kit.explain` is trained on the corpus, its
sentences are ranked, and the effects of both stand side by side; where they differ, the lists explain the model alone.

Sign: positive = mitigating (without the sentence the bias grows), negative = amplifying.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from clif_kit import corpora
from clif_kit.corpora import BadCorpus
from clif_kit.evaluate import Interval, interval
from clif_kit.explain import Model, ask_test, direction, make_model, question_study, ranked
from clif_kit.own_vectors import BadVectors
from clif_kit.sentence_stream import stream_scores
from clif_kit.sgns_train import fit
from clif_kit.weat import SIDES, WordTest, effect, resolve
from clif_kit.word_study import about_tests, causes, effects

MAX_LISTS = 2**20  # bytes of a file with word lists


def read_lists(path: str | Path) -> WordTest:
    """Four word lists, ``x``, ``y`` (targets), ``a``, ``b`` (attributes), from a YAML file, in lower case.

    Raises:
        BadVectors: If it is not YAML, or not these four lists of words.
    """
    path = Path(path)
    form = "need x, y (target words), a, b (attribute words), such as 'x: [he, him, his, man]'"
    if path.stat().st_size > MAX_LISTS:
        raise BadVectors(f"{path}: too large for word lists; {form}")
    try:
        found = yaml.safe_load(path.read_text("utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadVectors(f"{path}: not YAML in UTF-8 ({str(error).splitlines()[0]}); {form}") from None
    if not isinstance(found, dict) or not set(SIDES) <= set(found):
        has = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise BadVectors(f"{path}: holds {has[:80]}; {form}")
    sides = {side: found[side].split() if isinstance(found[side], str) else found[side] for side in SIDES}
    for side, words in sides.items():
        if not isinstance(words, list) or len(words) < 4 or not all(isinstance(word, str) for word in words):
            raise BadVectors(f"{path}: {side} is not a list of four words or more (quote no, yes, on, off); {form}")
    try:
        return WordTest(*([word.lower() for word in sides[side]] for side in SIDES), name=path.stem)
    except ValueError as error:
        raise BadVectors(f"{path}: {error}") from None


def given_effect(vectors: dict[str, np.ndarray], test: WordTest) -> float:
    """The effect of given vectors; words without a vector fall out, both sides stay equally long.

    Raises:
        BadVectors: If a side is left with fewer than four words.
    """
    index = {word: row for row, word in enumerate(vectors)}
    try:
        found = resolve(test, dict.fromkeys(index, 1), index, 1)
    except ValueError as error:
        raise BadVectors(str(error)) from None
    return float(effect(torch.from_numpy(np.stack(list(vectors.values())).astype(np.float64)), found))


# ---- the sentences


@dataclass(frozen=True)
class WordBias:
    """What was found.

    Attributes:
        test: The word lists.
        effect: Of the model trained on the corpus.
        given: Of the given vectors, or None.
        table: All sentences, the most mitigating first; see :func:`clif_kit.explain.explain`, and ``words``.
        check: ``|effect|`` after deletion minus before, by what was deleted: ``amplifying`` (one number, exact) and
            ``random`` (with an interval over draws).
        removed: Sentences that left.
    """

    test: WordTest
    effect: float
    given: float | None
    table: pd.DataFrame = field(repr=False)
    check: dict[str, float | Interval]
    removed: int


def word_bias(
    corpus: str | Path, test: WordTest, vectors: dict[str, np.ndarray] | None = None, *, share: float = 0.05,
    draws: int = 8, size: int = 300, min_count: int = 2, width: int = 8, l2: float = 0.003, window: int = 5,
    k: int = 10, seed: int = 0,
) -> WordBias:  # fmt: skip
    """Train on the corpus, rank its sentences by their influence on the bias, delete the most amplifying, train again.

    Args:
        corpus: A ``.txt`` with one sentence a line, or a ``.csv``.
        test: Word lists.
        vectors: Given vectors of the words, whose effect is measured too.
        share: Of the sentences with a word of the lists, how many leave in the check.
        draws: Random sets of as many such sentences.
        size: Words of the vocabulary besides those of the lists.
        min_count: Occurrences that a word needs.
        width: Of the vectors that are trained.
        l2: Their penalty.
        window: Words on either side.
        k: Sentences at either end whose words are listed.
        seed: Of the start and the draws.

    Raises:
        BadCorpus: If the text is unusable or lacks the words, see :func:`clif_kit.explain.question_study`.
    """
    given = None if vectors is None else given_effect(vectors, test)
    study = question_study(
        corpora.load(corpus), {test.name: test}, window=window, min_count=min_count, test_count=min_count, size=size
    )
    if study.unavailable:
        raise BadCorpus(f"{corpus}: {study.unavailable[test.name]}")
    model = make_model(study, width=width, l2=l2, seed=seed)
    question = ask_test(model, test.name)
    h, loss = direction(model, question, "cg_full")
    scores = stream_scores(study.corpus, model.best.params, [h], loss)[0]
    order = np.argsort(-scores, kind="stable")
    table = ranked(study.sentences, scores, "cg_full", question)
    named = {
        i: _named(causes(study, i, model.best.params, h, loss, study.tests[test.name]))
        for i in {*order[:k].tolist(), *order[-k:].tolist()}
    }
    table["words"] = [named.get(i, "") for i in order.tolist()]
    about = about_tests(study.sentences, [test])
    m = max(1, round(share * len(about)))
    rng, before = np.random.default_rng(seed), float(effects(model.best.params, study.tests)[0])
    sets = [rng.choice(about, m, replace=False) for _ in range(draws)]
    check = {
        "amplifying": _bias_without(model, order[::-1][:m]) - abs(before),
        "random": interval(np.mean, [_bias_without(model, rows) - abs(before) for rows in sets], over="random sets"),
    }
    return WordBias(test, before, given, table, check, m)


def _bias_without(model: Model, gone: Sequence[int]) -> float:
    """|effect| after training again without some sentences, from the optimum with all of them."""
    best = fit(model.objective.without(np.asarray(gone)), model.best.x, lbfgs_steps=0)
    return abs(float(effects(best.params, model.study.tests)[0]))


def _named(parts: dict[str, dict[str, float]], most: int = 4) -> str:
    sums = sorted(((w, v) for words in parts.values() for w, v in words.items()), key=lambda item: -abs(item[1]))
    whole = sum(value for _, value in sums)
    return ", ".join(f"{word} {value / whole:+.0%}".replace("%", " %") for word, value in sums[:most]) if whole else ""
