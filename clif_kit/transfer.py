r"""How much each source class helped a target task, from many pre-trainings on random halves of the source classes.

.. math:: I(C \to t) = \operatorname{mean}_{S \ni C} q(t; S) - \operatorname{mean}_{S \not\ni C} q(t; S)

with :math:`q(t; S)` the quality on target :math:`t` (probability of the right class, say) of a net that was pre-trained
on the source classes :math:`S` and then moved to the target task (Jain et al. 2022). Sign of the book: the query loss
is :math:`-q`, and :math:`I` estimates how much it rises when class :math:`C` is REMOVED: positive = helpful.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


def random_subsets(m: int, classes: int, *, seed: int, share: float = 0.5) -> np.ndarray:
    """``m`` random subsets with ``round(share * classes)`` classes each, shape ``(m, classes)``, bool.

    Raises:
        ValueError: If a subset would hold no class or all of them: then nothing can be compared.

    >>> random_subsets(2, 4, seed=0).sum(1)
    array([2, 2])
    """
    size = round(share * classes)
    if not 0 < size < classes:
        raise ValueError(f"share {share} of {classes} classes keeps {size}: it must keep some class and leave one out")
    rng = np.random.default_rng(seed)
    return rng.random((m, classes)).argsort(1) < size


def class_influence(quality: np.ndarray, keep: np.ndarray) -> np.ndarray:
    r"""Mean quality with the class minus mean quality without it.

    Equation 1 of Jain et al. (2022). Where quality is a sum of independent class effects, the expected value on subsets
    of ``k`` of ``c`` classes is the effect minus the mean effect of the other classes that take its place, that is
    :math:`\tfrac{c}{c-1}(\theta_C - \bar\theta)`: a class is judged against the average one, not against none.

    Args:
        quality: Larger is better, ``(m,)`` or ``(m, n)`` for ``n`` targets.
        keep: Which classes each of the ``m`` nets saw, ``(m, classes)``, bool.

    Returns:
        ``(classes,)`` or ``(classes, n)``, in the unit of ``quality`` per removed class. Positive = helpful.

    Raises:
        ValueError: If the shapes do not belong together, a number is NaN, or a class is in all subsets or in none.

    >>> class_influence(np.array([3.0, 1.0, 2.0]), np.array([[1, 0], [0, 1], [1, 0]], dtype=bool))
    array([ 1.5, -1.5])
    """
    keep, quality = _checked(quality, keep)
    inside = keep.sum(0)
    weights = keep / inside - ~keep / (len(keep) - inside)  # (m, classes)
    return np.tensordot(weights.T, quality, axes=1)


@dataclass(frozen=True)
class ClassTest:
    """Influence of each class with its 95 % interval over pre-trainings, and the p-value of no difference (Welch).

    Attributes:
        value: See :func:`class_influence`, ``(classes,)``.
        low: Lower ends, ``(classes,)``.
        high: Upper ends, ``(classes,)``.
        p: Two-sided, not adjusted for the number of classes, ``(classes,)``.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def class_test(quality: np.ndarray, keep: np.ndarray) -> ClassTest:
    """Welch's t interval of the influence of each class: subsets with it against subsets without it.

    Args:
        quality: One number a pre-training, ``(m,)``.
        keep: ``(m, classes)``, bool.

    Raises:
        ValueError: As :func:`class_influence`; or if a class has fewer than two subsets with or without it.
    """
    keep, quality = _checked(quality, keep)
    if quality.ndim != 1 or min(keep.sum(0).min(), (~keep).sum(0).min()) < 2:
        raise ValueError("class_test needs quality of shape (m,) and two subsets with and two without each class")
    found = [stats.ttest_ind(quality[k], quality[~k], equal_var=False) for k in keep.T]
    ends = [one.confidence_interval() for one in found]
    return ClassTest(
        value=class_influence(quality, keep),
        low=np.array([end.low for end in ends]),
        high=np.array([end.high for end in ends]),
        p=np.array([one.pvalue for one in found]),
    )


def without(classes: int, removed: np.ndarray) -> np.ndarray:
    """The subset that keeps all classes but ``removed``, ``(classes,)``, bool.

    Raises:
        ValueError: If no class would be left.

    >>> without(3, np.array([1]))
    array([ True, False,  True])
    """
    keep = np.ones(classes, dtype=bool)
    keep[removed] = False
    if not keep.any():
        raise ValueError(f"all {classes} source classes would be removed: remove fewer")
    return keep


def _checked(quality: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep, quality = np.asarray(keep), np.asarray(quality, dtype=float)
    if keep.dtype != bool or keep.ndim != 2 or quality.shape[:1] != keep.shape[:1]:
        raise ValueError(f"need keep (m, classes) of bool and quality (m, ...), got {keep.shape} and {quality.shape}")
    if np.isnan(quality).any():
        raise ValueError("quality holds NaN: a pre-training diverged")
    never = np.flatnonzero(keep.all(0) | ~keep.any(0))
    if len(never):
        raise ValueError(f"class {never[0]} is in all subsets or in none: draw more subsets (or a share nearer to 0.5)")
    return keep, quality
