r"""What a feature of a sparse layer reads, and whether putting that into an input flips predictions.

.. math:: \bar c_{w} = \frac1{|T_w|} \sum_{t \in T_w} \sum_{j : t_j = w} c_{tj}, \qquad
          \text{flips} = \frac1n \sum_i [f(\text{insert}(x_i)) \ne f(x_i)]

:math:`c_{tj}` is what position j of text t adds to the feature, in the feature's unit; :math:`T_w` are the texts that
hold the word w. Flips are shares between 0 and 1, counted beside those of a control insertion on the same inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from clif_kit.evaluate import Interval, paired_difference


@dataclass(frozen=True)
class Insertion:
    """Flips by an insertion, by its control, and what is between them.

    Attributes:
        flips: Share of inputs whose prediction changes, with Wilson's interval.
        control: The same for the control.
        difference: ``flips - control``, bootstrap over the same inputs.
        flipped: Which inputs, shape ``(n,)``, bool.
        control_flipped: By the control.
        kept: Positions of the n inputs among those given: the ones with the class asked for.
    """

    flips: Interval
    control: Interval
    difference: Interval
    flipped: np.ndarray = field(repr=False)
    control_flipped: np.ndarray = field(repr=False)
    kept: np.ndarray = field(repr=False)


def word_means(
    contributions: ArrayLike, ids: ArrayLike, words: int, *, least: int = 1, padding: int | None = 0
) -> np.ndarray:
    """Mean contribution of each word to a feature, over the texts that hold it.

    A word that stands twice in a text counts with the sum of both places, once.

    Args:
        contributions: Of each position to the feature, shape ``(texts, length)``, for example its value times its
            gradient, or the feature with the word less the feature without it.
        ids: Word at each position, 0 .. words - 1, shape ``(texts, length)``.
        words: Size of the vocabulary.
        least: A word in fewer texts gets NaN: its mean would be chance.
        padding: Id that is no word; None if every id is one.

    Returns:
        Shape ``(words,)``; NaN for a word that no text holds.

    Raises:
        ValueError: If the shapes differ, an id is out of range or a contribution is not finite.

    >>> word_means([[1.0, 3.0, 5.0], [4.0, 0.0, 0.0]], [[1, 1, 2], [1, 0, 0]], words=4).tolist()
    [nan, 4.0, 5.0, nan]
    """
    contributions, ids = np.asarray(contributions, dtype=np.float64), np.asarray(ids)
    if contributions.shape != ids.shape or ids.ndim != 2:
        raise ValueError(f"contributions {contributions.shape} and ids {ids.shape} must have one shape (texts, length)")
    if ids.size and (ids.min() < 0 or ids.max() >= words):
        raise ValueError(f"ids must be 0 to {words - 1}, got {ids.min()} to {ids.max()}")
    real = np.ones(ids.shape, bool) if padding is None else ids != padding
    if not np.isfinite(contributions[real]).all():
        raise ValueError("a contribution is not finite")
    total = np.bincount(ids[real], contributions[real], minlength=words)
    texts, _ = np.nonzero(real)
    pairs = np.unique(np.stack([texts, ids[real]]), axis=1)
    holding = np.bincount(pairs[1], minlength=words)
    return np.where(holding >= max(least, 1), total / np.maximum(holding, 1), np.nan)


def top_words(contributions: ArrayLike, vocabulary: Sequence[str], n: int = 10) -> list[tuple[str, float]]:
    """The n words that raise a feature most, highest first; ties in alphabetical order.

    Args:
        contributions: Mean of each word (:func:`word_means`), shape ``(words,)``. For features that are words, such as
            TF-IDF: the weights of a class. Negate them for the words that lower a feature most.
        vocabulary: The words; NaN contributions are passed over.
        n: How many; fewer where fewer words have a positive contribution.

    Raises:
        ValueError: If there is not one contribution for each word.

    >>> top_words([0.5, float("nan"), 2.0, 0.5, -1.0], ["pear", "fig", "apple", "kiwi", "plum"], n=2)
    [('apple', 2.0), ('kiwi', 0.5)]
    """
    values = np.asarray(contributions, dtype=np.float64)
    if values.shape != (len(vocabulary),):
        raise ValueError(f"{len(vocabulary)} words need as many contributions, got {values.shape}")
    found = [(word, float(value)) for word, value in zip(vocabulary, values, strict=True) if value > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:n]


def insertion_test(
    predict: Callable[[Any], Any],
    inputs: Any,
    insert: Callable[[Any], Any],
    control: Callable[[Any], Any],
    *,
    source: int | None = None,
    target: int | None = None,
    over: str = "inputs",
) -> Insertion:
    """Whether an insertion flips predictions more often than its control does. With a removal in its place: removal.

    Args:
        predict: Inputs to classes, shape ``(n,)``; called on the inputs as given and on lists of changed ones. Given
            a tensor or an array, the changed inputs are stacked again.
        inputs: Texts, token lists, images.
        insert: One input to one input: with the word or the patch in it. Must not change what it is given.
        control: The same with an unrelated word or patch, as frequent or as large.
        source: Only inputs that are predicted as this class are tried; None tries all.
        target: Only a change to this class is a flip; None counts any.
        over: What the inputs are, in words.

    Raises:
        ValueError: If fewer than two inputs are left, or predict does not give one class for each.

    >>> longer = lambda texts: [int(len(text) > 3) for text in texts]
    >>> test = insertion_test(longer, ["a", "abc", "abcd"], lambda t: t + "xx", lambda t: t + "", source=0)
    >>> test.flips.value, test.control.value, test.difference.n
    (0.5, 0.0, 2)
    """
    before = _classes(predict, inputs, len(inputs))
    kept = np.flatnonzero(np.ones(len(before), bool) if source is None else before == source)
    if len(kept) < 2:
        raise ValueError(
            f"{len(kept)} of {len(before)} inputs are predicted as class {source}; the test needs 2 or more"
        )
    flipped, control_flipped = (
        _flips(_classes(predict, _like(inputs, [change(inputs[i]) for i in kept]), len(kept)), before[kept], target)
        for change in (insert, control)
    )
    return Insertion(
        flips=wilson(flipped, over),
        control=wilson(control_flipped, over),
        difference=paired_difference(flipped.astype(float), control_flipped.astype(float), over),
        flipped=flipped,
        control_flipped=control_flipped,
        kept=kept,
    )


def wilson(hits: ArrayLike, over: str) -> Interval:
    """The share of hits with Wilson's 95 % interval, which does not shrink to a point where all hits are alike.

    Args:
        hits: One truth value for each unit.
        over: What the units are.

    Raises:
        ValueError: If there is no unit.

    >>> wilson([True] * 10, "texts")
    Interval(value=1.0, low=0.722..., high=1.0, n=10, over='texts', unit='', values=None)
    """
    hits = np.asarray(hits, dtype=bool)
    if not hits.size or hits.ndim != 1:
        raise ValueError(f"a share over {over} needs units in one list, got shape {hits.shape}")
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    value = float(hits.mean())
    return Interval(value, min(float(found.low), value), max(float(found.high), value), len(hits), over)


def _flips(after: np.ndarray, before: np.ndarray, target: int | None) -> np.ndarray:
    return (after != before) & (True if target is None else after == target)


def _classes(predict: Callable[[Any], Any], inputs: Any, n: int) -> np.ndarray:
    """Predictions as whole numbers, shape ``(n,)``."""
    found = np.asarray(predict(inputs))
    if found.shape != (n,):
        raise ValueError(f"predict must give one class for each of {n} inputs, got shape {found.shape}")
    return found


def _like(inputs: Any, changed: list[Any]) -> Any:
    """The list, stacked where the inputs were."""
    if isinstance(inputs, np.ndarray):
        return np.stack(changed)
    return torch.stack(changed) if isinstance(inputs, torch.Tensor) else changed
