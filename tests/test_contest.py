"""The contest: price, removals, measures and winners, against closed forms, loops, scipy and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from clif_kit import contest, contest_images, contest_metrics
from clif_kit.contest import Cost, Task, measure, play, score_all
from clif_kit.contest_metrics import FEWEST, RESAMPLES, Measured, rank_measure, rule
from clif_kit.contest_metrics import contest_metrics as metrics_of
from clif_kit.gradients import per_example_gradients
from clif_kit.models import cross_entropy


def mean_task(**more):
    """A model that is a mean: without a set K its query loss a'mean(x) moves by a'(mean of the rest - mean)."""
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))

    def losses(removed):
        return a @ np.delete(x, removed, axis=0).mean(0)

    exact = np.stack([losses([i]) - losses([]) for i in range(30)], axis=1)  # (tests, n)

    def retrain(plan):
        loss = np.stack([losses(chosen) for chosen in plan.sets])[:, None]
        return {"loss": loss, "good": -loss}

    scorers = {"exact": lambda: exact, "negated": lambda: -exact, "cheap": lambda: contest.random_scores(9, 30)}
    settings = {"name": "mean", "scorers": scorers, "retrain": retrain, "n": 30, "tests": 9, "cheap": "cheap"}
    return Task(**(settings | {"single": True} | more))


# ---- price


def test_measure_sees_time_and_peak_and_returns_the_answer():
    def work():
        block = np.ones(8_000_000)  # 64 megabytes that do not survive
        return block[:3] * 2 + sum(i * i for i in range(200_000)) * 0

    answer, cost = measure(work, repeats=1)
    _, small = measure(lambda: np.zeros(3), repeats=1)
    assert answer.tolist() == [2.0, 2.0, 2.0]
    assert cost.seconds > small.seconds
    if cost.megabytes is not None:
        assert 55 < cost.megabytes < 90
        assert small.megabytes < 5


def test_measure_takes_the_least_of_several_calls_within_its_budget():
    calls = []

    def slow_at_first():
        calls.append(0)
        return sum(range(3_000_000 if len(calls) == 1 else 10))

    _, cost = measure(slow_at_first, budget=10.0)
    assert len(calls) == 3
    assert cost.seconds < 0.01
    calls.clear()
    measure(slow_at_first, budget=0.0)
    assert len(calls) == 1


def test_costs_add_seconds_and_keep_the_higher_peak():
    assert Cost(1.0, 5.0) + Cost(2.0, 3.0) == Cost(3.0, 5.0)
    assert Cost(1.0, None) + Cost(2.0, 3.0) == Cost(3.0, None)
    assert (Cost(1.0, None) + Cost(0.0, None)).megabytes is None


def test_what_was_paid_before_is_part_of_the_price():
    _, costs = score_all(mean_task(paid={"exact": Cost(100.0, 7.0)}))
    assert costs["exact"].seconds >= 100
    assert costs["negated"].seconds < 50


@pytest.mark.parametrize("wrong", [np.zeros((30, 9)), np.full((9, 30), np.nan)])
def test_a_score_of_another_shape_or_not_finite_is_named(wrong):
    with pytest.raises(ValueError, match=r"mean: broken gave .* needed are \(9, 30\)"):
        score_all(mean_task(scorers={"broken": lambda: wrong, "cheap": lambda: np.zeros((9, 30))}))


def test_a_cheap_baseline_that_nobody_computes_is_refused():
    with pytest.raises(ValueError, match="'bm25' is not among exact"):
        mean_task(cheap="bm25")


# ---- removals and measures


def test_the_exact_effects_win_every_measure_and_the_sign_counts():
    played = play(mean_task(), sizes=[2, 4], subsets=40)
    found = metrics_of(played)
    for key in ("loo/{}/mean", "lds/{}/mean/drop05"):
        assert found[key.format("exact")].value == pytest.approx(1, abs=0.01)
        assert found[key.format("negated")].value == pytest.approx(-1, abs=0.01)
    assert found["lds/exact/mean/drop50"].value > 0.99
    assert found["auc_del_gap/exact/mean"].value > 0 > found["auc_del_gap/negated/mean"].value
    assert found["loo_gain/exact_minus_cheap/mean"].low > 0.5
    assert found["auc_del_gain/exact_minus_cheap/mean"].low > 0
    assert "lds_gain/exact_minus_cheap/mean/drop50" in found
    assert found["n/train/mean"] == 30
    assert found["n/points/mean"] == 9


def test_deletions_are_those_of_a_loop():
    task = mean_task()
    played = play(task, sizes=[3], subsets=3, points=5)
    scores = task.scorers["exact"]()
    for t in range(5):
        order = np.argsort(-scores[t])
        for sign, chosen in ((0, order[:3]), (1, order[-3:])):
            plan_of = type("P", (), {"sets": [np.array([], dtype=int), np.sort(chosen)]})
            good = task.retrain(plan_of)["good"][:, 0, t]
            assert played.effects["exact"][sign, 0, t, 0] == pytest.approx(good[1] - good[0])


def test_a_second_judge_gives_the_ceiling():
    task = mean_task()
    truth = play(task, sizes=[2], subsets=12).actual["drop05"][0]
    same = play(mean_task(again=lambda sets: truth[:, : len(sets)]), sizes=[2], subsets=12, again=6)
    assert metrics_of(same)["lds/ceiling/mean/drop05"].value == pytest.approx(1)
    turned = play(mean_task(again=lambda sets: -truth[:, : len(sets)]), sizes=[2], subsets=12, again=6)
    assert metrics_of(turned)["lds/ceiling/mean/drop05"].value == pytest.approx(-1)


def test_rank_measure_is_scipys_and_its_resamples_those_of_a_loop():
    rng = np.random.default_rng(1)
    guess, truth = rng.normal(size=(3, 8)).round(1), rng.normal(size=(3, 8)).round(1)
    found = rank_measure({"a": guess, "constant": np.ones((3, 8))}, truth, tests=False)
    assert found.value["a"] == pytest.approx(
        np.mean([stats.spearmanr(g, t)[0] for g, t in zip(guess, truth, strict=True)])
    )
    assert found.value["constant"] == 0
    rows = np.random.default_rng(0).integers(8, size=(RESAMPLES, 8))
    for r in (0, 150, RESAMPLES - 1):
        want = np.mean([stats.spearmanr(g[rows[r]], t[rows[r]])[0] for g, t in zip(guess, truth, strict=True)])
        assert found.sample["a"][r] == pytest.approx(want)
    assert found.n == 8
    assert rank_measure({"a": guess}, truth).n == 3  # the fewer of test points and sets


def test_drawing_test_points_widens_the_interval_when_they_differ():
    truth = np.tile(np.arange(20.0), (10, 1))
    guess = truth * np.where(np.arange(10) < 5, 1, -1)[:, None]
    fixed, drawn = (rank_measure({"a": guess}, truth, tests=tests).interval("a") for tests in (False, True))
    assert fixed.high - fixed.low < 1e-9
    assert drawn.high - drawn.low > 0.8


# ---- winners


def measured(shift, n=20, spread=0.1):
    """Methods whose sample is their value and one common noise each."""
    rng = np.random.default_rng(2)
    return Measured(shift, {k: v + spread * rng.normal(size=RESAMPLES) for k, v in shift.items()}, n, "test points")


MARGINS = {"drop05": 0.02}


def ruled(found, margins=MARGINS, **more):
    return rule({"t": {"drop05": found}}, {"t": "cheap"}, margins, **more)[0]


def test_a_clear_lead_wins_and_a_small_one_does_not():
    clear = ruled(measured({"a": 1.0, "b": 0.3, "cheap": 0.0}))
    assert (clear.winner, clear.second, clear.reason) == ("a", "b", "")
    close = ruled(measured({"a": 0.4, "b": 0.35, "cheap": -1.0}))
    assert close.winner is None
    assert close.reason == "b"
    both = ruled(measured({"a": 0.4, "b": 0.35, "cheap": 0.3}))
    assert both.reason == "b and cheap"


def test_the_margin_few_units_and_controls_stop_a_winner():
    far = {"a": 1.0, "b": 0.3, "cheap": 0.0}
    assert ruled(measured(far), {"drop05": 0.8}).winner is None
    assert ruled(measured(far, n=FEWEST - 1)).reason == f"too few: {FEWEST - 1} test points"
    assert ruled(measured({"same_class_random": 1.0, "b": 0.3, "cheap": 0.0})).reason == "a control leads"
    with pytest.raises(ValueError, match="'drop05' is missing or negative"):
        ruled(measured(far), {})


def test_a_twin_is_no_runner_up_and_the_baseline_may_win():
    one = measured({"twin": 1.01, "a": 1.0, "cheap": 0.0})
    assert ruled(one, same={"t": ["a", "twin", "absent"]}).winner == "a"
    assert ruled(one, same={"other": ["a", "twin"]}).winner is None
    own = ruled(measured({"cheap": 1.0, "b": 0.0}))
    assert own.winner == "cheap"
    assert own.p_cheap is None


def test_the_p_values_are_two_sided_and_holms():
    found = measured({"a": 0.35, "b": 0.1, "cheap": 0.0})
    raw = []
    for other in ("b", "cheap"):
        lead = found.sample["a"] - found.sample[other]
        raw.append(min(1.0, 2 * (np.sum(lead <= 0.02) + 1) / (RESAMPLES + 1)))
    small, large = sorted(raw)
    ruling = ruled(found)
    assert ruling.p_second == pytest.approx(max(2 * small, large))  # the lead over b is the less sure
    assert ruling.p_cheap == pytest.approx(2 * small)


# ---- the image task


@pytest.fixture(scope="module")
def digits():
    return contest_images.image_model("digits", n_train=60, n_test=6, l2=0.05, checkpoints=2)


def test_retraining_is_scikit_learns_optimum(digits):
    """Oracle: LogisticRegression, whose C is 1 / (n l2), on pixels and a column of ones, penalised as ours is."""
    sets = [np.array([], dtype=int), np.array([3]), np.arange(0, 60, 2)]
    found, cost = contest_images.removal_losses(digits, sets, None)
    x, x_test = (np.hstack([v.numpy(), np.ones((len(v), 1))]) for v in (digits.x, digits.x_test))
    for row, chosen in zip(found, sets, strict=True):
        keep = np.delete(np.arange(60), chosen)
        fit = LogisticRegression(C=1 / (len(keep) * 0.05), fit_intercept=False, tol=1e-10, max_iter=10_000)
        fit.fit(x[keep], digits.y.numpy()[keep])
        p = fit.predict_proba(x_test)
        want = [-np.log(p[i, list(fit.classes_).index(c)]) for i, c in enumerate(digits.y_test.tolist())]
        np.testing.assert_allclose(row, want, atol=1e-4)
    assert cost.seconds > 0


def test_image_scores_against_exact_removal(digits):
    task = contest_images.image_task(digits, "digits", n_models=30, folder=None)
    played = play(task, sizes=[4], subsets=6, points=2)
    found = metrics_of(played)
    assert found["loo/influence/digits"].value > 0.97
    assert found["loo/inf_last/digits"].value == pytest.approx(found["loo/influence/digits"].value, abs=0.01)
    assert found["lds/influence/digits/drop05"].value > 0.9
    assert found["auc_del_gap/influence/digits"].value > 0
    for name in ("gradient_dot", "gradient_cosine", "tracin", "rep", "pixels", "datamodel", "datamodel_means"):
        assert found[f"loo/{name}/digits"].value > 0.2, name
    assert abs(found["loo/random/digits"].value) < 0.25
    assert played.costs["datamodel"].seconds > played.costs["influence"].seconds


def test_tracin_in_closed_form_is_the_product_of_gradients(digits):
    plain = cross_entropy(digits.net)
    want = 0
    for point in digits.checkpoints:
        mine = per_example_gradients(plain, point.params, (digits.x, digits.y))
        want = want + point.lr * per_example_gradients(plain, point.params, (digits.x_test, digits.y_test)) @ mine.T
    torch.testing.assert_close(torch.tensor(contest_images.tracin_scores(digits)), want.detach())


def test_margin_targets_are_log_odds():
    p = np.array([0.001, 0.3, 0.999])
    np.testing.assert_allclose(contest_images.margin_targets(-np.log(p)), -np.log(p / (1 - p)))


def test_images_without_penalty_or_of_an_unknown_set_are_refused():
    with pytest.raises(ValueError, match="l2 must be above 0"):
        contest_images.image_model("digits", n_train=20, n_test=2, l2=0.0)
    with pytest.raises(ValueError, match="'digits' or 'mnist'"):
        contest_images.image_model("cats", n_train=20, n_test=2, l2=0.1)
    with pytest.raises(ValueError, match="has 1797 images"):
        contest_images.image_model("digits", n_train=1797, n_test=2, l2=0.1)


def test_keys_fit_the_results_schema():
    from clif_kit.ledger import check_metrics

    played = play(mean_task(fixed_tests=True), sizes=[2], subsets=5)
    found = check_metrics(metrics_of(played))
    assert "cost/seconds/exact/mean" in found
    assert found["lds/exact/mean/drop05"]["over"] == "removed sets"
    assert all(a != b for a, b in pairwise(sorted(found)))
    assert set(contest_metrics.measures(played)) == {"loo", "drop05", "drop50", "del"}
