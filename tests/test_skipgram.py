"""Oracles: one pair at a time with log-sigmoid and autograd, loops for J and D, the binomial law of the draws."""

from typing import NamedTuple

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import corpus_of
from torch.autograd.functional import hessian
from torch.autograd.functional import hvp as autograd_hvp

from clif_kit.corpus import Corpus
from clif_kit.skipgram import (
    Pairs,
    SkipgramLoss,
    gradient,
    hvp,
    input_block_hessian,
    loss_value,
    noise_distribution,
    pairs_of,
    scatter,
)


class Case(NamedTuple):
    sentences: list
    corpus: Corpus
    params: dict
    direction: dict
    loss: SkipgramLoss

    def value(self, u, v):
        """The naive loss of all sentences."""
        loss = self.loss
        return sum(oracles.sentence_loss(u, v, s, loss.window, loss.negatives, loss.noise, loss.mean) for s in self[0])


def matrices(rng, size, width):
    return {name: torch.from_numpy(rng.normal(size=(size, width))) for name in ("input", "context")}


def case(seed=0, size=6, width=3, lengths=(4, 2, 5), window=2, k=3.0, mean=False):
    rng = np.random.default_rng(seed)
    sentences = [rng.integers(size, size=length).tolist() for length in lengths]
    noise = torch.from_numpy(rng.dirichlet(np.ones(size)))
    loss = SkipgramLoss(window=window, negatives=k, noise=noise, mean=mean)
    return Case(sentences, corpus_of(sentences, size), matrices(rng, size, width), matrices(rng, size, width), loss)


CASES = st.builds(
    case,
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 8),  # small, so that words repeat within a sentence
    width=st.integers(1, 4),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    window=st.integers(1, 4),
    k=st.sampled_from([0.0, 1.0, 2.5, 6.0]),
    mean=st.booleans(),
)
OPTIONS = pytest.mark.parametrize(("k", "mean"), [(0.0, False), (0.0, True), (3.0, False), (3.0, True)])


def on_rows(pairs, params):
    return {"input": params["input"][pairs.centres], "context": params["context"][pairs.contexts]}


def dense(pairs, blocks, params):
    """``(2, V, d)``: rows that the pairs do not hold are zero."""
    rows = {"input": pairs.centres, "context": pairs.contexts}
    return torch.stack([scatter(rows[name], blocks[name], params[name]) for name in ("input", "context")])


def close(found, expected, tolerance=1e-9):
    scale = max(1.0, float(expected.abs().max()))
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * scale


def columns(times, pairs, size, width):
    """The matrix of a linear map on both matrices, column by column."""
    out = []
    for one in torch.eye(2 * size * width, dtype=torch.float64):
        both = one.view(2, size, width)
        vector = on_rows(pairs, {"input": both[0], "context": both[1]})
        out.append(dense(pairs, times(vector), {"input": both[0], "context": both[1]}).flatten())
    return torch.stack(out, 1)


# --- expectation ---


@settings(deadline=None, max_examples=40)
@given(CASES)
def test_loss_gradient_and_hvp_equal_autograd_of_a_loop_over_pairs(case):
    matrices_ = tuple(case.params.values())
    leaves = [m.clone().requires_grad_() for m in matrices_]
    expected = case.value(*leaves)
    pairs = pairs_of(case.corpus, case.loss)
    assert loss_value(case.params, pairs).item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    close(dense(pairs, gradient(case.params, pairs), case.params), torch.stack(torch.autograd.grad(expected, leaves)))
    _, product = autograd_hvp(case.value, matrices_, tuple(case.direction.values()))
    found = hvp(case.params, pairs, on_rows(pairs, case.direction))
    close(dense(pairs, found, case.params), torch.stack(product))


@settings(deadline=None, max_examples=40)
@given(CASES, st.data())
def test_the_pairs_of_some_sentences_are_those_of_a_smaller_corpus(case, data):
    """One sentence (a path of its own), several, and one twice: P and N by loops."""
    n, size = len(case.sentences), len(case.params["input"])
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
    positive, loss = torch.zeros(size, size, dtype=torch.float64), case.loss
    for i in chosen:
        there = oracles.skipgram_pairs(case.sentences[i], loss.window)
        for w, c in there:
            positive[w, c] += 1 / len(there) if loss.mean else 1
    negative = torch.stack([loss.negatives * row.sum() * loss.noise for row in positive])
    pairs = pairs_of(case.corpus, loss, chosen)
    for name, expected in (("positive", positive), ("negative", negative)):
        full = torch.zeros_like(expected)
        full[pairs.centres[:, None], pairs.contexts] = getattr(pairs, name)
        close(full, expected, 1e-13)


