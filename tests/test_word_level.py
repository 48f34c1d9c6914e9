"""Oracle: gradients of one text by plain autograd, and deletions that can be followed by hand."""

import numpy as np
import pytest
import torch
from text_cases import table_gradient, topics_study

from clif_kit import word_level
from clif_kit.text_study import Recipe, make_text_study, predict, train_text
from clif_kit.text_tokens import Tokens
from clif_kit.tracin import tracin_we
from clif_kit.word_examples import COMMENTS, PAIRS, template_task, with_examples

RECIPE = Recipe(epochs=2, lr=0.02, batch_size=8, optimizer="adam", checkpoints=2)


@pytest.fixture(scope="module")
def study():
    return topics_study(16)


@pytest.fixture(scope="module")
def fitted(study):
    return train_text(study, 0)


def test_parts_are_products_of_rows(study, fitted):
    train, query = word_level.at_the_end(study, fitted)
    one, other = table_gradient(study, fitted.params, "train", 3), table_gradient(study, fitted.params, "test", 1)
    products = (one * other).sum(1)
    for token, part in word_level.carried(train, query, 3, 1).items():
        np.testing.assert_allclose(part, float(products[train.tokens.names.index(token)]), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(tracin_we(train, query).total[1, 3], float(products.sum()), rtol=1e-4)
    assert word_level.sum_gaps(train, query, [(3, 1), (0, 0)]).max() < 1e-5


def test_shared_words_text_by_text(study, fitted):
    train, query = word_level.at_the_end(study, fitted)
    special = {train.tokens.names[row] for row in train.tokens.special}
    found = word_level.shared_words(train, query)
    for q, i in ((0, 0), (3, 7), (2, 15)):
        both = set(study.test.words(q)) & set(study.train.words(i)) - special
        assert found[q, i] == len(both)


def test_all_places_agree_with_all_places(study, fitted):
    train, query = word_level.at_the_end(study, fitted)
    found = word_level.agreement(train, query, [1, 16], k=3)
    np.testing.assert_allclose(found[16], 1)
    assert found[1][0].mean() < 0.999


def test_clusters_put_a_text_with_its_copy(study, fitted):
    train, _ = word_level.at_the_end(study, fitted)
    label, near = word_level.clusters(train.take([0, 1, 0, 1]), 2)
    assert label[0] == label[2] != label[1] == label[3]
    np.testing.assert_allclose(near[0, 2], 1, atol=1e-5)


def test_the_papers_pairs_by_autograd():
    task = with_examples(template_task(train=12, val=3, test=3), PAIRS)
    study = make_text_study(task, "cnn", RECIPE, max_length=40, width=8)
    dots = {"not": ("s1", "s3", ("not",)), "all": ("s1", "s2", ())}
    found, fitted = word_level.pair_numbers(study, 0, dots), train_text(study, 0)
    g = {k: table_gradient(study, fitted.params, "test", i) for i, k in enumerate(PAIRS)}
    row = study.test.names.index("not")
    np.testing.assert_allclose(found["not"], float(g["s1"][row] @ g["s3"][row]), rtol=1e-4)
    np.testing.assert_allclose(found["norm/s3/not"], float(g["s3"][row].norm()), rtol=1e-4)
    products = (g["s1"] * g["s2"]).sum(1)
    np.testing.assert_allclose(found["all"], float(products.sum()), rtol=1e-4)
    np.testing.assert_allclose(found["share/all"], float(products.sum().abs() / products.abs().sum()), rtol=1e-4)
    p = torch.softmax(predict(study, fitted.params), 1)
    np.testing.assert_allclose(found["probability/s3"], float(p[2, 2]), rtol=1e-5)
    with pytest.raises(ValueError, match="'toxic' is no class"):
        with_examples(task, COMMENTS)


def test_templates_say_what_they_say():
    task = template_task(train=300, val=30, test=30)
    for row in task.train.itertuples():
        bad = any(
            word in row.text for word in ("annoying", "boring", "awful", "dull", "tiresome", "nasty", "loud", "silly")
        )
        dislikes = any(word in row.pair for word in ("do not like", "I hate", "don't love"))
        neither = any(word in row.pair for word in ("talk of", "know much", "met you"))
        assert row.label == (1 if neither else 0 if bad == dislikes else 2), row
    texts = [set(zip(split["text"], split["pair"], strict=True)) for split in (task.train, task.val, task.test)]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]


def test_places_leave_and_the_rest_closes_up():
    tokens = Tokens(torch.tensor([[5, 6, 7, 0], [1, 2, 3, 4]]), torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]]), (5,), ())
    drop = torch.tensor([[False, True, False, False], [True, False, False, True]])
    found = word_level.without_places(tokens, drop)
    assert found.ids.tolist() == [[5, 7, 0, 0], [2, 3, 0, 0]]
    assert found.parts.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0]]


def test_which_words_leave(study, fitted):
    train, query = word_level.at_the_end(study, fitted)
    drops = word_level.word_drops(train, query, 2, [0, 5, 9, 12])
    special, asked = set(train.tokens.special), set(study.test.words(2))
    assert drops["texts"][0].any(1).nonzero().flatten().tolist() == [0, 5, 9, 12]
    for name, inside in (("strongest", True), ("other", False)):
        drop, words = drops[name]
        assert not set(drop.any(1).nonzero().flatten().tolist()) - {0, 5, 9, 12}
        assert all((word in asked) == inside for word in words)
        assert not special & set(study.train.ids[drop].tolist())
    for i in (0, 5, 9, 12):
        parts = {w: p for w, p in word_level.carried(train, query, i, 2).items() if not w.startswith("[")}
        left = {study.train.names[row] for row in study.train.ids[i][drops["strongest"][0][i]].tolist()}
        best = max(parts, key=parts.get) if parts and max(parts.values()) > 0 else None
        assert left == ({best} if best else set())


def test_training_without_whole_texts_is_leaving_them_out(study):
    drop = torch.zeros_like(study.train.ids, dtype=torch.bool)
    drop[[1, 4]] = study.train.parts[[1, 4]] > 0
    keep = np.ones(16, bool)
    keep[[1, 4]] = False
    params = train_text(study, 3, keep).params
    want = torch.softmax(predict(study, params)[2], 0)[study.labels("test")[2]]
    assert word_level.probability_without(study, drop, 3, 2) == pytest.approx(float(want), abs=1e-6)
    nothing = word_level.probability_without(study, torch.zeros_like(drop), 3, 2)
    plain = torch.softmax(predict(study, train_text(study, 3).params)[2], 0)[study.labels("test")[2]]
    assert nothing == pytest.approx(float(plain), abs=1e-6)


def test_colours_say_help_and_hurt_twice():
    html = word_level.colored(["good", "<b>", "bad"], np.array([2.0, 0.0, -1.0]), "x & y")
    assert "solid" in html.split("good")[0]
    assert "dotted" in html.split("bad")[0]
    assert "&lt;b&gt;" in html
    assert "x &amp; y" in html
