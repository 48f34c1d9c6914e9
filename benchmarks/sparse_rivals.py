"""The elastic-net path by skglm. Imported in the rivals' environment only."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from skglm.datafits import Logistic
from skglm.penalties import L1_plus_L2
from skglm.solvers import ProxNewton
from torch import Tensor

from benchmarks.sparse import MIX, SKGLM_TOL


def skglm(inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Its solver on the columns as it likes them, each penalty from the layer before."""
    x, y = np.asfortranarray(inputs["x"].numpy()), 2.0 * inputs["y"].numpy() - 1
    lambdas, solver = inputs["lambdas"].tolist(), ProxNewton(tol=SKGLM_TOL, fit_intercept=True)

    def run() -> Tensor:
        layer, logits, found = np.zeros(x.shape[1] + 1), np.zeros(len(x)), []
        for lam in lambdas:
            # a copy goes in: the solver writes into the start that it is given
            layer = solver.solve(x, y, Logistic(), L1_plus_L2(lam, MIX), layer.copy(), logits)[0]
            logits = x @ layer[:-1] + layer[-1]
            found.append(layer)
        return torch.from_numpy(np.stack(found))

    return run


RIVALS = {"skglm": skglm}
