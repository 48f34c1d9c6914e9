"""Wrong labels that we planted ourselves: who finds them, and does it help to take out what was found?

Each detector gives every training text a number, large = suspicious. The truth is known because we made it; on a file
of one's own the same detectors say where to look first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from clif_kit.evaluate import Interval, detection_curve, interval, paired_difference
from clif_kit.own_layer import influence, losses, refit, self_influence
from clif_kit.own_study import OwnStudy

DETECTORS = ("self_influence", "harm", "loss", "heldout_loss", "random")


def plant(
    frame: pd.DataFrame, n_train: int, tests: int, share: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Draw training and test texts, all different, and give a share of the training texts the label of another class.

    Args:
        frame: ``row, id, text, label``.
        n_train: Training texts.
        tests: Test texts; their labels stay.
        share: Of the training texts that get a wrong label, at least one.
        seed: Of the draws.

    Returns:
        Training texts, test texts, and which training labels are wrong, bool ``(n_train,)``.

    Raises:
        ValueError: If there are too few different texts.

    >>> frame = pd.DataFrame({"row": range(9), "id": "", "text": list("abcdefghi"), "label": list("xyzxyzxyz")})
    >>> train, test, wrong = plant(frame, 6, 2, 0.3, seed=0)
    >>> len(train), len(test), int(wrong.sum()), int((train["label"] != frame["label"][train["row"]].values).sum())
    (6, 2, 2, 2)
    """
    different, rng = frame.drop_duplicates("text"), np.random.default_rng(seed)
    if len(different) < n_train + tests:
        raise ValueError(
            f"{len(different)} different texts are fewer than n_train + tests, {n_train} + {tests}: ask for fewer"
        )
    drawn = different.iloc[rng.permutation(len(different))[: n_train + tests]]
    train, test = drawn[:n_train].reset_index(drop=True), drawn[n_train:].reset_index(drop=True)
    wrong, classes = np.zeros(n_train, dtype=bool), sorted(set(different["label"]))
    wrong[rng.choice(n_train, max(1, round(share * n_train)), replace=False)] = True
    for i in np.flatnonzero(wrong):
        train.loc[i, "label"] = rng.choice([name for name in classes if name != train.loc[i, "label"]])
    return train, test, wrong


def detectors(study: OwnStudy, folds: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Suspicion of each training text by each detector, ``(n,)``, large = suspicious.

    ``self_influence``; ``harm``: minus the mean influence on the test texts; ``loss``: of the model that saw the text;
    ``heldout_loss``: of a model that did not, in ``folds`` parts; ``random``.
    """
    layer, rng = study.layer, np.random.default_rng(seed)
    n = len(study.train)
    part, heldout = rng.permutation(n) % folds, np.zeros(n)
    for k in range(folds):
        rows = torch.from_numpy(np.flatnonzero(part == k))
        heldout[part == k] = losses(layer.x[rows], layer.y[rows], refit(layer, part != k))
    return {
        "self_influence": self_influence(layer),
        "harm": -influence(layer, study.test_x, study.test_y).mean(0),
        "loss": losses(layer.x, layer.y, layer.weight),
        "heldout_loss": heldout,
        "random": rng.random(n),
    }


def precision(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    """Share of wrong labels among the as many most suspicious texts as there are wrong labels.

    >>> precision(np.array([3.0, 1.0, 2.0]), np.array([True, True, False]))
    0.5
    """
    return float(wrong[np.argsort(-suspicion, kind="stable")[: wrong.sum()]].mean())


def cleaned(study: OwnStudy, suspicion: np.ndarray, m: int) -> float:
    """Change of the mean loss of the test texts, in nats, when the m most suspicious training texts leave."""
    keep = np.ones(len(study.train), dtype=bool)
    keep[np.argsort(-suspicion, kind="stable")[:m]] = False
    return float((study.test_losses(refit(study.layer, keep)) - study.test_losses()).mean())


def planted_metrics(found: Sequence[Mapping[str, np.ndarray]], wrong: Sequence[np.ndarray]) -> dict[str, Interval]:
    """Precision and area under the detection curve of each detector, and differences from self-influence, over draws.

    Args:
        found: What :func:`detectors` gave, one for each draw, two or more.
        wrong: Which labels are wrong, one for each draw.
    """
    metrics, hits = {}, {}
    for name in found[0]:
        hits[name] = [precision(one[name], truth) for one, truth in zip(found, wrong, strict=True)]
        areas = [detection_curve(one[name], truth).auc for one, truth in zip(found, wrong, strict=True)]
        metrics[f"precision/{name}/planted"] = interval(np.mean, hits[name], over="draws", unit="share")
        metrics[f"auc_detect/{name}/planted"] = interval(np.mean, areas, over="draws", unit="share")
    for name in found[0]:
        if name != "self_influence":
            gain = paired_difference(hits["self_influence"], hits[name], "draws", "share")
            metrics[f"precision_gain/self_influence_minus_{name}/planted"] = gain
    return metrics
