"""Retraining against closed forms, refits by numpy and scikit-learn, and plain torch loops on the kept examples."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clif_kit import retrain
from clif_kit.gradients import flatten, unflatten, with_l2
from clif_kit.models import clustering_net, cross_entropy, mlp
from clif_kit.retrain import (
    Retrained,
    actual_change,
    keep_weights,
    retrain_batched,
    retrain_newton,
    retrain_quasi_newton,
)

F64 = torch.float64


def squared(params, x, y):
    return (x @ params["w"] - y).square() / 2


def binary(params, x, y):
    return torch.nn.functional.softplus(-(2 * y - 1) * (x @ params["w"]))


def regression(n, p, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    return x, x @ rng.normal(size=p) + rng.normal(size=n)


def ridge(x, y, keep, l2):
    """Minimise the mean over ``keep`` of (x.w - y)^2 / 2 + l2/2 |w|^2."""
    x, y = x[keep], y[keep]
    return np.linalg.solve(x.T @ x / len(x) + l2 * np.eye(x.shape[1]), x.T @ y / len(x))


def without(n, removal):
    return np.setdiff1d(np.arange(n), removal)


@pytest.mark.parametrize(("n", "p"), [(25, 4), (130, 80)])  # Hessians of all models at once; one by one
def test_ridge_takes_exactly_one_step_to_the_closed_form(n, p):
    """One step, because each model uses its own Hessian; with the full data's it would take many."""
    x, y = regression(n, p)
    removals = [[0], [1, 5, 7], [], list(range(3, n - 2)), [-1 + n]]
    full = {"w": torch.from_numpy(ridge(x, y, np.arange(n), 0.3))}
    batch = torch.from_numpy(x), torch.from_numpy(y)
    got = retrain_newton(with_l2(squared, 0.3), full, batch, removals, chunk=2, tol=1e-11)
    for theta, removal in zip(got.params["w"].numpy(), removals, strict=True):
        np.testing.assert_allclose(theta, ridge(x, y, without(n, removal), 0.3), rtol=1e-9, atol=1e-12)
    assert got.steps.tolist() == [1, 1, 0, 1, 1]
    assert got.converged.all()


def test_logistic_leave_one_out_by_numpy_newton_and_by_scikit_learn():
    rng = np.random.default_rng(3)
    n, p, l2 = 30, 3, 0.05
    x = rng.normal(size=(n, p))
    y = (x @ [2.0, -1.0, 0.0] + rng.normal(size=n) > 0).astype(float)

    def refit(keep):
        theta, x_, y_ = np.zeros(p), x[keep], y[keep]
        for _ in range(50):
            mu = 1 / (1 + np.exp(-x_ @ theta))
            hessian = (x_ * (mu * (1 - mu))[:, None]).T @ x_ / len(keep) + l2 * np.eye(p)
            theta = theta - np.linalg.solve(hessian, x_.T @ (mu - y_) / len(keep) + l2 * theta)
        return theta

    removals = [[i] for i in range(n)]
    full = {"w": torch.from_numpy(refit(np.arange(n)))}
    got = retrain_newton(with_l2(binary, l2), full, (torch.from_numpy(x), torch.from_numpy(y)), removals)
    thetas = got.params["w"].numpy()
    np.testing.assert_allclose(thetas, [refit(without(n, r)) for r in removals], atol=1e-8)
    for i in (0, 7, 29):
        keep = without(n, [i])
        oracle = LogisticRegression(C=1 / (l2 * (n - 1)), fit_intercept=False, tol=1e-12, solver="newton-cholesky")
        np.testing.assert_allclose(thetas[i], oracle.fit(x[keep], y[keep]).coef_[0], atol=1e-7)


@pytest.fixture(name="net_case")
def _net_case():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 3, generator=draw, dtype=F64), torch.randint(2, (24,), generator=draw)
    net = mlp([3, 4, 2])
    return with_l2(cross_entropy(net), 0.02), net.init(1), (x, y)


