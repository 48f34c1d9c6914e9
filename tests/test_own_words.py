"""Own word vectors: gensim as the oracle of its formats, pickles refused, training again as the oracle of the check."""

import pickle

import numpy as np
import pytest
from gensim.models import KeyedVectors

from clif_kit.corpora import BadCorpus, load
from clif_kit.explain import ask_test, make_model, question_study
from clif_kit.own_vectors import BadVectors, read_vectors
from clif_kit.own_words import given_effect, read_lists, word_bias
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import fit
from clif_kit.weat import WordTest
from clif_kit.word_study import effects

SIDES = [[f"{side}{letter}" for letter in "abcd"] for side in ("he", "she", "job", "home")]
TOY = WordTest(*SIDES, name="toy")
SMALL = {"size": 25, "width": 3, "l2": 0.02, "window": 2, "k": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng, rows = np.random.default_rng(0), []
    for _ in range(250):
        x, a = (0, 2) if rng.random() < 0.5 else (1, 3)
        a = a if rng.random() < 0.7 else 5 - a
        rows.append(
            " ".join(rng.permutation([*rng.choice(SIDES[x], 2), *rng.choice(SIDES[a], 2), "the", "and", "was"]))
        )
    path = tmp_path_factory.mktemp("words") / "corpus.txt"
    path.write_text("\n".join(rows))
    return path


def keyed(width=5, seed=0):
    words = [word for side in SIDES for word in side] + ["naïve", "other"]
    vectors = KeyedVectors(width)
    vectors.add_vectors(words, np.random.default_rng(seed).normal(size=(len(words), width)).astype(np.float32))
    return vectors


@pytest.mark.parametrize("kind", ["text", "binary", "glove"])
def test_vectors_are_those_that_gensim_wrote(tmp_path, kind):
    theirs, path = keyed(), tmp_path / "v.vec"
    theirs.save_word2vec_format(str(path), binary=kind == "binary", write_header=kind != "glove")
    mine = read_vectors(path, ["hea", "homed", "naïve", "absent"])
    assert set(mine) == {"hea", "homed", "naïve"}
    for word, vector in mine.items():
        np.testing.assert_allclose(vector, theirs[word], rtol=1e-5)


def test_pickles_are_refused_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "v.kv").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "v.txt").write_bytes(pickle.dumps(Bomb()))
    keyed().save(str(tmp_path / "own.model"))
    for name in ("v.kv", "v.txt", "own.model"):
        with pytest.raises(BadVectors, match=r"is a pickle.*save_word2vec_format") as caught:
            read_vectors(tmp_path / name, ["hea"])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello\n", "does not begin like"),
        (b"2 3\nhea 1 2 3\nheb 1 2\n", "'heb' does not have 3"),
        (b"2 3\nhea 1 2 nan\n", "finite"),
        (b"2 4\nhea \x01\x02\xff", "ends at vector 1 of 2"),
    ],
)
def test_damaged_vectors_are_one_line(tmp_path, content, says):
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(BadVectors, match=says):
        read_vectors(tmp_path / "v.bin", ["hea", "heb"])


def test_the_effect_of_given_vectors_is_numpys():
    theirs = keyed()
    vectors = {word: theirs[word] for side in SIDES for word in side}
    unit = {word: vector / np.linalg.norm(vector) for word, vector in vectors.items()}
    s = {
        w: np.mean([unit[w] @ unit[a] for a in SIDES[2]]) - np.mean([unit[w] @ unit[b] for b in SIDES[3]]) for w in unit
    }
    x, y = ([s[word] for word in side] for side in SIDES[:2])
    assert given_effect(vectors, TOY) == pytest.approx((np.mean(x) - np.mean(y)) / np.std(x + y), rel=1e-5)
    with pytest.raises(BadVectors, match="3 of the 4 words of X"):
        given_effect({word: vector for word, vector in vectors.items() if word != "hea"}, TOY)


def test_lists_are_read_and_bad_ones_refused(tmp_path):
    path = tmp_path / "gender.yml"
    path.write_text("x: he him his man\ny: [she, her, hers, woman]\na: [A, B, C, D]\nb: [e, f, g, h]\n")
    assert read_lists(path).a == ("a", "b", "c", "d")
    twice = "x: [q, b, c, d]\ny: [q, f, g, h]\na: [i, j, k, l]\nb: [m, n, o, p]"
    bad = {
        "x: [a]": "holds x",
        "[": "not YAML",
        "x: [a, b, c]\ny: b\na: c\nb: d": "x is not a list",
        twice: "every word",
    }
    for text, says in bad.items():
        path.write_text(text)
        with pytest.raises(BadVectors, match=says):
            read_lists(path)


def test_the_check_is_training_again_from_nothing(corpus):
    found = word_bias(corpus, TOY, share=0.1, draws=2, **SMALL)
    study = question_study(load(corpus), {"toy": TOY}, window=2, min_count=2, test_count=2, size=25)
    model = make_model(study, width=3, l2=0.02)
    assert ask_test(model, "toy").kind == "test"
    gone = [int(name.split()[1]) - 1 for name in found.table["id"].tail(found.removed)]
    objective = CorpusObjective(study.corpus, study.loss, width=3, l2=0.02).without(gone)
    after = abs(effects(fit(objective, model.best.x).params, study.tests)[0])
    assert found.check["amplifying"] == pytest.approx(after - abs(found.effect), abs=1e-6)
    assert found.check["amplifying"] < found.check["random"].low
    assert found.given is None
    assert found.table["words"].iloc[0]
    assert found.table["words"].iloc[100] == ""
    assert found.table["score"].is_monotonic_decreasing


def test_a_corpus_without_the_words_is_refused(tmp_path):
    (tmp_path / "c.txt").write_text("the and was\nthe was and\n" * 5)
    with pytest.raises(BadCorpus, match="have a vector"):
        word_bias(tmp_path / "c.txt", TOY, **SMALL)
