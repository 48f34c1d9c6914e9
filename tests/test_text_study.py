"""Training classifiers of texts: what a seed decides, what a removed text may still do (nothing), what stays frozen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clif_kit.text_study import (
    Recipe,
    accuracy,
    make_text_study,
    predict,
    retrain_text,
    train_text,
)  # fmt: skip
from clif_kit.text_tasks import text_task

KINDS = ("cnn", "bert", "roberta")


@pytest.fixture(scope="module")
def task():
    return text_task("topics", train=24, val=8, test=8)


def make(task, kind="cnn", **options):
    settings = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "optimizer": "adam", "checkpoints": 2} | options
    return make_text_study(task, kind, Recipe(**settings), max_length=12, layers=1, width=8)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_left_has_no_say(task, kind):
    """Its words and its label may be anything: the retrained model is the same to the last bit."""
    study = make(task, kind)
    keep = np.ones(24, bool)
    keep[[3, 17]] = False
    other = study.train.ids.clone()
    other[3], other[17] = other[0], other[1]
    parts = study.train.parts.clone()
    parts[3], parts[17] = parts[0], parts[1]
    frame = task.train.assign(label=np.where(keep, task.train["label"], 0))
    changed = replace(study, train=replace(study.train, ids=other, parts=parts), task=replace(task, train=frame))
    assert equal(train_text(study, 0, keep).params, train_text(changed, 0, keep).params)
    assert not equal(train_text(study, 0).params, train_text(changed, 0).params)


def test_the_seed_decides_and_keeping_all_is_leaving_none_out(task):
    study = make(task)
    first, again, other = (train_text(study, seed).params for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)
    kept = train_text(study, 0, np.ones(24, bool)).params
    assert all(torch.allclose(first[name], kept[name], atol=1e-6) for name in first)


def test_plain_training_is_a_loop_over_minibatches(task):
    """SGD with momentum by hand, on the batches that the seed draws."""
    study = make(task, epochs=1, optimizer="sgd", lr=0.3, checkpoints=1, batch_size=24)
    params = {name: value.clone().requires_grad_() for name, value in study.start(5).items()}
    logits = study.model.logits(params, study.train.ids, study.train.parts)
    torch.nn.functional.cross_entropy(logits, study.labels("train")).backward()
    found = train_text(study, 5).params
    for name, value in params.items():
        torch.testing.assert_close(found[name], (value - 0.3 * value.grad).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("options", "moves"), [
    ({"frozen": True}, lambda name: not name.startswith("embedding")),
    ({"last_only": True}, lambda name: name.startswith("head")),
])  # fmt: skip
def test_what_is_frozen_keeps_every_bit(task, options, moves):
    study = make(task, **options)
    before, after = study.start(0), train_text(study, 0).params
    assert after.keys() == before.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) != moves(name), name


def test_checkpoints_are_spread_over_the_epochs_and_hold_everything(task):
    study = make(task, epochs=4, checkpoints=2, frozen=True)
    points = train_text(study, 0).checkpoints
    assert [point.step for point in points] == [6, 12]  # 3 steps an epoch
    assert all(point.params.keys() == study.start(0).keys() for point in points)
    short = make(task, epochs=2, checkpoints=1, frozen=True)
    assert equal(points[0].params, train_text(short, 0).params)


@pytest.mark.parametrize("kind", ["cnn", "roberta"])
def test_predictions_do_not_depend_on_the_company(task, kind):
    study = make(task, kind)
    params = study.start(0)
    whole = predict(study, params, "train", chunk=24)
    torch.testing.assert_close(predict(study, params, "train", chunk=5), whole, atol=1e-5, rtol=1e-5)
    right = sum(int(row.argmax()) == label for row, label in zip(whole, task.train["label"], strict=True))
    assert accuracy(study, params, "train") == pytest.approx(right / 24)


def test_retraining_reports_the_true_class_of_the_test_texts(task):
    study = make(task)
    keep = np.ones(24, bool)
    keep[5] = False
    found, params = retrain_text(study)(keep, 1), train_text(study, 1, keep).params
    logits = predict(study, params).double().numpy()
    for i, label in enumerate(task.test["label"]):
        share = np.exp(logits[i]) / np.exp(logits[i]).sum()
        assert found["probability"][i] == pytest.approx(share[label], rel=1e-5)
        assert found["loss"][i] == pytest.approx(-np.log(share[label]), rel=1e-4, abs=1e-6)
    assert found["accuracy"] == accuracy(study, params)


def test_a_pair_of_texts_has_two_parts():
    task = text_task("topics", train=8, val=4, test=4)
    pairs = {name: getattr(task, name).assign(pair="so it goes") for name in ("train", "val", "test")}
    study = make(replace(task, **pairs))
    assert {1, 2} <= set(study.train.parts.unique().tolist())
    assert study.train.words(0)[-4:] == ["so", "it", "goes", "[SEP]"]


@pytest.mark.parametrize(("options", "message"), [
    ({"optimizer": "newton"}, "optimizer must be one of sgd"),
    ({"checkpoints": 3}, r"checkpoints must be 1 to 2"),
])  # fmt: skip
def test_recipes_check_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 2, "lr": 0.1, **options})


def test_unknown_kinds_are_refused(task):
    with pytest.raises(ValueError, match="kind must be 'cnn', 'bert' or 'roberta', got 'lstm'"):
        make(task, "lstm")
