r"""TextLen of Han and Tsvetkov (2021), drawn again as its authors drew it, and how well length alone can do.

Their repository has the six files but not the text that they were cut from; the CoNLL-2003 corpus and the steps below
give every byte again. :func:`clif_kit.generators.planted_prefix` is the same idea for any sentences, with streams of
its own.
"""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

Split = Literal["train", "dev", "test"]
Row = tuple[list[str], int, list[int]]  # tokens, label (1 = long), [length drawn, prefix]

LONGEST = 30  # tokens without the prefix
MEANS, STD = {1: 25, 0: 15}, 4  # of the lengths, by class
_ORDER = 2021  # seed of the order of the sentences, in each file of the corpus
_DRAWS = {"train": (2022, 750, 0.9), "dev": (2023, 240, 0.5), "test": (2023, 250, 0.5)}  # seed, n a class, aligned


def rebuild(sentences: Sequence[Sequence[str]], split: Split, *, prefix: bool = True) -> list[Row]:
    r"""One of the six files, as the list that its pickle holds.

    Sentences of at least 30 tokens are cut to 30 and shuffled; the training part takes them from the front, the other
    two from the end. Class 1 comes first: lengths :math:`\lfloor L \rfloor`, :math:`L \sim N(25, 4^2)`, then class 0
    with mean 15; of each class the share 0.9 (train) or 0.5 has its own prefix; at last all are shuffled. A length
    beyond 30 cuts nothing, and is kept as drawn.

    Args:
        sentences: Of CoNLL-2003 English: ``eng.train`` for train and dev, ``eng.testa`` for test. The paper says that
            the test part comes from the test file of the corpus; its sentences stand in ``eng.testa``.
        split: "train" (1500 rows), "dev" (480) or "test" (500).
        prefix: False leaves "Positive ." and "Negative ." out: the control without the shortcut.

    Raises:
        ValueError: If there are too few long sentences.
    """
    seed, n, share = _DRAWS[split]
    long = [list(sentence[:LONGEST]) for sentence in sentences if len(sentence) >= LONGEST]
    if len(long) < 2 * n:
        raise ValueError(f"{len(long)} sentences have {LONGEST} tokens or more; {split} needs {2 * n}")
    random.Random(_ORDER).shuffle(long)
    picked = long[: 2 * n] if split == "train" else long[-2 * n :]
    stream, cut = random.Random(seed), np.random.RandomState(seed)
    rows: list[Row] = []
    lengths = {label: cut.normal(MEANS[label], STD, n) for label in (1, 0)}
    own = int(share * n)
    for label, part in ((1, picked[:n]), (0, picked[n:])):
        spurs = [label] * own + [1 - label] * (n - own)
        stream.shuffle(spurs)
        for tokens, drawn, spur in zip(part, lengths[label], spurs, strict=True):
            head = [("Negative", "Positive")[spur], "."] if prefix else []
            rows.append((head + tokens[: int(drawn)], label, [int(drawn), spur]))
    stream.shuffle(rows)
    return rows


def length_ceiling(lengths: Sequence[int], labels: Sequence[int]) -> tuple[int, float]:
    """The best rule "long from so many tokens on": its threshold, and the share that it gets right.

    No classifier that sees the length alone can do better on these texts by such a rule; on TextLen that is a ceiling
    for whatever does not use the prefix, since the words come from one corpus.

    Args:
        lengths: Tokens of each text, without the prefix.
        labels: 1 = long.

    Raises:
        ValueError: If there is no text, or not one label a text.

    >>> length_ceiling([11, 14, 19, 22], [0, 0, 1, 1])
    (15, 1.0)
    """
    length, label = np.asarray(lengths), np.asarray(labels)
    if not len(length) or length.shape != label.shape:
        raise ValueError(f"need one label a text, got {len(length)} lengths and {len(label)} labels")
    cuts = np.arange(length.min(), length.max() + 2)
    right = ((length >= cuts[:, None]) == (label == 1)).mean(1)
    best = int(right.argmax())
    return int(cuts[best]), float(right[best])
