r"""The image task: a logistic regression at its optimum, every score, and datamodels with their retrainings.

Training minimises the mean cross-entropy plus :math:`\tfrac\gamma2 \|\theta\|^2` in float64 to its optimum, so
that leaving examples out has one answer: there is no seed, and the noise ceiling of the truth is 1.

Sign: the predicted change of a test image's cross-entropy when the training image is REMOVED; positive = helpful.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clif_kit import baselines, datasets, gradients, influence, models, retrain, solvers, train
from clif_kit.contest import Cost, Task, measure, random_scores, same_class_scores
from clif_kit.curvature import softmax_hessian
from clif_kit.datamodels import difference_of_means, fit_datamodels
from clif_kit.deletion import Plan
from clif_kit.deletion_ranks import random_subsets
from clif_kit.store import fingerprint, resumable
from clif_kit.tracin_layers import LastLayer

BLOCK = 64  # models a shard
TOLERANCE = 1e-8


@dataclass(frozen=True)
class ImageModel:
    r"""Images, and the logistic regression at its optimum.

    Attributes:
        x: Training pixels, float64, ``(n, d)``.
        y: Their classes.
        x_test: ``(q, d)``.
        y_test: Their classes.
        l2: :math:`\gamma`.
        theta: The optimum.
        checkpoints: On the way of a plain training run of the same objective, for TracIn.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    l2: float
    theta: gradients.Params
    checkpoints: tuple[train.Checkpoint, ...]

    @property
    def digest(self) -> str:
        """Of the data and the penalty: what a stored score of another library must be for."""
        arrays = (self.x, self.y, self.x_test, self.y_test)
        return fingerprint("images", *(value.numpy() for value in arrays), self.l2)[:16]

    @property
    def net(self) -> models.Net:
        """The classifier."""
        return models.logistic(self.x.shape[1], 10)

    @property
    def losses(self) -> gradients.Losses:
        """The training loss, with the penalty."""
        return gradients.with_l2(models.cross_entropy(self.net), self.l2)

    def solver(self) -> solvers.Solve:
        """The inverse Hessian of the mean training loss, exact."""
        return solvers.exact(softmax_hessian(self.x, self.net(self.theta, self.x).softmax(1), self.l2))

    def both_gradients(self) -> tuple[Tensor, Tensor]:
        """Of the training losses, ``(n, p)``, and of the query losses, without the penalty, ``(q, p)``."""
        plain = models.cross_entropy(self.net)
        mine = gradients.per_example_gradients(self.losses, self.theta, (self.x, self.y))
        return mine, gradients.per_example_gradients(plain, self.theta, (self.x_test, self.y_test))

    def last(self, params: gradients.Params | None = None) -> tuple[LastLayer, LastLayer]:
        """The same model seen as a last layer: pixels are its features."""
        params = params or self.theta
        sides = ((self.x, self.y), (self.x_test, self.y_test))
        found = []
        for x, y in sides:
            wrong = self.net(params, x).softmax(1) - torch.nn.functional.one_hot(y, 10)
            found.append(LastLayer(x.numpy(), wrong.numpy()))
        return tuple(found)


