"""Whole studies with a stub for an encoder: sums of words, scores against refits, resuming, the check."""

import numpy as np
import pandas as pd
import pytest
import torch

from clif_kit import own_encoder, own_layer, own_study
from clif_kit.baselines import bm25
from clif_kit.own_check import check_intervals, deletion_check
from clif_kit.own_encoder import BadModel, WordVectors, features_of, read_encoder, whole_words
from clif_kit.own_layer import fit_layer, losses, pulls
from clif_kit.own_scores import carried, own_scores, ranked, suspicious, word_parts
from clif_kit.own_study import hold_out, make_own_study
from clif_kit.own_texts import OwnTexts

TOPICS = {"sport": "goal match team ball win coach", "food": "bread soup salt oven taste cook"}


def frame(n=80, seed=0, wrong=()):
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        label = sorted(TOPICS)[k % 2]
        words = rng.choice([*TOPICS[label].split(), "the", "of", "one", "two"], 7)
        shown = label if k not in wrong else sorted(TOPICS)[1 - k % 2]
        rows.append((k + 1, f"id{k}", " ".join(words) + f" number{k}", shown))
    return pd.DataFrame(rows, columns=["row", "id", "text", "label"])


def study(n=80, tests=6, width=12, l2=0.05, **kwargs):
    texts = frame(n, **kwargs)
    return make_own_study(
        texts[tests:].reset_index(drop=True), texts[:tests], ("food", "sport"), WordVectors(width), l2=l2
    )


def test_scores_predict_what_refitting_without_a_text_does():
    mine = study(l2=0.5)
    scores, before, n = own_scores(mine, [0, 3]), mine.test_losses(), len(mine.train)
    truth = np.empty((2, n))
    for i in range(n):  # the others keep the weight 1/n that they had: a penalty of n / (n - 1) of it per text
        keep = np.arange(n) != i
        weight = fit_layer(mine.layer.x[keep], mine.layer.y[keep], 2, mine.layer.l2 * n / (n - 1)).weight
        truth[:, i] = (losses(mine.test_x, mine.test_y, weight) - before)[[0, 3]]
    for q in range(2):
        assert np.corrcoef(truth[q], scores["influence"][q])[0, 1] > 0.99
    like = bm25(mine.train["text"].tolist(), mine.test["text"].iloc[[0, 3]].tolist())
    np.testing.assert_allclose(np.abs(scores["bm25"]), like)


def test_the_parts_of_the_words_add_up_to_the_score():
    mine = study()
    score = own_scores(mine, [2])["influence"][0]
    pulled = pulls(mine.layer, mine.test_x[[2]], mine.test_y[[2]])[0]
    for i in (0, 5, 33):
        parts = word_parts(mine, i, pulled)
        assert [word for word, _ in parts[:-1]] == mine.train["text"][i].split()
        np.testing.assert_allclose(sum(value for _, value in parts), score[i], rtol=1e-5, atol=1e-9)


def test_ranked_lists_have_the_right_ends_and_shared_words():
    mine = study()
    score = own_scores(mine, [1])["influence"][0]
    table = ranked(mine, [1], 3)
    top = table[(table["method"] == "influence") & (table["side"] == "proponent")]
    assert top["train_row"].tolist() == mine.train["row"].iloc[np.argsort(-score)[:3]].tolist()
    bottom = table[(table["method"] == "influence") & (table["side"] == "opponent")]
    assert bottom["score"].iloc[0] == score.min()
    for _, row in table.iterrows():
        assert set(row["shared"].split()) <= set(row["train_text"].split()) & set(row["test_text"].split())


def test_planted_wrong_labels_come_first_and_the_model_names_the_right_class():
    wrong = (10, 25, 31, 44, 70)
    table = suspicious(study(240, width=60, wrong=wrong), 5)
    assert len({k + 1 for k in wrong} & set(table["train_row"])) >= 4
    assert (table["label"] != table["model_says"]).mean() >= 0.8
    assert table["self_influence"].is_monotonic_decreasing


def test_the_check_is_refitting_and_beats_the_control():
    mine = study(160, tests=8)
    found = deletion_check(mine, range(8), share=0.1, draws=2)
    m, scores = int(found["removed"][0]), own_scores(mine, [0])["influence"][0]
    keep = np.ones(len(mine.train), dtype=bool)
    keep[np.argsort(-scores, kind="stable")[:m]] = False
    scale = len(mine.train) / keep.sum()
    weight = fit_layer(mine.layer.x[keep], mine.layer.y[keep], 2, mine.layer.l2 * scale).weight
    change = losses(mine.test_x[[0]], mine.test_y[[0]], weight)[0] - mine.test_losses()[0]
    np.testing.assert_allclose(found["influence"][0], change, rtol=1e-5)
    assert m == round(0.1 * len(mine.train))
    assert check_intervals(found)["influence minus random"].low > 0


def test_held_out_texts_stand_nowhere_else():
    texts = frame(40)
    texts.loc[3, "text"] = texts.loc[9, "text"].upper()
    train, test = hold_out(OwnTexts(texts, ("food", "sport"), {}, ()), 100)
    assert len(test) == 8
    assert not set(train["row"]) & set(test["row"])
    assert not {4, 10} & set(test["row"])


