r"""What became of a word when sentences left: models for each seed, the same models without some sentences, metrics.

:mod:`clif_kit.neighbour_study` ranks the sentences of a word. Here its k most reinforcing ones leave, or its k most
removing ones, or others as a control, and gensim trains again with the same seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gensim
import numpy as np

from clif_kit import word_influence, word_queries
from clif_kit.evaluate import Interval, interval, paired_difference, spearman
from clif_kit.neighbour_study import BASELINES, METHODS, Case, chance, displacement_scores, nearest, relevance, top
from clif_kit.parallel import map_seeds
from clif_kit.sgns_train import Trained, train_gensim
from clif_kit.store import Store, fingerprint
from clif_kit.word_study import Study

SETS = ("reinforcing", "removing", "contains", "elsewhere", "dot", "pairs")  # what leaves before a retraining


def outcome(model: Trained, cases: Sequence[Case], count: int = 10) -> dict[str, np.ndarray]:
    """Where the words ended, each ``(cases, ...)``.

    ``displacement``: mean square of the way from the first vector to the last; ``began`` and ``ended``: the lengths of
    the two; ``nearest``: rows of the words with the largest cosine.
    """
    rows = [case.row for case in cases]
    first, last = (m["input"][rows].double() for m in (model.initial, model.params))
    lengths = {"began": first.norm(dim=1).numpy(), "ended": last.norm(dim=1).numpy()}
    return lengths | {
        "displacement": (last - first).square().mean(1).numpy(),
        "nearest": nearest(model.params, rows, count),
    }


def study_seeds(
    study: Study, cases: Sequence[Case], seeds: Sequence[int], *, settings: Mapping[str, int], damping: float,
    folder: str | Path, n_jobs: int = 2, progress: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Train with each seed and score: ``(seeds, cases, n)`` for each method, and all of :func:`outcome`.

    Args:
        study: The corpus.
        cases: The words.
        seeds: Of gensim, each once.
        settings: Of :func:`clif_kit.sgns_train.train_gensim`.
        damping: See :func:`displacement_scores`.
        folder: Where stores lie; a finished seed is never done again.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.
    """

    def one(seed: int) -> dict[str, np.ndarray]:
        model = train_gensim(study.corpus, seed=seed, **settings)
        return displacement_scores(study, model, cases, damping=damping) | outcome(model, cases)

    mark = _mark(study, cases, settings, damping, displacement_scores, word_influence, word_queries)
    store = Store(Path(folder) / f"seeds-{mark[:16]}", fingerprint=mark)
    found = map_seeds(one, list(seeds), store=store, n_jobs=n_jobs, progress=progress)
    return {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}


def removal_sets(
    cases: Sequence[Case], scores: Mapping[str, np.ndarray], k: int, n: int, seed: int
) -> dict[str, np.ndarray]:
    """What leaves: ``k`` sentences of every word at once, chosen in six ways (:data:`SETS`).

    Args:
        cases: The words.
        scores: ``lissa_published``, ``dot`` and ``pairs`` of one model, each ``(cases, n)``.
        k: Sentences a word; for ``elsewhere`` as many that hold none of the words.
        n: Sentences in the corpus.
        seed: Of the two random sets.
    """
    rng, published = np.random.default_rng(seed), scores["lissa_published"]
    rankings = {"reinforcing": published, "removing": -published, "dot": scores["dot"], "pairs": scores["pairs"]}
    sets = {name: [top(s, c, k) for s, c in zip(ranked, cases, strict=True)] for name, ranked in rankings.items()}
    sets["contains"] = [rng.choice(case.holds, k, replace=False) for case in cases]
    others = np.setdiff1d(np.arange(n), np.concatenate([case.holds for case in cases]))
    sets["elsewhere"] = [rng.choice(others, k * len(cases), replace=False)]
    return {name: np.unique(np.concatenate(sets[name])) for name in SETS}


