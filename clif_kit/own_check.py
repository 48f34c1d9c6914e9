"""The check that counts: proponents leave, the last layer is trained again, and the loss of the test text moves or not.

The control removes as many random texts of the same class: a score that finds the class alone does no better.
"""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from clif_kit.evaluate import Interval, interval, paired_difference
from clif_kit.own_layer import losses, refit
from clif_kit.own_scores import METHODS, own_scores
from clif_kit.own_study import OwnStudy


def deletion_check(
    study: OwnStudy, tests: Sequence[int], *, share: float = 0.02, draws: int = 3, seed: int = 0, progress: bool = False
) -> dict[str, np.ndarray]:
    """What the loss of a test text does when its proponents leave and the last layer is trained again.

    Args:
        study: Texts and model.
        tests: Which test texts.
        share: Of the training texts that leave, at least one text; never more than half of the class.
        draws: Random sets of the same size from the test text's class; their mean change is the control.
        seed: Of the draws.
        progress: Draw a bar.

    Returns:
        Change of the loss in nats, ``(len(tests),)``: ``influence``, ``bm25``, ``same_class_random``; and ``removed``.
    """
    scores, rng = own_scores(study, tests), np.random.default_rng(seed)
    names = (*METHODS, "same_class_random", "removed")
    found = {name: np.zeros(len(tests)) for name in names}
    for at, q in enumerate(tqdm(tests, disable=not progress, unit="text", desc="deletion check")):
        same = np.flatnonzero(study.layer.y.numpy() == int(study.test_y[q]))
        m = max(1, min(round(share * len(study.train)), len(same) // 2))
        sets = {method: [np.argsort(-scores[method][at], kind="stable")[:m]] for method in METHODS}
        sets["same_class_random"] = [rng.choice(same, m, replace=False) for _ in range(draws)]
        for name, gone in sets.items():
            found[name][at] = np.mean([loss_without(study, q, rows) for rows in gone]) - study.test_losses()[q]
        found["removed"][at] = m
    return found


def check_intervals(found: dict[str, np.ndarray]) -> dict[str, Interval]:
    """Mean change of each method, and of each minus the random control, with intervals over test texts."""
    names = [name for name in found if name != "removed"]
    means = {name: interval(np.mean, found[name], over="test texts", unit="nats") for name in names}
    control = found["same_class_random"]
    gains = {name: paired_difference(found[name], control, "test texts", "nats") for name in names[:-1]}
    return means | {f"{name} minus random": gain for name, gain in gains.items()}


def loss_without(study: OwnStudy, q: int, gone: np.ndarray) -> float:
    """Loss of test text q in nats after training again without some texts."""
    keep = np.ones(len(study.train), dtype=bool)
    keep[gone] = False
    return float(losses(study.test_x[[q]], study.test_y[[q]], refit(study.layer, keep))[0])
