"""Oracles: explicit gradients and Hessians in numpy, refits without each example, similarities by loops over words."""

import math
from collections import Counter

import numpy as np
import oracles
import pytest
import torch

from clif_kit import baselines
from clif_kit.baselines import bm25, influence_last, refit_last_layer, representer_points, tfidf_similarity
from clif_kit.solvers import NotConverged
from clif_kit.tracin_layers import LastLayer

N, Q, H, C = 17, 4, 3, 3
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(N, H)), RNG.normal(size=(Q, H))
Y, YQ = torch.from_numpy(RNG.integers(C, size=N)), torch.from_numpy(RNG.integers(C, size=Q))
W = RNG.normal(size=(C, H))
EYE = np.eye(C)
WORDS = ["the good film was good", "a bad film", "the day", "good good good good day the the"]
ASKED = ["good film", "the the day", "nothing here"]


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def layer(weight, bias, features, y):
    return LastLayer(features, softmax(features @ weight.T + bias) - EYE[y.numpy()])


@pytest.mark.parametrize("bias", [False, True])
def test_influence_equals_explicit_gradients_and_hessian(bias):
    """The query loss is another one: residuals that are no probabilities."""
    offset = RNG.normal(size=C)
    train = layer(W, offset, A, Y)
    query = LastLayer(B, RNG.normal(size=(Q, C)))
    theta = np.concatenate([W.ravel(), offset])
    hessian = oracles.softmax_hessian(theta, A, C, 0.0)
    grads = oracles.softmax_gradients(theta, A, Y.numpy(), C, 0.0)
    asked = np.stack([np.concatenate([np.outer(r, b).ravel(), r]) for b, r in zip(B, query.residuals, strict=True)])
    keep = slice(None) if bias else slice(C * H)
    damped = hessian[keep, keep] + 0.02 * np.eye(len(hessian[keep]))
    expected = asked[:, keep] @ np.linalg.solve(damped, grads[:, keep].T) / N
    found = influence_last(train, query, Y, damping=0.02, bias=bias)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_influence_predicts_refitting_without_each_text():
    """Positive = helpful, in units of the query loss; the oracle leaves one out and fits again."""
    l2 = 0.1
    weight = refit_last_layer(A, Y, l2=l2, classes=C).numpy()
    found = influence_last(layer(weight, 0, A, Y), layer(weight, 0, B, YQ), Y, damping=l2)

    def loss(w):
        return -np.log(softmax(B @ w.T)[np.arange(Q), YQ.numpy()])

    actual = np.empty((Q, N))
    for i in range(N):
        rest = np.arange(N) != i
        without = refit_last_layer(A[rest], Y[rest], l2=l2 * N / (N - 1), classes=C).numpy()  # the penalty stays
        actual[:, i] = loss(without) - loss(weight)
    assert np.corrcoef(found.ravel(), actual.ravel())[0, 1] > 0.97
    slope = (found * actual).sum() / (actual**2).sum()
    assert 0.6 < slope < 1.2


def test_other_losses_than_cross_entropy_are_refused():
    with pytest.raises(ValueError, match="probabilities"):
        influence_last(LastLayer(A, RNG.normal(size=(N, C))), LastLayer(B, np.zeros((Q, C))), Y)


def test_the_refit_is_the_optimum():
    """A column of ones makes it the oracle's model: Newton in numpy, bias penalised."""
    found = refit_last_layer(np.hstack([A, np.ones((N, 1))]), Y, l2=0.03, classes=C).numpy()
    theta = oracles.softmax_fit(A, Y.numpy(), C, 0.03)
    np.testing.assert_allclose(found[:, :H], theta[: C * H].reshape(C, H), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found[:, H], theta[C * H :], rtol=1e-8, atol=1e-9)


def test_the_refit_gets_there_when_the_penalty_is_small_and_features_are_large():
    weight = refit_last_layer(50 * A, Y, l2=1e-6, classes=C).numpy()
    slope = (softmax(50 * A @ weight.T) - EYE[Y.numpy()]).T @ (50 * A) / N + 1e-6 * weight
    assert np.abs(slope).max() < 1e-9


