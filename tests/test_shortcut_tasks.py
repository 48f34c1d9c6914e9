"""Tasks with a planted shortcut: counts by hand, what words say about label and shortcut, no text in two splits."""

from collections import Counter

import numpy as np
import pytest

from clif_kit import datasets, generators, shortcut_tasks
from clif_kit.corpora import Sentences
from clif_kit.shortcut_tasks import ShortcutTexts, shortcut_task

SPLITS = ("train", "dev", "test")


def parts(task):
    return {name: getattr(task, name) for name in SPLITS}


def table(texts):
    """``[[y 0 c 0, y 0 c 1], [y 1 c 0, y 1 c 1]]``, one text after the other."""
    found = [[0, 0], [0, 0]]
    for y, c in zip(texts.y, texts.confound, strict=True):
        found[int(y)][int(c)] += 1
    return found


def agreeing(aligned, other):
    return [[aligned, other], [other, aligned]]


@pytest.fixture
def own_sentences(monkeypatch):
    """Each word says which sentence it is of; every tenth sentence has 29 words, too few."""
    words = [[f"w{i}x{k}" for k in range(29 if i % 10 == 0 else 30 + i % 4)] for i in range(400)]
    monkeypatch.setattr(shortcut_tasks, "wikipedia", lambda: Sentences(words, [""] * 400, [""] * 400))
    return words


# --- the twins


@pytest.mark.parametrize(("rate", "counts"), [  # of 100, of 20 and of 30 texts of a class
    (None, [(90, 10), (18, 2), (15, 15)]),
    (0.75, [(75, 25), (15, 5), (15, 15)]),
    (0.29, [(29, 71), (5, 15), (15, 15)]),  # int(5.8)
    (1.0, [(100, 0), (20, 0), (15, 15)]),
])  # fmt: skip
@pytest.mark.usefixtures("own_sentences")
def test_a_prefix_agrees_as_often_as_the_rate_says_but_half_the_time_in_the_test(rate, counts):
    task = shortcut_task("wikipedia", train=200, dev=40, test=60, rate=rate)
    assert [table(one) for one in parts(task).values()] == [agreeing(*pair) for pair in counts]
    for one in parts(task).values():
        assert one.groups() == dict(sorted(Counter(zip(one.y.tolist(), one.confound.tolist(), strict=True)).items()))


@pytest.mark.parametrize(("rate", "counts"), [
    (None, [(97, 3), (19, 1), (15, 15)]),  # int(19.4)
    (0.6, [(60, 40), (12, 8), (15, 15)]),
])  # fmt: skip
def test_the_articles_agree_as_often_as_the_rate_says(rate, counts):
    task = shortcut_task("grammar", train=200, dev=40, test=60, rate=rate, seed=0)
    assert [table(one) for one in parts(task).values()] == [agreeing(*pair) for pair in counts]


def test_without_sizes_there_are_1200_and_400():
    for name, train in (("wikipedia", (540, 60)), ("grammar", (582, 18))):
        task = shortcut_task(name, seed=2)
        assert [table(one) for one in (task.train, task.test)] == [agreeing(*train), agreeing(100, 100)]
        assert (len(task.dev), task.dev.texts) == (0, ())


@pytest.mark.parametrize("prefixes", [None, (("Fizz",), ("Buzz", "-", "like"))])
def test_a_text_is_its_prefix_and_the_start_of_a_sentence_that_no_other_text_has(own_sentences, prefixes):
    task = shortcut_task(
        "wikipedia", train=200, dev=40, test=60, seed=4, **({"prefixes": prefixes} if prefixes else {})
    )
    heads = ("Fizz", "Buzz - like") if prefixes else ("Negative .", "Positive .")
    assert (task.shortcut, task.classes, task.name) == (heads, ("short", "long"), "wikipedia")
    used = []
    for one in parts(task).values():
        assert len(one) == len(one.texts) == len(one.plain)
        for text, plain, confound in zip(one.texts, one.plain, one.confound, strict=True):
            assert text == f"{heads[confound]} {plain}"
            words = plain.split(" ")
            source = int(words[0][1:].split("x")[0])
            assert words == own_sentences[source][: len(words)]
            used.append(source)
    assert len(set(used)) == len(used) == 300
    assert not [source for source in used if source % 10 == 0]


