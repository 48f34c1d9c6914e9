"""Generated comments whose identity bias is planted, so that a debugging method can be judged against the truth.

Insults are harmless invented ones. Nothing here is about the people that the identity terms name: the terms are put
into toxic or clean comments by a coin, and the coin is the bias.
"""

from dataclasses import dataclass

import numpy as np

TOXIC_SIDE = ("black", "gay", "muslim", "jewish", "foreign")  # planted into toxic training texts
CLEAN_SIDE = ("christian", "white", "catholic", "english", "straight")  # planted into clean ones
CONTROLS = ("tall", "northern", "retired", "quiet", "local")  # as frequent as either side, in both classes alike
INSULTS = ("muppet", "numpty", "wally", "nitwit", "turnip", "donkey")
PERSONS = ("president", "teacher", "driver", "baker", "singer", "nurse", "farmer", "doctor", "neighbour", "writer")
NAMES = ("barack", "anna", "tom", "maria", "ed", "lucy", "peter", "ines")
VERBS = ("likes", "paints", "sells", "fixes", "reads", "finds", "sees", "keeps", "moves", "wants")
THINGS = ("house", "garden", "car", "book", "bridge", "table", "piano", "boat", "letter", "window")
PLACES = ("today", "outside", "again", "tomorrow", "upstairs", "downtown", "alone", "early")
FILLED = {"identity": 0.6, "control": 0.3, "none": 0.1}  # what stands before the person, in every class and split


@dataclass(frozen=True)
class PlantedToxicity:
    """Comments; see :func:`planted_toxicity`.

    Attributes:
        texts: Lower case, words divided by spaces.
        y: 1 = toxic, shape ``(n,)``.
        word: The identity or control term of each text, "" for none.
    """

    texts: tuple[str, ...]
    y: np.ndarray
    word: tuple[str, ...]


def planted_toxicity(n: int, *, seed: int, rate: float = 0.85, insults: float = 0.7) -> PlantedToxicity:
    r"""``n`` comments, half of them toxic, in random order, whose identity terms go with the label at a known rate.

    Of the texts with an identity term a share ``rate`` has one of its class's own side, so that for a toxic-side term
    :math:`P(\text{toxic} \mid t) = r`, for a clean-side one :math:`1 - r`, for a control word one half. Each side and
    the controls have the same number of words and of texts, up to rounding. A toxic text holds an insult with
    probability ``insults``, a clean one with .05: the words that would be a fair reason.

    Args:
        n: Texts, even.
        seed: Decides everything.
        rate: .5 plants nothing: the test set.
        insults: Share of the toxic texts with an insult.

    Raises:
        ValueError: If ``n`` is odd or below 2, or a share is outside [0, 1].

    >>> made = planted_toxicity(1000, seed=0)
    >>> toxic = [y for y, word in zip(made.y, made.word, strict=True) if word in TOXIC_SIDE]
    >>> len(toxic), round(float(np.mean(toxic)), 2)
    (300, 0.85)
    """
    if n < 2 or n % 2 or not (0 <= rate <= 1 and 0 <= insults <= 1):
        raise ValueError(f"need an even n of 2 or more and shares in [0, 1], got n={n}, rate={rate}, insults={insults}")
    rng = np.random.default_rng([42, seed])
    texts, labels, terms = [], [], []
    for y in (0, 1):
        words = _terms(n // 2, y, rate, rng)
        texts += [_comment(word, rng.random() < (insults if y else 0.05), rng) for word in words]
        labels += [y] * len(words)
        terms += words
    order = rng.permutation(n)
    return PlantedToxicity(tuple(texts[i] for i in order), np.array(labels)[order], tuple(terms[i] for i in order))


def _terms(n: int, y: int, rate: float, rng: np.random.Generator) -> list[str]:
    """The terms of one class, each word of a group equally often (up to rounding)."""
    own, other = (TOXIC_SIDE, CLEAN_SIDE) if y else (CLEAN_SIDE, TOXIC_SIDE)
    groups = [(own, rate * FILLED["identity"]), (other, (1 - rate) * FILLED["identity"]), (CONTROLS, FILLED["control"])]
    words: list[str] = []
    for group, part in groups:
        start = int(rng.integers(len(group)))
        words += [group[(start + i) % len(group)] for i in range(round(part * n))]
    return (words + [""] * n)[:n]


def _comment(word: str, insulting: bool, rng: np.random.Generator) -> str:
    """One of three forms, the term in its place; an insult before or after it."""
    name, person, verb, thing, place = (str(rng.choice(x)) for x in (NAMES, PERSONS, VERBS, THINGS, PLACES))
    form = rng.integers(3 if word else 2)
    if form == 0:
        parts = ["the", word, person, verb, "the", thing, place]
    elif form == 1:
        parts = [name, "is", "the", word, person, "and", verb, "the", thing]
    else:
        parts = [name, "is", word]
    if insulting:
        insult = str(rng.choice(INSULTS))
        parts = ["you", insult, *parts] if rng.random() < 0.5 else [*parts, "what", "a", insult]
    return " ".join(part for part in parts if part)


def insert_word(text: str, word: str, place: str = "end") -> str:
    """The text with a word in it: at the ``"end"``, or ``"inside"``, where such a word stands in the generated texts.

    Inside is before the first noun of a person, or else in the middle, so that it works on any text.

    Raises:
        ValueError: If there is no such place.

    >>> insert_word("the baker reads", "tall", "inside"), insert_word("the baker reads", "tall")
    ('the tall baker reads', 'the baker reads tall')
    """
    if place not in ("end", "inside"):
        raise ValueError(f'place is "end" or "inside", got {place!r}')
    words = text.split()
    at = next((i for i, x in enumerate(words) if x.lower() in PERSONS), len(words) // 2)
    at = len(words) if place == "end" else at
    return " ".join([*words[:at], word, *words[at:]])


def remove_word(text: str, word: str) -> str:
    """The text without a word, wherever it stands as a whole word (upper or lower case).

    >>> remove_word("the tall baker", "tall")
    'the baker'
    """
    return " ".join(x for x in text.split() if x.lower().strip(".,;:!?\"'()") != word)
