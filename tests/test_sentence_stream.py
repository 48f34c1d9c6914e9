"""Oracle: autograd of a naive loop over pairs, sentence by sentence; for large corpora the gradient of `skipgram`."""

import errno
import functools
import importlib.util
import os
import subprocess
import sys

import numpy as np
import oracles
import pytest
import scipy
import torch
from test_corpus import corpus_of

from clif_kit import sentence_stream
from clif_kit.sentence_stream import negative_sweep, stream_scores, word_parts
from clif_kit.skipgram import SkipgramLoss, gradient, noise_distribution, pairs_of
from clif_kit.store import StoreFull

SIZE, WIDTH = 8, 3
NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is optional")
ENGINES = pytest.mark.parametrize("engine", ["torch", pytest.param("numba", marks=NUMBA)])
OPTIONS = pytest.mark.parametrize(  # window, k, mean; 50 is longer than any sentence
    "options", [(1, 0.0, False), (3, 0.0, True), (3, 2.0, False), (50, 2.5, True), (50, 0.0, False), (1, 2.0, True)]
)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def some_rows(seed, *rows, size=SIZE, width=WIDTH):
    full = torch.zeros(size, width, dtype=torch.float64)
    full[list(rows)] = normal(seed, len(rows), width)
    return full


def sentences_of(lengths, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(size, size=length).tolist() for length in lengths]


SENTENCES = sentences_of([0, 1, 2, 3, 25, 0, 2, 7, 1, 12, 4, 0])
CORPUS = corpus_of(SENTENCES, SIZE)
PARAMS = {"input": normal(1, SIZE, WIDTH), "context": normal(2, SIZE, WIDTH)}
DENSE = {"input": normal(3, SIZE, WIDTH), "context": normal(4, SIZE, WIDTH)}
DIRECTIONS = {
    "one": [DENSE],
    "input alone": [{"input": some_rows(5, 2, 6)}, {"input": normal(6, SIZE, WIDTH)}],
    "context alone": [{"context": some_rows(7, 1)}],
    "all kinds": [DENSE, {"input": some_rows(8, 0), "context": some_rows(9, 3, 4)}, {}, {"context": DENSE["context"]}],
}


def loss_of(window, k, mean):
    return SkipgramLoss(window=window, negatives=k, mean=mean, noise=noise_distribution(CORPUS.vocabulary.counts))


@functools.cache
def naive_gradients(options):
    """``(n, 2, V, d)``."""
    loss, rows = loss_of(*options), []
    for sentence in SENTENCES:
        leaves = [PARAMS[name].clone().requires_grad_() for name in ("input", "context")]
        value = oracles.sentence_loss(*leaves, sentence, loss.window, loss.negatives, loss.noise, loss.mean)
        rows.append(torch.stack(torch.autograd.grad(value, leaves)))
    return torch.stack(rows)


def inner(gradients, direction):
    zero = torch.zeros(gradients.shape[2:], dtype=torch.float64)
    h = torch.stack([direction.get("input", zero), direction.get("context", zero)])
    return (gradients * h).sum((1, 2, 3)).numpy()