def retrain_seeds(
    study: Study, cases: Sequence[Case], sets: Sequence[Mapping[str, np.ndarray]], seeds: Sequence[int], *,
    settings: Mapping[str, int], folder: str | Path, n_jobs: int = 2, progress: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Train again without each set of each seed: all of :func:`outcome`, ``(seeds, sets, cases, ...)``.

    Args:
        study: The corpus.
        cases: The words.
        sets: For each seed what leaves, from :func:`removal_sets`.
        seeds: Of gensim, as of the full models.
        settings: As of the full models.
        folder: Where stores lie; a finished model is never trained again.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.
    """
    tasks = [(seed, chosen) for seed, one in zip(seeds, sets, strict=True) for chosen in one.values()]

    def again(task: int) -> dict[str, np.ndarray]:
        seed, chosen = tasks[task]
        return outcome(train_gensim(study.corpus.without(chosen), seed=seed, **settings), cases)

    mark = _mark(study, cases, settings, [list(task) for task in tasks])
    store = Store(Path(folder) / f"removals-{mark[:16]}", fingerprint=mark)
    found = map_seeds(again, range(len(tasks)), store=store, n_jobs=n_jobs, progress=progress)
    return {
        name: np.stack([a[name] for a in found]).reshape(len(seeds), len(sets[0]), *found[0][name].shape)
        for name in found[0]
    }


def _mark(study: Study, cases: Sequence[Case], *things: object) -> str:
    rows, vocabulary = [case.row for case in cases], study.corpus.vocabulary
    text = (study.corpus.tokens, study.corpus.offsets, list(vocabulary.words), vocabulary.counts)
    return fingerprint(text, rows, *things, train_gensim, outcome, nearest, gensim.__version__)


# ---- what the chapter reports


def ranking_metrics(cases: Sequence[Case], scores: Mapping[str, np.ndarray], k: int) -> dict[str, Interval | float]:
    """Relevance of each ranking, its gain over sentences that merely hold the word, and how alike rankings are.

    Args:
        cases: The words.
        scores: Methods and baselines, each ``(seeds, cases, n)``.
        k: Sentences at either end.
    """
    shares = {name: relevance(scores[name], cases, k) for name in (*METHODS, *BASELINES)}
    shares["lissa_published_removing"] = relevance(-scores["lissa_published"], cases, k)
    shares["contains"] = np.tile([case.base for case in cases], (len(scores["dot"]), 1))
    shares["random"] = np.tile([case.right.mean() for case in cases], (len(scores["dot"]), 1))
    alike = [("lissa_published", other) for other in ("per_word", "dot_published", "dot", "short")]
    out: dict[str, Interval | float] = {}
    for j, case in enumerate(cases):
        share = {name: values[:, j] for name, values in shares.items()}
        out |= {f"relevance/{name}/{case.word}": over_seeds(values, "share") for name, values in share.items()}
        ours = share["lissa_published"]
        gains = {
            "reinforcing_minus_contains": (ours, share["contains"]),
            "contains_minus_removing": (share["contains"], share["lissa_published_removing"]),
            "reinforcing_minus_short": (ours, share["short"]),
            "neighbours_minus_contains": (share["dot_neighbours"], share["contains"]),
        }
        for name, (a, b) in gains.items():
            out[f"relevance_gain/{name}/{case.word}"] = paired_difference(a, b, over="seeds", unit="share")
        mean = scores["lissa_published"][:, j].mean(0)
        out[f"p/reinforcing/{case.word}"] = chance(case, top(mean, case, k))[0]
        out[f"p/removing/{case.word}"] = chance(case, top(-mean, case, k))[1]
        for a, b in (*alike, ("dot", "cg_full"), ("dot", "dot_neighbours")):
            r = [spearman(x[j, case.holds], y[j, case.holds]) for x, y in zip(scores[a], scores[b], strict=True)]
            out[f"rank/{a}_with_{b}/{case.word}"] = over_seeds(r, "rho")
    return out


def removal_metrics(
    cases: Sequence[Case], scores: Mapping[str, np.ndarray], sets: Sequence[Mapping[str, np.ndarray]],
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray],
) -> dict[str, Interval]:  # fmt: skip
    """What was lost without each set, whether the reinforcing sentences cost most, and who predicts it.

    ``truth``: the rank correlation of predicted and actual change over the sets that hold the words, for each seed.

    Args:
        cases: The words.
        scores: Methods and baselines, each ``(seeds, cases, n)``.
        sets: For each seed what left.
        before: From :func:`study_seeds`.
        after: From :func:`retrain_seeds`.
    """
    lost = 1 - after["displacement"] / before["displacement"][:, None]  # (seeds, sets, cases)
    kept = (after["nearest"][..., :, None] == before["nearest"][:, None, :, None, :]).any(-1).mean(-1)
    part = {name: lost[:, list(sets[0]).index(name)] for name in SETS}  # (seeds, cases)
    stay = {name: kept[:, list(sets[0]).index(name)] for name in SETS}
    pairs = {"top_minus_contains": ("reinforcing", "contains"), "contains_minus_bottom": ("contains", "removing"),
             "dot_minus_contains": ("dot", "contains"), "top_minus_pairs": ("reinforcing", "pairs")}  # fmt: skip
    out = {f"displacement_gain/{name}/all": _gain(part, a, b, slice(None)) for name, (a, b) in pairs.items()}
    out["neighbours_gain/contains_minus_top/all"] = _gain(stay, "contains", "reinforcing", slice(None))
    held = [name for name in SETS if name != "elsewhere"]
    for j, case in enumerate(cases):
        for name in SETS:
            out[f"displacement/{name}/{case.word}"] = over_seeds(part[name][:, j], "share")
            out[f"neighbours_kept/{name}/{case.word}"] = over_seeds(stay[name][:, j], "share")
        out[f"displacement_gain/top_minus_contains/{case.word}"] = _gain(part, "reinforcing", "contains", [j])
        actual = np.stack([part[name][:, j] for name in held], axis=1)  # (seeds, sets): same sign as the change of f
        for method in (*METHODS[:-1], "pairs"):
            r = [
                spearman([s[j, one[name]].sum() for name in held], truth)
                for s, one, truth in zip(scores[method], sets, actual, strict=True)
            ]
            out[f"truth/{method}/{case.word}/gensim"] = over_seeds(r, "rho")
    return out


def over_seeds(values: Sequence[float] | np.ndarray, unit: str) -> Interval:
    """The mean of one number a seed, with its interval."""
    return interval(np.mean, values, over="seeds", unit=unit, keep_values=True)


def _gain(values: Mapping[str, np.ndarray], a: str, b: str, cases: slice | list[int]) -> Interval:
    """Mean over words of the paired difference, over seeds."""
    return paired_difference(values[a][:, cases].mean(1), values[b][:, cases].mean(1), over="seeds", unit="share")
