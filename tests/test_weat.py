"""Oracles: the formulas by loops in numpy, WEFE's stored answers, autograd, scipy's permutation test, enumeration."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import weat_rivals
from clif_kit import weat
from clif_kit.weat import RELIGION, TESTS, Resolved, WordTest

WEFE = json.loads(weat_rivals.FILE.read_text("utf-8"))
GENDER = WordTest(*map(str.split, ("he him his boy man", "she her girl woman", "law war sea sky")), name="gender")


def rows_of(x, y, a, b):
    """Consecutive rows: the first ``x`` are X, and so on."""
    return Resolved(RELIGION, *torch.arange(x + y + a + b).split([x, y, a, b]))


def drawn(seed, *sizes, width=6, shift=0.5):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(sum(sizes), width)) * rng.uniform(0.1, 10, size=(sum(sizes), 1))
    return torch.from_numpy(rows + shift), rows_of(*sizes)


# --- by loops in numpy; nothing of clif_kit ---


def cosine(u, v):
    return sum(u * v) / np.sqrt(sum(u * u)) / np.sqrt(sum(v * v))


def loop_association(vectors, word, a, b):
    with_a = [cosine(vectors[word], vectors[k]) for k in a]
    with_b = [cosine(vectors[word], vectors[k]) for k in b]
    return sum(with_a) / len(with_a) - (sum(with_b) / len(with_b) if with_b else 0.0)


def loop_associations(vectors, test):
    vectors = vectors.numpy().astype(np.float64)
    return [
        np.array([loop_association(vectors, int(w), test.a.tolist(), test.b.tolist()) for w in side])
        for side in (test.x, test.y)
    ]


def loop_effect(vectors, test, ddof=0):
    s_x, s_y = loop_associations(vectors, test)
    everyone = np.concatenate([s_x, s_y])
    centre = sum(everyone) / len(everyone)
    variance = sum((everyone - centre) ** 2) / (len(everyone) - ddof)
    return (sum(s_x) / len(s_x) - sum(s_y) / len(s_y)) / np.sqrt(variance)


# --- association and effect ---


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (5, 3, 2, 7), (6, 6, 5, 0)], ids=["equal", "unequal", "one-sided"])
def test_association_and_effect_are_the_formulas(sizes):
    vectors, test = drawn(0, *sizes)
    both = torch.cat([test.x, test.y])
    expected = np.concatenate(loop_associations(vectors, test))
    np.testing.assert_allclose(weat.association(vectors, both, test.a, test.b), expected, atol=1e-14)
    for ddof in (0, 1):
        assert float(weat.effect(vectors, test, ddof=ddof)) == pytest.approx(
            loop_effect(vectors, test, ddof), abs=1e-12
        )
    alone = loop_effect(vectors, replace(test, b=test.b[:0]))
    assert float(weat.one_sided_effect(vectors, test)) == pytest.approx(alone, abs=1e-12)


def test_effect_by_hand():
    """A is the x axis and B the y axis, so s is the difference of two coordinates over the length."""
    vectors = torch.tensor([[2.0, 0, 0], [3, 0, 4], [0, 0, 1], [0, 3, 4], [5, 0, 0], [0, 7, 0]], dtype=torch.float64)
    s = np.array([1.0, 0.6, 0.0, -0.6])
    test = rows_of(2, 2, 1, 1)
    expected = (0.8 - -0.3) / np.sqrt(((s - 0.25) ** 2).mean())
    np.testing.assert_allclose(weat.association(vectors, torch.arange(4), test.a, test.b), s, atol=1e-15)
    assert float(weat.effect(vectors, test)) == pytest.approx(expected, abs=1e-14)
    swapped = replace(test, x=test.y, y=test.x)
    assert float(weat.effect(vectors, swapped)) == pytest.approx(-expected, abs=1e-14)
    assert float(weat.effect(vectors, swapped, absolute=True)) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", weat_rivals.CASES)
def test_effect_and_statistic_equal_wefe(name):
    (x, y, a, b), vectors = weat_rivals.weat_case(name)
    vectors, test = torch.from_numpy(vectors), rows_of(len(x), len(y), len(a), len(b))
    s_x, s_y = (weat.association(vectors, side, test.a, test.b) for side in (test.x, test.y))
    assert float(s_x.sum() - s_y.sum()) == pytest.approx(WEFE["weat"][name]["weat"], abs=1e-6)
    assert float(weat.effect(vectors, test)) == pytest.approx(WEFE["weat"][name]["effect_size"], abs=1e-6)


# --- gradient ---


@settings(deadline=None)  # the first example loads libraries
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 5)),
    width=st.integers(2, 8),
    n_rows=st.integers(4, 30),
    ddof=st.sampled_from([0, 1]),
    absolute=st.booleans(),
)
def test_gradient_in_closed_form_equals_autograd(seed, sizes, width, n_rows, ddof, absolute):
    """Rows are drawn with replacement: a row may stand twice in a list, in two lists or in none."""
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.normal(size=(n_rows, width)) * rng.uniform(0.2, 5, size=(n_rows, 1)))
    test = Resolved(RELIGION, *(torch.from_numpy(rng.integers(n_rows, size=size)) for size in sizes))
    s = weat.association(vectors, torch.cat([test.x, test.y]), test.a, test.b)
    assume(float(s.std(correction=0)) > 1e-3)
    leaf = vectors.clone().requires_grad_()
    expected = torch.autograd.grad(weat.effect(leaf, test, ddof=ddof, absolute=absolute), leaf)[0]
    rows, gradient = weat.effect_gradient(vectors, test, ddof=ddof, absolute=absolute)
    assert rows.tolist() == sorted({int(row) for side in (test.x, test.y, test.a, test.b) for row in side})
    dense = torch.zeros_like(vectors)
    dense[rows] = gradient
    assert float((dense - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


def test_gradient_equals_differences_of_the_loops():
    """Not only autograd through our own effect: central differences of the oracle."""
    vectors, test = drawn(3, 3, 3, 2, 2, width=3)
    rows, gradient = weat.effect_gradient(vectors, test)
    for i, row in enumerate(rows.tolist()):
        for k in range(3):
            step = torch.zeros_like(vectors)
            step[row, k] = 1e-5
            slope = (loop_effect(vectors + step, test) - loop_effect(vectors - step, test)) / 2e-5
            assert float(gradient[i, k]) == pytest.approx(slope, abs=1e-7)


def test_gradient_keeps_the_dtype_and_needs_no_graph():
    vectors, test = drawn(4, 4, 4, 4, 4)
    gradient = weat.effect_gradient(vectors.float().requires_grad_(), test)[1]
    assert gradient.dtype == torch.float32
    assert not gradient.requires_grad
    np.testing.assert_allclose(gradient, weat.effect_gradient(vectors, test)[1], rtol=1e-3, atol=1e-5)


# --- permutation test ---


def exact_p(s_x, s_y, two_sided):
    """Share of all re-partitions whose difference of means is as large."""
    s, n = np.concatenate([s_x, s_y]), len(s_x)
    found = []
    for first in combinations(range(len(s)), n):
        second = [k for k in range(len(s)) if k not in first]
        found.append(sum(s[k] for k in first) / n - sum(s[k] for k in second) / len(second))
    found = np.abs(found) if two_sided else np.array(found)
    return np.mean(found >= found[0] - 1e-12)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4, 5, 5), (5, 3, 4, 4), (5, 5, 6, 0)], ids=["equal", "unequal", "one-sided"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_p_is_near_the_exact_one(seed, sizes, two_sided):
    """25,000 runs are two and a half blocks; five standard errors of a binomial share."""
    vectors, test = drawn(seed, *sizes)
    p, runs = exact_p(*loop_associations(vectors, test), two_sided), 25_000
    found = weat.permutation_test(vectors, test, runs=runs, seed=seed, two_sided=two_sided)
    assert abs(found - p) < 5 * np.sqrt(p * (1 - p) / runs) + 1 / runs


def test_p_is_near_scipys():
    vectors, test = drawn(7, 8, 8, 8, 8)
    s_x, s_y = loop_associations(vectors, test)
    theirs = stats.permutation_test(
        (s_x, s_y),
        lambda x, y: x.mean() - y.mean(),
        permutation_type="independent",
        alternative="greater",
        n_resamples=12_870,  # all of them: 16 over 8
    ).pvalue
    assert weat.permutation_test(vectors, test, runs=40_000) == pytest.approx(
        theirs, abs=5 * np.sqrt(theirs * (1 - theirs) / 40_000)
    )


def test_p_is_never_zero_and_follows_the_sign():
    """X stands on A and Y on B: of 25 over 25 no shuffle drawn comes near, so the count is 0 or all."""
    vectors = torch.eye(2).repeat_interleave(25, 0) + 0.01 * torch.arange(50)[:, None]
    test = Resolved(RELIGION, torch.arange(25), torch.arange(25, 50), torch.tensor([0]), torch.tensor([49]))
    turned = replace(test, x=test.y, y=test.x)
    assert weat.permutation_test(vectors, test, runs=99) == 1 / 100
    assert weat.permutation_test(vectors, turned, runs=99) == 1.0
    assert weat.permutation_test(vectors, turned, runs=99, two_sided=True) == 1 / 100


def test_ties_count():
    """Associations 1 and -1 in X and again in Y: the difference is 0, 4 of 6 re-partitions tie and 1 is larger."""
    vectors = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, 0.1]])
    test = Resolved(RELIGION, *(torch.tensor(side) for side in ([0, 1], [2, 3], [0], [1])))
    assert weat.permutation_test(vectors, test, runs=30_000) == pytest.approx(5 / 6, abs=0.01)


def test_the_lists_as_they_are_tie_in_any_order():
    """X is all of the larger associations: 1 of the 70 re-partitions, whose sum differs in the last digit by order."""
    angles = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
    angles[4:] += 1  # Y is nearer to the second axis
    vectors = torch.cat([torch.stack([angles.cos(), angles.sin()], dim=1), torch.eye(2)])
    found = weat.permutation_test(vectors, rows_of(4, 4, 1, 1), runs=25_000)
    assert found == pytest.approx(1 / 70, abs=5 * np.sqrt(1 / 70 / 25_000))


def test_the_seed_decides_and_blocks_differ():
    vectors, test = drawn(1, 6, 6, 6, 6)
    one, same, other = (weat.permutation_test(vectors, test, runs=500, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    first, both = (weat.permutation_test(vectors, test, runs=runs) * (runs + 1) - 1 for runs in (10_000, 20_000))
    assert round(both) != 2 * round(first)


# --- word lists ---


def test_the_lists_are_complete():
    sizes = {name: tuple(len(getattr(test, side)) for side in "xyab") for name, test in TESTS.items()}
    assert sizes == dict.fromkeys(("career", "math", "art", "science"), (8, 8, 8, 8)) | {"race": (10, 10, 22, 22)}
    assert all(test.name == name for name, test in TESTS.items())
    assert (RELIGION.x, RELIGION.y, len(RELIGION.a), RELIGION.b) == (TESTS["race"].x, TESTS["race"].y, 6, ())


def test_art_has_the_sign_of_the_paper():
    """Male words beside the science words: positive for science, negative for art, as the paper prints it."""
    test = TESTS["science"]
    words = (*test.x, *test.y, *test.a, *test.b)
    index = {word: row for row, word in enumerate(words)}
    near_a = torch.tensor([[float(word in test.x + test.a), float(word in test.y + test.b)] for word in words])
    vectors = near_a + 0.01 * torch.rand(len(words), 2, generator=torch.Generator().manual_seed(0))
    science, art = (
        float(weat.effect(vectors, weat.resolve(TESTS[name], dict.fromkeys(words, 9), index)))
        for name in ("science", "art")
    )
    assert science > 1.9
    assert art == pytest.approx(-science, abs=1e-6)


@pytest.mark.parametrize(
    ("lists", "places"),
    [
        (("ab", "bc", "de", "fg"), "'b' stands in x and in y"),
        (("ab", "cd", "ef", "fg"), "'f' stands in a and in b"),
        (("ab", "cd", "de", "fg"), "'d' stands in y and in a"),
        (("ab", "cd", "ef", "ga"), "'a' stands in x and in b"),
        (("aa", "cd", "ef", "gh"), "'a' stands in x and in x"),
    ],
)
def test_a_word_has_one_place(lists, places):
    with pytest.raises(ValueError, match=f"^toy: {places}; every word must have one place$"):
        WordTest(*map(tuple, lists), name="toy")


@pytest.mark.parametrize("x", ["john paul", (), []])
def test_a_list_is_a_list_of_words(x):
    with pytest.raises(ValueError, match="x must be a list of words"):
        WordTest(x, ("a",), ("b",), ("c",))


# --- what a vocabulary can answer ---


def test_resolve_reports_balances_and_keeps_the_order():
    test = replace(GENDER, b=("tea", "cup", "pot", "jug", "mug"))
    words = [word for word in (*test.b, *test.a, *test.y, *test.x) if word != "pot"]  # pot has no vector
    index = {word: 2 * row for row, word in enumerate(words)}
    counts = dict.fromkeys(index, 9) | {"pot": 70, "him": 4, "boy": 5, "jug": 8}
    found = weat.resolve(test, counts, index)
    assert found.words.x == ("he", "his", "boy", "man")
    assert found.words.b == ("tea", "cup", "jug", "mug")
    for side in weat.SIDES:
        rows = getattr(found, side)
        assert rows.dtype == torch.int64
        assert rows.tolist() == [index[word] for word in getattr(found.words, side)]
    assert (found.missing, found.dropped) == ({"him": 4, "pot": 70}, {})
    assert found.summary() == "gender: 4 X, 4 Y, 4 A, 4 B; missing or rare: him (4), pot (70)"


def test_the_rarest_words_of_the_longer_side_go_and_of_equals_the_later():
    test = replace(GENDER, x=("a1", "a2", "a3", "a4", "a5", "a6", "a7"), b=("b1", "b2", "b3", "b4", "b5"))
    index = {word: row for row, word in enumerate((*test.x, *test.y, *test.a, *test.b))}
    counts = dict.fromkeys(index, 9) | {"a2": 6, "a1": 20, "b3": 8}
    found = weat.resolve(test, counts, index)
    assert (found.words.x, found.words.b) == (("a1", "a3", "a4", "a5"), ("b1", "b2", "b4", "b5"))
    assert found.dropped == {"a2": 6, "a6": 9, "a7": 9, "b3": 8}
    assert found.missing == {}


def test_min_count_is_the_least_that_counts():
    index = {word: row for row, word in enumerate((*GENDER.x, *GENDER.y, *GENDER.a))}
    assert len(weat.resolve(GENDER, dict.fromkeys(index, 7), index, min_count=7).x) == 4
    with pytest.raises(ValueError, match="0 of the 5 words of X have a vector and occur 8 times or more"):
        weat.resolve(GENDER, dict.fromkeys(index, 7), index, min_count=8)


@pytest.mark.parametrize(("side", "word"), [("Y", "girl"), ("A", "sea")])
def test_three_words_a_side_are_too_few(side, word):
    index = {word: row for row, word in enumerate((*GENDER.x, *GENDER.y, *GENDER.a))}
    counts = dict.fromkeys(index, 9) | {word: 2}
    listed = ", ".join(f"{w} ({counts[w]})" for w in getattr(GENDER, side.lower()))
    with pytest.raises(ValueError) as caught:
        weat.resolve(GENDER, counts, index)
    assert str(caught.value) == (
        f"gender: 3 of the 4 words of {side} have a vector and occur 5 times or more, need 4: {listed}"
    )


def test_no_race_test_where_the_names_are_missing():
    words = {word for test in TESTS.values() for side in "xyab" for word in getattr(test, side)}
    index = {word: row for row, word in enumerate(sorted(words - set(TESTS["race"].y[2:])))}
    with pytest.raises(ValueError, match=r"race: 2 of the 10 words of Y .*theo \(30\).*malik \(0\)"):
        weat.resolve(TESTS["race"], dict.fromkeys(index, 30), index)


# --- bad input ---


def test_vectors_that_cannot_be_asked():
    vectors, test = drawn(0, 4, 4, 4, 4)
    for wrong, what in (
        (vectors[0], "shape"),
        (vectors[None], "shape"),
        (vectors.long(), "int64"),
        (vectors.T, "got 0 to 7"),
        (vectors[:15], "need rows from 0 to 14 of the vectors"),
    ):
        for call in (weat.effect, weat.effect_gradient, weat.permutation_test):
            with pytest.raises(ValueError, match=what):
                call(wrong, test)
    with pytest.raises(ValueError, match="got -1 to"):
        weat.association(vectors, torch.tensor([-1]), test.a, test.b)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("row", [1, 5, 9, 13])
def test_a_broken_vector_of_a_test_word_is_named_and_others_do_not_matter(row, value):
    vectors, test = drawn(0, 4, 4, 4, 4)
    vectors = torch.cat([vectors, torch.full((1, 6), value)])  # no test word
    expected = float(weat.effect(vectors, test))
    assert expected == pytest.approx(loop_effect(vectors, test))
    vectors[row] = value
    for call in (weat.effect, weat.one_sided_effect, weat.effect_gradient, weat.permutation_test):
        if row == 13 and call is weat.one_sided_effect:
            continue
        with pytest.raises(ValueError, match=rf"({'are zero' if value == 0 else 'NaN or infinity'}): rows \[{row}\]"):
            call(vectors, test)


def test_what_is_not_defined_is_refused():
    vectors, test = drawn(0, 4, 4, 4, 4)
    for call in (weat.effect, weat.effect_gradient):
        with pytest.raises(ValueError, match="ddof must be 0 or 1"):
            call(vectors, test, ddof=2)
        with pytest.raises(ValueError, match="same association"):
            call(torch.cat([vectors[:1].expand(8, -1), vectors[8:]]), test)
    with pytest.raises(ValueError, match="runs >= 1"):
        weat.permutation_test(vectors, test, runs=0)
    for side in "xya":
        with pytest.raises(ValueError, match="X, Y and A need a word each"):
            replace(test, **{side: test.x[:0]})
