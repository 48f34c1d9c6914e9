"""AUC-DEL, its bootstrap and the LDS: plain loops, resampling by index, coverage, planted scores."""

import itertools

import numpy as np
import pytest
from scipy import stats
from test_deletion import PARTS, SEEDS, SIZES, TESTS, N, _store, quiet, some_ranks, toy

from clif_kit import deletion_lds, deletion_metrics
from clif_kit import deletion_ranks as ranks
from clif_kit.deletion import changes, make_plan, subset_changes
from clif_kit.deletion_metrics import gap, judge, mean_interval

__all__ = ["_store"]
RNG = np.random.default_rng(5)
EFFECTS = {name: RNG.normal(size=(2, 3, 6, 4)) * 0.1 + np.array([-1, 1])[:, None, None, None] * level
           for name, level in (("a", 0.2), ("b", 0.1), ("c", 0.15))}  # fmt: skip


# --- the bootstrap


def picked(tests, seeds):
    """The resamples as positions: which test points, which seeds."""
    for w in deletion_metrics.draws(tests, seeds):
        by_test, by_seed = (np.rint(w.sum(axis) * k).astype(int) for axis, k in ((1, tests), (0, seeds)))
        yield np.repeat(np.arange(tests), by_test), np.repeat(np.arange(seeds), by_seed)


def test_a_resample_is_the_mean_over_drawn_test_points_and_drawn_seeds():
    effect = EFFECTS["a"][0, 1]
    slow = []
    for rows, columns in picked(6, 4):
        assert len(rows) == 6
        assert len(columns) == 4
        slow.append(np.mean([effect[t, s] for t in rows for s in columns]))
    np.testing.assert_allclose(deletion_metrics.resampled(effect), slow, atol=1e-14)
    low, high = np.percentile(slow, [2.5, 97.5])
    found = mean_interval(effect)
    assert (found.value, found.low, found.high) == pytest.approx((effect.mean(), low, high), abs=1e-12)
    assert found.values == pytest.approx([np.mean(row) for row in effect])
    assert (found.n, found.over, found.unit) == (6, "test points", "probability")


def test_the_interval_agrees_with_resampling_by_index():
    rng, effect = np.random.default_rng(11), EFFECTS["a"][0, 1]
    slow = []
    for _ in range(20000):
        rows, columns = rng.integers(6, size=6), rng.integers(4, size=4)
        slow.append(effect[np.ix_(rows, columns)].mean())
    found, width = mean_interval(effect), np.ptp(np.percentile(slow, [2.5, 97.5]))
    assert [found.low, found.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist(), abs=0.06 * width)


