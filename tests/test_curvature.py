"""Oracles: numpy closed forms, torch.autograd.functional.hessian, central differences of loop gradients."""

import cases
import numpy as np
import oracles
import pytest
import torch
from torch.nn.functional import cross_entropy

from clif_kit.curvature import gauss_newton, hessian, hvp, softmax_hessian
from clif_kit.gradients import flatten, with_l2
from clif_kit.models import cross_entropy as models_cross_entropy
from clif_kit.models import logistic

UNEQUAL = [None, 1, 2, 5, 22, 1000]  # the case sizes are prime, so 2, 5 and 22 leave a shorter last chunk


@pytest.mark.parametrize("chunk", UNEQUAL)
def test_hessian_matches_the_closed_form_of_softmax_regression(chunk):
    case = cases.softmax(l2=0.1)
    expected = oracles.softmax_hessian(flatten(case.params).numpy(), case.batch[0].numpy(), k=3, l2=0.1)
    np.testing.assert_allclose(hessian(case.losses, case.params, case.batch, chunk=chunk), expected, atol=1e-13)


@pytest.mark.parametrize("name", cases.ALL)
@pytest.mark.parametrize(("chunk", "rows"), [(None, 64), (3, 2), (4, 1)])
def test_hessian_matches_autograd_and_is_exactly_symmetric(name, chunk, rows):
    case = cases.ALL[name]()
    actual = hessian(case.losses, case.params, case.batch, chunk=chunk, rows=rows)
    np.testing.assert_allclose(actual, oracles.autograd_hessian(case.losses, case.params, case.batch), atol=1e-13)
    assert torch.equal(actual, actual.T)


def test_hessian_does_not_depend_on_the_order_of_the_parameters():
    case = cases.mlp()
    backwards = dict(reversed(case.params.items()))
    place = {name: torch.arange(value.numel()) for name, value in case.params.items()}
    start = 0
    for name, value in case.params.items():
        place[name], start = place[name] + start, start + value.numel()
    order = torch.cat([place[name] for name in backwards])
    forward = hessian(case.losses, case.params, case.batch)
    np.testing.assert_allclose(hessian(case.losses, backwards, case.batch), forward[order][:, order], atol=1e-14)


def test_hessian_of_a_parameter_that_enters_linearly_or_not_at_all_is_zero():
    params = {"linear": torch.ones(2, dtype=torch.float64), "unused": torch.ones(1, dtype=torch.float64)}
    x = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    assert hessian(lambda p, x: x @ p["linear"], params, (x,)).abs().max() == 0


@pytest.mark.parametrize("name", cases.ALL)
@pytest.mark.parametrize("chunk", UNEQUAL)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_hvp_is_the_full_dense_product_whatever_the_chunks(name, chunk, damping):
    case = cases.ALL[name]()
    dense = oracles.autograd_hessian(case.losses, case.params, case.batch)
    v = torch.from_numpy(np.random.default_rng(0).normal(size=len(dense)))
    times = hvp(case.losses, case.params, case.batch, chunk=chunk, damping=damping)
    np.testing.assert_allclose(times(v), dense @ v + damping * v, atol=1e-12)
    np.testing.assert_allclose(times(2 * v), 2 * (dense @ v + damping * v), atol=1e-12)  # a second use is as good


def test_hvp_matches_central_differences_of_loop_gradients():
    case, step = cases.mlp(), 1e-5
    v = {name: torch.full_like(value, 0.5) for name, value in case.params.items()}

    def mean_gradient(sign):
        moved = {name: value + sign * step * v[name] for name, value in case.params.items()}
        return oracles.loop_gradients(case.losses, moved, case.batch).mean(dim=0)

    expected = (mean_gradient(1) - mean_gradient(-1)) / (2 * step)
    np.testing.assert_allclose(hvp(case.losses, case.params, case.batch)(flatten(v)), expected, atol=1e-9)


def _plain_cross_entropy(out, y):
    return cross_entropy(out, y, reduction="none")


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_gauss_newton_is_the_hessian_when_outputs_are_linear(chunk):
    case = cases.softmax(l2=0.1)
    expected = oracles.softmax_hessian(flatten(case.params).numpy(), case.batch[0].numpy(), k=3, l2=0.1)
    actual = gauss_newton(cases.softmax_outputs, _plain_cross_entropy, case.params, case.batch, l2=0.1, chunk=chunk)
    np.testing.assert_allclose(actual, expected, atol=1e-13)


@pytest.mark.parametrize("chunk", [3, 256])
def test_gauss_newton_of_an_mlp_matches_a_loop_with_the_softmax_curvature(chunk):
    case, l2 = cases.mlp(), 0.05
    total = 0
    for x in case.batch[0]:
        leaves = [value.clone().requires_grad_() for value in case.params.values()]
        out = cases.mlp_outputs(dict(zip(case.params, leaves, strict=True)), x)
        rows = [torch.autograd.grad(o, leaves, retain_graph=True) for o in out]
        J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])  # (k, p)
        prob = torch.softmax(out.detach(), dim=0)
        total = total + J.T @ (torch.diag(prob) - torch.outer(prob, prob)) @ J
    expected = total / 29 + l2 * torch.eye(len(total), dtype=torch.float64)
    actual = gauss_newton(cases.mlp_outputs, _plain_cross_entropy, case.params, case.batch, l2=l2, chunk=chunk)
    np.testing.assert_allclose(actual, expected, atol=1e-13)
    assert torch.linalg.eigvalsh(actual)[0] >= l2 - 1e-12


def test_gauss_newton_takes_any_loss_and_outputs_without_a_class_dimension():
    """Poisson regression, L = e^o - y o: L'' = e^o, so G = (1/n) Σ e^o x xᵀ."""
    rng = np.random.default_rng(1)
    X, w = rng.normal(size=(7, 3)), rng.normal(size=3)
    actual = gauss_newton(
        lambda p, x: x @ p["w"],
        lambda out, y: out.exp() - y * out,
        {"w": torch.from_numpy(w)},
        (torch.from_numpy(X), torch.ones(7, dtype=torch.float64)),
        chunk=4,
    )
    np.testing.assert_allclose(actual, (X * np.exp(X @ w)[:, None]).T @ X / 7, rtol=1e-12)


def test_chunk_below_one_is_refused():
    case = cases.softmax()
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        hessian(case.losses, case.params, case.batch, chunk=0)
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        hvp(case.losses, case.params, case.batch, chunk=-1)


def test_softmax_hessian_is_the_hessian_in_the_order_of_the_parameters():
    case = cases.softmax(l2=0.1)
    x, _ = case.batch
    closed = softmax_hessian(x, torch.softmax(cases.softmax_outputs(case.params, x), dim=1), l2=0.1)
    np.testing.assert_allclose(closed, oracles.autograd_hessian(case.losses, case.params, case.batch), atol=1e-13)
    assert torch.equal(closed, closed.T)


def test_softmax_hessian_refuses_logits():
    x = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs probabilities"):
        softmax_hessian(x, torch.tensor([[2.0, 1.0]] * 3, dtype=torch.float64))


def test_softmax_hessian_has_the_order_of_models_logistic():
    net, x, y = logistic(3, 4), torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 4
    params = net.init(0)
    expected = oracles.autograd_hessian(with_l2(models_cross_entropy(net), 0.2), params, (x, y))
    np.testing.assert_allclose(softmax_hessian(x, torch.softmax(net(params, x), 1), 0.2), expected, atol=1e-13)
