r"""Clustering as it really is, with a target P that follows the model: an ablation of the chapter's frozen target.

Training then follows no gradient of any fixed objective. It ends where an equation holds, and influence is the implicit
derivative of that equation.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import jacfwd

from clif_kit.gradients import query_gradient
from clif_kit.models import cross_entropy
from clif_kit.mog import Task, aligned_labels, elsewhere, query_changes, stacked_gradients, train
from clif_kit.mog_scores import Found, columns, compare, estimates
from clif_kit.retrain import keep_weights

ROOT_TOL = 1e-9  # size of the left side of a solved equation


def moving_target(task: Task, *, l2: float, removed: np.ndarray, steps: int, lr: float = 1e-2) -> Found:
    r"""Clustering whose target P follows the model, as it really does: an equation :math:`G(\theta, w) = 0`.

    ``exact`` holds P fixed at the end, as Eq. 7 does. ``implicit`` differentiates the equation itself,
    :math:`\Delta_i = \nabla f^\top J^+ \, \partial G / \partial w_i` with :math:`J = \partial G / \partial\theta`,
    which is not symmetric. The judge: the equation solved again without each point.

    Args:
        task: With a smooth activation.
        l2: Penalty.
        removed: Points to leave out, one a model.
        steps: Adam steps before Newton's, for the full model and, ten times shorter ones, for every retraining.
        lr: Of the full model's steps.
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
    towards = _shortest(jacfwd(slope)(theta, everything), jacfwd(slope, 1)(theta, everything))  # (p, n)
    v = query_gradient(lambda params: cross_entropy(task.net)(params, task.x, y), task.params(theta))
    scores = {"cross": columns({"exact": frozen, "implicit": v @ towards}, removed)}
    return {
        **compare(scores, query_changes(task, theta, torch.stack(models), y), "dec_loo/moving", only=ok),
        "share_converged/moving": ok.double().mean().numpy(),
        "share_moved/moving": elsewhere(task, torch.stack(models), theta[None]).double().mean().numpy(),
        "log10_gradient/moving": np.log10(max(norm, *norms, 1e-16)),
    }


def _shortest(matrix: Tensor, right: Tensor) -> Tensor:
    """The pseudo-inverse times ``right``, by the slow SVD: LAPACK's fast one gives up on some of these matrices."""
    return torch.linalg.lstsq(matrix, right, rcond=1e-8, driver="gelss").solution


def _root(slope: Callable[[Tensor], Tensor], theta: Tensor, max_iter: int = 40) -> tuple[Tensor, float]:
    """Newton's method on an equation: where it ended, and how large the left side still is."""
    value = slope(theta)
    for _ in range(max_iter):
        if value.norm() <= ROOT_TOL:
            break
        step = _shortest(jacfwd(slope)(theta), value.unsqueeze(1))[:, 0]
        theta = theta - step * (0.3 / step.norm()).clamp(max=1)  # a long step may land where all clusters are one
        value = slope(theta)
    return theta, float(value.norm())
