"""Readers: one function a data set, returning plain tables or arrays. Every file is checked against its hash first.

Text sets are data frames with the columns of the CSV contract where they fit: ``id``, ``text``, ``label`` (categorical;
``frame.label.cat.codes`` are the class numbers in the set's own order). Pairs have ``premise`` and ``hypothesis`` or
``biased`` and ``neutral`` in place of ``text``. A set that is not here raises :class:`Missing`, one line that says what
to do. Some texts offend: print them through :func:`mask`.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from clif_kit.csv_contract import BadCSV, content_ids, read_csv
from clif_kit.download import Unreachable, fetch, paths, provenance
from clif_kit.formats import SafeUnpickler, UnsafePickle, load_pickle, read_idx, read_stories
from clif_kit.registry import Corrupt, DataError, Missing, list_sets, registry, verify
from clif_kit.wikipedia import wikipedia_sentences

__all__ = [
    "BadCSV", "Corrupt", "DataError", "Images", "Missing", "SafeUnpickler", "Unreachable", "UnsafePickle",
    "ag_news_test", "ag_news_train", "analogies", "conll", "davidson", "digits", "fetch", "jigsaw_sample", "list_sets",
    "load", "mask", "minilm", "mnist_test", "msgs", "nli", "paths", "provenance", "read_csv", "registry",
    "scifi_synopses", "sick", "textlen", "verify", "wiki_biased", "wikipedia_sentences", "wnc_pairs", "word_lists",
    "word_pairs",
]  # fmt: skip

Split = Literal["train", "dev", "test"]
NEWS = ("World", "Sports", "Business", "Sci/Tech")
NLI = ("entailment", "neutral", "contradiction")
SCIFI = (  # how the files begin whose stories are science fiction
    "film-scifi", "shortstory-amazingstories", "tv-amazingstories", "tv-babylon5", "tv-blackmirror", "tv-futurama",
    "tv-electricdreams", "tv-lovedeathrobots", "tv-murderbot", "tv-raybradbury", "tv-realhumans", "tv-reddwarf",
    "tv-startrek", "tv-talesfromtheloop", "tv-twilightzone",
)  # fmt: skip


# ---- images


@dataclass(frozen=True)
class Images:
    """Grey images and their classes.

    Attributes:
        x: Brightness, float32 in [0, 1], shape ``(n, side, side)``.
        y: Class numbers, int64, shape ``(n,)``.
    """

    x: np.ndarray
    y: np.ndarray


def digits() -> Images:
    """1797 handwritten digits of 8 x 8 pixels (embedded, from scikit-learn).

    >>> digits().x.shape, int(digits().y[0])
    ((1797, 8, 8), 0)
    """
    paths("digits")
    found = load_digits()
    return Images((found.images / 16).astype(np.float32), found.target.astype(np.int64))


def mnist_test() -> Images:
    """The 10,000 test images of MNIST, 28 x 28 pixels, in the published order (real tier: ``mnist_t10k``)."""
    files = paths("mnist_t10k")
    x, y = read_idx(files["t10k-images-idx3-ubyte.gz"]), read_idx(files["t10k-labels-idx1-ubyte.gz"])
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise Corrupt(f"mnist_t10k: images are {x.shape} and labels {y.shape}, which do not belong together")
    return Images(x.astype(np.float32) / 255, y.astype(np.int64))


# ---- texts with labels


def ag_news_test() -> pd.DataFrame:
    """7600 news items: ``id, text`` (the description)``, label`` (4 classes), ``title``."""
    return _ag_news(paths("ag_news")["test.csv"])


def ag_news_train() -> pd.DataFrame:
    """120,000 news items, columns as :func:`ag_news_test` (paper tier: ``ag_news_train``)."""
    return _ag_news(paths("ag_news_train")["train.csv"])


def davidson() -> pd.DataFrame:
    """24,783 tweets: ``id, text, label`` (hate, offensive, neither). Print through :func:`mask`."""
    raw = pd.read_csv(paths("davidson")["labeled_data.csv"], index_col=0, encoding="utf-8", keep_default_na=False)
    return _table(raw["tweet"], raw["class"], ("hate", "offensive", "neither"), ids=raw.index)


def jigsaw_sample() -> pd.DataFrame:
    """5000 talk-page comments: ``id, text, label`` (clean, toxic). Print through :func:`mask`."""
    raw = pd.read_csv(paths("jigsaw_5k")["toxic_comments.csv"], index_col=0, encoding="utf-8", keep_default_na=False)
    return _table(raw["text"], raw["toxic"], ("clean", "toxic"), ids=raw.index)


def wiki_biased() -> pd.DataFrame:
    """1843 biased and 10,103 neutral statements: ``id, text, label`` (neutral, biased), ``source`` (the file)."""
    files = {name.removeprefix("statements_"): _lines(path) for name, path in paths("wiki_biased").items()}
    rows = [(text, int(name == "biased"), name) for name, texts in files.items() for text in texts]
    texts, labels, sources = zip(*rows, strict=True)
    return _table(texts, labels, ("neutral", "biased")).assign(source=sources)


def textlen(split: Split = "train", *, prefix: bool = True) -> pd.DataFrame:
    """TextLen: ``id, text, label`` (short, long), ``tokens``, ``drawn`` (length drawn), ``spurious`` (prefix: 0, 1).

    Args:
        split: 1500, 480 or 500 rows.
        prefix: False reads the control without the prefix tokens (``spurious`` is kept).
    """
    rows = load_pickle(paths("textlen")[f"{'' if prefix else 'no_spur/'}synth_{split}.pkl"])
    tokens, labels, notes = zip(*rows, strict=True)
    frame = _table([" ".join(t) for t in tokens], labels, ("short", "long"))
    return frame.assign(tokens=tokens, drawn=[n[0] for n in notes], spurious=[n[1] for n in notes])


def msgs(split: Split = "train") -> pd.DataFrame:
    """MSGS: ``id, text, label`` (no, yes), ``linguistic`` (is there an adjective?), ``surface`` ("the" before "a"?)."""
    texts, labels, notes = zip(*load_pickle(paths("msgs")[f"msgs_{split}.pkl"]), strict=True)
    frame = _table(texts, labels, ("no", "yes"))
    return frame.assign(linguistic=[n[0] for n in notes], surface=[n[1] for n in notes])


# ---- pairs and plain sentences


def sick(split: Split = "train") -> pd.DataFrame:
    """SICK, 4500 / 500 / 4927 rows: ``id, premise, hypothesis, label`` (entailment ...), ``relatedness`` (1 to 5)."""
    name = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}[split]
    raw = pd.read_csv(paths("sick")[name], sep="\t", quoting=csv.QUOTE_NONE, encoding="utf-8")
    columns = {"pair_ID": "id", "sentence_A": "premise", "sentence_B": "hypothesis", "relatedness_score": "relatedness"}
    frame = raw.rename(columns=columns).astype({"id": str})
    frame["label"] = pd.Categorical(frame.pop("entailment_judgment").str.lower().str.strip(), categories=NLI)
    return frame[["id", "premise", "hypothesis", "label", "relatedness"]]


def nli(source: Literal["mnli_matched", "mnli_mismatched", "snli"] = "mnli_matched") -> pd.DataFrame:
    """1000 tokenised pairs: ``id, premise, hypothesis, label`` (entailment, neutral, contradiction)."""
    rows = [line.split("\t") for line in _lines(paths("nli_small")[f"{source}.tsv"])]
    labels, premises, hypotheses = zip(*rows, strict=True)
    ids = content_ids([f"{p}\t{h}" for p, h in zip(premises, hypotheses, strict=True)], list(labels))
    label = pd.Categorical(labels, categories=NLI)
    return pd.DataFrame({"id": ids, "premise": premises, "hypothesis": hypotheses, "label": label})


def wnc_pairs(split: Literal["train", "test"] = "train") -> pd.DataFrame:
    """1000 or 100 aligned sentences: ``id, biased, neutral``, tokens separated by spaces."""
    files = paths("wnc_fixture")
    biased, neutral = _lines(files[f"pre.{split}"]), _lines(files[f"post.{split}"])
    return pd.DataFrame({"id": content_ids(biased, neutral), "biased": biased, "neutral": neutral})


def conll(split: Split = "train") -> list[list[str]]:
    """CoNLL-2003 English, 14,041 / 3250 / 3453 sentences as lists of tokens (document marks left out)."""
    name = {"train": "eng.train", "dev": "eng.testa", "test": "eng.testb"}[split]
    blocks = re.split(r"\n[ \t]*\n", paths("conll2003")[name].read_text(encoding="utf-8"))
    tokens = [[line.split(" ", 1)[0] for line in block.splitlines() if line.strip()] for block in blocks]
    return [t for t in tokens if t and t != ["-DOCSTART-"]]


def scifi_synopses(*, all_genres: bool = False) -> pd.DataFrame:
    """Synopses of 3180 science fiction stories: ``id, title, date, text, source`` (the file's name), in file order.

    Args:
        all_genres: Read all 4357 stories (films, television, literature, games) instead.
    """
    stories = []
    for name, path in paths("scifi_synopses").items():
        source = PurePosixPath(name).name.removesuffix(".st.txt")
        if name.endswith(".st.txt") and (all_genres or source.startswith(SCIFI)):
            stories += [{**story, "source": source} for story in read_stories(path.read_text(encoding="utf-8"))]
    return pd.DataFrame(stories, columns=["id", "title", "date", "text", "source"])


# ---- words and weights


def word_lists() -> dict[str, list]:
    """Word lists for debiasing, by file name without ``.json`` (``definitional_pairs``, ``equalize_pairs`` ...)."""
    found = paths("word_lists")
    return {Path(name).stem: json.loads(p.read_text("utf-8")) for name, p in found.items() if name.endswith(".json")}


def word_pairs(name: Literal["wordsim353", "simlex999"] = "wordsim353") -> pd.DataFrame:
    """Rated pairs (embedded, from gensim): ``first, second, similarity`` from 0 to 10. Their file: ``paths(name)``."""
    (path,) = paths(name).values()
    rows = [line.split("\t") for line in _lines(path) if not line.startswith("#")]
    return pd.DataFrame(rows, columns=["first", "second", "similarity"]).astype({"similarity": float})


def analogies() -> dict[str, list[tuple[str, ...]]]:
    """Questions "a is to b as c is to d" by section, lower case (embedded, from gensim)."""
    (path,) = paths("analogies").values()
    sections: dict[str, list[tuple[str, ...]]] = {}
    for line in _lines(path):
        if line.startswith(":"):
            rows = sections.setdefault(line[1:].strip(), [])
        else:
            rows.append(tuple(line.lower().split()))
    return sections


def minilm() -> Path:
    """The folder with MiniLM's checked weights and tokenizer, for ``from_pretrained`` (embedded)."""
    return paths("minilm")["model/model.safetensors"].parent


# ---- what readers share


def mask(text: str, keep: frozenset[str] | set[str] = frozenset()) -> str:
    """Text that may offend, made printable: of each word that is not a common English one only the first letter shows.

    User names and addresses go. ``keep`` names further words (lower case) to show.

    >>> mask("@someone you are a total pumpkin https://t.co/x", keep={"total"})
    '@user you are a total p****** <link>'
    """
    text = re.sub(r"@\w+", "@user", re.sub(r"https?://\S+|www\.\S+", "<link>", text))
    shown = ENGLISH_STOP_WORDS | keep | {"user", "link"}
    return re.sub(r"\w+", lambda m: m[0] if m[0].lower() in shown else m[0][0] + "*" * (len(m[0]) - 1), text)


def load(name: str) -> Images | pd.DataFrame | list:
    """A set by the name in the registry (its training or only part), or a reader's own CSV by its path.

    For notebooks whose parameter ``data`` says which. Raises KeyError that lists the names.

    >>> load("digits").x.shape
    (1797, 8, 8)
    """
    if name.endswith(".csv"):
        return read_csv(name)
    if name not in READERS:
        raise KeyError(f"no reader for {name!r}; there are: {', '.join(READERS)}, or a path that ends in .csv")
    return READERS[name]()


def _table(texts: list[str], labels: list[int], classes: tuple[str, ...], ids: pd.Index | None = None) -> pd.DataFrame:
    """``id, text, label`` from texts and class numbers; without ``ids`` they follow the content."""
    label = pd.Categorical.from_codes(np.asarray(labels), categories=list(classes))
    names = content_ids(list(texts), list(label)) if ids is None else ids.astype(str)
    return pd.DataFrame({"id": list(names), "text": list(texts), "label": label})


def _ag_news(path: Path) -> pd.DataFrame:
    raw = pd.read_csv(path, header=None, names=["class", "title", "text"], encoding="utf-8", keep_default_na=False)
    return _table(raw["text"], raw["class"] - 1, NEWS).assign(title=raw["title"])


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


READERS: dict[str, Callable] = {
    "ag_news": ag_news_test,
    "ag_news_train": ag_news_train,
    "analogies": analogies,
    "conll2003": conll,
    "davidson": davidson,
    "digits": digits,
    "jigsaw_5k": jigsaw_sample,
    "minilm": minilm,
    "mnist_t10k": mnist_test,
    "msgs": msgs,
    "nli_small": nli,
    "scifi_synopses": scifi_synopses,
    "sick": sick,
    "simlex999": lambda: word_pairs("simlex999"),
    "textlen": textlen,
    "wiki_biased": wiki_biased,
    "wikipedia": wikipedia_sentences,
    "wnc_fixture": wnc_pairs,
    "word_lists": word_lists,
    "wordsim353": word_pairs,
}
