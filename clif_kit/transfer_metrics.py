"""What several transfer studies say together: accuracies and their paired differences, with intervals over studies.

A study has its own images, source classes and nets, so it is the unit that is resampled; the fresh pre-trainings inside
a study are averaged first. Gains are accuracies (larger = better): ``a_minus_b`` above 0 means that ``a`` is better.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from clif_kit.evaluate import Interval, holm, interval, paired_difference, pearson
from clif_kit.transfer import class_influence, class_test

Runs = Sequence[Mapping[str, np.ndarray]]
OVER = "studies"
GAINS = (  # pairs of arms, better one first if the paper is right
    ("worst", "random"), ("worst", "full"), ("random", "best"), ("worst", "fewest"), ("worst", "unlike"),
    ("worst", "planted"), ("worst", "nearest"), ("full", "scratch"), ("full", "nearest"),
)  # fmt: skip
ORDER_SCORES = {"influence": "influence", "fewest": "size", "unlike": "likeness"}  # lowest leaves first


def arm_name(arm: str) -> str:
    """The name of an arm in metric keys: ``drop_worst`` for an order; ``full``, ``nearest``, ``scratch`` stay."""
    return arm if arm in ("full", "nearest", "scratch") else f"drop_{arm}"


def arm_accuracy(runs: Runs, arm: str, k: int) -> np.ndarray | None:
    """Accuracy of each study after removing ``k`` classes in the order ``arm``, ``(studies,)``; None if there is none.

    Arms without an order (``full``, ``planted``, ``nearest``, ``scratch``) do not depend on ``k``.

    Raises:
        ValueError: If the arm was run, but not with this ``k``.
    """
    names = [key for key in runs[0] if key.startswith(f"accuracy/{arm}")]
    if not names:
        return None
    key = f"accuracy/{arm}" if f"accuracy/{arm}" in names else f"accuracy/{arm}/{k}"
    if key not in names:
        raise ValueError(f"no fresh pre-trainings without {k} classes; there are {', '.join(sorted(names))}")
    return np.array([np.mean(run[key]) for run in runs])


def accuracy_metrics(runs: Runs, label: str, k: int, sizes: Sequence[int]) -> dict[str, Interval]:
    """Accuracy of every arm at every size, and the gains of :data:`GAINS` at size ``k``."""
    out = {}
    for arm in ("full", "planted", "nearest", "scratch"):
        if (found := arm_accuracy(runs, arm, k)) is not None:
            out[f"accuracy/{arm_name(arm)}/{label}"] = interval(np.mean, found, over=OVER, unit="share")
    for arm in ("worst", "random", "best", "fewest", "unlike"):
        for size in sizes:
            found = arm_accuracy(runs, arm, size)
            out[f"accuracy/drop_{arm}/k{size}/{label}"] = interval(np.mean, found, over=OVER, unit="share")
    return (
        out
        | gains(runs, label, k, GAINS)
        | {
            key: gain
            for size in sizes
            for key, gain in gains(runs, f"k{size}/{label}", size, (("worst", "random"), ("worst", "full"))).items()
        }
    )


def gains(runs: Runs, label: str, k: int, pairs: Sequence[tuple[str, str]]) -> dict[str, Interval]:
    """Paired differences of the accuracies of two arms, over studies; a pair with an arm not run is left out."""
    out = {}
    for better, other in pairs:
        a, b = (arm_accuracy(runs, arm, k) for arm in (better, other))
        if a is not None and b is not None:
            out[f"accuracy_gain/{arm_name(better)}_minus_{arm_name(other)}/{label}"] = paired_difference(
                a, b, OVER, "share"
            )
    return out


def auc(score: np.ndarray, bad: np.ndarray) -> float:
    """Share of pairs of a bad and an honest class in which the bad one has the lower score; ties count one half.

    >>> auc(np.array([1.0, 3.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    low, high = score[bad][:, None], score[~bad][None]
    return float(np.mean((low < high) + 0.5 * (low == high)))


def detection_metrics(runs: Runs, label: str) -> dict[str, Interval]:
    """How well each order puts the planted bad classes first (area under the ROC curve; chance is one half)."""
    if not all(run["bad"].any() for run in runs):
        return {}
    areas = {name: np.array([auc(run[key], run["bad"]) for run in runs]) for name, key in ORDER_SCORES.items()}
    out = {f"auc/{name}/planted/{label}": interval(np.mean, area, over=OVER) for name, area in areas.items()}
    for other in ("fewest", "unlike"):
        out[f"auc_gain/influence_minus_{other}/{label}"] = paired_difference(areas["influence"], areas[other], OVER)
    return out


def class_metrics(runs: Runs, label: str) -> dict[str, Interval]:
    """Share of classes surely below or above the average class (Holm in a study), and how far half-samples agree.

    Below the average is not harmful: see :func:`clif_kit.transfer.class_influence`. Only fresh nets tell.
    """
    tests = [class_test(run["quality"], run["keep"]) for run in runs]
    sure = [holm(test.p) < 0.05 for test in tests]
    shares = {
        "share_below": [np.mean(s & (t.value < 0)) for s, t in zip(sure, tests, strict=True)],
        "share_above": [np.mean(s & (t.value > 0)) for s, t in zip(sure, tests, strict=True)],
    }
    out = {f"{name}/holm/{label}": interval(np.mean, each, over=OVER, unit="share") for name, each in shares.items()}
    agree = [split_half(run["quality"], run["keep"]) for run in runs]
    return out | {f"pearson/split_half/{label}": interval(np.mean, agree, over=OVER, unit="r")}


def split_half(quality: np.ndarray, keep: np.ndarray) -> float:
    """Pearson correlation of the influences from the first and from the second half of the pre-trainings."""
    cut = len(keep) // 2
    return pearson(class_influence(quality[:cut], keep[:cut]), class_influence(quality[cut:], keep[cut:]))


def precision_metrics(runs: Runs, label: str) -> dict[str, Interval]:
    """Share of the planted subpopulation among the target images with the highest influence of its source class."""
    names = {"top_influence": "influence", "pixels": "pixels", "random": "chance"}
    mean = {name: np.array([run[f"precision/{key}"].mean() for run in runs]) for name, key in names.items()}
    out = {f"precision/{name}/{label}": interval(np.mean, each, over=OVER, unit="share") for name, each in mean.items()}
    for other in ("random", "pixels"):
        key = f"precision_gain/top_influence_minus_{other}/{label}"
        out[key] = paired_difference(mean["top_influence"], mean[other], OVER, "share")
    return out


def summary(runs: Runs, label: str, k: int, sizes: Sequence[int]) -> dict[str, Interval]:
    """All metrics of one panel of studies; ``label`` ends their keys."""
    return (
        accuracy_metrics(runs, label, k, sizes)
        | detection_metrics(runs, label)
        | class_metrics(runs, label)
        | precision_metrics(runs, label)
    )
