"""Oracles: autograd of the naive objective (one pair at a time) in float64; gensim called by hand."""

import functools
import os
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from gensim.models import Word2Vec
from test_corpus import corpus_of
from test_skipgram import columns
from torch.autograd.functional import hessian

from clif_kit import sgns_objective
from clif_kit.corpus import build_vocabulary, encode
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import fit, from_gensim, start, train_gensim
from clif_kit.skipgram import SkipgramLoss, hvp, loss_value, noise_distribution, pairs_of
from clif_kit.solvers import NotConverged

SIZE, WIDTH, WINDOW, K = 6, 2, 2, 3.0
LENGTHS = [5, 0, 4, 1, 6, 3, 2, 5]
SENTENCES = [np.random.default_rng(i).integers(SIZE, size=length).tolist() for i, length in enumerate(LENGTHS)]
CORPUS = corpus_of(SENTENCES, SIZE)
LOSS = SkipgramLoss(window=WINDOW, negatives=K, noise=noise_distribution(CORPUS.vocabulary.counts))
PENALTIES = pytest.mark.parametrize("l2", [0.0, 0.07])
PATHS = pytest.mark.parametrize("rows", [None, 1, 4], ids=["dense", "row by row", "blocks"])


def objective_of(l2, rows=None, monkeypatch=None, **options):
    if rows is not None:
        monkeypatch.setattr(sgns_objective, "DENSE", 0)
        options["rows"] = rows
    return CorpusObjective(CORPUS, LOSS, width=WIDTH, l2=l2, **options)


def naive_root(sentences=SENTENCES, size=SIZE, window=WINDOW):
    mass = np.zeros(size)
    for sentence in sentences:
        for w, _ in oracles.skipgram_pairs(sentence, window):
            mass[w] += 1
    return torch.from_numpy(np.sqrt(mass / mass.sum()))[:, None]


def point(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=2 * SIZE * WIDTH) * 0.4)


def derivatives(function, x):
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    return value.item(), torch.autograd.grad(value, leaf)[0], hessian(function, x)


@functools.cache
def naive(l2, seed=0, gone=()):
    """F without some sentences, its gradient and its Hessian, all by scaled variables."""
    kept = [sentence for i, sentence in enumerate(SENTENCES) if i not in gone]

    def value(x):
        u, v = x.view(2, SIZE, WIDTH) / naive_root()
        return oracles.skipgram_objective(u, v, kept, SENTENCES, WINDOW, K, LOSS.noise, l2)

    return derivatives(value, point(seed))


def by_columns(times, dim):
    return torch.stack([times(one) for one in torch.eye(dim, dtype=torch.float64)], 1)


def assert_same(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(abs(expected).max()))


# --- the objective ---


@PENALTIES
@PATHS
def test_value_gradient_and_hessian_equal_autograd_of_the_naive_objective(monkeypatch, rows, l2):
    objective, x = objective_of(l2, rows, monkeypatch), point()
    value, gradient, matrix = naive(l2)
    found, slope = objective.value_and_gradient(x)
    assert found == pytest.approx(value, rel=1e-13)
    assert_same(slope, gradient)
    assert_same(by_columns(objective.hessian_at(x), len(x)), matrix)


@PATHS
def test_gauss_newton_equals_that_of_the_pairs(monkeypatch, rows):
    """The oracle of :func:`hvp` stands in test_skipgram; here its scaling by P and by the roots of the masses."""
    objective, x = objective_of(0.07, rows, monkeypatch), point()
    u, v = x.view(2, SIZE, WIDTH) / naive_root()
    pairs = pairs_of(CORPUS, LOSS)
    plain = columns(
        lambda z: hvp({"input": u, "context": v}, pairs, z, gauss_newton=True), pairs, size=SIZE, width=WIDTH
    )
    root = naive_root().expand(2, SIZE, WIDTH).flatten()
    total = sum(len(oracles.skipgram_pairs(s, WINDOW)) for s in SENTENCES)
    expected = plain / total / torch.outer(root, root) + 0.07 * torch.eye(len(x), dtype=torch.float64)
    assert_same(by_columns(objective.hessian_at(x, gauss_newton=True), len(x)), expected)


