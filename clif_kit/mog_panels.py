r"""The three protocols of the clustering experiment, seed by seed: as published, mended fault by fault, and converged.

Every function returns arrays by name. ``matched_exact/nll_loo/converged`` is the model that is scored and the
estimator, the retraining that judges, and the protocol; its value is :func:`clif_kit.mog_scores.agreement`, ``(4, q)``.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from clif_kit.evaluate import spearman
from clif_kit.gradients import flatten, with_l2
from clif_kit.models import clustering_loss
from clif_kit.mog import (
    Task,
    aligned_labels,
    carried_retrainings,
    elsewhere,
    make_task,
    query_changes,
    reset_labels,
    train,
)
from clif_kit.mog_moving import moving_target
from clif_kit.mog_scores import Found, Scores, columns, compare, estimates, through_text
from clif_kit.retrain import keep_weights, retrain_newton


def study(
    seed: int, *, n_per_class: int, sweeps: int, l2: float, removed: int, steps: int, moving: bool = False
) -> Found:
    """All that the chapter measures on one data set; ``removed`` points are left out of the converged models."""
    task = make_task(seed, n_per_class=n_per_class)
    smooth = make_task(seed, n_per_class=n_per_class, activation=nn.Tanh)
    chosen = np.sort(np.random.default_rng([seed, 9]).permutation(len(task.x))[:removed])
    found = two_steps(task, sweeps=sweeps) | converged(smooth, l2=l2, removed=chosen, steps=steps)
    return found | (moving_target(smooth, l2=l2, removed=chosen, steps=steps) if moving else {})


def carried_changes(task: Task, theta: Tensor, y: Tensor, sweeps: int, order: Tensor | None = None) -> Tensor:
    """Actual changes ``(q, n)`` by the authors' loop: sweep i judges test point i; the last one, all that follow."""
    actual = torch.empty(len(y), len(y)).to(theta)
    loop = carried_retrainings(task, task.labels(y), sweeps=min(sweeps, len(y)), order=order)
    for sweep, models in enumerate(loop):
        actual[sweep:] = query_changes(task, theta, models, y)[sweep:]
    return actual


def two_steps(task: Task, *, sweeps: int) -> Found:
    """Two Adam steps: the authors' protocol, and its faults mended one after the other.

    ``published``: optimiser carried through all retrainings, labels reset by each finished model, supervised retraining
    judges both, numbers go through text. ``parser``: the same numbers, read right. ``labels``: besides, labels aligned
    once, before training. ``shuffled``: besides, points left out in random order, the optimiser still carried.
    ``mended``: a fresh optimiser for every retraining, whose order then does not matter; and clustering is also judged
    by clustering again (``dec_loo``). The steps between have only what the story needs.
    """
    supervised, clustered = train(task, task.labels(task.y)), train(task, None)
    y, y_cross = reset_labels(task, supervised), reset_labels(task, clustered)
    soft = task.sharpened(clustered)
    scores = {
        "matched": estimates(task, supervised, task.labels(y), y),
        "cross": estimates(task, clustered, soft, y_cross, factor=1 / 3),
        "baseline": _same_class(y),
    }
    actual = carried_changes(task, supervised, y, sweeps)
    found = {"classes": y.numpy(), "labels_left": np.array(len(y.unique()))}
    found |= _keep_for_figures(scores, "lissa_published", "published") | {"actual/nll_loo/published": actual.numpy()}
    found |= compare(scores, actual, "nll_loo/published", as_text=True)
    for model in ("matched", "cross"):
        found[f"share_damaged/{model}_lissa_published/published"] = _damaged(scores[model]["lissa_published"])
    found |= compare(_few(scores), actual, "nll_loo/parser")

    y = aligned_labels(task)
    supervised = train(task, task.labels(y))
    scores = {
        "matched": estimates(task, supervised, task.labels(y), y),
        "cross": estimates(task, clustered, soft, y, factor=1 / 3),
        "baseline": _same_class(y),
    }
    found |= compare(_few(scores), carried_changes(task, supervised, y, sweeps), "nll_loo/labels")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(len(y)))
    found |= compare(_few(scores), carried_changes(task, supervised, y, sweeps, order), "nll_loo/shuffled")
    keep = keep_weights(len(y), [[i] for i in range(len(y))])
    for truth, target, theta in (("nll_loo", task.labels(y), supervised), ("dec_loo", None, clustered)):
        actual = query_changes(task, theta, train(task, target, keep), y)
        found |= compare(_judged_by(truth, scores), actual, f"{truth}/mended")
    return found


