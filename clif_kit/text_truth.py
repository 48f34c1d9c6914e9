"""The truth for scores of texts: classifiers that are trained again without some of them, kept for good.

Every model is stored under the set that left and the seed, in a folder that stands for the task, the model and the
recipe. Chapters that share those share the models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clif_kit import deletion
from clif_kit.deletion import Plan
from clif_kit.store import Store, fingerprint
from clif_kit.text_study import TextStudy, predict, retrain_text, train_text
from clif_kit.train import fit

Results = dict[str, np.ndarray]


def truth_store(study: TextStudy, folder: str | Path) -> Store:
    """The store of this study's retrainings: what decides them, and the code that trains, is its fingerprint."""
    sets = (study.train, study.val, study.test)
    texts = [array for tokens in sets for array in (tokens.ids, tokens.parts)]
    labels = [study.labels(split) for split in ("train", "val", "test")]
    mark = fingerprint(
        "deletion", train_text, predict, fit, vars(study.recipe), study.kind, study.start(0), texts, labels
    )
    return Store(Path(folder) / f"{study.task.name}_{study.kind}-{mark[:16]}", fingerprint=mark)


def retrain_plan(
    study: TextStudy, ranks: Mapping[str, np.ndarray], sizes: Sequence[int], seeds: Sequence[int], *,
    folder: str | Path, points: Sequence[int] | None = None, subsets: Mapping[str, Sequence[np.ndarray]] | None = None,
    n_jobs: int = 2, progress: bool = False,
) -> tuple[Plan, Results]:  # fmt: skip
    """Plan deletions, say what they cost, train what is missing.

    Args:
        study: Task, model, recipe.
        ranks: By method, who leaves first, see :mod:`clif_kit.deletion_ranks`.
        sizes: Every k.
        seeds: Of the retrainings.
        folder: Where stores lie.
        points: Test points whose sets leave. None: all.
        subsets: Random sets to leave out, by name.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        The plan, and what :func:`clif_kit.deletion.run` gives: ``probability``, ``loss``, ``accuracy``.
    """
    plan = deletion.make_plan(ranks, sizes, seeds, len(study.train), points=points, subsets=subsets)
    store = truth_store(study, folder)
    return plan, deletion.run(plan, retrain_text(study), store=store, n_jobs=n_jobs, progress=progress)
