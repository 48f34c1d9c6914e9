"""Data with a planted shortcut: TextLen and MSGS as their authors have them, and twins that need no download.

Each text has a label, which a *core* attribute tells (its length; is there an adjective?), and a *spurious* attribute
that agrees with the label in most training texts and in half, or two thirds, of the test texts (which word stands
first; does "the" come before "a"?). Han & Tsvetkov, "Influence tuning" (2021), section 5.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from clif_kit import datasets
from clif_kit.corpora import wikipedia
from clif_kit.generators import grammar, planted_prefix

PREFIXES = (("Negative", "."), ("Positive", "."))  # of class 0 and class 1, in TextLen


@dataclass(frozen=True)
class ShortcutTexts:
    """Texts, labels and spurious attributes.

    Attributes:
        texts: n texts.
        y: Labels, ``(n,)``, from 0.
        confound: Spurious attribute, ``(n,)``, from 0; it *agrees* where it equals the label.
        plain: The same texts without the shortcut, where it is something that can be left out. Else None.
    """

    texts: tuple[str, ...] = field(repr=False)
    y: np.ndarray = field(repr=False)
    confound: np.ndarray = field(repr=False)
    plain: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> "ShortcutTexts":
        """Some of them."""
        plain = None if self.plain is None else tuple(self.plain[i] for i in rows)
        return ShortcutTexts(tuple(self.texts[i] for i in rows), self.y[rows], self.confound[rows], plain)

    def groups(self) -> dict[tuple[int, int], int]:
        """How many texts have each pair (label, spurious attribute)."""
        pairs, counts = np.unique(np.stack([self.y, self.confound]), axis=1, return_counts=True)
        return {(int(y), int(c)): int(n) for (y, c), n in zip(pairs.T, counts, strict=True)}


@dataclass(frozen=True)
class ShortcutTask:
    """A task with a shortcut.

    Attributes:
        name: One of ``TASKS``.
        classes: Names of the classes.
        shortcut: What the spurious attribute 0 and 1 look like.
        train: To learn from.
        dev: To choose hyperparameters with: new texts, the shortcut as common as in training. Empty for the authors'
            data, whose own development sets are mixed like the test set.
        test: To report on.
        data: Names of the data sets, for the record.
    """

    name: str
    classes: tuple[str, str]
    shortcut: tuple[str, str]
    train: ShortcutTexts
    dev: ShortcutTexts
    test: ShortcutTexts
    data: tuple[str, ...]


def shortcut_task(
    name: str, *, train: int | None = None, dev: int = 0, test: int | None = None, rate: float | None = None,
    prefixes: Sequence[Sequence[str]] = PREFIXES, longest: int = 30, seed: int = 0,
) -> ShortcutTask:  # fmt: skip
    """Make one of ``TASKS``.

    Args:
        name: "textlen", "msgs" (the authors' files), "wikipedia" (a planted prefix, as in TextLen) or "grammar" (a
            planted order of articles, as in MSGS).
        train: Training texts; None for all of the authors', 1,200 for the twins.
        dev: Texts to choose hyperparameters with, twins only.
        test: Test texts, drawn at random from the authors'; None for all of them, 400 for the twins. An odd number for
            a twin is rounded down; "grammar" leaves out the few sentences that stand in an earlier set.
        rate: Share of training texts whose shortcut agrees with the label, twins only; 0.9 and 0.97. The number of
            those that do not is the *inoculation*.
        prefixes: The words that are planted, "wikipedia" only.
        longest: Words of a sentence at most, "wikipedia" only; lengths are scaled, so the ceiling is the same.
        seed: Of the draws.

    Raises:
        ValueError: If the name is unknown, an option is not for it, or there are too few texts.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}: choose from {', '.join(TASKS)}")
    if name in ("textlen", "msgs") and (dev or rate is not None):
        raise ValueError(f"{name} is the authors' data: dev and rate are for 'wikipedia' and 'grammar'")
    if name != "wikipedia" and (prefixes is not PREFIXES or longest != 30):
        raise ValueError(f"prefixes and longest are for 'wikipedia', not for {name!r}")
    if name in ("textlen", "msgs"):
        return TASKS[name](train, test, seed)
    sizes = (train or 1200, dev, test or 400)
    if min(sizes[0], sizes[2], dev or 2) < 2:
        raise ValueError(f"a set has 2 texts or more, one of each class: got train, dev, test = {sizes}")
    if name == "grammar":
        return _grammar(sizes, 0.97 if rate is None else rate, seed)
    return _wikipedia(sizes, 0.9 if rate is None else rate, prefixes, longest, seed)


