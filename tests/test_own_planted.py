"""Planted wrong labels: what is planted, detectors against fits that are made again, gains against their parts."""

import numpy as np
import pandas as pd
import pytest

from clif_kit.own_encoder import WordVectors
from clif_kit.own_layer import fit_layer, losses
from clif_kit.own_planted import cleaned, detectors, plant, planted_metrics, precision
from clif_kit.own_study import make_own_study


def frame(n=200, seed=0):
    rng, words = np.random.default_rng(seed), ["goal match team ball win", "bread soup salt oven taste"]
    texts = [" ".join(rng.choice(words[k % 2].split(), 4)) + f" n{k}" for k in range(n)]
    return pd.DataFrame(
        {"row": range(n), "id": "", "text": texts, "label": [("sport", "food")[k % 2] for k in range(n)]}
    )


@pytest.fixture(scope="module", name="one")
def _one():
    train, test, wrong = plant(frame(), 120, 20, 0.1, seed=1)
    return make_own_study(train, test, ("food", "sport"), WordVectors(40), l2=0.1), wrong


def test_only_the_planted_labels_are_wrong_and_no_text_is_on_both_sides():
    texts = frame()
    train, test, wrong = plant(texts, 120, 20, 0.1, seed=1)
    truth = texts["label"].to_numpy()
    np.testing.assert_array_equal(truth[train["row"]] != train["label"], wrong)
    assert wrong.sum() == 12
    assert (truth[test["row"]] == test["label"]).all()
    assert not set(train["row"]) & set(test["row"])
    with pytest.raises(ValueError, match="200 different texts are fewer"):
        plant(pd.concat([texts, texts]), 190, 20, 0.1, seed=1)


def test_the_heldout_loss_is_that_of_models_that_did_not_see_the_text(one):
    study, _ = one
    part, layer = np.random.default_rng(0).permutation(120) % 5, study.layer
    for k in (0, 3):
        keep = part != k
        weight = fit_layer(layer.x[keep], layer.y[keep], 2, layer.l2 * 120 / keep.sum()).weight
        expected = losses(layer.x[~keep], layer.y[~keep], weight)
        np.testing.assert_allclose(detectors(study)["heldout_loss"][~keep], expected, rtol=1e-5)


def test_detectors_find_what_was_planted_and_taking_it_out_helps(one):
    study, wrong = one
    found = detectors(study)
    for name in ("self_influence", "harm", "loss", "heldout_loss"):
        assert precision(found[name], wrong) > 0.6, name
    assert precision(found["random"], wrong) < 0.5
    assert cleaned(study, found["heldout_loss"], int(wrong.sum())) < 0
    keep = np.ones(120, dtype=bool)
    keep[np.argsort(-found["random"], kind="stable")[:12]] = False
    weight = fit_layer(study.layer.x[keep], study.layer.y[keep], 2, study.layer.l2 * 120 / 108).weight
    expected = (losses(study.test_x, study.test_y, weight) - study.test_losses()).mean()
    np.testing.assert_allclose(cleaned(study, found["random"], 12), expected, atol=1e-7)


def test_gains_are_differences_of_precisions():
    wrong = np.arange(10) < 2
    good, bad = (
        {"self_influence": -np.arange(10.0), "loss": np.arange(10.0)},
        {"self_influence": np.arange(10.0), "loss": np.arange(10.0)},
    )
    metrics = planted_metrics([good, bad], [wrong, wrong])
    assert metrics["precision/self_influence/planted"].value == 0.5
    assert metrics["precision_gain/self_influence_minus_loss/planted"].value == 0.5
    assert metrics["auc_detect/loss/planted"].value == pytest.approx(0.1)