@PATHS
@pytest.mark.parametrize("gone", [[4], [0, 7], [2, 2, 0], []])
def test_without_sentences_only_their_own_losses_are_gone(monkeypatch, rows, gone):
    """The total, the noise and the penalty are the old ones; the objective that was asked is not touched."""
    objective, x = objective_of(0.07, rows, monkeypatch), point(1)
    before, less = objective.value_and_gradient(x)[0], objective.without(gone)
    value, gradient, matrix = naive(0.07, 1, tuple(gone))
    found, slope = less.value_and_gradient(x)
    assert found == pytest.approx(value, rel=1e-13)
    assert_same(slope, gradient)
    assert_same(by_columns(less.hessian_at(x), len(x)), matrix)
    assert objective.value_and_gradient(x)[0] == before


def test_sentences_can_leave_one_after_the_other_but_only_once():
    objective, x = objective_of(0.07), point(2)
    together, apart = objective.without([0, 7]), objective.without([7]).without([0])
    assert together.value_and_gradient(x)[0] == apart.value_and_gradient(x)[0]
    with pytest.raises(ValueError, match=r"^a sentence can be left out once; begin again from the whole objective$"):
        objective.without([4]).without([4])


def test_packing_scales_by_the_roots_of_the_masses():
    objective, params = objective_of(0.0), dict(zip(("input", "context"), point(3).view(2, SIZE, WIDTH), strict=True))
    root = naive_root()
    x = objective.pack(params)
    assert_same(x, torch.cat([(params["input"] * root).flatten(), (params["context"] * root).flatten()]), 1e-15)
    for name, matrix in objective.unpack(x).items():
        assert_same(matrix, params[name], 1e-14)
    slope = {"context": point(4).view(2, SIZE, WIDTH)[1]}  # chain rule: the product with any step is the same
    assert float(objective.pack_gradient(slope) @ x) == pytest.approx(
        float((slope["context"] * params["context"]).sum())
    )
    assert not objective.pack_gradient(slope)[: SIZE * WIDTH].any()


def test_single_precision_is_kept(monkeypatch):
    for rows in (None, 4):
        single = objective_of(0.07, rows, monkeypatch, dtype=torch.float32)
        x = point().float()
        _, gradient, matrix = naive(0.07)
        slope, product = single.value_and_gradient(x)[1], single.hessian_at(x)(x)
        assert slope.dtype == product.dtype == torch.float32
        assert_same(slope, gradient, 1e-5)
        assert_same(product, matrix @ point(), 1e-5)


def test_objectives_without_a_minimum_are_refused():
    for loss in (SkipgramLoss.published(), SkipgramLoss(negatives=0.0), SkipgramLoss(noise=LOSS.noise, mean=True)):
        with pytest.raises(ValueError, match=r"^a corpus objective sums over pairs and needs negatives: SkipgramLoss"):
            CorpusObjective(CORPUS, loss, width=2, l2=0.1)
    with pytest.raises(ValueError, match=r"^2 words have no pair, such as w2, w3: leave them out$"):
        CorpusObjective(corpus_of([[0, 1], [3], [0, 4, 5]]), LOSS, width=2, l2=0.1)


# --- the deterministic optimum ---


L2 = 0.003
TOPICS = [np.random.default_rng(100 + i).integers(3, size=6) + 3 * (i % 2) for i in range(24)]  # two groups of words


@pytest.fixture(scope="module")
def fitted():
    corpus = corpus_of([s.tolist() for s in TOPICS], SIZE)
    loss = SkipgramLoss(window=3, negatives=2.0, noise=noise_distribution(corpus.vocabulary.counts))
    objective = CorpusObjective(corpus, loss, width=3, l2=L2)
    return objective, fit(objective, start(objective, seed=1))


def naive_topics(objective, kept):
    """Counts by loops, then the equation in log-sigmoids, for autograd."""
    sentences, log_sigmoid = [s.tolist() for s in TOPICS], torch.nn.functional.logsigmoid
    counts, everyone = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    for i, sentence in enumerate(sentences):
        for w, c in oracles.skipgram_pairs(sentence, 3):
            everyone[w, c] += 1
            counts[w, c] += i in kept

    def value(x):
        u, v = x.view(2, SIZE, 3) / naive_root(sentences, SIZE, 3)
        noise = 2.0 * counts.sum(1, keepdim=True) * objective.loss.noise
        loss = -(counts * log_sigmoid(u @ v.T) + noise * log_sigmoid(-u @ v.T)).sum()
        return (loss + L2 / 2 * (everyone.sum(1, keepdim=True) * (u**2 + v**2)).sum()) / everyone.sum()

    return value


