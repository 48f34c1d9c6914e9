"""Who leaves first: rankings of the candidates of each test point, by a score and by chance.

Every ranking is ``(2, tests, largest k)``: the first axis is :data:`SIGNS`, proponents first and opponents first. The
set of k is its first k, so that smaller sets lie in larger ones. :mod:`clif_kit.deletion` removes them.

Sign of a score: the predicted change of the query loss when the example is removed, so positive = proponent. Here the
query is minus the probability of the true class, or its cross-entropy; the paper prints its dot products with a minus
and means them without (Yeh et al. 2022, equations 2-4).
"""

from collections.abc import Sequence

import numpy as np

SIGNS = ("plus", "minus")


def rank(scores: np.ndarray, largest: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """Proponents by falling score, opponents by rising score; ties go to the smaller index.

    Args:
        scores: ``(tests, n)``, positive = proponent.
        largest: Length of the ranking: the largest k.
        candidates: ``(tests, n)`` bool, who may leave for each test point. None: everybody.

    Returns:
        Indices of training examples, ``(2, tests, largest)``; see :data:`SIGNS`.

    Raises:
        ValueError: If a score is NaN, shapes differ, or a test point has fewer candidates than ``largest``.

    >>> rank(np.array([[0.1, -3.0, 2.0, 0.1]]), 2)[:, 0]
    array([[2, 0],
           [1, 0]])
    """
    scores = _scores(scores)
    pools = _pools(scores.shape, largest, candidates)
    return np.stack(
        [
            [pool[np.argsort(sign * s[pool], kind="stable")[:largest]] for pool, s in zip(pools, scores, strict=True)]
            for sign in (-1, 1)
        ]
    )


def tied_share(scores: np.ndarray, sizes: Sequence[int], candidates: np.ndarray | None = None) -> float:
    """Share of all cuts (sign, test point, k) between two equal scores: there the index decides who leaves.

    >>> tied_share(np.array([[3.0, 0.0, 0.0, -1.0]]), [1, 2])
    0.5
    """
    scores = _scores(scores)
    pools = _pools(scores.shape, max(sizes), candidates)
    tied = []
    for pool, s in zip(pools, scores, strict=True):
        rising = np.sort(s[pool])
        cuts = (*sizes, *(len(pool) - k for k in sizes))
        tied += [0 < cut < len(pool) and rising[cut - 1] == rising[cut] for cut in cuts]
    return float(np.mean(tied))


def random_rank(
    shape: tuple[int, int], largest: int, candidates: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Control: candidates in random order, the same for both signs (a random set is neither), ``(2, tests, largest)``.

    A test point's order depends on ``seed`` and its row alone, and smaller sets lie in larger ones.

    Args:
        shape: ``(tests, n)``.
        largest: The largest k.
        candidates: As in :func:`rank`.
        seed: Of the order.

    Raises:
        ValueError: As :func:`rank`.
    """
    pools = _pools(shape, largest, candidates)
    order = np.stack([_shuffled(pool, shape[1], seed, t)[:largest] for t, pool in enumerate(pools)])
    return np.stack([order, order])


def same_class_rank(
    labels: np.ndarray, test_labels: np.ndarray, largest: int, candidates: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Control: random examples of the test point's class as proponents, of other classes as opponents.

    The order is that of :func:`random_rank` with the same seed, thinned out (common random numbers).

    Args:
        labels: Classes of the training examples, ``(n,)``.
        test_labels: Classes of the test points, ``(tests,)``.
        largest: The largest k.
        candidates: As in :func:`rank`.
        seed: Of the order.

    Returns:
        ``(2, tests, largest)``.

    Raises:
        ValueError: If a test point has too few candidates in or outside its class.

    >>> same_class_rank(np.array([0, 1, 0, 1]), np.array([1]), 2)[:, 0].tolist() in ([[1, 3], [0, 2]], [[3, 1], [0, 2]],
    ...     [[1, 3], [2, 0]], [[3, 1], [2, 0]])
    True
    """
    labels, test_labels = np.asarray(labels), np.asarray(test_labels)
    allowed = _allowed((len(test_labels), len(labels)), candidates)
    same = labels == test_labels[:, None]
    sides = [(same, "of its own class"), (~same, "of other classes")]
    pools = [_pools(same.shape, largest, allowed & side, f" {what}") for side, what in sides]
    return np.stack([[_shuffled(p, len(labels), seed, t)[:largest] for t, p in enumerate(side)] for side in pools])


def random_subsets(n: int, share: float, m: int, seed: int = 0) -> list[np.ndarray]:
    """``m`` random sets of ``share`` of ``n`` examples, sorted, without repeats: the removals of an LDS.

    >>> [len(chosen) for chosen in random_subsets(100, 0.05, 3)]
    [5, 5, 5]
    """
    rng = np.random.default_rng([seed, round(share * 1e6)])
    return [np.sort(rng.choice(n, round(share * n), replace=False)) for _ in range(m)]


def _scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or np.isnan(scores).any():
        raise ValueError(f"scores must be (tests, n) without NaN, got {scores.shape}, {np.isnan(scores).sum()} NaN")
    return scores


def _allowed(shape: tuple[int, int], candidates: np.ndarray | None) -> np.ndarray:
    allowed = np.ones(shape, dtype=bool) if candidates is None else np.asarray(candidates)
    if allowed.shape != tuple(shape) or allowed.dtype != bool:
        raise ValueError(f"candidates must be a mask (tests, n) = {tuple(shape)}, got {allowed.dtype} {allowed.shape}")
    return allowed


def _pools(shape: tuple[int, int], largest: int, candidates: np.ndarray | None, what: str = "") -> list[np.ndarray]:
    """Indices of the candidates of each test point."""
    pools = [np.flatnonzero(row) for row in _allowed(shape, candidates)]
    for t, pool in enumerate(pools):
        if not 1 <= largest <= len(pool):
            raise ValueError(f"k = {largest}, but test point {t} has {len(pool)} candidates{what}: take a smaller k")
    return pools


def _shuffled(pool: np.ndarray, n: int, seed: int, t: int) -> np.ndarray:
    order = np.random.default_rng([seed, t]).permutation(n)
    return order[np.isin(order, pool)]
