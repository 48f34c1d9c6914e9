"""Corpora. Oracles: files and data sets written out by hand, and counts by regular expressions over the raw texts."""

import collections
import re

import numpy as np
import pandas as pd
import pytest

from clif_kit import corpora, datasets, wikipedia
from clif_kit.corpora import BadCorpus, Sentences, from_csv, from_text, load, wnc_full
from clif_kit.csv_contract import BadCSV
from clif_kit.datasets import Missing
from clif_kit.registry import ROOT


@pytest.fixture(autouse=True)
def _from_the_mirror(tmp_path_factory, monkeypatch):
    """Read a copy of the development mirror where there is one, else what this machine has fetched."""
    if (ROOT / "../shared/data").is_dir():
        monkeypatch.setenv("CLIF_DATA_MIRROR", "../shared/data")
        monkeypatch.setenv("CLIF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))


def real(read, *args, **kwargs):
    """What a reader of the real tier returns; skips with the reader's own line where a set is not here."""
    try:
        return read(*args, **kwargs)
    except Missing as error:
        pytest.skip(str(error))


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def plain_words(text: str) -> list[str]:
    """Another way to the same words: runs of letters, lower case, of 2 to 15."""
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if 2 <= len(word) <= 15]


# ---- the list itself

FOUR = Sentences(
    [["red", "ship"], ["red", "red", "sky"], ["old", "fools"], ["an", "ogre"]],
    ["s", "s", "jigsaw_5k", "davidson"],
    ["scifi", "scifi", "jigsaw", "davidson"],
    ["One", "Two", "", ""],
    dropped=3,
    repeated=1,
)


def test_counts_are_those_of_a_loop():
    expected = {}
    for sentence in FOUR.words:
        for word in sentence:
            expected[word] = expected.get(word, 0) + 1
    assert FOUR.counts() == expected == {"red": 3, "ship": 1, "sky": 1, "old": 1, "fools": 1, "an": 1, "ogre": 1}


def test_a_selection_keeps_every_column_in_step_and_in_the_asked_order():
    found = FOUR.select([2, 0])
    assert (found.words, found.source) == ([["old", "fools"], ["red", "ship"]], ["jigsaw_5k", "s"])
    assert (found.origin, found.title) == (["jigsaw", "scifi"], ["", "One"])
    assert (found.dropped, found.repeated) == (0, 0)
    assert FOUR.select(np.array([True, False, True, False])) == FOUR.select([0, 2])  # a mask is no list of 0 and 1
    assert FOUR.select(np.array([1, 0, 1])).source == FOUR.select((1, 0, 1)).source == ["s", "s", "s"]


def test_a_wrong_selection_is_refused():
    with pytest.raises(ValueError, match="a mask for 4 sentences has 2 values"):
        FOUR.select([True, False])
    with pytest.raises(IndexError):
        FOUR.select([4])
    with pytest.raises(BadCorpus, match="empty corpus"):
        FOUR.select([])


def test_a_sum_has_both_and_adds_what_was_left_out():
    found = FOUR + FOUR.select([1])
    assert len(found) == 5
    assert found.words[:4] == FOUR.words
    assert (found.title[4], found.dropped, found.repeated) == ("Two", 3, 1)
    assert (FOUR + FOUR).dropped == 6
    assert (FOUR + FOUR).repeated == 2


def test_tweets_and_comments_are_shown_masked():
    assert [FOUR.text(i) for i in range(4)] == ["red ship", "red red sky", "o** f****", "an o***"]
    assert FOUR.text(2, keep={"old"}) == "old f****"


def test_no_sentences_and_lists_out_of_step_are_refused():
    with pytest.raises(BadCorpus, match="an empty corpus"):
        Sentences([], [], [])
    with pytest.raises(BadCorpus, match=r"equally long, got lengths \[1, 2, 1, 1\]"):
        Sentences([["a", "b"]], ["x", "y"], ["z"])


# ---- files

PLAIN = "The Café opens at 5.\r\n\r\nHi\r\nAn x-ray of R2D2, Über_all!\r\n12 34\r\nDr. No left. He won."