def gradient_and_curvature(losses, params, batch, removal):
    """Plain autograd on the examples that are kept."""
    kept = tuple(value[torch.from_numpy(without(len(batch[0]), removal))] for value in batch)
    vector = flatten(params).clone().requires_grad_()

    def objective(v):
        return losses(unflatten(v, params), *kept).mean()

    (gradient,) = torch.autograd.grad(objective(vector), vector)
    return gradient, torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, vector.detach()))


def test_a_net_is_left_at_a_minimum_of_its_own_objective_even_from_an_indefinite_start(net_case):
    losses, params, batch = net_case
    removals = [[0], [3, 4], []]
    _, start = gradient_and_curvature(losses, params, batch, [])
    assert start[0] < -0.01  # Newton's plain step would go uphill here
    got = retrain_newton(losses, params, batch, removals, max_iter=60)
    assert got.converged.all()
    for m, removal in enumerate(removals):
        theta = {name: value[m] for name, value in got.params.items()}
        gradient, eigenvalues = gradient_and_curvature(losses, theta, batch, removal)
        assert float(gradient.norm()) <= 1e-10
        assert float(got.grad_norm[m]) <= 1e-10
        assert eigenvalues[0] > -1e-8


@pytest.mark.parametrize(
    ("losses", "start", "end"),
    [
        (lambda params, x: (params["w"] ** 2 - x) ** 2, 0.1, 1.0),  # a maximum at 0 is nearer
        (lambda params, x: torch.log(torch.cosh(params["w"] - x)), 4.0, 1.0),  # Newton's step overshoots and diverges
    ],
)
def test_damping_leads_downhill_where_plain_newton_fails(losses, start, end):
    got = retrain_newton(losses, {"w": torch.tensor(start, dtype=F64)}, (torch.ones(3, dtype=F64),), [[0], []])
    np.testing.assert_allclose(got.params["w"].numpy(), end, rtol=1e-9)


def test_directions_without_curvature_are_left_alone():
    """Only a + b matters; a - b must stay, also under noise below tol. Closed form: a + b = mean of what is kept."""

    def losses(params, x):
        return (params["a"] + params["b"] - x).square() / 2 + 1e-12 * (params["a"] - params["b"])

    start = {"a": torch.tensor(5.0, dtype=F64), "b": torch.tensor(-1.0, dtype=F64)}
    got = retrain_newton(losses, start, (torch.tensor([0.0, 3.0, 9.0], dtype=F64),), [[0], [2]])
    np.testing.assert_allclose((got.params["a"] + got.params["b"]).numpy(), [6.0, 1.5], rtol=1e-11)
    np.testing.assert_allclose((got.params["a"] - got.params["b"]).numpy(), 6.0, rtol=1e-11)


def test_the_clustering_net_converges_although_its_hessian_is_singular():
    draw = torch.Generator().manual_seed(2)
    y = torch.arange(3).repeat(8)
    x = torch.randn(24, 2, generator=draw, dtype=F64) + 3 * torch.tensor([[0.0, 0], [1, 1], [1, -1]], dtype=F64)[y]
    net = clustering_net(hidden=5)
    losses, batch = with_l2(cross_entropy(net), 0.01), (x, y)
    got = retrain_batched(losses, net.init(0), batch, [[0], [5]], steps=200, lr=0.05, max_iter=40)
    for m, removal in enumerate([[0], [5]]):
        theta = {name: value[m] for name, value in got.params.items()}
        gradient, eigenvalues = gradient_and_curvature(losses, theta, batch, removal)
        assert float(gradient.norm()) <= 1e-10
        assert (eigenvalues.abs() < 1e-8 * eigenvalues[-1]).sum() >= 7  # rotations: dim SO(5) - dim SO(5 - 2)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_batched_steps_equal_a_plain_loop_on_the_kept_examples(net_case, optimizer):
    """SGD would show a wrong normalisation, which Adam hides."""
    losses, params, batch = net_case
    removals = [[0], [3, 4], [], [1, 2, 5, 6, 7, 8, 9], [23]]
    got = retrain_batched(
        losses, params, batch, removals, steps=40, lr=0.05, newton=False, chunk=2, optimizer=optimizer
    )
    for m, removal in enumerate(removals):
        kept = tuple(value[torch.from_numpy(without(24, removal))] for value in batch)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        machine = optimizer(leaves.values(), lr=0.05)
        for _ in range(40):
            machine.zero_grad()
            losses(leaves, *kept).mean().backward()
            machine.step()
        for name, value in leaves.items():
            torch.testing.assert_close(got.params[name][m], value.detach(), rtol=0, atol=1e-12)
        machine.zero_grad()
        losses(leaves, *kept).mean().backward()
        norm = torch.cat([value.grad.reshape(-1) for value in leaves.values()]).norm()
        assert float(got.grad_norm[m]) == pytest.approx(float(norm), rel=1e-9)
    assert not got.converged.any()
    assert got.steps.tolist() == [0] * 5


