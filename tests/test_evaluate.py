"""Oracles: scipy and scikit-learn, hand-worked numbers, and coverage over repeated samples."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from clif_kit import evaluate


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    return a, np.round(a + rng.normal(size=60), 1)  # rounded, so that there are ties


def test_correlations_equal_scipys(pair):
    assert evaluate.pearson(*pair) == pytest.approx(stats.pearsonr(*pair).statistic, abs=1e-12)
    assert evaluate.spearman(*pair) == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)


def test_pearson_by_hand():
    assert evaluate.pearson([0, 1, 2], [0, 0, 3]) == pytest.approx(3 / np.sqrt(2 * 6))  # S_xy = 3, S_xx = 2, S_yy = 6


def test_lds_is_spearman_of_each_query_alone(pair):
    predicted, actual = np.stack([pair[0], -pair[0], pair[1]]), np.stack([pair[1], pair[1], 10 * pair[1] + 3])
    r = stats.spearmanr(*pair).statistic
    np.testing.assert_allclose(evaluate.lds(predicted, actual), [r, -r, 1.0], atol=1e-12)


def test_top_k_overlap_by_hand():
    assert evaluate.top_k_overlap([5, 4, 3, 2, 1], [5, 1, 4, 3, 2], k=3) == pytest.approx(2 / 3)
    assert evaluate.top_k_overlap([1, 1, 1], [3, 2, 1], k=1) == 1.0  # a tie goes to the earlier position


@pytest.mark.parametrize(
    "call",
    [
        lambda nan: evaluate.pearson([1, nan, 2], [1, 2, 3]),
        lambda nan: evaluate.spearman([1, 2, 3], [1, nan, 2]),
        lambda nan: evaluate.lds([[1, 2, nan]], [[1, 2, 3]]),
        lambda nan: evaluate.top_k_overlap([1, nan], [1, 2], k=1),
        lambda nan: evaluate.interval(np.nanmean, [1, nan, 2], over="seeds"),
        lambda nan: evaluate.paired_difference([1, nan], [1, 2], over="seeds"),
        lambda nan: evaluate.holm([0.1, nan]),
        lambda nan: evaluate.detection_curve([1, nan], [True, False]),
    ],
)
def test_nan_raises(call):
    with pytest.raises(ValueError, match="NaN"):
        call(float("nan"))


def test_an_infinite_score_has_a_rank_but_no_pearson():
    with pytest.raises(ValueError, match="finite"):
        evaluate.pearson([1, 2, np.inf], [1, 2, 3])
    assert evaluate.spearman([1, 2, np.inf], [1, 2, 3]) == pytest.approx(1.0)


def test_a_constant_sample_has_no_correlation():
    with pytest.raises(ValueError, match="vary"):
        evaluate.pearson([1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="vary"):
        evaluate.lds([[1, 2, 3], [2, 2, 2]], [[1, 2, 3], [1, 2, 3]])


def test_shapes_must_agree():
    for call in (
        lambda: evaluate.pearson([1, 2], [1, 2, 3]),
        lambda: evaluate.lds([1, 2, 3], [1, 2, 3]),
        lambda: evaluate.top_k_overlap([1, 2], [1, 2], k=3),
        lambda: evaluate.interval(evaluate.pearson, [1, 2, 3], [1, 2], over="seeds"),
        lambda: evaluate.interval(np.mean, [1.0], over="seeds"),
        lambda: evaluate.paired_difference([1, 2, 3], [1, 2], over="seeds"),
        lambda: evaluate.detection_curve([1, 2], [False, False]),
        lambda: evaluate.holm([0.5, 1.5]),
    ):
        with pytest.raises(ValueError):
            call()


def test_interval_equals_scipys_bca():
    sample = np.random.default_rng(1).exponential(size=40)
    here = evaluate.interval(np.mean, sample, over="seeds", n_resamples=500, seed=3)
    there = stats.bootstrap((sample,), np.mean, n_resamples=500, rng=np.random.default_rng(3), vectorized=False)
    assert (here.value, here.low, here.high) == pytest.approx((sample.mean(), *there.confidence_interval))
    assert (here.n, here.over) == (40, "seeds")


def test_interval_covers_the_mean_of_a_gaussian_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        one = evaluate.interval(np.mean, rng.normal(3.0, 2.0, size=30), over="draws", n_resamples=300)
        hits += one.low <= 3.0 <= one.high
    assert 176 <= hits <= 198  # 88 % to 99 %; the bootstrap is a little short at n = 30


def test_interval_width_is_the_standard_error():
    sample = np.random.default_rng(2).normal(size=400)
    one = evaluate.interval(np.mean, sample, over="draws")
    assert one.high - one.low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.08)


def test_the_seed_decides_and_nothing_else(pair):
    first = evaluate.interval(evaluate.pearson, *pair, over="points", n_resamples=200, seed=5)
    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    assert evaluate.interval(evaluate.pearson, *pair, over="points", n_resamples=200, seed=5) == first
    assert evaluate.interval(evaluate.pearson, *pair, over="points", n_resamples=200, seed=6) != first


def test_paired_resampling_keeps_partners_together():
    a = np.random.default_rng(0).normal(0, 10, size=50)
    b = a + 1.0
    together = evaluate.interval(lambda x, y: y.mean() - x.mean(), a, b, over="points", n_resamples=200)
    apart = evaluate.interval(lambda x, y: y.mean() - x.mean(), a, b, over="points", n_resamples=200, paired=False)
    assert together.high - together.low < 1e-9
    assert apart.high - apart.low > 4


def test_unpaired_samples_may_differ_in_length():
    one = evaluate.interval(lambda x, y: x.mean() - y.mean(), [1.0, 2, 3], [0.0, 1, 0, 1, 0], over="runs", paired=False)
    assert one.value == pytest.approx(1.6)
    assert one.n == 3


def test_rows_of_a_matrix_are_resampled_whole():
    rows = np.arange(12.0).reshape(6, 2)
    one = evaluate.interval(lambda x: (x[:, 1] - x[:, 0]).mean(), rows, over="queries", n_resamples=100)
    assert (one.low, one.value, one.high) == (1.0, 1.0, 1.0)


def test_equal_values_give_an_interval_of_no_width():
    assert evaluate.interval(np.mean, [0.7] * 5, over="seeds").as_dict() == pytest.approx(
        {"value": 0.7, "low": 0.7, "high": 0.7, "n": 5, "over": "seeds", "unit": ""}
    )


def test_interval_always_holds_its_value():
    for seed in range(20):
        few = np.random.default_rng(seed).exponential(size=4)
        one = evaluate.interval(np.max, few, over="seeds", n_resamples=100)
        assert one.low <= one.value <= one.high


def test_a_statistic_that_is_mostly_undefined_raises():
    with pytest.raises(ValueError, match="undefined"):
        evaluate.interval(evaluate.pearson, [0, 0, 1.0], [1.0, 2, 3], over="seeds", n_resamples=200)


def test_values_are_kept_when_asked_for():
    one = evaluate.interval(np.mean, [1.0, 2.0], over="seeds", keep_values=True)
    assert one.as_dict()["values"] == (1.0, 2.0)
    assert "values" not in evaluate.interval(np.mean, [1.0, 2.0], over="seeds").as_dict()


def test_paired_difference_is_the_mean_of_the_differences():
    a, b = np.array([3.0, 5.0, 4.0]), np.array([1.0, 1.0, 1.0])
    one = evaluate.paired_difference(a, b, over="seeds", unit="r")
    assert (one.value, one.values, one.unit) == (3.0, (2.0, 4.0, 3.0), "r")
    assert 2.0 <= one.low < 3.0 < one.high <= 4.0


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04; the last is raised to .06
    np.testing.assert_allclose(evaluate.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(evaluate.holm([0.6, 0.7]), [1.0, 1.0])
    # SPEC section 8: of the three comparisons .015 .042 .179 only the first stays below .05
    np.testing.assert_allclose(evaluate.holm([0.015, 0.042, 0.179]), [0.045, 0.084, 0.179])


def test_detection_by_hand():
    curve = evaluate.detection_curve([0.9, 0.8, 0.7, 0.1], [False, True, False, True])
    np.testing.assert_allclose(curve.checked, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.found, [0, 0, 0.5, 0.5, 1])
    assert curve.auc == pytest.approx((0 + 0.25 + 0.5 + 0.75) / 4)


def test_detection_auc_follows_from_the_roc_auc_of_sklearn():
    rng = np.random.default_rng(0)
    noisy = rng.random(300) < 0.2
    scores = np.round(noisy + rng.normal(size=300), 1)  # with ties
    rate = noisy.mean()
    expected = rate / 2 + (1 - rate) * roc_auc_score(noisy, scores)
    assert evaluate.detection_curve(scores, noisy).auc == pytest.approx(expected, abs=1e-12)


def test_tied_scores_find_in_proportion_whatever_their_order():
    curve = evaluate.detection_curve(np.zeros(10), np.arange(10) < 3)
    np.testing.assert_allclose(curve.found, curve.checked)
    assert curve.auc == pytest.approx(0.5)
