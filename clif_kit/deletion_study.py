r"""Deletion studies of whole panels: a task, a model, methods, k's and seeds, from the texts to the metrics.

A panel is one row of Table 4 of Yeh et al. (2022) at a scale of ours. Its scores come from one training run, seed 0.
Removing whom they name is judged on models that are trained from scratch, the full-data model of the same seed being
the baseline. Two controls need no score: random examples, and random ones of the test point's class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from clif_kit import baselines, text_scores, tracin, tracin_layers
from clif_kit.deletion import Plan, changes, subset_changes
from clif_kit.deletion_lds import judge_subsets
from clif_kit.deletion_metrics import counts, gap_ratio, judge, noise_ratio, size_gain
from clif_kit.deletion_ranks import random_rank, random_subsets, rank, same_class_rank
from clif_kit.evaluate import Interval, interval
from clif_kit.store import resumable
from clif_kit.text_study import Recipe, TextStudy, make_text_study, predict, train_text
from clif_kit.text_tasks import text_task
from clif_kit.text_truth import Results, retrain_plan, truth_store

CONTROLS = ("same_class_random", "random")
LAST = ("inf_last", "rep", "tr_last")  # what looks at the last layer alone
DROPS = {"drop05": 0.05, "drop50": 0.5}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is trained, who is asked, and how often.

    Attributes:
        task: Of :func:`clif_kit.text_tasks.text_task`.
        kind: "cnn", "bert" or "roberta".
        recipe: How to train.
        train: Training texts.
        val: Validation texts.
        test: Test texts.
        methods: Of ``clif_kit.text_scores.FORMULAS`` and of ``CONTROLS``.
        sizes: Every k.
        seeds: Retrainings of each set, with the seeds 0, 1, ...
        points: Only the first so many test texts have their sets removed. 0: all.
        subsets: So many random sets of 5 % and as many of 50 % leave, for the LDS.
        candidates: Only the so many training texts with the least TF-IDF similarity to a test text may leave. 0: all.
        max_length: Tokens of a text at most.
        width: Of the CNN's word vectors, and of "roberta".
    """

    task: str
    kind: str
    recipe: Recipe
    train: int
    val: int
    test: int
    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: int
    points: int = 0
    subsets: int = 0
    candidates: int = 0
    max_length: int = 64
    width: int = 128

    @property
    def scored(self) -> tuple[str, ...]:
        """The methods that need a score."""
        return tuple(name for name in self.methods if name not in CONTROLS)

    def study(self) -> TextStudy:
        """Texts, model and recipe."""
        task = text_task(self.task, train=self.train, val=self.val, test=self.test)
        return make_text_study(task, self.kind, self.recipe, max_length=self.max_length, width=self.width)


@dataclass(frozen=True, kw_only=True)
class Deletions:
    """What a panel gave.

    Attributes:
        panel: What was asked.
        study: Texts, model and recipe.
        scores: By method, ``(tests, n)``, positive = proponent.
        ranks: By method, controls too, ``(2, tests, largest k)``.
        correct: Which validation texts the scoring model gets right, ``(val,)``.
        special: Share of TR-WE's mass at start and end tokens, ``(tests,)``.
        plan: The retrainings.
        results: ``probability`` and ``loss`` of the true class, ``(sets, seeds, tests)``; ``accuracy``.
    """

    panel: Panel
    study: TextStudy
    scores: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    correct: np.ndarray
    special: np.ndarray
    plan: Plan
    results: Results

    @cached_property
    def effects(self) -> dict[str, np.ndarray]:
        """By method, ``(2, sizes, points, seeds)``: change of p(true class), proponents first."""
        return changes(self.plan, self.results["probability"])


def run_panel(panel: Panel, folder: str | Path, *, n_jobs: int = 1, progress: bool = False) -> Deletions:
    """Score, rank, and train again what the folder does not hold yet; says first what that costs.

    Args:
        panel: What to ask.
        folder: Of the retrainings and the scores. A killed run goes on.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Raises:
        ValueError: If a method is unknown, or a k too large for the candidates.
    """
    study = panel.study()
    scores, asked = _scores(panel, study, folder)
    ranks = rankings(panel, study, scores, asked["similarity"])
    n, points = len(study.train), range(panel.points or len(study.test))
    subsets = {name: random_subsets(n, share, panel.subsets) for name, share in DROPS.items() if panel.subsets}
    plan, results = retrain_plan(
        study, ranks, panel.sizes, range(panel.seeds), folder=folder, points=points, subsets=subsets, n_jobs=n_jobs,
        progress=progress,
    )  # fmt: skip
    found = {"correct": asked["correct"], "special": asked["special"], "plan": plan, "results": results}
    return Deletions(panel=panel, study=study, scores=scores, ranks=ranks, **found)


def rankings(
    panel: Panel, study: TextStudy, scores: Mapping[str, np.ndarray], similarity: np.ndarray
) -> dict[str, np.ndarray]:
    """Who leaves first by every method of the panel, ``(2, tests, largest k)``.

    Args:
        panel: Its methods, k's and candidates.
        study: Its labels.
        scores: By method, ``(tests, n)``.
        similarity: TF-IDF, ``(tests, n)``: the least similar texts are the candidates, where not all are.
    """
    largest, shape, pool = max(panel.sizes), similarity.shape, None
    if panel.candidates:
        pool = np.zeros(shape, dtype=bool)
        np.put_along_axis(pool, baselines.least_similar(similarity, panel.candidates), True, axis=1)
    labels, asked = study.labels("train").numpy(), study.labels("test").numpy()
    chance = {
        "same_class_random": lambda: same_class_rank(labels, asked, largest, pool),
        "random": lambda: random_rank(shape, largest, pool),
    }
    return {name: chance[name]() if name in chance else rank(scores[name], largest, pool) for name in panel.methods}


