r"""Does a score predict retraining? Sets of sentences leave, the model is trained again, the bias measured again.

The change that is judged is that of the effect in the direction of the bias, :math:`\mathrm{sign}(e_0)\,(e - e_0)`,
which is the change of :math:`|e|` as long as the effect keeps its sign; a small effect may cross zero, and its absolute
value would then have a kink that no linear prediction can follow.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from clif_kit.evaluate import Interval, interval, pearson
from clif_kit.parallel import retrain_parallel
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import Fit, fit, start, train_gensim
from clif_kit.skipgram import Params
from clif_kit.store import Store, fingerprint, resumable
from clif_kit.word_study import Study, all_scores, effects

COMPARED = (("cg_full", "dot"), ("cg_full", "overlap"), ("lissa_published", "overlap"), ("dot", "overlap"))


def random_sets(n: int, share: float, m: int, seed: int) -> list[np.ndarray]:
    """``m`` random sets of ``share`` of ``n`` sentences, each without repeats.

    >>> [len(s) for s in random_sets(100, 0.05, 3, seed=0)]
    [5, 5, 5]
    """
    rng = np.random.default_rng([seed, round(share * 1e6)])
    return [np.sort(rng.choice(n, round(share * n), replace=False)) for _ in range(m)]


def extreme_sets(scores: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The ``k`` sentences with the largest and with the smallest score, ``{"top": ..., "bottom": ...}``."""
    order = np.argsort(-scores, kind="stable")
    return {"top": order[:k], "bottom": order[::-1][:k]}


