r"""Datamodels: what a model says about a test point as a linear function of which examples it was trained on.

Outputs y (m models, t test points) come from nets trained on random subsets, whose masks are X (m, n), 0 or 1. For each
test point (Ilyas et al. 2022)

.. math:: \min_{w, b}\; \frac{1}{2m} |y - X w - b|^2 + \lambda |w|_1, \qquad
          w_i \approx E[\text{output} \mid i \in S] - E[\text{output} \mid i \notin S]

All test points share the Gram matrix of X: see :mod:`clif_kit.gram_lasso`.

Sign: outputs are such that higher is better (margins), the query is their negative. So a weight is the predicted change
of MINUS the output when the example is removed: positive = helpful. Unit: that of the output, per removed example.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clif_kit.gram_lasso import GramLasso, sums

PATIENCE = 3  # successive penalties without a gain, after which a test point leaves the path


@dataclass(frozen=True)
class Datamodels:
    """One linear model a test point.

    Attributes:
        weights: ``(t, n)``; positive = helpful.
        bias: ``(t,)``, the output predicted of no training data.
        lam: Penalty of each test point, ``(t,)``; 0 where there is none.
    """

    weights: Tensor
    bias: Tensor
    lam: Tensor

    def predict(self, masks: Tensor) -> Tensor:
        """Return the outputs predicted of models trained on subsets ``(m, n)``: ``(m, t)``.

        >>> model = Datamodels(torch.tensor([[2.0, -1.0]]), torch.tensor([0.5]), torch.zeros(1))
        >>> model.predict(torch.tensor([[True, False], [True, True]]))
        tensor([[2.5000],
                [1.5000]])
        """
        return torch.addmm(self.bias, masks.to(self.weights.dtype), self.weights.T)

    def removal_effect(self, removed: Tensor) -> Tensor:
        """Predicted change of MINUS the output when sets ``(s, n)`` bool are removed: ``(s, t)``; positive = helpful.

        >>> model = Datamodels(torch.tensor([[2.0, -1.0]]), torch.tensor([0.5]), torch.zeros(1))
        >>> model.removal_effect(torch.tensor([[True, True]]))
        tensor([[1.]])
        """
        return removed.to(self.weights.dtype) @ self.weights.T


def difference_of_means(masks: Tensor, outputs: Tensor) -> Tensor:
    """Return the mean output with the example minus the mean without, ``(t, n)``; positive = helpful.

    What there is without a regression: unbiased, but each weight carries the noise of all other examples.

    Args:
        masks: Subsets, ``(m, n)`` bool.
        outputs: ``(m, t)``; the result has their dtype.

    Raises:
        ValueError: If an example is in every subset or in none, or shapes do not fit.

    >>> masks = torch.tensor([[True, False], [True, True], [False, True]])
    >>> difference_of_means(masks, torch.tensor([[3.0], [1.0], [0.0]]))
    tensor([[ 2.0000, -2.5000]])
    """
    _check(masks, outputs)
    inside = masks.sum(0).to(outputs.dtype)  # (n,)
    if (bad := ((inside == 0) | (inside == len(masks))).nonzero()[:, 0]).numel():
        raise ValueError(f"example {int(bad[0])} is in every subset or in none: train on more subsets")
    centred = outputs - outputs.mean(0)
    total = sums(masks, centred)  # (t, n)  the sum without is the negative of it
    return total / inside + total / (len(masks) - inside)


def with_bias(weights: Tensor, masks: Tensor, outputs: Tensor) -> Datamodels:
    """Return weights ``(t, n)`` of any method as a predictor, with the bias that makes its mean right on these models.

    >>> masks, outputs = torch.tensor([[True, False], [False, True]]), torch.tensor([[3.0], [1.0]])
    >>> with_bias(torch.tensor([[1.0, -1.0]]), masks, outputs).predict(masks)
    tensor([[3.],
            [1.]])
    """
    bias = outputs.mean(0) - weights @ masks.to(weights.dtype).mean(0)
    return Datamodels(weights, bias, torch.zeros_like(bias))


def lasso(
    masks: Tensor, outputs: Tensor, lam: float | Tensor, *, tol: float = 1e-5, max_iter: int = 2000
) -> Datamodels:  # fmt: skip
    """Fit one LASSO a test point at given penalties; the bias is not penalised.

    Args:
        masks: Subsets, ``(m, n)`` bool.
        outputs: ``(m, t)``; everything is computed in their dtype.
        lam: Penalty, one number or ``(t,)``; 0 is least squares.
        tol: Largest violation of the optimality conditions, divided by the smallest penalty that leaves no weight.
            For float32 not below 1e-6.
        max_iter: Steps of a test point, each a product with the Gram matrix.

    Raises:
        ValueError: If shapes or dtypes do not fit, an output is not finite, or a penalty is negative.
        RuntimeError: If the iterations do not suffice.

    >>> masks = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]]).bool()
    >>> found = lasso(masks, 2.0 * masks[:, :1], 0.1)
    >>> found.weights, found.bias
    (tensor([[1.6000, 0.0000]]), tensor([0.2000]))
    """
    _check(masks, outputs)
    problem = GramLasso.of(masks, outputs)
    lam = torch.as_tensor(lam, dtype=outputs.dtype)
    if lam.shape not in ((), (outputs.shape[1],)) or not (lam >= 0).all():
        raise ValueError(f"a penalty must be 0 or more, one for all or {outputs.shape[1]}, got {lam.tolist()}"[:200])
    lam = lam.expand(outputs.shape[1]).clone()
    w = problem.solve(lam, torch.zeros_like(problem.slope), tol, max_iter)
    return Datamodels(w, problem.bias(w), lam)


def fit_datamodels(
    masks: Tensor,
    outputs: Tensor,
    *,
    n_lambdas: int = 20,
    eps: float = 0.01,
    held_out: float = 0.2,
    tol: float = 1e-5,
    max_iter: int = 2000,
) -> Datamodels:
    """Fit one LASSO a test point, each with its own penalty, chosen on models held out; then refit on all models.

    The path of a test point goes down from the smallest penalty that leaves no weight, in equal factors, to ``eps``
    times that; each fit starts at the one before. It ends early after three penalties without a gain.

    Args:
        masks: Subsets, ``(m, n)`` bool.
        outputs: ``(m, t)``; everything is computed in their dtype.
        n_lambdas: Penalties of a path.
        eps: Last penalty divided by the first.
        held_out: Share of the models that chooses (drawn at random, seed 0).
        tol: See :func:`lasso`.
        max_iter: See :func:`lasso`.

    Raises:
        ValueError: If shapes do not fit, or a side of the split would have fewer than two models.
        RuntimeError: If the iterations do not suffice.
    """
    _check(masks, outputs)
    m, (_, t) = len(masks), outputs.shape
    aside = round(held_out * m)
    if min(aside, m - aside) < 2 or n_lambdas < 2 or not 0 < eps < 1:
        raise ValueError(
            f"needs two models or more on each side (held_out={held_out:g} of {m}), n_lambdas >= 2 and 0 < eps < 1"
        )
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
    choose, rest = order[:aside], order[aside:]
    problem = GramLasso.of(masks[rest], outputs[rest])
    w = torch.zeros_like(problem.slope)
    best = {"error": outputs.new_full((t,), torch.inf), "lam": problem.lam_max.clone(), "w": w.clone()}
    stale, going = torch.zeros(t, dtype=torch.long), torch.arange(t)
    for factor in torch.logspace(0, torch.log10(torch.tensor(eps)).item(), n_lambdas).tolist():
        part = problem.of_targets(going)
        lam = part.lam_max * factor
        w[going] = part.solve(lam, w[going], tol, max_iter)
        model = Datamodels(w[going], part.bias(w[going]), lam)
        error = (model.predict(masks[choose]) - outputs[choose][:, going]).square().mean(0)
        better = error < best["error"][going]
        won = going[better]
        best["error"][won], best["lam"][won], best["w"][won] = error[better], lam[better], w[won]
        stale[going] = torch.where(better, 0, stale[going] + 1)
        going = going[stale[going] < PATIENCE]
        if not len(going):
            break
    whole = GramLasso.of(masks, outputs)
    lam = torch.where(best["lam"] > 0, best["lam"], whole.lam_max)  # 0: an output that was constant on the others
    w = whole.solve(lam, best["w"], tol, max_iter)
    return Datamodels(w, whole.bias(w), lam)


def r2(predicted: Tensor, actual: Tensor) -> Tensor:
    """Return 1 - squared error / variance of each test point over the models: ``(m, t)``, ``(m, t)`` to ``(t,)``.

    Raises:
        ValueError: If shapes differ, or an output is the same for all models.

    >>> r2(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([0.5000])
    """
    if predicted.shape != actual.shape:
        raise ValueError(f"predicted is {tuple(predicted.shape)}, actual {tuple(actual.shape)}")
    spread = (actual - actual.mean(0)).square().sum(0)
    if not spread.all():
        raise ValueError(f"test point {int(spread.argmin())} has the same output in all models: leave it out")
    return 1 - (predicted - actual).square().sum(0) / spread


def _check(masks: Tensor, outputs: Tensor) -> None:
    if masks.dtype != torch.bool or masks.ndim != 2 or outputs.ndim != 2 or not len(masks) == len(outputs) > 0:
        raise ValueError(
            f"needs masks (m, n) bool and outputs (m, t), got {tuple(masks.shape)} {masks.dtype} and "
            f"{tuple(outputs.shape)}"
        )
    if outputs.dtype not in (torch.float32, torch.float64) or outputs.requires_grad:
        raise ValueError(f"outputs must be float32 or float64 and detached, got {outputs.dtype}")
    if not outputs.sum().isfinite():
        raise ValueError("outputs must be finite: a model may have diverged, lower its lr")