def image_model(
    data: str, *, n_train: int, n_test: int, l2: float, shrink: int = 1, checkpoints: int = 5, seed: int = 0
) -> ImageModel:
    """Draw images, train to the optimum.

    Args:
        data: "digits" (embedded) or "mnist".
        n_train: Training images.
        n_test: Test images, at least 2.
        l2: Strength of the penalty, above 0.
        shrink: Side of the blocks of pixels that are averaged.
        checkpoints: Of a run of 20 steps each, for TracIn.
        seed: Of the draw.

    Raises:
        ValueError: If there is no such data set, too few images, or no penalty.
    """
    if data not in ("digits", "mnist"):
        raise ValueError(f"data must be 'digits' or 'mnist', got {data!r}")
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}: without it the optimum is not unique and nothing below holds")
    images = datasets.digits() if data == "digits" else datasets.mnist_test()
    count, side, _ = images.x.shape
    if n_train + n_test > count or n_test < 2 or side % shrink:
        raise ValueError(f"{data} has {count} images of side {side}: got {n_train} + {n_test}, shrink {shrink}")
    order = np.random.default_rng(seed).permutation(count)[: n_train + n_test]
    small = images.x.reshape(count, side // shrink, shrink, side // shrink, shrink).mean((2, 4)).reshape(count, -1)
    x, y = torch.tensor(small[order]).double(), torch.tensor(images.y[order])
    batch, net = (x[:n_train], y[:n_train]), models.logistic(x.shape[1], 10)
    losses = gradients.with_l2(models.cross_entropy(net), l2)
    on_the_way = train.fit(losses, net.init(seed), batch, steps=20 * checkpoints, lr=0.5, checkpoint_every=20,
                           optimizer=torch.optim.SGD)  # fmt: skip
    theta = train.converge(losses, on_the_way.params, batch, tol=TOLERANCE).params
    return ImageModel(*batch, x[n_train:], y[n_train:], l2, theta, on_the_way.checkpoints)


def removal_losses(model: ImageModel, sets: Sequence[np.ndarray], folder: str | Path | None) -> tuple[np.ndarray, Cost]:
    """Query losses after training again without each set, ``(sets, q)``, and what the training cost; kept in shards.

    A cost that is read from a shard is that of the run that made it.

    Raises:
        RuntimeError: If a model did not converge.
    """
    once = resumable(
        folder, "contest images", model.x.numpy(), model.y.numpy(), model.x_test.numpy(), model.y_test.numpy(),
        model.l2, TOLERANCE, retrain, _losses_without,
    )  # fmt: skip
    solve, found, total = model.solver(), [], Cost(0.0, 0.0)
    for start in range(0, len(sets), BLOCK):
        part = sets[start : start + BLOCK]
        key = "sets-" + fingerprint(*(np.asarray(chosen, dtype=np.int64) for chosen in part))[:20]

        def compute(part: Sequence[np.ndarray] = part) -> dict[str, np.ndarray]:
            values, cost = measure(lambda: _losses_without(model, part, solve), repeats=1)
            return {
                "loss": values,
                "cost": np.array([cost.seconds, np.nan if cost.megabytes is None else cost.megabytes]),
            }

        shard = once(key, compute)
        seconds, megabytes = shard["cost"].tolist()
        total += Cost(seconds, None if np.isnan(megabytes) else megabytes)
        found.append(shard["loss"])
    return np.concatenate(found), total


def _losses_without(model: ImageModel, sets: Sequence[np.ndarray], solve: solvers.Solve) -> np.ndarray:
    again = retrain.retrain_quasi_newton(
        model.losses, model.theta, (model.x, model.y), [chosen.tolist() for chosen in sets], solve, tol=TOLERANCE
    )
    if not again.converged.all():
        raise RuntimeError(f"{int((~again.converged).sum())} of {len(sets)} models did not converge: raise l2")
    loss = models.cross_entropy(model.net)
    return torch.vmap(lambda params: loss(params, model.x_test, model.y_test))(again.params).numpy()


# ---- the scores


def tracin_scores(model: ImageModel) -> np.ndarray:
    r"""TracIn over the checkpoints, :math:`\sum_c \eta_c\, g_i(\theta_c)^\top v(\theta_c)`, closed form, ``(q, n)``."""
    total = 0.0
    for point in model.checkpoints:
        (a, r), (b, s) = model.last(point.params)
        total = total + point.lr * (s @ r.T) * (b @ a.T + 1)
    return np.asarray(total)


def image_task(model: ImageModel, data: str, *, n_models: int, folder: str | Path | None) -> Task:
    """All scores for the model, and exact retraining as the judge.

    Args:
        model: From :func:`image_model`.
        data: Its name.
        n_models: Models for the datamodels, each on a random half; they count as their cost. 0: no datamodels.
        folder: Of the retrainings. None keeps none.
    """
    n, q = len(model.x), len(model.x_test)
    scorers: dict[str, Callable[[], np.ndarray]] = {
        "influence": lambda: influence.cross_loss_influence(*model.both_gradients(), model.solver()),
        "inf_last": lambda: baselines.influence_last(*model.last(), model.y, damping=model.l2, bias=True),
        "gradient_dot": lambda: influence.gradient_dot(*model.both_gradients()),
        "gradient_cosine": partial(_cosine, model),
        "tracin": partial(tracin_scores, model),
        "rep": partial(_representer, model),
        "self_influence": partial(_self_influence, model),
        "pixels": partial(_nearest, model),
        "same_class_random": lambda: same_class_scores(model.y.numpy(), model.y_test.numpy()),
        "random": lambda: random_scores(q, n),
    }
    paid = {}
    if n_models:
        halves = random_subsets(n, 0.5, n_models, seed=2)
        kept = torch.ones(n_models, n, dtype=torch.bool)
        for row, chosen in zip(kept, halves, strict=True):
            row[torch.as_tensor(chosen)] = False
        found, cost = removal_losses(model, halves, folder)
        outputs = -torch.from_numpy(margin_targets(found))  # higher is better
        scorers["datamodel"] = lambda: fit_datamodels(kept, outputs, eps=1e-3, tol=1e-4).weights.numpy()
        scorers["datamodel_means"] = lambda: difference_of_means(kept, outputs).numpy()
        paid = dict.fromkeys(("datamodel", "datamodel_means"), cost)

    def train_again(plan: Plan) -> dict[str, np.ndarray]:
        losses = removal_losses(model, plan.sets, folder)[0][:, None]  # (sets, 1, q)
        return {"loss": losses, "good": np.exp(-losses)}

    names = ("digits",) if data == "digits" else ("mnist_t10k",)
    return Task(
        name=data,
        scorers=scorers,
        retrain=train_again,
        n=n,
        tests=q,
        cheap="pixels",
        single=True,
        paid=paid,
        data=names,
    )


def margin_targets(losses: np.ndarray) -> np.ndarray:
    r"""Minus the log-odds of the true class, from its cross-entropy: what datamodels are fitted to, lower = better.

    >>> margin_targets(np.array([np.log(2)]))
    array([0.])
    """
    return losses + np.log(-np.expm1(-losses))


def _cosine(model: ImageModel) -> np.ndarray:
    mine, query = model.both_gradients()
    return baselines.embedding_similarity(mine.numpy(), query.numpy())


def _representer(model: ImageModel) -> np.ndarray:
    with_one = [np.hstack([x.numpy(), np.ones((len(x), 1))]) for x in (model.x, model.x_test)]
    return baselines.representer_points(with_one[0], model.y, with_one[1], model.y_test, l2=model.l2)


def _self_influence(model: ImageModel) -> np.ndarray:
    own = influence.self_influence(model.both_gradients()[0], model.solver()).numpy()
    return np.tile(own, (len(model.x_test), 1))


def _nearest(model: ImageModel) -> np.ndarray:
    alike = baselines.embedding_similarity(model.x.numpy(), model.x_test.numpy())
    return baselines.signed_by_label(alike, model.y, model.y_test)