@OPTIONS
def test_gauss_newton_is_the_hessian_without_the_residual_terms(k, mean):
    """Two oracles: J'DJ by loops; and the Hessian of autograd less the residuals on its mixed blocks."""
    one = case(seed=3, size=5, width=2, lengths=(4, 6, 2, 1), k=k, mean=mean)
    u, v = one.params.values()
    size, width = u.shape
    everything = hessian(lambda x: one.value(*x.view(2, size, width)), torch.stack([u, v]).flatten())
    products, residual_part = torch.zeros_like(everything), torch.zeros_like(everything)
    for sentence in one.sentences:
        pairs = oracles.skipgram_pairs(sentence, one.loss.window)
        for w, c in pairs:
            share = 1 / len(pairs) if mean else 1.0
            terms = [(c, 1.0, share)] + [(o, 0.0, share * k * float(one.loss.noise[o])) for o in range(size)]
            for other, label, weight in terms:
                p = float(torch.sigmoid(u[w] @ v[other]))
                jacobian = torch.zeros(2, size, width, dtype=torch.float64)
                jacobian[0, w], jacobian[1, other] = v[other], u[w]
                products += weight * p * (1 - p) * torch.outer(jacobian.flatten(), jacobian.flatten())
                mixed = torch.zeros(2, size, width, 2, size, width, dtype=torch.float64)
                mixed[0, w, :, 1, other, :] = mixed[1, other, :, 0, w, :] = torch.eye(width, dtype=torch.float64)
                residual_part += weight * (p - label) * mixed.reshape(everything.shape)
    pairs = pairs_of(one.corpus, one.loss)
    found = columns(lambda x: hvp(one.params, pairs, x, gauss_newton=True), pairs, size, width)
    close(found, products, 1e-12)
    close(found, everything - residual_part, 1e-12)
    close(columns(lambda x: hvp(one.params, pairs, x), pairs, size, width), everything, 1e-12)
    assert float(torch.linalg.eigvalsh(found).min()) >= -1e-12
    assert float(torch.linalg.eigvalsh(everything).min()) < -1e-3  # so leaving the residuals out is what makes it PSD


@settings(deadline=None, max_examples=15)
@given(CASES)
def test_the_input_block_is_the_hessian_of_one_row(case):
    pairs = pairs_of(case.corpus, case.loss)
    blocks = input_block_hessian(case.params, pairs) if len(pairs.centres) else []
    u, v = case.params.values()
    for row, block in zip(pairs.centres.tolist(), blocks, strict=True):

        def of_row(x, row=row):
            return case.value(torch.cat([u[:row], x[None], u[row + 1 :]]), v)

        close(block, hessian(of_row, u[row]))


def test_the_published_loss_is_the_mean_over_pairs_without_noise():
    one = case(seed=5, lengths=(7, 3))
    published, u, v = SkipgramLoss.published(window=3), *one.params.values()
    for i, sentence in enumerate(one.sentences):
        terms = [-torch.log(torch.sigmoid(u[w] @ v[c])) for w, c in oracles.skipgram_pairs(sentence, 3)]
        value = loss_value(one.params, pairs_of(one.corpus, published, [i]))
        assert value.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-13)


# --- drawn noise ---


@pytest.mark.parametrize("mean", [False, True])
def test_drawn_noise_tends_to_its_expectation(mean):
    """400 seeds. Each entry of N is a weight times a binomial count: its mean within 4.5, that of L within 4 errors."""
    runs, k, one = 400, 3, case(seed=7, size=4, lengths=(5, 3, 7), window=2, k=3, mean=mean)
    size, loss = len(one.params["input"]), one.loss
    total, values = torch.zeros(size, size, dtype=torch.float64), []
    for seed in range(runs):
        pairs = pairs_of(one.corpus, loss, seed=seed)
        total[pairs.centres[:, None], pairs.contexts] += pairs.negative
        values.append(loss_value(one.params, pairs).item())
    draws, mass = torch.zeros(2, size, 1, dtype=torch.float64)
    for sentence in one.sentences:
        there = oracles.skipgram_pairs(sentence, loss.window)
        for w, _ in there:
            draws[w] += k
            mass[w] += 1 / len(there) if mean else 1
    error = k * mass / draws * (draws * loss.noise * (1 - loss.noise) / runs).sqrt()
    assert bool(((total / runs - k * mass * loss.noise).abs() <= 4.5 * error).all())
    expected = loss_value(one.params, pairs_of(one.corpus, loss)).item()
    assert abs(np.mean(values) - expected) <= 4 * np.std(values, ddof=1) / np.sqrt(runs)


