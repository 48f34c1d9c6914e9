"""Data that we make ourselves, so that the right answer is known.

Each generator takes a seed, uses random streams of its own and returns a frozen dataclass: the same arguments give the
same data, whatever was called before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MixtureOfGaussians:
    """Points of an isotropic Gaussian mixture; see :func:`mixture_of_gaussians`.

    Attributes:
        x: Points, shape ``(n, d)``, sorted by class.
        y: Class of each, shape ``(n,)``.
        means: Class means, shape ``(k, d)``.
        std: Standard deviation of every coordinate.
    """

    x: np.ndarray
    y: np.ndarray
    means: np.ndarray
    std: float


@dataclass(frozen=True)
class PlantedPrefix:
    """Sentences whose length tells the label, behind a prefix that nearly tells it; see :func:`planted_prefix`.

    Attributes:
        tokens: One tuple of words a sentence, prefix included.
        label: 0 (short) or 1 (long), shape ``(n,)``.
        spur: Which prefix it has, 0 or 1, shape ``(n,)``; aligned where it equals ``label``.
        length: Words without the prefix, shape ``(n,)``.
    """

    tokens: tuple[tuple[str, ...], ...]
    label: np.ndarray
    spur: np.ndarray
    length: np.ndarray

    def without_prefix(self) -> tuple[tuple[str, ...], ...]:
        """The same sentences without the prefix: the control that cannot learn the shortcut."""
        return tuple(words[len(words) - n :] for words, n in zip(self.tokens, self.length, strict=True))


@dataclass(frozen=True)
class Grammar:
    """Sentences with a linguistic and a surface feature; see :func:`grammar`.

    Attributes:
        tokens: One tuple of words a sentence.
        label: 1 if the sentence has an adjective (linguistic), shape ``(n,)``.
        spur: 1 if "the" comes before "a" (surface), shape ``(n,)``; aligned where it equals ``label``.
    """

    tokens: tuple[tuple[str, ...], ...]
    label: np.ndarray
    spur: np.ndarray


def mixture_of_gaussians(
    *,
    seed: int,
    n_per_class: int = 50,
    means: Sequence[Sequence[float]] = ((0.0, 0.0), (5.0, 5.0), (5.0, -5.0)),
    std: float = 1.25,
) -> MixtureOfGaussians:
    r"""Points :math:`x \sim N(\mu_y, \sigma^2 I)`, the same number of each class, classes in order.

    The defaults are the data of Silva et al. (2022), section 4.1, as their public code draws them: 3 classes of 50,
    standard deviation (not variance) 1.25. Each class has a stream of its own, so that more points or more classes
    leave the others as they are.

    Raises:
        ValueError: If ``n_per_class < 1`` or ``std < 0``.

    >>> mixture_of_gaussians(seed=0).x.shape
    (150, 2)
    """
    if n_per_class < 1 or std < 0:
        raise ValueError(f"need n_per_class >= 1 and std >= 0, got {n_per_class} and {std}")
    centres = np.asarray(means, dtype=float)  # (k, d)
    k, d = centres.shape
    noise = [np.random.default_rng([seed, j]).normal(size=(n_per_class, d)) for j in range(k)]
    y = np.repeat(np.arange(k), n_per_class)
    return MixtureOfGaussians(centres[y] + std * np.concatenate(noise), y, centres, std)


def planted_prefix(
    sentences: Sequence[str | Sequence[str]],
    *,
    seed: int,
    n_per_class: int | None = None,
    rate: float = 0.9,
    mean_lengths: tuple[float, float] = (15.0, 25.0),
    std: float = 4.0,
    max_words: int = 30,
    prefixes: tuple[Sequence[str], Sequence[str]] = (("Negative", "."), ("Positive", ".")),
) -> PlantedPrefix:
    r"""Cut sentences to a length that tells the label, and put a word in front that mostly agrees.

    Follows TextLen of Han and Tsvetkov (2021): sentences of at least 30 words; class :math:`y` is cut to
    :math:`\lfloor L \rfloor` words with :math:`L \sim N(\mu_y, 4^2)`, :math:`\mu = (15, 25)`; of each class exactly
    ``int(rate * n)`` get the prefix of their own class and the others that of the other (train 0.9, test 0.5). No
    sentence is used twice, and lengths are kept between 1 and ``max_words``.

    Facts: the best that length alone can do is the threshold at 20 words, :math:`\Phi(1.25)` = 89.4 % right; the prefix
    alone is right ``rate`` of the time.

    Args:
        sentences: Strings (split at spaces) or lists of words; those shorter than ``max_words`` are left out.
        seed: Of the choice, the lengths and the flips.
        n_per_class: Sentences of each class; None takes as many as there are.
        rate: Share of each class whose prefix agrees with its label, 0 to 1.
        mean_lengths: Mean length of class 0 and of class 1, in words.
        std: Standard deviation of both lengths.
        max_words: Longest sentence, without the prefix.
        prefixes: Of class 0 and of class 1.

    Raises:
        ValueError: If ``rate`` is not in [0, 1] or too few sentences are long enough.

    >>> data = planted_prefix(["word " * 30] * 40, seed=0)
    >>> len(data.tokens), data.tokens[0][:2] in {("Positive", "."), ("Negative", ".")}
    (40, True)
    """
    words = [tuple(s.split() if isinstance(s, str) else s) for s in sentences]
    words = [w for w in words if len(w) >= max_words]
    n = len(words) // 2 if n_per_class is None else n_per_class
    if n < 1 or 2 * n > len(words):
        raise ValueError(f"{len(words)} sentences have {max_words} words or more; 2 * {n} are needed")
    choice, cut, order = (np.random.default_rng([seed, stream]) for stream in range(3))
    label, spur = _planted(n, rate)
    drawn = cut.normal(np.asarray(mean_lengths)[label], std)
    length = np.clip(np.floor(drawn), 1, max_words).astype(int)
    picked = choice.permutation(len(words))[: 2 * n]
    tokens = [(*prefixes[s], *words[i][:m]) for i, s, m in zip(picked, spur, length, strict=True)]
    mixed = order.permutation(2 * n)
    return PlantedPrefix(tuple(tokens[i] for i in mixed), label[mixed], spur[mixed], length[mixed])


# All begin with a consonant sound, so that "a" is always right. No adjective is in the other lists.
_SUBJECTS = (
    "baker dancer doctor farmer friend guard judge lawyer nurse painter pilot sailor singer student teacher writer"
)
_OBJECTS = "basket bridge castle curtain door fence ladder letter mirror picture ship statue table temple train wagon"
_VERBS = "built carried described found guarded inspected kept moved noticed painted photographed saw sold watched"
_ADJECTIVES = "big brave bright clever famous fragile gentle heavy narrow polite quiet red rich strange tall young"
_MODIFIERS = (
    "brick city desert county forest garden harbor market mountain museum palace river school stone theater village"
)
_ADVERBS = "again finally later maybe often quickly recently sometimes soon today twice yesterday"


def grammar(*, seed: int, n_per_class: int = 500, rate: float = 0.997) -> Grammar:
    """Sentences whose label is a matter of grammar, while the order of "the" and "a" nearly tells it.

    Modelled on MSGS (Warstadt et al., 2020) as Han and Tsvetkov (2021) use it: the label asks "is there an adjective?",
    the surface feature "does *the* come before *a*?"; of each class exactly ``int(rate * n)`` sentences agree (in their
    training set 99.7 %). A sentence of class 0 has a noun in the adjective's place ("the garden baker saw a door
    today"), so that neither length nor word order tells the label. All sentences have seven words and differ.

    Raises:
        ValueError: If ``rate`` is not in [0, 1], ``n_per_class < 1``, or there are not so many different sentences.

    >>> data = grammar(seed=0, n_per_class=2, rate=0.5)
    >>> sorted(zip(data.label.tolist(), data.spur.tolist())), {len(words) for words in data.tokens}
    ([(0, 0), (0, 1), (1, 0), (1, 1)], {7})
    """
    label, spur = _planted(n_per_class, rate)
    tokens: list[tuple[str, ...]] = [()] * len(label)
    for y in (0, 1):
        lists = [text.split() for text in (_SUBJECTS, _VERBS, _OBJECTS, (_MODIFIERS, _ADJECTIVES)[y], _ADVERBS)]
        sizes = (*map(len, lists), 2)  # the last: which of the two nouns has the modifier
        picked = np.random.default_rng([seed, y]).choice(np.prod(sizes), size=n_per_class, replace=False)
        for i, (*which, second) in zip(
            np.flatnonzero(label == y), np.stack(np.unravel_index(picked, sizes), 1), strict=True
        ):
            subject, verb, thing, modifier, adverb = (words[j] for words, j in zip(lists, which, strict=True))
            first, last = ("the", "a") if spur[i] else ("a", "the")
            before, after = ((), (modifier,)) if second else ((modifier,), ())
            tokens[i] = (first, *before, subject, verb, last, *after, thing, adverb)
    mixed = np.random.default_rng([seed, 2]).permutation(len(label))
    return Grammar(tuple(tokens[i] for i in mixed), label[mixed], spur[mixed])


def _planted(n: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n zeros, n ones) and a feature that agrees with exactly ``int(rate * n)`` of each class."""
    if n < 1 or not 0 <= rate <= 1:
        raise ValueError(f"need at least one example of each class and a rate in [0, 1], got {n} and {rate}")
    label = np.repeat([0, 1], n)
    agrees = np.tile(np.arange(n) < int(rate * n + 1e-9), 2)  # 1e-9: 0.29 * 100 is 28.999...
    return label, np.where(agrees, label, 1 - label)
