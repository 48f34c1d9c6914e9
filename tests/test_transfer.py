"""Class influence against loops and closed forms, stacked nets against one at a time, the study against refits."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from clif_kit import transfer, transfer_metrics, transfer_nets, transfer_study, transfer_task
from clif_kit.transfer_nets import NetConfig
from clif_kit.transfer_study import StudyConfig

TINY = NetConfig(hidden=6, steps=4, batch=5, lr=0.2, target_steps=3)
KINDS = ("contradicting", "mixed")
CONFIG = StudyConfig(kinds=KINDS, subsets=12, fresh=3, sizes=(2, 4), bad=4, labels=20, judge=40, net=TINY)


@pytest.fixture(scope="module")
def digits():
    return transfer_task.load("digits")


@pytest.fixture(scope="module")
def run(digits):
    return transfer_study.study(*digits, CONFIG, 3)


# ---- influence


def test_additive_effects_come_back_as_the_closed_form():
    """Over ALL halves of six classes, quality = sum of effects gives c / (c - 1) times (effect - mean effect)."""
    effect = np.array([0.5, -2.0, 1.0, 0.0, 3.0, -0.25])
    keep = np.array([[c in chosen for c in range(6)] for chosen in itertools.combinations(range(6), 3)])
    found = transfer.class_influence(keep @ effect, keep)
    np.testing.assert_allclose(found, 6 / 5 * (effect - effect.mean()), atol=1e-12)
    assert found[4] > 0 > found[1]  # removing the most helpful class costs quality


def test_influence_on_each_target_matches_a_loop():
    rng = np.random.default_rng(0)
    keep = transfer.random_subsets(9, 4, seed=1)
    quality = rng.normal(size=(9, 3))
    found = transfer.class_influence(quality, keep)
    for c, t in itertools.product(range(4), range(3)):
        with_c = [quality[i, t] for i in range(9) if keep[i, c]]
        without_c = [quality[i, t] for i in range(9) if not keep[i, c]]
        assert found[c, t] == pytest.approx(sum(with_c) / len(with_c) - sum(without_c) / len(without_c))


def test_class_test_is_welch_by_hand():
    rng = np.random.default_rng(2)
    keep = transfer.random_subsets(30, 5, seed=3, share=0.4)
    quality = rng.normal(size=30) + keep[:, 0]
    found = transfer.class_test(quality, keep)
    a, b = quality[keep[:, 0]], quality[~keep[:, 0]]
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, df) * np.sqrt(va + vb)
    np.testing.assert_allclose([found.low[0], found.high[0]], [a.mean() - b.mean() - half, a.mean() - b.mean() + half])
    assert found.p[0] == pytest.approx(2 * stats.t.sf(abs(a.mean() - b.mean()) / np.sqrt(va + vb), df))


def test_random_subsets_keep_the_share_and_every_class_equally_often():
    keep = transfer.random_subsets(4000, 10, seed=0, share=0.3)
    assert set(keep.sum(1)) == {3}
    np.testing.assert_allclose(keep.mean(0), 0.3, atol=0.03)


def test_bad_input_is_named():
    keep = transfer.random_subsets(6, 4, seed=0)
    with pytest.raises(ValueError, match="some class"):
        transfer.random_subsets(3, 4, seed=0, share=1.0)
    with pytest.raises(ValueError, match="in all subsets"):
        transfer.class_influence(np.zeros(2), np.array([[True, False], [True, False]]))
    with pytest.raises(ValueError, match="NaN"):
        transfer.class_influence(np.full(6, np.nan), keep)
    with pytest.raises(ValueError, match="need keep"):
        transfer.class_influence(np.zeros(6), keep.astype(int))
    with pytest.raises(ValueError, match="remove fewer"):
        transfer.without(2, np.arange(2))
    with pytest.raises(ValueError, match="no images called"):
        transfer_task.load("letters")
    with pytest.raises(ValueError, match="lr must be above 0"):
        NetConfig(lr=0)


# ---- nets


def test_gradients_match_autograd():
    draw = torch.Generator().manual_seed(0)
    stack = {k: v.double() for k, v in transfer_nets.fresh_stack(3, 4, 5, 6, seed=0).items()}
    stack["w2"] = torch.randn(stack["w2"].shape, generator=draw, dtype=torch.float64)
    stack["b1"] = torch.randn(stack["b1"].shape, generator=draw, dtype=torch.float64)
    x, y = torch.randn(3, 7, 4, generator=draw, dtype=torch.float64), torch.randint(5, (3, 7), generator=draw)
    found = transfer_nets.gradients(stack, x, y)
    leaves = {k: v.clone().requires_grad_() for k, v in stack.items()}
    out = torch.relu(x @ leaves["w1"] + leaves["b1"]) @ leaves["w2"] + leaves["b2"]
    loss = sum(torch.nn.functional.cross_entropy(out[i], y[i]) for i in range(3))
    for name, slope in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(found[name], slope)
    assert set(transfer_nets.gradients(stack, x, y, full=False)) == {"w2", "b2"}


@pytest.mark.parametrize("full", [False, True])
def test_a_stack_is_what_torch_trains_one_net_at_a_time(full):
    """Oracle: nn.Linear, torch.optim.SGD with momentum, one net; the same images step by step."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 4, generator=draw), torch.arange(30) % 3
    tx, ty = torch.randn(8, 4, generator=draw), torch.arange(8) % 2
    keep = torch.tensor([[True, True, False], [False, True, True]])
    config = NetConfig(hidden=6, steps=5, batch=4, lr=0.3, target_steps=4, full=full)
    moved = transfer_nets.transfer(transfer_nets.pretrain(x, y, y, keep, config, seed=7), tx, ty, config)
    start = transfer_nets.fresh_stack(2, 4, 3, 6, seed=7)
    draw = torch.Generator().manual_seed(8)
    picks = [torch.rand(2, 4, generator=draw, dtype=torch.float64) for _ in range(5)]
    for i in range(2):
        mine = torch.tensor([j for j in range(30) if keep[i, y[j]]])
        body, head = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        _set(body, start["w1"][i], start["b1"][i])
        _set(head, start["w2"][i], start["b2"][i])
        batches = [mine[(pick[i] * len(mine)).long()] for pick in picks]
        _train(body, head, [(x[rows], y[rows]) for rows in batches], [*body.parameters(), *head.parameters()])
        head = torch.nn.Linear(6, 2)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        _train(body, head, [(tx, ty)] * 4, [*(body.parameters() if full else ()), *head.parameters()])
        expected = head(torch.relu(body(tx)))
        torch.testing.assert_close(transfer_nets.logits(moved, tx)[i], expected, rtol=1e-4, atol=1e-5)
        probability, right = transfer_nets.target_quality(moved, tx, ty)
        torch.testing.assert_close(
            probability[i], torch.softmax(expected, 1)[torch.arange(8), ty], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(right[i], expected.argmax(1) == ty)


def _set(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias[0])


def _train(body, head, batches, parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(torch.relu(body(x))), y).backward()
        optimizer.step()


def test_a_net_sees_only_its_classes_and_needs_one():
    """Images of a class that is left out may be anything."""
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    keep = torch.tensor([[True, False, True]])
    other = torch.where((y == 1)[:, None], torch.full_like(x, 9.0), x)
    a, b = (transfer_nets.pretrain(images, y, y, keep, TINY, seed=0) for images in (x, other))
    assert torch.equal(a["w1"], b["w1"])
    with pytest.raises(ValueError, match="no source image left"):
        transfer_nets.pretrain(x, y, y, torch.tensor([[False, False, False]]), TINY, seed=0)
    with pytest.raises(FloatingPointError, match="lower lr"):
        transfer_nets.descend(a, [(x * 1e30, y)] * 3, lr=1e30)


# ---- task


def test_source_and_target_share_no_image_and_labels_are_what_they_say():
    """Every image of the toy set carries its own number and its digit in its pixels."""
    n = 700
    y = np.arange(n) % 10
    x = np.zeros((n, 3, 3))
    x[:, 0, 0], x[:, 0, 1], x[:, 1, 1] = 1.0, 0.5, np.arange(n) / n  # the corner shows the look, the centre who it is
    task = transfer_task.make_task(x, y, seed=0, bad=4, kinds=transfer_task.BAD, labels=20, judge=60, sizes=(12, 20))
    who = {name: np.rint(images[:, 1, 1] * n).astype(int) for name, (images, _) in task.target.items()}
    source = np.rint(task.x[:, 1, 1] * n).astype(int)
    assert not set(source) & set(np.concatenate(list(who.values())))
    assert len(set(np.concatenate(list(who.values())))) == 140
    for name, (_, parity) in task.target.items():
        assert (parity == who[name] % 10 % 2).all()
    turned = task.target["judge"][0][:, 0, 0] != 1.0
    assert (task.subpopulation == who["judge"] % 10 + 10 * turned).all()
    for c, kind in enumerate(task.kind):
        seen, look = source[task.group == c] % 10, task.x[task.group == c][:, 0, 0] != 1.0
        assert 12 <= len(seen) <= 20
        if kind == "honest":
            assert (seen == c % 10).all()
        if kind == "contradicting":
            assert len(set(seen)) == 2
            assert abs(np.mean(seen % 2) - 0.5) < 0.1
        if kind == "mixed":
            assert len(set(seen)) > 3
        else:
            assert (look == (c >= 10)).all()
    assert sorted(task.kind) == ["contradicting"] * 2 + ["honest"] * 16 + ["mixed"] * 2
    with pytest.raises(ValueError, match="too few"):
        transfer_task.make_task(x, y, seed=0, judge=300)
    with pytest.raises(ValueError, match="kinds of bad classes: mixed, contradicting"):
        transfer_task.make_task(x, y, seed=0, judge=60, kinds=("evil",))
    with pytest.raises(ValueError, match="0 to 20"):
        transfer_task.make_task(x, y, seed=0, bad=21)


# ---- study


def test_the_study_is_what_refits_and_loops_give(digits, run):
    task = transfer_task.make_task(*digits, seed=3, bad=4, kinds=KINDS, labels=20, judge=40)
    order = sorted(range(20), key=lambda c: run["influence"][c])
    for name, gone in (("worst/4", order[:4]), ("best/2", order[::-1][:2]), ("planted", np.flatnonzero(task.bad))):
        keep = np.array([[c not in gone for c in range(20)]] * 3)
        moved = transfer_study.train_and_move(task, keep, TINY, 10**6 * 8)
        np.testing.assert_allclose(run[f"accuracy/{name}"], moved["judge"][1].double().mean(1))
    few = np.argsort(run["size"], kind="stable")
    assert (transfer_study.removals(run, np.random.default_rng(0))["fewest"] == few).all()
    images, labels = task.target["train"]
    nearest = [
        labels[min(range(20), key=lambda j: ((images[j] - image) ** 2).sum())] == truth
        for image, truth in zip(*task.target["judge"], strict=True)
    ]
    assert run["accuracy/nearest"] == pytest.approx(np.mean(nearest))
    moved = transfer_study.train_and_move(task, run["keep"], TINY, 10**6 * 7)
    np.testing.assert_allclose(run["quality"], moved["order"][0].double().mean(1))
    gone, kept = (moved["judge"][0].double().numpy()[run["keep"][:, 5] == side].mean(0) for side in (False, True))
    np.testing.assert_allclose(run["image_influence"][5], kept - gone, atol=1e-12)


def test_the_order_never_sees_the_images_that_judge(digits, monkeypatch):
    """With other pixels in the judging images the order of the classes stays, and with it who leaves."""
    make = transfer_study.make_task

    def other(*args, **given):
        task = make(*args, **given)
        task.target["judge"][0][:] = 0.5
        return task

    a = transfer_study.study(*digits, CONFIG, 4)
    monkeypatch.setattr(transfer_study, "make_task", other)
    b = transfer_study.study(*digits, CONFIG, 4)
    assert (a["influence"] == b["influence"]).all()
    assert (a["accuracy/full"] != b["accuracy/full"]).any()


def test_closeness_and_likeness_by_loops(digits):
    task = transfer_task.make_task(*digits, seed=0, labels=20, judge=10)
    x, y = task.target["train"]
    close, like = transfer_study.pixel_closeness(task), transfer_study.class_likeness(task)
    for c in (0, 13):
        mine = task.x[task.group == c]
        far = [min(np.sqrt(((one - image) ** 2).sum()) for one in mine) for image in task.target["judge"][0]]
        np.testing.assert_allclose(close[c], -2 * np.array(far), rtol=1e-4)  # rows are in [-1, 1]
        means = [np.sqrt(((mine.mean(0) - x[y == label].mean(0)) ** 2).sum()) for label in (0, 1)]
        assert like[c] == pytest.approx(-min(means), rel=1e-5)


def test_a_finished_study_is_not_done_again(tmp_path, monkeypatch):
    config = StudyConfig(subsets=8, fresh=2, sizes=(1,), labels=20, judge=40, net=TINY)
    first = transfer_study.run_studies("digits", config, [0], tmp_path)
    monkeypatch.setattr(transfer_study.transfer_nets, "pretrain", None)
    again = transfer_study.run_studies("digits", config, [0], tmp_path)
    assert all((first[0][key] == again[0][key]).all() for key in first[0])


def test_precision_at_size_by_a_loop(digits, run):
    rng = np.random.default_rng(0)
    score, member = rng.normal(size=30), rng.random(30) < 0.3
    ranked = sorted(range(30), key=lambda i: -score[i])[: sum(member)]
    assert transfer_study.precision_at_size(score, member) == pytest.approx(
        sum(member[i] for i in ranked) / sum(member)
    )
    task = transfer_task.make_task(*digits, seed=3, bad=4, kinds=KINDS, labels=20, judge=40)
    present = [c for c in range(20) if not task.bad[c] and c in task.subpopulation]
    np.testing.assert_allclose(run["precision/chance"], [np.mean(task.subpopulation == c) for c in present])
    assert len(run["precision/influence"]) == len(present)
    with pytest.raises(ValueError, match="more judge images"):
        transfer_study.precision_at_size(score, member & False)


# ---- metrics


def _runs(worst):
    rng, out = np.random.default_rng(0), []
    for s in range(4):
        keep = transfer.random_subsets(60, 4, seed=s)
        arms = {"worst": worst, "random": 0.7, "best": 0.6, "fewest": 0.7, "unlike": 0.65}
        one = {f"accuracy/{arm}/2": np.full(3, level + 0.01 * s) for arm, level in arms.items()}
        one |= {"accuracy/full": np.full(3, 0.75), "accuracy/nearest": np.array(0.9), "accuracy/scratch": np.zeros(3)}
        one |= {"keep": keep, "quality": -9.0 * keep[:, 1] + 0.1 * rng.normal(size=60)}
        one |= {"bad": np.array([False, True, False, False]), "influence": np.array([1.0, -1, 0, 0])}
        one |= {"size": np.array([1, 2, 3, 4]), "likeness": np.array([1.0, 1, 1, 1])}
        one |= {f"precision/{k}": np.full(3, v) for k, v in {"influence": 0.5, "pixels": 0.75, "chance": 0.25}.items()}
        out.append(one)
    return out


def test_metrics_by_hand():
    found = transfer_metrics.summary(_runs(0.8), "toy", 2, [2])
    value = {key.removesuffix("/toy"): m.value for key, m in found.items()}
    assert value["accuracy_gain/drop_worst_minus_drop_random"] == pytest.approx(0.1)
    assert value["accuracy_gain/drop_random_minus_drop_best"] == pytest.approx(0.1)
    assert value["accuracy_gain/drop_worst_minus_full"] == pytest.approx(0.8 + 0.015 - 0.75)
    assert value["accuracy/drop_unlike/k2"] == pytest.approx(0.665)
    assert value["auc/influence/planted"] == 1
    assert value["auc/fewest/planted"] == pytest.approx(2 / 3)
    assert value["auc/unlike/planted"] == 0.5
    assert value["precision_gain/top_influence_minus_random"] == pytest.approx(0.25)
    assert value["precision_gain/top_influence_minus_pixels"] == pytest.approx(-0.25)
    assert value["share_below/holm"] == 0.25  # class 1 in every study, and no other
    assert value["share_above/holm"] > 0.25
    assert value["pearson/split_half"] > 0.8
    assert found["accuracy/full/toy"].over == "studies"
    assert "accuracy/drop_planted/toy" not in found
    with pytest.raises(ValueError, match="without 3 classes"):
        transfer_metrics.summary(_runs(0.8), "toy", 3, [2])
