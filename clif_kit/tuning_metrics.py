r"""What runs of :mod:`clif_kit.tuning_study` say: accuracies, who beats whom, the confound influence difference (CID).

A unit is a seed. There are few, so intervals are Student's, :math:`\bar x \pm t_{.975, n-1}\, s / \sqrt n`: a bootstrap
of five numbers is too narrow. Methods share their seeds (start, order, dropout), so differences are paired; the
p-values that the paper prints are not, and stand beside them.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from clif_kit.evaluate import Interval, holm, interval, spearman
from clif_kit.insertion import wilson

Run = Mapping[str, np.ndarray]
Runs = Mapping[str, Sequence[Run]]  # by method, one a seed
Metrics = dict[str, Interval | float]


def student(values: ArrayLike, unit: str = "", over: str = "seeds") -> Interval:
    """The mean with Student's 95 % interval; the values are kept.

    Raises:
        ValueError: If there are fewer than two values, or one is NaN.

    >>> student([1.0, 2.0, 3.0]).high.__round__(3)
    4.484
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2 or np.isnan(x).any():
        raise ValueError(f"need two numbers or more, none of them NaN, got {x}")
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, len(x), over, unit, tuple(x.tolist()))


def share(hits: ArrayLike, over: str, *, scale: float = 1.0, unit: str = "share") -> Interval:
    """The share of hits with Wilson's 95 % interval: good for many units, and for hits that are all alike.

    Args:
        hits: One truth value a unit, ``(n,)``.
        over: What the units are.
        scale: 100 for per cent.
        unit: Of the result.

    >>> found = share([True] * 20, "runs")
    >>> found.value, round(found.low, 2), found.high
    (1.0, 0.84, 1.0)
    """
    found = wilson(hits, over)
    return Interval(scale * found.value, scale * found.low, scale * found.high, found.n, over, unit)


def per_cent(hits: ArrayLike, over: str = "texts") -> Interval:
    """The same in per cent.

    >>> found = per_cent([True] * 9 + [False])
    >>> round(found.value, 1), round(found.low, 1), round(found.high, 1)
    (90.0, 59.6, 98.2)
    """
    return share(hits, over, scale=100.0, unit="per cent")


def numbers(runs: Sequence[Run], key: str) -> np.ndarray:
    """One number a run: the mean of what it says under a key, ``(seeds,)``."""
    return np.array([float(np.mean(run[key])) for run in runs])


