"""Readers. Oracles: published counts, the lists of the papers, other readers of the same bytes, and hostile files."""

import collections
import datetime
import gzip
import os
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from gensim.models import KeyedVectors
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from transformers import AutoConfig

from clif_kit import datasets, wikipedia
from clif_kit.datasets import BadCSV, Corrupt, Missing, UnsafePickle, mask, read_csv
from clif_kit.download import provenance
from clif_kit.formats import load_pickle, read_idx
from clif_kit.registry import ROOT


@pytest.fixture(autouse=True)
def _from_the_mirror(tmp_path_factory, monkeypatch):
    """Read a copy of the development mirror where there is one, else what this machine has fetched."""
    if (ROOT / "../shared/data").is_dir():
        monkeypatch.setenv("CLIF_DATA_MIRROR", "../shared/data")
        monkeypatch.setenv("CLIF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))


def real(read, *args, **kwargs):
    """What a reader of the real tier returns; skips with the reader's own line where the set is not here."""
    try:
        return read(*args, **kwargs)
    except Missing as error:
        pytest.skip(str(error))


def counts(values) -> dict:
    return dict(collections.Counter(values))


# ---- embedded


def test_digits_are_those_of_scikit_learn_and_the_hash_is_the_registrys():
    found, known = datasets.digits(), load_digits()
    np.testing.assert_array_equal(found.x.reshape(1797, 64) * 16, known.data)
    np.testing.assert_array_equal(found.y, known.target)
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)
    assert (found.x.min(), found.x.max()) == (0, 1)
    assert torch.as_tensor(found.x, dtype=torch.float64).shape == (1797, 8, 8)
    sha256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    assert provenance("digits") == {"tier": "embedded", "sha256": sha256}


@pytest.fixture(scope="module")
def plain_articles():
    """Title -> text without markup; the dump is parsed once."""
    return dict(wikipedia.articles(next(iter(datasets.paths("wikipedia").values()))))


def test_wikipedia_has_106_articles_and_480_thousand_words(plain_articles):
    assert len(plain_articles) == 106
    assert sum(len(text.split()) for text in plain_articles.values()) == 480_399
    assert {"Anarchism", "Abraham Lincoln", "Algorithm", "Apollo 11", "Albert Einstein"} <= set(plain_articles)
    assert not any(":" in title for title in plain_articles)  # no page about Wikipedia itself


def test_wikipedia_sentences_are_lower_case_words_without_markup(plain_articles):
    sentences = datasets.wikipedia_sentences()
    assert list(dict.fromkeys(title for title, _ in sentences)) == list(plain_articles)
    words = collections.Counter(word for _, sentence in sentences for word in sentence)
    assert 20_000 < len(sentences) < 23_000
    assert 410_000 < words.total() < 453_000  # 453 thousand words are all that gensim finds
    assert all(word.islower() or not word.isascii() for word in words)
    assert all(re.fullmatch(r"[^\W\d_]{2,15}", word) for word in words if word.isascii())
    left_over = {"http", "https", "www", "nbsp", "ref", "br", "colspan", "rowspan", "bgcolor", "wikitable", "jpg", "px"}
    assert {word: words[word] for word in left_over if words[word] > 2} == {}
    lengths = np.array([len(sentence) for _, sentence in sentences])
    assert lengths.min() == 4
    assert 15 <= np.median(lengths) <= 22
    assert lengths.max() < 150
    for title, sentence in sentences[::500]:  # every word stands in its article
        assert set(sentence) <= set(wikipedia.wikicorpus.tokenize(plain_articles[title]))


def test_wikipedia_has_the_words_of_the_weat_lists():
    """Words of SPEC's career and math lists, most of which a corpus for WEAT must have."""
    words = {word for _, sentence in datasets.wikipedia_sentences() for word in sentence}
    career = {"john", "paul", "executive", "professional", "business", "home", "family", "children", "marriage"}
    maths = {"male", "man", "he", "his", "female", "woman", "she", "algebra", "geometry", "poetry", "art", "literature"}
    assert career | maths <= words