@pytest.mark.parametrize(("longest", "threshold"), [(30, 20), (15, 10)])
def test_length_tells_the_label_in_every_split_and_the_prefix_does_not_change_it(longest, threshold):
    """As the texts really are: the threshold between both means is right 89.4 % of the time, whatever the prefix."""
    task = shortcut_task("wikipedia", train=1200, dev=400, test=400, longest=longest, seed=1)
    for one in parts(task).values():
        lengths = np.array([len(plain.split()) for plain in one.plain])
        assert 1 <= lengths.min() < lengths.max() == longest
        for y in (0, 1):  # a half is cut off
            assert lengths[one.y == y].mean() == pytest.approx((15 + 10 * y) * longest / 30 - 0.5, abs=0.9)
        right = (lengths >= threshold) == one.y
        assert right.mean() == pytest.approx(0.894, abs=4 * np.sqrt(0.894 * 0.106 / len(one)))
        apart = right[one.y == one.confound].mean() - right[one.y != one.confound].mean()
        assert abs(apart) < 0.12
    texts = {name: {plain for plain in one.plain if len(plain.split()) >= 12} for name, one in parts(task).items()}
    assert len(texts["train"] | texts["dev"] | texts["test"]) == sum(map(len, texts.values()))


def test_shorter_sentences_do_where_texts_may_be_no_longer(own_sentences):
    task = shortcut_task("wikipedia", train=300, test=60, longest=29)
    used = {int(plain.split("x")[0][1:]) for one in (task.train, task.test) for plain in one.plain}
    assert any(len(own_sentences[source]) == 29 for source in used)
    assert len(used) == 360


def test_what_the_words_of_the_grammar_say_is_the_label_and_the_shortcut():
    task = shortcut_task("grammar", train=300, dev=60, test=100, rate=0.8, seed=5)
    adjectives = set(generators._ADJECTIVES.split())
    assert task.classes == ("no adjective", "adjective")
    assert task.shortcut == ('"a" before "the"', '"the" before "a"')
    for one in parts(task).values():
        words = [text.split(" ") for text in one.texts]
        assert [int(bool(adjectives & set(line))) for line in words] == one.y.tolist()
        assert [int(line.index("the") < line.index("a")) for line in words] == one.confound.tolist()
        assert one.plain is None


def test_grammar_sentences_that_were_in_an_earlier_split_are_left_out():
    """With as many sentences as these, some are drawn twice: they stay where they came first."""
    task = shortcut_task("grammar", train=4000, dev=4000, test=4000, seed=0)
    drawn = [generators.grammar(seed=k, n_per_class=2000, rate=rate) for k, rate in enumerate((0.97, 0.97, 0.5))]
    seen: set[str] = set()
    for one, made in zip(parts(task).values(), drawn, strict=True):
        texts = [" ".join(tokens) for tokens in made.tokens]
        fresh = [i for i, text in enumerate(texts) if text not in seen]
        assert one.texts == tuple(texts[i] for i in fresh)
        assert one.y.tolist() == [made.label[i] for i in fresh]
        assert one.confound.tolist() == [made.spur[i] for i in fresh]
        seen.update(texts)
    assert len(task.train) == 4000 > len(task.dev) > len(task.test)


@pytest.mark.usefixtures("own_sentences")
@pytest.mark.parametrize("name", ["wikipedia", "grammar"])
def test_the_seed_decides_and_the_splits_are_drawn_apart(name):
    sizes = {"train": 80, "dev": 80, "test": 80, "rate": 0.5}
    first, again, other = (shortcut_task(name, **sizes, seed=seed) for seed in (3, 3, 4))
    for split in SPLITS:
        assert getattr(first, split).texts == getattr(again, split).texts
        starts = [{text.split(" ")[2] for text in getattr(task, split).texts} for task in (first, other)]
        assert name == "grammar" or len(starts[0] & starts[1]) < 60  # of 80 sentences
        assert set(getattr(first, split).texts) != set(getattr(other, split).texts)
    assert not set(first.train.texts) & set(first.test.texts)
    assert first.train.y.tolist() != first.test.y.tolist()  # another order, too


def test_some_of_the_texts_keep_everything_that_belongs_to_them():
    whole = ShortcutTexts(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]), ("A", "B", "C", "D"))
    found = whole.take(np.array([3, 0]))
    assert (found.texts, found.plain, found.y.tolist(), found.confound.tolist()) == (
        ("d", "a"), ("D", "A"), [1, 0], [0, 1]
    )  # fmt: skip
    assert whole.take(np.array([0, 1, 0])).groups() == {(0, 1): 2, (1, 1): 1}


# --- the authors' files


def real(name, **options):
    """The task, or the reason to skip."""
    try:
        return shortcut_task(name, **options)
    except datasets.Missing as reason:
        pytest.skip(f"needs the data set {name}: {reason}")