@pytest.mark.parametrize("raw", [PLAIN.encode(), PLAIN.encode("utf-8-sig"), PLAIN.replace("\r", "").encode()])
def test_a_text_file_has_a_sentence_a_line(tmp_path, raw):
    path = tmp_path / "mine.txt"
    path.write_bytes(raw)
    found = from_text(path)
    assert found.words == [
        ["the", "café", "opens", "at"],
        ["an", "ray", "of", "über", "all"],
        ["dr", "no", "left", "he", "won"],
    ]
    assert found.title == ["line 1", "line 4", "line 6"]
    assert (set(found.source), set(found.origin)) == ({"mine.txt"}, {"text"})
    assert found.dropped == 2  # "Hi" and the numbers; a blank line is no sentence
    assert load(path) == load(str(path)) == found


NOT_TEXT = {
    "latin-1": ("good line\nnot the café\n".encode("latin-1"), r"not UTF-8 \(byte 21, line 2\); save it as plain text"),
    "utf-16": ("one two\n".encode("utf-16"), "is UTF-16; save it as plain text in UTF-8"),
    "zero bytes": (b"one two\nthree\x00four\n", "zero bytes"),
    "nothing": (b"", "an empty corpus"),
    "blank": (b" \n\n", "an empty corpus"),
    "one word a line": (b"one\ntwo\n3 4\n", "an empty corpus: no sentence has two words"),
}


@pytest.mark.parametrize("case", NOT_TEXT)
def test_a_text_file_that_is_none_is_named_in_one_line(tmp_path, case):
    raw, expected = NOT_TEXT[case]
    path = tmp_path / "mine.txt"
    path.write_bytes(raw)
    with pytest.raises(BadCorpus, match=expected) as error:
        from_text(path)
    assert one_line(error).startswith(f"{path}: ")


