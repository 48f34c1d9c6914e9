r"""All pairs of test and training points by five estimators, and how well they agree with retraining.

For the clustering experiment of :mod:`clif_kit.mog`. Its net has 228 parameters, so every Hessian is dense.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import hessian, vmap

from clif_kit.evaluate import Interval, interval, paired_difference
from clif_kit.gradients import per_example_gradients, query_gradient, with_l2
from clif_kit.influence import cross_loss_influence, gradient_dot
from clif_kit.models import clustering_loss, cross_entropy
from clif_kit.mog import Task
from clif_kit.solvers import Solve, lissa_solve, pseudo_inverse

Scores = Mapping[str, Mapping[str, Tensor]]  # model -> estimator -> (q, n)
Found = dict[str, np.ndarray]
ESTIMATORS = ("dot", "alg1", "lissa_published", "lissa", "exact")
AGREEMENT = ("r", "slope", "magnitude_log10", "overlap_top10")


def estimates(
    task: Task, theta: Tensor, target: Tensor, y: Tensor, *, l2: float = 0.0, factor: float = 1.0
) -> dict[str, Tensor]:
    r"""All pairs of test and training points by five estimators of :math:`\nabla f^\top H^{-1} \nabla\ell_i / n`.

    ``dot``: no inverse. ``alg1``: Algorithm 1 of the paper's supplement read literally,
    :math:`\nabla f^\top H_i \nabla\ell_i / n` with the Hessian of the one example. ``lissa_published``: one ordered
    pass of the public code. ``lissa``: the recursion run to its end on the mean Hessian and divided by its scale.
    ``exact``: the pseudo-inverse, without damping (turning the encodings changes no output, so H has null directions).

    Sign: positive = helpful. The public code's influences are the negatives of these.

    Args:
        task: Data; every point is a test point too.
        theta: The trained model, ``(p,)``.
        target: The training target, held fixed, ``(n, 3)``.
        y: Labels of the query loss, ``(n,)``.
        l2: Penalty of the training loss; the query has none.
        factor: Multiplies the training loss: 1/3 for clustering in the public code, which averages over the clusters.

    Returns:
        Estimator name to ``(n_test, n_train)``, nats per removed point (``dot`` and ``alg1`` up to a factor).
    """
    plain, params = clustering_loss(task.net), task.params(theta)
    losses = with_l2(lambda *args: factor * plain(*args), l2)
    g = per_example_gradients(losses, params, (task.x, target))  # (n, p)
    v = query_gradient(lambda p: cross_entropy(task.net)(p, task.x, y), params)  # (q, p)

    def one(vector: Tensor, *example: Tensor) -> Tensor:
        return losses(task.params(vector), *(value.unsqueeze(0) for value in example))[0]

    each = vmap(hessian(one), (None, 0, 0))(theta, task.x, target)  # (n, p, p)
    mean = each.mean(0)
    mean = (mean + mean.T) / 2
    solves = {"lissa_published": one_pass(each), "lissa": lissa_right(mean), "exact": pseudo_inverse(mean)}
    scores = {name: cross_loss_influence(g, v, solve) for name, solve in solves.items()}
    return {"dot": gradient_dot(g, v), "alg1": gradient_dot((each @ g.unsqueeze(-1)).squeeze(-1), v), **scores}


def one_pass(each: Tensor, damping: float = 0.01, scale: float = 25.0) -> Solve:
    r"""The public code's recursion, over the points in order: :math:`h \leftarrow v + (1 - \delta) h - H_i h / \sigma`.

    Its fixed point would be :math:`\sigma (H + \delta\sigma I)^{-1} v`: not divided by the scale, damped by
    :math:`\delta\sigma`. One pass does not get there.
    """

    def solve(v: Tensor) -> Tensor:
        h = v
        for matrix in each:
            h = v + (1 - damping) * h - h @ matrix / scale
        return h

    return solve


def lissa_right(matrix: Tensor, damping: float = 0.01, *, depth: int = 50_000, rtol: float = 1e-3) -> Solve:
    """LiSSA as it should be: full data, scale above the largest eigenvalue, divided by it, run to a small residual.

    Where the matrix is indefinite the recursion has no end: the damping is raised above the most negative eigenvalue.
    All right-hand sides go through the recursion together.
    """
    low, high = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
    damping += max(0.0, -1.1 * low)

    def solve(v: Tensor) -> Tensor:
        times = lambda s: (s.reshape(v.shape) @ matrix).reshape(-1)  # noqa: E731
        found = lissa_solve(times, v.reshape(-1), damping=damping, scale=high + damping, depth=depth, rtol=rtol)
        return found.x.reshape(v.shape)

    return solve


def through_text(values: np.ndarray) -> np.ndarray:
    """One test point's numbers ``(n,)`` after the public code wrote them to a file and read them again.

    It prints numpy arrays with six decimals and takes the last nine characters of each row. A number whose text is
    longer loses its sign and its leading digits.

    >>> through_text(np.array([-0.25, -12.345678, 123.456789]))
    array([-0.25    , 12.345678, 23.456789])
    """
    return np.array([float(f"{value:.6f}"[-9:]) for value in values])


def agreement(predicted: np.ndarray, actual: np.ndarray, k: int = 10) -> np.ndarray:
    r"""Compare predictions with retraining, one test point a row.

    Args:
        predicted: ``(q, m)``.
        actual: ``(q, m)``.
        k: Points at each end for the overlap.

    Returns:
        ``(4, q)``, rows as in ``AGREEMENT``: Pearson's r (0 where a side is constant); slope of predicted on actual, as
        in the paper's Figure 5; median of :math:`|\log_{10}(|predicted| / |actual|)|` over the pairs where neither is
        0; share of the k largest and the k smallest that both sides name.

    >>> agreement(np.array([[1.0, 2.0, 4.0]]), np.array([[10.0, 20.0, 40.0]]), k=1).round(2).ravel()
    array([1. , 0.1, 1. , 1. ])
    """
    p, a = (side - side.mean(1, keepdims=True) for side in (predicted, actual))
    spread_p, spread_a, both = (p * p).sum(1), (a * a).sum(1), (p * a).sum(1)
    r = np.divide(both, np.sqrt(spread_p * spread_a), out=np.zeros(len(p)), where=spread_p * spread_a > 0)
    slope = np.divide(both, spread_a, out=np.zeros(len(p)), where=spread_a > 0)
    sizes = np.ma.log10(np.ma.masked_equal(np.abs(predicted), 0) / np.ma.masked_equal(np.abs(actual), 0))
    magnitude = np.ma.median(np.abs(sizes), axis=1).filled(0.0)
    ranks = [np.argsort(np.argsort(side, axis=1, kind="stable"), axis=1) for side in (predicted, actual)]
    m = predicted.shape[1]
    ends = [((ranks[0] < k) & (ranks[1] < k)), ((ranks[0] >= m - k) & (ranks[1] >= m - k))]
    return np.stack([r, slope, magnitude, sum(end.sum(1) for end in ends) / (2 * k)])


def columns(scores: Mapping[str, Tensor], which: np.ndarray) -> dict[str, Tensor]:
    """The scores of some training points only."""
    return {name: value[:, which] for name, value in scores.items()}


def compare(scores: Scores, actual: Tensor, where: str, *, only: Tensor | None = None, as_text: bool = False) -> Found:
    """Agreement of every model and estimator, perhaps as the public code reads its numbers back (with its sign)."""
    which = slice(None) if only is None else only
    if only is not None and only.sum() < 3:
        return {}  # no correlation
    read = (lambda rows: np.stack([through_text(-row) for row in rows])) if as_text else lambda rows: rows
    truth = read(actual[:, which].numpy())
    return {
        f"{model}_{name}/{where}": agreement(read(value[:, which].numpy()), truth)
        for model, each in scores.items()
        for name, value in each.items()
    }


def per_seed(results: Sequence[Mapping[str, np.ndarray]], key: str, measure: Callable = np.mean) -> np.ndarray:
    """One number a seed: ``measure`` of the array ``key``; seeds that lack it are left out."""
    return np.array([float(measure(found[key])) for found in results if key in found])


def share(rows: np.ndarray) -> float:
    """Share of the test points with r > 0.8, from :func:`agreement`: the paper's headline number."""
    return float((rows[0] > 0.8).mean())


