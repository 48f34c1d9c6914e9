"""How good scores are: correlations with the truth, and intervals over the right unit.

The module never sees where a score came from. Every function takes anything that ``numpy.asarray`` takes (arrays,
lists, CPU tensors without gradient) and raises ``ValueError`` when it meets NaN.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval: one metric of the results schema.

    Attributes:
        value: The statistic on all data.
        low: Lower end, never above ``value``.
        high: Upper end, never below ``value``.
        n: How many units were resampled.
        over: Which units: ``"seeds"``, ``"test points"``, ``"removed examples"``.
        unit: Of ``value``, such as ``"r"``, ``"share"`` or ``"nats"``; empty if it has none.
        values: One number a unit (a seed, say), or None.
    """

    value: float
    low: float
    high: float
    n: int
    over: str
    unit: str = ""
    values: tuple[float, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The metric as ``clif_kit.report.record`` writes it; without ``values`` if there are none."""
        fields = asdict(self)
        if self.values is None:
            del fields["values"]
        return fields


@dataclass(frozen=True)
class Detection:
    """A detection curve; see :func:`detection_curve`.

    Attributes:
        checked: Share of all examples looked at so far, from 0 to 1, shape ``(n + 1,)``.
        found: Share of the noisy examples found by then, shape ``(n + 1,)``.
        auc: Area under ``found`` over ``checked``: 0.5 at random, ``1 - rate / 2`` at best.
    """

    checked: np.ndarray
    found: np.ndarray
    auc: float


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation of two samples of shape ``(n,)``.

    Raises:
        ValueError: If the shapes differ, a value is not finite, or a sample is constant (then r is not defined).

    >>> round(pearson([1, 2, 3], [1, 2, 4]), 3)
    0.982
    """
    a, b = _pair(a, b)
    if not np.isfinite([a, b]).all():
        raise ValueError("Pearson's r needs finite numbers; with infinite ones only ranks make sense: spearman")
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman correlation of two samples of shape ``(n,)``; tied values share their mean rank.

    Raises:
        ValueError: As :func:`pearson`.

    >>> spearman([1, 2, 3, 4], [1, 8, 27, 64])
    1.0
    """
    a, b = _pair(a, b)
    return pearson(stats.rankdata(a), stats.rankdata(b))


def lds(predicted: ArrayLike, actual: ArrayLike) -> np.ndarray:
    """Linear datamodelling score: for each query the Spearman correlation over ``m`` removed sets.

    Both arguments are changes of the query loss for the set that was dropped, in the sign of a score. Park et al. 2023
    state it for the sets that are kept; a sum over the kept set is a constant minus the sum over the dropped one, so
    with both signs turned the ranks are the same.

    Args:
        predicted: Sum of the scores of each dropped set, shape ``(q, m)``.
        actual: Change after retraining without it, shape ``(q, m)``.

    Returns:
        Shape ``(q,)``; report its mean with :func:`interval` over queries.

    Raises:
        ValueError: If the shapes are not the same ``(q, m)``, or as :func:`pearson` for any query.

    >>> lds([[1, 2, 3], [1, 2, 3]], [[2, 4, 9], [3, 2, 1]])
    array([ 1., -1.])
    """
    predicted, actual = np.asarray(predicted), np.asarray(actual)
    if predicted.ndim != 2 or predicted.shape != actual.shape:
        raise ValueError(f"lds needs two arrays of one shape (q, m), got {predicted.shape} and {actual.shape}")
    return np.array([spearman(p, a) for p, a in zip(predicted, actual, strict=True)])


def top_k_overlap(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """Share of the ``k`` largest of ``a`` that are among the ``k`` largest of ``b``; ties go to the earlier position.

    Raises:
        ValueError: If the shapes differ, a value is NaN, or ``k`` is not between 1 and n.

    >>> top_k_overlap([9, 8, 1, 0], [9, 1, 8, 0], k=2)
    0.5
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape or not 1 <= k <= len(a):
        raise ValueError(f"top_k_overlap needs two samples of one length and 1 <= k <= n, got k={k}")
    top_a, top_b = (np.argsort(-x, kind="stable")[:k] for x in (a, b))
    return len(np.intersect1d(top_a, top_b)) / k


def interval(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    over: str,
    unit: str = "",
    paired: bool = True,
    n_resamples: int = 2000,
    seed: int = 0,
    keep_values: bool = False,
) -> Interval:
    """A statistic with its 95 % bootstrap interval (Efron's BCa through ``scipy.stats.bootstrap``).

    The first axis of each sample is resampled, so hand over one entry for each independent unit: one mean per seed, not
    the test points of all seeds in one list. Where BCa is not defined the percentile interval is given; where all
    resamples agree, ``low = high = value``. The interval is widened to hold ``value`` if need be.

    Args:
        statistic: Called as ``statistic(*samples)``, returns a number.
        samples: Each of shape ``(n, ...)``.
        over: What is resampled, in words.
        unit: Of the statistic.
        paired: Resample the same positions of all samples; otherwise each on its own (they may differ in length).
        n_resamples: Bootstrap resamples.
        seed: Of the resampling; the same seed gives the same interval.
        keep_values: Keep the sample itself in ``values`` (one sample of shape ``(n,)`` only).

    Raises:
        ValueError: If a value is NaN, a sample has fewer than two entries, paired samples differ in length, or over 5 %
            of the resamples leave the statistic undefined.

    >>> interval(np.mean, [1.0, 2.0, 3.0, 4.0], over="seeds")
    Interval(value=2.5, low=1.5, high=3.5, n=4, over='seeds', unit='', values=None)
    """
    arrays = [_numbers(sample) for sample in samples]
    lengths = {len(array) for array in arrays}
    if min(lengths) < 2 or (paired and len(lengths) > 1):
        raise ValueError(
            f"interval over {over}: needs at least 2 and, when paired, equally many; got {sorted(lengths)}"
        )
    if keep_values and (len(arrays) > 1 or arrays[0].ndim > 1):
        raise ValueError("keep_values needs one sample of shape (n,)")
    value = float(statistic(*arrays))
    low, high = _bootstrap(statistic, arrays, paired, n_resamples, seed)
    return Interval(
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=min(lengths),
        over=over,
        unit=unit,
        values=tuple(arrays[0].tolist()) if keep_values else None,
    )


def _bootstrap(
    statistic: Callable[..., float], arrays: list[np.ndarray], paired: bool, n_resamples: int, seed: int
) -> tuple[float, float]:
    def resampled(*rows: np.ndarray) -> float:
        try:
            return float(statistic(*(array[row] for array, row in zip(arrays, rows, strict=True))))
        except ValueError:  # a resample may be constant, and then has no correlation
            return np.nan

    positions = [np.arange(len(array)) for array in arrays]  # resample positions, so that entries may have any shape
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            positions,
            resampled,
            n_resamples=n_resamples,
            paired=paired,
            vectorized=False,
            rng=np.random.default_rng(seed),
        )
    draws = result.bootstrap_distribution
    draws = draws[np.isfinite(draws)]
    if len(draws) < 0.95 * n_resamples:
        raise ValueError(f"the statistic is undefined on {n_resamples - len(draws)} of {n_resamples} resamples")
    low, high = result.confidence_interval
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    a: ArrayLike, b: ArrayLike, over: str, unit: str = "", *, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``a - b`` with its interval; position i of both belongs to the same unit (seed, query, test point).

    For the difference of two correlations over the same points call :func:`interval` with the difference as statistic::

        interval(lambda p, q, t: pearson(p, t) - pearson(q, t), ours, theirs, truth, over="removed examples")

    Raises:
        ValueError: If the shapes differ, or as :func:`interval`.

    >>> paired_difference([3.0, 4.0, 5.0], [2.0, 3.0, 4.0], over="seeds").low
    1.0
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired_difference needs two samples of one shape (n,), got {a.shape} and {b.shape}")
    return interval(np.mean, a - b, over=over, unit=unit, n_resamples=n_resamples, seed=seed, keep_values=True)


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values adjusted for testing them all (Holm, 1979): the i-th smallest of m times ``m - i + 1``, kept monotone.

    Raises:
        ValueError: If a value is NaN or outside [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = _numbers(p_values)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError("holm needs p-values, shape (m,), between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def detection_curve(scores: ArrayLike, is_noisy: ArrayLike) -> Detection:
    """How fast wrong labels turn up when the examples are checked from the largest score down.

    Tied examples count as checked in random order (the expected curve), so their positions do not matter.

    Args:
        scores: Larger = more suspect, shape ``(n,)``.
        is_noisy: Whether the label is wrong, shape ``(n,)``, boolean.

    Raises:
        ValueError: If the shapes differ, a score is NaN, or no label is wrong.

    >>> curve = detection_curve([0.9, 0.1, 0.8, 0.2], [True, False, True, False])
    >>> curve.found, curve.auc
    (array([0. , 0.5, 1. , 1. , 1. ]), 0.75)
    """
    scores, noisy = _numbers(scores), np.asarray(is_noisy, dtype=bool)
    if scores.ndim != 1 or scores.shape != noisy.shape or not noisy.any():
        raise ValueError("detection_curve needs scores and flags of one shape (n,), and at least one wrong label")
    _, block = np.unique(-scores, return_inverse=True)  # blocks of tied scores, most suspect first
    ends = np.concatenate([[0], np.cumsum(np.bincount(block))])
    hits = np.concatenate([[0], np.cumsum(np.bincount(block, weights=noisy))])
    count = np.arange(len(scores) + 1)
    checked, found = count / len(scores), np.interp(count, ends, hits) / noisy.sum()
    return Detection(checked, found, float(np.trapezoid(found, checked)))


def _numbers(x: ArrayLike) -> np.ndarray:
    array = np.asarray(x, dtype=float)
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of {array.size} numbers are NaN")
    return array


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _numbers(a), _numbers(b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"a correlation needs two samples of one shape (n,), got {a.shape} and {b.shape}")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        raise ValueError("a correlation needs two samples that vary")
    return a, b