def assert_minimum(function, optimum, width=3):
    """The gradient vanishes; the Hessian has no negative eigenvalue, and zero ones for the turns of the space alone."""
    value, gradient, matrix = derivatives(function, optimum.x)
    assert optimum.value == pytest.approx(value, rel=1e-12)
    assert float(gradient.norm()) == pytest.approx(optimum.gradient_norm, abs=1e-12)
    assert float(gradient.norm()) <= 1.0001e-8
    eigenvalues = torch.linalg.eigvalsh(matrix)
    turns = width * (width - 1) // 2
    assert float(eigenvalues[0]) >= -1e-8
    assert float(eigenvalues[turns - 1]) <= 1e-7
    assert float(eigenvalues[turns]) >= 1e-5


def test_fit_ends_in_a_minimum(fitted):
    objective, optimum = fitted
    assert_minimum(naive_topics(objective, range(24)), optimum)
    assert float(optimum.params["input"].norm()) > 1  # not the trivial one at zero
    assert_same(objective.pack(optimum.params), optimum.x, 1e-14)
    u, v = optimum.params.values()
    scores = u @ v.T  # words of one group go together
    assert float(scores[:3, :3].min()) > float(scores[:3, 3:].max())


def test_a_warm_start_ends_in_a_minimum_of_what_is_left(fitted):
    objective, optimum = fitted
    less = objective.without([3, 11])
    warm = fit(less, optimum.x, lbfgs_steps=0)
    assert_minimum(naive_topics(objective, [i for i in range(24) if i not in (3, 11)]), warm)
    assert warm.value < less.value_and_gradient(optimum.x)[0]
    cold = fit(less, start(less, seed=1))
    assert warm.value == pytest.approx(cold.value, abs=1e-12)


@pytest.mark.parametrize("gone", [[], [5], [20, 21]])
def test_fit_goes_on_where_rounding_hides_the_progress_of_f(fitted, gone):
    """A gradient of 1e-12 moves F by less than its last digit."""
    objective, optimum = fitted
    assert fit(objective.without(gone), optimum.x, lbfgs_steps=0, gtol=1e-12).gradient_norm <= 1e-12
    assert fit(objective.without(gone), start(objective, seed=2), gtol=1e-12).gradient_norm <= 1e-12


def test_a_fit_that_does_not_converge_says_so(fitted):
    objective, _ = fitted
    with pytest.raises(
        NotConverged, match=r"^training stopped at gradient norm \S+, asked for 1e-08; raise lbfgs_steps"
    ):
        fit(objective, start(objective, seed=1), lbfgs_steps=2, newton_steps=1)
    nan = torch.full_like(start(objective, seed=1), float("nan"))
    with pytest.raises(ValueError, match=r"^the start holds values that are not finite$"):
        fit(objective, nan)


def test_the_start_is_normal_rows_by_seed():
    objective = CorpusObjective(CORPUS, LOSS, width=4000, l2=0.0)
    rows = torch.cat(list(objective.unpack(start(objective, seed=3, scale=0.5)).values()))
    np.testing.assert_allclose(rows.std(1), 0.5, rtol=4 / np.sqrt(2 * 4000))
    np.testing.assert_allclose(rows.mean(1), 0, atol=4 * 0.5 / np.sqrt(4000))
    assert torch.equal(start(objective, seed=3), start(objective, seed=3))
    assert not torch.equal(start(objective, seed=3), start(objective, seed=4))


# --- gensim ---


def texts():
    rng = np.random.default_rng(0)
    words = [[f"w{row + 6 * (i % 2)}" for row in rng.integers(6, size=9)] for i in range(150)]
    return [*words, [], ["w0"], ["tie1", "tie2", "tie3", "tie1", "tie2", "tie3"]]