def metrics(results: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Interval]:
    """What the chapter reports about all seeds of :func:`clif_kit.mog_panels.study`, with intervals over seeds.

    Keys that end in ``_gain`` are paired differences; positive means that the side named first is the better one.
    ``own_loo``: each model is judged by retraining with its own loss.
    """
    found, keys = {}, sorted({key for one in results for key, value in one.items() if len(value.shape) == 2})
    keys = [key for key in keys if not key.startswith(("scores/", "actual/"))]
    for key in keys:
        _add(found, f"share_r08/{key}", per_seed(results, key, share), "share")
    for key in keys:
        if key.endswith(("/published", "/converged", "/moving")) and not key.split("/")[0].endswith(("alg1", "_lissa")):
            _add(found, f"mean_r/{key}", per_seed(results, key, lambda rows: rows[0].mean()), "r")
            slopes = per_seed(results, key, lambda rows: np.median(rows[1]))
            _add(found, f"slope/{key}", slopes, "predicted per actual", np.median)
            _add(found, f"magnitude_log10/{key}", per_seed(results, key, lambda rows: np.median(rows[2])), "decades")
    for key in keys:
        name, truth, panel = key.split("/")
        estimator = name.removeprefix("matched_")
        if name == estimator or panel.startswith("cold"):
            continue
        cross = {truth: f"cross_{estimator}/{truth}/{panel}", "own_loo": f"cross_{estimator}/dec_loo/{panel}"}
        for judge, other in cross.items():
            if other in keys:
                gain = f"cross_minus_matched_{estimator}/{judge}/{panel}"
                _gain(found, f"share_r08_gain/{gain}", results, other, key, share)
    key = "lissa_published/nll_loo/published"
    gain = f"cross_minus_matched_{key}"
    _gain(found, f"mean_r_gain/{gain}", results, f"cross_{key}", f"matched_{key}", lambda rows: rows[0].mean())
    # nearer to the true size is better, so the distances change places
    size = lambda rows: np.median(rows[2])  # noqa: E731
    _gain(found, f"magnitude_log10_gain/{gain}", results, f"matched_{key}", f"cross_{key}", size)
    by_chance = 10 / len(results[0]["classes"])
    over = per_seed(results, f"cross_{key}", lambda rows: rows[3].mean()) - by_chance
    _add(found, f"overlap_top10_gain/cross_lissa_published_minus_random/{key.partition('/')[2]}", over, "share")
    for model, truth in (("matched", "nll_loo"), ("cross", "dec_loo")):
        ends = [f"{model}_{estimator}/{truth}/converged" for estimator in ("exact", "dot")]
        _gain(found, f"share_r08_gain/{model}_exact_minus_dot/{truth}/converged", results, *ends, share)
    return found | _class_shares(results, key) | _single(results)


