"""Oracle: double loops over the places of each sentence."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clif_kit.corpus import Corpus, Vocabulary, build_vocabulary, encode, pair_counts, pair_numbers
from clif_kit.skipgram import SkipgramLoss

TEXTS = [s.split() for s in ["the cat saw the cat", "", "eel", "a dog saw a cat near the dog", "dog", "the eel the a"]]
SIZE = 6


def corpus_of(sentences, size=SIZE):
    """Rows straight into the arrays: no encode, so that empty corpora are possible."""
    offsets = np.cumsum([0] + [len(s) for s in sentences])
    tokens = np.array([row for s in sentences for row in s], dtype=np.int32)
    return Corpus(tokens, offsets, Vocabulary(tuple(f"w{i}" for i in range(size)), np.arange(size, 0, -1)))


def rows_of(corpus):
    return [corpus.sentence(i).tolist() for i in range(len(corpus))]


sentences_ = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=9), max_size=6)


# --- vocabulary and encoding ---


def test_a_vocabulary_counts_and_orders():
    vocabulary = build_vocabulary(TEXTS, min_count=2)
    assert vocabulary.words == ("the", "a", "cat", "dog", "eel", "saw")
    assert vocabulary.counts.tolist() == [5, 3, 3, 3, 2, 2]
    assert [vocabulary.row(w) for w in vocabulary.words] == list(range(len(vocabulary)))


def test_rare_words_stay_only_if_they_are_asked_for():
    assert "near" not in build_vocabulary(TEXTS, min_count=2).words
    assert "near" in build_vocabulary(TEXTS, min_count=2, keep=["near", "absent"]).words
    assert build_vocabulary(TEXTS, min_count=3, keep={"eel": 2, "near": 2}).words == ("the", "a", "cat", "dog", "eel")
    assert build_vocabulary(TEXTS, min_count=1, size=2, keep=["near"]).words == ("the", "a", "near")


def test_encoding_drops_unknown_words_and_keeps_every_sentence():
    vocabulary = build_vocabulary(TEXTS, min_count=2)
    corpus = encode(TEXTS, vocabulary)
    assert len(corpus) == len(TEXTS)
    assert [corpus.words(i) for i in range(len(corpus))] == [[w for w in s if w != "near"] for s in TEXTS]
    assert corpus.lengths.tolist() == [5, 0, 1, 7, 1, 4]
    assert corpus.owners.tolist() == [0] * 5 + [2] + [3] * 7 + [4] + [5] * 4
    assert (corpus.tokens.dtype, corpus.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("texts", [[], [[]], [["cat"], ["dog"]], [["cat", "unknown"], ["gnu", "gnu"]]])
def test_a_corpus_without_a_pair_is_refused(texts):
    with pytest.raises(ValueError, match=rf"^the corpus is empty: none of {len(texts)} sentences has two words of the"):
        encode(texts, Vocabulary(("cat", "dog"), np.array([1, 1])))


def test_a_vocabulary_without_a_word_is_refused():
    with pytest.raises(ValueError, match=r"^no word occurs 9 times or more among 19; lower min_count$"):
        build_vocabulary(TEXTS, min_count=9)
    with pytest.raises(ValueError, match=r"^no word occurs 1 times or more among 0; lower min_count$"):
        build_vocabulary([], min_count=1)


def test_an_unknown_word_is_named():
    with pytest.raises(KeyError, match=r"'gnu' is not among the 2 words of the vocabulary; lower min_count or add"):
        Vocabulary(("cat", "dog"), np.array([1, 1])).row("gnu")


# --- parts of a corpus ---


@given(sentences_, st.data())
def test_select_without_and_blocks_are_what_lists_do(sentences, data):
    corpus = corpus_of(sentences)
    n = len(sentences)
    chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=8) if n else st.just([]))  # -1: the last, as in lists
    assert rows_of(corpus.select(chosen)) == [sentences[i] for i in chosen]
    left_out = {i % n for i in chosen}
    assert rows_of(corpus.without(chosen)) == [s for i, s in enumerate(sentences) if i not in left_out]
    size = data.draw(st.integers(1, 7))
    pieces = list(corpus.blocks(size))
    assert [rows_of(piece) for piece in pieces] == [sentences[i : i + size] for i in range(0, len(sentences), size)]
    assert all(piece.offsets[0] == 0 and piece.offsets[-1] == len(piece.tokens) for piece in pieces)
    assert all(np.shares_memory(piece.tokens, corpus.tokens) for piece in pieces if len(piece.tokens))
    rows = data.draw(st.lists(st.integers(0, SIZE - 1), max_size=3))
    assert corpus.containing(rows).tolist() == [i for i, s in enumerate(sentences) if set(s) & set(rows)]


def test_sentences_that_are_not_there_are_refused():
    with pytest.raises(IndexError):
        corpus_of([[0, 1]]).select([1])
    with pytest.raises(IndexError):
        corpus_of([[0, 1]]).without([1])


# --- pairs ---


@settings(deadline=None)  # the first example loads libraries
@given(sentences_, st.integers(1, 11), st.booleans(), st.integers(0, 2**32 - 1))
def test_pair_counts_equal_a_double_loop(sentences, window, weighted, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(sentences)) if weighted else np.ones(len(sentences))
    expected = np.zeros((SIZE, SIZE))
    for sentence, weight in zip(sentences, weights, strict=True):
        for w, c in oracles.skipgram_pairs(sentence, window):
            expected[w, c] += weight
    found = pair_counts(corpus_of(sentences), window, weights if weighted else None)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-14, atol=0)


@given(sentences_, st.integers(1, 11))
def test_pair_numbers_equal_a_double_loop(sentences, window):
    expected = [len(oracles.skipgram_pairs(s, window)) for s in sentences]
    assert pair_numbers(corpus_of(sentences).lengths, window).tolist() == expected


def test_pairs_do_not_cross_sentences():
    """Nothing between the last word of one and the first of the next, also over an empty or a one-word sentence."""
    counts = pair_counts(corpus_of([[0, 1], [], [2], [3, 4]]), window=10).toarray()
    assert sorted(zip(*np.nonzero(counts), strict=True)) == [(0, 1), (1, 0), (3, 4), (4, 3)]


def test_one_word_sentences_have_no_pair():
    assert pair_counts(corpus_of([[0], [1], []]), window=3).nnz == 0


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused(window):
    with pytest.raises(ValueError, match=rf"^the window must be at least 1 word, got {window}$"):
        pair_counts(corpus_of([[0, 1]]), window)
    with pytest.raises(ValueError, match=rf"^window must be at least 1 word, got {window}$"):
        SkipgramLoss(window=window, negatives=0)
