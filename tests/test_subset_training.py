"""A stack of small nets is what torch trains one by one; the oracle is a plain module and torch's own optimiser."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from clif_kit import subset_training
from clif_kit.subset_training import margins, sample_masks, subset_logits, train_outputs, train_subsets

TRAINING = {
    "logistic": {"steps": 25, "lr": 0.5, "l2": 0.01},
    "mlp": {"steps": 30, "lr": 0.1, "l2": 0.01, "batch": 8, "hidden": 6},
    "cnn": {"steps": 8, "lr": 0.1, "l2": 0.01, "batch": 8},
}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.from_numpy(data.data[:60] / 16 - 0.3), torch.from_numpy(data.target[:60])


def shaped(kind, x):
    return x.view(-1, 8, 8) if kind == "cnn" else x


def module(kind, d=64, hidden=6):
    if kind == "logistic":
        return nn.Linear(d, 10)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, 10))
    layers = [nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(
        *layers, nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )


def one_by_one(kind, x, y, mask, seed, steps, lr, l2, batch=8, hidden=6):
    """Model of one subset, as torch trains it."""
    net, draw = module(kind, hidden=hidden).double(), torch.Generator().manual_seed(seed)
    fan_in = 1.0
    for value in net.parameters():
        fan_in = value[0].numel() if value.ndim > 1 else fan_in
        start = (2 * torch.rand(value.shape, generator=draw, dtype=torch.float64) - 1) / fan_in**0.5
        value.data = torch.zeros_like(value) if kind == "logistic" else start
    net = net.to(x.dtype)
    descent = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=l2)
    plan = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: 1 - step / steps)
    rows = mask.nonzero()[:, 0]
    queue = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(queue) < batch:
            queue = torch.cat([queue, rows[torch.randperm(len(rows), generator=draw)]])
        chosen, queue = (rows, queue) if kind == "logistic" else (queue[:batch], queue[batch:])
        descent.zero_grad()
        functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        descent.step()
        plan.step()
    return net


@pytest.mark.parametrize("kind", TRAINING)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_the_stack_is_what_torch_trains_one_by_one(digits, kind, dtype, close):
    x, y = shaped(kind, digits[0].to(dtype)), digits[1]
    masks = torch.cat([sample_masks(2, 60, 0.5, 0), sample_masks(1, 60, 0.1, 1)])  # of sizes 30, 30 and 6
    found = train_subsets(kind, x, y, masks, classes=10, seed=5, chunk=2, **TRAINING[kind])
    logits = subset_logits(kind, found, x)
    for j, mask in enumerate(masks):
        net = one_by_one(kind, x, y, mask, 5 + j, **TRAINING[kind])
        for mine, theirs in zip(found.values(), net.parameters(), strict=True):
            assert mine.dtype == dtype
            assert (mine[j] - theirs).abs().max() < close
        assert (logits[j] - net(x)).abs().max() < 20 * close


@pytest.mark.parametrize("kind", TRAINING)
def test_a_model_does_not_depend_on_its_neighbours(digits, kind):
    x, y = shaped(kind, digits[0]), digits[1]
    masks = sample_masks(5, 60, 0.5, 0)
    whole = train_subsets(kind, x, y, masks, classes=10, chunk=5, **TRAINING[kind])
    parts = train_subsets(kind, x, y, masks[3:], classes=10, seed=3, chunk=1, **TRAINING[kind])
    for name, value in whole.items():
        torch.testing.assert_close(value[3:], parts[name], rtol=0, atol=1e-12)


def test_what_is_outside_a_subset_does_not_count(digits):
    x, y = digits
    masks = sample_masks(1, 60, 0.5, 0)
    other = torch.where(masks[0][:, None], x, 100 - x)
    for kind in ("logistic", "mlp"):
        a, b = (train_subsets(kind, one, y, masks, classes=10, **TRAINING[kind]) for one in (x, other))
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in a), kind


def test_masks_have_their_size_are_repeated_by_the_seed_and_fair():
    masks = sample_masks(3000, 20, 0.25, seed=3)
    assert masks.dtype == torch.bool
    assert (masks.sum(1) == 5).all()
    assert torch.equal(masks, sample_masks(3000, 20, 0.25, seed=3))
    assert not torch.equal(masks, sample_masks(3000, 20, 0.25, seed=4))
    assert (masks.double().mean(0) - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / 3000) ** 0.5
    together = (masks[:, 0] & masks[:, 1]).double().mean()
    assert abs(together - 5 * 4 / (20 * 19)) < 0.02  # without replacement


def test_a_margin_is_the_right_logit_minus_the_best_other_by_loop():
    logits, y = torch.randn(4, 7, 5, dtype=torch.float64), torch.arange(7) % 5
    found = margins(logits, y)
    for j in range(4):
        for t in range(7):
            row = logits[j, t].tolist()
            right = row.pop(int(y[t]))
            assert found[j, t] == right - max(row)


def test_outputs_are_the_margins_and_resume(digits, tmp_path, monkeypatch):
    x, y = digits[0].float(), digits[1]
    masks, given = sample_masks(7, 50, 0.5, 0), {"classes": 10, "seed": 2, "progress": False, **TRAINING["mlp"]}
    test = x[50:], y[50:]

    def run():
        return train_outputs("mlp", x[:50], y[:50], masks, *test, folder=tmp_path, shard=3, **given)

    found = run()
    for j, mask in enumerate(masks):
        net = one_by_one("mlp", x[:50], y[:50], mask, 2 + j, **TRAINING["mlp"])
        assert (found[j] - margins(net(test[0])[None], test[1])[0]).abs().max() < 1e-4
    (store,) = tmp_path.iterdir()
    assert len(list(store.glob("*.safetensors"))) == 3
    next(store.glob("*000003*")).unlink()  # a killed run: the second shard is missing
    seeds = []
    train = subset_training.train_subsets
    monkeypatch.setattr(subset_training, "train_subsets", lambda *a, **k: seeds.append(k["seed"]) or train(*a, **k))
    assert torch.equal(run(), found)
    assert seeds == [5]
    given["lr"] = 0.2
    assert not torch.equal(run(), found)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_output_is_kept_if_asked(digits):
    x, y = digits
    masks, given = sample_masks(3, 60, 0.5, 0), {"classes": 10, "progress": False, **TRAINING["logistic"]}
    params = train_subsets("logistic", x, y, masks, classes=10, **TRAINING["logistic"])
    right = subset_logits("logistic", params, x).softmax(-1)[:, torch.arange(60), y]
    found = train_outputs("logistic", x, y, masks, x, y, output=probability, **given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right.float())


def probability(logits, y):
    return logits.softmax(-1).gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tree"}, "no kind 'tree'; there are logistic, mlp, cnn"),
        ({"kind": "cnn"}, r"'cnn' needs floating inputs \(n, h, w\), got \(60, 64\)"),
        ({"x": torch.ones(60, 64, dtype=torch.long)}, "floating inputs"),
        ({"classes": 9}, "needs 60 classes in 0, ..., 8"),
        ({"masks": torch.ones(2, 60)}, r"masks must be \(m, 60\) bool"),
        ({"masks": torch.zeros(2, 60, dtype=torch.bool)}, "subset 0 holds no example"),
    ],
)
def test_bad_input_is_named(digits, change, message):
    given = {"kind": "mlp", "x": digits[0], "y": digits[1], "masks": sample_masks(2, 60, 0.5, 0), "classes": 10}
    with pytest.raises(ValueError, match=message):
        train_subsets(**{**given, **change}, steps=2, lr=0.1)


def test_divergence_and_a_share_that_leaves_nothing_out_are_named(digits):
    with pytest.raises(FloatingPointError, match="diverged at lr=1e\\+30"):
        train_subsets("mlp", *digits, sample_masks(2, 60, 0.5, 0), classes=10, steps=20, lr=1e30, l2=1.0)
    with pytest.raises(ValueError, match="a share of 1 of 4 examples is 4"):
        sample_masks(2, 4, 1.0, 0)


def test_images_with_an_odd_side_lose_the_last_row_as_torch_s_pooling_does(digits):
    x = digits[0].view(-1, 8, 8)[:5, :7]  # 7 x 8
    params = train_subsets("cnn", x, digits[1][:5], torch.ones(1, 5).bool(), classes=10, steps=2, lr=0.1, batch=4)
    first = torch.tanh(functional.conv2d(x[:, None], params["first.weight"][0], params["first.bias"][0], padding=1))
    maps = functional.conv2d(
        functional.avg_pool2d(first, 2), params["second.weight"][0], params["second.bias"][0], padding=1
    )
    wanted = functional.avg_pool2d(torch.tanh(maps), 2).flatten(1) @ params["weight"][0].T + params["bias"][0]
    torch.testing.assert_close(subset_logits("cnn", params, x)[0], wanted)


def test_means_of_two_by_two_are_torch_s_in_both_odd_sides():
    maps = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(subset_training._halve(maps), functional.avg_pool2d(maps, 2))


def test_huge_logits_do_not_overflow(digits):
    masks = sample_masks(2, 60, 0.5, 0)
    found = train_subsets("logistic", 1000 * digits[0], digits[1], masks, classes=10, steps=9, lr=1)
    assert all(value.isfinite().all() for value in found.values())
