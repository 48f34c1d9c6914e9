r"""Scores from subset models alone: which examples each saw, and how it did; no gradient, no theory.

.. math:: f_q(S) \approx b + \sum_{i \in S} \theta_i, \qquad \text{score}_i = -\theta_i

One LASSO a test point (Ilyas et al. 2022), or no more than a difference of means.

Sign: targets are lower = better, so a score is positive where models without the example do worse: helpful.
"""

import numpy as np
from sklearn.linear_model import Lasso, lasso_path


def margin_targets(losses: np.ndarray) -> np.ndarray:
    r"""Minus the log-odds of the true class, from its cross-entropy: what datamodels are fitted to, lower = better.

    >>> margin_targets(np.array([np.log(2)]))
    array([0.])
    """
    return losses + np.log(-np.expm1(-losses))


def difference_of_means(kept: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean target of the models without an example minus the mean of those with it, ``(q, n)``; positive = helpful.

    >>> difference_of_means(np.array([[1, 0], [0, 1]]), np.array([[0.0], [2.0]]))
    array([[ 2., -2.]])
    """
    kept = np.asarray(kept, dtype=float)
    inside, outside = kept.sum(0), (1 - kept).sum(0)
    return ((1 - kept).T @ targets / outside[:, None] - kept.T @ targets / inside[:, None]).T


def lasso_datamodel(kept: np.ndarray, targets: np.ndarray, *, alphas: int = 20, held_out: float = 0.2) -> np.ndarray:
    """Minus the weights of one LASSO a test point, its penalty chosen on held-out models, ``(q, n)``.

    Args:
        kept: Which examples each model saw, ``(m, n)``.
        targets: ``(m, q)``, lower = better.
        alphas: Penalties tried, from the one that kills all weights down to a thousandth of it.
        held_out: Share of the models that choose.
    """
    kept, cut = np.asarray(kept, dtype=float), int(len(kept) * (1 - held_out))
    found = []
    for y in targets.T:
        centre, mean = kept[:cut].mean(0), y[:cut].mean()
        used, weights, _ = lasso_path(kept[:cut] - centre, y[:cut] - mean, alphas=alphas, eps=1e-3, tol=1e-3)
        error = (((kept[cut:] - centre) @ weights + mean - y[cut:, None]) ** 2).mean(0)
        found.append(-Lasso(alpha=used[error.argmin()], tol=1e-3).fit(kept, y).coef_)
    return np.stack(found)
