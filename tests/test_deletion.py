"""Deletion against plain loops over a training in closed form; each call of the fit leaves a line.

The toy: the logit of a test point is a sum over the kept examples plus noise of the seed.
"""

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from clif_kit import deletion_ranks as ranks
from clif_kit.deletion import changes, left, make_plan, run, subset_changes
from clif_kit.store import Store

TESTS, N, SIZES, SEEDS = 5, 30, (2, 5, 9), (0, 1, 4)
PARTS = np.random.default_rng(0).normal(size=(TESTS, N)) / 3  # of the logit, by test point and example
LABELS, TEST_LABELS = np.arange(N) % 3, np.array([0, 1, 2, 0, 1])
CANDIDATES = np.random.default_rng(1).random((TESTS, N)) < 0.7


def toy(parts=PARTS, shared=1.0, own=0.0, log=None, pause=0.0):
    """``shared``: noise that a seed gives to every model; ``own``: that it gives to this one. Nested: sent by value."""

    def fit(keep, seed):
        import time

        import numpy

        time.sleep(pause)
        if log:
            with open(log, "a") as file:
                file.write(f"{','.join(map(str, numpy.flatnonzero(~keep)))} {seed}\n")
        noise = shared * numpy.random.default_rng(seed).normal(size=len(parts))
        noise += own * numpy.random.default_rng([seed, *numpy.flatnonzero(~keep)]).normal(size=len(parts))
        logit = parts[:, keep].sum(1) + noise
        return {"probability": 1 / (1 + numpy.exp(-logit)), "loss": numpy.log1p(numpy.exp(-logit))}

    return fit


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def some_ranks():
    noisy = PARTS + np.random.default_rng(2).normal(size=PARTS.shape) / 3
    return {
        "perfect": ranks.rank(PARTS, 9),
        "noisy": ranks.rank(noisy, 9),
        "random": ranks.random_rank(PARTS.shape, 9),
        "same_class_random": ranks.same_class_rank(LABELS, TEST_LABELS, 9),
    }


@pytest.fixture(name="store")
def _store(tmp_path):
    return Store(tmp_path / "store", fingerprint="f" * 64)


def quiet(plan, fit, store, **settings):
    return run(plan, fit, store=store, progress=False, say=lambda _: None, **{"n_jobs": 1, **settings})


# --- rankings


@pytest.mark.parametrize("mask", [None, CANDIDATES])
def test_a_ranking_is_a_sort_by_score_then_index_among_the_candidates(mask):
    scores = np.random.default_rng(3).integers(-2, 3, size=PARTS.shape).astype(float)  # many ties
    found = ranks.rank(scores, 9, mask)
    for t in range(TESTS):
        pool = [i for i in range(N) if mask is None or mask[t, i]]
        assert found[0, t].tolist() == sorted(pool, key=lambda i: (-scores[t, i], i))[:9]
        assert found[1, t].tolist() == sorted(pool, key=lambda i: (scores[t, i], i))[:9]


def test_the_other_sign_is_the_same_sets_the_other_way_round():
    scores = np.round(PARTS, 1)
    np.testing.assert_array_equal(ranks.rank(-scores, 9), ranks.rank(scores, 9)[::-1])


def test_ties_at_the_cut_are_counted():
    scores = np.round(PARTS, 1)
    scores[0] = 0.0
    tied = []
    for row in scores:
        falling = sorted(row, reverse=True)
        for k in SIZES:
            tied += [falling[k - 1] == falling[k], falling[-k] == falling[-k - 1]]
    assert 0.2 < np.mean(tied) < 1
    assert ranks.tied_share(scores, SIZES) == pytest.approx(np.mean(tied))
    assert ranks.tied_share(PARTS, SIZES) == 0


@pytest.mark.parametrize("mask", [None, CANDIDATES])
def test_controls_hold_candidates_of_the_right_class_in_one_common_order(mask):
    allowed = np.ones(PARTS.shape, bool) if mask is None else mask
    largest = 5
    whole = ranks.random_rank(PARTS.shape, N, seed=7)
    random = ranks.random_rank(PARTS.shape, largest, mask, seed=7)
    classes = ranks.same_class_rank(LABELS, TEST_LABELS, largest, mask, seed=7)
    for t in range(TESTS):
        order = [i for i in whole[0, t] if allowed[t, i]]
        assert random[0, t].tolist() == random[1, t].tolist() == order[:largest]
        assert classes[0, t].tolist() == [i for i in order if LABELS[i] == TEST_LABELS[t]][:largest]
        assert classes[1, t].tolist() == [i for i in order if LABELS[i] != TEST_LABELS[t]][:largest]
    assert len({tuple(row) for row in whole[0]}) == TESTS  # each test point has an order of its own
    np.testing.assert_array_equal(ranks.random_rank((2, N), 4, seed=7), whole[:, :2, :4])  # and keeps it
    assert (ranks.random_rank(PARTS.shape, N, seed=8) != whole).any()


def test_random_sets_are_uniform():
    first = [ranks.random_rank((1, 6), 2, seed=s)[0, 0] for s in range(3000)]
    share = np.bincount(np.concatenate(first), minlength=6) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / 3000))


