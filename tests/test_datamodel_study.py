"""The study against autograd, refits, and a task whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clif_kit import datamodel_rivals as rivals
from clif_kit.datamodel_removal import full_nets, removal_effects, score_table
from clif_kit.datamodel_study import Setting, margins_of, rescaled, train_panel
from clif_kit.datamodels import difference_of_means
from clif_kit.planted_images import planted
from clif_kit.subset_training import margins, sample_masks, subset_logits, train_subsets

LOGISTIC = Setting(kind="logistic", steps=40, lr=0.5)
MLP = Setting(kind="mlp", steps=40, lr=0.1, hidden=6, batch=16)


@pytest.fixture(scope="module")
def task():
    return planted("digits", 60, 40, 6, seed=1)


@pytest.fixture(scope="module")
def panel(task):
    return train_panel(task, LOGISTIC, 0.5, 400, 60, None, progress=False)


def test_a_panel_knows_fresh_from_fitted_and_predicts(panel):
    assert panel.tag == "digits_logistic/alpha50"
    assert panel.masks.shape == (400, 60)
    assert panel.fresh.shape == (60, 60)
    assert (panel.fresh.sum(1) == 30).all()
    again = train_subsets(
        "logistic", panel.task.x, panel.task.y, panel.fresh[:3], classes=10, steps=40, lr=0.5, l2=LOGISTIC.l2
    )
    now = margins(subset_logits("logistic", again, panel.task.x_test), panel.task.y_test)
    assert torch.allclose(panel.fresh_outputs[:3], now, atol=1e-4)
    for name, least in (("lasso", 0.5), ("difference_of_means", 0.2)):
        errors = (panel.predictions()[name] - panel.fresh_outputs).square().sum(0)
        total = (panel.fresh_outputs - panel.fresh_outputs.mean(0)).square().sum(0)
        assert float((1 - errors / total).mean()) > least
    assert torch.allclose(panel.predictions()["constant"][5], panel.outputs.mean(0))


def test_the_store_gives_the_same_panel_again(task, tmp_path):
    first, second = (train_panel(task, MLP, 0.5, 60, 10, tmp_path, progress=False) for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)
    assert len(list(tmp_path.iterdir())) == 1
    train_panel(task, replace(MLP, lr=0.05), 0.5, 60, 10, tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2  # another setting has a folder of its own


def test_the_scale_of_the_baseline_is_least_squares_on_held_out_nets():
    """Oracle: numpy on linear outputs, where differences of means are right but for noise."""
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((100, 20)) < 0.5)
    outputs = masks.double() @ torch.from_numpy(rng.normal(size=(20, 3))) + torch.from_numpy(rng.normal(size=(100, 3)))
    found = rescaled(difference_of_means, masks, outputs)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))  # the nets that choose the LASSO's penalty
    choose, fitted = order[:20], order[20:]
    first = (masks[choose].double() @ difference_of_means(masks[fitted], outputs[fitted]).T).numpy()
    first, rest = first - first.mean(0), (outputs[choose] - outputs[choose].mean(0)).numpy()
    scale = [np.linalg.lstsq(first[:, [t]], rest[:, t], rcond=None)[0][0] for t in range(3)]
    assert min(scale) > 0
    assert max(scale) < 1
    assert np.allclose(found.weights, difference_of_means(masks, outputs) * torch.tensor(scale)[:, None])


@pytest.mark.parametrize("setting", [LOGISTIC, MLP], ids=lambda setting: setting.kind)
def test_gradient_scores_are_inner_products_of_autograd(task, setting):
    """Oracle: a loop with ``backward`` through the trainer's own forward formulas."""
    stacks = full_nets(task, setting, 2, lengths=(1.0,))
    queries = (task.x_test[:3], task.y_test[:3])
    found = rivals.gradient_scores(setting.kind, stacks, (task.x[:4], task.y[:4]), queries)

    def gradient(j, x, y, query):
        leaves = [value[j].double().clone().requires_grad_() for value in stacks[0].values()]
        named = dict(zip(stacks[0], leaves, strict=True))
        h = (
            x.double()
            if setting.kind == "logistic"
            else torch.tanh(named["inner.weight"] @ x.double() + named["inner.bias"])
        )
        logits = named["weight"] @ h + named["bias"]
        others = torch.cat([logits[:y], logits[y + 1 :]])
        value = torch.logsumexp(others, 0) - logits[y] if query else torch.logsumexp(logits, 0) - logits[y]
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, leaves)])

    for t in range(3):
        for i in range(4):
            pairs = [
                gradient(j, *(q[t] for q in queries), True) @ gradient(j, task.x[i], task.y[i], False) for j in (0, 1)
            ]
            assert np.isclose(float(found[t, i]), float(sum(pairs) / 2 / 4), atol=1e-10)  # two nets, n = 4