def predicted(scores: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of the scores over each set: scores ``(q, n)``, result ``(q, m)``."""
    return np.stack([scores[:, chosen].sum(1) for chosen in sets], axis=1)


def optimum_changes(
    study: Study, objective: CorpusObjective, best: Fit, sets: Sequence[np.ndarray], *, folder: str | Path | None,
    cold_seed: int | None = None, gtol: float = 1e-7, n_jobs: int = 2, progress: bool = False,
) -> np.ndarray:  # fmt: skip
    """Changes of each effect, in the direction of the bias, when each set leaves the deterministic model.

    Args:
        study: The tests.
        objective: F of the whole corpus.
        best: Its optimum.
        sets: Sentences to leave out.
        folder: Where shards go, so that a killed run resumes.
        cold_seed: Train from the random start of this seed. None starts at the optimum.
        gtol: Gradient norm of a retrained model.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        Shape ``(tests, m)``.
    """
    before = effects(best.params, study.tests)

    def retrain(keep: np.ndarray) -> dict[str, np.ndarray]:
        rest = objective.without(np.flatnonzero(~keep))
        if cold_seed is None:
            again = fit(rest, best.x, gtol=gtol, lbfgs_steps=0)
        else:
            again = fit(rest, start(rest, cold_seed), gtol=gtol)
        return {"change": np.sign(before) * (effects(again.params, study.tests) - before)}

    mark = fingerprint(study.corpus.tokens, study.corpus.offsets, best.x, cold_seed, gtol, fit, list(study.tests))
    return _run(retrain, study, sets, folder, "optimum", mark, n_jobs, progress)


def gensim_changes(
    study: Study, before: np.ndarray, sets: Sequence[np.ndarray], *, seeds: Sequence[int], settings: Mapping[str, int],
    folder: str | Path, n_jobs: int = 2, progress: bool = False,
) -> np.ndarray:  # fmt: skip
    """Changes of each effect when each set leaves the corpus and gensim trains again, for each seed.

    Args:
        study: The corpus and the tests.
        before: Effects of the full models with the same seeds, shape ``(seeds, tests)``.
        sets: Sentences to leave out.
        seeds: Of gensim.
        settings: Of :func:`clif_kit.sgns_train.train_gensim`.
        folder: Where shards go.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        Shape ``(seeds, tests, m)``, in the direction of the bias of the mean of ``before``.
    """
    sign = np.sign(before.mean(0))

    def retrain(keep: np.ndarray) -> dict[str, np.ndarray]:
        rest = study.corpus.select(np.flatnonzero(keep))
        after = [effects(train_gensim(rest, seed=seed, **settings).params, study.tests) for seed in seeds]
        return {"change": sign * (np.stack(after) - before)}

    mark = fingerprint(study.corpus.tokens, study.corpus.offsets, before, list(seeds), dict(settings), train_gensim)
    changes = _run(retrain, study, sets, folder, "gensim", mark, n_jobs, progress)  # (seeds, tests, m)
    return changes


def _run(
    retrain: Callable[[np.ndarray], dict[str, np.ndarray]], study: Study, sets: Sequence[np.ndarray],
    folder: str | Path, name: str, mark: str, n_jobs: int, progress: bool,
) -> np.ndarray:  # fmt: skip
    store = Store(Path(folder) / f"{name}-{mark[:16]}", fingerprint=mark)
    found = retrain_parallel(retrain, len(study.corpus), sets, store=store, shard=2, n_jobs=n_jobs, progress=progress)
    return np.moveaxis(found["change"], 0, -1)


def judge(
    scores: Mapping[str, np.ndarray], sets: Sequence[np.ndarray], actual: np.ndarray, tests: Sequence[str], where: str,
    drop: str,
) -> dict[str, Interval]:  # fmt: skip
    """The linear datamodelling score of every estimator on every test, with intervals over the removed sets.

    Args:
        scores: By estimator, ``(tests, n)``.
        sets: m sets that were left out.
        actual: Changes, ``(tests, m)``.
        tests: Names of the tests.
        where: Name of the model that was retrained, as in ``lds/dot/career_optimum/drop05``.
        drop: Name of the share that was left out.

    Returns:
        ``lds/<estimator>/<test>_<where>/<drop>`` for each test and for their mean, and for the mean the paired gain of
        each estimator over the gradient dot and over word overlap, ``lds_gain/<estimator>_minus_<other>/...``.
    """
    found = {name: predicted(s, sets).T for name, s in scores.items()}  # (m, tests) each
    columns = {test: [k] for k, test in enumerate(tests)} | {"mean": list(range(len(tests)))}
    metrics = {}
    for test, k in columns.items():
        for name, guess in found.items():
            metrics[f"lds/{name}/{test}_{where}/{drop}"] = lds_interval(guess[:, k], actual.T[:, k])
        for name, other in COMPARED:
            if {name, other} <= set(found):
                metrics[f"lds_gain/{name}_minus_{other}/{test}_{where}/{drop}"] = lds_interval(
                    found[name][:, k], actual.T[:, k], minus=found[other][:, k]
                )
    return metrics


def lds_interval(guess: np.ndarray, actual: np.ndarray, *, minus: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Mean over the columns of the rank correlation down the rows, with its 95 % bootstrap interval over rows.

    As :func:`clif_kit.evaluate.interval` with ``lds``, but all resamples are ranked at once. A guess that gives every
    set the same score ranks none of them: 0.

    Args:
        guess: Predicted changes, ``(m, tests)``.
        actual: Actual ones.
        minus: Another guess, whose correlation is subtracted.
        seed: Of the resampling.
    """
    m = len(guess)

    def statistic(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.moveaxis(rows, axis, -1)
        value = _rank_correlation(guess[rows], actual[rows]).mean(-1)
        return value if minus is None else value - _rank_correlation(minus[rows], actual[rows]).mean(-1)

    value = float(statistic(np.arange(m)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(m),), statistic, n_resamples=2000, vectorized=True, rng=np.random.default_rng(seed)
        )
    low, high = result.confidence_interval
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = np.percentile(result.bootstrap_distribution, [2.5, 97.5])
    return Interval(
        value=value, low=min(float(low), value), high=max(float(high), value), n=m, over="removed sets", unit=""
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the second last axis; 0 where one side is constant."""
    ranks = [stats.rankdata(x, axis=-2) for x in (a, b)]
    x, y = (r - r.mean(-2, keepdims=True) for r in ranks)
    size = np.sqrt((x**2).sum(-2) * (y**2).sum(-2))
    return np.divide((x * y).sum(-2), size, out=np.zeros(size.shape), where=size > 0)


# ---- the most influential sentences


def extremes(
    study: Study, objective: CorpusObjective, best: Fit, scores: Mapping[str, np.ndarray], *, sizes: Sequence[float],
    folder: str | Path | None, n_random: int = 8, n_jobs: int = 2, progress: bool = False,
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Leave out the top and the bottom sentences of each estimator and test, and as many random ones.

    Args:
        study: The corpus and the tests.
        objective: F of the whole corpus.
        best: Its optimum.
        scores: By estimator, ``(tests, n)``.
        sizes: Shares of the corpus. None of them gives nothing.
        folder: Where shards go.
        n_random: Random sets of each size, the same for all.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        By (estimator, test): predicted and actual change of each set, ``(2 sizes + n_random sizes,)`` each.
    """
    n, tests = len(study.corpus), list(study.tests)
    random = [chosen for size in sizes for chosen in random_sets(n, size, n_random, seed=1)]
    own = {
        (name, test): [s for size in sizes for s in extreme_sets(values[k], max(1, round(size * n))).values()]
        for name, values in scores.items()
        for k, test in enumerate(tests)
    }
    everything = random + [chosen for group in own.values() for chosen in group]
    if not everything:
        return {}
    actual = optimum_changes(study, objective, best, everything, folder=folder, n_jobs=n_jobs, progress=progress)
    found, place = {}, len(random)
    for (name, test), group in own.items():
        k, mine = tests.index(test), slice(place, place + len(group))
        guess = predicted(scores[name][k : k + 1], group + random)[0]
        found[name, test] = (guess, np.concatenate([actual[k, mine], actual[k, : len(random)]]))
        place += len(group)
    return found


def judge_extremes(found: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], where: str) -> dict[str, Interval]:
    """``truth/<estimator>/<test>/<where>``: Pearson's correlation of predicted and actual changes over those sets."""
    return {
        f"truth/{name}/{test}/{where}": interval(pearson, guess, actual, over="removed sets")
        for (name, test), (guess, actual) in found.items()
    }


# ---- gensim as the judge


@dataclass(frozen=True)
class GensimTruth:
    """What gensim says when sets of sentences leave.

    Attributes:
        sets: m sets that were left out.
        changes: ``(seeds, tests, m)``, in the direction of the bias.
        scores: By estimator, ``(tests, n)``: the mean over the full models of all seeds.
    """

    sets: Sequence[np.ndarray]
    changes: np.ndarray
    scores: Mapping[str, np.ndarray]


def gensim_truth(
    study: Study, sets: Sequence[np.ndarray], *, seeds: Sequence[int], settings: Mapping[str, int], folder: str | Path,
    repeats: int = 10, n_jobs: int = 2, progress: bool = False,
) -> GensimTruth:  # fmt: skip
    """Train gensim with each seed, score every sentence on each model, leave each set out and train again.

    The full inverse Hessian is damped by the smallest eigenvalue, since gensim's vectors lie at no minimum.
    """
    models = [train_gensim(study.corpus, seed=seed, **settings).params for seed in seeds]
    before = np.stack([effects(params, study.tests) for params in models])
    once = resumable(folder, "gensim scores", study.corpus.tokens, before, dict(settings), repeats, all_scores)

    def score(params: Params) -> dict[str, np.ndarray]:
        params = {name: matrix.double() for name, matrix in params.items()}
        objective = CorpusObjective(study.corpus, study.loss, width=settings["width"], l2=0.0)
        return all_scores(study, params, objective, repeats=repeats, literal=False)

    found = [once(f"seed-{seed}", lambda p=params: score(p)) for seed, params in zip(seeds, models, strict=True)]
    scores = {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
    changes = gensim_changes(
        study, before, sets, seeds=seeds, settings=settings, folder=folder, n_jobs=n_jobs, progress=progress
    )
    return GensimTruth(sets, changes, scores)


def judge_gensim(study: Study, truth: GensimTruth, drop: str = "drop05") -> dict[str, Interval]:
    """As :func:`judge`, against the mean over seeds; and ``lds/ceiling/...``: one seed guessed by the others' mean.

    No estimator can be expected to predict training again better than training again with other seeds does.
    """
    tests = list(study.tests)
    metrics = judge(truth.scores, truth.sets, truth.changes.mean(0), tests, "gensim", drop)
    changes = np.moveaxis(truth.changes, 1, 2)  # (seeds, m, tests)
    for test, k in ({name: [k] for k, name in enumerate(tests)} | {"mean": list(range(len(tests)))}).items():
        rest = np.stack([np.delete(changes, seed, axis=0).mean(0) for seed in range(len(changes))])
        pairs = [np.concatenate(list(x[:, :, k]), axis=-1) for x in (changes, rest)]  # (m, seeds * tests)
        metrics[f"lds/ceiling/{test}_gensim/{drop}"] = lds_interval(*pairs)
    return metrics
