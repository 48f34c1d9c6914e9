"""Text corpora: lists of sentences that know where they come from.

D_B (:func:`biased`) and D_N (:func:`neutral`) have the same number of sentences. :func:`background` is what both are
read with, because alone they are too small for word vectors. :func:`weat_corpus` puts background and D_B or D_N
together, the background first, so that its sentences have the same numbers in both.
"""

import html
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from gensim.corpora import wikicorpus

from clif_kit import datasets
from clif_kit.csv_contract import read_csv
from clif_kit.registry import DataError
from clif_kit.wikipedia import split_sentences, wikipedia_sentences

SPLITS = ("train", "dev", "test")
OFFENSIVE = frozenset({"jigsaw", "davidson"})  # shown masked only
_CLUTTER = re.compile(  # tags, addresses, user names, characters whose code lost its "&" (AG News)
    r"</?[A-Za-z][^<>]*>|(?:https?://|www\.)\S*|@\w+|#\d+;|\b(?:quot|amp|lt|gt|nbsp);|_"
)
_END = re.compile(r"(?<=[.!?])[\"')]*\s+")  # of sentences in texts without capital letters


class BadCorpus(DataError, ValueError):
    """No corpus can be made of this; the message is one line that names the cause."""


@dataclass(frozen=True)
class Sentences:
    """Sentences and where each comes from.

    Attributes:
        words: Lower-case words of 2 to 15 letters, two or more a sentence.
        source: Title of the article (Wikipedia), name of the file (synopses: ``tv-startrek-tng``), label (a reader's
            own CSV) or name of the set.
        origin: Kind of data: wikipedia, wnc, statements, scifi, ag_news, jigsaw, davidson, conll, nli, csv or text.
        title: Of the article, story or news item; number of the line or id of the row; empty where there is none.
        dropped: Sentences that were left out: fewer than two words (they have no pair), or comments that repeat
            themselves.
        repeated: Further copies of a sentence that were left out.

    Raises:
        BadCorpus: If there is no sentence, or the lists differ in length.

    >>> two = Sentences([["red", "ship"], ["red", "sky"]], ["a", "b"], ["text", "text"])
    >>> len(two), two.text(1), two.counts()["red"], two.select([1]).source
    (2, 'red sky', 2, ['b'])
    """

    words: list[list[str]]
    source: list[str]
    origin: list[str]
    title: list[str] = field(default_factory=list)
    dropped: int = 0
    repeated: int = 0

    def __post_init__(self):
        if not self.words:
            raise BadCorpus("an empty corpus: there is no sentence of two words or more")
        if not self.title:
            object.__setattr__(self, "title", [""] * len(self.words))
        lengths = [len(column) for column in (self.words, self.source, self.origin, self.title)]
        if len(set(lengths)) > 1:
            raise BadCorpus(f"words, source, origin and title must be equally long, got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.words)

    def __add__(self, other: "Sentences") -> "Sentences":
        return concatenate([self, other])

    def select(self, indices: Sequence[int] | np.ndarray) -> "Sentences":
        """The sentences with these numbers, in this order, or those where a mask of ``len(self)`` truths is true."""
        numbers = np.asarray(indices)
        if numbers.dtype == bool:
            if len(numbers) != len(self):
                raise ValueError(f"a mask for {len(self)} sentences has {len(numbers)} values")
            numbers = np.flatnonzero(numbers)
        rows = numbers.tolist()
        columns = (self.words, self.source, self.origin, self.title)
        return Sentences(*([column[i] for i in rows] for column in columns))

    def text(self, i: int, keep: frozenset[str] | set[str] = frozenset()) -> str:
        """Sentence ``i`` to be shown; tweets and comments through ``datasets.mask``, which shows the words ``keep``."""
        shown = " ".join(self.words[i])
        return datasets.mask(shown, keep) if self.origin[i] in OFFENSIVE else shown

    def counts(self) -> Counter[str]:
        """How often each word occurs."""
        return Counter(chain.from_iterable(self.words))


def concatenate(parts: Sequence[Sentences]) -> Sentences:
    """One corpus after the other; the numbers of what was left out are added up."""
    columns = ([x for part in parts for x in getattr(part, name)] for name in ("words", "source", "origin", "title"))
    return Sentences(*columns, sum(part.dropped for part in parts), sum(part.repeated for part in parts))


# ---- the sets


def wikipedia() -> Sentences:
    """The 106 articles in gensim's package (embedded), sentences of four words or more.

    >>> corpus = wikipedia()
    >>> corpus.source[0], corpus.origin[0], corpus.counts()["anarchism"] > 100
    ('Anarchism', 'wikipedia', True)
    """
    titles, words = map(list, zip(*wikipedia_sentences(), strict=True))
    words = [[sys.intern(word) for word in sentence] for sentence in words]
    return Sentences(words, titles, ["wikipedia"] * len(words), list(titles))


def scifi(*, all_genres: bool = False) -> Sentences:
    """The synopses of 3180 science fiction stories (all genres: 4357), cut into sentences. ``title``: the story's."""
    frame = datasets.scifi_synopses(all_genres=all_genres)
    return _gather("scifi", _cut(zip(frame["text"], frame["source"], frame["title"], strict=True)))


def biased() -> Sentences:
    """D_B: the biased sides of 1000 pairs of the Wiki Neutrality Corpus, then 1843 biased statements.

    Pairs with a side of one word or none (24) are left out of D_B and D_N alike (``dropped``), so that both have 2819
    sentences, and sentence *i* of both is the same edit for as long as the pairs last.
    """
    return _wnc()[0] + _statements(0)[0]


def neutral(seed: int = 0) -> Sentences:
    """D_N: the neutral sides of the same pairs, then as many neutral statements as there are biased ones.

    They are drawn with ``seed`` from 10,068 different ones (of 10,103) and keep their order, so D_N has the size of
    D_B: with all of them, size and not bias would decide what two models differ in.
    """
    return _wnc()[1] + _statements(seed)[1]


def background(seed: int = 0) -> Sentences:
    """What D_B and D_N are read with: every other text of the real tier, without second copies of a sentence.

    In this order: Wikipedia, synopses of all genres, AG News, Jigsaw, Davidson, CoNLL, MultiNLI and SNLI, SICK (all
    splits), and the neutral statements that :func:`neutral` does not draw with the same ``seed``.
    """
    news, comments, tweets = datasets.ag_news_test(), datasets.jigsaw_sample(), datasets.davidson()
    tokens = chain.from_iterable(datasets.conll(split) for split in SPLITS)
    parts = [
        wikipedia(),
        scifi(all_genres=True),
        _gather("ag_news", _cut((text, "ag_news", title) for text, title in news[["text", "title"]].to_numpy())),
        _plain_talk(_gather("jigsaw", _cut(((text, "jigsaw_5k", "") for text in comments["text"]), capitals=False))),
        _plain_talk(_gather("davidson", _cut((text, "davidson", "") for text in tweets["text"]))),
        _gather("conll", ((" ".join(sentence), "conll2003", "") for sentence in tokens)),
        *(_gather("nli", _premises(datasets.nli(name), name)) for name in ("mnli_matched", "mnli_mismatched", "snli")),
        *(_gather("nli", _premises(datasets.sick(split), "sick")) for split in SPLITS),
        _statements(seed)[2],
    ]
    return _unique(concatenate(parts))


def weat_corpus(kind: Literal["biased", "neutral"], seed: int = 0) -> Sentences:
    """The background, then D_B (``biased``) or D_N (``neutral``). The background is the same in both, number by number.

    Raises:
        ValueError: If ``kind`` is another word.
        Missing: If a data set is not here.
    """
    if kind not in ("biased", "neutral"):
        raise ValueError(f"kind must be 'biased' or 'neutral', got {kind!r}")
    return background(seed) + (biased() if kind == "biased" else neutral(seed))


# ---- a reader's own text, and the full Wiki Neutrality Corpus


def from_csv(path: str | Path) -> Sentences:
    """The texts of a CSV (``clif_kit.csv_contract``), cut into sentences. ``source``: the label; ``title``: the id.

    Raises:
        BadCSV: If the file breaks the contract.
        BadCorpus: If no sentence has two words.
    """
    frame = read_csv(path)
    return _gather("csv", _cut(zip(frame["text"], frame["label"].astype(str), frame["id"], strict=True)), path)


def from_text(path: str | Path) -> Sentences:
    """A UTF-8 file with one sentence a line. ``source``: the file's name; ``title``: the line. Blank lines are skipped.

    Raises:
        BadCorpus: If the file is not UTF-8, or no line has two words.
    """
    name = Path(path).name
    return _gather("text", ((line, name, f"line {k}") for k, line in _lines(path) if line.strip()), path)


def wnc_full(path: str | Path) -> tuple[Sentences, Sentences]:
    """All pairs of ``biased.full`` from the Wiki Neutrality Corpus (paper tier): biased sides and neutral sides.

    Columns between tabs: id, src_tok, tgt_tok, src_raw, tgt_raw and, in the tagged file, src_POS_tags and
    tgt_parse_tags. Read are src_tok and tgt_tok (columns 1 and 2 from 0), as in the paper's code. They are BERT's word
    pieces; ``pal ##az ##zo`` becomes one word again. Sentence *i* of both results is one edit; ``title`` is its id.

    Raises:
        BadCorpus: With the number of the line, if a line has fewer than five columns or is not UTF-8.
    """
    rows = []
    for k, line in _lines(path):
        columns = line.split("\t")
        if len(columns) < 5 and line.strip():
            raise BadCorpus(f"{path}: line {k} has {len(columns)} columns between tabs, need 5 or 7 (id, src_tok, ...)")
        if line.strip():
            rows.append((*(side.replace(" ##", "") for side in columns[1:3]), columns[0]))
    return _pairs(rows, path)


def load(name: str | Path, seed: int = 0) -> Sentences:
    """The corpus that a notebook's parameter ``data`` names.

    Args:
        name: ``wikipedia`` (embedded); ``scifi``; ``biased`` or ``neutral``: D_B or D_N *with* the background, as
            :func:`weat_corpus`; or a path that ends in ``.csv`` (:func:`from_csv`) or ``.txt`` (:func:`from_text`).
        seed: Which neutral statements are drawn.

    Raises:
        KeyError: That lists the names.

    >>> len(load("wikipedia")) == len(wikipedia())
    True
    """
    ending = Path(name).suffix.lower()
    if ending in (".csv", ".txt"):
        return from_csv(name) if ending == ".csv" else from_text(name)
    data_names(name)  # raises for unknown names
    if name in ("biased", "neutral"):
        return weat_corpus(name, seed)
    return wikipedia() if name == "wikipedia" else scifi()


def data_names(name: str | Path) -> list[str]:
    """The data sets that :func:`load` reads for ``name``, each for ``datasets.provenance``; a path is itself.

    >>> data_names("wikipedia"), data_names("mine.csv")
    (['wikipedia'], ['mine.csv'])
    """
    known = {"wikipedia": ["wikipedia"], "scifi": ["scifi_synopses"]}
    mixed = "wikipedia scifi_synopses ag_news jigsaw_5k davidson conll2003 nli_small sick wiki_biased wnc_fixture"
    known |= dict.fromkeys(("biased", "neutral"), mixed.split())
    if Path(name).suffix.lower() in (".csv", ".txt"):
        return [str(name)]
    if name not in known:
        raise KeyError(f"no corpus is called {str(name)!r}; there are: {', '.join(known)}, or a path in .csv or .txt")
    return known[name]


# ---- what readers share


def _gather(origin: str, rows: Iterable[tuple[str, str, str]], name: str | Path = "") -> Sentences:
    """Rows of text, source and title as sentences; those with fewer than two words are counted and left out."""
    every = [(tokenize(text), source, title) for text, source, title in rows]
    kept = [row for row in every if len(row[0]) > 1]
    if not kept:
        raise BadCorpus(f"{name or origin}: an empty corpus: no sentence has two words of 2 to 15 letters")
    words, source, title = map(list, zip(*kept, strict=True))
    return Sentences(words, source, [origin] * len(kept), title, dropped=len(every) - len(kept))


def tokenize(text: str) -> list[str]:
    """Lower-case words of 2 to 15 letters (gensim's ``wikicorpus.tokenize``), without tags, addresses, user names.

    >>> tokenize("The <b>Enterprise</b>, seen by @someone: it&#39;s at https://t.co/x")
    ['the', 'enterprise', 'seen', 'by', 'it', 'at']
    """
    return [sys.intern(word) for word in wikicorpus.tokenize(_CLUTTER.sub(" ", html.unescape(text)))]


def _cut(rows: Iterable[tuple[str, str, str]], *, capitals: bool = True) -> Iterator[tuple[str, str, str]]:
    """Each text's sentences. ``capitals``: whether a sentence begins with a capital letter."""
    for text, source, title in rows:
        for piece in split_sentences(text) if capitals else _END.split(text):
            yield piece, source, title


def _premises(frame: pd.DataFrame, source: str) -> Iterator[tuple[str, str, str]]:
    for pair in zip(frame["premise"], frame["hypothesis"], strict=True):
        yield from ((text, source, "") for text in pair)


def _pairs(rows: Iterable[tuple[str, str, str]], name: str | Path) -> tuple[Sentences, Sentences]:
    """Biased and neutral sides of rows ``(biased, neutral, title)``, in step: a pair with a short side goes."""
    every = [(tokenize(a), tokenize(b), title) for a, b, title in rows]
    kept = [row for row in every if min(len(row[0]), len(row[1])) > 1]
    if not kept:
        raise BadCorpus(f"{name}: an empty corpus: no pair has two words on both sides")
    *sides, title = map(list, zip(*kept, strict=True))
    n, dropped = len(kept), len(every) - len(kept)
    first, second = (
        Sentences(words, [source] * n, ["wnc"] * n, list(title), dropped)
        for words, source in zip(sides, ("wnc_biased", "wnc_neutral"), strict=True)
    )
    return first, second


def _wnc() -> tuple[Sentences, Sentences]:
    frame = datasets.wnc_pairs()
    return _pairs(zip(frame["biased"], frame["neutral"], frame["id"], strict=True), "wnc_fixture")


def _statements(seed: int) -> tuple[Sentences, Sentences, Sentences]:
    """The biased statements, as many neutral ones drawn with ``seed``, and the other neutral ones.

    No drawn statement stands among the others, not even as a copy.
    """
    frame = datasets.wiki_biased()
    every = _gather("statements", zip(frame["text"], "statements_" + frame["source"], [""] * len(frame), strict=True))
    is_biased = np.array([source == "statements_biased" for source in every.source])
    ours, others = every.select(is_biased), every.select(~is_biased)
    first = {tuple(words): i for i, words in reversed(list(enumerate(others.words)))}  # of each different one
    drawn = np.random.default_rng(seed).choice(sorted(first.values()), len(ours), replace=False)
    taken = {tuple(others.words[i]) for i in drawn}
    rest = [i for i, words in enumerate(others.words) if tuple(words) not in taken]
    return replace(ours, dropped=every.dropped), others.select(np.sort(drawn)), others.select(rest)


def _plain_talk(found: Sentences) -> Sentences:
    """Without vandals' comments that repeat a few words hundreds of times: one of them would decide a word's count."""
    plain = np.array([len(words) <= 20 or len(set(words)) >= len(words) / 4 for words in found.words])
    return replace(found.select(plain), dropped=found.dropped + int((~plain).sum()))


def _unique(found: Sentences) -> Sentences:
    """Without further copies of a sentence; the first one stays."""
    first = {tuple(words): i for i, words in reversed(list(enumerate(found.words)))}
    kept = found.select(sorted(first.values()))
    return replace(kept, dropped=found.dropped, repeated=found.repeated + len(found) - len(kept))


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number from 1 and text of each line of a UTF-8 file. Raises BadCorpus."""
    at = 0
    with open(path, "rb") as stream:
        for k, raw in enumerate(stream, 1):
            what = "UTF-16" if k == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            try:
                line = raw.decode("utf-8-sig" if k == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = what or f"not UTF-8 (byte {at + error.start}, line {k})"
            if what or "\x00" in line:
                raise BadCorpus(
                    f"{path}: is {what or 'no text (zero bytes)'}; save it as plain text in UTF-8"
                ) from None
            at += len(raw)
            yield k, line.rstrip("\r\n")
