"""The clustering experiment against autograd, torch's own Adam, plain loops and scipy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import kl_div, nll_loss

from clif_kit import mog, mog_moving, mog_panels, mog_scores
from clif_kit.parallel import map_seeds
from clif_kit.store import Store, StoreMismatch, fingerprint


class Written(nn.Module):
    """The net again, as a module with its own parameters: distances by subtraction, no tricks."""

    def __init__(self, theta, activation):
        super().__init__()
        self.centres = nn.Parameter(theta[:36].reshape(3, 12).clone())
        self.encoder = nn.Sequential(nn.Linear(2, 12), activation(), nn.Linear(12, 12)).double()
        nn.utils.vector_to_parameters(theta[36:].clone(), self.encoder.parameters())

    def forward(self, x):
        near = 1 / (1 + (self.encoder(x)[:, None] - self.centres).square().sum(-1))
        return near / near.sum(1, keepdim=True)


def flat(parameters):
    return torch.cat([value.detach().reshape(-1) for value in parameters])


def objective(module, x, y=None, p=None, l2=0.0):
    """Mean loss: supervised with ``y``, clustering with ``p``, clustering with its own sharpened q with neither."""
    q = module(x)
    if p is None and y is None:
        weight = q.detach() ** 2 / q.detach().sum(0)
        p = weight / weight.sum(1, keepdim=True)
    loss = nll_loss(q.log(), y) if y is not None else kl_div(q.log(), p, reduction="batchmean")
    return loss + l2 / 2 * sum(value.square().sum() for value in module.parameters())


@pytest.fixture(params=[nn.Tanh, nn.ReLU], ids=["tanh", "relu"])
def task(request):
    return mog.make_task(3, n_per_class=4, activation=request.param)


@pytest.fixture(scope="module")
def smooth():
    return mog.make_task(3, n_per_class=4, activation=nn.Tanh)


def activation_of(task):
    return type(task.net.module.encoder[1])


@pytest.mark.parametrize("what", ["labels", "soft", "moving"])
def test_the_closed_form_is_the_gradient_of_every_model(task, what):
    theta = task.start + torch.randn(5, 228, generator=torch.Generator().manual_seed(0)).double()
    keep = mog_panels.keep_weights(12, [[0], [1, 2], [], [11], [3, 4, 5]])
    p = task.sharpened(task.start)
    target = {"labels": task.labels(task.y), "soft": p, "moving": None}[what]
    got = mog.stacked_gradients(task.net, theta, task.x, target, keep, l2=0.01)
    for row, vector, weights in zip(got, theta, keep, strict=True):
        module, k = Written(vector, activation_of(task)), weights > 0
        given = {"labels": {"y": task.y[k]}, "soft": {"p": p[k]}, "moving": {}}[what]
        want = flat(torch.autograd.grad(objective(module, task.x[k], **given, l2=0.01), list(module.parameters())))
        assert (row - want).abs().max() <= 1e-12


@pytest.mark.parametrize("clustering", [False, True])
def test_training_is_torchs_adam_on_the_points_that_are_kept(task, clustering):
    keep = mog_panels.keep_weights(12, [[i] for i in range(12)])
    got = mog.train(task, None if clustering else task.labels(task.y), keep, steps=3, chunk=5)
    for row, weights in zip(got, keep, strict=True):
        module, k = Written(task.start, activation_of(task)), weights > 0
        optimiser = torch.optim.Adam(module.parameters())
        for _ in range(3):
            optimiser.zero_grad()
            objective(module, task.x[k], None if clustering else task.y[k]).backward()
            optimiser.step()
        # Adam divides by the size of the gradient: rounding in an entry near zero grows
        assert (row - flat(module.parameters())).abs().max() <= 1e-9


@pytest.mark.parametrize("order", [None, torch.arange(11, -1, -1)])
def test_the_carried_loop_is_one_torch_adam_for_all_retrainings(task, order):
    module = Written(task.start, activation_of(task))
    optimiser = torch.optim.Adam(module.parameters())
    for models in mog.carried_retrainings(task, task.labels(task.y), sweeps=3, order=order):
        for i in range(12) if order is None else order.tolist():
            nn.utils.vector_to_parameters(task.start.clone(), module.parameters())
            k = torch.arange(12) != i
            for _ in range(2):
                optimiser.zero_grad()
                objective(module, task.x[k], task.y[k]).backward()
                optimiser.step()
            assert (models[i] - flat(module.parameters())).abs().max() <= 1e-9


def test_alignment_is_the_best_of_all_namings(smooth):
    got, found = mog.aligned_labels(smooth), Written(smooth.start, nn.Tanh)(smooth.x).argmax(1)
    best = max(int((torch.tensor(names)[smooth.y] == found).sum()) for names in itertools.permutations(range(3)))
    assert int((got == found).sum()) == best
    assert len(got.unique()) == 3


def test_reset_labels_ask_the_model_at_the_class_means_and_may_collapse(smooth):
    module = Written(smooth.start, nn.Tanh)
    assert torch.equal(mog.reset_labels(smooth, smooth.start), module(smooth.means).argmax(1)[smooth.y])
    same = smooth.start.clone()
    same[36:] = 0  # every point has one encoding, so all classes get one label
    assert len(mog.reset_labels(smooth, same).unique()) == 1


def by_hand(task, p, y, l2, factor):
    """Per-example gradients and Hessians, query gradients: loops and torch.autograd."""
    sizes = [36, 24, 12, 144, 12]

    def q(theta, x):
        mu, w1, b1, w2, b2 = theta.split(sizes)
        z = activation_of(task)()(x @ w1.reshape(12, 2).T + b1) @ w2.reshape(12, 12).T + b2
        near = 1 / (1 + (z - mu.reshape(3, 12)).square().sum(1))
        return near / near.sum()

    def loss(theta, i):
        return factor * kl_div(q(theta, task.x[i]).log(), p[i], reduction="sum") + l2 / 2 * theta.square().sum()

    n, theta = len(task.x), task.start
    g = torch.stack([torch.autograd.functional.jacobian(lambda t, i=i: loss(t, i), theta) for i in range(n)])
    H = torch.stack([torch.autograd.functional.hessian(lambda t, i=i: loss(t, i), theta) for i in range(n)])
    v = [torch.autograd.functional.jacobian(lambda t, i=i: -q(t, task.x[i])[y[i]].log(), theta) for i in range(n)]
    return g, H, torch.stack(v)


def test_five_estimators_against_loops(task):
    p, y, l2 = task.sharpened(task.start), mog.aligned_labels(task), 0.01
    got = mog_scores.estimates(task, task.start, p, y, l2=l2, factor=1 / 3)
    g, H, v = by_hand(task, p, y, l2, 1 / 3)
    n, mean = len(g), H.mean(0)
    low = float(torch.linalg.eigvalsh(mean)[0])
    damped = mean + (0.01 + max(0.0, -1.1 * low)) * torch.eye(228).double()
    passes = v.clone()
    for i in range(n):  # one ordered pass, one point and one test point at a time
        passes = torch.stack([v[k] + 0.99 * passes[k] - (H[i] @ passes[k]) / 25 for k in range(n)])
    want = {
        "dot": v @ g.T / n,
        "alg1": torch.stack([torch.stack([g[i] @ (H[i] @ v[k]) for i in range(n)]) for k in range(n)]) / n,
        "lissa_published": passes @ g.T / n,
        "exact": v @ torch.linalg.pinv(mean, rtol=1e-8, hermitian=True) @ g.T / n,
        "lissa": v @ torch.linalg.inv(damped) @ g.T / n,
    }
    assert sorted(got) == sorted(mog_scores.ESTIMATORS) == sorted(want)
    for name, scores in want.items():
        tolerance = 5e-3 if name == "lissa" else 1e-6 if name == "exact" else 1e-10
        assert (got[name] - scores).norm() <= tolerance * scores.norm(), name


def test_numbers_lose_their_sign_and_leading_digits_in_the_text():
    values = np.array([0.25, -0.012345, -9.876543, 99.123456, -12.345678, 123.456789, -98765.432109])
    want = [0.25, -0.012345, -9.876543, 99.123456, 12.345678, 23.456789, 65.432109]
    assert np.allclose(mog_scores.through_text(values), want, atol=1e-12)
    assert mog_scores.through_text(np.array([0.1234567, 0.0000004]))[1] == 0
    values = 10 ** np.random.default_rng(0).uniform(-6, 5, 150) * np.tile([-1, 1], 75)
    with np.printoptions(precision=6, suppress=True):  # the printed array itself, cut where the public code cuts it
        rows = str(np.column_stack([np.arange(150), values])).split("]")[:150]
    assert np.allclose(mog_scores.through_text(values), [float(row[-9:]) for row in rows], atol=1.1e-6)


def test_agreement_against_scipy():
    rng = np.random.default_rng(0)
    predicted, actual = rng.normal(size=(6, 40)), rng.normal(size=(6, 40))
    predicted[0], actual[1, :3] = 1.0, 0.0
    r, slope, size, overlap = mog_scores.agreement(predicted, actual, k=5)
    assert r[0] == 0
    for k in range(6):
        fit = stats.linregress(actual[k], predicted[k])
        assert slope[k] == pytest.approx(fit.slope, abs=1e-12)
        assert k == 0 or r[k] == pytest.approx(fit.rvalue, abs=1e-12)
        both = actual[k] != 0
        assert size[k] == pytest.approx(np.median(np.abs(np.log10(np.abs(predicted[k, both] / actual[k, both])))))
        tops = [{*np.argsort(sign * predicted[k])[:5]} & {*np.argsort(sign * actual[k])[:5]} for sign in (1, -1)]
        assert k == 0 or overlap[k] == pytest.approx(sum(map(len, tops)) / 10)


def test_settled_models_are_at_their_own_optimum(smooth):
    p, removed = smooth.sharpened(smooth.start), np.array([1, 7])
    run = mog_panels.settle(smooth, p, l2=0.01, removed=removed, steps=300)
    assert run.ok.all()
    for i, theta in zip(removed, run.models, strict=True):
        module, k = Written(theta, nn.Tanh), torch.arange(12) != int(i)
        loss = objective(module, smooth.x[k], p=p[k], l2=0.01)
        assert flat(torch.autograd.grad(loss, list(module.parameters()))).norm() <= 1e-9


def test_the_implicit_score_is_the_derivative_of_the_solution():
    task = mog.make_task(1, n_per_class=10, activation=nn.Tanh)
    found = {}
    original = mog_moving.compare
    try:
        mog_moving.compare = lambda scores, actual, *_, **__: found.update(scores["cross"], actual=actual) or {}
        mog_moving.moving_target(task, l2=0.01, removed=np.array([4]), steps=2000)
    finally:
        mog_moving.compare = original
    start, y, eps = mog.train(task, None, steps=2000, lr=1e-2, l2=0.01), mog.aligned_labels(task), 1e-3
    ends = []
    for change in (eps, -eps):
        w = torch.ones(30).double()
        w[4] += change
        slope = lambda t, w=w: mog.stacked_gradients(task.net, t[None], task.x, None, w[None], 0.01)[0]  # noqa: E731
        theta, size = mog_moving._root(slope, start)
        assert size <= 1e-9
        ends.append(mog.query_losses(task, theta[None], y)[:, 0])
    want = (ends[1] - ends[0]) / (2 * eps)  # less weight, towards removal
    assert (found["implicit"][:, 0] - want).norm() <= 5e-3 * want.norm()  # a soft direction magnifies what is left of G
    assert (found["exact"][:, 0] - want).norm() > 1e-2 * want.norm()  # holding P fixed is another derivative


def test_metrics_are_shares_over_seeds_and_gains_have_their_sign():
    def one(matched, cross):
        rows = lambda r: np.stack([np.array(r), np.ones(4), np.full(4, 2.0), np.full(4, 0.5)])  # noqa: E731
        found = {"classes": np.array([0, 0, 1, 2]), "labels_left": np.array(3.0)}
        found["actual/nll_loo/published"] = np.zeros((4, 4))
        for estimator in ("lissa_published", "dot", "exact"):
            found[f"matched_{estimator}/nll_loo/published"] = rows(matched)
            found[f"cross_{estimator}/nll_loo/published"] = rows(cross)
            found[f"matched_{estimator}/nll_loo/converged"] = found[f"cross_{estimator}/dec_loo/converged"] = rows(
                cross
            )
        return found

    results = [one([0.9, 0.1, 0.9, 0.1], [0.9] * 4), one([0.9, 0.9, 0.9, 0.81], [0.9, 0.9, 0.9, 0.1])]
    got = mog_scores.metrics(results)
    assert got["share_r08/matched_dot/nll_loo/published"].values == (0.5, 1.0)
    assert got["share_r08_gain/cross_minus_matched_dot/nll_loo/published"].values == (0.5, -0.25)
    assert got["share_r08_gain/cross_minus_matched_exact/own_loo/converged"].value == 0
    classes = [got[f"share_r08_class_{k}/matched_lissa_published/nll_loo/published"].values for k in "abc"]
    assert classes == [(1.0, 1.0), (0.5, 1.0), (0.0, 1.0)]  # best class first, within a seed
    assert got["overlap_top10_gain/cross_lissa_published_minus_random/nll_loo/published"].value == pytest.approx(-2)
    assert got["labels_left/matched/published"].value == 3


def test_one_seed_of_the_study_has_every_panel():
    found = mog_panels.study(0, n_per_class=5, sweeps=2, l2=0.01, removed=4, steps=200)
    panels = {key.split("/", 1)[1] for key, value in found.items() if value.ndim == 2 and len(value) == 4}
    assert {f"nll_loo/{p}" for p in ("published", "parser", "labels", "shuffled", "mended", "converged")} <= panels
    assert {"dec_loo/mended", "dec_loo/converged"} <= panels
    rows = found["cross_exact/dec_loo/converged"]
    assert rows.shape == (4, 15)
    assert np.isfinite(rows).all()


def test_map_seeds_computes_a_seed_once_and_goes_on(tmp_path):
    ran = []

    def study(seed):
        ran.append(seed)
        if seed == 2 and ran.count(2) == 1:
            raise RuntimeError("killed here")
        return {"seed": np.array(seed)}

    store = Store(tmp_path, fingerprint=fingerprint("one"))
    with pytest.raises(RuntimeError, match="killed here"):
        map_seeds(study, [0, 1, 2], store=store, n_jobs=1, progress=False)
    got = map_seeds(study, [0, 1, 2], store=store, n_jobs=1, progress=False)
    assert [int(one["seed"]) for one in got] == [0, 1, 2]
    assert ran == [0, 1, 2, 2]
    with pytest.raises(StoreMismatch):
        Store(tmp_path, fingerprint=fingerprint("two"))


def test_the_order_of_the_points_does_not_matter_to_a_fresh_optimiser(smooth):
    turn = torch.arange(11, -1, -1)
    turned = replace(smooth, x=smooth.x[turn], y=smooth.y[turn])
    keep = 1 - torch.eye(12).double()
    one = mog.train(smooth, smooth.labels(smooth.y), keep)
    other = mog.train(turned, turned.labels(turned.y), keep)[turn]
    assert (one - other).abs().max() <= 1e-12
