"""Exact influence on a small net, Hessian and all, against the exact routes of captum and dattri."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.harness import Case, Row, timed
from benchmarks.peer import rivals
from clif_kit.curvature import hessian
from clif_kit.gradients import flatten, gradient, mean_loss, per_example_gradients, query_gradient, unflatten, with_l2
from clif_kit.influence import cross_loss_influence
from clif_kit.models import Net, Params, cross_entropy, mlp
from clif_kit.solvers import exact

SIZES, L2 = (10, 32, 32, 2), 0.01  # 1474 parameters
N_TRAIN, N_TEST = 300, 20


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on whose side of a curved boundary the label depends."""
    x = torch.randn(n, SIZES[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3].square() > 0.5).long()


def converged(net: Net, batch: tuple[Tensor, Tensor]) -> Params:
    """Parameters at the minimum of the penalised loss, by L-BFGS: elsewhere the Hessian may be indefinite."""
    start, losses = net.init(0), with_l2(cross_entropy(net), L2)

    def objective(theta: object) -> tuple[float, object]:
        params = unflatten(torch.from_numpy(theta), start)
        return float(mean_loss(losses, params, batch)), gradient(losses, params, batch).numpy()

    options = {"maxiter": 20_000, "maxfun": 20_000, "maxcor": 50, "gtol": 1e-7, "ftol": 0}
    found = minimize(objective, flatten(start).numpy(), jac=True, method="L-BFGS-B", options=options)
    return unflatten(torch.from_numpy(found.x), start)


def influences(net: Net, params: Params, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Scores of every training point for every test point, ``(test, train)``; the penalty is the damping."""
    losses = cross_entropy(net)
    g = per_example_gradients(losses, params, train, chunk=None)
    v = query_gradient(lambda theta: losses(theta, *test), params)
    return cross_loss_influence(g, v, exact(hessian(losses, params, train), damping=L2))


@contextmanager
def case() -> Iterator[Case]:
    """One trained net; the rivals get its parameters."""
    net, train, test = mlp(SIZES), data(N_TRAIN, 1), data(N_TEST, 2)
    params = converged(net, train)
    inputs = {"x": train[0], "y": train[1], "x_test": test[0], "y_test": test[1], **params}
    with rivals("benchmarks.ihvp_rivals", inputs, ("captum", "dattri")) as (theirs, versions):
        yield Case(timed(partial(influences, net, params, train, test)), theirs, versions)


ROWS = (
    Row(
        id="ihvp_exact",
        title="Exact inverse Hessian",
        rival="the faster of captum (NaiveInfluenceFunction, full rank) and dattri (IFAttributorExplicit)",
        n=f"tanh net {'-'.join(map(str, SIZES))}, {N_TRAIN} training and {N_TEST} test points",
        goal=1,
        bound=1e-6,
        relative=True,
        case=case,
    ),
)