def test_a_csv_is_cut_into_sentences_with_label_and_id(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('id,text,label\nx1,"Ships fly. Why? Nobody knew it.",trek\nx2,Hi there you,who\n', encoding="utf-8")
    found = from_csv(path)
    assert found.words == [["ships", "fly"], ["nobody", "knew", "it"], ["hi", "there", "you"]]
    assert (found.source, found.title) == (["trek", "trek", "who"], ["x1", "x1", "x2"])
    assert (set(found.origin), found.dropped) == ({"csv"}, 1)
    assert load(str(path)) == found


def test_a_csv_that_breaks_the_contract_or_has_no_words_is_named_in_one_line(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("text,label\nthe café,a\nb c,b\n".encode("latin-1"))
    with pytest.raises(BadCSV, match=r"mine\.csv: is not UTF-8 \(byte 18\); save it as CSV in UTF-8") as error:
        from_csv(path)
    one_line(error)
    path.write_text("text,label\nHi,a\n1 2 3,b\n", encoding="utf-8")
    with pytest.raises(BadCorpus, match=r"mine\.csv: an empty corpus") as error:
        from_csv(path)
    one_line(error)


WNC = (
    "10\tthe pal ##az ##zo was a b ##rilliant work .\tthe pal ##az ##zo was a work .\tThe raw\tThe raw\tDET\tdet\n"
    "11\tshe ran\tran\tr\tr\n"
    "\n"
    "12\the is kind # # and mean\the is kind\tr\tr\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_full_neutrality_corpus_is_read_in_step_with_whole_words(tmp_path, encoding):
    path = tmp_path / "biased.full"
    path.write_text(WNC, encoding=encoding)
    pre, post = wnc_full(path)
    assert pre.words == [["the", "palazzo", "was", "brilliant", "work"], ["he", "is", "kind", "and", "mean"]]
    assert post.words == [["the", "palazzo", "was", "work"], ["he", "is", "kind"]]
    assert pre.title == post.title == ["10", "12"]
    assert (pre.dropped, post.dropped) == (1, 1)
    assert {*pre.source, *pre.origin, *post.source, *post.origin} == {"wnc_biased", "wnc_neutral", "wnc"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (WNC.encode() + b"13\tonly this\n", "line 5 has 2 columns between tabs, need 5 or 7"),
        (WNC.encode() + b"13\tcaf\xe9 bar\ta b\tr\tr\n", rf"not UTF-8 \(byte {len(WNC) + 6}, line 5\)"),
        (b"1\ta\tb\tr\tr\n", "no pair has two words on both sides"),
        (b"", "no pair has two words on both sides"),
    ],
)
def test_a_bad_row_of_the_neutrality_corpus_is_named_with_its_line(tmp_path, raw, expected):
    path = tmp_path / "biased.full"
    path.write_bytes(raw)
    with pytest.raises(BadCorpus, match=expected) as error:
        wnc_full(path)
    assert one_line(error).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["", "Biased", "wikpedia", "mine.tsv"])
def test_an_unknown_corpus_lists_the_choices(name):
    with pytest.raises(KeyError, match=r"wikipedia, scifi, biased, neutral, or a path in \.csv or \.txt") as error:
        load(name)
    one_line(error)


def test_weat_corpus_takes_two_words_only():
    with pytest.raises(ValueError, match="'biased' or 'neutral', got 'wikipedia'"):
        corpora.weat_corpus("wikipedia")


# ---- the sets, written out by hand


def texts(*rows, **more):
    return pd.DataFrame({"text": rows, **more})


def pairs(*rows):
    return pd.DataFrame(rows, columns=["premise", "hypothesis"])


@pytest.fixture
def toy(monkeypatch):
    """Small stand-ins for every reader."""
    spam = " ".join(["rot", "you"] * 11)
    mixed = " ".join(f"w{chr(97 + k % 6)} so" for k in range(11)) + " red hot"
    stand_ins = {
        "ag_news_test": texts("Oil rose &lt;br&gt;5 pct&lt;/br&gt; #36;9. It fell http://a.b/c today", title=["Oil"]),
        "jigsaw_sample": texts("you are it! go home. a cat sat", spam, "no " * 9),
        "davidson": texts("RT @Some_One: Red sky &amp; sea", "RT @other: red sky sea", "rt red sky sea", mixed),
        "wnc_pairs": pd.DataFrame({"id": ["p", "q"], "biased": ["bad film .", "so bad"], "neutral": ["film one", "."]}),
        "wiki_biased": texts(
            *("He is great.", "She rules all.", "Aa one.", "Bb two.", "aa  ONE", "Cc three.", "Dd four.", "cc three!"),
            source=["biased"] * 2 + ["neutral_a"] * 3 + ["neutral_b"] * 3,
        ),
    }
    for name, frame in stand_ins.items():
        monkeypatch.setattr(datasets, name, lambda frame=frame: frame)
    stories = {False: [("Kirk flew. Spock saw it.", "tv-trek", "Pilot")]}
    stories[True] = [*stories[False], ("A ghost came", "film-horror", "Boo")]
    columns = ["text", "source", "title"]
    monkeypatch.setattr(
        datasets, "scifi_synopses", lambda all_genres=False: pd.DataFrame(stories[all_genres], columns=columns)
    )
    monkeypatch.setattr(datasets, "conll", lambda split: [["EU", "rejects", split, "."], ["1996-08-22"]])
    monkeypatch.setattr(datasets, "nli", lambda name: pairs(("A man ran .", f"Go {name[:4]}")))
    monkeypatch.setattr(datasets, "sick", lambda split: pairs(("A man ran", split), ("No one sang", "a CAT sat")))
    monkeypatch.setattr(corpora, "wikipedia_sentences", lambda: [("Art", ["art", "is", "long"]), ("B", ["he", "is"])])


BACKGROUND = [  # origin, source, title, words
    ("wikipedia", "Art", "Art", "art is long"),
    ("wikipedia", "B", "B", "he is"),
    ("scifi", "tv-trek", "Pilot", "kirk flew"),
    ("scifi", "tv-trek", "Pilot", "spock saw it"),
    ("scifi", "film-horror", "Boo", "ghost came"),
    ("ag_news", "ag_news", "Oil", "oil rose pct"),
    ("ag_news", "ag_news", "Oil", "it fell today"),
    ("jigsaw", "jigsaw_5k", "", "you are it"),
    ("jigsaw", "jigsaw_5k", "", "go home"),
    ("jigsaw", "jigsaw_5k", "", "cat sat"),  # the long comment that repeats two words is dropped
    ("jigsaw", "jigsaw_5k", "", "no no no no no no no no no"),
    ("davidson", "davidson", "", "rt red sky sea"),  # and twice more
    ("davidson", "davidson", "", "wa so wb so wc so wd so we so wf so wa so wb so wc so wd so we so red hot"),
    ("conll", "conll2003", "", "eu rejects train"),  # each split has a date, dropped
    ("conll", "conll2003", "", "eu rejects dev"),
    ("conll", "conll2003", "", "eu rejects test"),
    ("nli", "mnli_matched", "", "man ran"),  # and in two more sets of three, and in three splits
    ("nli", "mnli_matched", "", "go mnli"),  # and in mismatched
    ("nli", "snli", "", "go snli"),
    ("nli", "sick", "", "no one sang"),  # and in two more splits; "cat sat" three times; the split alone is dropped
]
NEUTRAL = {"aa one": "neutral_a", "bb two": "neutral_a", "cc three": "neutral_b", "dd four": "neutral_b"}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("seed", range(6))
def test_the_sets_are_what_one_writes_down_by_hand(seed):
    found = corpora.neutral(seed)
    drawn = [" ".join(words) for words in found.words[1:]]
    assert found.words[0] == ["film", "one"]
    assert len(set(drawn)) == 2
    assert drawn == [text for text in NEUTRAL if text in drawn]  # in the order of the files
    assert found.source == ["wnc_neutral", *(f"statements_{NEUTRAL[text]}" for text in drawn)]
    rest = [("statements", f"statements_{NEUTRAL[t]}", "", t) for t in NEUTRAL if t not in drawn]
    ground = corpora.background(seed)
    columns = (ground.origin, ground.source, ground.title, map(" ".join, ground.words))
    assert list(zip(*columns, strict=True)) == BACKGROUND + rest
    assert ground.dropped == 1 + 3 + 3  # the spam, three dates, three lone words of SICK
    assert ground.repeated == 2 + (2 + 1 + 3) + (2 + 3) + ("cc three" not in drawn) + ("aa one" not in drawn)


@pytest.mark.usefixtures("toy")
def test_d_b_and_d_n_follow_the_background_and_drop_the_same_pairs():
    ours = corpora.biased()
    assert [" ".join(words) for words in ours.words] == ["bad film", "he is great", "she rules all"]
    assert ours.source == ["wnc_biased", "statements_biased", "statements_biased"]
    assert (ours.title[0], ours.origin[:2]) == ("p", ["wnc", "statements"])
    assert (ours.dropped, corpora.neutral().dropped) == (1, 1)
    ground = corpora.background(1)
    assert ground.words != corpora.background(0).words  # so that a forgotten seed shows
    for kind, tail in (("biased", ours), ("neutral", corpora.neutral(1))):
        both = corpora.weat_corpus(kind, seed=1)
        assert both == load(kind, seed=1)
        assert both.words == ground.words + tail.words
        assert both.source == ground.source + tail.source
    assert [load("scifi").words, load("scifi").title] == [[["kirk", "flew"], ["spock", "saw", "it"]], ["Pilot"] * 2]


@pytest.mark.usefixtures("toy")
def test_every_neutral_statement_can_be_drawn_and_a_seed_draws_the_same_again():
    draws = [tuple(map(tuple, corpora.neutral(seed).words[1:])) for seed in range(30)]
    assert {" ".join(words) for draw in draws for words in draw} == set(NEUTRAL)
    assert len(set(draws)) > 3
    assert draws[7] == tuple(map(tuple, corpora.neutral(7).words[1:]))


# ---- the sets as they are


def test_wikipedia_keeps_titles_and_sentences():
    found, known = corpora.wikipedia(), wikipedia.wikipedia_sentences()
    assert list(zip(found.source, found.words, strict=True)) == known
    assert found.title == found.source
    assert len(set(found.source)) == 106
    assert min(map(len, found.words)) >= 2


def test_the_synopses_have_every_word_of_the_files_once():
    frame = real(datasets.scifi_synopses)
    found = corpora.scifi()
    by_story = collections.defaultdict(collections.Counter)
    for words, *story in zip(found.words, found.source, found.title, strict=True):
        by_story[tuple(story)].update(words)
    missing = 0
    for story, rows in frame.groupby(["source", "title"], sort=False):
        raw = collections.Counter(plain_words(" ".join(rows["text"])))
        assert by_story[story] <= raw
        missing += (raw - by_story[story]).total()
    assert missing <= found.dropped < 20  # a sentence that was dropped has at most one word
    kirk = sum(len(re.findall(r"(?<![a-z])kirk(?![a-z])", text.lower())) for text in frame["text"])
    assert found.counts()["kirk"] == kirk > 50
    assert "tv-startrek-tng" in found.source


@pytest.fixture(scope="module")
def both_corpora(tmp_path_factory):
    """D_B, D_N, the background, it with each of them, and the names of the sets that were read."""
    read = []
    with pytest.MonkeyPatch.context() as patch:
        if (ROOT / "../shared/data").is_dir():
            patch.setenv("CLIF_DATA_MIRROR", "../shared/data")
            patch.setenv("CLIF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))
        original, checked = datasets.paths, wikipedia.registry.checked
        patch.setattr(datasets, "paths", lambda name: read.append(name) or original(name))
        patch.setattr(wikipedia.registry, "checked", lambda name: read.append(name) or checked(name))
        first = real(load, "biased")
        tails = corpora.biased(), corpora.neutral()
        ground = first.select(range(len(first) - len(tails[0])))
        patch.setattr(corpora, "background", lambda _: ground)  # half a minute less; the stand-ins test that they agree
        return *tails, ground, first, load("neutral"), read


def test_d_b_and_d_n_have_equal_sizes_and_end_their_corpora(both_corpora):
    ours, theirs, ground, first, second, _ = both_corpora
    frame = datasets.wnc_pairs()
    usable = [min(len(plain_words(r.biased)), len(plain_words(r.neutral))) > 1 for r in frame.itertuples()]
    statements = collections.Counter(source.removeprefix("statements_") for source in ours.source)
    assert statements == {"wnc_biased": pytest.approx(sum(usable), abs=2), "biased": 1843}
    assert 970 < statements["wnc_biased"] <= 1000
    assert len(ours) == len(theirs)
    assert [a == b for a, b in zip(ours.title, theirs.title, strict=True)][: statements["wnc_biased"]].count(False) == 0
    n = len(ground)
    assert second.words[:n] == ground.words
    assert (first.words[n:], second.words[n:]) == (ours.words, theirs.words)


def test_neutral_statements_are_drawn_or_in_the_background_and_never_both(both_corpora):
    _, theirs, ground, *_ = both_corpora
    frame = datasets.wiki_biased()
    known = {tuple(plain_words(text)) for text in frame["text"][frame["label"] == "neutral"]}

    def neutral(corpus):
        rows = zip(corpus.words, corpus.origin, corpus.source, strict=True)
        return [tuple(w) for w, origin, source in rows if origin == "statements" and "neutral" in source]

    drawn, rest = neutral(theirs), neutral(ground)
    assert len(drawn) == len(set(drawn)) == 1843
    assert not set(drawn) & set(rest)
    assert len(set(drawn) | set(rest)) / len(known) > 0.999  # a few are also sentences of other sets
    assert len((set(drawn) | set(rest)) & known) / len(known) > 0.98  # other words: those with an address or a tag


def test_the_background_has_each_sentence_once_and_no_clutter(both_corpora):
    *_, ground, first, _, _ = both_corpora
    assert len(set(map(tuple, ground.words))) == len(ground)
    order = ["wikipedia", "scifi", "ag_news", "jigsaw", "davidson", "conll", "nli", "statements"]
    assert list(dict.fromkeys(ground.origin)) == order
    assert {"mnli_matched", "mnli_mismatched", "snli", "sick"} <= set(ground.source)
    assert first.repeated > 15_000  # SICK makes its 19,854 sentences from 6077
    counts = ground.counts()
    assert {word: counts[word] for word in ("quot", "href", "fullquote", "aspx") if counts[word]} == {}
    assert counts["amp"] < 10
    assert [word for word in counts if not re.fullmatch(r"\w{2,15}", word)] == []
    assert min(map(len, ground.words)) == 2
    assert max(map(len, ground.words)) < 250
    talk = [w for w, origin in zip(ground.words, ground.origin, strict=True) if origin in ("jigsaw", "davidson")]
    assert not [w for w in talk if len(w) > 20 and collections.Counter(w).most_common(1)[0][1] / len(w) > 0.75]
    sick = {
        tuple(plain_words(t)) for s in corpora.SPLITS for c in ("premise", "hypothesis") for t in datasets.sick(s)[c]
    }
    assert sick <= set(map(tuple, ground.words)) | {w for w in sick if len(w) < 2}


def test_the_names_for_provenance_are_the_sets_that_were_read(both_corpora):
    *_, read = both_corpora
    for name in ("biased", "neutral"):
        assert sorted(corpora.data_names(name)) == sorted(set(read))
    assert corpora.data_names("scifi") == ["scifi_synopses"]
    assert corpora.data_names("a/b.CSV") == ["a/b.CSV"]


def test_the_words_of_three_weat_tests_occur_five_times_in_both(both_corpora):
    """Of the race test seven names a side reach five (SPEC section 3 has ten)."""
    *_, first, second, _ = both_corpora
    lists = (
        "john paul mike kevin amy joan lisa sarah executive salary home cousins hers math calculus aunt einstein nasa"
    )
    names = "theo jerome lamar lionel malik tyrone ebony"
    for counts in (first.counts(), second.counts()):
        assert min(counts[word] for word in (lists + " " + names).split()) >= 5
        assert max(counts[word] for word in ["leroy", "jasmine", "tia"]) < 5