def test_influence_follows_removals_of_the_converged_logistic_regression(task):
    setting = replace(LOGISTIC, steps=1500, l2=0.05)
    stacks = full_nets(task, setting, 1, lengths=(1.0,))
    queries = (task.x_test[:5], task.y_test[:5])
    found = rivals.influence_scores("logistic", stacks, (task.x, task.y), queries, dampings=[0.0, 10.0], l2=0.05)
    masks = torch.cat([torch.ones(1, 60, dtype=torch.bool), ~torch.eye(60, dtype=torch.bool)])
    params = train_subsets("logistic", task.x, task.y, masks, **setting.training(task))
    logits = subset_logits("logistic", params, queries[0])
    right = torch.nn.functional.one_hot(queries[1], 10).bool()
    soft = logits.masked_fill(right, -torch.inf).logsumexp(-1) - logits.masked_fill(~right, 0).sum(-1)
    change = (soft[1:] - soft[0]).T  # (t, n)  of minus the margin
    for t in range(5):
        assert np.corrcoef(found[0.0][t], change[t])[0, 1] > 0.97
    best = rivals.choose_damping(found, masks, -soft)
    assert best == 0.0


def test_neighbours_and_representations_by_numpy(task):
    stack = full_nets(task, MLP, 2, lengths=(1.0,))[0]
    hidden = rivals.representation("mlp", [stack], task.x).numpy()
    w, b = stack["inner.weight"][1].numpy(), stack["inner.bias"][1].numpy()
    assert np.allclose(hidden[1], np.tanh(task.x.numpy() @ w.T + b), atol=1e-5)
    far = [[np.linalg.norm(a - b) for b in hidden[1]] for a in hidden[1][:2]]
    near = rivals.neighbour_scores(torch.from_numpy(hidden[1:]), torch.from_numpy(hidden[1:, :2]))
    assert np.allclose(near, -np.array(far) / np.mean(far), atol=1e-3)


def test_removals_match_refits_by_hand_and_the_twin_matters(panel):
    points = panel.task.clean[:3]
    scores = score_table(panel, points, validation=5)
    assert all(value.shape == (3, 60) for value in scores.values())
    for name in ("representation_same_class", "pixels_same_class", "random"):
        best = scores[name].topk(3, 1).indices
        assert (panel.task.y[best] == panel.task.y_test[points][:, None]).all()
    few = {name: scores[name] for name in ("lasso", "random")}
    found = removal_effects(panel, points, few, [2, 5], progress=False)
    for q, point in enumerate(points.tolist()):
        keep = torch.ones(2, 60, dtype=torch.bool)
        keep[1, scores["lasso"][q].argsort(descending=True)[:5]] = False
        how = panel.setting.training(panel.task)
        params = train_subsets("logistic", panel.task.x, panel.task.y, keep, **how)
        refit = margins(subset_logits("logistic", params, panel.task.x_test[[point]]), panel.task.y_test[[point]])
        assert np.isclose(float(found[5]["lasso"][q]), float(refit[0] - refit[1]), atol=1e-4)
    assert float(found[5]["lasso"].mean()) > 0


def test_bad_studies_are_refused(task, panel):
    with pytest.raises(ValueError, match="too few: take 50"):
        train_panel(task, MLP, 0.5, 10, 10, None)
    with pytest.raises(ValueError, match="k is 60, and there are 60 training examples"):
        removal_effects(panel, task.clean[:1], {"lasso": panel.lasso.weights[:1]}, [60])
    few = rivals.within_class(torch.rand(1, 60), task.y, task.y_test[task.clean[:1]])
    with pytest.raises(ValueError, match="fewer than k = 40 training examples of its class"):
        removal_effects(panel, task.clean[:1], {"random": few}, [40])
    with pytest.raises(ValueError, match="not for 'cnn'"):
        rivals.one_net("cnn", {}, 0)
    with pytest.raises(ValueError, match="no test points are left"):
        score_table(panel, task.clean)


def test_the_damping_is_chosen_on_other_points(panel, monkeypatch):
    seen, real = [], rivals.choose_damping
    monkeypatch.setattr(rivals, "choose_damping", lambda s, m, o: seen.append(o) or real(s, m, o))
    score_table(panel, panel.task.clean[:3], validation=5)
    assert torch.equal(seen[0], panel.outputs[:1000, panel.task.clean[3:8]])


def test_another_seed_trains_other_nets_on_the_same_subsets(task):
    masks = sample_masks(3, 60, 0.5, 0)
    first, second = (margins_of(task, MLP, masks, None, seed=seed, progress=False) for seed in (0, 1_000))
    assert not torch.allclose(first, second, atol=1e-3)