GENSIM = {"seed": 5, "width": 8, "window": 4, "negatives": 3, "epochs": 4, "exponent": 1.0, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def corpus():
    sentences = texts()
    return encode(sentences, build_vocabulary(sentences, min_count=1))


def by_hand(corpus, train=True, **options):
    """Gensim's own calls."""
    model = Word2Vec(
        vector_size=8, window=4, sg=1, hs=0, negative=3, ns_exponent=1.0, sample=0, shrink_windows=False, alpha=0.05,
        min_alpha=0.0001, min_count=1, seed=5, workers=1, epochs=4, **options,
    )  # fmt: skip
    model.build_vocab_from_freq(dict(zip(corpus.vocabulary.words, map(int, corpus.vocabulary.counts), strict=True)))
    if train:
        sentences = [corpus.words(i) for i in range(len(corpus))]
        model.train(sentences, total_examples=len(sentences), epochs=4)
    return model


def rows_of(model, corpus):
    place = [model.wv.key_to_index[word] for word in corpus.vocabulary.words]
    return {"input": model.wv.vectors[place], "context": model.syn1neg[place]}


def test_gensim_is_called_as_said_and_its_rows_follow_the_vocabulary(corpus):
    """Bit for bit; three words of equal count stand in another order in gensim."""
    trained, model = train_gensim(corpus, **GENSIM), by_hand(corpus)
    assert model.wv.index_to_key != list(corpus.vocabulary.words)
    for found, expected in (
        (trained.params, rows_of(model, corpus)),
        (trained.initial, rows_of(by_hand(corpus, train=False), corpus)),
    ):
        for name in ("input", "context"):
            np.testing.assert_array_equal(found[name], expected[name])
    assert not trained.initial["context"].any()
    assert trained.params["input"].shape == (len(corpus.vocabulary), 8)


def test_one_worker_and_one_seed_give_the_same_bits(corpus):
    """Twice here and once in a process of its own, where strings hash otherwise."""
    first, second = train_gensim(corpus, **GENSIM), train_gensim(corpus, **GENSIM)
    code = """
from test_sgns_train import *
sentences = texts()
trained = train_gensim(encode(sentences, build_vocabulary(sentences, min_count=1)), **GENSIM)
print(*(matrix.numpy().tobytes().hex() for matrix in trained.params.values()))
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "PYTHONHASHSEED": "11"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    bits = [[matrix.numpy().tobytes().hex() for matrix in one.params.values()] for one in (first, second)]
    assert bits[0] == bits[1] == out.stdout.split()
    other = train_gensim(corpus, **{**GENSIM, "seed": 6})
    assert not torch.equal(first.params["input"], other.params["input"])


def test_training_lowers_the_loss(corpus):
    """The expected loss of the naive equation, over all pairs; before training it is (1 + k) log 2 a pair."""
    trained = train_gensim(corpus, **{**GENSIM, "epochs": 30})
    noise = noise_distribution(corpus.vocabulary.counts, exponent=1.0)
    pairs = pairs_of(corpus, SkipgramLoss(window=4, negatives=3, noise=noise))
    total = float(pairs.positive.sum())
    before, after = (float(loss_value(params, pairs)) / total for params in (trained.initial, trained.params))
    assert before == pytest.approx(4 * np.log(2), rel=1e-6)
    assert after < 0.85 * before


def test_leaving_sentences_out_keeps_the_vocabulary(corpus):
    less = train_gensim(corpus.without(range(0, 150, 2)), **GENSIM)
    assert less.params["input"].shape == (len(corpus.vocabulary), 8)
    assert torch.equal(less.initial["input"], train_gensim(corpus, **GENSIM).initial["input"])
    only_even = [row for row, word in enumerate(corpus.vocabulary.words) if word in ("w1", "w2", "w3", "w4", "w5")]
    moved = (less.params["input"] - less.initial["input"])[only_even]
    assert not moved.any()  # their sentences are gone, and noise moves context rows only


def test_matrices_of_a_gensim_model_are_copies_in_the_order_asked_for(corpus):
    model = by_hand(corpus)
    params = from_gensim(model)
    before = params["input"].clone()
    np.testing.assert_array_equal(params["input"], model.wv.vectors)
    np.testing.assert_array_equal(params["context"], model.syn1neg)
    np.testing.assert_array_equal(from_gensim(model, ["tie2", "w3"])["input"], model.wv[["tie2", "w3"]])
    model.wv.vectors += 1
    assert torch.equal(params["input"], before)
    with pytest.raises(KeyError, match="the model lacks 1 words of the vocabulary, such as gnu"):
        from_gensim(model, ["w3", "gnu"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"sg": 0, "negative": 5, "hs": 0},
            r"^this model was trained with CBOW; skip-gram influence needs Word2Vec\(sg=1",
        ),
        (
            {"sg": 1, "negative": 0, "hs": 1},
            r"^this model was trained with hierarchical softmax; train with Word2Vec\(hs",
        ),
        ({"sg": 1, "negative": 5, "hs": 1}, r"^this model was trained with hierarchical softmax"),
    ],
)
def test_models_with_another_loss_are_refused(options, said):
    model = Word2Vec(texts(), vector_size=4, min_count=1, epochs=1, workers=1, **options)
    with pytest.raises(ValueError, match=said) as caught:
        from_gensim(model)
    assert "\n" not in str(caught.value)
