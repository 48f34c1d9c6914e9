"""Tasks of labelled texts: what is drawn, from where, and that no text is in two splits."""

import numpy as np
import pandas as pd
import pytest

from clif_kit import corpora, datasets, text_tasks
from clif_kit.registry import Missing
from clif_kit.text_tasks import TASKS, TOPICS, text_task


def splits(task):
    return {"train": task.train, "val": task.val, "test": task.test}


def test_topics_are_sentences_of_articles_of_that_topic_only():
    task = text_task("topics", train=40, val=8, test=8)
    sentences = corpora.wikipedia()
    for frame in splits(task).values():
        for name, text, label in zip(frame["id"], frame["text"], frame["label"], strict=True):
            i = int(name.removeprefix("wikipedia-"))
            assert text == sentences.text(i)
            assert sentences.title[i] in TOPICS[task.classes[label]]
    assert set(TOPICS) == set(task.classes)


def test_every_article_of_a_topic_exists_and_has_one_topic():
    articles = [article for names in TOPICS.values() for article in names]
    assert len(articles) == len(set(articles))
    assert set(articles) <= set(corpora.wikipedia().title)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_are_balanced_disjoint_and_repeatable(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = [(f"text {i}", "no" if i % 3 else "yes") for i in rng.permutation(90)]
    rows += rows[:20]  # repeated texts must not land in two splits
    path = tmp_path / "own.csv"
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    with pytest.warns(UserWarning, match="occur again"):
        task, again = (text_task(path, train=40, val=10, test=6, seed=seed) for _ in range(2))
    assert task.name == "own"
    truth = dict(rows)
    for name, size in (("train", 20), ("val", 5), ("test", 3)):
        frame = splits(task)[name]
        assert np.bincount(frame["label"]).tolist() == [size, size]
        assert [task.classes[k] for k in frame["label"]] == [truth[text] for text in frame["text"]]
        pd.testing.assert_frame_equal(frame, splits(again)[name])
    texts = [text for frame in splits(task).values() for text in frame["text"]]
    assert len(texts) == len(set(texts))


def test_too_few_texts_and_unknown_names_are_said(tmp_path):
    path = tmp_path / "few.csv"
    pd.DataFrame({"text": list("abcdef"), "label": ["x", "x", "y", "x", "x", "x"]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"class 'y' has 1 different texts, 3 are needed"):
        text_task(path, train=2, val=2, test=2)
    with pytest.raises(ValueError, match="no task 'weather'; there are: topics"):
        text_task("weather", train=8, val=8, test=8)
    with pytest.raises(ValueError, match="too few for 4 classes"):
        text_task("topics", train=3, val=8, test=8)


@pytest.mark.parametrize("name", ["agnews", "toxic", "tweets", "nli"])
def test_real_tasks_keep_labels_and_pairs(name):
    try:
        task = text_task(name, train=60, val=12, test=12)
    except Missing as error:
        pytest.skip(str(error))
    frame, offensive, _ = TASKS[name]()
    column = "text" if "text" in frame else "premise"
    truth = {(str(i), text): label for i, text, label in zip(frame["id"], frame[column], frame["label"], strict=True)}
    for split in splits(task).values():
        for row in split.itertuples():
            assert task.classes[row.label] == truth[row.id, row.text]
    assert (task.train["pair"] != "").all() == (name == "nli")
    assert task.offensive == offensive == (name in ("toxic", "tweets"))


def test_offensive_texts_are_shown_masked(monkeypatch):
    rows = pd.DataFrame({"id": ["1", "2", "3", "4", "5", "6"], "text": [f"shouting {i}" for i in range(6)]})
    rows["label"] = pd.Categorical(["a", "b"] * 3)
    monkeypatch.setitem(text_tasks.TASKS, "made", lambda: (rows, True, ()))
    task = text_task("made", train=2, val=2, test=2)
    assert task.show(task.test.iloc[0]) == datasets.mask(task.test["text"][0]) != task.test["text"][0]
