r"""What deletions say about a method: AUC-DEL, paired gains, curves; all from one bootstrap over test points and seeds.

.. math:: \mathrm{AUC}_\pm = \tfrac1m\sum_k \mathrm{DEL}_\pm(k), \qquad
          \mathrm{gap} = \tfrac12\left(\mathrm{AUC}_- - \mathrm{AUC}_+\right)

An effect is what :func:`clif_kit.deletion.changes` gives: ``(2, sizes, tests, seeds)``, the change of the probability
of the true class, proponents first. The gap is how far a method moves predictions the right way, both signs together;
a gain is a difference of gaps, positive when the first is better. Two runs are compared by putting an effect of each
into one dictionary, ``{"frozen": ..., "unfrozen": ...}``, if their test points and seeds are the same.

The bootstrap has two levels: test points are drawn, and seeds are drawn once for all of them, since all test points
share the full-data model of a seed. (Drawing seeds anew for each test point would take what a seed does to all of them
for noise that averages out.) Every statistic sees the same draws, so that differences are paired.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from clif_kit.deletion import Plan
from clif_kit.evaluate import Interval, holm, interval, spearman

RESAMPLES = 2000
CAP = 100.0  # a ratio to a rival that moves nothing the right way


@lru_cache(maxsize=4)
def draws(tests: int, seeds: int, n_resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Weights of the resamples, ``(n_resamples, tests, seeds)``, each summing to 1; the same for the same arguments.

    Raises:
        ValueError: If there are fewer than two test points or seeds.

    >>> draws(2, 3).shape, round(float(draws(2, 3)[7].sum()), 12)
    ((2000, 2, 3), 1.0)
    """
    if min(tests, seeds) < 2:
        raise ValueError(f"an interval over test points and seeds needs two of each, got {tests} and {seeds}")
    rng = np.random.default_rng(seed)
    by_test, by_seed = (rng.multinomial(k, np.full(k, 1 / k), size=n_resamples) / k for k in (tests, seeds))
    weights = by_test[:, :, None] * by_seed[:, None, :]
    weights.flags.writeable = False  # it is shared
    return weights


def resampled(effect: np.ndarray) -> np.ndarray:
    """Mean over ``(..., tests, seeds)`` in each resample, ``(..., n_resamples)``."""
    weights = draws(*effect.shape[-2:])
    return effect.reshape(*effect.shape[:-2], -1) @ weights.reshape(len(weights), -1).T


def mean_interval(effect: np.ndarray) -> Interval:
    """Mean of ``(tests, seeds)`` with its 95 % percentile interval; ``values`` has the mean of each test point.

    >>> mean_interval(np.array([[0.0, 0.5], [0.5, 1.0]]))
    Interval(value=0.5, low=0.0, high=1.0, n=2, over='test points', unit='probability', values=(0.25, 0.75))
    """
    return _interval(effect.mean(), resampled(effect), effect.shape[0], "probability", effect.mean(1))


def _interval(
    value: float, sample: np.ndarray, n: int, unit: str, values: np.ndarray | None = None, over: str = "test points"
) -> Interval:
    if not (np.isfinite(value) and np.isfinite(sample).all()):
        raise ValueError("an effect is NaN or infinite: a retraining diverged?")
    low, high = np.percentile(sample, [2.5, 97.5])
    kept = None if values is None else tuple(values.tolist())
    return Interval(float(value), float(min(low, value)), float(max(high, value)), n, over, unit, kept)


# ---- AUC-DEL


def gap(effect: np.ndarray) -> np.ndarray:
    """Half of AUC-DEL- minus AUC-DEL+, ``(tests, seeds)``: positive = predictions move the right way."""
    plus, minus = effect.mean(1)
    return (minus - plus) / 2


def judge(
    effects: Mapping[str, np.ndarray], where: str, pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, Interval | float]:
    """AUC-DEL of every method, and who beats whom.

    Args:
        effects: By method, ``(2, sizes, tests, seeds)``, all over the same k's, test points and seeds.
        where: Data and model, as in ``auc_del_plus/tr_we/agnews_cnn``.
        pairs: (a, b): the claim is that a is better.

    Returns:
        ``auc_del_plus``, ``auc_del_minus`` and ``auc_del_gap`` of each method; of each pair ``auc_del_gain``,
        ``auc_del_plus_gain`` and ``auc_del_minus_gain/<a>_minus_<b>/<where>``, positive when a is better (proponents
        turned), and ``p/auc_del_gain/...``: two-sided, from the bootstrap, Holm's correction over the pairs.

    Raises:
        ValueError: If methods differ in k's, test points or seeds, or as :func:`draws`.
    """
    if len(shapes := {effect.shape for effect in effects.values()}) > 1:
        raise ValueError(f"methods to compare need the same k's, test points and seeds, got {sorted(shapes)}")
    out: dict[str, Interval | float] = {}
    for name, effect in effects.items():
        plus, minus = effect.mean(1)
        for what, values in (("plus", plus), ("minus", minus), ("gap", gap(effect))):
            out[f"auc_del_{what}/{name}/{where}"] = mean_interval(values)
    p = []
    for a, b in pairs:
        plus, minus = effects[a].mean(1) - effects[b].mean(1)
        both = gap(effects[a]) - gap(effects[b])
        for what, values in (("gain", both), ("plus_gain", -plus), ("minus_gain", minus)):
            out[f"auc_del_{what}/{a}_minus_{b}/{where}"] = mean_interval(values)
        p.append(_p_value(resampled(both)))
    adjusted = holm(p) if p else []
    return out | {f"p/auc_del_gain/{a}_minus_{b}/{where}": float(v) for (a, b), v in zip(pairs, adjusted, strict=True)}


