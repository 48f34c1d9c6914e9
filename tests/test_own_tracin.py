"""TracIn on a reader's own texts: the table against the scores, the check against training again by hand."""

import numpy as np
import pandas as pd
import pytest

from clif_kit import own_tracin
from clif_kit.own_tracin import tracin_check, tracin_ranked, tracin_study
from clif_kit.text_scores import text_scores
from clif_kit.text_study import predict, train_text


def frame(n=60, seed=0):
    rng, words = np.random.default_rng(seed), ["goal match team ball win", "bread soup salt oven taste"]
    texts = [" ".join(rng.choice(words[k % 2].split(), 4)) + f" {k}" for k in range(n)]
    labels = [("sport", "food")[k % 2] for k in range(n)]
    return pd.DataFrame({"row": range(n), "id": "", "text": texts, "label": labels})


@pytest.fixture(scope="module", name="one")
def _one():
    texts = frame()
    train, test = texts[:52].reset_index(drop=True), texts[52:].reset_index(drop=True)
    study = tracin_study(train, test, ("food", "sport"), max_length=10, width=8)
    return study, train_text(study, 0), train, test


def test_the_table_is_the_ends_of_the_scores_with_their_words(one):
    study, fitted, train, test = one
    scores = text_scores(study, fitted, ["tr_we"])["tr_we"]
    table = tracin_ranked(study, fitted, train, test, 3)
    for q in (0, 5):
        top = table[(table["test_row"] == test["row"][q]) & (table["side"] == "proponent")]
        assert top["train_row"].tolist() == train["row"].iloc[np.argsort(-scores[q], kind="stable")[:3]].tolist()
        np.testing.assert_allclose(top["score"], np.sort(scores[q])[::-1][:3])
        assert top["words"].str.len().min() > 0


def test_the_check_is_training_again_without_the_first_of_the_ranking(one):
    study, fitted, _, _ = one
    found = tracin_check(study, fitted, checks=2, share=0.1, draws=1)
    scores = text_scores(study, fitted, ["tr_we"])["tr_we"]
    keep = np.ones(52, dtype=bool)
    keep[np.argsort(-scores[1], kind="stable")[:5]] = False
    loss = []
    for mask in (keep, None):
        log = predict(study, train_text(study, 0, mask).params)[1].double().log_softmax(0)
        loss.append(-float(log[study.labels("test")[1]]))
    assert found["tracin_we"][1] == pytest.approx(loss[0] - loss[1], abs=1e-5)
    assert found["removed"].tolist() == [5, 5]


def test_too_many_rows_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(own_tracin, "MAX_ROWS", 10)
    with pytest.raises(ValueError, match="52 training texts are too many"):
        tracin_study(frame()[:52], frame()[52:], ("food", "sport"))


def test_the_way_from_the_file_to_the_page(tmp_path):
    path, said = tmp_path / "a.csv", []
    frame(40)[["text", "label"]].to_csv(path, index=False)
    files = own_tracin.explain_tracin(path, tmp_path / "out", tests=3, checks=2, k=2, say=said.append)
    assert [file.name for file in files] == ["influences.csv", "deletion_check.csv", "report.html"]
    assert any("tracin_we minus random" in line for line in said)
    table = pd.read_csv(files[0])
    assert set(table["side"]) <= {"proponent", "opponent"}
    assert table["test_row"].nunique() == 3
    assert own_tracin.explain_tracin(path, tmp_path / "dry", go_on=lambda: False, say=said.append) is None
    assert not (tmp_path / "dry").exists()
