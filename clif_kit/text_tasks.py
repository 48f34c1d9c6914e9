"""Texts to classify, cut into training, validation and test examples: the tasks of the chapters on TracIn.

Every split holds equally many examples of each class, no text is in two splits, and the same seed cuts the same way.
Hyperparameters are chosen on the validation examples; the test examples are the queries that get explained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clif_kit import datasets
from clif_kit.corpora import wikipedia
from clif_kit.csv_contract import read_csv

TOPICS = {  # articles of gensim's Wikipedia; articles that fit two topics, or none, are left out
    "places": (
        "Alabama", "Alaska", "Albania", "Alberta", "Algeria", "Andorra", "Angola", "Aruba", "Asia", "Atlantic Ocean",
        "Azerbaijan", "Afghanistan", "Economy of Angola", "Demographics of Angola", "Politics of Angola",
    ),
    "nature": (
        "Aardvark", "Aardwolf", "Acid", "Actinopterygii", "Agriculture", "Albedo", "Algae", "Alkali metal", "Alkane",
        "Amphibian", "Anatomy", "Asphalt", "Atomic number", "Autism",
    ),
    "culture": (
        "Academy Awards", "Academy Award for Best Production Design", "Achilles", "Aldous Huxley", "Allan Dwan",
        "An American in Paris", "Andrei Tarkovsky", "Animal Farm", "Animation", "Aristotle", "Art",
        "Arthur Schopenhauer", "Ayn Rand", "List of Atlas Shrugged characters",
    ),
    "technology": (
        "ASCII", "Abacus", "Algorithm", "Alphabet", "Amateur astronomy", "Analysis of variance", "Android (robot)",
        "Apollo 11", "Apollo 8", "Assistive technology", "Astronaut", "American National Standards Institute",
        "International Atomic Time",
    ),
}  # fmt: skip
SHORTEST = 6  # words of a Wikipedia sentence that is kept: headings say too little


@dataclass(frozen=True)
class TextTask:
    """A task that is cut.

    Attributes:
        name: As it was asked for; a file's stem.
        classes: Names of the classes; a label is a place in them.
        train: ``id, text, pair, label``; ``pair`` is the second sentence, empty where there is none.
        val: Likewise.
        test: Likewise.
        offensive: Whether texts are shown masked only.
        data: Names of the data sets, for the record.
    """

    name: str
    classes: tuple[str, ...]
    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    offensive: bool
    data: tuple[str, ...]

    def show(self, row: pd.Series) -> str:
        """The text of a row as it may be printed, pairs joined by a bar."""
        text = row["text"] + (f" | {row['pair']}" if row["pair"] else "")
        return datasets.mask(text) if self.offensive else text


def text_task(name: str | Path, *, train: int, val: int, test: int, seed: int = 0) -> TextTask:
    """Draw a task: ``train``, ``val`` and ``test`` examples, divided evenly among the classes (rounded down).

    Args:
        name: One of ``TASKS``, or the path of a CSV file with the columns ``text`` and ``label``.
        train: Examples to learn from.
        val: Examples to choose hyperparameters with.
        test: Examples to explain.
        seed: Of the draw.

    Raises:
        ValueError: If the name is unknown, a class has too few different texts, or a split would be empty.
        Missing, BadCSV: If the data are not there or not readable, see :mod:`clif_kit.datasets`.
    """
    if str(name) in TASKS:
        frame, offensive, data = TASKS[str(name)]()
    elif str(name).endswith(".csv"):
        frame, offensive, data = read_csv(name), False, ()
    else:
        raise ValueError(f"no task {str(name)!r}; there are: {', '.join(TASKS)}, or a path that ends in .csv")
    frame = frame.assign(pair=frame.get("pair", ""))[["id", "text", "pair", "label"]]
    frame = frame[frame["text"].str.strip() != ""].drop_duplicates(["text", "pair"])
    classes = tuple(map(str, frame["label"].cat.categories))
    sizes = [n // len(classes) for n in (train, val, test)]
    if min(sizes) < 1:
        raise ValueError(f"{train}, {val} and {test} examples are too few for {len(classes)} classes")
    rng, parts = np.random.default_rng(seed), ([], [], [])
    for code, label in enumerate(classes):
        rows = frame.assign(label=code)[frame["label"] == label]
        if len(rows) < sum(sizes):
            raise ValueError(
                f"{name}: class {label!r} has {len(rows)} different texts, {sum(sizes)} are needed: "
                f"ask for fewer than {train} + {val} + {test} examples"
            )
        order = rng.permutation(len(rows))
        for part, places in zip(parts, np.split(order, np.cumsum(sizes))[:3], strict=True):
            part.append(rows.iloc[places])
    splits = [pd.concat(part).iloc[rng.permutation(n * len(classes))] for part, n in zip(parts, sizes, strict=True)]
    splits = [split.reset_index(drop=True) for split in splits]
    return TextTask(Path(name).stem, classes, *splits, offensive, tuple(data))


# ---- where texts come from: a frame, whether it is offensive, names of the data sets

Found = tuple[pd.DataFrame, bool, tuple[str, ...]]


def _topics() -> Found:
    sentences = wikipedia()
    topic = {article: name for name, articles in TOPICS.items() for article in articles}
    rows = [
        (f"wikipedia-{i}", sentences.text(i), topic[title])
        for i, title in enumerate(sentences.title)
        if title in topic and len(sentences.words[i]) >= SHORTEST
    ]
    frame = pd.DataFrame(rows, columns=["id", "text", "label"])
    return frame.assign(label=pd.Categorical(frame["label"], categories=list(TOPICS))), False, ("wikipedia",)


def _toxic() -> Found:
    return datasets.jigsaw_sample(), True, ("jigsaw_5k",)


def _tweets() -> Found:
    frame = datasets.davidson()
    toxic = np.where(frame["label"] == "neither", "clean", "toxic")
    return frame.assign(label=pd.Categorical(toxic, categories=["clean", "toxic"])), True, ("davidson",)


def _nli() -> Found:
    parts = [datasets.sick("train"), *(datasets.nli(source) for source in ("mnli_matched", "snli"))]
    frame = pd.concat([part.assign(id=f"{k}-" + part["id"]) for k, part in enumerate(parts)], ignore_index=True)
    frame["label"] = pd.Categorical(frame["label"], categories=list(datasets.NLI))
    return frame.rename(columns={"premise": "text", "hypothesis": "pair"}), False, ("sick", "nli_small")


TASKS: dict[str, Callable[[], Found]] = {
    "topics": _topics,
    "agnews": lambda: (datasets.ag_news_test(), False, ("ag_news",)),
    "agnews_train": lambda: (datasets.ag_news_train(), False, ("ag_news_train",)),
    "toxic": _toxic,
    "tweets": _tweets,
    "nli": _nli,
}
