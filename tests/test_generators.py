"""Oracles: moments, analytic Bayes rates, and exact counts of what was planted."""

import numpy as np
import pytest
from scipy.stats import norm

from clif_kit import generators

LONG = [[f"w{i}_{j}" for j in range(30 + i % 5)] for i in range(4000)]


def counts(label, spur):
    """The 2 x 2 table [label, spur]."""
    return np.array([[np.sum((label == y) & (spur == s)) for s in (0, 1)] for y in (0, 1)])


def test_mixture_defaults_are_the_papers():
    data = generators.mixture_of_gaussians(seed=0)
    np.testing.assert_array_equal(data.y, np.repeat([0, 1, 2], 50))
    np.testing.assert_array_equal(data.means, [[0, 0], [5, 5], [5, -5]])
    assert data.std == 1.25


def test_mixture_moments():
    data = generators.mixture_of_gaussians(seed=1, n_per_class=20_000)
    for j, mean in enumerate(data.means):
        x = data.x[data.y == j]
        np.testing.assert_allclose(x.mean(0), mean, atol=5 * 1.25 / np.sqrt(20_000))
        np.testing.assert_allclose(np.cov(x.T), 1.5625 * np.eye(2), atol=0.08)  # variance 1.5625, no correlation


def test_mixture_has_the_bayes_rate_of_two_gaussians():
    data = generators.mixture_of_gaussians(seed=2, n_per_class=50_000, means=((0, 0), (3, 4)), std=2.0)
    nearest = np.argmin(((data.x[:, None] - data.means) ** 2).sum(-1), 1)
    assert np.mean(nearest == data.y) == pytest.approx(norm.cdf(5 / 2 / 2.0), abs=0.005)  # Phi(distance / 2 std)


def test_more_points_or_classes_leave_the_others_alone():
    few = generators.mixture_of_gaussians(seed=3)
    more = generators.mixture_of_gaussians(seed=3, n_per_class=60, means=((0, 0), (5, 5), (5, -5), (9, 9)))
    for j in range(3):
        np.testing.assert_array_equal(few.x[few.y == j], more.x[more.y == j][:50])


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.0, 1.0, 0.29])
def test_prefix_rates_are_exact_in_each_class(rate):
    data = generators.planted_prefix(LONG, seed=0, n_per_class=100, rate=rate)
    k = round(rate * 100)
    np.testing.assert_array_equal(counts(data.label, data.spur), [[k, 100 - k], [100 - k, k]])


def test_prefix_matches_the_published_training_counts():
    data = generators.planted_prefix(LONG, seed=0, n_per_class=750)
    np.testing.assert_array_equal(counts(data.label, data.spur), [[675, 75], [75, 675]])


def test_prefix_is_what_spur_says_and_the_rest_is_the_start_of_a_sentence():
    data = generators.planted_prefix(LONG, seed=0, n_per_class=200)
    used = set()
    for tokens, plain, spur, length in zip(data.tokens, data.without_prefix(), data.spur, data.length, strict=True):
        assert tokens[:2] == (("Negative", "."), ("Positive", "."))[spur]
        assert tokens[2:] == plain
        assert len(plain) == length
        source = int(plain[0][1:].split("_")[0])
        assert list(plain) == LONG[source][:length]
        used.add(source)
    assert len(used) == 400  # no sentence twice


def test_length_alone_reaches_the_analytic_ceiling():
    data = generators.planted_prefix(LONG, seed=1, n_per_class=2000)
    right = np.mean((data.length >= 20) == data.label)
    assert right == pytest.approx(norm.cdf(1.25), abs=0.015)  # 89.4 %; standard error .005
    others = [np.mean((data.length >= t) == data.label) for t in (*range(10, 19), *range(22, 30))]
    assert max(others) < right


def test_lengths_have_the_mean_of_a_floored_gaussian():
    data = generators.planted_prefix(LONG, seed=2, n_per_class=2000)
    assert data.length[data.label == 0].mean() == pytest.approx(14.5, abs=0.4)  # floor takes half a word
    assert data.length.min() >= 1
    assert data.length.max() == 30


def test_short_sentences_are_left_out_and_strings_are_split():
    strings = [" ".join(words) for words in LONG[:20]] + ["too short"] * 50
    data = generators.planted_prefix(strings, seed=0)
    assert len(data.tokens) == 20
    with pytest.raises(ValueError, match="20 sentences"):
        generators.planted_prefix(strings, seed=0, n_per_class=11)
    with pytest.raises(ValueError, match="rate"):
        generators.planted_prefix(strings, seed=0, rate=1.1)


def is_label(words):
    return int(bool(set(words) & set(generators._ADJECTIVES.split())))


def is_spur(words):
    return int(words.index("the") < words.index("a"))


def test_grammar_features_are_what_the_words_say():
    data = generators.grammar(seed=0, n_per_class=1000, rate=0.9)
    assert [is_label(words) for words in data.tokens] == data.label.tolist()
    assert [is_spur(words) for words in data.tokens] == data.spur.tolist()
    np.testing.assert_array_equal(counts(data.label, data.spur), [[900, 100], [100, 900]])


def test_grammar_sentences_differ_and_length_tells_nothing():
    data = generators.grammar(seed=0, n_per_class=1000)
    assert len(set(data.tokens)) == 2000
    assert {len(words) for words in data.tokens} == {7}


def test_grammar_position_of_the_modifier_tells_nothing():
    data = generators.grammar(seed=0, n_per_class=4000, rate=0.5)
    modifiers = {*generators._ADJECTIVES.split(), *generators._MODIFIERS.split()}
    second = np.array([words[1] not in modifiers for words in data.tokens])
    gap = second[data.label == 1].mean() - second[data.label == 0].mean()
    assert abs(gap) < 4 * np.sqrt(2 * 0.25 / 4000)


def test_grammar_word_lists_are_disjoint_and_take_the_article_a():
    lists = [
        getattr(generators, f"_{n}").split()
        for n in ("SUBJECTS", "OBJECTS", "VERBS", "ADJECTIVES", "MODIFIERS", "ADVERBS")
    ]
    everything = [word for words in lists for word in words]
    assert len(set(everything)) == len(everything)
    assert not [word for words in (lists[0], lists[1], *lists[3:5]) for word in words if word[0] in "aeiou"]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: generators.mixture_of_gaussians(seed=seed).x.tolist(),
        lambda seed: generators.planted_prefix(LONG, seed=seed, n_per_class=50).tokens,
        lambda seed: generators.grammar(seed=seed, n_per_class=50).tokens,
    ],
)
def test_the_seed_decides_whatever_was_called_before(make):
    first = make(7)
    make(8)
    np.random.seed(1)  # noqa: NPY002  the global generator must not matter
    assert make(7) == first
    assert make(8) != first


def test_impossible_requests_raise():
    for call in (
        lambda: generators.mixture_of_gaussians(seed=0, n_per_class=0),
        lambda: generators.mixture_of_gaussians(seed=0, std=-1),
        lambda: generators.grammar(seed=0, rate=2),
        lambda: generators.grammar(seed=0, n_per_class=2_000_000),
    ):
        with pytest.raises(ValueError):
            call()
