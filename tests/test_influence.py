"""Oracles: numpy refits of ridge and softmax regression. Signs, units and the 1/n are checked by values."""

import cases
import numpy as np
import oracles
import pytest
import torch

from clif_kit.curvature import hessian, hvp
from clif_kit.gradients import flatten, per_example_gradients, query_gradient, unflatten
from clif_kit.influence import (
    attack_direction,
    cross_loss_influence,
    gradient_dot,
    group_influence,
    self_influence,
    training_attack,
)
from clif_kit.solvers import SolverConfig, cg, exact, lissa


class Ridge:
    """Squared loss at its optimum, with two linear queries; the penalty is not removed with an example."""

    n, p, lam = 40, 5, 0.1

    def __init__(self):
        rng = np.random.default_rng(0)
        self.X, self.y, self.Q = rng.normal(size=(40, 5)), rng.normal(size=40), rng.normal(size=(2, 5))
        self.theta = oracles.ridge_fit(self.X, self.y, self.lam)
        self.residual = self.X @ self.theta - self.y
        self.H = self.X.T @ self.X / self.n + self.lam * np.eye(self.p)
        self.leverage = np.einsum("ij,ji->i", self.X, np.linalg.solve(self.H, self.X.T)) / self.n
        self.grads = torch.from_numpy(self.X * self.residual[:, None])
        self.solve = exact(torch.from_numpy(self.H))

    def query_change(self, weights):
        return self.Q @ (oracles.ridge_fit(self.X, self.y, self.lam, weights) - self.theta)


class Softmax:
    """A softmax regression at its optimum and a query that is another loss (Brier score) on other data."""

    l2 = 0.1

    def __init__(self):
        case = cases.softmax(n=60, l2=self.l2)
        self.losses, self.batch, self.like = case.losses, case.batch, case.params
        self.X, self.y = (value.numpy() for value in case.batch)
        self.theta = oracles.softmax_fit(self.X, self.y, 3, self.l2)
        self.params = unflatten(torch.from_numpy(self.theta), case.params)
        rng = np.random.default_rng(5)
        self.Xq, self.yq = rng.normal(size=(6, 4)), rng.integers(3, size=6)

    def query(self, params):
        prob = torch.softmax(cases.softmax_outputs(params, torch.from_numpy(self.Xq)), dim=1)
        return (prob - torch.eye(3, dtype=torch.float64)[self.yq]).square().sum(dim=1)  # (q,)

    def query_by_numpy(self, theta):
        return ((oracles.softmax_probabilities(theta, self.Xq, 3) - np.eye(3)[self.yq]) ** 2).sum(axis=1)

    def refit(self, X):
        return oracles.softmax_fit(X, self.y, 3, self.l2, start=self.theta)

    def scores(self, solve):
        grads = per_example_gradients(self.losses, self.params, self.batch)
        return cross_loss_influence(grads, query_gradient(self.query, self.params), solve)


@pytest.fixture(scope="module")
def ridge():
    return Ridge()


@pytest.fixture(scope="module")
def softmax():
    return Softmax()


def test_scores_match_ridge_refits_without_each_example(ridge):
    """For squared loss and linear f the prediction is exact up to the leverage: Δ_i = (1 - h_i) · actual change."""
    refit = np.stack([ridge.query_change(w) for w in oracles.leave_one_out(ridge.n)], axis=1)  # (q, n)
    many = cross_loss_influence(ridge.grads, torch.from_numpy(ridge.Q), ridge.solve)
    np.testing.assert_allclose(many, (1 - ridge.leverage) * refit, rtol=1e-9)
    one = cross_loss_influence(ridge.grads, torch.from_numpy(ridge.Q[1]), ridge.solve)
    np.testing.assert_allclose(one, (1 - ridge.leverage) * refit[1], rtol=1e-9)
    assert np.corrcoef(one.numpy(), refit[1])[0, 1] > 0.99