def test_the_wikipedia_cache_is_read_again_and_rebuilt_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIF_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(wikipedia, "_sentences", lambda _: [("T", ["a", "b"])])
    assert wikipedia.wikipedia_sentences() == [("T", ["a", "b"])]
    (cache,) = (tmp_path / "wikipedia").iterdir()
    monkeypatch.setattr(wikipedia, "_sentences", lambda _: [("U", ["c", "d"])])
    assert wikipedia.wikipedia_sentences() == [("T", ["a", "b"])]
    for damage in (cache.read_text().replace("a b", "a x"), cache.read_text()[:-5], "[]", "", "{}"):
        cache.write_text(damage)
        assert wikipedia.wikipedia_sentences() == [("U", ["c", "d"])]
    assert [p.name for p in (tmp_path / "wikipedia").iterdir()] == [cache.name]


def test_rated_pairs_and_analogies_are_those_that_gensim_evaluates():
    assert len(datasets.word_pairs("wordsim353")) == 353
    assert len(datasets.word_pairs("simlex999")) == 999
    assert datasets.word_pairs().iloc[0].tolist() == ["love", "sex", 6.77]
    questions = datasets.analogies()
    assert (len(questions), sum(map(len, questions.values()))) == (14, 19_544)
    assert {len(q) for rows in questions.values() for q in rows} == {4}
    words = sorted({w for w in datasets.word_pairs()["first"]} | {w for w in datasets.word_pairs()["second"]})
    vectors = KeyedVectors(4)
    vectors.add_vectors(words, np.random.default_rng(0).normal(size=(len(words), 4)))
    *_, unknown = vectors.evaluate_word_pairs(str(datasets.paths("wordsim353")["test/test_data/wordsim353.tsv"]))
    assert unknown == 0  # gensim reads the same words from the same file


def test_minilm_is_a_folder_that_transformers_reads():
    config = AutoConfig.from_pretrained(datasets.minilm(), local_files_only=True)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)


# ---- real