@dataclass(frozen=True)
class Settled:
    """A model at its optimum, and one model for each removed point at its own.

    Attributes:
        target: The target that all were trained on, ``(n, 3)``.
        near: The full model before Newton's steps, ``(p,)``.
        theta: The full model, ``(p,)``.
        models: ``(m, p)``.
        ok: Which of the models converged, ``(m,)``.
        grad_norm: Gradient norms, the full model's first, ``(m + 1,)``.
    """

    target: Tensor
    near: Tensor
    theta: Tensor
    models: Tensor
    ok: Tensor
    grad_norm: Tensor


def settle(task: Task, target: Tensor, *, l2: float, removed: np.ndarray, steps: int, lr: float = 1e-2) -> Settled:
    """Train to the optimum (Adam, then Newton), then leave out each of ``removed``: own gradient, own Hessian."""
    losses, batch = with_l2(clustering_loss(task.net), l2), (task.x, target)
    near = train(task, target, steps=steps, lr=lr, l2=l2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the caller counts what did not converge
        full = retrain_newton(losses, task.params(near), batch, [[]], max_iter=200)
        theta = flatten(full.params, leading=1)[0]
        loo = retrain_newton(losses, task.params(theta), batch, [[int(i)] for i in removed])
    norms = torch.cat([full.grad_norm, loo.grad_norm])
    return Settled(target, near, theta, flatten(loo.params, leading=1), loo.converged, norms)


def converged(task: Task, *, l2: float, removed: np.ndarray, steps: int, lr: float = 1e-2) -> Found:
    """Both models at their optimum (``converged``), and the same retrainings from the common start (``cold``).

    The clustering target is P at the start, held fixed. A cold model takes the same Adam steps as the full one and is
    compared with it there; ``cold_same_basin`` leaves out those that ended elsewhere than the Newton-finished model.
    """
    y, keep = aligned_labels(task), keep_weights(len(task.x), [[int(i)] for i in removed])
    how = {"l2": l2, "steps": steps, "lr": lr}
    runs = {
        "nll_loo": settle(task, task.labels(y), removed=removed, **how),
        "dec_loo": settle(task, task.sharpened(task.start), removed=removed, **how),
    }
    scores = {
        model: columns(estimates(task, runs[truth].theta, runs[truth].target, y, l2=l2), removed)
        for model, truth in (("matched", "nll_loo"), ("cross", "dec_loo"))
    }
    found = _keep_for_figures(scores, "exact", "converged") | {"removed": removed}
    scores["baseline"] = columns(_same_class(y), removed)
    for model, each in _influences(scores).items():
        rank = [spearman(a, b) for a, b in zip(each["alg1"], each["exact"], strict=True)]
        found[f"spearman/{model}_alg1_exact/converged"] = np.mean(rank)
    for truth, run in runs.items():
        judged = _judged_by(truth, scores)
        actual = query_changes(task, run.theta, run.models, y)
        found[f"actual/{truth}/converged"] = actual.numpy()
        found |= compare(judged, actual, f"{truth}/converged", only=run.ok)
        cold = train(task, run.target, keep, **how)
        same = ~elsewhere(task, cold, run.models) & run.ok
        actual = query_changes(task, run.near, cold, y)
        exact = {model: {"exact": each["exact"]} for model, each in _influences(judged).items()}
        found |= compare(exact, actual, f"{truth}/cold") | compare(exact, actual, f"{truth}/cold_same_basin", only=same)
        found |= {
            f"share_converged/{truth}": run.ok.double().mean().numpy(),
            f"log10_gradient/{truth}": run.grad_norm.max().clamp(min=1e-16).log10().numpy(),
            f"share_moved/{truth}": elsewhere(task, run.models, run.theta[None]).double().mean().numpy(),
            f"share_same_basin/{truth}": same.double().mean().numpy(),
        }
    return found


def _judged_by(truth: str, scores: Scores) -> Scores:
    """Supervised retraining judges both models, as in the public code; clustering again judges the clustered one."""
    return scores if truth == "nll_loo" else {name: each for name, each in scores.items() if name != "matched"}


def _same_class(y: Tensor) -> dict[str, Tensor]:
    """The cheapest baseline, which knows no model: a point helps the test points of its own class."""
    return {"same_class": (y.unsqueeze(1) == y).double() / len(y)}


def _influences(scores: Scores) -> Scores:
    return {model: each for model, each in scores.items() if model != "baseline"}


def _few(scores: Scores) -> Scores:
    chosen = ("dot", "lissa_published", "same_class")
    return {model: {name: each[name] for name in chosen if name in each} for model, each in scores.items()}


def _keep_for_figures(scores: Scores, estimator: str, panel: str) -> Found:
    return {
        f"scores/{model}_{estimator}/{panel}": each[estimator].numpy() for model, each in _influences(scores).items()
    }


def _damaged(values: Tensor) -> np.ndarray:
    """Share of the numbers that the public code's text file changes by more than rounding (it has the other sign)."""
    read = np.stack([through_text(-row) for row in values.numpy()])
    return (np.abs(read + values.numpy()) > 1e-5).mean()