def test_cross_loss_scores_are_the_derivative_of_refits_by_weight(softmax):
    """Gradients, Hessian and solve of clif_kit against numpy refits with one example's weight at 1 ± ε."""
    scores = softmax.scores(exact(hessian(softmax.losses, softmax.params, softmax.batch)))  # (q, n)
    step = 1e-4
    for i in (0, 17, 59):
        weights = np.ones(60)
        weights[i] = 1 - step
        less = softmax.query_by_numpy(oracles.softmax_fit(softmax.X, softmax.y, 3, softmax.l2, weights, softmax.theta))
        weights[i] = 1 + step
        more = softmax.query_by_numpy(oracles.softmax_fit(softmax.X, softmax.y, 3, softmax.l2, weights, softmax.theta))
        np.testing.assert_allclose(scores[:, i], (less - more) / (2 * step), atol=1e-9)


def test_cross_loss_scores_predict_leave_one_out_refits_of_another_loss(softmax):
    scores = softmax.scores(exact(hessian(softmax.losses, softmax.params, softmax.batch)))
    before = softmax.query_by_numpy(softmax.theta)
    actual = np.stack(
        [
            softmax.query_by_numpy(oracles.softmax_fit(softmax.X, softmax.y, 3, softmax.l2, w, softmax.theta)) - before
            for w in oracles.leave_one_out(60)
        ],
        axis=1,
    )
    for predicted, truth in zip(scores.numpy(), actual, strict=True):
        assert np.corrcoef(predicted, truth)[0, 1] > 0.995
        assert 0.8 < (predicted @ truth) / (truth @ truth) < 1  # first order misses the leverage, p/n = 0.25 at most


def test_all_solvers_give_the_same_scores(softmax):
    whole = hvp(softmax.losses, softmax.params, softmax.batch)
    chunked = hvp(softmax.losses, softmax.params, softmax.batch, chunk=31)
    reference = softmax.scores(exact(hessian(softmax.losses, softmax.params, softmax.batch), damping=0.5))
    for solve in (cg(chunked, SolverConfig(damping=0.5, rtol=1e-9)), lissa(whole, 15, damping=0.5, rtol=1e-9)):
        np.testing.assert_allclose(softmax.scores(solve), reference, atol=1e-9)


def test_gradient_dot_is_the_influence_without_the_inverse(ridge):
    expected = ridge.Q @ ridge.grads.numpy().T / ridge.n
    np.testing.assert_allclose(gradient_dot(ridge.grads, torch.from_numpy(ridge.Q)), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient_dot(ridge.grads, torch.from_numpy(ridge.Q[0])), expected[0], rtol=1e-12)


def test_gradient_dot_predicts_one_step_of_gradient_descent(ridge):
    """Sign and 1/n by another route: from θ, one small step without example i against one with it."""
    rate = 1e-3
    steps = np.array([-rate * (w @ ridge.grads.numpy()) / ridge.n for w in oracles.leave_one_out(ridge.n)])
    everyone = -rate * ridge.grads.numpy().mean(axis=0)
    expected = ridge.Q @ (steps - everyone).T / rate
    np.testing.assert_allclose(gradient_dot(ridge.grads, torch.from_numpy(ridge.Q)), expected, atol=1e-10)


def test_self_influence_is_residual_squared_times_leverage(ridge):
    """And its own loss after a refit without i is ½ r²/(1-h)², so the score is the first order of that in h."""
    actual = self_influence(ridge.grads, ridge.solve)
    np.testing.assert_allclose(actual, ridge.residual**2 * ridge.leverage, rtol=1e-11)
    for i, w in enumerate(oracles.leave_one_out(ridge.n)):
        after = ridge.X[i] @ oracles.ridge_fit(ridge.X, ridge.y, ridge.lam, w) - ridge.y[i]
        rise = (after**2 - ridge.residual[i] ** 2) / 2
        h = ridge.leverage[i]
        assert actual[i].item() == pytest.approx(rise * (2 * h) / (1 / (1 - h) ** 2 - 1), rel=1e-8)