def _class_shares(results: Sequence[Mapping[str, np.ndarray]], key: str) -> dict[str, Interval]:
    """The share in each class, the best class of a seed first; a seed whose labels collapsed has fewer."""
    found: dict[str, Interval] = {}
    for model in ("matched", "cross"):
        ranked = [
            sorted(
                (share(one[f"{model}_{key}"][:, one["classes"] == c]) for c in np.unique(one["classes"])), reverse=True
            )
            for one in results
        ]
        for k, letter in enumerate("abc"):
            values = np.array([shares[k] for shares in ranked if len(shares) > k])
            _add(found, f"share_r08_class_{letter}/{model}_{key}", values, "share")
    return found


def _single(results: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Interval]:
    """The numbers of which every seed has one: labels left, convergence, basins."""
    found: dict[str, Interval] = {}
    for key in sorted({key for one in results for key, value in one.items() if value.ndim == 0}):
        panel = "published" if key == "labels_left" else key if key.count("/") > 1 else f"{key}/converged"
        name = f"{key}/matched/{panel}" if key == "labels_left" else panel
        _add(found, name.replace("moving/converged", "dec_loo/moving"), per_seed(results, key), "")
    return found


def _gain(
    found: dict[str, Interval], name: str, results: Sequence[Mapping[str, np.ndarray]], better: str, worse: str,
    measure: Callable,
) -> None:  # fmt: skip
    """Paired difference over the seeds that have both."""
    both = [one for one in results if better in one and worse in one]
    if len(both) > 1:
        found[name] = paired_difference(
            per_seed(both, better, measure), per_seed(both, worse, measure), "seeds", n_resamples=1000
        )


def _add(found: dict[str, Interval], name: str, values: np.ndarray, unit: str, statistic: Callable = np.mean) -> None:
    """A statistic over seeds; nothing where fewer than two seeds have the number."""
    if len(values) > 1:
        found[name] = interval(statistic, values, over="seeds", unit=unit, n_resamples=1000, keep_values=True)
