"""Deletion studies: panels against a loop over retrainings by hand, and keys against the ledger."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clif_kit import deletion, deletion_study, ledger, notebooks, text_truth
from clif_kit.deletion_panels import PANELS
from clif_kit.deletion_ranks import random_subsets
from clif_kit.deletion_study import DROPS, Deletions, panel_metrics, rankings, run_panel, summary
from clif_kit.text_scores import text_scores
from clif_kit.text_study import Recipe, predict, train_text

RECIPE = Recipe(epochs=2, lr=0.02, batch_size=8, optimizer="adam", checkpoints=2)
TINY = deletion_study.Panel(
    task="topics", kind="cnn", recipe=RECIPE, train=32, val=8, test=4, methods=("tr_we", "tr_last", "random"),
    sizes=(2, 4), seeds=2, points=3, subsets=4, max_length=12, width=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deletion")


@pytest.fixture(scope="module")
def found(folder):
    return run_panel(TINY, folder)


def by_hand(study, removed, seed):
    """p(true class) of the test texts when some training texts are left out."""
    keep = np.ones(len(study.train), bool)
    keep[list(removed)] = False
    logits = predict(study, train_text(study, seed, keep).params).double()
    return torch.softmax(logits, 1)[torch.arange(len(study.test)), study.labels("test")].numpy()


def test_an_effect_is_a_retraining_minus_the_full_model_of_its_seed(found):
    study = TINY.study()
    scores = text_scores(study, train_text(study, 0), ("tr_last",))["tr_last"]
    for sign, t, k, seed in ((0, 0, 4, 1), (1, 2, 2, 0)):
        chosen = sorted(range(32), key=lambda i: ((-1, 1)[sign] * scores[t, i], i))[:k]
        want = by_hand(study, chosen, seed)[t] - by_hand(study, [], seed)[t]
        assert found.effects["tr_last"][sign, TINY.sizes.index(k), t, seed] == pytest.approx(want, abs=1e-6)
    assert found.effects["tr_we"].shape == (2, 2, 3, 2)


def test_only_what_is_missing_is_trained(found, folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(text_truth, "retrain_text", lambda _: refuse)
    monkeypatch.setattr(deletion_study.text_scores, "text_scores", refuse)
    again = run_panel(TINY, folder)
    assert all(np.array_equal(again.effects[name], found.effects[name]) for name in found.effects)
    with pytest.raises(AssertionError, match="trained again"):
        run_panel(replace(TINY, seeds=3), folder)


def test_scores_do_not_depend_on_the_number_of_threads(found, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        scores, asked = deletion_study._scores(TINY, TINY.study(), tmp_path)
        assert torch.get_num_threads() != before
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(scores[name], found.scores[name]) for name in scores)
    params = train_text(found.study, 0).params
    right = predict(found.study, params, "val").argmax(1) == found.study.labels("val")
    assert np.array_equal(asked["correct"], right.numpy())


def test_candidates_are_the_texts_with_the_least_overlap():
    panel = replace(TINY, candidates=20, methods=("tr_we", "random", "same_class_random"), sizes=(2, 3))
    rng = np.random.default_rng(0)
    similarity, scores = rng.random((4, 32)), {"tr_we": rng.normal(size=(4, 32))}
    train, test = torch.arange(32) % 4, torch.arange(4)
    study = SimpleNamespace(labels=lambda split: {"train": train, "test": test}[split])
    ranks = rankings(panel, study, scores, similarity)
    for t in range(4):
        pool = sorted(range(32), key=lambda i: similarity[t, i])[:20]
        assert ranks["tr_we"][0, t].tolist() == sorted(pool, key=lambda i: -scores["tr_we"][t, i])[:3]
        assert all(set(ranks[name][:, t].ravel()) <= set(pool) for name in ranks)
        assert set(train.numpy()[ranks["same_class_random"][0, t]]) == {t}
    free = rankings(replace(panel, candidates=0), study, scores, similarity)
    assert free["tr_we"][1, 0, 0] == scores["tr_we"][0].argmin()


def test_the_numbers_of_a_panel(found):
    metrics, effects = panel_metrics(found, "here"), found.effects
    plus, minus = (effects["tr_we"][sign].mean() for sign in (0, 1))
    assert metrics["auc_del_plus/tr_we/here"].value == pytest.approx(plus)
    assert metrics["auc_del_gap/tr_we_printed_sign/here"].value == pytest.approx((plus - minus) / 2)
    last = effects["tr_last"]
    assert metrics["del_plus_gain/tr_we_k2_minus_tr_last_k4/here"].value == pytest.approx(
        last[0, 1].mean() - effects["tr_we"][0, 0].mean()
    )
    assert metrics["n/models/here"] == found.plan.retrainings
    assert metrics["n/validation/here"] == 8
    assert metrics["accuracy/cnn/topics"].value == pytest.approx(100 * found.correct.mean())
    own = [
        found.study.task.train["label"][found.ranks["tr_we"][0, t]] == found.study.task.test["label"][t]
        for t in range(3)
    ]
    assert metrics["share_same_class/tr_we/here"].value == pytest.approx(np.mean(own))


def test_an_lds_asks_about_the_loss_of_the_same_subsets(found):
    """A score that is the change itself has an LDS of one; its negative, minus one."""
    sets = random_subsets(32, DROPS["drop05"], 4)
    actual = deletion.subset_changes(found.plan, found.results["loss"])["drop05"].mean(0)  # (tests, m)
    member = np.array([np.isin(range(32), chosen) for chosen in sets], dtype=float)  # (m, n)
    score = actual @ np.linalg.pinv(member).T
    exact = replace(found, scores={"tr_we": score, "minus": -score})
    metrics = panel_metrics(exact, "here")
    assert metrics["lds/tr_we/here/drop05"].value == pytest.approx(1)
    assert metrics["lds/minus/here/drop05"].value == pytest.approx(-1)


def made_up(panel):
    """A panel with numbers out of the air, for its keys."""
    rng, n = np.random.default_rng(0), panel.train
    labels = {"train": torch.arange(n) % 2, "test": torch.arange(panel.test) % 2}
    study = SimpleNamespace(labels=labels.get, val=range(panel.val))
    scores = {name: rng.normal(size=(panel.test, n)) for name in panel.scored}
    ranks = rankings(panel, study, scores, rng.random((panel.test, n)))
    subsets = {name: random_subsets(n, share, panel.subsets) for name, share in DROPS.items() if panel.subsets}
    points, seeds = range(panel.points or panel.test), range(panel.seeds)
    plan = deletion.make_plan(ranks, panel.sizes, seeds, n, points=points, subsets=subsets)
    p = rng.random((len(plan.sets), panel.seeds, panel.test))
    return Deletions(
        panel=panel, study=study, scores=scores, ranks=ranks, correct=rng.random(panel.val) < 0.5,
        special=rng.random(panel.test), plan=plan, results={"probability": p, "loss": -np.log(p)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chapter", "own"),
    [
        ("21_tracin_deletion", ("cost/", "n/parameters/")),
        ("23_tracin_no_overlap", ("n/candidates/", "del_abs/", "auc_del_gain/frozen_")),
    ],
)
def test_the_panels_of_the_book_record_the_keys_of_the_ledger(chapter, own):
    """All but those that the chapter's own cells record."""
    asked = notebooks.profile_values(chapter, "book")
    panels = asked["panels"] if "panels" in asked else [asked["panel"], f"{asked['panel']}_unfrozen"]
    found = {name: made_up(PANELS[name]) for name in panels}
    metrics = summary(found)
    ledger.check_metrics(metrics)
    keys = {row["key"] for row in ledger.rows() if row.get("notebook") == chapter and "key" in row}
    assert not {key for key in keys if not key.startswith(own)} - metrics.keys()


def test_a_side_panel_adds_and_does_not_overwrite():
    main, side = PANELS["agnews_cnn"].points, PANELS["agnews_cnn_side"].points
    assert main > side
    metrics = summary({name: made_up(PANELS[name]) for name in ("agnews_cnn_side", "agnews_cnn")})
    assert metrics["auc_del_plus/tr_we/agnews_cnn"].n == main
    assert metrics["auc_del_gain/tr_we_minus_tr_last/agnews_cnn"].n == main
    assert metrics["auc_del_gain/tr_we_minus_bm25/agnews_cnn"].n == side
    assert (metrics["n/tests/agnews_cnn"], metrics["n/tests/agnews_cnn_side"]) == (main, side)