def test_self_influence_is_the_diagonal_of_matched_influence(ridge):
    table = cross_loss_influence(ridge.grads, ridge.grads, ridge.solve)
    np.testing.assert_allclose(self_influence(ridge.grads, ridge.solve), table.diagonal(), rtol=1e-12)


@pytest.mark.parametrize("group", [[3], [0, 7, 21], list(range(0, 40, 4))])
def test_group_influence_is_the_first_order_of_downweighting_the_group(ridge, group):
    """Halve the weight that is taken away and the error falls by four: the prediction is right to first order."""
    scores = cross_loss_influence(ridge.grads, torch.from_numpy(ridge.Q), ridge.solve)
    predicted = group_influence(scores, [group])[:, 0].numpy()

    def error(share):
        weights = np.ones(ridge.n)
        weights[group] -= share
        return np.linalg.norm(ridge.query_change(weights) - share * predicted)

    assert error(0.01) < 0.02 * np.linalg.norm(0.01 * predicted)
    assert error(0.01) / error(0.005) == pytest.approx(4, rel=0.02)


def test_group_influence_adds_members_for_each_query_and_group():
    scores = torch.tensor([[1.0, 2.0, 4.0], [-8.0, 16.0, 32.0]])
    groups = [[2, 0], (1,), torch.tensor([0, 1, 2]), []]
    assert group_influence(scores, groups).tolist() == [[5, 2, 7, 0], [24, 16, 40, 0]]
    assert group_influence(scores[0], groups).tolist() == [5, 2, 7, 0]


def test_group_influence_refuses_repeated_and_unknown_examples():
    with pytest.raises(ValueError, match="twice"):
        group_influence(torch.ones(3), [[0, 1, 0]])
    for index in (3, -1):
        with pytest.raises(IndexError):
            group_influence(torch.ones(3), [[index]])


def test_scores_refuse_wrong_shapes_and_values_that_are_not_finite(ridge):
    for score in (gradient_dot, lambda g, q: cross_loss_influence(g, q, lambda b: b)):
        with pytest.raises(ValueError, match=r"\(40, 5\) and \(4,\)"):
            score(ridge.grads, torch.ones(4))
    q = torch.from_numpy(ridge.Q)
    with pytest.raises(ValueError, match="turned the shape"):
        cross_loss_influence(ridge.grads, q, lambda b: b[0])
    with pytest.raises(FloatingPointError, match="raise the damping"):
        cross_loss_influence(ridge.grads, q, lambda b: b / 0)
    with pytest.raises(FloatingPointError, match="raise the damping"):
        self_influence(ridge.grads, lambda b: b * torch.nan)


def test_attack_direction_matches_finite_differences_of_refitted_query_losses(softmax):
    """Move one input coordinate, refit in numpy, look at the query again."""
    indices, step = [4, 31], 1e-4
    solve = exact(hessian(softmax.losses, softmax.params, softmax.batch))
    solved = solve(query_gradient(lambda p: softmax.query(p).sum(), softmax.params))
    actual = attack_direction(softmax.losses, softmax.params, softmax.batch, solved, indices)

    def query_after(i, j, move):
        X = softmax.X.copy()
        X[i, j] += move
        return softmax.query_by_numpy(softmax.refit(X)).sum()

    expected = [[(query_after(i, j, step) - query_after(i, j, -step)) / (2 * step) for j in range(4)] for i in indices]
    np.testing.assert_allclose(actual, expected, atol=1e-8)
    assert np.abs(expected).max() > 1e-4  # far above the tolerance


@pytest.fixture(scope="module")
def attacked(softmax):
    seen = []

    def refit(batch):
        seen.append(batch[0].clone())
        return unflatten(torch.from_numpy(softmax.refit(batch[0].numpy())), softmax.like)

    result = training_attack(
        softmax.losses,
        refit,
        lambda params: softmax.query(params).sum(),
        softmax.batch,
        [4, 31],
        lambda params, batch: exact(hessian(softmax.losses, params, batch)),
        step=0.05,
        box=0.4,
        clip=(-1.0, 1.5),
        iterations=12,
    )
    return result, seen


