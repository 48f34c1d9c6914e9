"""Datamodels: nets on subsets in one stack against one after the other; all LASSOs at once against one at a time.

Single precision throughout, as these methods are used. The LASSO has two rows: against the estimators called a target
at a time, and against scikit-learn's inner descent on a Gram matrix that all targets share, as in ours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Lasso, enet_path
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Case, Row, Side, timed
from benchmarks.peer import rivals
from clif_kit.datamodels import lasso
from clif_kit.subset_training import CHANNELS, sample_masks, train_subsets

N, CLASSES, SHARE, BATCH, HIDDEN, L2, MOMENTUM = 1000, 10, 0.5, 64, 32, 1e-3, 0.9
CLOSE = 1e-5  # largest difference of a parameter
MODELS, FEATURES, TARGETS, SAMPLE, PENALTY = 10_000, 1500, 1500, 12, 0.1  # of the LASSO; the sample is the rivals'
COEFFICIENTS = 1e-4


@dataclass(frozen=True)
class Setting:
    """Which nets, how many, how long."""

    kind: str
    models: int
    steps: int
    lr: float
    goal: float
    n: int = N


SETTINGS = (
    Setting("logistic", models=96, steps=60, lr=0.5, goal=8),
    Setting("mlp", models=128, steps=100, lr=0.1, goal=6),
    Setting("cnn", models=32, steps=100, lr=0.05, goal=1.5),
)


def digits(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n digits of 8 x 8 pixels, and their classes."""
    data = load_digits()
    x = torch.from_numpy(data.data[:n] / 16 - 0.3).float()
    return x.view(-1, 8, 8) if kind == "cnn" else x, torch.from_numpy(data.target[:n])


def network(kind: str) -> nn.Module:
    """The net as torch has it."""
    if kind == "logistic":
        return nn.Linear(64, CLASSES)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    a, b = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(a, b, 3, padding=1), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * b, CLASSES),
    )  # fmt: skip


def start(net: nn.Module, draw: torch.Generator) -> None:
    """The start that ours draws, in torch's bounds."""
    for layer in net.modules():
        if not list(layer.parameters(recurse=False)):
            continue
        bound = layer.weight[0].numel() ** -0.5
        for value in (layer.weight, layer.bias):
            drawn = torch.rand(value.shape, generator=draw, dtype=torch.float64)
            value.data = ((2 * drawn - 1) * bound).float()