def _scores(panel: Panel, study: TextStudy, folder: str | Path) -> tuple[Results, Results]:
    """Scores of the panel's methods, and what else is asked of the scoring model; kept beside the retrainings."""
    mark = truth_store(study, folder).fingerprint
    once = resumable(Path(folder) / "scores", mark, text_scores, tracin, tracin_layers, baselines, list(panel.scored))

    def compute() -> Results:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a sum in another order would rank near ties otherwise
        try:
            fitted = train_text(study, 0)
            right = predict(study, fitted.params, "val").argmax(1) == study.labels("val")
            more = {
                "similarity": baselines.tfidf_similarity(*text_scores.plain_texts(study)),
                "correct": right.numpy(),
                "special": text_scores.special_share(study, fitted),
            }
            return {**text_scores.text_scores(study, fitted, panel.scored), **{f"_{k}": v for k, v in more.items()}}
        finally:
            torch.set_num_threads(threads)

    found = once("scores", compute)
    asked = {name[1:]: found[name] for name in found if name.startswith("_")}
    return {name: found[name] for name in panel.scored}, asked


# ---- what a panel says


def panel_metrics(found: Deletions, where: str) -> dict[str, Interval | float]:
    """The metrics of one panel, by the keys of the results.

    ``auc_del_plus``, ``auc_del_minus``, ``auc_del_gap`` of every method; ``auc_del_gain`` of TR-WE (of its top-k form
    where that alone was run) over every other, and of TR-TFIDF over TR-last; ``del_plus_gain``, ``del_minus_gain`` of
    the smallest k by TR-WE over the largest by TR-last; ``auc_del_ratio`` to the best last-layer method;
    ``noise_ratio``; ``lds``; ``share_same_class``, ``share_special``, ``accuracy`` (per cent) and counts.

    Args:
        found: From :func:`run_panel`.
        where: Data and model, the end of every key: ``"agnews_cnn"``.
    """
    panel, effects = found.panel, found.effects
    lead = "tr_we" if "tr_we" in effects else "tr_we_topk"
    pairs = [(lead, other) for other in effects if other != lead]
    out = counts(found.plan, where) | {f"n/validation/{where}": len(found.study.val)}
    if {"tr_tfidf", "tr_last"} <= effects.keys():
        out |= judge(effects, where, [("tr_last", "tr_tfidf")])  # one question from two sides: one p-value, below
        del out[f"p/auc_del_gain/tr_last_minus_tr_tfidf/{where}"]
        pairs.append(("tr_tfidf", "tr_last"))
    flipped = {f"{lead}_printed_sign": effects[lead][::-1]}  # highest first becomes lowest first
    out |= judge(effects, where, pairs) | judge(flipped, where)
    if len(panel.sizes) > 1 and "tr_last" in effects:
        out |= size_gain(effects, panel.sizes, (lead, panel.sizes[0]), ("tr_last", panel.sizes[-1]), where)
    if last := [name for name in LAST if name in effects]:
        out[f"auc_del_ratio/{lead}_by_best_last/{where}"] = gap_ratio(effects, lead, last)
    if "random" in effects:
        key = f"noise_ratio/seed_by_random{panel.sizes[0]}/{where}"
        out[key] = noise_ratio(found.results["probability"][0][:, found.plan.points], effects["random"][0, 0])
    return out | _subset_metrics(found, where) | _model_metrics(found, where)


def _subset_metrics(found: Deletions, where: str) -> dict[str, Interval]:
    moved, out = subset_changes(found.plan, found.results["loss"]), {}
    pairs = [("tr_we", other) for other in found.scores if other != "tr_we"] if "tr_we" in found.scores else []
    for drop, actual in moved.items():
        sets = [found.plan.sets[place] for place in found.plan.subsets[drop]]
        out |= judge_subsets(found.scores, sets, actual, where, drop, pairs)
    return out


def _model_metrics(found: Deletions, where: str) -> dict[str, Interval]:
    """About the scoring model and its rankings: intervals over validation texts and over test points."""
    panel, points = found.panel, found.plan.points
    labels, asked = found.study.labels("train").numpy(), found.study.labels("test").numpy()
    own = {name: (labels[ranks[0]] == asked[:, None]).mean(1)[points] for name, ranks in found.ranks.items()}
    same = {f"share_same_class/{name}/{where}": _over_tests(share) for name, share in own.items()}
    right = interval(np.mean, 100 * found.correct.astype(float), over="validation texts", unit="per cent")
    accuracy = {f"accuracy/{panel.kind}{'_frozen' * panel.recipe.frozen}/{panel.task}": right}
    special = np.nan_to_num(found.special[points])  # a test text without any loss has no mass to share
    return {f"share_special/tr_we/{where}": _over_tests(special), **accuracy, **same}


def _over_tests(values: np.ndarray) -> Interval:
    return interval(np.mean, values, over="test points", unit="share", keep_values=True)


def summary(found: Mapping[str, Deletions]) -> dict[str, Interval | float]:
    """The metrics of several panels.

    A panel ``x_side`` adds to those of ``x`` what they lack, such as gains over methods that it alone has: paired over
    its own k's, test points and seeds. Its counts keep its name.
    """
    out: dict[str, Interval | float] = {}
    for name in sorted(found, key=lambda name: name.endswith("_side")):  # the main panels first
        main = name.removesuffix("_side")
        for key, value in panel_metrics(found[name], main).items():
            out.setdefault(key.replace(main, name) if key.startswith("n/") else key, value)
    return out