def counts(plan: Plan, where: str) -> dict[str, int]:
    """How much was run: training examples, test points, first and last k, retrainings a set, models in all.

    Returns:
        ``n/train/<where>`` and so on.
    """
    found = {
        "train": plan.n,
        "tests": len(plan.points),
        "k_first": plan.sizes[0],
        "k_last": plan.sizes[-1],
        "retrainings": len(plan.seeds),
        "models": plan.retrainings,
    }
    return {f"n/{what}/{where}": number for what, number in found.items()}


def _p_value(sample: np.ndarray) -> float:
    tail = min((sample <= 0).sum(), (sample >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(sample) + 1)))


def curves(effects: Mapping[str, np.ndarray]) -> dict[tuple[str, str], list[Interval]]:
    """The deletion curves: by method and ``"plus"`` or ``"minus"``, DEL at each k with its interval."""
    return {
        (name, sign): [mean_interval(values) for values in side]
        for name, effect in effects.items()
        for sign, side in zip(("plus", "minus"), effect, strict=True)
    }


def size_gain(
    effects: Mapping[str, np.ndarray], sizes: Sequence[int], first: tuple[str, int], second: tuple[str, int], where: str
) -> dict[str, Interval]:
    """Does removing few by one method move more than removing many by another? ``("tr_we", 10), ("tr_last", 100)``.

    Returns:
        ``del_plus_gain`` and ``del_minus_gain/tr_we_k10_minus_tr_last_k100/<where>``, positive when the first moves
        the prediction further the right way.

    Raises:
        ValueError: If a k was not run.
    """
    if absent := [k for _, k in (first, second) if k not in sizes]:
        raise ValueError(f"k = {absent[0]} was not run, only {', '.join(map(str, sizes))}")
    a, b = (effects[name][:, list(sizes).index(k)] for name, k in (first, second))  # (2, tests, seeds)
    label = f"{first[0]}_k{first[1]}_minus_{second[0]}_k{second[1]}/{where}"
    turned = {"plus": b[0] - a[0], "minus": a[1] - b[1]}
    return {f"del_{sign}_gain/{label}": mean_interval(values) for sign, values in turned.items()}


# ---- statistics that are not means


def gap_ratio(effects: Mapping[str, np.ndarray], name: str, others: Sequence[str]) -> Interval:
    """How many times further a method moves predictions the right way than the best of the others: a ratio of gaps.

    Which of the others is best is asked in every resample. Where none moves anything the right way the ratio is
    :data:`CAP`, or 0 if the method does not either; it never leaves plus or minus :data:`CAP`.
    """

    def ratio(gaps: np.ndarray) -> np.ndarray:
        top, rival = gaps[0], gaps[1:].max(0)
        quotient = np.divide(top, rival, out=np.where(top > 0, CAP, 0.0), where=rival > 0)
        return np.clip(quotient, -CAP, CAP)

    gaps = np.stack([gap(effects[one]) for one in (name, *others)])
    return _interval(ratio(gaps.mean((1, 2))), ratio(resampled(gaps)), gaps.shape[1], "ratio")


def largest_change(effects: Mapping[str, np.ndarray]) -> Interval:
    """Largest size of AUC-DEL over all methods and signs: does any deletion change anything? Noise makes it larger."""
    auc = np.concatenate([effect.mean(1) for effect in effects.values()])  # (2 methods, tests, seeds)
    sample = np.abs(resampled(auc)).max(0)
    return _interval(np.abs(auc.mean((1, 2))).max(), sample, auc.shape[1], "probability")


def noise_ratio(full: np.ndarray, effect: np.ndarray) -> Interval:
    """Spread of single full-data models over the mean effect of a small random set; above 1, one model says little.

    The standard deviation over seeds of p(true class), averaged over test points, divided by the mean size of the
    effect once it is averaged over seeds. What noise is left in that size makes the ratio smaller.

    Args:
        full: p(true class) of the full-data models, ``(seeds, tests)``.
        effect: Change when random examples leave, ``(tests, seeds)``: one sign and k of the control.
    """

    def statistic(spread: np.ndarray, size: np.ndarray) -> float:
        return float(spread.mean() / size.mean())

    spread, size = np.std(full, axis=0, ddof=1), np.abs(effect.mean(1))
    return interval(statistic, spread, size, over="test points", unit="ratio")


def loss_correlation(x: Sequence[float], effects: Sequence[np.ndarray]) -> Interval:
    """Rank correlation of a number a layer (depth, cancellation) with minus the gap, with its interval.

    Positive: the larger the number, the worse the deletions. The numbers are taken as known; ``n`` counts layers, the
    interval is over test points and seeds, so it says nothing about other layers or models.

    Args:
        x: One number a layer, or a layer and model.
        effects: For each, ``(2, sizes, tests, seeds)``.

    Raises:
        ValueError: If there are fewer than three, or they do not vary.
    """
    if len(x) != len(effects) or len(x) < 3:
        raise ValueError(f"a rank correlation over layers needs three or more, got {len(x)} and {len(effects)}")
    gaps = [gap(effect) for effect in effects]
    sample = np.stack([resampled(one) for one in gaps])  # (layers, n_resamples)
    found = np.array([spearman(x, -column) for column in sample.T if np.ptp(column) > 0])
    return _interval(spearman(x, [-one.mean() for one in gaps]), found, len(x), "rho", over="layers")