class Counting(WordVectors):
    """Counts the texts that it was asked for, and stops when told to."""

    def __init__(self, stop_after=None):
        super().__init__(8)
        self.asked, self.stop_after = 0, stop_after

    def features(self, texts):
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(texts)
        return super().features(texts)


def test_features_resume_after_a_kill_and_equal_texts_are_read_once(tmp_path):
    texts = [*frame(50)["text"], *frame(50)["text"]]
    with pytest.raises(KeyboardInterrupt):
        features_of(Counting(stop_after=20), texts, tmp_path, chunk=10)
    again, told = Counting(), []
    found = features_of(again, texts, tmp_path, chunk=10, say=lambda seconds, there: told.append((seconds > 0, there)))
    assert (again.asked, told) == (31, [(True, 2)])  # and one text to warm up before the clock runs
    np.testing.assert_array_equal(found, WordVectors(8).features(texts))
    third = Counting()
    assert features_of(third, texts, tmp_path, chunk=10, say=lambda *_: False) is None
    assert third.asked == 0


def test_the_estimate_may_stop_the_run():
    encoder = Counting()
    texts = frame(50)
    stopped = make_own_study(texts[5:], texts[:5], ("food", "sport"), encoder, chunk=10, say=lambda *_: False)
    assert stopped is None
    assert encoder.asked == 11


def test_many_classes_keep_the_main_directions(monkeypatch):
    monkeypatch.setattr(own_layer, "MAX_SIZE", 900)
    monkeypatch.setattr(own_study, "MAX_SIZE", 900)
    rng = np.random.default_rng(0)
    texts = pd.DataFrame({"row": range(300), "id": "", "text": [f"w{k % 30} w{rng.integers(9)}" for k in range(300)]})
    texts["label"] = [f"{k % 30:02d}" for k in range(300)]
    mine = make_own_study(texts[60:], texts[:60], tuple(sorted(set(texts["label"]))), WordVectors(192), l2=0.01)
    assert mine.layer.x.shape[1] == 900 // 30
    assert np.mean(np.array(mine.predicted()) == texts["label"][:60]) > 0.8


def test_pieces_of_words_are_joined():
    assert whole_words(["<s>", "Ġgo", "ing", "Ġon", "</s>"], np.arange(5.0)) == [
        ("<s>", 0.0), ("going", 3.0), ("on", 3.0), ("</s>", 4.0),
    ]  # fmt: skip
    assert carried([]) == ""


def test_an_encoder_that_is_not_there_is_one_line_with_the_fix(tmp_path):
    with pytest.raises(BadModel, match="MiniLM needs no network") as caught:
        read_encoder(tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_unknown_test_labels_are_refused():
    texts = frame(30)
    with pytest.raises(ValueError, match="'opera', which no training text has"):
        make_own_study(texts[5:], texts[:5].assign(label="opera"), ("food", "sport"), WordVectors(8))


def test_minilms_rows_average_to_its_features():
    encoder = read_encoder(None, max_length=16)
    texts = ["A goal in the last minute.", "", "soup " * 50]
    with torch.no_grad():
        features = encoder.features(texts)
    for text, row in zip(texts, features, strict=True):
        words, rows = encoder.parts(text)
        assert len(words) == len(rows) <= 16
        np.testing.assert_allclose(rows.mean(0), row, atol=1e-5)


@pytest.mark.parametrize(("n", "sizes"), [(9, [9]), (64, [64]), (65, [64, 1]), (300, [64, 200, 36])])
def test_the_first_chunk_is_small_so_that_the_estimate_comes_soon(monkeypatch, n, sizes):
    asked, texts = [], [f"text {k}" for k in range(n)]
    encoder = WordVectors(4)
    plain = encoder.features
    monkeypatch.setattr(encoder, "features", lambda part: asked.append(len(part)) or plain(part))
    found = features_of(encoder, texts, chunk=200, say=lambda *_: asked.append("said"))
    assert asked == [1, sizes[0], "said", *sizes[1:]]
    np.testing.assert_array_equal(found, plain(texts))


def test_a_number_for_each_text_is_no_label():
    texts = frame(12).assign(label=[str(k) for k in range(12)])
    with pytest.raises(ValueError, match="12 rows, 12 classes that need three texts each"):
        hold_out(OwnTexts(texts, tuple(sorted(texts["label"])), {}, ()), 4)


class Slow(WordVectors):
    """Takes a second to warm up and then a hundredth of a second for a text, by a clock of its own."""

    def __init__(self):
        super().__init__(4)
        self.now, self.cold = 0.0, True

    def features(self, texts):
        self.now += self.cold + 0.01 * len(texts)
        self.cold = False
        return super().features(texts)


def test_the_estimate_leaves_out_the_warming_up(monkeypatch):
    encoder, told = Slow(), []
    monkeypatch.setattr(own_encoder.time, "perf_counter", lambda: encoder.now)
    features_of(encoder, [f"text {k}" for k in range(1064)], say=lambda seconds, _: told.append(seconds))
    assert told == pytest.approx([10.0])
