"""All scores of one model under one sign: each name is what its formula says, worked out text by text."""

import numpy as np
import pytest
import torch

from clif_kit import deletion_ranks
from clif_kit.text_scores import FORMULAS, layer_scores, special_share, text_scores
from clif_kit.text_study import Recipe, make_text_study, predict, train_text
from clif_kit.text_tasks import text_task
from clif_kit.text_truth import retrain_plan, truth_store


@pytest.fixture(scope="module")
def study():
    task = text_task("topics", train=16, val=4, test=4)
    recipe = Recipe(epochs=3, lr=0.02, batch_size=8, optimizer="adam", checkpoints=2)
    return make_text_study(task, "cnn", recipe, max_length=16, width=8)


@pytest.fixture(scope="module")
def fitted(study):
    return train_text(study, 0)


@pytest.fixture(scope="module")
def scores(study, fitted):
    return text_scores(study, fitted, top=3, share=0.3)


def gradients(study, params, tokens, y, i):
    """All gradients of one text's loss, by autograd on a batch of one."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    one = tokens.take([i])
    loss = torch.nn.functional.cross_entropy(study.model.logits(leaves, one.ids, one.parts), y[i : i + 1])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def brute(study, fitted, keep):
    """Sum over checkpoints of the learning rate times inner products of what ``keep`` leaves of the gradients."""
    out = np.zeros((len(study.test), len(study.train)))
    for point in fitted.checkpoints:
        sides = [
            [keep(gradients(study, point.params, tokens, study.labels(split), i)) for i in range(len(tokens))]
            for split, tokens in (("test", study.test), ("train", study.train))
        ]
        out += point.lr * np.array([[float((a * b).sum()) for b in sides[1]] for a in sides[0]])
    return out


def test_tracin_scores_are_inner_products_of_gradients(study, fitted, scores):
    table, head = study.model.embedding, f"{study.model.head}.weight"
    special = torch.tensor(study.train.special)
    for name, keep in (
        ("tr_we", lambda g: g[table]),
        ("tr_last", lambda g: g[head]),
        ("tr_common", lambda g: g[table][special]),
    ):
        np.testing.assert_allclose(scores[name], brute(study, fitted, keep), rtol=1e-3, atol=1e-6, err_msg=name)
    layers = layer_scores(study, fitted)
    flat = lambda g, bias: torch.cat([v.flatten() for n, v in g.items() if bias or not n.endswith("bias")])  # noqa: E731
    np.testing.assert_allclose(layers["all"], brute(study, fitted, lambda g: flat(g, False)), rtol=1e-3, atol=1e-5)
    everything = brute(study, fitted, lambda g: flat(g, True))
    np.testing.assert_allclose(layers["all_with_bias"], everything, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layers["embedding"], scores["tr_we"], rtol=1e-5, atol=1e-7)


def test_similarities_get_their_sign_from_the_label(study, scores):
    same = study.labels("test").numpy()[:, None] == study.labels("train").numpy()
    for name in ("tfidf", "bm25"):
        assert (scores[name][same] >= 0).all()
        assert (scores[name][~same] <= 0).all()
    agree = np.sign(scores["tr_tfidf"]) * np.sign(scores["tfidf"])
    assert (agree[scores["tfidf"] != 0] >= 0).mean() > 0.9


def test_the_share_of_special_tokens(study, fitted, scores):
    special = np.abs(scores["tr_common"]).sum(1)
    rest = np.abs(scores["tr_we"] - scores["tr_common"]).sum(1)
    np.testing.assert_allclose(special_share(study, fitted), special / (special + rest), rtol=1e-6)


def test_every_method_has_a_formula_and_finite_scores(scores):
    assert scores.keys() == FORMULAS.keys()
    for name, values in scores.items():
        assert np.isfinite(values).all(), name
        assert np.ptp(values) > 0, name


def test_a_score_that_does_not_exist(study, fitted):
    with pytest.raises(ValueError, match="no method 'tr_magic'; there are tr_we"):
        text_scores(study, fitted, ["tr_magic"])


def test_retrainings_are_shared_by_plans_and_follow_the_data(study, scores, tmp_path):
    ranks = {name: deletion_ranks.rank(scores[name], 2) for name in ("tr_we", "tr_last")}
    plan, found = retrain_plan(study, {"tr_we": ranks["tr_we"]}, [2], [0], folder=tmp_path, n_jobs=1)
    keep = np.ones(16, bool)
    keep[plan.sets[1]] = False
    params = train_text(study, 0, keep).params
    true = predict(study, params).softmax(1).gather(1, study.labels("test")[:, None]).squeeze(1)
    np.testing.assert_allclose(found["probability"][1, 0], true.numpy(), rtol=1e-6)
    again, more = retrain_plan(study, ranks, [1, 2], [0], folder=tmp_path, n_jobs=1)
    where = next(i for i, chosen in enumerate(again.sets) if chosen.tolist() == plan.sets[1].tolist())
    np.testing.assert_array_equal(more["probability"][where, 0], found["probability"][1, 0])
    assert [path.name for path in tmp_path.iterdir()] == [truth_store(study, tmp_path).folder.name]
    other = make_text_study(study.task, "cnn", Recipe(epochs=1, lr=0.02, checkpoints=1), max_length=16, width=8)
    retrain_plan(other, {"tr_we": ranks["tr_we"]}, [2], [0], folder=tmp_path, n_jobs=1)
    assert len(list(tmp_path.iterdir())) == 2
