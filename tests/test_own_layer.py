"""Influence through the last layer: scipy refits, one text lighter or gone; sklearn's optimum; a dense inverse."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from clif_kit import own_layer
from clif_kit.own_layer import choose_l2, fit_layer, influence, refit, self_influence, with_one

L2 = 0.02


def problem(n=40, d=3, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    x = rng.normal(size=(n, d)) + np.eye(classes, d)[y]
    return with_one(x), torch.from_numpy(y)


def scipy_fit(x, y, weights, classes=3):
    """Minimises (1/n) sum of weighted losses plus the penalty; numpy alone."""
    x, y = x.numpy(), y.numpy()

    def objective(z):
        logits = x @ z.reshape(classes, -1).T
        top = logits.max(1, keepdims=True)
        log = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        p = np.exp(log)
        p[np.arange(len(y)), y] -= 1
        slope = (p * weights[:, None]).T @ x / len(y) + L2 * z.reshape(classes, -1)
        return -(weights * log[np.arange(len(y)), y]).mean() + L2 / 2 * z @ z, slope.ravel()

    found = minimize(
        objective, np.zeros(classes * x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 5000}
    )
    return found.x.reshape(classes, -1)


def loss(weight, x, y):
    logits = x.numpy() @ weight.T
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y.numpy()]


def test_the_optimum_is_that_of_scipy_and_of_sklearn():
    x, y = problem()
    mine = fit_layer(x, y, 3, L2).weight.numpy()
    np.testing.assert_allclose(mine, scipy_fit(x, y, np.ones(len(y))), atol=1e-6)
    theirs = LogisticRegression(C=1 / (len(y) * L2), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(
        x.numpy(), y.numpy()
    )
    np.testing.assert_allclose(mine, theirs.coef_, atol=1e-5)


def test_influence_is_the_slope_of_refits_with_one_text_lighter_and_ranks_those_without_it():
    x, y = problem()
    query_x, query_y = problem(4, seed=1)
    layer = fit_layer(x, y, 3, L2)
    scores = influence(layer, query_x, query_y)
    before, eps, gone = loss(layer.weight.numpy(), query_x, query_y), 1e-2, np.empty_like(scores)
    for i in range(len(y)):
        weights = np.ones(len(y))
        ends = []
        for change in (-eps, eps):
            weights[i] = 1 + change
            ends.append(loss(scipy_fit(x, y, weights), query_x, query_y))
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * eps), scores[:, i], rtol=1e-3, atol=3e-6)
        weights[i] = 0
        gone[:, i] = loss(scipy_fit(x, y, weights), query_x, query_y) - before
    for q in range(4):
        assert np.corrcoef(gone[q], scores[q])[0, 1] > 0.98


def test_refit_is_scipys_optimum_of_the_texts_that_stay():
    x, y = problem(60)
    keep = np.arange(60) % 4 > 0
    mine = refit(fit_layer(x, y, 3, L2), keep).numpy()
    np.testing.assert_allclose(mine, scipy_fit(x, y, keep.astype(float)), atol=1e-6)


def test_self_influence_is_a_quadratic_form_in_the_dense_inverse():
    x, y = problem(12)
    layer = fit_layer(x, y, 3, L2)
    p = np.exp(x.numpy() @ layer.weight.numpy().T)
    p /= p.sum(1, keepdims=True)
    matrix = L2 * np.eye(12)
    for xi, pi in zip(x.numpy(), p, strict=True):
        matrix += np.kron(np.diag(pi) - np.outer(pi, pi), np.outer(xi, xi)) / 12
    g = np.stack([np.kron(pi - np.eye(3)[yi], xi) for xi, pi, yi in zip(x.numpy(), p, y.numpy(), strict=True)])
    expected = np.einsum("ia,ab,ib->i", g, np.linalg.inv(matrix), g) / 12
    np.testing.assert_allclose(self_influence(layer), expected, rtol=1e-8)
    np.testing.assert_allclose(self_influence(layer, [7, 2]), expected[[7, 2]], rtol=1e-8)
    np.testing.assert_allclose(np.diag(influence(layer, x, y)), expected, rtol=1e-8)


def test_chunks_change_nothing(monkeypatch):
    x, y = problem()
    whole = influence(fit_layer(x, y, 3, L2), x[:2], y[:2])
    monkeypatch.setattr(own_layer, "CHUNK", 7)
    np.testing.assert_allclose(influence(fit_layer(x, y, 3, L2), x[:2], y[:2]), whole, rtol=1e-6)


def test_the_penalty_is_chosen_from_the_grid_and_impossible_ones_are_refused():
    x, y = problem(100)
    assert choose_l2(x, y, 3, (1e-2, 1e5)) == 1e-2
    with pytest.raises(ValueError, match="l2 must be above 0"):
        fit_layer(x, y, 3, 0.0)
    with pytest.raises(ValueError, match="use fewer features"):
        fit_layer(torch.ones(2, 3000), y[:2], 2, 1.0)
