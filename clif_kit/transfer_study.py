r"""A whole transfer study: learn an order of the source classes on some target images, remove classes, judge on others.

1. Pre-train ``subsets`` nets on random halves of the source classes, move each to the target task (60 labels), and take
   the influence of every class from the probability of the right answer on the ``order`` images.
2. Remove the first k classes of several orders, pre-train ``fresh`` new nets without them, move those, and report their
   accuracy on the ``judge`` images. All arms share starts and draws, so that differences are paired.

Influence has the sign of the book: it estimates by how much minus the quality rises when the class is REMOVED, so
positive = helpful; the worst class has the lowest number.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clif_kit import transfer, transfer_nets, transfer_task
from clif_kit.parallel import map_seeds
from clif_kit.store import Store, fingerprint
from clif_kit.transfer_nets import NetConfig
from clif_kit.transfer_task import Task, make_task

BLOCK = 50  # nets trained in one stack
ORDERS = ("worst", "random", "best", "fewest", "unlike")  # who leaves first


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What one study does; the seed adds the draws.

    Attributes:
        subsets: Pre-trainings on random halves, from which influence is taken.
        fresh: New pre-trainings of each arm.
        sizes: How many classes leave, each k an arm for each order.
        bad: Planted bad source classes; 0 plants nothing.
        kinds: Of :data:`clif_kit.transfer_task.BAD`.
        labels: Labelled target images.
        judge: Target images that judge, and as many that order.
        net: The nets.
    """

    subsets: int = 300
    fresh: int = 12
    sizes: tuple[int, ...] = (4, 8)
    bad: int = 8
    kinds: tuple[str, ...] = ("mixed",)
    labels: int = 60
    judge: int = 350
    net: NetConfig = field(default_factory=NetConfig)

    def __post_init__(self) -> None:
        if min(self.subsets, self.fresh) < 2 or not self.sizes:
            raise ValueError("a study needs two subsets, two fresh pre-trainings and a number of classes to remove")


Target = dict[str, tuple[Tensor, Tensor]]


def flat(x: np.ndarray) -> Tensor:
    """Images as rows of numbers in [-1, 1], float32, ``(n, side * side)``."""
    return torch.from_numpy(np.ascontiguousarray(x.reshape(len(x), -1) * 2 - 1).astype(np.float32))


def targets(task: Task) -> Target:
    """Target images as rows and their labels, by name of the part."""
    return {name: (flat(x), torch.from_numpy(y)) for name, (x, y) in task.target.items()}


