"""Oracle: one text at a time by plain autograd, and numbers made up so that the answer is known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from clif_kit.layer_study import (
    layer_groups,
    layer_metrics,
    layer_names,
    layer_numbers,
    layer_tracin,
    relative,
    run_traced,
)
from clif_kit.saliency import factors
from clif_kit.text_study import Recipe, make_text_study, train_text
from clif_kit.text_tasks import text_task
from clif_kit.tracin_layers import tracin_layers


def make(kind="cnn", **options):
    recipe = Recipe(**{"epochs": 3, "lr": 0.02, "batch_size": 8, "optimizer": "adam", "checkpoints": 2} | options)
    return make_text_study(text_task("topics", train=16, val=8, test=4), kind, recipe, max_length=12, layers=2, width=8)


@pytest.fixture(scope="module")
def study():
    return make()


def gradient(study, params, split, i, names):
    """The gradient of one text's loss as one long vector."""
    tokens = getattr(study, split).take([i])
    leaves = {name: value.clone().requires_grad_(name in names) for name, value in params.items()}
    logits = study.model.logits(leaves, tokens.ids, tokens.parts)
    loss = torch.nn.functional.cross_entropy(logits, study.labels(split)[i : i + 1])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [leaves[name] for name in names])]).double()


def test_layers_have_the_papers_names(study):
    assert layer_names(study.model)["third"] == "conv2"
    bert = make("bert", epochs=1, checkpoints=1).model
    names = layer_names(bert)
    assert list(names) == ["first", "second", "third", "last"]
    groups = layer_groups(bert)
    assert groups["first"] == (bert.embedding,)
    assert groups["last"] == (f"{bert.head}.weight",)
    assert all("layer.1." in name and not name.endswith("bias") for name in groups["third"])
    assert set(groups["all"]) | set(groups["bias"]) == set(bert.shapes)
    assert not set(groups["all"]) & set(groups["bias"])


def test_a_run_begins_at_the_start_and_ends_where_training_ends(study):
    run = run_traced(study, 3)
    assert len(run.checkpoints) == 4
    assert all(torch.equal(value, study.start(3)[name]) for name, value in run.checkpoints[0].params.items())
    end = train_text(study, 3).params
    assert all(torch.equal(value, end[name]) for name, value in run.checkpoints[-1].params.items())


def test_cancellation_and_cosines_text_by_text(study):
    found, run, groups = layer_numbers(study, 1, texts=5), run_traced(study, 1), layer_groups(study.model)
    points, y = [point.params for point in run.checkpoints], study.labels("val")[:5]
    for layer, names in groups.items():
        g = sum(0.02 * gradient(study, p, "train", i, names).norm() for p in points[:-1] for i in range(16))
        flat = [torch.cat([p[name].flatten() for name in names]).double() for p in points]
        delta = sum((b - a).norm() for a, b in pairwise(flat))
        np.testing.assert_allclose(found[f"gradient_sum/{layer}"], g, rtol=1e-4)
        np.testing.assert_allclose(found[f"weight_change/{layer}"], delta, rtol=1e-4)
        np.testing.assert_allclose(found[f"cancellation/{layer}"], g / delta, rtol=1e-4)
        sums = [sum(gradient(study, p, "train", i, names) for i in range(16)).norm() for p in points[:-1]]
        np.testing.assert_allclose(found[f"cancellation_sum/{layer}"], g / (0.02 * sum(sums)), rtol=1e-4)
        unit = torch.stack([gradient(study, points[-1], "val", i, names) for i in range(5)])
        cosine = torch.nn.functional.normalize(unit, dim=1) @ torch.nn.functional.normalize(unit, dim=1).T
        pairs = [(a, b) for a in range(5) for b in range(a)]
        for kind, wanted in (("", (True, False)), ("_same", (True,)), ("_other", (False,))):
            want = np.mean([float(cosine[a, b]) for a, b in pairs if bool(y[a] == y[b]) in wanted])
            np.testing.assert_allclose(found[f"cosine{kind}/{layer}"], want, atol=1e-4)


def test_only_the_last_layer_when_only_it_is_trained():
    study = make(last_only=True)
    assert float(layer_numbers(study, 0, layers=["last"])["cancellation/last"]) > 0
    with pytest.raises(ValueError, match="first does not move"):
        layer_numbers(study, 0)


def test_layer_scores_add_up(study):
    scores = layer_tracin(study, train_text(study, 0))
    total = sum(scores[f"tr_{name}"] for name in layer_names(study.model))
    np.testing.assert_allclose(total, scores["tr_all"], rtol=1e-5, atol=1e-8)
    assert np.abs(scores["tracin_with_bias"] - scores["tr_all"]).max() > 1e-4


def test_saliency_similarity_saliency_is_the_gradient_product(study):
    fitted = train_text(study, 0)
    run = run_traced(study, 0)
    one = replace(run, checkpoints=(replace(fitted.checkpoints[-1], lr=1.0),)).take(range(6))
    query = one.of(study.test, study.labels("test"))
    every = layer_groups(study.model)["all"]
    split = factors(one, query, every)
    by_layer = tracin_layers(one, query, every)
    np.testing.assert_allclose(split.product(), sum(by_layer.values()), rtol=1e-3, atol=1e-6)
    last = factors(one, query, [f"{study.model.head}.weight"])
    assert np.abs(last.similarity[0, 0, 0, 1]).max() < 1e-7
    np.testing.assert_allclose(last.similarity[1, 0, 2, 0], last.similarity[1, 3, 2, 3], rtol=1e-5)


def test_metrics_of_made_up_runs():
    levels = {"first": 1, "second": 2, "third": 4, "last": 3, "all": 2, "bias": 9}
    runs = [{f"cancellation/{name}": np.array(v + more) for name, v in levels.items()} for more in (0.0, 0.5, 1.0)]
    found = layer_metrics([{**run, "accuracy/model": np.array(90.0)} for run in runs], "a_b")
    assert found["cancellation/first/a_b"].value == 1.5
    assert found["cancellation/weight/a_b"] == found["cancellation/all/a_b"]
    assert found["cancellation_gap/bias_minus_weight/a_b"].value == 7
    assert found["cancellation_gap/last_minus_first/a_b"].value == 2
    assert found["spearman/depth_cancellation/a_b"].value == pytest.approx(0.8)
    assert not any("accuracy" in key for key in found)
    assert relative(runs[:1]) == [0.5, 1.0, 2.0, 1.5]