@settings(deadline=None, max_examples=40)
@given(CASES, st.integers(0, 2**32 - 1))
def test_drawn_noise_has_the_weight_of_its_pairs_and_follows_the_seed(case, seed):
    loss = SkipgramLoss(window=case.loss.window, negatives=3, noise=case.loss.noise, mean=case.loss.mean)
    expected, pairs = pairs_of(case.corpus, loss), pairs_of(case.corpus, loss, seed=seed)
    mass = {int(w): float(m) for w, m in zip(expected.centres, expected.positive.sum(1), strict=True) if m}
    assert pairs.centres.tolist() == sorted(mass)
    np.testing.assert_allclose(pairs.positive.sum(1), list(mass.values()), rtol=1e-13)
    np.testing.assert_allclose(pairs.negative.sum(1), 3 * pairs.positive.sum(1), rtol=1e-13)
    again = pairs_of(case.corpus, loss, seed=seed)
    for name in ("centres", "contexts", "positive", "negative"):
        assert torch.equal(getattr(pairs, name), getattr(again, name))
    leaves = [m.clone().requires_grad_() for m in case.params.values()]
    value = 0 * leaves[0].sum() + 0 * leaves[1].sum()
    for a, w in enumerate(pairs.centres.tolist()):
        for b, c in enumerate(pairs.contexts.tolist()):
            s = leaves[0][w] @ leaves[1][c]
            value = value - pairs.positive[a, b] * torch.log(torch.sigmoid(s))
            value = value - pairs.negative[a, b] * torch.log(torch.sigmoid(-s))
    assert loss_value(case.params, pairs).item() == pytest.approx(value.item(), rel=1e-11, abs=1e-14)
    close(dense(pairs, gradient(case.params, pairs), case.params), torch.stack(torch.autograd.grad(value, leaves)))


def test_other_seeds_draw_otherwise_and_words_without_probability_never():
    one = case(lengths=(9, 9), size=5)
    loss = SkipgramLoss(window=4, negatives=2, noise=torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64))
    drawn = []
    for seed in range(20):
        pairs = pairs_of(one.corpus, loss, seed=seed)
        drawn.append(torch.zeros(5, 5, dtype=torch.float64))
        drawn[-1][pairs.centres[:, None], pairs.contexts] = pairs.negative
    assert len({tuple(matrix.flatten().tolist()) for matrix in drawn}) == 20
    assert not sum(drawn)[:, [0, 2, 4]].any()


# --- options and errors ---


def test_noise_follows_the_counts():
    counts = np.array([16, 81, 1])
    np.testing.assert_allclose(noise_distribution(counts), np.array([8, 27, 1]) / 36, rtol=1e-14)
    np.testing.assert_allclose(noise_distribution(counts, exponent=1), counts / 98, rtol=1e-14)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"^negatives must be >= 0, got -1$"):
        SkipgramLoss(negatives=-1)
    with pytest.raises(ValueError, match=r"^with negatives the loss needs `noise`, see noise_distribution\(counts\)$"):
        SkipgramLoss(negatives=2)
    one = case(k=2.5)
    with pytest.raises(ValueError, match=r"^drawn noise needs a whole number of negatives, got 2.5$"):
        pairs_of(one.corpus, one.loss, seed=0)


def test_pairs_take_the_dtype_of_the_parameters():
    one = case()
    single = {name: matrix.float() for name, matrix in one.params.items()}
    pairs = pairs_of(one.corpus, one.loss)
    assert isinstance(pairs, Pairs)
    assert pairs.positive.dtype == torch.float64
    found, expected = gradient(single, pairs), gradient(one.params, pairs)
    for name in found:
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