def test_textlen_has_the_authors_counts_and_length_its_ceiling():
    task = real("textlen")
    assert [table(task.train), table(task.test), len(task.dev)] == [agreeing(675, 75), agreeing(125, 125), 0]
    assert (task.data, task.shortcut) == (("textlen",), ("Negative .", "Positive ."))
    for one in (task.train, task.test):
        for text, plain, confound in zip(one.texts, one.plain, one.confound, strict=True):
            assert text == f"{('Negative', 'Positive')[confound]} . {plain}"
        right = [(len(plain.split(" ")) >= 20) == y for plain, y in zip(one.plain, one.y, strict=True)]
        assert np.mean(right) == pytest.approx(0.892)
    assert not set(task.train.plain) & set(task.test.plain)


def test_msgs_has_the_authors_counts_and_the_articles_say_the_shortcut():
    task = real("msgs")
    assert table(task.train) == [[2517, 6], [9, 2468]]
    assert table(task.test) == agreeing(5000, 2500)  # who looks at the articles alone is right 2 times in 3
    assert (task.data, len(task.dev), task.train.plain) == (("msgs",), 0, None)
    for one, split in ((task.train, "train"), (task.test, "test")):
        assert one.y.tolist() == datasets.msgs(split)["label"].cat.codes.tolist()
        words = [text.lower().rstrip(".").split(" ") for text in one.texts]
        both = [i for i, line in enumerate(words) if "the" in line and "a" in line]
        assert len(both) > 0.9 * len(words)
        assert all((words[i].index("the") < words[i].index("a")) == one.confound[i] for i in both)
    assert not set(task.train.texts) & set(task.test.texts)


@pytest.mark.parametrize("name", ["textlen", "msgs"])
def test_a_few_of_the_authors_texts_are_drawn_at_random_in_their_order(name):
    whole, few, other = (
        real(name), real(name, train=100, test=60, seed=1), real(name, train=100, test=60, seed=2)
    )  # fmt: skip
    for split, n in (("train", 100), ("test", 60)):
        all_of_it, one = getattr(whole, split), getattr(few, split)
        place = {text: i for i, text in enumerate(all_of_it.texts)}
        rows = [place[text] for text in one.texts]
        assert rows == sorted(rows)
        assert len(set(rows)) == n
        assert one.y.tolist() == all_of_it.y[rows].tolist()
        assert one.confound.tolist() == all_of_it.confound[rows].tolist()
        if name == "textlen":
            assert one.plain == tuple(all_of_it.plain[i] for i in rows)
        assert rows != list(range(n))
        assert one.texts != getattr(other, split).texts


# --- bad input


@pytest.mark.parametrize(("name", "options", "message"), [
    ("weather", {}, "no task 'weather': choose from textlen, msgs, wikipedia, grammar"),
    ("textlen", {"dev": 10}, "textlen is the authors' data: dev and rate are for 'wikipedia' and 'grammar'"),
    ("msgs", {"rate": 0.9}, "msgs is the authors' data"),
    ("textlen", {"prefixes": (("A",), ("B",))}, "prefixes and longest are for 'wikipedia', not for 'textlen'"),
    ("grammar", {"prefixes": (("A",), ("B",))}, "prefixes and longest are for 'wikipedia', not for 'grammar'"),
    ("msgs", {"longest": 20}, "prefixes and longest are for 'wikipedia', not for 'msgs'"),
    ("wikipedia", {"train": 9000}, r"9400 texts of 30 words are asked for, there are \d+: ask for fewer"),
    ("wikipedia", {"rate": 1.2}, "a rate in .0, 1., got 600 and 1.2"),
    ("wikipedia", {"prefixes": ("Neg .", "Pos .")}, "a prefix is a sequence of words"),
    ("wikipedia", {"train": 1}, "a set has 2 texts or more"),
    ("grammar", {"test": -3}, "a set has 2 texts or more"),
    ("grammar", {"dev": 1}, "a set has 2 texts or more"),
    ("grammar", {"rate": -0.1}, "a rate in .0, 1., got 600 and -0.1"),
])  # fmt: skip
def test_what_cannot_be_had_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        shortcut_task(name, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"train": 1}, "there are 1500 texts, not 1"),
    ({"train": 1501}, "there are 1500 texts, not 1501"),
    ({"test": 501}, "there are 500 texts, not 501"),
])  # fmt: skip
def test_more_texts_than_the_authors_have_are_not_to_be_had(options, message):
    real("textlen")
    with pytest.raises(ValueError, match=message):
        shortcut_task("textlen", **options)