def train_and_move(task: Task, keep: np.ndarray, config: NetConfig, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pre-train on the classes of each row of ``keep``, move to the target: quality on ``order`` and ``judge`` images.

    Returns:
        For each part the probability of the right class and whether it won, both ``(m, n)``.
    """
    x, y, target = flat(task.x), torch.from_numpy(task.group), targets(task)
    found = []
    for start in range(0, len(keep), BLOCK):
        rows = torch.from_numpy(keep[start : start + BLOCK])
        stack = transfer_nets.pretrain(x, y, y, rows, config, seed + 2 * start)
        stack = transfer_nets.transfer(stack, *target["train"], config)
        found.append({part: transfer_nets.target_quality(stack, *target[part]) for part in ("order", "judge")})
    return {part: tuple(torch.cat([one[part][i] for one in found]) for i in (0, 1)) for part in found[0]}


# ---- baselines that look at pixels, or count


def class_likeness(task: Task) -> np.ndarray:
    """Minus the distance of a source class's mean image to the nearest mean image of a target class, ``(classes,)``."""
    x, y = task.target["train"]
    means = [x[y == label].mean(0) for label in np.unique(y)]
    mine = [task.x[task.group == c].mean(0) for c in range(len(task.names))]
    return np.array([-min(np.linalg.norm(one - mean) for mean in means) for one in mine])


def nearest_label(task: Task) -> float:
    """Accuracy on the ``judge`` images of copying the label of the nearest labelled target image (pixels, Euclid)."""
    (x, y), (judge, truth) = targets(task)["train"], targets(task)["judge"]
    return float((y[torch.cdist(judge, x).argmin(1)] == truth).double().mean())


def pixel_closeness(task: Task) -> np.ndarray:
    """Minus the distance of each ``judge`` image to the nearest image of each source class, ``(classes, n_judge)``."""
    far = torch.cdist(targets(task)["judge"][0], flat(task.x)).numpy()
    return np.stack([-far[:, task.group == c].min(1) for c in range(len(task.names))])


def precision_at_size(score: np.ndarray, member: np.ndarray) -> float:
    """Share of the subpopulation among as many images with the highest score as it has members.

    Raises:
        ValueError: If the subpopulation is empty.

    >>> precision_at_size(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5
    """
    if not member.any():
        raise ValueError("no target image belongs to the subpopulation: take more judge images")
    return float(member[np.argsort(-score, kind="stable")[: member.sum()]].mean())


# ---- the study


def draw_task(x: np.ndarray, y: np.ndarray, config: StudyConfig, seed: int) -> Task:
    """The task of a study, drawn anew from its seed."""
    return make_task(x, y, seed=seed, bad=config.bad, kinds=config.kinds, labels=config.labels, judge=config.judge)


def study(x: np.ndarray, y: np.ndarray, config: StudyConfig, seed: int) -> dict[str, np.ndarray]:
    """One study on images ``x`` with digits ``y``.

    Returns:
        ``keep (m, c)`` and ``quality (m,)`` of the random halves (mean probability on the ``order`` images);
        ``influence``, ``size``, ``likeness`` and ``bad``, ``(c,)``; ``image_influence (c, n_judge)``; accuracies of
        fresh pre-trainings, ``(fresh,)``: ``accuracy/ORDER/K``, ``accuracy/full``, ``accuracy/scratch`` (no
        pre-training) and, if anything is planted, ``accuracy/planted``; ``accuracy/nearest ()``; and, one number an
        honest class, ``precision/influence``, ``precision/pixels`` and ``precision/chance``.
    """
    task = draw_task(x, y, config, seed)
    classes = len(task.names)
    keep = transfer.random_subsets(config.subsets, classes, seed=seed)
    moved = train_and_move(task, keep, config.net, seed=10**6 * (2 * seed + 1))
    quality = moved["order"][0].double().mean(1).numpy()
    found = {
        "keep": keep,
        "quality": quality,
        "influence": transfer.class_influence(quality, keep),
        "size": np.bincount(task.group, minlength=classes),
        "likeness": class_likeness(task),
        "bad": task.bad,
        "image_influence": transfer.class_influence(moved["judge"][0].double().numpy(), keep),
        "accuracy/nearest": np.array(nearest_label(task)),
    }
    return found | _counterfactuals(task, found, config, seed) | _subpopulations(task, found)


def removals(found: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For each order all source classes, first to leave first; ``random`` is one draw of ``rng``."""
    return {
        "worst": np.argsort(found["influence"], kind="stable"),
        "best": np.argsort(-found["influence"], kind="stable"),
        "fewest": np.argsort(found["size"], kind="stable"),
        "unlike": np.argsort(found["likeness"], kind="stable"),
        "random": rng.permutation(len(found["influence"])),
    }


def _counterfactuals(task: Task, found: dict, config: StudyConfig, seed: int) -> dict[str, np.ndarray]:
    rng, classes = np.random.default_rng([seed, 1]), len(task.names)
    arms = {"full": [np.arange(0)] * config.fresh}
    if task.bad.any():
        arms["planted"] = [np.flatnonzero(task.bad)] * config.fresh
    drawn = [removals(found, rng) for _ in range(config.fresh)]
    arms |= {f"{order}/{k}": [one[order][:k] for one in drawn] for k in config.sizes for order in ORDERS}
    fresh = 10**6 * (2 * seed + 2)  # not a seed that the order was learned from; the same starts for every arm
    out = {}
    for name, removed in arms.items():
        keep = np.stack([transfer.without(classes, one) for one in removed])
        out[f"accuracy/{name}"] = _accuracy(task, keep, config.net, fresh)
    nothing = replace(config.net, steps=0)
    out["accuracy/scratch"] = _accuracy(task, np.ones((config.fresh, classes), dtype=bool), nothing, fresh)
    return out


def _accuracy(task: Task, keep: np.ndarray, net: NetConfig, seed: int) -> np.ndarray:
    return train_and_move(task, keep, net, seed)["judge"][1].double().mean(1).numpy()


def _subpopulations(task: Task, found: dict) -> dict[str, np.ndarray]:
    honest = [c for c in np.flatnonzero(~task.bad) if (task.subpopulation == c).any()]
    scores = {"influence": found["image_influence"], "pixels": pixel_closeness(task)}
    members = {c: task.subpopulation == c for c in honest}
    out = {
        f"precision/{name}": np.array([precision_at_size(score[c], members[c]) for c in honest])
        for name, score in scores.items()
    }
    return out | {"precision/chance": np.array([members[c].mean() for c in honest])}


def panel(name: str, config: StudyConfig) -> tuple[str, StudyConfig]:
    """Images and settings of a panel: ``digits`` or ``mnist``, with ``_honest`` (nothing planted), ``_full`` or both.

    Raises:
        ValueError: If a word is another one.

    >>> panel("digits_honest", StudyConfig())[1].bad
    0
    """
    images, *words = name.split("_")
    if unknown := set(words) - {"honest", "full"}:
        raise ValueError(f"panel {name!r}: no variant {unknown.pop()!r}; there are honest (nothing planted) and full")
    if "honest" in words:
        config = replace(config, bad=0)
    return images, replace(config, net=replace(config.net, full="full" in words or config.net.full))


def run_studies(
    name: str, config: StudyConfig, seeds: Sequence[int], folder: str | Path, n_jobs: int = 1
) -> list[dict[str, np.ndarray]]:
    """The studies of ``seeds`` on ``digits`` or ``mnist``; a finished one is on disk and is never done again.

    Raises:
        ValueError: If the images have another name, or a setting is impossible.
    """
    x, y = transfer_task.load(name)
    mark = fingerprint(x, y, asdict(config), transfer, transfer_nets, transfer_task, sys.modules[__name__])
    store = Store(Path(folder) / mark[:16], fingerprint=mark)
    return map_seeds(lambda seed: study(x, y, config, seed), seeds, store=store, n_jobs=n_jobs, progress=False)