def _textlen(train: int | None, test: int | None, seed: int) -> ShortcutTask:
    def read(split: str, n: int | None) -> ShortcutTexts:
        with_it, without = datasets.textlen(split), datasets.textlen(split, prefix=False)
        y = (with_it["label"] == "long").to_numpy(np.int64)
        whole = ShortcutTexts(tuple(with_it["text"]), y, with_it["spurious"].to_numpy(np.int64), tuple(without["text"]))
        return _some(whole, n, seed)

    sets = read("train", train), _nothing(), read("test", test)
    return ShortcutTask("textlen", ("short", "long"), _shown(PREFIXES), *sets, ("textlen",))


def _msgs(train: int | None, test: int | None, seed: int) -> ShortcutTask:
    def read(split: str, n: int | None) -> ShortcutTexts:
        frame = datasets.msgs(split)
        labels = (frame[name].to_numpy(np.int64) for name in ("linguistic", "surface"))
        return _some(ShortcutTexts(tuple(frame["text"]), *labels), n, seed)

    sets = read("train", train), _nothing(), read("test", test)
    return ShortcutTask("msgs", ("no adjective", "adjective"), _ARTICLES, *sets, ("msgs",))


def _wikipedia(
    sizes: tuple[int, int, int], rate: float, prefixes: Sequence[Sequence[str]], longest: int, seed: int
) -> ShortcutTask:
    long = [words for words in wikipedia().words if len(words) >= longest]
    order = np.random.default_rng([seed, 9]).permutation(len(long))
    if sum(sizes) > len(long):
        raise ValueError(f"{sum(sizes)} texts of {longest} words are asked for, there are {len(long)}: ask for fewer")
    scale = longest / 30  # lengths of TextLen: 15 and 25 words, standard deviation 4, at most 30
    cut = {"max_words": longest, "mean_lengths": (15 * scale, 25 * scale), "std": 4 * scale}
    rest = iter(order)

    def plant(n: int, share: float, stream: int) -> ShortcutTexts:
        own = [long[i] for i in islice(rest, n)]
        made = planted_prefix(own, seed=stream, n_per_class=n // 2, rate=share, prefixes=tuple(prefixes), **cut)
        plain = tuple(map(" ".join, made.without_prefix()))
        return ShortcutTexts(tuple(map(" ".join, made.tokens)), made.label, made.spur, plain)

    sets = _splits(plant, sizes, rate, seed)
    return ShortcutTask("wikipedia", ("short", "long"), _shown(prefixes), *sets, ("wikipedia",))


def _grammar(sizes: tuple[int, int, int], rate: float, seed: int) -> ShortcutTask:
    seen: set[str] = set()

    def make(n: int, share: float, stream: int) -> ShortcutTexts:
        made = grammar(seed=stream, n_per_class=n // 2, rate=share)
        texts = tuple(map(" ".join, made.tokens))
        new = [i for i, text in enumerate(texts) if text not in seen]
        seen.update(texts)
        return ShortcutTexts(texts, made.label, made.spur).take(np.array(new))

    sets = _splits(make, sizes, rate, seed)
    return ShortcutTask("grammar", ("no adjective", "adjective"), _ARTICLES, *sets, ())


def _splits(
    make: Callable[[int, float, int], ShortcutTexts], sizes: tuple[int, int, int], rate: float, seed: int
) -> list[ShortcutTexts]:
    """Train, dev and test of a twin: ``make(texts, share that agrees, stream)`` in turn, each with its own stream."""
    parts = enumerate(zip(sizes, (rate, rate, 0.5), strict=True))
    return [make(n, share, 3 * seed + part) if n else _nothing() for part, (n, share) in parts]


def _some(whole: ShortcutTexts, n: int | None, seed: int) -> ShortcutTexts:
    """Draw n of them at random, in their order; all if n is None."""
    if n is None:
        return whole
    if not 2 <= n <= len(whole):
        raise ValueError(f"there are {len(whole)} texts, not {n}")
    return whole.take(np.sort(np.random.default_rng([seed, 8]).permutation(len(whole))[:n]))


def _nothing() -> ShortcutTexts:
    none = np.zeros(0, dtype=np.int64)
    return ShortcutTexts((), none, none)


def _shown(prefixes: Sequence[Sequence[str]]) -> tuple[str, str]:
    if any(isinstance(words, str) for words in prefixes):
        raise ValueError(f"a prefix is a sequence of words, such as ('Positive', '.'): got {prefixes}")
    first, second = (" ".join(words) for words in prefixes)
    return first, second


_ARTICLES = ('"a" before "the"', '"the" before "a"')
TASKS: dict[str, Callable[..., ShortcutTask]] = {
    "textlen": _textlen, "msgs": _msgs, "wikipedia": _wikipedia, "grammar": _grammar,
}  # fmt: skip
