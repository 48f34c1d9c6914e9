"""Oracle: gradients of each text alone by plain autograd; runs whose cancellation is known beforehand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_tracin import QUERY, RATES, TRAIN, YQ, Y, brute, checkpoints, sides
from text_cases import CLASSES, model

from clif_kit.cancellation import cancellation, gradient_cosines, gradient_norms, mean_cosine
from clif_kit.text_models import text_losses
from clif_kit.traced import Traced
from clif_kit.train import fit

KINDS = ("cnn", "bert", "tied")


def groups_of(traced):
    """Layers, and all weights and all biases."""
    names = list(traced.model.shapes)
    bias = tuple(name for name in names if name.endswith("bias"))
    return {**traced.model.layers(bias=True), "weights": tuple(set(names) - set(bias)), "biases": bias}


def joined(kind, c, names, side="train"):
    found = brute(kind, side, c)
    return np.concatenate([found[name] for name in names], axis=1)  # (n, p)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_equal_those_of_each_text_alone(kind):
    train, _ = sides(kind, block=4)
    groups = groups_of(train)
    found = gradient_norms(train, groups, chunk=5)
    assert set(found) == set(groups)
    for layer, names in groups.items():
        expected = [np.linalg.norm(joined(kind, c, names), axis=1) for c in (0, 1)]
        np.testing.assert_allclose(found[layer], expected, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_by_hand(kind):
    """Three checkpoints, of which the last only ends a stretch; its gradients and learning rate do not enter."""
    train, _ = sides(kind)
    first, second = checkpoints(kind)
    draw = torch.Generator().manual_seed(4)
    end = {k: v + torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in second.params.items()}
    traced = replace(train, checkpoints=(first, second, SimpleNamespace(params=end, lr=99.0)))
    groups = groups_of(traced)
    found = cancellation(traced, groups, steps=7, momentum=0.9)
    points = [first.params, second.params, end]
    for layer, names in groups.items():
        g = [RATES[c] * sum(np.linalg.norm(row) for row in joined(kind, c, names)) for c in (0, 1)]
        flat = [np.concatenate([p[name].numpy().ravel() for name in names]) for p in points]
        delta = [np.linalg.norm(flat[c + 1] - flat[c]) for c in (0, 1)]
        np.testing.assert_allclose(found[layer].g, g, rtol=1e-8)
        np.testing.assert_allclose(found[layer].delta, delta, rtol=1e-10)
        np.testing.assert_allclose(found[layer].ratio, sum(g) / sum(delta), rtol=1e-8)
        np.testing.assert_allclose(found[layer].each.mean(), found[layer].ratio, rtol=1e-10)
        np.testing.assert_allclose(found[layer].normalised, 7 * sum(g) / len(TRAIN) / 0.1 / sum(delta), rtol=1e-8)


def run(tokens, y, momentum=0.0, batch_size=None):
    """Plain SGD on the CNN, a checkpoint at the start and after every step."""
    made, params = model("cnn")
    batch = (tokens.ids, tokens.parts, y)
    sgd = {"optimizer": lambda t, lr: torch.optim.SGD(t, lr=lr, momentum=momentum), "batch_size": batch_size}
    done = fit(text_losses(made), params, batch, steps=6, lr=1e-3, checkpoint_every=1, **sgd)
    start = SimpleNamespace(params=params, lr=1e-3)
    return Traced(model=made, checkpoints=(start, *done.checkpoints), tokens=tokens, y=y)


def test_copies_of_one_text_do_not_cancel_at_all():
    """Every step goes as far as the gradients are long: n by the paper's ratio, 1 normalised, whatever the batch."""
    same, y = TRAIN.take([4] * 6), torch.full((6,), 1)
    for batch_size in (None, 2):
        traced = run(same, y, batch_size=batch_size)
        for found in cancellation(traced, traced.model.layers(), steps=1).values():
            np.testing.assert_allclose(found.ratio, 6, rtol=1e-6)
            np.testing.assert_allclose(found.normalised, 1, rtol=1e-6)


def test_texts_with_all_labels_equally_often_cancel():
    """The same text with every label, and logits that start near equal: gradients in the last layer nearly cancel."""
    same, y = TRAIN.take([4] * 6), torch.arange(6) % CLASSES
    traced = run(same, y)
    found = cancellation(traced, traced.model.layers(), steps=1)
    assert all(one.normalised > 1.2 for one in found.values())
    one_step = run(same, torch.full((6,), 1))
    alone = cancellation(one_step, one_step.model.layers(), steps=1)
    assert all(found[layer].ratio > alone[layer].ratio for layer in found)


def test_what_cannot_be_measured_is_refused():
    train, _ = sides("cnn")
    with pytest.raises(ValueError, match="two checkpoints at least"):
        cancellation(replace(train, checkpoints=train.checkpoints[:1]), train.model.layers(), steps=1)
    first, second = checkpoints("cnn")
    frozen = {**second.params, "embedding.weight": first.params["embedding.weight"]}
    stuck = replace(train, checkpoints=(first, SimpleNamespace(params=frozen, lr=0.1)))
    with pytest.raises(ValueError, match="embedding does not move"):
        cancellation(stuck, train.model.layers(), steps=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [0, -1])
def test_cosines_equal_those_of_each_text_alone(kind, c):
    traced = sides(kind)[0].of(QUERY, YQ)
    for layer, names in groups_of(traced).items():
        found = gradient_cosines(traced, {layer: names}, c, chunk=2)[layer]
        rows = joined(kind, c % 2, names, side="query")
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(found, unit @ unit.T, rtol=1e-7, atol=1e-9)
        off = [unit[i] @ unit[j] for i in range(len(unit)) for j in range(len(unit)) if i != j]
        np.testing.assert_allclose(mean_cosine(found), np.mean(off), rtol=1e-7, atol=1e-9)


def test_an_example_without_a_gradient_is_left_out():
    traced = sides("cnn", loss=_zero_for_label_two)[0]
    cosines = gradient_cosines(traced, {"conv1": ("conv1.weight",)})["conv1"]
    none = (Y == 2).numpy()
    assert np.isnan(cosines[none]).all()
    assert np.isfinite(mean_cosine(cosines))
    assert np.isfinite(cosines[~none][:, ~none]).all()


def _zero_for_label_two(logits, y):
    return torch.nn.functional.cross_entropy(logits, y, reduction="none") * (y != 2)