def assert_relative(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# --- equal to the loop ---


@pytest.mark.parametrize("directions", DIRECTIONS)
@OPTIONS
@ENGINES
def test_scores_equal_an_autograd_loop_over_sentences(engine, options, directions):
    found = stream_scores(CORPUS, PARAMS, DIRECTIONS[directions], loss_of(*options), engine=engine)
    expected = np.stack([inner(naive_gradients(options), h) for h in DIRECTIONS[directions]])
    assert found.dtype == np.float64
    assert_relative(found, expected)
    assert not found[:, CORPUS.lengths < 2].any()


@ENGINES
@pytest.mark.parametrize("k", [0.0, 2.0])
def test_many_sentences_and_a_very_long_one(engine, k):
    """More than one padded group and more than one piece of work; one sentence of 1500 words among short ones."""
    lengths = np.random.default_rng(1).integers(0, 30, size=1300)
    lengths[77] = 1500
    corpus, loss = corpus_of(sentences_of(lengths, seed=2), SIZE), loss_of(4, k, True)
    expected = []
    for i in range(len(corpus)):
        pairs = pairs_of(corpus, loss, [i])
        grad = gradient(PARAMS, pairs)
        first = (grad["input"] * DENSE["input"][pairs.centres]).sum()
        expected.append(float(first + (grad["context"] * DENSE["context"][pairs.contexts]).sum()))
    found = stream_scores(corpus, PARAMS, [DENSE], loss, engine=engine)
    assert_relative(found, np.array(expected)[None])


@ENGINES
def test_single_precision_comes_near(engine):
    single = {name: matrix.float() for name, matrix in PARAMS.items()}
    options = (3, 2.0, False)
    found = stream_scores(CORPUS, single, [DENSE], loss_of(*options), engine=engine)
    assert_relative(found, inner(naive_gradients(options), DENSE)[None], 1e-5)


@ENGINES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sigmoid_is_right_from_one_end_to_the_other(engine, dtype):
    """Sentences of the words 0 and i, the rows of 0 are 1: the gradient of its input row is -v σ(-v), v of word i."""
    values = np.concatenate([[1.0], np.linspace(-60, 60, 997), [-2000, -705, 80, 690, 720, 2000]])
    values = values.astype(np.float32)
    corpus = corpus_of([[0, i] for i in range(1, len(values))], len(values))
    v = torch.from_numpy(values).to(dtype)[:, None]
    params, first = {"input": torch.ones_like(v), "context": v}, torch.zeros_like(v)
    first[0] = 1
    found = stream_scores(corpus, params, [{"input": first}], SkipgramLoss(negatives=0), engine=engine)[0]
    exact = values[1:].astype(float)
    expected = -exact * scipy.special.expit(-exact)
    rtol, atol = (1e-14, 1e-300) if dtype == torch.float64 else (1e-6, 1e-36)
    np.testing.assert_allclose(found, expected, rtol, atol)


@pytest.mark.parametrize("room", [2**22, 1])
def test_the_sweep_equals_a_loop_over_the_vocabulary(monkeypatch, room):
    monkeypatch.setattr(sentence_stream, "ROOM", room)  # 1: a word at a time
    loss, (u, v) = loss_of(3, 2.5, False), (PARAMS[name].numpy() for name in ("input", "context"))
    directions = DIRECTIONS["all kinds"]
    expected = np.zeros((len(directions), SIZE))
    for q, h in enumerate(directions):
        for w in range(SIZE):
            for c in range(SIZE):
                slope = 2.5 * float(loss.noise[c]) / (1 + np.exp(-u[w] @ v[c]))
                if "input" in h:
                    expected[q, w] += slope * (v[c] @ h["input"][w].numpy())
                if "context" in h:
                    expected[q, w] += slope * (u[w] @ h["context"][c].numpy())
    assert_relative(negative_sweep(PARAMS, directions, loss).numpy(), expected)


# --- who carries a score ---


@OPTIONS
def test_the_parts_of_the_words_add_up_to_the_score(options):
    loss = loss_of(*options)
    scores = stream_scores(CORPUS, PARAMS, [DENSE], loss, engine="torch")[0]
    for i, score in enumerate(scores):
        parts = word_parts(CORPUS, i, PARAMS, DENSE, loss)
        assert parts.shape == (len(SENTENCES[i]), 2)
        assert parts.sum() == pytest.approx(score, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("options", [(3, 0.0, True), (50, 0.0, False), (2, 2.0, False)])
def test_a_part_is_the_gradient_of_the_words_own_row(options):
    """The places of a word together: its row of h times autograd's gradient by that row; noise goes to the centre."""
    loss, grads = loss_of(*options), naive_gradients(options)
    direction = {"input": DENSE["input"]} if loss.negatives else DENSE  # noise would move everyone's context row
    for i, sentence in enumerate(SENTENCES):
        parts = word_parts(CORPUS, i, PARAMS, direction, loss)
        for w in set(sentence):
            mine = parts[[place for place, row in enumerate(sentence) if row == w]].sum(0)
            for column, name in enumerate(direction):
                own = float(grads[i, column, w] @ direction[name][w])
                assert mine[column] == pytest.approx(own, rel=1e-11, abs=1e-13)


# --- pieces and the store ---


LOSS = loss_of(3, 2.0, False)
WHOLE = stream_scores(CORPUS, PARAMS, [DENSE], LOSS, engine="torch")


@pytest.fixture
def calls(monkeypatch):
    """The lengths of the pieces that the torch kernel was called with."""
    seen, kernel = [], sentence_stream.torch_scores

    @functools.wraps(kernel)
    def counting(corpus, *rest):
        seen.append(len(corpus))
        return kernel(corpus, *rest)

    monkeypatch.setattr(sentence_stream, "torch_scores", counting)
    return seen


def run(corpus=CORPUS, params=PARAMS, directions=(DENSE,), loss=LOSS, **options):
    return stream_scores(corpus, params, list(directions), loss, engine="torch", **options)


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_blocks_and_pieces_equal_the_whole(calls, size):
    assert_relative(run(block=size), WHOLE)
    blocks = [min(size, 12 - start) for start in range(0, 12, size)]
    assert calls == blocks
    assert_relative(run(CORPUS.blocks(size)), WHOLE)
    assert calls == blocks * 2


def test_pieces_are_taken_one_at_a_time(calls):
    """The next is asked for only when the last is scored."""
    pulled = []

    def pieces():
        for piece in CORPUS.blocks(5):
            pulled.append(len(calls))
            yield piece

    run(pieces())
    assert pulled == [0, 1, 2]


@pytest.mark.parametrize("where", ["pieces", "kernel"])
def test_a_killed_run_resumes(tmp_path, calls, monkeypatch, where):
    """It dies in the middle of the second block; finished blocks are then read, not computed."""
    kernel = sentence_stream.torch_scores

    def pieces(alive):
        for number, piece in enumerate(CORPUS.blocks(5)):
            if where == "pieces" and number == 1 and not alive:
                raise KeyboardInterrupt
            yield piece

    @functools.wraps(kernel)
    def dying(corpus, *rest):
        if len(calls) == 1:
            raise KeyboardInterrupt
        return kernel(corpus, *rest)

    with monkeypatch.context() as patch:
        if where == "kernel":
            patch.setattr(sentence_stream, "torch_scores", dying)
        with pytest.raises(KeyboardInterrupt):
            run(pieces(alive=False), store=tmp_path)
    assert calls == [5]
    assert_relative(run(pieces(alive=True), store=tmp_path), WHOLE)
    assert calls == [5, 5, 2]
    assert_relative(run(CORPUS, block=5, store=tmp_path), WHOLE)  # pieces and blocks are the same to the store
    assert calls == [5, 5, 2]


def test_a_process_that_is_killed_leaves_its_finished_blocks(tmp_path, calls):
    code = """
import os, signal, sys
from test_sentence_stream import *
def pieces():
    for number, piece in enumerate(CORPUS.blocks(5)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece
run(pieces(), store=sys.argv[1])
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=False).returncode == -9
    assert_relative(run(CORPUS.blocks(5), store=tmp_path), WHOLE)
    assert calls == [2]


def test_a_stored_block_serves_only_what_it_was_computed_for(tmp_path, calls):
    other = {**PARAMS, "context": PARAMS["context"] + 1e-9}
    text = corpus_of([*SENTENCES[:-1], [1, 2]], SIZE)
    variants = [
        {},
        {"params": other},
        {"directions": [{"input": DENSE["input"]}]},
        {"directions": [DENSE, DENSE]},
        {"loss": loss_of(2, 2.0, False)},
        {"loss": loss_of(3, 1.0, False)},
        {"loss": loss_of(3, 2.0, True)},
        {"corpus": text},
    ]
    for number, variant in enumerate(variants):
        assert_relative(run(**variant, store=tmp_path), run(**variant))
        assert len(calls) == 2 * (number + 1)
    for variant in variants:
        assert_relative(run(**variant, store=tmp_path), run(**variant))
    assert len(calls) == 3 * len(variants)  # the second time only those without a store


def test_a_full_disk_keeps_the_finished_blocks(tmp_path, calls, monkeypatch):
    replace, written = os.replace, []

    def full(part, path):
        if path.suffix == ".safetensors":
            written.append(path)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(
            StoreFull, match=r"no space left for 000001-\w+.safetensors \(\d+ bytes\); what is stored is"
        ):
            run(block=5, store=tmp_path)
    assert calls == [5, 5]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert not list(tmp_path.rglob("*.part"))
    assert_relative(run(block=5, store=tmp_path), WHOLE)
    assert calls == [5, 5, 5, 2]


def test_the_bar_counts_sentences(capfd):
    run(block=5, progress=True)
    assert "12/12" in capfd.readouterr().err
    run(block=5)
    assert capfd.readouterr().err == ""


# --- engines and errors ---


def test_without_numba_everything_works_and_asking_for_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "clif_kit.sentence_kernel", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert_relative(stream_scores(CORPUS.blocks(5), PARAMS, [DENSE], LOSS), WHOLE)
    with pytest.raises(ModuleNotFoundError, match="numba"):
        stream_scores(CORPUS, PARAMS, [DENSE], LOSS, engine="numba")


def test_a_small_corpus_does_not_wait_for_numba(calls):
    stream_scores(CORPUS, PARAMS, [DENSE], LOSS, engine="auto")
    assert calls == [12]


@pytest.mark.parametrize("name", ["input", "context"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(name, bad):
    spoilt = {**PARAMS, name: PARAMS[name].clone()}
    spoilt[name][2, 1] = bad
    with pytest.raises(ValueError, match=rf"^the {name} matrix holds values that are not finite \(NaN or infinite\)"):
        run(params=spoilt)
    with pytest.raises(ValueError, match=rf"^the {name} block of a direction holds values that are not finite$"):
        run(directions=[DENSE, spoilt])


def test_vectors_of_the_wrong_width_are_refused():
    wide = torch.zeros(SIZE, WIDTH + 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^need two matrices \(V, d\) of one shape, the context matrix is \(8, 4\)$"):
        run(params={**PARAMS, "context": wide})
    for bad in ({"input": wide}, {"context": wide}, {"input": wide[:-1, :-1]}):
        with pytest.raises(
            ValueError, match=r"^a direction has '\w+' of shape \(\d, \d\); it may have .* \(8, 3\) like"
        ):
            run(directions=[DENSE, bad])
    with pytest.raises(ValueError, match=r"^a direction has 'inputs' of shape"):
        run(directions=[{"inputs": DENSE["input"]}])


def test_vectors_of_another_vocabulary_are_refused():
    other = {name: torch.zeros(5, WIDTH, dtype=torch.float64) for name in PARAMS}
    with pytest.raises(ValueError, match=r"^the matrices have 5 rows, the vocabulary has 8 words: use the vocabulary"):
        run(params=other, directions=[other], loss=SkipgramLoss.published())
    with pytest.raises(ValueError, match=r"^the noise is over 8 words, the matrices have 5 rows$"):
        run(params=other, directions=[other])


def test_an_unknown_engine_and_an_empty_corpus_are_refused():
    with pytest.raises(ValueError, match=r"^engine must be 'numba', 'torch' or 'auto', got 'jax'$"):
        stream_scores(CORPUS, PARAMS, [DENSE], LOSS, engine="jax")
    pieces = CORPUS.blocks(5)
    run(pieces)
    for empty in (pieces, CORPUS.select([])):
        with pytest.raises(ValueError, match=r"^there is no sentence to score: the corpus is empty, or an iterator of"):
            run(empty)
