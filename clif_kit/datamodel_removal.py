r"""Is a score right? Remove the training examples that it puts first, train again, and see how far the margin falls.

Every method ranks the same training examples for the same test points. The truth is a retraining:

.. math:: \text{fall} = E[\text{margin} \mid \text{all}] - E[\text{margin} \mid \text{all but the first } k]

with the mean over nets that differ by their seed. Positive = what left was helpful, as in the sign of scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clif_kit import datamodel_rivals as rivals
from clif_kit.datamodel_study import Panel, Setting, margins_of
from clif_kit.planted_images import Planted
from clif_kit.subset_training import train_subsets

FULL, REMOVED = 20_000_000, 30_000_000  # first seeds, far from those of the panels
DAMPINGS = [1e-4, 1e-3, 1e-2, 1e-1]


def full_nets(task: Planted, setting: Setting, nets: int, *, lengths: Sequence[float] = (0.25, 0.5, 1.0)) -> list[dict]:
    """Nets trained on all examples, one stack for each training length (a part of the setting's steps).

    They stand in for the checkpoints of TracIn; the last stack is the finished nets.
    """
    everyone = torch.ones(nets, len(task.y), dtype=torch.bool)
    how = setting.training(task)
    return [
        train_subsets(setting.kind, task.x, task.y, everyone, seed=FULL, **how | {"steps": round(part * how["steps"])})
        for part in lengths
    ]


def score_table(
    panel: Panel, points: Tensor, *, nets: int = 3, validation: int = 20, seed: int = 0
) -> dict[str, Tensor]:
    """Scores of every method for some test points, each ``(q, n)``, larger = more helpful.

    The damping of influence functions is chosen on other test points, by how well the scores follow the margins of the
    panel's nets.

    Args:
        panel: Datamodels, and the nets that choose the damping.
        points: Test points, indices ``(q,)``.
        nets: Nets trained on everything; gradients and representations are averaged over them.
        validation: Other test points for the damping.
        seed: Of chance.

    Returns:
        ``lasso, difference_of_means, tracin, influence``; ``representation`` and ``pixels``: nearest of all classes;
        ``representation_same_class, pixels_same_class, random``: of the test point's class only.
    """
    task, setting = panel.task, panel.setting
    train, queries = (task.x, task.y), (task.x_test[points], task.y_test[points])
    stacks = full_nets(task, setting, 1 if setting.kind == "logistic" else nets)
    others = torch.tensor([i for i in task.clean.tolist() if i not in set(points.tolist())])[:validation]
    if len(others) < 2:
        raise ValueError("no test points are left to choose the damping on: raise n_test, or take fewer points")
    both = torch.cat([points, others])
    found = rivals.influence_scores(
        setting.kind, stacks[-1:], train, (task.x_test[both], task.y_test[both]), dampings=DAMPINGS, l2=setting.l2
    )
    chosen = rivals.choose_damping(
        {damping: value[len(points) :] for damping, value in found.items()},
        panel.masks[:1000],
        panel.outputs[:1000, others],
    )
    hidden = [rivals.representation(setting.kind, stacks[-1:], x) for x in (task.x, queries[0])]
    near = rivals.neighbour_scores(*hidden)
    pixels = rivals.neighbour_scores(task.x, queries[0])
    chance = torch.rand(len(points), len(task.y), generator=torch.Generator().manual_seed(seed))
    return {
        "lasso": panel.lasso.weights[points],
        "difference_of_means": panel.means.weights[points],
        "tracin": rivals.gradient_scores(setting.kind, stacks, train, queries),
        "influence": found[chosen][: len(points)],
        "representation": near,
        "pixels": pixels,
        "representation_same_class": rivals.within_class(near, task.y, queries[1]),
        "pixels_same_class": rivals.within_class(pixels, task.y, queries[1]),
        "random": rivals.within_class(chance, task.y, queries[1]),
    }


def removal_effects(
    panel: Panel,
    points: Tensor,
    scores: Mapping[str, Tensor],
    sizes: Sequence[int],
    *,
    nets: int = 4,
    folder: Path | str | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> dict[int, dict[str, Tensor]]:
    """Remove the k training examples with the largest scores, train again, and see how far the margin falls.

    Args:
        panel: Data and setting.
        points: Test points, indices ``(q,)``.
        scores: By method, ``(q, n)``.
        sizes: Numbers k of examples that leave.
        nets: Retrainings of each removal, with other seeds (logistic regression has none: one).
        folder: Where finished nets are kept.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        For each k, by method, the mean margin of nets trained on everything minus that without the k, ``(q,)``:
        positive = what left was helpful.

    Raises:
        ValueError: If k reaches n, or the number of examples that a score within the class can name.
    """
    task, setting = panel.task, panel.setting
    times, n = 1 if setting.kind == "logistic" else nets, len(task.y)
    if not 0 < max(sizes) < n:
        raise ValueError(f"k is {max(sizes)}, and there are {n} training examples")
    keep = torch.ones(len(sizes), len(scores), len(points), n, dtype=torch.bool)
    for a, k in enumerate(sizes):
        for b, value in enumerate(scores.values()):
            best = value.topk(k, dim=1)
            if best.values.isinf().any():
                raise ValueError(f"some test point has fewer than k = {k} training examples of its class: lower k")
            keep[a, b].scatter_(1, best.indices, False)
    everyone = torch.ones(1 if times == 1 else 10 * times, n, dtype=torch.bool)
    masks = torch.cat([everyone, keep.view(-1, n).repeat_interleave(times, dim=0)])
    found = margins_of(task, setting, masks, folder, seed=REMOVED, n_jobs=n_jobs, progress=progress)[:, points]
    full, rest = found[: len(everyone)].mean(0), found[len(everyone) :]
    after = rest.view(len(sizes), len(scores), len(points), times, len(points)).mean(3)
    own = after.diagonal(dim1=2, dim2=3)  # (sizes, methods, q): each removal seen by its own test point
    return {k: {name: full - own[a, b] for b, name in enumerate(scores)} for a, k in enumerate(sizes)}
