r"""Whether scores find what was planted: near-duplicates in the training set, and groups within a class.

A leak is found when the training example with the largest score of a test point is its planted near-duplicate; scores
compete by average precision, intervals over test points. Groups are found when two clusters of the rows of scores are
the planted two ways of drawing a class; the adjusted Rand index is 1 then and 0 by chance, intervals over classes.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from clif_kit.datamodel_metrics import POINTS, Metrics, compared, top
from clif_kit.evaluate import interval


def average_precision(strength: ArrayLike, hit: ArrayLike, planted: ArrayLike) -> float:
    """Mean precision at the places of the planted pairs that were found; a pair that was not found counts zero.

    Each test point proposes one training example with some strength. Sorted by strength, the precision at a hit is the
    share of hits so far. Ties go to the earlier position.

    Args:
        strength: Larger = more suspect, ``(t,)``.
        hit: Whether the proposed pair is the planted one, ``(t,)``.
        planted: Whether the test point has a planted partner, ``(t,)``.

    Raises:
        ValueError: If nothing is planted.

    >>> average_precision([3.0, 2.0, 1.0], [True, False, True], [True, False, True])
    0.8333333333333333
    """
    planted = np.asarray(planted, dtype=bool)
    if not planted.any():
        raise ValueError("no near-duplicate is planted, so none can be found: leaks must be 1 or more")
    order = np.argsort(-np.asarray(strength, dtype=float), kind="stable")
    hits = (np.asarray(hit, dtype=bool) & planted)[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / planted.sum())


def proposals(scores: ArrayLike, twin: ArrayLike, *, ratio: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """For each test point its training example with the largest score: how strong, and whether it is the planted one.

    Args:
        scores: ``(t, n)``; for ``ratio`` minus distances, which are not positive.
        twin: The planted partner or -1, ``(t,)``.
        ratio: Strength is the second-smallest distance over the smallest one, instead of the score.

    >>> proposals([[-1.0, -4.0], [-3.0, -2.0]], [0, -1], ratio=True)
    (array([4. , 1.5]), array([ True, False]))
    """
    scores = np.asarray(scores, dtype=float)
    best = top(scores, 2)
    first, second = np.take_along_axis(scores, best, axis=1).T
    strength = second / np.minimum(first, -1e-12) if ratio else first
    return strength, best[:, 0] == np.asarray(twin)


def leak_metrics(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], twin: ArrayLike, tag: str, *, against: str = "lasso"
) -> Metrics:
    """Average precision of the planted near-duplicates, and precision among as many proposals as are planted.

    Args:
        found: By method, from :func:`proposals`.
        twin: The planted partner or -1, ``(t,)``.
        tag: Last part of each key.
        against: What the others are compared with.

    Returns:
        ``average_precision/<method>/<tag>``, ``precision_at_planted/<method>/<tag>`` (recall is the same number) and
        ``average_precision_gain/<against>_minus_<method>/<tag>``.
    """
    planted = np.asarray(twin) >= 0
    out: Metrics = {}
    for name, (strength, hit) in found.items():
        out[f"average_precision/{name}/{tag}"] = interval(average_precision, strength, hit, planted, over=POINTS)
        out[f"precision_at_planted/{name}/{tag}"] = interval(_precision, strength, hit, planted, over=POINTS)
        if name != against:

            def difference(*columns: np.ndarray) -> float:
                a, a_hit, b, b_hit, mask = columns
                return average_precision(a, a_hit, mask) - average_precision(b, b_hit, mask)

            key = f"average_precision_gain/{against}_minus_{name}/{tag}"
            out[key] = interval(difference, *found[against], strength, hit, planted, over=POINTS)
    return out


def _precision(strength: np.ndarray, hit: np.ndarray, planted: np.ndarray) -> float:
    mask = np.asarray(planted, dtype=bool)
    first = np.argsort(-strength, kind="stable")[: mask.sum()]
    return float((np.asarray(hit, dtype=bool) & mask)[first].mean()) if len(first) else 0.0


def cluster_ari(features: ArrayLike, groups: ArrayLike, classes: ArrayLike, *, seeds: int = 5) -> np.ndarray:
    """Adjusted Rand index of two k-means clusters against two planted groups, within each class.

    Args:
        features: ``(t, d)``; rows are scaled to length one first, so that only directions count.
        groups: The planted group, ``(t,)``.
        classes: Which class a test point has, ``(t,)``; the clustering never sees two classes at once.
        seeds: Starts of k-means that are averaged.

    Returns:
        One number a class that has both groups and four points or more, ``(c,)``: 1 is perfect, 0 is chance.

    Raises:
        ValueError: If fewer than two classes have both groups.
    """
    x, groups, classes = np.asarray(features, dtype=float), np.asarray(groups), np.asarray(classes)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    out = []
    for c in np.unique(classes):
        here = classes == c
        if here.sum() >= 4 and len(np.unique(groups[here])) == 2:
            labels = [KMeans(2, n_init=10, random_state=s).fit_predict(x[here]) for s in range(seeds)]
            out.append(np.mean([adjusted_rand_score(groups[here], label) for label in labels]))
    if len(out) < 2:
        raise ValueError("clusters need two classes or more with four test points and both groups: raise n_test")
    return np.array(out)


def cluster_metrics(each: Mapping[str, ArrayLike], tag: str, *, against: str = "lasso") -> Metrics:
    """``ari/<method>/<tag>`` and ``ari_gain/<against>_minus_<method>/<tag>``, intervals over classes.

    Args:
        each: By method, from :func:`cluster_ari`, ``(c,)``.
        tag: Last part of each key.
        against: What the others are compared with.
    """
    return compared("ari", {k: np.asarray(v, dtype=float) for k, v in each.items()}, tag, against, over="classes")
