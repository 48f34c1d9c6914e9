r"""The linear datamodelling score of deletions: random subsets leave, no method chooses them.

For each test point the rank correlation, over the subsets, of the sum of a subset's scores and of the change of the
query loss when it leaves (Park et al. 2023). Scores: the predicted change of the query loss when the example is
removed, so a good one is positive. The bootstrap draws test points, and subsets once for all of them; every method sees
the same draws.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from clif_kit.evaluate import Interval

RESAMPLES = 1000
BLOCK = 50  # resamples ranked at once


def predicted(scores: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of the scores over each set: scores ``(tests, n)``, result ``(tests, m)``.

    >>> predicted(np.array([[1.0, 2.0, 4.0]]), [np.array([0, 2]), np.array([1])])
    array([[5., 2.]])
    """
    return np.stack([np.asarray(scores, dtype=float)[:, chosen].sum(1) for chosen in sets], axis=1)


def judge_subsets(
    scores: Mapping[str, np.ndarray], sets: Sequence[np.ndarray], actual: np.ndarray, where: str, drop: str,
    pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, Interval]:  # fmt: skip
    """LDS of every method, its gain over others, and the noise ceiling.

    Args:
        scores: By method, ``(tests, n)``.
        sets: The m subsets that left, as they were planned.
        actual: Changes of the query loss, ``(seeds, tests, m)``, from :func:`clif_kit.deletion.subset_changes`.
        where: Data and model, as in ``lds/tr_we/agnews_cnn/drop05``.
        drop: Name of the share, ``"drop05"``.
        pairs: (a, b): how much larger is that of a?

    Returns:
        ``lds/<method>/<where>/<drop>``; ``lds_gain/<a>_minus_<b>/...``; with two seeds or more ``lds/ceiling/...``, see
        :func:`ceiling`. A method that gives all subsets the same sum ranks none: 0.

    Raises:
        ValueError: If shapes do not fit, or a number is NaN.
    """
    guesses = {name: predicted(values, sets) for name, values in scores.items()}
    truth = np.asarray(actual, dtype=float).mean(0)
    if wrong := [name for name, guess in guesses.items() if guess.shape != truth.shape or np.isnan(guess).any()]:
        raise ValueError(f"scores of {', '.join(wrong)} are NaN or not of {truth.shape[0]} tests and {len(sets)} sets")
    if np.isnan(truth).any() or min(truth.shape) < 2:
        raise ValueError(f"needs two test points and two subsets or more, without NaN, got {truth.shape}")
    found = {name: _both([(guess, truth)]) for name, guess in guesses.items()}
    out = {f"lds/{name}/{where}/{drop}": _interval(*pair) for name, pair in found.items()}
    for a, b in pairs:
        gain = (x - y for x, y in zip(found[a], found[b], strict=True))
        out[f"lds_gain/{a}_minus_{b}/{where}/{drop}"] = _interval(*gain)
    return out | ({f"lds/ceiling/{where}/{drop}": ceiling(actual)} if len(actual) > 1 else {})


def ceiling(actual: np.ndarray, largest: int = 10) -> Interval:
    r"""The LDS that the expected change itself would reach against the mean over these seeds.

    Halves of the seeds are correlated (all ways to split, at most ``largest`` of them); Spearman and Brown's formula
    takes the correlation r of two halves of h seeds to the reliability of all S, the ceiling is its square root (exact
    for ranks only in the limit):

    .. math:: \sqrt{\frac{g r}{1 + (g - 1) r}}, \qquad g = S / h

    Args:
        actual: Changes, ``(seeds, tests, m)``, two seeds or more.
        largest: Splits at most.
    """
    seeds, half = len(actual), len(actual) // 2
    chosen = [(a, b) for a, b in combinations(combinations(range(seeds), half), 2) if not set(a) & set(b)]
    if len(chosen) > largest:
        chosen = [chosen[i] for i in np.random.default_rng(0).choice(len(chosen), largest, replace=False)]
    r, sample = _both([(actual[list(a)].mean(0), actual[list(b)].mean(0)) for a, b in chosen])

    def full(mean_r: np.ndarray) -> np.ndarray:
        mean_r, g = np.maximum(mean_r, 0.0), seeds / half
        return np.sqrt(g * mean_r / (1 + (g - 1) * mean_r))

    return _interval(r, sample, full)


def _both(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over pairs of the rank correlation along the subsets: ``(tests,)``, and its means over resamples."""
    tests, m = pairs[0][0].shape
    rng = np.random.default_rng(0)
    subsets = rng.integers(m, size=(RESAMPLES, m))
    weights = rng.multinomial(tests, np.full(tests, 1 / tests), size=RESAMPLES) / tests
    value = np.mean([_rank_correlation(a, b) for a, b in pairs], axis=0)
    sample = [
        np.mean([_rank_correlation(a[:, rows], b[:, rows]) for a, b in pairs], axis=0)  # (tests, block)
        for rows in np.array_split(subsets, -(-RESAMPLES // BLOCK))
    ]
    return value, (np.concatenate(sample, axis=1) * weights.T).sum(0)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; 0 where one side is constant."""
    x, y = (r - r.mean(-1, keepdims=True) for r in (stats.rankdata(side, axis=-1) for side in (a, b)))
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.zeros(size.shape), where=size > 0)


def _interval(
    values: np.ndarray, sample: np.ndarray, turn: Callable[[np.ndarray], np.ndarray] | None = None
) -> Interval:
    """Mean of one number a test point; ``turn`` is applied to the mean, and then there are no ``values``."""
    turn_all = turn or np.asarray
    value = float(turn_all(values.mean()))
    low, high = np.percentile(turn_all(sample), [2.5, 97.5])
    kept = None if turn else tuple(values.tolist())
    return Interval(value, min(float(low), value), max(float(high), value), len(values), "test points", "", kept)
