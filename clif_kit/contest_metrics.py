r"""What a contest says: quality and price of every method, and a winner only where the intervals leave no doubt.

Four measures, each the mean over test points: ``loo``, Pearson's correlation with the exact effect of removing each
single example; ``drop05`` and ``drop50``, the rank correlation (LDS) over random sets of that share; ``del``, half of
AUC-DEL for opponents minus AUC-DEL for proponents. All methods see the same removals and the same resamples, so their
differences are paired.

A method wins a measure of a task when it leads the runner-up *and* the cheap baseline by more than a margin that was
fixed beforehand, two-sided bootstrap p below .05 after Holm's correction over all such comparisons of the contest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clif_kit.contest import DROPS, Played
from clif_kit.deletion_lds import ceiling, predicted
from clif_kit.deletion_metrics import gap
from clif_kit.evaluate import Interval, holm

RESAMPLES = 2000
FEWEST = 8  # units that an interval needs before a winner is named
CONTROLS = ("random", "same_class_random")
KEYS = {"loo": "loo/{}/{}", "drop05": "lds/{}/{}/drop05", "drop50": "lds/{}/{}/drop50", "del": "auc_del_gap/{}/{}"}


@dataclass(frozen=True)
class Measured:
    """One measure of one task, for all methods.

    Attributes:
        value: By method.
        sample: By method, the same in each resample, ``(RESAMPLES,)``.
        n: Units that were resampled.
        over: Which.
        unit: Of the measure.
    """

    value: Mapping[str, float]
    sample: Mapping[str, np.ndarray]
    n: int
    over: str
    unit: str = ""

    def interval(self, name: str, other: str | None = None) -> Interval:
        """Of one method, or of its lead over another."""
        value = self.value[name] - (self.value[other] if other else 0.0)
        sample = self.sample[name] - (self.sample[other] if other else 0.0)
        low, high = np.percentile(sample, [2.5, 97.5])
        return Interval(float(value), float(min(low, value)), float(max(high, value)), self.n, self.over, self.unit)

    def p_value(self, name: str, other: str, margin: float) -> float:
        """Two-sided, of a lead of exactly ``margin``; 1 where the lead is smaller."""
        lead = self.sample[name] - self.sample[other]
        if self.value[name] - self.value[other] <= margin:
            return 1.0
        return float(min(1.0, 2 * ((lead <= margin).sum() + 1) / (len(lead) + 1)))


def measures(played: Played) -> dict[str, Measured]:
    """``loo`` (where it was asked), ``drop05``, ``drop50`` and ``del`` of every method."""
    task, plan = played.task, played.plan
    found = {}
    if "loo" in played.actual:
        truth = played.actual["loo"].mean(0)
        found["loo"] = _over_tests({name: _pearson(s, truth) for name, s in played.scores.items()})
    for drop in DROPS:
        sets = [plan.sets[place] for place in plan.subsets[drop]]
        guesses = {name: predicted(s, sets) for name, s in played.scores.items()}
        found[drop] = rank_measure(guesses, played.actual[drop].mean(0), tests=not task.fixed_tests)
    gaps = {name: gap(effect) for name, effect in played.effects.items()}  # (points, runs)
    found["del"] = _over_tests(gaps, "effect" if task.fixed_tests else "probability")
    return found


def rank_measure(guesses: Mapping[str, np.ndarray], truth: np.ndarray, *, tests: bool = True) -> Measured:
    """Mean over test points of the rank correlation over sets; resampled are sets and, with ``tests``, test points.

    Args:
        guesses: By method, ``(tests, m)``.
        truth: ``(tests, m)``.
        tests: Draw test points too.

    Raises:
        ValueError: If there are fewer than three sets, or two test points to draw.
    """
    q, m = truth.shape
    if m < 3 or (tests and q < 2):
        raise ValueError(f"a rank correlation needs 3 sets or more and 2 test points to draw, got {m} and {q}")
    rng = np.random.default_rng(0)
    rows = rng.integers(m, size=(RESAMPLES, m))
    weights = rng.multinomial(q, np.full(q, 1 / q), size=RESAMPLES) / q if tests else np.full((RESAMPLES, q), 1 / q)
    value = {name: float(_spearman(guess, truth).mean()) for name, guess in guesses.items()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in guesses}
    for block in np.array_split(rows, -(-RESAMPLES // 100)):
        ranked = _ranks(truth[:, block])
        for name, guess in guesses.items():
            parts[name].append(_cosine(_ranks(guess[:, block]), ranked))  # (q, block)
    sample = {name: (np.concatenate(part, axis=1) * weights.T).sum(0) for name, part in parts.items()}
    return Measured(
        value, sample, min(q, m) if tests else m, "test points and removed sets" if tests else "removed sets"
    )


def _over_tests(found: Mapping[str, np.ndarray], unit: str = "") -> Measured:
    """Means over test points (and runs); both are drawn, runs only if there are several."""
    found = {name: np.reshape(values, (len(values), -1)) for name, values in found.items()}
    q, runs = next(iter(found.values())).shape
    rng = np.random.default_rng(0)
    points, seeds = (rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES) / k for k in (q, runs))
    sample = {name: np.einsum("rq,qs,rs->r", points, values, seeds) for name, values in found.items()}
    value = {name: float(values.mean()) for name, values in found.items()}
    return Measured(value, sample, q, "test points and seeds" if runs > 1 else "test points", unit)


# ---- the metrics of a task


def contest_metrics(played: Played, found: Mapping[str, Measured] | None = None) -> dict[str, Interval | float]:
    """The metrics of one task, by the keys of the results.

    ``loo``, ``lds`` and ``auc_del_gap`` of every method; ``lds_gain``, ``auc_del_gain`` and ``loo_gain`` over the cheap
    baseline; ``lds/ceiling`` where training is noisy or a second judge was asked; ``cost/seconds``, ``cost/megabytes``
    and counts.

    Args:
        played: From :func:`clif_kit.contest.play`.
        found: Its :func:`measures`, where they are there already.
    """
    task, where = played.task, played.task.name
    found = measures(played) if found is None else found
    out: dict[str, Interval | float] = {}
    for what, measured in found.items():
        for name in measured.value:
            out[KEYS[what].format(name, where)] = measured.interval(name)
            if name != task.cheap:
                gain = KEYS[what].replace("auc_del_gap", "auc_del").replace("/", "_gain/", 1)
                out[gain.format(f"{name}_minus_{task.cheap}", where)] = measured.interval(name, task.cheap)
    for drop in DROPS:
        if len(task.seeds) > 1:
            out[f"lds/ceiling/{where}/{drop}"] = ceiling(played.actual[drop])
    if played.second is not None:
        first = played.actual["drop05"].mean(0)[:, : played.second.shape[1]]
        judged = rank_measure({"ceiling": first}, played.second, tests=False)
        out[f"lds/ceiling/{where}/drop05"] = judged.interval("ceiling")
    for name, cost in played.costs.items():
        out[f"cost/seconds/{name}/{where}"] = cost.seconds
        if cost.megabytes is not None:
            out[f"cost/megabytes/{name}/{where}"] = cost.megabytes
    counts = {
        "train": task.n,
        "tests": task.tests,
        "points": len(played.plan.points),
        "models": played.plan.retrainings,
    }
    counts |= {"sets": len(played.plan.subsets["drop05"]), "k_last": played.plan.sizes[-1]}
    return out | {f"n/{what}/{where}": number for what, number in counts.items()}


# ---- winners


@dataclass(frozen=True)
class Ruling:
    """Who leads a measure of a task, and whether that is sure.

    Attributes:
        task: Its name.
        measure: Of :data:`KEYS`.
        best: The method with the largest value.
        second: The runner-up.
        p_second: Of the lead over the runner-up, after Holm's correction.
        p_cheap: Of the lead over the cheap baseline; None if the baseline itself leads.
        winner: ``best``, or None: not separated.
        reason: Why there is no winner; empty if there is one.
    """

    task: str
    measure: str
    best: str
    second: str
    p_second: float
    p_cheap: float | None
    winner: str | None
    reason: str


def rule(
    found: Mapping[str, Mapping[str, Measured]], cheap: Mapping[str, str], margins: Mapping[str, float], *,
    level: float = 0.05, same: Mapping[str, Sequence[str]] | None = None,
) -> list[Ruling]:  # fmt: skip
    """Name winners, by the rule in the module's first lines.

    Args:
        found: By task, its :func:`measures`.
        cheap: By task, its cheap baseline.
        margins: By measure, the least lead that counts.
        level: Of the corrected p-values.
        same: By task, methods that are one formula: none of them is the runner-up of another, the first one there is
            stands for all.

    Raises:
        ValueError: If a margin is missing or negative.
    """
    if bad := [what for one in found.values() for what in one if not margins.get(what, -1) >= 0]:
        raise ValueError(f"margin of {bad[0]!r} is missing or negative: fix all margins before the contest")
    rows, p = [], []
    for task, one in found.items():
        for what, measured in one.items():
            order = sorted(measured.value, key=lambda name: -measured.value[name])
            twins = [name for name in (same or {}).get(task, ()) if name in order]
            best = twins[0] if order[0] in twins else order[0]
            second = next(name for name in order if name != best and not {best, name} <= set(twins))
            rivals = [second] + [cheap[task]] * (best != cheap[task])
            p += [measured.p_value(best, rival, margins[what]) for rival in rivals]
            rows.append((task, what, best, second, len(rivals), measured))
    corrected, out = iter(holm(p).tolist()), []
    for task, what, best, second, rivals, measured in rows:
        p_second, p_cheap = next(corrected), next(corrected) if rivals == 2 else None
        doubts = [name for name, value in ((second, p_second), (cheap[task], p_cheap or 0.0)) if value >= level]
        reason = (
            f"too few: {measured.n} {measured.over}" if measured.n < FEWEST else " and ".join(dict.fromkeys(doubts))
        )
        if best in CONTROLS:
            reason = "a control leads"
        out.append(Ruling(task, what, best, second, p_second, p_cheap, None if reason else best, reason))
    return out


def _ranks(x: np.ndarray) -> np.ndarray:
    ranked = stats.rankdata(x, axis=-1)
    return ranked - ranked.mean(-1, keepdims=True)


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one side is constant."""
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.zeros(size.shape), where=size > 0)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _cosine(_ranks(a), _ranks(b))


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _cosine(a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True))
