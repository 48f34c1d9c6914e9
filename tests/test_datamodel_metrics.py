"""Numbers about datamodels against sklearn, scipy and loops."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import adjusted_rand_score, average_precision_score, r2_score

from clif_kit import datamodel_metrics as metrics
from clif_kit import planted_metrics

RNG = np.random.default_rng(0)


def test_prediction_metrics_match_sklearn_and_scipy():
    actual = RNG.normal(size=(30, 6))
    good, bad = actual + 0.3 * RNG.normal(size=actual.shape), RNG.normal(size=actual.shape)
    constant = np.tile(actual.mean(0) + 0.1, (30, 1))
    found = metrics.prediction_metrics({"lasso": good, "other": bad, "constant": constant}, actual, "x")
    oracle = {name: r2_score(actual, value, multioutput="raw_values") for name, value in
              {"lasso": good, "other": bad, "constant": constant}.items()}  # fmt: skip
    for name, each in oracle.items():
        assert np.isclose(found[f"r2/{name}_fresh/x"].value, each.mean())
    assert np.isclose(found["r2_gain/lasso_minus_other/x"].value, (oracle["lasso"] - oracle["other"]).mean())
    ranks = [stats.spearmanr(good[:, j], actual[:, j]).statistic for j in range(6)]
    assert np.isclose(found["spearman/lasso_fresh/x"].value, np.mean(ranks))
    assert "spearman/constant_fresh/x" not in found


def test_the_ceiling_is_the_share_of_variance_that_the_subset_makes():
    signal = RNG.normal(size=(4000, 3)) * np.sqrt(3.0)  # variance 3, and noise of variance 1 in each run
    first, second = (signal + RNG.normal(size=signal.shape) for _ in range(2))
    assert abs(metrics.ceiling(first, second, "x")["r2/ceiling/x"].value - 0.75) < 0.02


def test_same_class_counts_by_a_loop():
    scores, y, y_test = RNG.normal(size=(7, 20)), RNG.integers(0, 3, 20), RNG.integers(0, 3, 7)
    found = metrics.same_class_metrics({"lasso": scores, "other": -scores}, y, y_test, 4, "x")
    for name, table in (("lasso", scores), ("other", -scores)):
        share = np.mean(
            [[y[i] == y_test[t] for i in sorted(range(20), key=lambda i: -table[t, i])[:4]] for t in range(7)]
        )
        assert np.isclose(found[f"same_class/{name}/x"].value, share)
    gap = found["same_class/lasso/x"].value - found["same_class/other/x"].value
    assert np.isclose(found["same_class_gain/lasso_minus_other/x"].value, gap)


def test_average_precision_is_sklearns_when_every_planted_pair_is_proposed():
    strength, planted = RNG.normal(size=50), RNG.random(50) < 0.3
    ours = planted_metrics.average_precision(strength, planted, planted)
    assert np.isclose(ours, average_precision_score(planted, strength))
    missed = planted & (RNG.random(50) < 0.5)  # sklearn divides by the hits, we by all that was planted
    scaled = average_precision_score(missed, strength) * missed.sum() / planted.sum()
    assert np.isclose(planted_metrics.average_precision(strength, missed, planted), scaled)


def test_proposals_take_the_largest_score_and_the_ratio_of_distances():
    distance = RNG.random((9, 12)) + 0.1
    twin = np.where(np.arange(9) < 4, distance.argmin(1), -1)
    twin[0] = (twin[0] + 1) % 12  # planted elsewhere: not found
    plain, hit = planted_metrics.proposals(-distance, twin)
    ratio, same = planted_metrics.proposals(-distance, twin, ratio=True)
    assert hit.tolist() == same.tolist() == [False, True, True, True] + [False] * 5
    for t in range(9):
        first, second = sorted(distance[t])[:2]
        assert np.isclose(plain[t], -first)
        assert np.isclose(ratio[t], second / first)


def test_leak_metrics_compare_on_the_same_test_points():
    twin = np.where(np.arange(40) < 10, np.arange(40), -1)
    sure, hit = np.where(twin >= 0, 2.0, 1.0) + 0.1 * RNG.random(40), twin >= 0
    found = planted_metrics.leak_metrics({"lasso": (sure, hit), "other": (-sure, hit)}, twin, "x")
    assert found["average_precision/lasso/x"].value == 1 == found["precision_at_planted/lasso/x"].value
    assert found["precision_at_planted/other/x"].value == 0
    worst = np.mean([(j + 1) / (31 + j) for j in range(10)])  # all ten hits at the end
    assert np.isclose(found["average_precision_gain/lasso_minus_other/x"].value, 1 - worst)


def test_clusters_of_two_directions_are_found_and_noise_is_not():
    groups, classes = np.arange(60) % 2, np.arange(60) // 20
    points = np.where(groups[:, None] == 1, [[1.0, 0.0]], [[0.0, 1.0]]) * RNG.uniform(1, 5, (60, 1))
    assert planted_metrics.cluster_ari(points + 0.01 * RNG.normal(size=(60, 2)), groups, classes).tolist() == [1, 1, 1]
    noise = planted_metrics.cluster_ari(RNG.normal(size=(60, 2)), groups, classes)
    assert (np.abs(noise) < 0.5).all()
    found = planted_metrics.cluster_metrics({"lasso": [1.0, 1.0, 0.7], "other": noise}, "x")
    assert np.isclose(found["ari_gain/lasso_minus_other/x"].value, 0.9 - noise.mean())
    assert found["ari/lasso/x"].over == "classes"


def test_one_k_means_is_scored_as_sklearn_does():
    features, groups = RNG.normal(size=(24, 5)), RNG.integers(0, 2, 24)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    from sklearn.cluster import KMeans

    oracle = [
        adjusted_rand_score(groups[s], KMeans(2, n_init=10, random_state=0).fit_predict(rows[s]))
        for s in (slice(0, 12), slice(12, 24))
    ]
    found = planted_metrics.cluster_ari(features, groups, np.arange(24) // 12, seeds=1)
    assert np.allclose(found, oracle)


def test_concentration_and_its_correlation_with_the_size():
    weights = RNG.normal(size=(5, 30))
    shares = [sum(sorted(max(w, 0) for w in row)[::-1][:3]) / sum(max(w, 0) for w in row) for row in weights]
    assert np.allclose(metrics.concentration(weights, 3), shares)
    sharper = {0.1: weights, 0.5: np.sign(weights) * weights**2, 0.75: np.sign(weights) * weights**4}
    found = metrics.size_metrics(sharper, "x", k=3)
    assert found["spearman/alpha_concentration/x"].value == 1
    assert found["concentration/lasso/x/alpha10"].value == pytest.approx(np.mean(shares))
    flipped = metrics.size_metrics({1 - share: value for share, value in sharper.items()}, "x", k=3)
    assert flipped["spearman/alpha_concentration/x"].value == -1


def test_removal_gains_are_paired():
    lasso = torch.tensor([3.0, 4.0, 5.0]).numpy()
    found = metrics.removal_metrics({"lasso": lasso, "random": lasso - 1}, "x", 20)
    gain = found["removal_gain/lasso_minus_random/x/top20"]
    assert (gain.low, gain.value, gain.high, gain.over) == (1, 1, 1, "test points")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no near-duplicate is planted"):
        planted_metrics.average_precision([1.0], [False], [False])
    with pytest.raises(ValueError, match="k is 9; with 3 training examples"):
        metrics.top(np.zeros((2, 3)), 9)
    with pytest.raises(ValueError, match="raise n_test"):
        planted_metrics.cluster_ari(np.zeros((4, 2)), [0, 0, 1, 1], [0, 0, 1, 1])