def p_values(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """Two-sided p-values of two independent samples: Welch's test, permutations, and the paper's equal variances.

    With five against five there are 126 splits, so the permutation p is never below .008.

    >>> p_values([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])["permutation"]
    0.1
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)

    def gap(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of samples whose values are all alike
        found = {
            "welch": stats.ttest_ind(a, b, equal_var=False).pvalue,
            "permutation": stats.permutation_test((a, b), gap, vectorized=True, rng=np.random.default_rng(0)).pvalue,
            "equal": stats.ttest_ind(a, b).pvalue,
        }
    return {name: 1.0 if np.isnan(p) else float(p) for name, p in found.items()}


def accuracy_metrics(
    runs: Runs, data: str, *, against: str = "finetune", pairs: Iterable[tuple[str, str]] = ()
) -> Metrics:
    """Test accuracies in per cent, and comparisons.

    Args:
        runs: By method.
        data: Name of the data, last part of each key.
        against: What p-values compare with.
        pairs: (a, b): the claim is that a is better.

    Returns:
        ``accuracy/<method>/<data>`` and ``.../<data>_train``; for each other method ``p/<method>/<data>`` (Welch),
        and ``p/<method>_permutation``, ``_equal`` (the paper's) and ``_holm`` (Welch's, corrected over all methods);
        ``accuracy_gain/<a>_minus_<b>/<data>``, paired by seed, in points; ``accuracy_minority/...``, on test texts
        whose shortcut misleads.
    """
    out: Metrics = {}
    test = {name: numbers(found, "accuracy/test") for name, found in runs.items()}
    for name, found in runs.items():
        out[f"accuracy/{name}/{data}"] = student(test[name], "per cent")
        out[f"accuracy/{name}/{data}_train"] = student(numbers(found, "accuracy/train"), "per cent")
        minority = [float(np.mean([run["groups/test"][0, 1], run["groups/test"][1, 0]])) for run in found]
        out[f"accuracy_minority/{name}/{data}"] = student(minority, "per cent")
    others = [name for name in runs if name != against]
    p = {name: p_values(test[name], test[against]) for name in others}
    corrected = holm([p[name]["welch"] for name in others]) if others else []
    for name, adjusted in zip(others, corrected, strict=True):
        out[f"p/{name}/{data}"] = p[name]["welch"]
        out |= {f"p/{name}_{kind}/{data}": p[name][kind] for kind in ("permutation", "equal")}
        out[f"p/{name}_holm/{data}"] = float(adjusted)
    for a, b in pairs:
        out[f"accuracy_gain/{a}_minus_{b}/{data}"] = student(test[a] - test[b], "points")
    return out


def cid_metrics(runs: Runs, data: str, *, plain: str | None = "no_spurious") -> Metrics:
    """The confound influence difference (CID) at the end, and how it moves.

    Returns:
        ``cid/<method>/<data>``, ``cid_heldout`` (probes from the test texts) and ``cid_abs`` (mean size over probes);
        ``spearman/low_cid_accuracy/<data>``, over all runs but those without the shortcut; ``cid_drop/...``: what the
        ledger asks of curves, see the code. A run without a CID (some gradient is zero) is left out, and counted in
        ``n/without_cid/<data>``.
    """
    out: Metrics = {}
    for name, found in runs.items():
        ends = {what: [run[f"cid/{what}"] for run in found] for what in ("probes", "heldout")}
        out |= _mean(f"cid/{name}/{data}", [np.mean(each) for each in ends["probes"]])
        out |= _mean(f"cid_heldout/{name}/{data}", [np.mean(each) for each in ends["heldout"]])
        out |= _mean(f"cid_abs/{name}/{data}", [np.mean(np.abs(each)) for each in ends["probes"]])
    out[f"n/without_cid/{data}"] = sum(
        bool(np.isnan(run["cid/probes"]).any()) for found in runs.values() for run in found
    )
    pairs = [
        (abs(np.mean(run["cid/probes"])), float(run["accuracy/test"]))
        for name, found in runs.items() if name != plain for run in found if np.isfinite(run["cid/probes"]).all()
    ]  # fmt: skip
    if len(pairs) > 7:  # of fewer, resamples are often constant
        low, right = -np.array(pairs)[:, 0], np.array(pairs)[:, 1]
        out[f"spearman/low_cid_accuracy/{data}"] = interval(spearman, low, right, over="runs", unit="rank r")
    return out | _gaps(runs, data, plain) | _curves(runs, data)


def _mean(key: str, values: Sequence[float]) -> Metrics:
    """The mean of the values that are numbers under a key; nothing if there are fewer than two."""
    finite = [value for value in values if np.isfinite(value)]
    return {key: student(finite, "cosine")} if len(finite) > 1 else {}


def _gaps(runs: Runs, data: str, plain: str | None) -> Metrics:
    """Differences of the final CID, paired by seed."""
    found = {name: numbers(one, "cid/probes") for name, one in runs.items()}
    pairs = [pair for pair in (("finetune", "influence_tuning"), ("influence_tuning", plain)) if runs.keys() >= {*pair}]
    out: Metrics = {}
    for a, b in pairs:
        out |= _mean(f"cid_drop/{a}_minus_{b}/{data}", found[a] - found[b])
    return out


def _curves(runs: Runs, data: str) -> Metrics:
    """First against last third of fine-tuning's curve; sizes before and after a round, and before the next one."""
    first_last, drops, sizes, back = [], [], [], []
    for run in runs.get("finetune", ()):
        if "curve/cid" in run:
            part = run["curve/step"] / run["curve/step"].max()
            first_last.append(run["curve/cid"][part <= 1 / 3].mean() - run["curve/cid"][part > 2 / 3].mean())
    for run in runs.get("influence_tuning", ()):
        if "curve/cid" in run and (run["curve/when"] == 2).any():
            before, after = (np.abs(run["curve/cid"][run["curve/when"] == when]) for when in (1, 2))
            drops.append(np.mean(before - after))
            sizes.append(np.mean(after))
            back += [np.mean(before[1:] - after[:-1])] if len(before) > 1 else []
    return (
        _mean(f"cid_drop/finetune_first_minus_last/{data}", first_last)
        | _mean(f"cid_drop/before_minus_after_round/{data}", drops)
        | _mean(f"abs_cid/after_round/{data}", sizes)
        | _mean(f"cid_drop/before_next_minus_after_round/{data}", back)
    )