def test_mnist_has_the_published_class_counts():
    found = real(datasets.mnist_test)
    assert np.bincount(found.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert found.x.shape == (10_000, 28, 28)
    assert (found.x.dtype, found.x.min(), found.x.max()) == (np.float32, 0, 1)
    assert found.x.mean() == pytest.approx(0.1325, abs=1e-4)  # the test images' mean, as commonly given
    assert found.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the first digits, as every tutorial shows them


LABELLED = {
    "ag_news_test": {"World": 1900, "Sports": 1900, "Business": 1900, "Sci/Tech": 1900},
    "davidson": {"hate": 1430, "offensive": 19_190, "neither": 4163},
    "jigsaw_sample": {"clean": 4350, "toxic": 650},
    "wiki_biased": {"neutral": 10_103, "biased": 1843},
}


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_texts_have_the_published_counts(name):
    frame = real(getattr(datasets, name))
    assert list(frame.columns[:3]) == ["id", "text", "label"]
    assert counts(frame["label"]) == LABELLED[name]
    assert frame["label"].cat.categories.tolist() == list(LABELLED[name])
    assert frame["id"].is_unique
    assert not frame.isna().any(axis=None)
    assert frame["text"].str.strip().ne("").all()


def test_ag_news_classes_are_in_the_published_order():
    frame = real(datasets.ag_news_test)
    classes = datasets.paths("ag_news")["classes.txt"].read_text().split("\n")[:4]
    assert frame["label"].cat.categories.tolist() == classes
    assert frame["label"].iloc[0] == "Business"
    assert frame["title"].iloc[0] == "Fears for T N pension after talks"


def test_sick_and_nli_and_wnc_have_the_published_sizes():
    assert [len(real(datasets.sick, s)) for s in ("train", "dev", "test")] == [4500, 500, 4927]
    train = datasets.sick("train")
    assert counts(train["label"]) == {"neutral": 2536, "entailment": 1299, "contradiction": 665}
    assert train["relatedness"].between(1, 5).all()
    for source in ("mnli_matched", "mnli_mismatched", "snli"):
        frame = real(datasets.nli, source)
        assert len(frame) == 1000
        assert not frame.isna().any(axis=None)
    assert [len(real(datasets.wnc_pairs, s)) for s in ("train", "test")] == [1000, 100]
    pairs = datasets.wnc_pairs()
    sets = [(set(a.split()), set(b.split())) for a, b in zip(pairs["biased"], pairs["neutral"], strict=True)]
    shared = [len(a & b) / len(b) for a, b in sets]
    assert np.median(shared) > 0.8  # aligned: a neutral sentence keeps most words of its biased one


def test_conll_has_the_published_numbers_of_sentences_and_tokens():
    sizes = [real(datasets.conll, s) for s in ("train", "dev", "test")]
    assert [len(s) for s in sizes] == [14_041, 3250, 3453]
    assert [sum(map(len, s)) for s in sizes] == [203_621, 51_362, 46_435]
    assert sizes[0][0] == ["EU", "rejects", "German", "call", "to", "boycott", "British", "lamb", "."]


def test_textlen_has_the_papers_groups_and_comes_from_conll():
    groups = {"train": (675, 75, 75, 675), "dev": (120,) * 4, "test": (125,) * 4}
    for split, sizes in groups.items():
        frame = real(datasets.textlen, split)
        cells = pd.crosstab(frame["label"].cat.codes, frame["spurious"])
        assert tuple(cells.to_numpy().ravel().tolist()) == sizes
        assert frame["tokens"].str[0].eq(frame["spurious"].map({0: "Negative", 1: "Positive"})).all()
        bare = datasets.textlen(split, prefix=False)
        assert (bare["tokens"] == frame["tokens"].str[2:]).all()
        assert (bare["tokens"].str.len() == bare["drawn"].clip(upper=30)).mean() > 0.99
    known = {tuple(s[:30]) for s in real(datasets.conll)}
    starts = {k[:5] for k in known}
    bare = datasets.textlen("train", prefix=False)
    assert np.mean([tuple(t[:5]) in starts for t in bare["tokens"] if len(t) >= 5]) == 1


def test_msgs_has_the_papers_groups_and_its_features_are_what_they_say():
    groups = {"train": (2517, 6, 9, 2468), "dev": (5000, 2500, 2500, 5000), "test": (5000, 2500, 2500, 5000)}
    for split, sizes in groups.items():
        frame = real(datasets.msgs, split)
        cells = pd.crosstab(frame["linguistic"], frame["surface"]).to_numpy().ravel().tolist()
        assert tuple(cells) == sizes
        assert (frame["label"].cat.codes == frame["linguistic"]).all()


def test_synopses_have_the_counted_stories_and_words():
    scifi = real(datasets.scifi_synopses)
    assert len(scifi) == 3180
    assert scifi["source"].str.startswith("tv").sum() == 1576
    assert scifi["text"].str.split().str.len().sum() == pytest.approx(134_800, abs=50)
    assert len(datasets.scifi_synopses(all_genres=True)) == 4357
    assert scifi["id"].is_unique
    text = " ".join(scifi["text"])
    assert text.count("Dooku") <= 2
    assert min(text.count(name) for name in ("Kirk", "Spock", "Picard", "Doctor")) >= 40
    assert "::" not in text


def test_word_lists_are_complete():
    lists = real(datasets.word_lists)
    sizes = {"definitional_pairs": 10, "equalize_pairs": 52, "gender_specific_seed": 218, "e_race": 5, "r_race": 4}
    assert {name: len(lists[name]) for name in sizes} == sizes
    assert ["she", "he"] in lists["definitional_pairs"]


# ---- what is refused


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('os').environ.setdefault('CLIF_PWNED', '1')",))


@pytest.mark.parametrize(
    "value", [[Evil()], [datetime.date(2000, 1, 1)], [np.zeros(2)], [collections.OrderedDict(a=1)]]
)
def test_a_pickle_that_asks_for_any_class_or_function_is_refused(tmp_path, value, monkeypatch):
    monkeypatch.delenv("CLIF_PWNED", raising=False)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps([value], protocol))
        with pytest.raises(UnsafePickle, match=r"refused: this pickle asks for \S+; only plain values") as error:
            load_pickle(path)
        assert "\n" not in str(error.value)
    assert "CLIF_PWNED" not in os.environ


