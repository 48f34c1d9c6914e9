"""Oracles: the method by loops in numpy with an eigendecomposition, WEFE's stored vectors, and what it promises."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import weat_rivals
from clif_kit import hard_debias as hd
from clif_kit.weat import TESTS

WEFE = json.loads(weat_rivals.FILE.read_text("utf-8"))["hard_debias"]
DEFINITIONAL = (("d0", "e0"), ("d1", "e1"), ("d2", "e2"), ("d3", "e3"))
EQUALIZE = (("p0", "q0"), ("p1", "q1"), ("d0", "e0"))


def silent(_):
    """Say nothing."""


def drawn(seed, neutral=9, width=5):
    """Words, float64 vectors of many lengths, and the index. Definitional pairs differ along one direction, mostly."""
    rng = np.random.default_rng(seed)
    words = [word for pair in (*DEFINITIONAL, *EQUALIZE[:2]) for word in pair] + [f"n{i}" for i in range(neutral)]
    rows = rng.normal(size=(len(words), width))
    rows[:8:2] += 0.8
    rows *= rng.uniform(0.1, 10, size=(len(words), 1))
    return words, torch.from_numpy(rows), {word: row for row, word in enumerate(words)}


def unit(v):
    return v / np.sqrt((v * v).sum())


def loop_direction(vectors, index, pairs):
    """Largest eigenvector of the covariance of the centred pairs."""
    scatter = np.zeros((vectors.shape[1],) * 2)
    for pair in pairs:
        first, second = (unit(vectors[index[word]]) for word in pair)
        for v in (first, second):
            scatter += np.outer(v - (first + second) / 2, v - (first + second) / 2)
    return np.linalg.eigh(scatter)[1][:, -1]


def loop_hard_debias(vectors, index, definitional, equalize, keep):
    g = loop_direction(vectors, index, definitional)
    before = {word: unit(vectors[row]) for word, row in index.items()}
    after = {word: v if word in keep else unit(v - g * (v @ g)) for word, v in before.items()}
    for first, second in equalize:
        mean = (after[first] + after[second]) / 2
        y = mean - g * (mean @ g)
        z = np.sqrt(1 - y @ y)
        side = 1 if before[first] @ g >= before[second] @ g else -1
        after[first], after[second] = y + side * z * g, y - side * z * g
    return np.stack([unit(after[word]) for word in index])


def debiased(vectors, index, keep, **options):
    return hd.hard_debias(vectors, index, definitional=DEFINITIONAL, equalize=EQUALIZE, keep=keep, **options)


KEPT = frozenset(word for pair in (*DEFINITIONAL, *EQUALIZE) for word in pair)


@pytest.mark.parametrize("keep", [KEPT, KEPT - {"p0", "q0", "d1"}, frozenset()], ids=["all pairs", "some", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_loop(seed, keep):
    _, vectors, index = drawn(seed)
    expected = loop_hard_debias(vectors.numpy(), index, DEFINITIONAL, EQUALIZE, keep)
    np.testing.assert_allclose(debiased(vectors, index, keep), expected, atol=1e-12)


def test_it_equals_wefe():
    """WEFE equalises the vectors as they were before neutralising; these pairs are kept, so it is the same here."""
    words, vectors = weat_rivals.debias_case()
    found = hd.hard_debias(
        torch.from_numpy(vectors),
        {word: row for row, word in enumerate(words)},
        definitional=weat_rivals.DEFINITIONAL,
        equalize=weat_rivals.EQUALIZE,
        keep=weat_rivals.KEEP,
    )
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, [WEFE[word] for word in words], atol=1e-6)


@settings(deadline=None)  # the first example loads libraries
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(2, 12))
def test_what_it_promises(seed, width):
    """Neutral words are orthogonal to the direction, equalised pairs equally far from each of them, rows unit."""
    words, vectors, index = drawn(seed, width=width)
    result = debiased(vectors, index, KEPT)
    pairs, _ = hd.find_pairs(DEFINITIONAL, index)
    g = hd.bias_direction(vectors, pairs)
    neutral = result[[index[word] for word in words if word not in KEPT]]
    torch.testing.assert_close(result.norm(dim=1), torch.ones(len(words), dtype=torch.float64))
    assert float((neutral @ g).abs().max()) < 1e-9
    before = vectors / vectors.norm(dim=1, keepdim=True)
    for first, second in (map(index.get, pair) for pair in EQUALIZE):
        one, other = ((neutral - result[row]).norm(dim=1) for row in (first, second))
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
        sides = [float((rows[first] - rows[second]) @ g) for rows in (before, result)]
        assert sides[0] * sides[1] >= 0  # the word on the first side stays there
    untouched = [index[word] for word in ("d1", "e1", "d2", "e2", "d3", "e3")]
    torch.testing.assert_close(result[untouched], before[untouched])


@settings(deadline=None)  # the first example loads libraries
@given(seed=st.integers(0, 2**32 - 1))
def test_direction_is_the_largest_eigenvector_and_points_to_the_first_words(seed):
    _, vectors, index = drawn(seed)
    pairs, _ = hd.find_pairs(DEFINITIONAL, index)
    g, expected = hd.bias_direction(vectors, pairs).numpy(), loop_direction(vectors.numpy(), index, DEFINITIONAL)
    assert abs(g @ expected) == pytest.approx(1, abs=1e-9)
    apart = [unit(vectors[index[a]].numpy()) - unit(vectors[index[b]].numpy()) for a, b in DEFINITIONAL]
    assert np.mean(apart, axis=0) @ g >= 0
    np.testing.assert_allclose(hd.bias_direction(vectors, pairs.flip(1)), -g, atol=1e-12)


def test_the_input_stays_as_it_was_and_dtype_too():
    _, vectors, index = drawn(0)
    before = vectors.clone()
    result = debiased(vectors.float().requires_grad_(), index, KEPT)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(vectors, before)
    np.testing.assert_allclose(result, debiased(vectors, index, KEPT), atol=1e-6)


def test_pairs_without_a_vector_are_skipped_and_said():
    _, vectors, index = drawn(1)
    said = []
    result = hd.hard_debias(
        vectors,
        index,
        definitional=[*DEFINITIONAL, ("gal", "e0")],
        equalize=[*EQUALIZE, ("king", "queen"), ("p0", "q0")],  # a pair that is listed again is one pair
        keep=[*KEPT, "nowhere"],
        say=said.append,
    )
    assert torch.equal(result, debiased(vectors, index, KEPT, say=said.append))
    assert said == [
        "1 of 5 definitional pairs have a word without a vector, skipped: gal/e0",
        "1 of 4 equalize pairs have a word without a vector, skipped: king/queen",
    ]


# --- the lists ---


def test_the_lists_have_each_pair_once():
    assert (len(hd.DEFINITIONAL), len(hd.EQUALIZE), len(hd.RACE_EQUALIZE), len(hd.RACE_KEEP)) == (10, 43, 5, 4)
    for pairs in (hd.DEFINITIONAL, hd.EQUALIZE, hd.RACE_EQUALIZE, hd.RACE_DEFINITIONAL):
        words = [word for pair in pairs for word in pair]
        assert len(set(words)) == len(words)
        assert all(len(pair) == 2 and word == word.lower() for pair in pairs for word in pair)


def test_the_pairs_for_race_are_the_names_of_the_race_test():
    assert tuple(zip(TESTS["race"].x, TESTS["race"].y, strict=True)) == hd.RACE_DEFINITIONAL


def test_the_lists_are_those_of_the_files():
    """Where the data are at hand; the registry has the address and the checksum of each file."""
    folder = Path(__file__).parents[1] / os.environ.get("CLIF_DATA_MIRROR", "../shared/data") / "word_lists"
    if not folder.is_dir():
        pytest.skip("no mirror of the data")

    def pairs(name):
        listed = json.loads((folder / name).read_text("utf-8"))
        return [(a.lower(), b.lower()) for a, b in listed if "_" not in a + b]

    assert list(hd.DEFINITIONAL) == pairs("definitional_pairs.json")
    assert set(hd.EQUALIZE) == set(pairs("equalize_pairs.json"))
    assert list(hd.RACE_EQUALIZE) == pairs("e_race.json")
    assert set(json.loads((folder / "r_race.json").read_text("utf-8"))) == hd.RACE_KEEP


# --- bad input ---


def test_too_few_pairs():
    _, vectors, index = drawn(0)
    with pytest.raises(ValueError, match="2 of 3 definitional pairs are in the vocabulary, need 3: d0/e0, d1/e1, a/b"):
        hd.hard_debias(vectors, index, definitional=(*DEFINITIONAL[:2], ("a", "b")), equalize=[], keep=[], say=silent)
    with pytest.raises(ValueError, match="at least 3 pairs"):
        hd.bias_direction(vectors, torch.tensor([[0, 1], [2, 3]]))


def test_pairs_that_share_a_word():
    _, vectors, index = drawn(0)
    with pytest.raises(ValueError, match=r"share a word.*p0/q0, q0/p1"):
        hd.hard_debias(vectors, index, definitional=DEFINITIONAL, equalize=[("p0", "q0"), ("q0", "p1")], keep=[])


def test_pairs_without_a_direction():
    vectors = torch.eye(3).repeat_interleave(2, 0)
    with pytest.raises(ValueError, match="same vector"):
        hd.bias_direction(vectors, torch.tensor([[0, 1], [2, 3], [4, 5]]))


def test_a_neutral_word_that_is_nothing_but_the_direction():
    _, vectors, index = drawn(0)
    pairs, _ = hd.find_pairs(DEFINITIONAL, index)
    vectors[index["n3"]] = 4 * hd.bias_direction(vectors, pairs)
    with pytest.raises(ValueError, match=rf"nothing is left of them: rows \[{index['n3']}\]"):
        debiased(vectors, index, KEPT)
    assert torch.isfinite(debiased(vectors, index, KEPT | {"n3"})).all()


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "NaN"), (0.0, "are zero")])
def test_broken_vectors(value, what):
    _, vectors, index = drawn(0)
    vectors[[7, 9]] = value
    with pytest.raises(ValueError, match=f"2 of 21 vectors .*{what}.*first row 7"):
        debiased(vectors, index, KEPT)


def test_vectors_of_another_shape():
    _, vectors, index = drawn(0)
    for wrong, what in (
        (vectors[0], "shape"),
        (vectors.int(), "int32"),
        (vectors[:-1], "index has row 20, the vectors"),
    ):
        with pytest.raises(ValueError, match=what):
            debiased(wrong, index, KEPT)
