r"""The three protocols of the clustering experiment, seed by seed: as published, mended fault by fault, and converged.

Every function returns arrays by name. ``matched_exact/nll_loo/converged`` is the model that is scored and the
estimator, the retraining that judges, and the protocol; its value is :func:`clif_kit.mog_scores.agreement`, ``(4, q)``.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacfwd

from clif_kit.evaluate import spearman
from clif_kit.gradients import flatten, query_gradient, with_l2
from clif_kit.models import clustering_loss, cross_entropy
from clif_kit.mog import (
    Task,
    aligned_labels,
    carried_retrainings,
    log_q,
    make_task,
    query_losses,
    reset_labels,
    stacked_gradients,
    train,
)  # fmt: skip
from clif_kit.mog_scores import agreement, estimates, through_text
from clif_kit.retrain import keep_weights, retrain_newton

Found = dict[str, np.ndarray]
Scores = Mapping[str, Mapping[str, Tensor]]  # model -> estimator -> (q, n)

ROOT_TOL = 1e-9  # size of the left side of a solved equation
ELSEWHERE = 0.1  # a model whose assignment of any point differs by more lies in another basin


def study(
    seed: int, *, n_per_class: int, sweeps: int, l2: float, removed: int, steps: int, moving: bool = False
) -> Found:
    """All that the chapter measures on one data set; ``removed`` points are left out of the converged models."""
    task, smooth = (
        make_task(seed, n_per_class=n_per_class),
        make_task(seed, n_per_class=n_per_class, activation=nn.Tanh),
    )
    chosen = np.sort(np.random.default_rng([seed, 9]).permutation(len(task.x))[:removed])
    found = two_steps(task, sweeps=sweeps) | converged(smooth, l2=l2, removed=chosen, steps=steps)
    return found | (moving_target(smooth, l2=l2, removed=chosen, steps=steps) if moving else {})


def carried_changes(task: Task, theta: Tensor, y: Tensor, sweeps: int) -> Tensor:
    """Actual changes ``(q, n)`` by the authors' loop: sweep i judges test point i; the last one, all that follow."""
    actual = torch.empty(len(y), len(y)).to(theta)
    for sweep, models in enumerate(carried_retrainings(task, task.labels(y), sweeps=min(sweeps, len(y)))):
        actual[sweep:] = _changes(task, theta, models, y)[sweep:]
    return actual


def two_steps(task: Task, *, sweeps: int) -> Found:
    """Two Adam steps: the authors' protocol, and its faults mended one after the other.

    ``published``: optimiser carried through all retrainings, labels reset by each finished model, supervised retraining
    judges both, numbers go through text. ``parser``: the same numbers, read right. ``labels``: besides, labels aligned
    once, before training. ``mended``: besides, a fresh optimiser for every retraining; and clustering is also judged by
    clustering again (``dec_loo``).
    """
    supervised, clustered = train(task, task.labels(task.y)), train(task, None)
    y, y_cross = reset_labels(task, supervised), reset_labels(task, clustered)
    soft = task.sharpened(clustered)
    scores = {
        "matched": estimates(task, supervised, task.labels(y), y),
        "cross": estimates(task, clustered, soft, y_cross, factor=1 / 3),
    }
    actual = carried_changes(task, supervised, y, sweeps)
    found = {"classes": y.numpy(), "labels_left": np.array(len(y.unique()))}
    found |= _keep_for_figures(scores, "lissa_published", "published") | {"actual/nll_loo/published": actual.numpy()}
    found |= _compare(scores, actual, "nll_loo/published", as_text=True)
    found |= _compare(scores, actual, "nll_loo/parser")

    y = aligned_labels(task)
    supervised = train(task, task.labels(y))
    scores = {
        "matched": estimates(task, supervised, task.labels(y), y),
        "cross": estimates(task, clustered, soft, y, factor=1 / 3),
    }
    found |= _compare(scores, carried_changes(task, supervised, y, sweeps), "nll_loo/labels")
    keep = keep_weights(len(y), [[i] for i in range(len(y))])
    for truth, target, theta in (("nll_loo", task.labels(y), supervised), ("dec_loo", None, clustered)):
        actual = _changes(task, theta, train(task, target, keep), y)
        found |= _compare(_judged_by(truth, scores), actual, f"{truth}/mended")
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
        model: _columns(estimates(task, runs[truth].theta, runs[truth].target, y, l2=l2), removed)
        for model, truth in (("matched", "nll_loo"), ("cross", "dec_loo"))
    }
    found = _keep_for_figures(scores, "exact", "converged") | {"removed": removed}
    for model, each in scores.items():
        rank = [spearman(a, b) for a, b in zip(each["alg1"], each["exact"], strict=True)]
        found[f"spearman/{model}_alg1_exact/converged"] = np.mean(rank)
    for truth, run in runs.items():
        judged = _judged_by(truth, scores)
        actual = _changes(task, run.theta, run.models, y)
        found[f"actual/{truth}/converged"] = actual.numpy()
        found |= _compare(judged, actual, f"{truth}/converged", only=run.ok)
        cold = train(task, run.target, keep, **how)
        same = (_distance(task, cold, run.models) <= ELSEWHERE) & run.ok
        actual = _changes(task, run.near, cold, y)
        exact = {model: {"exact": each["exact"]} for model, each in judged.items()}
        found |= _compare(exact, actual, f"{truth}/cold") | _compare(
            exact, actual, f"{truth}/cold_same_basin", only=same
        )
        found |= {
            f"share_converged/{truth}": run.ok.double().mean().numpy(),
            f"log10_gradient/{truth}": run.grad_norm.max().clamp(min=1e-16).log10().numpy(),
            f"share_moved/{truth}": (_distance(task, run.models, run.theta[None]) > ELSEWHERE).double().mean().numpy(),
            f"share_same_basin/{truth}": same.double().mean().numpy(),
        }
    return found