def test_random_subsets_are_distinct_sets_of_the_share():
    half = ranks.random_subsets(40, 0.5, 12, seed=1)
    assert all(len(set(s.tolist())) == 20 and s.max() < 40 for s in half)
    assert len({s.tobytes() for s in half}) == 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks.rank(PARTS, N + 1), f"k = {N + 1}, but test point 0 has {N} candidates"),
        (lambda: ranks.rank(PARTS, N, CANDIDATES), "take a smaller k"),
        (lambda: ranks.rank(PARTS * np.nan, 2), "without NaN"),
        (lambda: ranks.rank(PARTS[0], 2), r"\(tests, n\)"),
        (lambda: ranks.rank(PARTS, 2, CANDIDATES.astype(int)), "mask"),
        (lambda: ranks.rank(PARTS, 2, CANDIDATES[:, 1:]), "mask"),
        (lambda: ranks.random_rank(PARTS.shape, N + 1), "candidates"),
        (lambda: ranks.same_class_rank(LABELS, TEST_LABELS, 11), "has 10 candidates of its own class"),
        (lambda: ranks.same_class_rank(LABELS % 2 * 0 + (LABELS > 1), 0 * TEST_LABELS, 11), "10 candidates of other"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4)}, [2, 5], [0], N), "k = 5 is longer than the rankings of a"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4)}, [4, 2], [0], N), "must rise"),
        (lambda: make_plan({"a": ranks.rank(PARTS, N)}, [N], [0], N), "must rise"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4)}, [2], [0, 0], N), "each seed once"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4), "b": ranks.rank(PARTS[:2], 4)}, [2], [0], N), "same tests"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4)}, [2], [0], N, subsets={"x": [np.array([1, 1])]}), "distinct"),
        (lambda: make_plan({"a": ranks.rank(PARTS, 4)}, [2], [0], N, subsets={"x": [np.arange(N)]}), "leave something"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# --- the plan


def test_equal_sets_are_trained_once_whoever_asked():
    found = some_ranks() | {"printed_sign": some_ranks()["perfect"][::-1]}
    subsets = {"drop05": [np.array([3, 7]), np.array([7, 3])]}
    plan = make_plan(found, SIZES, SEEDS, N, subsets=subsets)
    wanted = {
        frozenset(r[i, t, :k].tolist()) for r in found.values() for i in (0, 1) for t in range(TESTS) for k in SIZES
    }
    wanted |= {frozenset({3, 7})}
    assert {frozenset(s.tolist()) for s in plan.sets} == wanted | {frozenset()}
    assert len(plan.sets) == len(wanted) + 1
    assert plan.retrainings == (len(wanted) + 1) * 3
    assert plan.subsets["drop05"][0] == plan.subsets["drop05"][1]
    for name, r in found.items():
        for i, (j, k), t in itertools.product(range(2), enumerate(SIZES), range(TESTS)):
            assert set(plan.sets[plan.places[name][i, j, t]]) == set(r[i, t, :k])


def test_the_summary_says_what_it_costs():
    plan = make_plan({"a": ranks.rank(np.eye(2, 400), 8)}, [2, 8], [0, 1], 400)
    first, second = plan.summary(seconds=90.0, processes=2).splitlines()
    sets = len(plan.sets) - 1
    assert first.startswith(f"{2 * sets + 2} retrainings: {sets} distinct sets and the full data x 2 seeds (18 before")
    assert "k = 2, 8 of 400 (0.5 to 2 %)" in first
    assert (
        second == f"0 are stored, {2 * sets + 2} are left: about {1.5 * (sets + 1):.1f} min at 90 s a fit, 2 at a time"
    )
    assert "time unknown" in plan.summary()
    assert plan.summary(left=0).endswith("0 are left: nothing to train")


# --- running it


def by_hand(fit, r, i, k, t, seed):
    """DEL of one set and one seed."""
    keep = np.array([j not in r[i, t, :k].tolist() for j in range(N)])
    return fit(keep, seed)["probability"][t] - fit(np.ones(N, bool), seed)["probability"][t]


@pytest.mark.parametrize("points", [None, [3, 1]])
def test_changes_equal_training_by_hand_with_the_same_seed(store, points):
    fit, found = toy(own=0.3), some_ranks()
    plan = make_plan(found, SIZES, SEEDS, N, points=points)
    got = changes(plan, quiet(plan, fit, store)["probability"])
    for name, r in found.items():
        expected = [
            [[[by_hand(fit, r, i, k, t, s) for s in SEEDS] for t in points or range(TESTS)] for k in SIZES]
            for i in range(2)
        ]
        np.testing.assert_allclose(got[name], expected, atol=1e-15)
    assert got["perfect"][0].max() < got["perfect"][1].min()  # proponents lower, opponents raise


def test_subset_changes_are_those_of_the_query_loss(store):
    fit, chosen = toy(own=0.3), ranks.random_subsets(N, 0.2, 4)
    plan = make_plan({"a": ranks.rank(PARTS, 2)}, [2], SEEDS, N, points=[0], subsets={"drop20": chosen})
    found = quiet(plan, fit, store)
    for name, sign, values in (("probability", -1, -found["probability"]), ("loss", 1, found["loss"])):
        got = subset_changes(plan, values)["drop20"]
        assert got.shape == (3, TESTS, 4)
        for (s, seed), (m, removed) in itertools.product(enumerate(SEEDS), enumerate(chosen)):
            keep = ~np.isin(np.arange(N), removed)
            moved = fit(keep, seed)[name] - fit(np.ones(N, bool), seed)[name]
            np.testing.assert_allclose(got[s, :, m], sign * moved, atol=1e-15)


def test_two_processes_give_the_same_bits(tmp_path):
    plan = make_plan({"a": ranks.rank(PARTS, 2)}, [2], [0, 1], N)
    one, two = (
        quiet(plan, toy(own=0.3), Store(tmp_path / str(jobs), fingerprint="f" * 64), n_jobs=jobs) for jobs in (1, 2)
    )
    for name in ("probability", "loss"):
        assert one[name].tobytes() == two[name].tobytes()


def test_the_cost_is_said_before_and_after_one_measured_fit(store, tmp_path):
    log, said = tmp_path / "calls", []
    plan = make_plan({"a": ranks.rank(PARTS, 2)}, [2], [0, 1], N)
    fit = toy(log=log, pause=0.02)
    run(plan, fit, store=store, n_jobs=1, progress=False, say=lambda text: said.append((text, len(lines(log)))))
    (text, trained), total = said[0], plan.retrainings
    assert len(said) == 1
    assert trained == 1
    assert f"1 are stored, {total - 1} are left: about " in text
    assert float(text.split(" s a fit")[0].split()[-1]) >= 0.02
    run(plan, fit, store=store, n_jobs=1, progress=False, say=lambda text: said.append((text, len(lines(log)))))
    assert said[1] == (plan.summary(left=0), total)
    other = Store(tmp_path / "other", fingerprint="f" * 64)
    run(
        plan,
        fit,
        store=other,
        n_jobs=1,
        seconds=5.0,
        progress=False,
        say=lambda text: said.append((text, len(lines(log)))),
    )
    assert said[2][1] == total  # nothing was trained to find out
    assert f"0 are stored, {total} are left" in said[2][0]


def test_another_plan_finds_what_this_one_has_trained(store, tmp_path):
    log, found = tmp_path / "calls", some_ranks()
    small = make_plan({"perfect": found["perfect"]}, [5], [4, 0], N, points=[1, 2])
    large = make_plan(found, SIZES, SEEDS, N, subsets={"drop05": ranks.random_subsets(N, 0.05, 3)})
    first = quiet(small, toy(log=log), store)
    assert left(small, store) == 0
    assert left(large, store) == large.retrainings - small.retrainings
    whole = quiet(large, toy(log=log), store)
    assert len(lines(log)) == len(set(lines(log))) == large.retrainings
    np.testing.assert_array_equal(whole["probability"][0, [2, 0]], first["probability"][0])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p: {"probability": p * np.nan}, "without 0 examples, seed 0: 5 probabilities are NaN"),
        (lambda p: {"probability": 2 + p}, "outside"),
        (lambda p: {"probability": p[:3]}, r"of shape \(5,\), got \(3,\)"),
        (lambda p: {"loss": p}, "got none"),
    ],
)
def test_a_fit_that_answers_nonsense_is_named(store, answer, message):
    plan = make_plan({"a": ranks.rank(PARTS, 2)}, [2], [0], N)
    with pytest.raises(ValueError, match=message):
        quiet(plan, lambda keep, seed: answer(toy()(keep, seed)["probability"]), store)
    assert not store.keys()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from test_deletion import *