@pytest.mark.parametrize("raw", [b"", b"no pickle", b"\x80\x04", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02\x82\x01."])
def test_what_is_no_plain_pickle_is_refused(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(UnsafePickle):
        load_pickle(tmp_path / "x")


def test_plain_pickles_are_read_and_only_lists_of_some_size(tmp_path, monkeypatch):
    path = tmp_path / "x"
    value = [(["a", "b"], 1, [2, 0]), {"k": 0.5, "n": None, "t": True}]
    path.write_bytes(pickle.dumps(value))
    assert load_pickle(path) == value
    monkeypatch.setattr("clif_kit.formats.MAX_PICKLE", 8)
    with pytest.raises(UnsafePickle, match="larger than 8 bytes"):
        load_pickle(path)
    monkeypatch.undo()
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafePickle, match="holds a dict"):
        load_pickle(path)


def test_idx_files_are_read_and_checked(tmp_path):
    path = tmp_path / "x.gz"
    header, values = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big"), bytes(range(6))
    path.write_bytes(gzip.compress(header + values))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    huge = b"\x00\x00\x08\x03" + b"\xff" * 12
    damaged = [header + values[:-1], header + values + b"x", b"", header[:6], huge, b"\x00\x00\x0d\x01" + bytes(8)]
    for raw in [gzip.compress(d) for d in damaged] + [b"no gzip", gzip.compress(header + values)[:-9]]:
        path.write_bytes(raw)
        with pytest.raises(Corrupt) as error:
            read_idx(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nosuch", "mnli"])
def test_load_lists_what_it_can_read(name):
    with pytest.raises(KeyError, match="digits"):
        datasets.load(name)


def test_every_embedded_and_real_set_has_a_reader():
    small = {name for name, data in datasets.registry().items() if data.tier != "paper"}
    assert small <= set(datasets.READERS) <= set(datasets.registry())


# ---- mask


def test_mask_hides_every_word_that_is_not_common():
    assert mask("You are a total PUMPKIN!!") == "You are a t**** P******!!"
    assert mask("RT @some_one: see http://t.co/a?b=c and www.x.org now") == "R* @user: see <link> and <link> now"
    assert mask("vile words", keep={"words"}) == "v*** words"


@given(st.text())
def test_mask_shows_at_most_the_first_letter_of_a_word(text):
    shown = set(re.findall(r"\w{2,}", mask(text).lower())) - {"user", "link"}
    assert shown <= datasets.ENGLISH_STOP_WORDS


# ---- the CSV contract


def write(tmp_path, content: str | bytes, encoding: str = "utf-8"):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


PLAIN = "text,label\ngood film,pos\nbad film,neg\n"


def test_a_plain_csv_gets_content_ids(tmp_path):
    frame = read_csv(write(tmp_path, PLAIN))
    assert list(frame.columns) == ["id", "text", "label"]
    assert frame["text"].tolist() == ["good film", "bad film"]
    assert frame["label"].cat.categories.tolist() == ["neg", "pos"]
    assert frame["label"].cat.codes.tolist() == [1, 0]
    assert frame.attrs["duplicates"] == 0
    again = read_csv(write(tmp_path, "text,label\nbad film,neg\nnew,neg\ngood film,pos\n"))
    assert again["id"].tolist()[::2] == frame["id"].tolist()[::-1]  # an id follows its row's content


@pytest.mark.parametrize(
    "content",
    ["\ufeff" + PLAIN, PLAIN.replace("\n", "\r\n"), PLAIN.replace("\n", "\r"), PLAIN + "\n\n", PLAIN.rstrip()],
    ids=["byte-order mark", "Windows", "old Mac", "blank lines", "no last line end"],
)
def test_line_ends_and_marks_do_not_matter(tmp_path, content):
    expected = read_csv(write(tmp_path, PLAIN))
    pd.testing.assert_frame_equal(read_csv(write(tmp_path, content)), expected)


def test_quoted_line_breaks_commas_quotes_and_other_columns_survive(tmp_path):
    content = 'id,label,words,year\r\nx1, a ,"one,\r\ntwo ""three""",1999\r\nx2,b,NA,\r\n'
    frame = read_csv(write(tmp_path, content), text="words")
    assert frame.to_dict("records") == [
        {"id": "x1", "text": 'one,\r\ntwo "three"', "label": "a", "year": "1999"},
        {"id": "x2", "text": "NA", "label": "b", "year": ""},
    ]


def test_repeated_texts_are_reported_and_their_ids_differ(tmp_path):
    path = write(tmp_path, "text,label\nsame,a\nother,b\nsame,a\nsame,b\n")
    with pytest.warns(UserWarning, match=r"2 texts occur again \(rows 3, 4\)"):
        frame = read_csv(path)
    assert frame.attrs["duplicates"] == 2
    assert frame["id"].is_unique
    assert frame["id"][2] == frame["id"][0] + "-2"


REFUSED = {
    "utf-16": (PLAIN.encode("utf-16"), "is UTF-16; save it as CSV in UTF-8"),
    "utf-16 without mark": (PLAIN.encode("utf-16-le"), "holds zero bytes"),
    "latin-1": ("text,label\ncafé,a\nb,b\n".encode("latin-1"), r"not UTF-8 \(byte 14\)"),
    "empty": (b"", "is empty"),
    "header only": (b"text,label\n", "no rows"),
    "no text column": (b"body,label\na,b\n", "no column 'text'; the columns are 'body', 'label'"),
    "no label column": (b"text,class\na,b\n", "no column 'label'"),
    "semicolons": (b"text;label\na;b\n", "the columns are 'text;label'"),
    "empty texts": (b"text,label\na,x\n ,y\n,y\n", "rows 2, 3: no text"),
    "missing label": (b"text,label\na,x\nb,\n", "row 2: no label"),
    "one class": (b"text,label\na,x\nb,x\n", "all rows have the label 'x'"),
    "short row": (b"text,label\na,x\nb\n", "row 2: not 2 fields"),
    "long row": (b"text,label\na,x\nb,y,z\n", "row 2: not 2 fields"),
    "open quote": (b'text,label\n"a,x\nb,y\n', "not CSV"),
    "same id": (b"id,text,label\n1,a,x\n1,b,y\n", "row 2: an id that an earlier row has"),
    "empty id": (b"id,text,label\n1,a,x\n,b,y\n", "row 2: no id"),
    "same column": (b"text,label,text\na,x,b\n", "a column name occurs twice"),
    "many": (b"text,label\n" + b",x\n" * 9, "rows 1, 2, 3, 4, 5 and 4 more: no text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_csv_that_breaks_the_contract_is_named_in_one_line(tmp_path, case):
    raw, expected = REFUSED[case]
    path = write(tmp_path, raw)
    with pytest.raises(BadCSV, match=expected) as error:
        read_csv(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


cell = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(cell, cell), min_size=2), st.booleans())
def test_what_pandas_writes_comes_back(tmp_path_factory, rows, mark):
    frame = pd.DataFrame(rows, columns=["text", "label"])
    path = tmp_path_factory.getbasetemp() / "round.csv"
    frame.to_csv(path, index=False, encoding="utf-8-sig" if mark else "utf-8", lineterminator="\r\n")
    if frame["label"].str.strip().nunique() < 2:
        with pytest.raises(BadCSV, match="all rows have the label"):
            read_csv(path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_csv(path)
    assert found["text"].tolist() == frame["text"].tolist()
    assert found["label"].tolist() == frame["label"].str.strip().tolist()
    assert found["id"].is_unique


def test_load_reads_a_csv_by_its_path(tmp_path):
    path = write(tmp_path, PLAIN)
    pd.testing.assert_frame_equal(datasets.load(str(path)), read_csv(path))
