"""Source classes made of digit images, some of them planted to be bad, and a coarser target task with few labels.

A source class is a digit in one of two looks: plain or turned by 90 degrees. A bad class keeps its place and its number
of images but not its meaning: ``mixed`` holds any digits in any look; ``contradicting`` holds, in one look, its digit
and another one of the other parity, which the target task must tell apart. Target: is the digit even or odd? Its images
come in all looks, so that the images of one digit and look are a subpopulation that one source class alone is about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clif_kit import datasets

DIGITS = 10
LOOKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
}
BAD = ("mixed", "contradicting")


@dataclass(frozen=True)
class Task:
    """A source task and a target task, which share no image.

    Attributes:
        x: Source images, float32 in [0, 1], ``(n, side, side)``.
        group: The source class of each image, which is its label, ``(n,)``.
        names: Of the source classes, such as ``"7 turned"``: ``digit + 10 * look`` is the number of the class.
        kind: Of each class: ``"honest"``, ``"mixed"`` or ``"contradicting"``.
        target: Images and parities: ``train`` (few, labelled), ``order`` (choose what to remove), ``judge`` (report).
        subpopulation: The source class of digit and look of each ``judge`` image, ``(n_judge,)``.
    """

    x: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    kind: tuple[str, ...]
    target: dict[str, tuple[np.ndarray, np.ndarray]]
    subpopulation: np.ndarray

    @property
    def bad(self) -> np.ndarray:
        """Whether a class was planted to be bad, ``(classes,)``, bool."""
        return np.array([kind != "honest" for kind in self.kind])


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, side, side)`` and digits ``(n,)`` of ``digits`` (8 x 8) or ``mnist`` (averaged to 14 x 14).

    Raises:
        ValueError: If the name is another one.
    """
    if name == "digits":
        found = datasets.digits()
        return found.x, found.y
    if name == "mnist":
        found = datasets.mnist_test()
        return found.x.reshape(-1, 14, 2, 14, 2).mean((2, 4)), found.y
    raise ValueError(f"no images called {name!r}: digits or mnist")


def make_task(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    bad: int = 8,
    kinds: Sequence[str] = ("mixed",),
    labels: int = 60,
    judge: int = 350,
    sizes: tuple[int, int] = (12, 30),
) -> Task:
    """Draw the images of a source and of a target task.

    Args:
        x: Images, ``(n, side, side)``, square, brightness in [0, 1].
        y: Digits, ``(n,)``.
        seed: Decides everything that is drawn.
        bad: Planted source classes; 0 plants nothing.
        kinds: Of :data:`BAD`; planted classes take them in turn.
        labels: Labelled target images.
        judge: Target images that order the classes, and as many others that judge.
        sizes: Smallest and largest number of images of a source class.

    Raises:
        ValueError: If there are more bad classes than classes, a kind is unknown, or there are too few images.
    """
    rng = np.random.default_rng(seed)
    classes, need = DIGITS * len(LOOKS), labels + 2 * judge
    if not 0 <= bad <= classes:
        raise ValueError(f"bad classes: 0 to {classes}, got {bad}")
    if not kinds or set(kinds) - set(BAD):
        raise ValueError(f"kinds of bad classes: {', '.join(BAD)}; got {list(kinds)}")
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    sx, sy, tx, ty = x[need:], y[need:], x[:need], y[:need]
    if len(sx) == 0 or min(np.bincount(sy, minlength=DIGITS)) < sizes[1]:
        raise ValueError(f"{len(x)} images are too few for {need} target images and {sizes[1]} of each source digit")
    kind = np.array(["honest"] * classes, dtype=object)
    for i, c in enumerate(rng.choice(classes, bad, replace=False)):
        kind[c] = kinds[i % len(kinds)]
    source = [_images(sx, sy, c, kind[c], int(rng.integers(sizes[0], sizes[1] + 1)), rng) for c in range(classes)]
    look = rng.integers(len(LOOKS), size=need)
    tx = _seen(tx, look)
    cut = np.split(np.arange(need), [labels, labels + judge])
    return Task(
        x=np.concatenate(source),
        group=np.repeat(np.arange(classes), [len(one) for one in source]),
        names=tuple(f"{c % DIGITS} {list(LOOKS)[c // DIGITS]}" for c in range(classes)),
        kind=tuple(kind),
        target={name: (tx[at], ty[at] % 2) for name, at in zip(("train", "order", "judge"), cut, strict=True)},
        subpopulation=(ty + DIGITS * look)[cut[2]],
    )


def _images(x: np.ndarray, y: np.ndarray, c: int, kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` images of source class ``c``."""
    digit, look = c % DIGITS, np.full(size, c // DIGITS)
    if kind == "mixed":
        at, look = rng.choice(len(y), size, replace=False), rng.integers(len(LOOKS), size=size)
    elif kind == "contradicting":
        other = rng.choice([d for d in range(DIGITS) if (d - digit) % 2])
        half = [rng.choice(np.flatnonzero(y == d), size, replace=False) for d in (digit, other)]
        at = np.concatenate([half[0][: size // 2], half[1][size // 2 :]])
    else:
        at = rng.choice(np.flatnonzero(y == digit), size, replace=False)
    return _seen(x[at], look)


def _seen(x: np.ndarray, look: np.ndarray) -> np.ndarray:
    """Each image in its look."""
    out = x.copy()
    for number, change in enumerate(LOOKS.values()):
        out[look == number] = change(x[look == number])
    return out