plan = make_plan(some_ranks(), SIZES, SEEDS, N)
quiet(plan, toy(log=sys.argv[2], pause=0.1), Store(sys.argv[1], fingerprint="f" * 64), n_jobs=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers die with their parent there")
def test_a_killed_run_goes_on_and_trains_nothing_twice_that_was_stored(store, tmp_path):
    log = tmp_path / "calls"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, store.folder, log, os.path.dirname(__file__)])
    end = time.monotonic() + 200
    while len(store.keys()) < 6 and time.monotonic() < end and child.poll() is None:
        time.sleep(0.02)
    child.kill()
    child.wait()
    time.sleep(1.5)  # its workers look for their parent twice a second
    plan, done, before = make_plan(some_ranks(), SIZES, SEEDS, N), len(store.keys()), len(lines(log))
    assert 6 <= done < plan.retrainings
    assert left(plan, store) == plan.retrainings - done
    found = quiet(plan, toy(log=log), store)
    assert len(lines(log)) - before == plan.retrainings - done
    again = lines(log)[before:]
    assert len(set(again)) == len(again)
    got = changes(plan, found["probability"])["noisy"]
    assert got[1, 2, 4, 1] == pytest.approx(by_hand(toy(), some_ranks()["noisy"], 1, SIZES[2], 4, SEEDS[1]), abs=1e-15)
