r"""The study of chapter 40: many nets on random subsets of a planted task, and two linear models of their margins.

A setting says how a net is trained, a :class:`Panel` holds what was trained with one setting at one subset size. Nets
are kept in stores, so a killed run goes on; another number of nets starts afresh. Margins are outputs (higher is
better); weights and scores are in the book's sign: predicted change of minus the margin when the example is removed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clif_kit.datamodels import Datamodels, difference_of_means, fit_datamodels, with_bias
from clif_kit.planted_images import Planted
from clif_kit.subset_training import sample_masks, train_outputs

AGAIN = 10_000_000  # the seeds of the same subsets trained again: far from all others


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a net is trained; see :func:`clif_kit.subset_training.train_subsets`.

    Attributes:
        kind: "logistic" or "mlp".
        steps: Updates.
        lr: Step size at the start.
        l2: Weight decay.
        hidden: Width of "mlp".
        batch: Minibatch of "mlp".
    """

    kind: str
    steps: int
    lr: float
    l2: float = 1e-3
    hidden: int = 32
    batch: int = 64

    def training(self, task: Planted) -> dict[str, float]:
        """The keyword arguments of the trainer."""
        return {
            "classes": task.classes, "steps": self.steps, "lr": self.lr, "l2": self.l2,
            "hidden": self.hidden, "batch": self.batch,
        }  # fmt: skip


SETTINGS = {
    "logistic": Setting(kind="logistic", steps=60, lr=0.5),
    "mlp": Setting(kind="mlp", steps=150, lr=0.1),
}


@dataclass(frozen=True)
class Panel:
    """Nets on subsets of one size, and two linear models of their margins.

    Attributes:
        task: The data.
        setting: How the nets were trained.
        share: Part of the training set in a subset.
        masks: Subsets, ``(m, n)``.
        outputs: Margins, ``(m, t)``.
        fresh: Subsets that no fit has seen, ``(f, n)``.
        fresh_outputs: Margins of the nets trained on them, ``(f, t)``.
        lasso: The datamodels.
        means: Differences of means as a predictor.
    """

    task: Planted
    setting: Setting
    share: float
    masks: Tensor
    outputs: Tensor
    fresh: Tensor
    fresh_outputs: Tensor
    lasso: Datamodels
    means: Datamodels

    @property
    def tag(self) -> str:
        """Data, model and subset size, the last part of a metric's key."""
        return f"{self.task.name}_{self.setting.kind}/alpha{round(100 * self.share)}"

    def predictions(self) -> dict[str, Tensor]:
        """Margins predicted of the fresh nets by three methods, each ``(f, t)``."""
        constant = self.outputs.mean(0).expand_as(self.fresh_outputs)
        found = {"lasso": self.lasso, "difference_of_means": self.means}
        return {name: model.predict(self.fresh) for name, model in found.items()} | {"constant": constant}


def train_panel(
    task: Planted,
    setting: Setting,
    share: float,
    m: int,
    fresh: int,
    folder: Path | str | None,
    *,
    seed: int = 0,
    n_jobs: int = 1,
    progress: bool = True,
) -> Panel:
    """Train ``m + fresh`` nets on random subsets and fit datamodels to the first ``m``.

    Args:
        task: The data.
        setting: How a net is trained.
        share: Part of the training set in a subset.
        m: Nets for the fit, a fifth of which choose the penalties.
        fresh: Nets that judge the fit.
        folder: Where finished nets are kept; None keeps nothing.
        seed: Of subsets and nets.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Raises:
        ValueError: If there are too few nets, or the share leaves a subset empty or full.
    """
    if m < 50 or fresh < 10:
        raise ValueError(f"{m} nets and {fresh} fresh ones are too few: take 50 and 10 or more")
    masks = sample_masks(m + fresh, len(task.y), share, seed)
    outputs = margins_of(task, setting, masks, folder, seed=seed, n_jobs=n_jobs, progress=progress)
    return fit_panel(task, setting, share, masks, outputs, m)


def fit_panel(task: Planted, setting: Setting, share: float, masks: Tensor, outputs: Tensor, m: int) -> Panel:
    """Fit datamodels and differences of means to the first ``m`` nets; the others are fresh."""
    # a path to a hundredth of the first penalty ended before the best one for nearly every test point
    lasso = fit_datamodels(masks[:m], outputs[:m], n_lambdas=18, eps=1e-3, tol=1e-4)
    means = rescaled(difference_of_means, masks[:m], outputs[:m])
    return Panel(task, setting, share, masks[:m], outputs[:m], masks[m:], outputs[m:], lasso, means)


def rescaled(
    estimate: Callable[[Tensor, Tensor], Tensor], masks: Tensor, outputs: Tensor, *, held_out: float = 0.2
) -> Datamodels:
    """Differences of means as a predictor, each test point's scaled by one number chosen on held-out nets.

    Without the number the baseline would carry noise that the LASSO may shrink away: both get the same held-out nets.
    """
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))  # as fit_datamodels draws them
    choose, rest = order.tensor_split([round(held_out * len(masks))])
    first = with_bias(estimate(masks[rest], outputs[rest]), masks[rest], outputs[rest])
    predicted, actual = (value - value.mean(0) for value in (first.predict(masks[choose]), outputs[choose]))
    scale = ((predicted * actual).sum(0) / predicted.square().sum(0)).clamp(0, 1)  # (t,)
    return with_bias(estimate(masks, outputs) * scale[:, None], masks, outputs)


def margins_of(
    task: Planted,
    setting: Setting,
    masks: Tensor,
    folder: Path | str | None,
    *,
    seed: int,
    n_jobs: int = 1,
    progress: bool = True,
) -> Tensor:
    """Train a net on each subset and return its margins on the test points, ``(m, t)``."""
    return train_outputs(
        setting.kind, task.x, task.y, masks, task.x_test, task.y_test,
        folder=folder, seed=seed, n_jobs=n_jobs, progress=progress, **setting.training(task),
    )  # fmt: skip