def moving_target(task: Task, *, l2: float, removed: np.ndarray, steps: int, lr: float = 1e-2) -> Found:
    r"""Clustering whose target P follows the model, as it really does: an equation :math:`G(\theta, w) = 0`.

    ``exact`` holds P fixed at the end, as Eq. 7 does. ``implicit`` differentiates the equation itself,
    :math:`\Delta_i = \nabla f^\top J^+ \, \partial G / \partial w_i` with :math:`J = \partial G / \partial\theta`,
    which is not symmetric. The judge: the equation solved again without each point.
    """
    y, everything = aligned_labels(task), torch.ones(len(task.x)).to(task.x)
    slope = lambda theta, w: stacked_gradients(task.net, theta[None], task.x, None, w[None], l2)[0]  # noqa: E731
    theta, norm = _root(lambda t: slope(t, everything), train(task, None, steps=steps, lr=lr, l2=l2))
    keep = keep_weights(len(task.x), [[int(i)] for i in removed])
    near = train(replace(task, start=theta), None, keep, steps=steps, lr=lr / 10, l2=l2)  # follow training first:
    pairs = [_root(lambda t, w=w: slope(t, w), start) for start, w in zip(near, keep, strict=True)]  # Newton may leap
    models, norms = zip(*pairs, strict=True)
    ok = torch.tensor(norms) <= ROOT_TOL
    frozen = estimates(task, theta, task.sharpened(theta), y, l2=l2)["exact"]
    towards = torch.linalg.pinv(jacfwd(slope)(theta, everything), rtol=1e-8) @ jacfwd(slope, 1)(theta, everything)
    v = query_gradient(lambda params: cross_entropy(task.net)(params, task.x, y), task.params(theta))
    scores = {"cross": _columns({"exact": frozen, "implicit": v @ towards}, removed)}
    return {
        **_compare(scores, _changes(task, theta, torch.stack(models), y), "dec_loo/moving", only=ok),
        "share_converged/moving": ok.double().mean().numpy(),
        "share_moved/moving": (_distance(task, torch.stack(models), theta[None]) > ELSEWHERE).double().mean().numpy(),
        "log10_gradient/moving": np.log10(max(norm, *norms, 1e-16)),
    }


def _root(slope: Callable[[Tensor], Tensor], theta: Tensor, max_iter: int = 40) -> tuple[Tensor, float]:
    """Newton's method on an equation: where it ended, and how large the left side still is."""
    value = slope(theta)
    for _ in range(max_iter):
        if value.norm() <= ROOT_TOL:
            break
        step = torch.linalg.pinv(jacfwd(slope)(theta), rtol=1e-8) @ value
        theta = theta - step * (0.3 / step.norm()).clamp(max=1)  # a long step may land where all clusters are one
        value = slope(theta)
    return theta, float(value.norm())


def _changes(task: Task, theta: Tensor, models: Tensor, y: Tensor) -> Tensor:
    """Query losses of the retrained models minus that of the full one, ``(q, m)``; positive = the point helped."""
    return query_losses(task, models, y) - query_losses(task, theta[None], y)


def _distance(task: Task, models: Tensor, others: Tensor) -> Tensor:
    """Largest difference between the assignments of two stacks of models, ``(m,)``."""
    return (log_q(task.net, models, task.x).exp() - log_q(task.net, others, task.x).exp()).abs().amax((1, 2))


def _judged_by(truth: str, scores: Scores) -> Scores:
    """Supervised retraining judges both models, as in the paper; clustering again judges the clustered one."""
    return scores if truth == "nll_loo" else {"cross": scores["cross"]}


def _columns(scores: Mapping[str, Tensor], which: np.ndarray) -> dict[str, Tensor]:
    return {name: value[:, which] for name, value in scores.items()}


def _keep_for_figures(scores: Scores, estimator: str, panel: str) -> Found:
    return {f"scores/{model}_{estimator}/{panel}": each[estimator].numpy() for model, each in scores.items()}


def _compare(scores: Scores, actual: Tensor, where: str, *, only: Tensor | None = None, as_text: bool = False) -> Found:
    """Agreement of every model and estimator, perhaps as the public code reads its numbers back (with its sign)."""
    columns = slice(None) if only is None else only
    if only is not None and only.sum() < 3:
        return {}  # no correlation
    read = (lambda rows: np.stack([through_text(-row) for row in rows])) if as_text else lambda rows: rows
    truth = read(actual[:, columns].numpy())
    return {
        f"{model}_{name}/{where}": agreement(read(value[:, columns].numpy()), truth)
        for model, each in scores.items()
        for name, value in each.items()
    }