def train_one(setting: Setting, x: Tensor, y: Tensor, mask: Tensor, seed: int) -> Tensor:
    """One net as torch trains it, with its fused optimiser; its parameters as one vector."""
    x, y, net = x[mask], y[mask], network(setting.kind)
    x, draw = x[:, None] if setting.kind == "cnn" else x, torch.Generator().manual_seed(seed)
    if setting.kind == "logistic":
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
    else:
        start(net, draw)
        rounds = -(-setting.steps * BATCH // len(x))
        order = torch.cat([torch.randperm(len(x), generator=draw) for _ in range(rounds)])
    descent = torch.optim.SGD(net.parameters(), lr=setting.lr, momentum=MOMENTUM, weight_decay=L2, fused=True)
    for step in range(setting.steps):
        descent.param_groups[0]["lr"] = setting.lr * (1 - step / setting.steps)
        chosen = slice(None) if setting.kind == "logistic" else order[step * BATCH : (step + 1) * BATCH]
        descent.zero_grad()
        functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        descent.step()
    return torch.cat([value.detach().flatten() for value in net.parameters()])


@contextmanager
def training_case(setting: Setting) -> Iterator[Case]:
    """All parameters of all models, ``(m, p)``: in one stack, and one net after the other."""
    x, y = digits(setting.kind, setting.n)
    masks = sample_masks(setting.models, setting.n, SHARE, seed=0)

    def ours() -> Tensor:
        found = train_subsets(
            setting.kind, x, y, masks, classes=CLASSES, steps=setting.steps, lr=setting.lr, batch=BATCH,
            hidden=HIDDEN, l2=L2,
        )  # fmt: skip
        return torch.cat([value.flatten(1) for value in found.values()], 1)

    def one_by_one() -> Tensor:
        return torch.stack([train_one(setting, x, y, mask, seed) for seed, mask in enumerate(masks)])

    yield Case(timed(ours), {"torch, one after the other": timed(one_by_one)})


# --- the LASSO


def regressions(models: int, features: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, outputs of sparse linear models with noise, of unit spread, and penalties."""
    draw, masks = torch.Generator().manual_seed(1), sample_masks(models, features, SHARE, seed=0)
    weights = torch.randn(targets, features, generator=draw).pow(3) * 0.1  # many small ones, few large ones
    x = masks.float()
    outputs = x @ weights.T + torch.randn(models, targets, generator=draw)
    slopes, spread = x.T @ (outputs - outputs.mean(0)) / models, outputs.std(0)
    return masks, outputs / spread, PENALTY * slopes.abs().amax(0) / spread


def lasso_inputs(masks: Tensor, outputs: Tensor, lam: Tensor) -> dict[str, Tensor]:
    """What rivals get: masks and outputs, centred beforehand, so that they need no bias."""
    x = masks.float()
    return {"x": x - x.mean(0), "y": outputs - outputs.mean(0), "lam": lam}


def by_gram(given: Mapping[str, Tensor], sample: int) -> Side:
    """Seconds a target of scikit-learn's descent on a Gram matrix, which is made once and shared by all targets.

    The function that its estimator calls, without the checks and copies of the estimator.
    """
    x, lam = given["x"], given["lam"].tolist()
    laid_out, rows = np.asfortranarray(x.numpy()), given["y"].T.contiguous()

    def coefficients(gram: np.ndarray, slopes: np.ndarray, j: int) -> Tensor:
        found = enet_path(
            laid_out, rows[j].numpy(), l1_ratio=1.0, alphas=[lam[j]], precompute=gram, Xy=slopes[j], check_input=False,
            copy_X=False,
        )  # fmt: skip
        return torch.as_tensor(found[1][:, 0])

    def side() -> tuple[float, Tensor]:
        shared, products = timed(lambda: torch.cat([x.T @ x, rows @ x]))()
        gram, slopes = products[: x.shape[1]].numpy(), products[x.shape[1] :].numpy()
        each, answer = timed(lambda: torch.stack([coefficients(gram, slopes, j) for j in range(sample)]))()
        return shared / len(rows) + each / sample, answer

    return side


def plainly(given: Mapping[str, Tensor], gram: np.ndarray | bool = False) -> Callable[[], Tensor]:
    """Scikit-learn's ``Lasso``, a target at a time: ``(sample, n)``; a Gram matrix made beforehand is not timed."""
    x, y = np.asfortranarray(given["x"].numpy()), given["y"].numpy()

    def run() -> Tensor:
        fits = [
            Lasso(alpha=lam, fit_intercept=False, copy_X=False, precompute=gram).fit(x, y[:, j])
            for j, lam in enumerate(given["lam"].tolist())
        ]
        return torch.stack([torch.as_tensor(fit.coef_) for fit in fits])

    return run


@contextmanager
def gram_case(
    models: int = MODELS, features: int = FEATURES, targets: int = TARGETS, sample: int = SAMPLE
) -> Iterator[Case]:
    """As :func:`lasso_case`, against the descent that shares its Gram matrix."""
    masks, outputs, lam = regressions(models, features, targets)
    mine = timed(lambda: lasso(masks, outputs, lam).weights[:sample], scale=1 / targets)
    yield Case(mine, {"scikit-learn's descent": by_gram(lasso_inputs(masks, outputs, lam), sample)})


@contextmanager
def lasso_case(
    models: int = MODELS, features: int = FEATURES, targets: int = TARGETS, sample: int = SAMPLE
) -> Iterator[Case]:
    """Seconds a target: ours of all of them, rivals of the first few; the answers are those of the few."""
    masks, outputs, lam = regressions(models, features, targets)
    given = lasso_inputs(masks, outputs, lam)
    few = {"x": given["x"], "y": given["y"][:, :sample].contiguous(), "lam": lam[:sample]}
    mine = timed(lambda: lasso(masks, outputs, lam).weights[:sample], scale=1 / targets)
    gram = (given["x"].T @ given["x"]).numpy()
    theirs = {
        "scikit-learn, Gram matrix": timed(plainly(few, gram), scale=1 / sample),
        "scikit-learn": timed(plainly(few), scale=1 / sample),
    }
    with rivals("benchmarks.lasso_rivals", few, ("celer",)) as (others, versions):
        theirs["celer"] = partial(_a_target, others["celer"], sample)
        yield Case(mine, theirs, versions)


def _a_target(side: Side, sample: int) -> tuple[float, Tensor]:
    seconds, answer = side()
    return seconds / sample, answer


def _training_row(setting: Setting) -> Row:
    long = f"{setting.steps} steps" + ("" if setting.kind == "logistic" else f" of {BATCH}")
    nets = {"logistic": "64-10", "mlp": f"64-{HIDDEN}-10", "cnn": f"convolutions {CHANNELS[0]} and {CHANNELS[1]}"}
    return Row(
        id=f"dm_{setting.kind}",
        title=f"Training on subsets, {setting.kind}",
        rival="the same nets one after the other: torch's modules and its fused SGD, each on its own subset only; the "
        "same starts and minibatches",
        n=f"{setting.models} models ({nets[setting.kind]}), {long}, half of {N} digits each; float32",
        goal=setting.goal,
        bound=CLOSE,
        case=partial(training_case, setting),
        repeats=5,
    )


ROWS = (
    *map(_training_row, SETTINGS),
    Row(
        id="lasso",
        title="All LASSOs of datamodels",
        rival="the estimators, a target at a time: scikit-learn's Lasso on the masks and on a Gram matrix that is "
        "given (not timed), celer's Lasso; centred and laid out beforehand",
        n=f"{MODELS:,} subsets, {FEATURES} features, {PENALTY:g} of the largest penalty; seconds a target, of "
        f"{TARGETS} targets for ours and of {SAMPLE} for the rivals, both measured; float32",
        goal=8,
        bound=COEFFICIENTS,
        case=lasso_case,
        repeats=3,
    ),
    Row(
        id="lasso_gram",
        title="The same LASSOs against the inner descent",
        rival="scikit-learn's enet_path without its checks and copies, a target at a time on one Gram matrix for all "
        "targets, whose time is shared by all, as in ours",
        n=f"{MODELS:,} subsets, {FEATURES} features, {PENALTY:g} of the largest penalty; seconds a target, of "
        f"{TARGETS} targets for ours and of {SAMPLE} for the rival, both measured; float32",
        goal=1,
        bound=COEFFICIENTS,
        case=gram_case,
        repeats=3,
    ),
)
