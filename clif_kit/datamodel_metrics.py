r"""Datamodels in numbers: how well they predict, whom their weights name, what a removal does, with intervals.

Weights are scores in the book's sign: the predicted change of minus the margin when the training example is removed;
positive = helpful. Intervals are over test points, and comparisons are paired.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from clif_kit.datamodels import r2
from clif_kit.evaluate import Interval, interval, spearman

Metrics = dict[str, Interval | float]
POINTS = "test points"


def prediction_metrics(
    predicted: Mapping[str, ArrayLike], actual: ArrayLike, tag: str, *, against: str = "lasso"
) -> Metrics:
    """R2 and Spearman's correlation over fresh models, means over test points.

    Args:
        predicted: By method, ``(m, t)``; a method named ``constant`` has no correlation.
        actual: Margins of fresh models, ``(m, t)``.
        tag: Data, model and subset size, last part of each key.
        against: What the others are compared with.

    Returns:
        ``r2/<method>_fresh/<tag>``, ``spearman/<method>_fresh/<tag>``, ``r2_gain/<against>_minus_<method>/<tag>``.
    """
    actual = np.asarray(actual, dtype=float)
    out: Metrics = {}
    truth = torch.from_numpy(actual)
    each = {name: r2(torch.as_tensor(value, dtype=truth.dtype), truth).numpy() for name, value in predicted.items()}
    for method, value in predicted.items():
        out[f"r2/{method}_fresh/{tag}"] = interval(np.mean, each[method], over=POINTS)
        if method != "constant":
            ranks = [spearman(p, a) for p, a in zip(np.asarray(value, dtype=float).T, actual.T, strict=True)]
            out[f"spearman/{method}_fresh/{tag}"] = interval(np.mean, ranks, over=POINTS)
        if method != against:
            out[f"r2_gain/{against}_minus_{method}/{tag}"] = _gain(each[against], each[method])
    return out


def ceiling(first: ArrayLike, second: ArrayLike, tag: str) -> Metrics:
    """``r2/ceiling/<tag>``: how much of the variance any function of the subset could predict.

    The same subsets trained twice with other seeds: their correlation is the share of the variance that the subset
    makes; the rest is the start and the order of the minibatches.

    Args:
        first: Margins, ``(m, t)``.
        second: Margins with other seeds, ``(m, t)``.
        tag: Last part of the key.
    """
    pairs = zip(np.asarray(first, dtype=float).T, np.asarray(second, dtype=float).T, strict=True)
    each = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    return {f"r2/ceiling/{tag}": interval(np.mean, each, over=POINTS)}


def top(scores: ArrayLike, k: int) -> np.ndarray:
    """The k training examples with the largest scores of each test point, ``(t, k)``, largest first.

    Raises:
        ValueError: If k is not between 1 and n.

    >>> top([[0.1, 0.9, 0.5]], 2).tolist()
    [[1, 2]]
    """
    scores = np.asarray(scores, dtype=float)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}; with {scores.shape[1]} training examples it lies between 1 and that")
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def same_class_metrics(
    scores: Mapping[str, ArrayLike], y: ArrayLike, y_test: ArrayLike, k: int, tag: str, *, against: str = "lasso"
) -> Metrics:
    """How often the k training examples with the largest scores are of the test point's class.

    Args:
        scores: By method, ``(t, n)``.
        y: Training classes, ``(n,)``.
        y_test: Test classes, ``(t,)``.
        k: Training examples a test point.
        tag: Last part of each key.
        against: What the others are compared with.

    Returns:
        ``same_class/<method>/<tag>`` and ``same_class_gain/<against>_minus_<method>/<tag>``.
    """
    y, y_test = np.asarray(y), np.asarray(y_test)
    each = {name: (y[top(value, k)] == y_test[:, None]).mean(1) for name, value in scores.items()}
    return compared("same_class", each, tag, against, unit="share")


def concentration(weights: ArrayLike, k: int = 10) -> np.ndarray:
    """Share of the positive weight that the k largest weights hold, ``(t,)``: 1 when k examples do it all.

    >>> concentration([[4.0, 3.0, 2.0, 1.0, -5.0]], k=2)
    array([0.7])
    """
    positive = np.sort(np.maximum(np.asarray(weights, dtype=float), 0), axis=1)[:, ::-1]
    return positive[:, :k].sum(1) / np.maximum(positive.sum(1), 1e-12)


def size_metrics(by_share: Mapping[float, ArrayLike], name: str, *, k: int = 10) -> Metrics:
    """Concentration of the weights for each subset size, and its rank correlation with the size.

    Args:
        by_share: Weights ``(t, n)`` for each share of the training set that a subset holds.
        name: Data and model.
        k: See :func:`concentration`.

    Returns:
        ``concentration/lasso/<name>/alpha<per cent>`` and ``spearman/alpha_concentration/<name>``.
    """
    each = {share: concentration(weights, k) for share, weights in sorted(by_share.items())}
    out: Metrics = {
        f"concentration/lasso/{name}/alpha{round(100 * share)}": interval(np.mean, values, over=POINTS, unit="share")
        for share, values in each.items()
    }
    table = np.stack(list(each.values()), axis=1)  # (t, sizes)
    ranks = [stats.spearmanr(list(each), row).statistic if np.ptp(row) else 0.0 for row in table]
    return out | {f"spearman/alpha_concentration/{name}": interval(np.mean, ranks, over=POINTS)}


def removal_metrics(effects: Mapping[str, ArrayLike], name: str, k: int, *, against: str = "lasso") -> Metrics:
    """How far the margin fell after the k top training examples were removed and the model was trained again.

    Args:
        effects: By method, fall of the margin, ``(t,)``: positive = the removed examples helped.
        name: Data and model.
        k: Examples removed.
        against: What the others are compared with.

    Returns:
        ``removal/<method>/<name>/top<k>`` and ``removal_gain/<against>_minus_<method>/<name>/top<k>``, in margins.
    """
    return compared("removal", {m: np.asarray(v) for m, v in effects.items()}, f"{name}/top{k}", against, unit="margin")


def compared(
    quantity: str, each: Mapping[str, np.ndarray], tag: str, against: str, *, over: str = POINTS, unit: str = ""
) -> Metrics:
    """``<quantity>/<method>/<tag>`` and ``<quantity>_gain/<against>_minus_<method>/<tag>`` of one value a unit.

    >>> found = compared("x", {"lasso": np.array([1.0, 2.0]), "b": np.array([0.0, 1.0])}, "t", "lasso")
    >>> found["x_gain/lasso_minus_b/t"].value
    1.0
    """
    out: Metrics = {}
    for name, values in each.items():
        out[f"{quantity}/{name}/{tag}"] = interval(np.mean, values, over=over, unit=unit)
        if name != against:
            out[f"{quantity}_gain/{against}_minus_{name}/{tag}"] = _gain(each[against], values, over, unit)
    return out


def _gain(a: np.ndarray, b: np.ndarray, over: str = POINTS, unit: str = "") -> Interval:
    return interval(np.mean, np.asarray(a) - np.asarray(b), over=over, unit=unit)
