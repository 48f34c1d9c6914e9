"""Datamodels against sklearn one target at a time, loops, optimality conditions and outputs that are linear."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.model_selection import PredefinedSplit

from clif_kit import gram_lasso
from clif_kit.datamodels import Datamodels, difference_of_means, fit_datamodels, lasso, r2, with_bias
from clif_kit.subset_training import sample_masks


def planted(m, n=30, t=6, noise=0.3, seed=0, share=0.5):
    """Masks, outputs of sparse linear models, their weights and biases."""
    draw = torch.Generator().manual_seed(seed)
    masks = sample_masks(m, n, share, seed)
    weights = torch.randn(t, n, generator=draw, dtype=torch.float64)
    weights[torch.rand(t, n, generator=draw) > 0.2] = 0
    bias = torch.randn(t, generator=draw, dtype=torch.float64)
    outputs = masks.double() @ weights.T + bias + noise * torch.randn(m, t, generator=draw, dtype=torch.float64)
    return masks, outputs, weights, bias


@pytest.mark.parametrize("m", [400, 20])  # more models than examples, and fewer
@pytest.mark.parametrize("long_steps", [0, gram_lasso.LONG_STEPS, 50_000])  # accelerated only, both, long only
def test_the_lasso_is_sklearn_s_one_target_at_a_time(m, long_steps, monkeypatch):
    monkeypatch.setattr(gram_lasso, "LONG_STEPS", long_steps)
    masks, outputs, _, _ = planted(m)
    lam = torch.tensor([0.01, 0.02, 0.03, 0.05, 0.2, 5.0], dtype=torch.float64)
    found = lasso(masks, outputs, lam, tol=1e-11, max_iter=100_000)
    for j, penalty in enumerate(lam.tolist()):
        rival = Lasso(alpha=penalty, tol=1e-14, max_iter=1_000_000).fit(masks.double().numpy(), outputs[:, j].numpy())
        np.testing.assert_allclose(found.weights[j], rival.coef_, atol=1e-6)
        assert abs(found.bias[j] - rival.intercept_) < 1e-6
    assert not found.weights[-1].any()  # a penalty above the largest slope leaves nothing
    assert (found.weights[0] == 0).any()  # exact zeros


def test_the_optimality_conditions_hold_in_both_precisions():
    masks, outputs, _, _ = planted(300, n=40, t=9)
    for dtype, tol in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        y = outputs.to(dtype)
        found = lasso(masks, y, 0.03, tol=tol)
        assert found.weights.dtype == dtype
        x = masks.double() - masks.double().mean(0)
        gradient, w = x.T @ (found.predict(masks) - y).double() / len(masks), found.weights.double().T  # (n, t)
        top = (x.T @ (outputs - outputs.mean(0)) / len(masks)).abs().amax(0)
        slack = 3 * tol * top
        assert ((gradient + 0.03 * w.sign()).abs()[w != 0] <= slack.expand_as(w)[w != 0]).all()
        assert (gradient.abs() <= 0.03 + slack).all()
        assert ((found.predict(masks) - y).mean(0).abs() < 1e-4).all()  # the bias is free


def test_sums_are_products_of_float64_matrices_whatever_the_rows_at_a_time(monkeypatch):
    masks, outputs, _, _ = planted(101)
    for rows in (7, 4096):
        monkeypatch.setattr(gram_lasso, "ROWS", rows)
        x = masks.double()
        torch.testing.assert_close(gram_lasso.sums(masks, outputs), outputs.T @ x)
        assert torch.equal(gram_lasso.sums(masks, dtype=torch.float32), (x.T @ x).float())


def test_without_a_penalty_it_is_least_squares():
    masks = torch.rand(200, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    outputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rival = LinearRegression().fit(masks.double().numpy(), outputs.numpy())
    found = lasso(masks, outputs, 0.0, tol=1e-12)
    np.testing.assert_allclose(found.weights, rival.coef_, atol=1e-8)
    np.testing.assert_allclose(found.bias, rival.intercept_, atol=1e-8)


def test_penalties_are_those_a_search_on_the_held_out_models_chooses():
    masks, outputs, _, _ = planted(250, n=40, t=8, noise=1.5)
    found = fit_datamodels(masks, outputs, n_lambdas=8, eps=0.05, tol=1e-10, max_iter=50_000)
    aside = torch.randperm(250, generator=torch.Generator().manual_seed(0))[:50].numpy()
    fold = np.full(250, -1)
    fold[aside] = 0
    ((rest, choose),) = PredefinedSplit(fold).split()
    x, y = masks.double().numpy(), outputs.numpy()
    for j in range(8):
        xc = x[rest] - x[rest].mean(0)
        top = np.abs(xc.T @ (y[rest, j] - y[rest, j].mean())).max() / len(rest)
        path = top * np.geomspace(1, 0.05, 8)
        fits = [Lasso(alpha=lam, tol=1e-12, max_iter=1_000_000).fit(x[rest], y[rest, j]) for lam in path]
        errors = np.array([np.mean((one.predict(x[choose]) - y[choose, j]) ** 2) for one in fits])
        ends = [k for k in range(3, 8) if errors[k - 2 : k + 1].min() >= errors[: k - 2].min()]
        errors = errors[: ends[0] + 1] if ends else errors  # three without a gain end the path
        best = path[errors.argmin()]
        assert found.lam[j].item() == pytest.approx(best, rel=1e-5)
        rival = Lasso(alpha=found.lam[j].item(), tol=1e-14, max_iter=1_000_000).fit(x, y[:, j])
        np.testing.assert_allclose(found.weights[j], rival.coef_, atol=1e-6)
        assert found.bias[j].item() == pytest.approx(rival.intercept_, abs=1e-6)


def test_planted_outputs_are_recovered_better_than_by_means_and_on_fresh_subsets():
    masks, outputs, weights, _ = planted(600, n=60, t=5)
    found = fit_datamodels(masks, outputs)
    means = difference_of_means(masks, outputs)
    assert (found.weights - weights).abs().max() < 0.12
    assert (found.weights - weights).norm() < 0.5 * (means - weights).norm()
    fresh, actual, _, _ = planted(300, n=60, t=5, seed=0)
    assert torch.equal(fresh, sample_masks(300, 60, 0.5, 0))
    assert r2(found.predict(fresh), actual).min() > 0.8


def test_the_sign_is_that_of_a_removal():
    """Outputs are margins; taking the example away lowers the margin by its weight, so minus the margin rises."""
    masks, outputs, weights, _ = planted(200, noise=0.0)
    found = lasso(masks, outputs, 1e-5, tol=1e-9, max_iter=100_000)
    everything = torch.ones(1, 30, dtype=torch.bool)
    without = everything.clone()
    without[0, [2, 5]] = False
    rise = -(found.predict(without) - found.predict(everything))
    torch.testing.assert_close(found.removal_effect(~without), rise)
    torch.testing.assert_close(rise[0], weights[:, [2, 5]].sum(1), atol=1e-3, rtol=0)


def test_the_difference_of_means_by_loop():
    masks, outputs, _, _ = planted(50, n=7, t=3, share=0.3)
    found = difference_of_means(masks, outputs)
    for i in range(7):
        for j in range(3):
            values = outputs[:, j]
            wanted = values[masks[:, i]].mean() - values[~masks[:, i]].mean()
            assert abs(found[j, i] - wanted) < 1e-12


def test_weights_get_the_bias_that_makes_the_mean_right():
    masks, outputs, weights, _ = planted(40)
    model = with_bias(weights, masks, outputs)
    torch.testing.assert_close(model.predict(masks).mean(0), outputs.mean(0))
    assert torch.equal(model.weights, weights)


def test_r2_is_sklearn_s():
    from sklearn.metrics import r2_score

    a, b = torch.randn(2, 30, 4, dtype=torch.float64)
    np.testing.assert_allclose(r2(a, b), r2_score(b, a, multioutput="raw_values"), atol=1e-12)
    with pytest.raises(ValueError, match="test point 1 has the same output in all models"):
        r2(a, torch.cat([b[:, :1], b[:, :1] * 0, b[:, 2:]], 1))
    with pytest.raises(ValueError, match="predicted is"):
        r2(a, b[:, :2])


def test_a_constant_output_and_an_example_that_never_varies_get_no_weight():
    masks, outputs, _, _ = planted(100)
    masks[:, 4], outputs[:, 1] = True, 0.1
    found = fit_datamodels(masks, outputs)
    assert not found.weights[1].any()
    assert found.bias[1] == pytest.approx(0.1)
    assert not found.weights[:, 4].any()
    with pytest.raises(ValueError, match="example 4 is in every subset or in none"):
        difference_of_means(masks, outputs)
    for n in (2, 300):
        same = lasso(torch.ones(3, n, dtype=torch.bool), torch.tensor([[1.0], [2.0], [3.0]]), 0.1)
        assert not same.weights.any()
    same = lasso(torch.ones(3, 2, dtype=torch.bool), torch.tensor([[1.0], [2.0], [3.0]]), 0.1)
    assert same.weights.tolist() == [[0.0, 0.0]]
    assert same.bias.tolist() == [2.0]


def test_bad_input_is_named():
    masks, outputs, _, _ = planted(50)
    with pytest.raises(ValueError, match="needs masks"):
        lasso(masks.double(), outputs, 0.1)
    with pytest.raises(ValueError, match="needs masks"):
        lasso(masks[:-1], outputs, 0.1)
    with pytest.raises(ValueError, match="may have diverged"):
        lasso(masks, outputs * torch.nan, 0.1)
    for never in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="may have diverged"):
            fit_datamodels(masks, outputs.index_fill(0, torch.tensor([3]), never))
    with pytest.raises(ValueError, match=r"float32 or float64 and detached, got torch\.float16"):
        lasso(masks, outputs.half(), 0.1)
    with pytest.raises(ValueError, match="and detached"):
        difference_of_means(masks, outputs.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"0 or more, one for all or 6, got -0\.1"):
        lasso(masks, outputs, -0.1)
    with pytest.raises(ValueError, match="one for all or 6, got"):
        lasso(masks, outputs, torch.ones(5))
    with pytest.raises(RuntimeError, match="of 6 LASSOs did not converge in 3 iterations"):
        lasso(masks, outputs, 0.001, max_iter=3)
    with pytest.raises(ValueError, match="two models or more"):
        fit_datamodels(masks, outputs, held_out=0.01)


def test_the_path_and_the_result_are_plain_tensors():
    found = fit_datamodels(*planted(60)[:2])
    assert isinstance(found, Datamodels)
    assert found.weights.is_contiguous()
    assert (found.lam > 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e30])
def test_tiny_and_huge_outputs_scale_the_answer(scale):
    masks, outputs, _, _ = planted(200)
    found = lasso(masks, (outputs * scale).float(), 0.05 * scale)
    np.testing.assert_allclose(found.weights / scale, lasso(masks, outputs, 0.05).weights, atol=1e-4)


def test_a_large_mean_does_not_leak_into_the_weights():
    masks, outputs, _, _ = planted(400)
    found = lasso(masks, (outputs + 100).float(), 0.05, tol=1e-6)
    np.testing.assert_allclose(found.weights, lasso(masks, outputs, 0.05, tol=1e-9).weights, atol=2e-5)


def test_an_output_that_varies_on_held_out_models_only_gets_no_weight():
    masks, outputs, _, _ = planted(100, n=150)
    aside = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20]
    outputs[:, 2] = 1.0
    outputs[aside[0], 2] = 0.0
    found = fit_datamodels(masks, outputs, tol=1e-4)
    assert not found.weights[2].any()
    assert found.bias[2] == pytest.approx(0.99)


@pytest.mark.parametrize("long_steps", [0, gram_lasso.LONG_STEPS, 50_000])
def test_each_target_meets_its_own_tolerance(long_steps, monkeypatch):
    monkeypatch.setattr(gram_lasso, "LONG_STEPS", long_steps)
    masks = torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) * 40 > torch.arange(40)  # ill conditioned
    outputs = planted(400, n=40, t=6)[1] @ torch.diag(10.0 ** -torch.arange(6, dtype=torch.float64))
    x = masks.double() - masks.double().mean(0)
    top = (x.T @ (outputs - outputs.mean(0)) / 400).abs().amax(0)
    found = lasso(masks, outputs, 0.1 * top, tol=1e-4)
    gradient, w = x.T @ (found.predict(masks) - outputs) / 400, found.weights.T
    off = torch.where(w != 0, (gradient + 0.1 * top * w.sign()).abs(), gradient.abs() - 0.1 * top).amax(0)
    assert (off <= 1.001e-4 * top).all()


def test_the_bound_on_the_largest_eigenvalue_is_tight():
    for n in (200, 300):
        gram = gram_lasso.GramLasso.of(sample_masks(100, n, 0.5, 0), torch.zeros(100, 1))
        true = torch.linalg.eigvalsh(gram.gram)[-1].item()
        assert true <= gram.top <= 1.02 * true


def test_as_many_products_as_were_allowed(monkeypatch):
    masks, outputs, _, _ = planted(50)
    problem, seen = gram_lasso.GramLasso.of(masks, outputs), []
    lam, start = torch.full((6,), 1e-9, dtype=torch.float64), torch.zeros(6, 30, dtype=torch.float64)
    product = gram_lasso._product
    monkeypatch.setattr(gram_lasso, "_product", lambda *given: seen.append(1) or product(*given))
    for most in (3, 40):
        seen.clear()
        with pytest.raises(RuntimeError, match=f"^6 of 6 LASSOs did not converge in {most} iterations"):
            problem.solve(lam, start, 0.0, most)
        assert len(seen) == most


@pytest.mark.parametrize("long_steps", [0, gram_lasso.LONG_STEPS])
def test_what_cannot_be_compared_is_not_done(long_steps, monkeypatch):
    monkeypatch.setattr(gram_lasso, "LONG_STEPS", long_steps)
    masks, outputs, _, _ = planted(50)
    with pytest.raises(RuntimeError, match="6 of 6 LASSOs did not converge in 20 iterations"):
        lasso(masks, outputs, 0.1, tol=torch.nan, max_iter=20)
