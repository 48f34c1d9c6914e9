"""The text and word tasks of the contest, tiny, and stored scores of other libraries."""

import json

import numpy as np
import pytest

from clif_kit import contest, contest_texts, contest_words, corpora
from clif_kit.contest import Task, play, with_peers
from clif_kit.contest_metrics import contest_metrics
from clif_kit.text_scores import text_scores
from clif_kit.text_study import predict, train_text
from clif_kit.word_study import effects


@pytest.fixture(scope="module")
def study():
    return contest_texts.text_study("topics", n_train=24, n_test=4, epochs=2, n_val=4, max_length=12, width=8)


def test_the_text_task_removes_with_every_seed_and_scores_another_run(study, tmp_path):
    fitted = contest_texts.score_run(study)
    task = contest_texts.text_contest(study, fitted, seeds=2, folder=tmp_path)
    played = play(task, sizes=[3], subsets=3, points=2)
    assert played.actual["drop05"].shape == (2, 4, 3)
    first = played.plan.sets[played.plan.subsets["drop50"][0]]
    keep = np.ones(24, dtype=bool)
    keep[first] = False
    for seed in (0, 1):  # by hand: cross-entropy without the set minus cross-entropy of the same seed
        loss = [
            -predict(study, train_text(study, seed, mask).params).log_softmax(1)[range(4), study.labels("test")]
            for mask in (keep, None)
        ]
        np.testing.assert_allclose(played.actual["drop50"][seed, :, 0], (loss[0] - loss[1]).numpy(), atol=1e-5)
    again = text_scores(study, train_text(study, contest_texts.SCORING_SEED), ["tr_last"])["tr_last"]
    np.testing.assert_allclose(played.scores["tr_last"], again, rtol=1e-4, atol=1e-9)
    assert contest_texts.SCORING_SEED not in task.seeds
    assert "lds/ceiling/topics/drop05" in contest_metrics(played)


def test_one_seed_is_refused_and_the_digest_follows_the_recipe(study):
    with pytest.raises(ValueError, match="seeds must be 2 or more"):
        contest_texts.text_contest(study, None, seeds=1, folder="x")
    other = contest_texts.text_study("topics", n_train=24, n_test=4, epochs=3, n_val=4, max_length=12, width=8)
    assert contest_texts.text_digest(study) != contest_texts.text_digest(other)


def test_the_word_task_judges_by_training_again_in_the_direction_of_the_bias(tmp_path):
    built = contest_words.word_contest_study(corpora.load("wikipedia"), size=40, width=3, l2=0.01, most=1500)
    word_study, objective, best = built
    task = contest_words.word_task(*built, "words", folder=tmp_path)
    scores, _ = contest.score_all(task)
    assert set(scores) >= {"cg_full", "dot", "per_word", "lissa_published", "algorithm_one", "overlap", "random"}
    sets = [np.array([], dtype=int), np.argsort(-scores["cg_full"][0])[:8], np.argsort(scores["cg_full"][0])[:8]]
    found = task.retrain(type("P", (), {"sets": sets}))
    assert (found["loss"][0] == 0).all()
    np.testing.assert_array_equal(found["good"], -found["loss"])
    assert found["loss"][1, 0, 0] > 0 > found["loss"][2, 0, 0]  # without mitigating sentences the bias is larger
    before = effects(best.params, word_study.tests)
    from clif_kit.sgns_train import fit  # the same by hand, from the optimum

    rest = fit(objective.without(sets[1]), best.x, gtol=1e-7, lbfgs_steps=0)
    moved = np.sign(before) * (effects(rest.params, word_study.tests) - before)
    np.testing.assert_allclose(found["loss"][1, 0], moved, atol=1e-4)


def test_stored_scores_join_only_under_their_digest(tmp_path):
    task = Task(
        name="t", scorers={"a": lambda: np.zeros((2, 3))}, retrain=dict, n=3, tests=2, cheap="a"
    )  # fmt: skip
    path = tmp_path / "peers.json"
    peer = {"version": "1.2", "seconds": 4.0, "scores": [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]}
    path.write_text(json.dumps({"tasks": {"abc": {"captum": peer}}}))
    joined, versions = with_peers(task, path, "abc")
    assert versions == {"captum": "1.2"}
    scores, costs = contest.score_all(joined)
    assert scores["captum"].tolist() == peer["scores"]
    assert costs["captum"].seconds == pytest.approx(4.0, abs=0.1)
    assert with_peers(task, path, "other")[1] == {}
    assert with_peers(task, tmp_path / "none.json", "abc")[0].scorers.keys() == {"a"}
