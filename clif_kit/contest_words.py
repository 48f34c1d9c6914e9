"""The word task: which sentences bias word vectors, judged on a skip-gram that is trained to its optimum.

A query is the size of the effect of one bias test (WEAT); there are a handful, and no more can be drawn, so
intervals are over removed sets. The judge starts at the optimum of all sentences and goes on until the gradient
vanishes; a second judge starts at random and may find another optimum: how far the two agree is the ceiling.

Sign: the predicted change of the size of the effect when the sentence is REMOVED; positive = mitigating.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from clif_kit import weat
from clif_kit.contest import Task, random_scores
from clif_kit.corpora import Sentences
from clif_kit.deletion import Plan
from clif_kit.sentence_stream import stream_scores
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import Fit
from clif_kit.skipgram import SkipgramLoss
from clif_kit.word_influence import (
    algorithm_one_scores,
    dot_direction,
    full_direction,
    lissa_published_direction,
    per_word_direction,
)
from clif_kit.word_study import Study, about_tests, fit_optimum, make_study, overlap_scores, weat_gradients
from clif_kit.word_truth import optimum_changes

TESTS = ("career", "math", "art")


def word_contest_study(
    sentences: Sentences, *, size: int, width: int, l2: float, test_count: int = 2, most: int = 0
) -> tuple[Study, CorpusObjective, Fit]:
    """The sentences that hold a test word, a small vocabulary, and the optimum.

    Args:
        sentences: A corpus.
        size: Words of the vocabulary beside the test words.
        width: Of the vectors.
        l2: Penalty of the deterministic model, above 0.
        test_count: Occurrences that a test word needs.
        most: Only so many of the sentences, evenly spread. 0: all.

    Raises:
        ValueError: If the corpus can answer no test.
    """
    tests = {name: weat.TESTS[name] for name in TESTS}
    chosen = about_tests(sentences, tests.values())
    if 0 < most < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    few = sentences.select(chosen)
    study = make_study(few, tests, size=size, min_count=2, test_count=test_count)
    if not study.tests:
        raise ValueError("no bias test can be answered: " + "; ".join(study.unavailable.values()))
    return study, *fit_optimum(study, width=width, l2=l2)


def word_task(
    study: Study, objective: CorpusObjective, best: Fit, name: str, *, folder: str | Path, repeats: int = 1,
    n_jobs: int = 1, data: Sequence[str] = (),
) -> Task:  # fmt: skip
    """The estimators of the word chapters, two counts of words, and training again without sets of sentences.

    Args:
        study: From :func:`word_contest_study`, as the next two.
        objective: What was minimised.
        best: Where.
        name: Of the corpus.
        folder: Of the retrainings.
        repeats: Runs of the published recursion.
        n_jobs: Processes.
        data: Names of the data sets.
    """
    corpus, params, loss = study.corpus, best.params, study.loss
    published = SkipgramLoss.published(loss.window)

    def along(direction: Callable, loss_: SkipgramLoss) -> np.ndarray:
        grads = weat_gradients(params, study.tests).values()
        return stream_scores(corpus, params, [direction(grad) for grad in grads], loss_, engine="torch")

    def literal() -> np.ndarray:
        return algorithm_one_scores(params, corpus, list(weat_gradients(params, study.tests).values()), published)

    ways = {
        "cg_full": (lambda grad: full_direction(objective, params, grad), loss),
        "dot": (lambda grad: dot_direction(grad, corpus, loss), loss),
        "per_word": (lambda grad: per_word_direction(params, corpus, grad, published), published),
        "lissa_published": (
            lambda grad: lissa_published_direction(params, corpus, grad, published, repeats=repeats), published
        ),
    }  # fmt: skip
    scorers: dict[str, Callable[[], np.ndarray]] = {key: partial(along, *way) for key, way in ways.items()}
    scorers["algorithm_one"] = literal
    for key in ("overlap", "overlap_signed"):
        scorers[key] = lambda key=key: overlap_scores(study, params)[key]
    scorers["random"] = partial(random_scores, len(study.tests), len(corpus))
    again = partial(optimum_changes, study, objective, best, folder=folder, n_jobs=n_jobs)

    def train_again(plan: Plan) -> dict[str, np.ndarray]:
        moved = again(plan.sets[1:]).T  # (sets - 1, tests); the first set is empty
        loss_ = np.concatenate([np.zeros((1, moved.shape[1])), moved])[:, None]
        return {"loss": loss_, "good": -loss_}

    return Task(
        name=name, scorers=scorers, retrain=train_again, n=len(corpus), tests=len(study.tests), cheap="overlap_signed",
        fixed_tests=True, again=partial(again, cold_seed=0), data=tuple(data),
    )  # fmt: skip
