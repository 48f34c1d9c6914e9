"""The LASSO by celer, a target at a time. Imported in the rivals' environment only."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from celer import Lasso
from torch import Tensor


def celer(given: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Coefficients ``(sample, n)``; the input is centred already."""
    x, y = np.asfortranarray(given["x"].numpy()), given["y"].numpy()

    def run() -> Tensor:
        fits = [Lasso(alpha=lam, fit_intercept=False).fit(x, y[:, j]) for j, lam in enumerate(given["lam"].tolist())]
        return torch.stack([torch.as_tensor(fit.coef_) for fit in fits])

    return run


RIVALS = {"celer": celer}