def test_cold_and_warm_starts_agree_where_there_is_one_minimum():
    x, y = regression(20, 3)
    removals = [[i] for i in range(20)]
    batch = torch.from_numpy(x), torch.from_numpy(y)
    cold = retrain_batched(
        with_l2(squared, 0.1), {"w": torch.full((3,), 9.0, dtype=F64)}, batch, removals, steps=5, lr=0.1
    )
    expected = [ridge(x, y, without(20, r), 0.1) for r in removals]
    np.testing.assert_allclose(cold.params["w"].numpy(), expected, rtol=1e-9)


def test_models_that_did_not_converge_are_counted_aloud_and_marked():
    """A kink at 0 holds the optimum, unless its example, the first, is removed: then it is the mean of the others."""

    def losses(params, x, kink):
        return (params["w"] - x).square() / 2 + kink * params["w"].abs()

    batch = torch.tensor([0.1, 0.2, 0.3], dtype=F64), torch.tensor([9.0, 0.0, 0.0], dtype=F64)
    with pytest.warns(RuntimeWarning, match=r"2 of 3 retrained models did not converge \(\|gradient\| up to"):
        got = retrain_newton(losses, {"w": torch.tensor(1.0, dtype=F64)}, batch, [[0], [1], []])
    assert got.converged.tolist() == [True, False, False]
    assert (got.grad_norm > 1e-10).tolist() == [False, True, True]
    assert float(got.params["w"][0]) == pytest.approx(0.25, abs=1e-12)


def test_a_loss_that_newton_cannot_lower_ends_as_not_converged():
    def kinked(params, x):  # no curvature: every step is a jump
        return (params["w"] - x).abs()

    x = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    with pytest.warns(RuntimeWarning, match="1 of 1 retrained"):
        got = retrain_newton(kinked, {"w": torch.tensor(0.3, dtype=F64)}, (x,), [[]])
    assert not got.converged[0]


def test_a_start_where_the_objective_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="of 2 models is not finite"):
        retrain_newton(
            lambda params, x: x / params["w"], {"w": torch.zeros((), dtype=F64)}, (torch.ones(2),), [[0], [1]]
        )


def test_actual_change_is_after_minus_before_by_the_closed_form():
    """The prediction at a test point without example i, minus the prediction with it; one query and several."""
    x, y = regression(15, 3)
    tests = np.random.default_rng(9).normal(size=(4, 3))
    everyone = np.arange(15)
    full = ridge(x, y, everyone, 0.2)
    refits = np.array([ridge(x, y, without(15, [i]), 0.2) for i in everyone])
    expected = tests @ (refits - full).T  # (q, m)
    got = retrain_newton(
        with_l2(squared, 0.2), {"w": torch.from_numpy(full)}, (torch.from_numpy(x), torch.from_numpy(y)),
        [[i] for i in everyone],
    )  # fmt: skip
    points, params = torch.from_numpy(tests), {"w": torch.from_numpy(full)}
    np.testing.assert_allclose(actual_change(lambda p: points @ p["w"], params, got).numpy(), expected, rtol=1e-7)
    one = actual_change(lambda p: points[2] @ p["w"], params, got.params)
    np.testing.assert_allclose(one.numpy(), expected[2], rtol=1e-7)