def test_the_interval_covers_where_a_seed_moves_all_test_points_alike():
    """Seeds drawn anew for each test point would cover 0.8 here."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        effect = 0.3 * rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(1, 10)) + rng.normal(size=(40, 10))
        found = mean_interval(effect)
        hits += found.low <= 0 <= found.high
    assert 0.92 < hits / 300 <= 1


def test_one_seed_or_one_test_point_has_no_interval():
    for shape in ((1, 3), (5, 1)):
        with pytest.raises(ValueError, match="two of each"):
            mean_interval(np.zeros(shape))
    with pytest.raises(ValueError, match="diverged"):
        mean_interval(np.array([[0.1, np.nan], [0.2, 0.3]]))


# --- AUC-DEL and gains


def auc_by_hand(effect, sign):
    k, tests, seeds = effect.shape[1:]
    return sum(effect[sign, i, t, s] for i in range(k) for t in range(tests) for s in range(seeds)) / (
        k * tests * seeds
    )


def test_auc_and_gains_by_hand():
    found = judge(EFFECTS, "toy", [("a", "b"), ("b", "c")])
    plus, minus = ({m: auc_by_hand(e, i) for m, e in EFFECTS.items()} for i in (0, 1))
    expected = {}
    for m in EFFECTS:
        expected |= {f"auc_del_plus/{m}/toy": plus[m], f"auc_del_minus/{m}/toy": minus[m]}
        expected[f"auc_del_gap/{m}/toy"] = (minus[m] - plus[m]) / 2
    for a, b in (("a", "b"), ("b", "c")):
        name = f"{a}_minus_{b}/toy"
        expected[f"auc_del_gain/{name}"] = ((minus[a] - plus[a]) - (minus[b] - plus[b])) / 2
        expected[f"auc_del_plus_gain/{name}"] = plus[b] - plus[a]
        expected[f"auc_del_minus_gain/{name}"] = minus[a] - minus[b]
    assert {key: metric.value for key, metric in found.items() if key[:2] != "p/"} == pytest.approx(expected, abs=1e-12)
    assert found["auc_del_gain/a_minus_b/toy"].low > 0 > found["auc_del_gain/b_minus_c/toy"].high  # a is best, b worst
    assert {key for key in found if key[:2] == "p/"} == {f"p/auc_del_gain/{x}/toy" for x in ("a_minus_b", "b_minus_c")}


def test_p_values_count_resamples_on_the_other_side_and_are_corrected():
    close = EFFECTS | {"d": EFFECTS["a"] + np.random.default_rng(8).normal(size=EFFECTS["a"].shape) * 0.1}
    pairs = [("a", "d"), ("a", "b"), ("c", "b")]
    raw = []
    for a, b in pairs:
        sample = [gap(close[a])[np.ix_(*at)].mean() - gap(close[b])[np.ix_(*at)].mean() for at in picked(6, 4)]
        raw.append(min(1, 2 * (min(sum(x <= 0 for x in sample), sum(x >= 0 for x in sample)) + 1) / 2001))
    found = [judge(close, "toy", pairs)[f"p/auc_del_gain/{a}_minus_{b}/toy"] for a, b in pairs]
    order = sorted(range(3), key=lambda i: raw[i])
    assert raw[0] > 0.05  # the first pair differs by noise
    expected, largest = [0.0] * 3, 0.0
    for place, i in enumerate(order):
        largest = expected[i] = max(largest, min(1, raw[i] * (3 - place)))
    assert found == pytest.approx(expected)


def test_differences_are_paired():
    """What two methods share (the test point, the seed) leaves their difference."""
    rng = np.random.default_rng(9)
    common = rng.normal(size=(1, 1, 6, 1)) + rng.normal(size=(1, 1, 1, 4))
    a, b = (common * np.array([-1, 1])[:, None, None, None] + EFFECTS[m] for m in "ab")
    found = judge({"a": a, "b": b}, "toy", [("a", "b")])
    width = {key: metric.high - metric.low for key, metric in found.items() if key[:2] != "p/"}
    unpaired = np.hypot(width["auc_del_gap/a/toy"], width["auc_del_gap/b/toy"])
    assert width["auc_del_gain/a_minus_b/toy"] < 0.2 * unpaired
    for other in (b[:, :, :5], b[:, :2]):
        with pytest.raises(ValueError, match="same k's, test points and seeds"):
            judge({"a": a, "b": other}, "toy")


def test_the_same_seeds_make_an_effect_less_noisy_than_others(store):
    plan = make_plan({"a": ranks.rank(PARTS, 5)}, [5], range(12), N)
    p = quiet(plan, toy(shared=1.0, own=0.1), store)["probability"]
    paired = changes(plan, p)["a"]
    other = changes(plan, np.concatenate([np.roll(p[:1], 1, axis=1), p[1:]]))["a"]
    assert paired.var(-1).mean() < 0.35 * other.var(-1).mean()


def test_curves_are_the_means_at_each_k():
    found = deletion_metrics.curves(EFFECTS)
    assert set(found) == set(itertools.product("abc", ("plus", "minus")))
    for (m, sign), points in found.items():
        assert [point.value for point in points] == pytest.approx(
            [EFFECTS[m][("plus", "minus").index(sign), i].mean() for i in range(3)]
        )


def test_few_of_one_against_many_of_another():
    found = deletion_metrics.size_gain(EFFECTS, SIZES, ("a", 2), ("b", 9), "toy")
    a, b = EFFECTS["a"][:, 0], EFFECTS["b"][:, 2]
    assert found["del_plus_gain/a_k2_minus_b_k9/toy"].value == pytest.approx(-(a[0].mean() - b[0].mean()))
    assert found["del_minus_gain/a_k2_minus_b_k9/toy"].value == pytest.approx(a[1].mean() - b[1].mean())
    assert min(metric.value for metric in found.values()) > 0  # a was planted to move more
    with pytest.raises(ValueError, match="k = 3 was not run, only 2, 5, 9"):
        deletion_metrics.size_gain(EFFECTS, SIZES, ("a", 3), ("b", 9), "toy")


def test_the_ratio_is_to_the_best_of_the_others_in_each_resample():
    found = deletion_metrics.gap_ratio(EFFECTS, "a", ["b", "c"])
    gaps = {m: gap(e) for m, e in EFFECTS.items()}
    slow = []
    for at in picked(6, 4):
        a, b, c = (gaps[m][np.ix_(*at)].mean() for m in "abc")
        slow.append(a / max(b, c))
    low, high = np.percentile(slow, [2.5, 97.5])
    value = gaps["a"].mean() / max(gaps["b"].mean(), gaps["c"].mean())
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))


@pytest.mark.parametrize(
    ("top", "rival", "expected"), [(1, -1, 100), (1, 0, 100), (-1, -1, 0), (-1, 1, -1), (1, 1e-5, 100)]
)
def test_a_rival_that_moves_nothing_gives_the_cap_and_never_infinity(top, rival, expected):
    signs = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 3, 3))
    found = deletion_metrics.gap_ratio({"a": top * signs, "b": rival * signs}, "a", ["b"])
    assert found.low == found.value == found.high == expected


def test_the_largest_change_of_any_method_and_sign():
    found = deletion_metrics.largest_change(EFFECTS)
    means = {(m, i): EFFECTS[m][i].mean(0) for m in "abc" for i in (0, 1)}
    assert found.value == pytest.approx(max(abs(x.mean()) for x in means.values()))
    slow = [max(abs(x[np.ix_(*at)].mean()) for x in means.values()) for at in picked(6, 4)]
    assert [found.low, found.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist())


def test_noise_ratio_by_hand():
    full, effect = np.random.default_rng(10).random(size=(4, 6)), EFFECTS["a"][0, 0] + 0.2  # of both signs
    spread = [np.sqrt(sum((x - row.mean()) ** 2 for x in row) / 3) for row in full.T]
    size = [abs(sum(row) / 4) for row in effect]
    found = deletion_metrics.noise_ratio(full, effect)
    assert found.value == pytest.approx(np.mean(spread) / np.mean(size))
    assert found.low < found.value < found.high


def test_layers_that_delete_worse_correlate_with_depth():
    layers = [EFFECTS["a"] * factor for factor in (1.0, 0.7, 0.8, 0.1)]
    found = deletion_metrics.loss_correlation([1, 2, 3, 4], layers)
    assert found.value == pytest.approx(stats.spearmanr([1, 2, 3, 4], [-1, -0.7, -0.8, -0.1]).statistic)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8, 0.8))  # multiples keep their order
    assert (found.n, found.over) == (4, "layers")
    noisy = deletion_metrics.loss_correlation([1, 2, 3], [EFFECTS[m] for m in "acb"])
    slow = [stats.spearmanr([1, 2, 3], [-gap(EFFECTS[m])[np.ix_(*at)].mean() for m in "acb"])[0] for at in picked(6, 4)]
    assert [noisy.low, noisy.high] == pytest.approx([*np.percentile(slow, [2.5]), noisy.value])
    with pytest.raises(ValueError, match="three or more"):
        deletion_metrics.loss_correlation([1, 2], layers[:2])


def test_counts_are_of_the_plan():
    plan = make_plan(some_ranks(), SIZES, SEEDS, N, points=[0, 3])
    assert deletion_metrics.counts(plan, "toy") == {
        "n/train/toy": N, "n/tests/toy": 2, "n/k_first/toy": 2, "n/k_last/toy": 9, "n/retrainings/toy": 3,
        "n/models/toy": 3 * len(plan.sets),
    }  # fmt: skip


# --- planted scores, end to end


def test_no_set_of_k_beats_the_perfect_score(store):
    parts = PARTS[:2, :7]
    everything = [np.array(c) for c in itertools.combinations(range(7), 3)]
    plan = make_plan({"perfect": ranks.rank(parts, 3)}, [3], [0, 1], 7, subsets={"all": everything})
    p = quiet(plan, toy(parts), store)["probability"]
    moved = -subset_changes(plan, -p)["all"]  # (seeds, tests, sets), of the probability
    effect = changes(plan, p)["perfect"][:, 0]  # (2, tests, seeds)
    np.testing.assert_array_equal(effect[0], moved.min(-1).T)
    np.testing.assert_array_equal(effect[1], moved.max(-1).T)


@pytest.fixture(name="planted")
def _planted(store):
    found = some_ranks() | {"printed_sign": some_ranks()["perfect"][::-1]}
    chosen = ranks.random_subsets(N, 0.2, 40)
    plan = make_plan(found, SIZES, SEEDS, N, subsets={"drop20": chosen})
    p = quiet(plan, toy(own=0.05), store)["probability"]
    return changes(plan, p), subset_changes(plan, -p)["drop20"], chosen


def test_the_perfect_score_wins_and_the_printed_sign_loses(planted):
    others = ("noisy", "random", "same_class_random", "printed_sign")
    found = judge(planted[0], "toy", [("perfect", other) for other in others])
    for other in others:
        assert found[f"auc_del_gain/perfect_minus_{other}/toy"].low > 0
    assert found["auc_del_plus/perfect/toy"].high < 0 < found["auc_del_minus/perfect/toy"].low
    assert found["auc_del_gap/printed_sign/toy"].value == -found["auc_del_gap/perfect/toy"].value
    assert found["auc_del_gap/printed_sign/toy"].high < 0
    random = found["auc_del_gap/random/toy"]  # one set for both signs: nothing by construction
    assert random.low == random.value == random.high == 0


# --- LDS


def test_lds_of_planted_scores(planted):
    _, actual, chosen = planted
    noise = np.random.default_rng(3).normal(size=PARTS.shape)
    scores = {"perfect": PARTS, "negated": -PARTS, "noisy": PARTS + noise / 3, "noise": noise, "none": 0 * PARTS}
    found = deletion_lds.judge_subsets(scores, chosen, actual, "toy", "drop20", [("perfect", "noisy")])
    value = {name: found[f"lds/{name}/toy/drop20"].value for name in scores}
    truth = actual.mean(0)
    for name, s in scores.items():
        if name != "none":
            sums = [[sum(s[t, i] for i in removed) for removed in chosen] for t in range(TESTS)]
            by_hand = [stats.spearmanr(x, y).statistic for x, y in zip(sums, truth, strict=True)]
            assert found[f"lds/{name}/toy/drop20"].values == pytest.approx(by_hand)
            assert value[name] == pytest.approx(np.mean(by_hand))
    assert value["perfect"] > 0.97
    assert value["negated"] == pytest.approx(-value["perfect"])
    assert 0.3 < value["noisy"] < 0.95
    assert abs(value["noise"]) < 0.4
    assert value["none"] == 0
    gain = found["lds_gain/perfect_minus_noisy/toy/drop20"]
    assert gain.value == pytest.approx(value["perfect"] - value["noisy"])
    assert 0 < gain.low < gain.value < gain.high
    assert found["lds/ceiling/toy/drop20"].value > 0.95


def test_the_interval_of_an_lds_agrees_with_resampling_by_index():
    rng = np.random.default_rng(4)
    guess, truth = rng.normal(size=(2, 6, 30))
    truth += guess
    found = deletion_lds.judge_subsets(
        {"a": guess}, [np.array([j]) for j in range(30)], truth[None], "toy", "drop", pairs=[]
    )["lds/a/toy/drop"]
    slow = []
    for _ in range(1500):
        rows, columns = rng.integers(6, size=6), rng.integers(30, size=30)
        slow.append(np.mean([stats.spearmanr(guess[t, columns], truth[t, columns]).statistic for t in rows]))
    low, high = np.percentile(slow, [2.5, 97.5])
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.12 * (high - low))


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_the_ceiling_is_what_the_expected_change_would_reach(monkeypatch, seeds):
    rng = np.random.default_rng(6)
    expected = rng.normal(size=(8, 3000))
    actual = expected + 1.5 * rng.normal(size=(seeds, 8, 3000))
    reached = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(expected, actual.mean(0), strict=True)])
    monkeypatch.setattr(deletion_lds, "RESAMPLES", 20)  # 3000 subsets: the value matters here
    found = deletion_lds.ceiling(actual)
    assert found.value == pytest.approx(reached, abs=0.03)


def test_pure_noise_has_a_ceiling_near_zero():
    found = deletion_lds.ceiling(np.random.default_rng(7).normal(size=(3, 10, 60)))
    assert found.low == 0
    assert found.value < 0.45


@pytest.mark.parametrize(
    ("scores", "actual", "message"),
    [
        (np.full((5, N), np.nan), np.zeros((2, 5, 3)), "scores of a are NaN"),
        (np.zeros((4, N)), np.zeros((2, 5, 3)), "not of 5 tests and 3 sets"),
        (np.zeros((5, N)), np.zeros((2, 5, 4)), "scores of a"),
        (np.zeros((1, N)), np.zeros((2, 1, 3)), "two test points"),
        (np.zeros((5, N)), np.full((2, 5, 3), np.nan), "without NaN"),
    ],
)
def test_lds_refuses_what_does_not_fit(scores, actual, message):
    with pytest.raises(ValueError, match=message):
        deletion_lds.judge_subsets({"a": scores}, [np.array([0])] * 3, actual, "toy", "drop05")
