"""Sentences for the chapter on word parts: the pairs of the TracIn-WE paper, and templates to learn entailment from.

The templates are small enough for a laptop and say one thing: who likes what, with and without "not". A model that has
learned them has met "not" in both senses.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from clif_kit.text_tasks import TextTask

NLI = ("entailment", "neutral", "contradiction")
_COMPOSE = (
    "She not only started playing the piano before she could speak, but her dad taught her to compose music at the"
)
PAIRS = {  # Table 2 of Yeh et al. (2022): premise, hypothesis, label
    "s1": ("I think he is very annoying.", "I do not like him.", "entailment"),
    "s2": ("I think reading is very boring.", "I do not like to read.", "entailment"),
    "s3": ("I think reading is very boring.", "I do not hate burying myself in books.", "contradiction"),
    "s4": (f"{_COMPOSE} same time.", "She started to playing music and making music from very long ago.", "entailment"),
    "s5": ("I think he is very annoying.", "I don't like him.", "entailment"),
    "s6": ("She thinks reading is pretty boring", "She doesn't love to read", "entailment"),
    "s7": (f"{_COMPOSE} same time", "She started to playing music and making music from quite long ago", "entailment"),
}
COMMENTS = {  # Table 3; the last two speak of ending a life, so a page shows their words alone
    "t1": (
        "I can always end my conversations so you would not get any answers because you are too lazy to remember "
        "anything",
        "toxic",
    ),
    "t2": (
        "For me, the lazy days of summer is not over yet, and I advise you to please kindly consider to end one's "
        "life, thank you",
        "toxic",
    ),
    "s1": (
        "Oh yeah, if you're too lazy to fix tags yourself, you're supporting AI universal takeover in 2020. end it. "
        "kill it now.",
        "clean",
    ),
}
_THINGS = ("he", "she", "the teacher", "the film", "reading", "cooking", "the dog", "winter", "the city", "singing")
_OBJECT = {"he": "him", "she": "her"}
_BAD = ("annoying", "boring", "awful", "dull", "tiresome", "nasty", "loud", "silly")
_GOOD = ("great", "funny", "lovely", "nice", "clever", "charming", "pleasant", "kind")
_PREMISES = (
    "I think {thing} is very {word}.",
    "I find that {thing} is quite {word}.",
    "{thing} is not only {word} but {more} too.",
)
_HYPOTHESES = {  # polarity: 1 likes, -1 dislikes, 0 says neither
    "I do not like {them}.": -1, "I hate {them}.": -1, "I don't love {them}.": -1, "I like {them}.": 1,
    "I do not hate {them}.": 1, "I enjoy {them}.": 1, "I talk of {them} at home.": 0,
    "I do not know much of {them}.": 0, "I met you before {them}.": 0,
}  # fmt: skip


def template_task(*, train: int, val: int, test: int, seed: int = 0) -> TextTask:
    """Pairs of sentences from templates, in equal parts entailment, neutral and contradiction.

    Args:
        train: Pairs to learn from; split evenly among the classes, rounded down.
        val: Pairs to choose with.
        test: Pairs to explain.
        seed: Of the draw.

    >>> task = template_task(train=30, val=3, test=3)
    >>> task.train["label"].value_counts().tolist()
    [10, 10, 10]
    """
    rows = []
    for thing in _THINGS:
        for words, polarity in ((_BAD, -1), (_GOOD, 1)):
            for k, word in enumerate(words):
                for premise in _PREMISES:
                    text = premise.format(thing=thing, word=word, more=words[k - 1])
                    for hypothesis, says in _HYPOTHESES.items():
                        label = 1 if says == 0 else 0 if says == polarity else 2
                        rows.append(
                            (text[0].upper() + text[1:], hypothesis.format(them=_OBJECT.get(thing, thing)), label)
                        )
    frame = pd.DataFrame(rows, columns=["text", "pair", "label"]).assign(id=[f"template-{i}" for i in range(len(rows))])
    rng, parts = np.random.default_rng(seed), ([], [], [])
    sizes = [n // len(NLI) for n in (train, val, test)]
    for label in range(len(NLI)):
        order = rng.permutation(np.flatnonzero(frame["label"] == label))
        for part, chosen in zip(parts, np.split(order, np.cumsum(sizes))[:3], strict=True):
            part.append(frame.iloc[chosen])
    splits = [pd.concat(part).sample(frac=1, random_state=seed)[["id", "text", "pair", "label"]] for part in parts]
    return TextTask("templates", NLI, *(split.reset_index(drop=True) for split in splits), False, ())


def with_examples(task: TextTask, examples: dict[str, Sequence[str]]) -> TextTask:
    """The task with our own sentences as its test split, in order: (text, label) or (text, second text, label).

    Raises:
        ValueError: If a label is no class of the task.

    >>> with_examples(template_task(train=3, val=3, test=3), PAIRS).test["id"].tolist()[:2]
    ['s1', 's2']
    """
    if unknown := [row[-1] for row in examples.values() if row[-1] not in task.classes]:
        raise ValueError(f"{unknown[0]!r} is no class of {task.name}; there are {', '.join(task.classes)}")
    rows = [
        (name, row[0], row[1] if len(row) > 2 else "", task.classes.index(row[-1])) for name, row in examples.items()
    ]
    return replace(task, test=pd.DataFrame(rows, columns=["id", "text", "pair", "label"]))