def test_training_attack_raises_the_query_loss_of_a_model_that_numpy_refits(softmax, attacked):
    result, seen = attacked
    assert len(seen) == len(result.query) == 13
    again = [softmax.query_by_numpy(softmax.refit(inputs.numpy())).sum() for inputs in seen]  # a refit at every step
    np.testing.assert_allclose(result.query, again, atol=1e-12)
    final = softmax.refit(result.inputs.numpy())
    np.testing.assert_allclose(flatten(result.params), final, atol=1e-12)
    assert torch.equal(result.inputs, seen[-1])
    assert (result.query[2:9].diff() > 0).all()
    assert result.query[-1] > result.query[0]


def test_training_attack_stays_in_the_box_and_the_range_and_leaves_the_others_alone(softmax, attacked):
    result, _ = attacked
    before, after = softmax.batch[0], result.inputs
    others = [i for i in range(60) if i not in (4, 31)]
    assert torch.equal(after[others], before[others])
    np.testing.assert_array_equal(before, softmax.X)  # the caller's data are as they were
    chosen, original = after[[4, 31]], before[[4, 31]]
    lowest, highest = (original - 0.4).clamp(-1.0, 1.5), (original + 0.4).clamp(-1.0, 1.5)
    assert (chosen >= lowest).all()
    assert (chosen <= highest).all()
    at_the_edge = (chosen == lowest) | (chosen == highest)
    assert at_the_edge.double().mean() > 0.5  # 12 steps of 0.05 pass a box of 0.4, so the edge is what stopped them


def test_training_attack_steps_along_the_sign_of_finite_differences(softmax):
    """One iteration: every coordinate moves by exactly one step, uphill, also where no inverse would say downhill."""
    chosen, step = [20, 49], 1e-3
    query = lambda params: softmax.query(params)[2]  # noqa: E731
    result = training_attack(
        softmax.losses,
        lambda batch: unflatten(torch.from_numpy(softmax.refit(batch[0].numpy())), softmax.like),
        query,
        softmax.batch,
        chosen,
        lambda params, batch: exact(hessian(softmax.losses, params, batch)),
        step=step,
        box=1.0,
        iterations=1,
    )
    slopes = np.zeros((2, 4))
    for row, i in enumerate(chosen):
        for j in range(4):
            X = softmax.X.copy()
            X[i, j] += step
            up = softmax.query_by_numpy(softmax.refit(X))[2]
            X[i, j] -= 2 * step
            slopes[row, j] = (up - softmax.query_by_numpy(softmax.refit(X))[2]) / (2 * step)
    np.testing.assert_allclose(result.inputs[chosen] - softmax.batch[0][chosen], step * np.sign(slopes), atol=1e-15)
    assert (result.query[1] - result.query[0]).item() == pytest.approx(step * np.abs(slopes).sum(), rel=0.01)
    plain = query_gradient(query, softmax.params)  # the case can tell: without the inverse, signs differ
    without_inverse = attack_direction(softmax.losses, softmax.params, softmax.batch, plain, chosen)
    assert (np.sign(without_inverse.numpy()) != np.sign(slopes)).any()


def test_training_attack_refuses_what_it_cannot_do(softmax):
    arguments = (softmax.losses, lambda batch: softmax.params, softmax.query, softmax.batch, [0], lambda *_: exact)  # noqa: ARG005
    with pytest.raises(ValueError, match="scalar query"):
        training_attack(*arguments, step=0.1, box=1.0)
    for wrong in ({"step": 0.0, "box": 1.0}, {"step": 0.1, "box": -1.0}):
        with pytest.raises(ValueError, match="step and box must be > 0"):
            training_attack(*arguments, **wrong)
