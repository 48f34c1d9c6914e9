"""TextLen: the authors' six files, byte for byte, and what length alone can do on them."""

import hashlib
import pickle

import numpy as np
import pytest

from clif_kit import datasets
from clif_kit.textlen import length_ceiling, rebuild


def available(name):
    """The data set's files, or the reason to skip."""
    try:
        return datasets.paths(name)
    except datasets.Missing as reason:
        pytest.skip(f"needs the data set {name}: {reason}")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_rebuilt_file_is_the_authors_file_byte_for_byte(split, prefix):
    files = available("textlen")
    available("conll2003")
    rows = rebuild(datasets.conll("dev" if split == "test" else "train"), split, prefix=prefix)
    stored = files[f"{'' if prefix else 'no_spur/'}synth_{split}.pkl"].read_bytes()
    assert hashlib.sha256(pickle.dumps(rows, protocol=3)).digest() == hashlib.sha256(stored).digest()


def test_the_test_sentences_are_not_of_the_corpus_test_file():
    """The paper's footnote says they are: not one starts a long sentence there."""
    available("textlen")
    available("conll2003")
    table = datasets.textlen("test", prefix=False)
    starts = {
        where: {tuple(s[:k]) for s in datasets.conll(where) if len(s) >= 30 for k in range(31)}
        for where in ("dev", "test")
    }
    found = {where: sum(tuple(tokens) in known for tokens in table["tokens"]) for where, known in starts.items()}
    assert found == {"dev": 500, "test": 0}


def test_the_ceiling_of_the_real_files_is_the_one_of_a_loop():
    available("textlen")
    table = datasets.textlen("test", prefix=False)
    lengths, labels = [len(tokens) for tokens in table["tokens"]], table["label"].cat.codes.to_numpy()
    threshold, share = length_ceiling(lengths, labels)
    by_hand = {t: np.mean([(n >= t) == y for n, y in zip(lengths, labels, strict=True)]) for t in range(1, 32)}
    assert share == pytest.approx(max(by_hand.values()))
    assert by_hand[threshold] == pytest.approx(share)
    assert share == pytest.approx(0.892)


def test_any_sentences_do_and_the_shares_are_exact():
    sentences = [[f"w{i}_{k}" for k in range(40)] for i in range(600)]
    rows = rebuild(sentences, "test")
    assert len(rows) == 500
    for label in (0, 1):
        own = [row for row in rows if row[1] == label]
        assert sum(row[2][1] == label for row in own) == 125
        assert np.mean([row[2][0] for row in own]) == pytest.approx(14.5 + 10 * label, abs=0.7)  # int() cuts off a half
    for tokens, _, (drawn, spur) in rows:
        assert tokens[:2] == [("Negative", "Positive")[spur], "."]
        assert len(tokens) == 2 + min(drawn, 30)
        place = int(tokens[2].split("_")[0][1:])
        assert tokens[2:] == sentences[place][: len(tokens) - 2]
    assert len({tokens[2] for tokens, *_ in rows}) == 500  # no sentence twice


def test_too_few_sentences_and_unequal_lists_are_told():
    with pytest.raises(ValueError, match="2 sentences have 30 tokens or more; dev needs 480"):
        rebuild([["a"] * 30, ["b"] * 31, ["c"] * 29], "dev")
    with pytest.raises(ValueError, match="2 lengths and 1 labels"):
        length_ceiling([3, 4], [1])