def test_a_point_that_helps_has_a_positive_change():
    """The twin of the test point helps it: without it, the test loss is higher."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=F64)
    batch = (x, torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    losses = with_l2(squared, 0.1)
    full = {
        name: value[0]
        for name, value in retrain_newton(losses, {"w": torch.zeros(2, dtype=F64)}, batch, [[]]).params.items()
    }
    got = retrain_newton(losses, full, batch, [[0], [1]])
    change = actual_change(lambda p: squared(p, x[:1], batch[1][:1])[0], full, got)
    assert change[0] > 1.0
    assert abs(change[1]) < 0.1


def test_keep_weights_by_hand_and_what_it_refuses():
    np.testing.assert_array_equal(keep_weights(4, [[1], (0, 3, 3), []]), [[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]])
    for removal in ([4], [-1]):
        with pytest.raises(IndexError, match=f"cannot remove example {removal[0]} of 4"):
            keep_weights(4, [removal])
    with pytest.raises(ValueError, match="at least one"):
        keep_weights(2, [[0, 1]])
    with pytest.raises(ValueError, match="no removals"):
        keep_weights(2, [])
    for mask in ([True, False], np.array([False, False])):
        with pytest.raises(TypeError, match="not a mask"):
            keep_weights(2, [mask])


def test_no_warning_when_all_is_well():
    x, y = regression(10, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = retrain_newton(
            with_l2(squared, 0.1), {"w": torch.zeros(2, dtype=F64)}, (torch.from_numpy(x), torch.from_numpy(y)), [[0]]
        )
    assert isinstance(got, Retrained)


def ridge_solve(x, l2):
    hessian = torch.from_numpy(x.T @ x / len(x) + l2 * np.eye(x.shape[1]))
    return lambda b: torch.linalg.solve(hessian, b.T).T


@pytest.mark.parametrize("memory", [1, 10])
def test_quasi_newton_reaches_the_closed_form_even_when_much_is_removed(memory):
    x, y = regression(25, 4)
    removals = [[0], [1, 5, 7], [], list(range(3, 23)), [24]]
    full = {"w": torch.from_numpy(ridge(x, y, np.arange(25), 0.3))}
    batch = torch.from_numpy(x), torch.from_numpy(y)
    got = retrain_quasi_newton(
        with_l2(squared, 0.3), full, batch, removals, ridge_solve(x, 0.3), tol=1e-11, memory=memory, chunk=2
    )
    for theta, removal in zip(got.params["w"].numpy(), removals, strict=True):
        np.testing.assert_allclose(theta, ridge(x, y, without(25, removal), 0.3), rtol=1e-9, atol=1e-12)
    assert got.converged.all()
    assert got.steps[2] == 0  # nothing removed: nothing to do
    assert got.steps[0] > 1  # the first step alone is the influence approximation


@pytest.mark.parametrize("solve", [lambda b: b, lambda b: 100 * b], ids=["far too short", "far too long"])
def test_quasi_newton_ends_at_the_same_optimum_whatever_curvature_it_starts_from(solve):
    x, y = regression(25, 4)
    full = {"w": torch.from_numpy(ridge(x, y, np.arange(25), 0.3))}
    batch = torch.from_numpy(x), torch.from_numpy(y)
    got = retrain_quasi_newton(with_l2(squared, 0.3), full, batch, [[3], [9]], solve)
    for theta, i in zip(got.params["w"].numpy(), [3, 9], strict=True):
        np.testing.assert_allclose(theta, ridge(x, y, without(25, [i]), 0.3), rtol=1e-8)


def test_a_net_that_quasi_newton_does_not_finish_is_finished_by_newton(net_case):
    losses, params, batch = net_case
    params = {name: value[0] for name, value in retrain_newton(losses, params, batch, [[]], max_iter=60).params.items()}
    for max_iter in (1, 100):
        got = retrain_quasi_newton(losses, params, batch, [[0], [3]], lambda b: b, max_iter=max_iter)
        assert got.converged.all()
        for m, removal in enumerate([[0], [3]]):
            theta = {name: value[m] for name, value in got.params.items()}
            gradient, eigenvalues = gradient_and_curvature(losses, theta, batch, removal)
            assert float(gradient.norm()) <= 1e-10
            assert eigenvalues[0] > -1e-8


@pytest.mark.parametrize("turned", [False, True])
def test_the_two_loops_are_the_dense_bfgs_update_of_the_inverse(turned):
    """H <- (I - r s y') H (I - r y s') + r s s', r = 1 / s.y; a pair with s.y <= 0 is left out."""
    rng = np.random.default_rng(5)
    models, p, start = 3, 4, np.diag([0.1, 0.5, 1.0, 3.0])
    root = rng.normal(size=(models, p, p))
    curvature = root @ root.transpose(0, 2, 1) + np.eye(p)
    s = rng.normal(size=(5, models, p))
    y = np.einsum("mij,kmj->kmi", curvature, s)
    if turned:
        y[2, 1] *= -1  # one model, one step
    slope = rng.normal(size=(models, p))
    moves = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(s, y, strict=True)]
    got = retrain._two_loops(torch.from_numpy(slope), moves, lambda b: b @ torch.from_numpy(start))
    for m in range(models):
        inverse = start
        for a, b in zip(s[:, m], y[:, m], strict=True):
            if a @ b > 0:
                left = np.eye(p) - np.outer(a, b) / (a @ b)
                inverse = left @ inverse @ left.T + np.outer(a, a) / (a @ b)
        np.testing.assert_allclose(got[m].numpy(), inverse @ slope[m], rtol=1e-10)