def test_steps_that_go_too_far_are_shortened(monkeypatch):
    """64 times Newton's step, three times: each is shortened, so that hardly more steps are needed."""
    newton, calls = baselines.exact, []

    def solve(matrix, factor):
        calls.append(1)
        return lambda b: (factor if len(calls) <= 3 else 1) * newton(matrix)(b)

    found, steps = [], []
    for factor in (1, 64):
        calls.clear()
        monkeypatch.setattr(baselines, "exact", lambda matrix, f=factor: solve(matrix, f))
        found.append(refit_last_layer(5 * A, Y, l2=0.01))
        steps.append(len(calls))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-8)
    assert steps[1] <= steps[0] + 3, steps


def test_a_penalty_is_needed(monkeypatch):
    with pytest.raises(ValueError, match="l2 must be above 0"):
        refit_last_layer(A, Y, l2=0)
    monkeypatch.setattr(baselines, "exact", lambda _: lambda b: 1e-9 * b)
    with pytest.raises(NotConverged, match="did not converge"):
        refit_last_layer(A, Y, l2=0.1)


@pytest.mark.parametrize("l2", [0.01, 0.5])
def test_representer_points_add_up_to_the_logit_of_the_querys_label(l2):
    found = representer_points(A, Y, B, YQ, l2=l2)
    weight = refit_last_layer(A, Y, l2=l2, classes=C).numpy()
    logits = B @ weight.T
    np.testing.assert_allclose(found.sum(1), logits[np.arange(Q), YQ.numpy()], rtol=1e-7, atol=1e-9)
    residual = softmax(A @ weight.T) - EYE[Y.numpy()]
    for q in range(Q):
        for i in range(N):
            expected = -residual[i, YQ[q]] * (A[i] @ B[q]) / (l2 * N)
            np.testing.assert_allclose(found[q, i], expected, rtol=1e-7)


def test_a_text_like_the_query_and_of_its_class_is_a_proponent():
    found = representer_points(A, Y, A, Y)
    assert (np.diag(found) > 0).all()


# --- similarities ---


def test_tfidf_by_loops():
    """scikit-learn's smooth weights: log((1 + n) / (1 + n_w)) + 1; single letters are no words."""
    texts = [[w for w in text.split() if len(w) > 1] for text in WORDS]
    holders = Counter(w for text in texts for w in set(text))
    idf = {w: math.log((1 + len(texts)) / (1 + k)) + 1 for w, k in holders.items()}

    def vector(words):
        found = {w: t * idf[w] for w, t in Counter(words).items() if w in idf}
        size = math.sqrt(sum(v * v for v in found.values())) or 1
        return {w: v / size for w, v in found.items()}

    expected = [
        [sum(v * vector(text).get(w, 0) for w, v in vector(asked.split()).items()) for text in texts]
        for asked in ASKED
    ]  # fmt: skip
    np.testing.assert_allclose(tfidf_similarity(WORDS, ASKED), expected, rtol=1e-12)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
def test_bm25_by_loops(k1, b):
    texts = [[w for w in text.split() if len(w) > 1] for text in WORDS]
    mean = sum(map(len, texts)) / len(texts)
    expected = np.zeros((3, 4))
    for q, asked in enumerate(ASKED):
        for i, text in enumerate(texts):
            for w in asked.split():
                n_w = sum(w in other for other in texts)
                t = text.count(w)
                idf = math.log(1 + (4 - n_w + 0.5) / (n_w + 0.5))
                expected[q, i] += idf * t * (k1 + 1) / (t + k1 * (1 - b + b * len(text) / mean)) if t else 0
    np.testing.assert_allclose(bm25(WORDS, ASKED, k1=k1, b=b), expected, rtol=1e-12)


def test_embedding_similarity_is_the_cosine():
    found = baselines.embedding_similarity(A, np.vstack([B, np.zeros(H)]))
    for q in range(Q):
        for i in range(N):
            cosine = A[i] @ B[q] / np.sqrt((A[i] @ A[i]) * (B[q] @ B[q]))
            np.testing.assert_allclose(found[q, i], cosine, rtol=1e-12)
    assert not found[Q].any()


def test_the_least_similar_texts():
    similarity = np.array([[0.3, 0.0, 0.9, 0.1], [0.5, 0.5, 0.2, 0.5]])
    assert baselines.least_similar(similarity, 2).tolist() == [[1, 3], [2, 0]]
    with pytest.raises(ValueError, match="k must be 1 to 4, got 5"):
        baselines.least_similar(similarity, 5)
