r"""Scores against retraining at a price: every method of a task is timed, weighed, and judged by the same removals.

A *task* is a set of scoring functions, each giving ``(tests, n)`` numbers, and a way to train again. What is removed is
the same for all: random sets of 5 and of 50 percent, single examples where training has one answer, and for every
method the sets that it names itself, k proponents or k opponents of each test point.

Sign of a score: the predicted change of the query loss when the example is REMOVED; positive = helpful = proponent.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from clif_kit.deletion import Plan, changes, make_plan, subset_changes
from clif_kit.deletion_ranks import random_subsets, rank

DROPS = {"drop05": 0.05, "drop50": 0.5}
SIGNS_SEED = 7  # of the random scores


@dataclass(frozen=True)
class Cost:
    """What a score costs once its model is trained: ``seconds`` of CPU and ``megabytes`` above what was there before.

    ``megabytes`` is None where the system does not tell, or another program did the work.
    """

    seconds: float
    megabytes: float | None

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: seconds add up, of the peaks the higher counts; with one unknown, so is the whole."""
        peaks = (self.megabytes, other.megabytes)
        return Cost(self.seconds + other.seconds, None if None in peaks else max(peaks))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What methods are asked, and how the truth is found.

    Attributes:
        name: Data and model, the end of every metric key: ``"digits"``.
        scorers: By method, a function without arguments that returns ``(tests, n)``.
        retrain: Trains again without each set of a plan: ``{"loss", "good"}``, ``(sets, runs, tests)`` each. ``loss``
            is the query loss; ``good`` is what deletion curves watch, more = better, such as p(true class).
        n: Training examples.
        tests: Test points.
        seeds: Of the retrainings; one where training has one answer.
        cheap: The cheap baseline that has to be beaten, one of ``scorers``.
        single: Also remove examples one at a time.
        fixed_tests: The test points are all there are (bias tests): intervals are over removed sets alone.
        again: Changes of the query loss by a second, independent training: sets to ``(tests, m)``; for the ceiling.
        paid: By method, what was spent before its scoring function is called (its own retrainings).
        data: Names of the data sets.
    """

    name: str
    scorers: Mapping[str, Callable[[], np.ndarray]] = field(repr=False)
    retrain: Callable[[Plan], Mapping[str, np.ndarray]] = field(repr=False)
    n: int
    tests: int
    seeds: tuple[int, ...] = (0,)
    cheap: str
    single: bool = False
    fixed_tests: bool = False
    again: Callable[[Sequence[np.ndarray]], np.ndarray] | None = field(default=None, repr=False)
    paid: Mapping[str, Cost] = field(default_factory=dict)
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cheap not in self.scorers:
            raise ValueError(f"{self.name}: the cheap baseline {self.cheap!r} is not among {', '.join(self.scorers)}")


@dataclass(frozen=True, kw_only=True)
class Played:
    """A task with all answers.

    Attributes:
        task: What was asked.
        scores: By method, ``(tests, n)``.
        costs: By method.
        plan: The retrainings.
        effects: By method, ``(2, sizes, points, runs)``: change of ``good`` without its proponents, its opponents.
        actual: By name of the random sets, changes of the query loss, ``(runs, tests, m)``; ``"loo"`` where asked.
        second: The same for ``drop05`` by another training, ``(tests, m')``, for the first m' sets, or None.
    """

    task: Task
    scores: Mapping[str, np.ndarray]
    costs: Mapping[str, Cost]
    plan: Plan
    effects: Mapping[str, np.ndarray]
    actual: Mapping[str, np.ndarray]
    second: np.ndarray | None


def play(task: Task, *, sizes: Sequence[int], subsets: int, points: int = 0, again: int = 0) -> Played:
    """Score, rank, remove, train again.

    Args:
        task: What to ask.
        sizes: Every k of the deletions.
        subsets: Random sets of each share.
        points: Only the first so many test points have their sets deleted. 0: all.
        again: So many of the 5 percent sets are trained a second time, where the task can.

    Raises:
        ValueError: If a method returns another shape or NaN (named), or a k does not fit.
    """
    scores, costs = score_all(task)
    drops = {name: random_subsets(task.n, share, subsets, seed=1) for name, share in DROPS.items()}
    groups = drops | ({"loo": [np.array([i]) for i in range(task.n)]} if task.single else {})
    ranks = {name: rank(values, max(sizes)) for name, values in scores.items()}
    asked = range(points or task.tests)
    plan = make_plan(ranks, sizes, task.seeds, task.n, points=asked, subsets=groups)
    results = task.retrain(plan)
    second = task.again(drops["drop05"][:again]) if task.again and again else None
    return Played(
        task=task, scores=scores, costs=costs, plan=plan, effects=changes(plan, results["good"]),
        actual=subset_changes(plan, results["loss"]), second=second,
    )  # fmt: skip


def score_all(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Cost]]:
    """Scores and costs of every method, each checked: ``(tests, n)`` without NaN.

    Raises:
        ValueError: Naming the method.
    """
    scores, costs = {}, {}
    gc.collect()
    for name, scorer in task.scorers.items():
        values, cost = measure(scorer)
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (task.tests, task.n) or not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{task.name}: {name} gave {values.shape} with {bad} numbers that are not finite; "
                f"needed are ({task.tests}, {task.n}): tests by training examples"
            )
        scores[name], costs[name] = values, task.paid[name] + cost if name in task.paid else cost
    return scores, costs


def random_scores(tests: int, n: int) -> np.ndarray:
    """Scores from a random generator: the control that knows nothing.

    >>> random_scores(2, 3).shape
    (2, 3)
    """
    return np.random.default_rng(SIGNS_SEED).normal(size=(tests, n))


def same_class_scores(labels: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """Random sizes, plus for training examples of the test point's class and minus for others: knows the label alone.

    >>> np.sign(same_class_scores(np.array([0, 1]), np.array([1]))).tolist()
    [[-1.0, 1.0]]
    """
    size = np.random.default_rng(SIGNS_SEED).uniform(0.01, 1, size=(len(test_labels), len(labels)))
    return np.where(np.asarray(labels) == np.asarray(test_labels)[:, None], size, -size)


def with_peers(task: Task, path: str | Path, digest: str) -> tuple[Task, dict[str, str]]:
    """The task with the stored scores of other libraries as further methods, and their versions, by name.

    The file is what ``benchmarks/contest_peers.py`` writes. Its scores count for the same data and settings only, which
    ``digest`` stands for; for others the task comes back as it was, with no versions.

    Args:
        task: Their scores must be of its shape.
        path: Of the file. It may be missing.
        digest: Of data and settings.
    """
    stored = json.loads(Path(path).read_text("utf-8"))["tasks"] if Path(path).exists() else {}
    found = stored.get(digest, {})
    scorers = {name: partial(np.asarray, peer["scores"]) for name, peer in found.items()}
    paid = {name: Cost(peer["seconds"], None) for name, peer in found.items()}
    versions = {name: peer["version"] for name, peer in found.items()}
    return replace(task, scorers={**task.scorers, **scorers}, paid={**task.paid, **paid}), versions


# ---- the price


def measure(compute: Callable[[], np.ndarray], *, budget: float = 0.5, repeats: int = 3) -> tuple[np.ndarray, Cost]:
    """Call it, and say what that cost: the least of up to ``repeats`` calls, as long as they stay within ``budget``.

    CPU seconds are the process's own. The peak is read from Linux, which can forget the old one; it counts resident
    pages above those before the call, so memory that Python or torch kept for later counts for nothing.

    Args:
        compute: What to measure.
        budget: CPU seconds; a slower function is called once.
        repeats: Calls at most: the first one may pay for imports.

    >>> values, cost = measure(lambda: np.zeros(4_000_000) + 1)
    >>> values.shape, cost.seconds > 0
    ((4000000,), True)
    """
    costs: list[Cost] = []
    while not costs or (len(costs) < repeats and sum(cost.seconds for cost in costs) < budget):
        answer = None  # what the last call returned is not there before this one
        before = _forget_peak()
        began = time.process_time()
        answer = compute()
        seconds = time.process_time() - began
        costs.append(Cost(seconds, None if before is None else max(0.0, (_status("VmHWM") - before) / 1024)))
    peaks = [cost.megabytes for cost in costs if cost.megabytes is not None]
    return answer, Cost(min(cost.seconds for cost in costs), min(peaks, default=None))


def _forget_peak() -> int | None:
    """Give free memory back, reset the peak, and return the resident kilobytes; None where there is no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _status("VmRSS")
    except (OSError, AttributeError):  # a container may forbid it, another libc lacks it
        return None


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