def test_quasi_newton_does_without_newton_and_its_first_step_is_the_influence(monkeypatch):
    """Newton's finish would hide a wrong step, so there is none here."""
    monkeypatch.setattr(retrain, "_finish", lambda *_: pytest.fail("Newton was called"))
    x, y = regression(40, 4)
    full = ridge(x, y, np.arange(40), 0.3)
    batch, removals = (torch.from_numpy(x), torch.from_numpy(y)), [[i] for i in range(40)]
    args = with_l2(squared, 0.3), {"w": torch.from_numpy(full)}, batch, removals, ridge_solve(x, 0.3)
    got = retrain_quasi_newton(*args, tol=1e-11)
    np.testing.assert_allclose(got.params["w"].numpy(), [ridge(x, y, without(40, r), 0.3) for r in removals], rtol=1e-9)
    assert int(got.steps.max()) <= 8  # H - H_K is a multiple of I plus one of x x.: few steps, and never max_iter

    slopes = x * (x @ full - y)[:, None] + 0.3 * full  # (n, p)
    influence = np.linalg.solve(x.T @ x / 40 + 0.3 * np.eye(4), slopes.T).T / 39
    left = torch.ones(40, dtype=F64), torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.bool)
    monkeypatch.setattr(retrain, "_finish", lambda family, theta, *_: Retrained(unflatten(theta, family.like), *left))
    first = retrain_quasi_newton(*args, max_iter=1).params["w"].numpy()
    np.testing.assert_allclose(first - full, influence, rtol=1e-9)


def test_quasi_newton_refuses_a_start_that_is_not_finite():
    """One NaN in the data must not come back as models without a warning."""
    x = torch.tensor([0.0, 1.0, np.nan], dtype=F64)
    start = {"w": torch.tensor(1.0, dtype=F64)}
    with pytest.raises(FloatingPointError, match="of 2 models is not finite"):
        retrain_quasi_newton(lambda params, x: (params["w"] - x).square(), start, (x,), [[0], [1]], lambda b: b)


def test_nothing_is_made_on_the_default_device_instead_of_the_data_s(monkeypatch):
    """With "meta" as the default, a tensor made without a device cannot be mixed with the data's."""
    x, y = regression(25, 4)
    batch = torch.from_numpy(x), torch.from_numpy(y)
    removals = [[0], [3, 4]]
    keep, solve = keep_weights(25, removals), ridge_solve(x, 0.3)
    monkeypatch.setattr(retrain, "keep_weights", lambda *_: keep)
    full = {"w": torch.from_numpy(ridge(x, y, np.arange(25), 0.3))}
    with torch.device("meta"):
        both = (
            retrain_newton(with_l2(squared, 0.3), full, batch, removals),
            retrain_quasi_newton(with_l2(squared, 0.3), full, batch, removals, solve),
        )
    for got in both:
        assert {t.device.type for t in (got.params["w"], got.grad_norm, got.steps, got.converged)} == {"cpu"}
        np.testing.assert_allclose(got.params["w"][1], ridge(x, y, without(25, [3, 4]), 0.3), rtol=1e-9)
