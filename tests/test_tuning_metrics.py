"""What runs say, against numbers by head and against scipy on explicit samples."""

import itertools

import numpy as np
import pytest
from scipy import stats

from clif_kit import tuning_metrics


def run(accuracy=80.0, train=99.0, groups=((90.0, 60.0), (50.0, 95.0)), probes=(0.2, 0.4), held=(0.1, 0.3), curve=None):
    made = {
        "accuracy/test": np.array(accuracy), "accuracy/train": np.array(train), "groups/test": np.array(groups),
        "cid/probes": np.array(probes), "cid/heldout": np.array(held),
    }  # fmt: skip
    if curve:
        step, when, values = zip(*curve, strict=True)
        made |= {"curve/step": np.array(step), "curve/when": np.array(when), "curve/cid": np.array(values)}
    return made


def test_student_interval_is_scipys():
    x = [3.0, 4.5, 2.0, 7.0]
    found = tuning_metrics.student(x)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.value, found.high), (low, np.mean(x), high))
    assert (found.n, found.values) == (4, (3.0, 4.5, 2.0, 7.0))


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_student_refuses(bad):
    with pytest.raises(ValueError, match="two numbers or more"):
        tuning_metrics.student(bad)


def test_permutation_p_counts_all_splits():
    a, b = np.array([1.0, 5.0, 2.5]), np.array([4.0, 6.0, 9.0])
    pool, seen = np.concatenate([a, b]), abs(a.mean() - b.mean())
    every = [
        abs(pool[list(rows)].mean() - np.delete(pool, rows).mean()) >= seen - 1e-12
        for rows in itertools.combinations(range(6), 3)
    ]
    found = tuning_metrics.p_values(a, b)
    assert found["permutation"] == pytest.approx(np.mean(every))
    assert found["welch"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert found["equal"] == pytest.approx(stats.ttest_ind(a, b).pvalue)
    assert found["welch"] != pytest.approx(found["equal"])


def test_equal_samples_differ_in_nothing():
    assert tuning_metrics.p_values([2.0, 2.0], [2.0, 2.0]) == {"welch": 1.0, "permutation": 1.0, "equal": 1.0}


def test_accuracies_gains_and_corrected_p():
    runs = {
        "finetune": [run(70.0), run(72.0), run(71.0)],
        "better": [run(80.0), run(81.0), run(79.5)],
        "same": [run(71.0), run(70.0), run(73.0)],
    }
    found = tuning_metrics.accuracy_metrics(runs, "x", pairs=[("better", "finetune")])
    assert found["accuracy/better/x"].values == (80.0, 81.0, 79.5)
    assert found["accuracy_gain/better_minus_finetune/x"].values == (10.0, 9.0, 8.5)
    assert found["accuracy_minority/same/x"].value == 55.0  # of 60 and 50: where label and shortcut disagree
    assert found["accuracy/finetune/x_train"].value == 99.0
    p = [found[f"p/{name}/x"] for name in ("better", "same")]
    assert p[0] == pytest.approx(stats.ttest_ind([80, 81, 79.5], [70, 72, 71], equal_var=False).pvalue)
    assert found["p/better_holm/x"] == pytest.approx(2 * p[0])  # the smaller of two
    assert found["p/same_holm/x"] == pytest.approx(max(p[1], 2 * p[0]))
    assert "p/finetune/x" not in found


def test_cid_keeps_its_sign_and_its_size():
    runs = {
        "finetune": [run(probes=(0.5, -0.1)), run(probes=(0.3, 0.1))],
        "influence_tuning": [run(probes=(0.1, -0.3)), run(probes=(0.0, 0.2))],
    }
    found = tuning_metrics.cid_metrics(runs, "x")
    assert found["cid/finetune/x"].values == pytest.approx((0.2, 0.2))
    assert found["cid_abs/finetune/x"].values == pytest.approx((0.3, 0.2))
    assert found["cid/influence_tuning/x"].values == pytest.approx((-0.1, 0.1))
    assert found["cid_heldout/finetune/x"].values == pytest.approx((0.2, 0.2))
    assert found["cid_drop/finetune_minus_influence_tuning/x"].values == pytest.approx((0.3, 0.1))
    assert found["n/without_cid/x"] == 0


def test_a_run_without_cid_is_left_out_and_counted():
    runs = {
        "finetune": [run(), run(probes=(0.2, np.nan)), run()],
        "influence_tuning": [run(probes=(0.1, 0.1)), run(probes=(0.1, 0.1)), run(probes=(0.0, 0.1))],
    }
    found = tuning_metrics.cid_metrics(runs, "x")
    assert found["cid/finetune/x"].n == 2
    assert found["n/without_cid/x"] == 1
    assert found["cid_drop/finetune_minus_influence_tuning/x"].n == 2


def test_curves_by_head():
    """Label steps are 0, before a round 1, after it 2; sizes count, so that an overshoot is no success."""
    tuned = [(1, 0, 0.9), (2, 1, 0.6), (2, 2, -0.2), (4, 1, 0.5), (4, 2, 0.1)]
    plain = [(1, 0, 0.8), (2, 0, 1.0), (4, 0, 0.5), (6, 0, 0.3)]
    runs = {"finetune": [run(curve=plain)] * 2, "influence_tuning": [run(curve=tuned)] * 2}
    found = tuning_metrics.cid_metrics(runs, "x")
    assert found["cid_drop/finetune_first_minus_last/x"].value == pytest.approx(0.9 - 0.3)  # thirds: 1, 2 and 6
    assert found["cid_drop/before_minus_after_round/x"].value == pytest.approx((0.4 + 0.4) / 2)
    assert found["abs_cid/after_round/x"].value == pytest.approx(0.15)
    assert found["cid_drop/before_next_minus_after_round/x"].value == pytest.approx(0.5 - 0.2)


def test_low_cid_and_accuracy_over_runs():
    """The size of the CID falls as the accuracy rises; the control without the shortcut does not count."""
    runs = {
        "finetune": [run(60.0 + i, probes=(0.9 - 0.1 * i,) * 2) for i in range(4)],
        "influence_tuning": [run(70.0 + i, probes=(-0.4 + 0.1 * i,) * 2) for i in range(4)],
        "no_spurious": [run(10.0, probes=(0.0, 0.0))] * 4,
    }
    assert tuning_metrics.cid_metrics(runs, "x")["spearman/low_cid_accuracy/x"].value == pytest.approx(1.0)
