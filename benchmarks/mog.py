"""The clustering experiment: all pairs of scores, and leave-one-out training, against loops of plain torch modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap
from torch.nn.functional import kl_div, nll_loss
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.harness import Case, Row, timed
from clif_kit import mog
from clif_kit.gradients import per_example_gradients, query_gradient
from clif_kit.influence import cross_loss_influence, gradient_dot
from clif_kit.models import clustering_loss, cross_entropy
from clif_kit.mog_scores import one_pass
from clif_kit.solvers import pseudo_inverse

STEPS = 10  # Adam steps of each leave-one-out model
DAMPING, SCALE, CUT = 0.01, 25.0, 1e-8  # of the public code; eigenvalues below the cut count as null directions


class Module(nn.Module):
    """The net as one would write it: two layers, three centres, soft assignments by Student's t kernel."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.empty(3, 12, dtype=theta.dtype))
        self.encoder = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12)).to(theta)
        vector_to_parameters(theta.clone(), self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Soft assignments, ``(n, 3)``."""
        near = 1 / (1 + (self.encoder(x).unsqueeze(1) - self.centres).square().sum(-1))
        return near / near.sum(1, keepdim=True)


# --- all pairs of test and training points ---


def pairs(task: mog.Task, theta: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """Dot product, the public code's one pass of LiSSA, and the exact inverse: ``(3, test, train)``.

    What :func:`clif_kit.mog_scores.estimates` does for three of its five estimators.
    """
    params, plain = task.params(theta), clustering_loss(task.net)

    def one(vector: Tensor, *example: Tensor) -> Tensor:
        return plain(task.params(vector), *(value.unsqueeze(0) for value in example))[0] / 3

    g = per_example_gradients(lambda *args: plain(*args) / 3, params, (task.x, target))
    v = query_gradient(lambda p: cross_entropy(task.net)(p, task.x, y), params)
    each = vmap(hessian(one), (None, 0, 0))(theta, task.x, target)
    mean = each.mean(0)
    solves = one_pass(each, DAMPING, SCALE), pseudo_inverse((mean + mean.T) / 2, CUT)
    return torch.stack([gradient_dot(g, v), *(cross_loss_influence(g, v, solve) for solve in solves)])


def pairs_by_loop(task: mog.Task, theta: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """The same by autograd, one pair at a time, in the order of the public code: a Hessian-vector product, a gradient.

    The pass over the training points comes first, then their dot products; both happen again for each test point.
    """
    module, n = Module(theta), len(task.x)
    params = list(module.parameters())
    inverse = torch.linalg.pinv(_mean_hessian(module, theta, task.x, target), rtol=CUT, hermitian=True)
    scores = torch.empty(3, n, n).to(theta)

    def loss(i: int) -> Tensor:
        return kl_div(module(task.x[i : i + 1]).log(), target[i : i + 1], reduction="batchmean") / 3

    for k in range(n):
        v = _flat(torch.autograd.grad(nll_loss(module(task.x[k : k + 1]).log(), y[k : k + 1]), params))
        h = v
        for i in range(n):
            slope = _flat(torch.autograd.grad(loss(i), params, create_graph=True))
            h = v + (1 - DAMPING) * h - _flat(torch.autograd.grad(slope @ h, params)) / SCALE
        directions = torch.stack([v, h, inverse @ v])
        for i in range(n):
            scores[:, k, i] = directions @ _flat(torch.autograd.grad(loss(i), params)) / n
    return scores


def _mean_hessian(module: nn.Module, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
    names, shapes = zip(*((name, value.shape) for name, value in module.named_parameters()), strict=True)

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([shape.numel() for shape in shapes])
        params = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return kl_div(functional_call(module, params, (x,)).log(), target, reduction="batchmean") / 3

    return torch.autograd.functional.hessian(loss, theta)


def _flat(values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


@contextmanager
def pairs_case(n_per_class: int = 50) -> Iterator[Case]:
    """The clustering model of the public protocol (two Adam steps), queried by the supervised loss."""
    task = mog.make_task(0, n_per_class=n_per_class)
    theta = mog.train(task, None)
    given = task, theta, task.sharpened(theta), mog.reset_labels(task, theta)
    yield Case(timed(partial(pairs, *given)), {"loop": timed(partial(pairs_by_loop, *given))})


# --- leave-one-out training ---


def leave_one_out(task: mog.Task, target: Tensor) -> Tensor:
    """Every model without one point, ``(n, p)``, trained together in closed form."""
    keep = 1 - torch.eye(len(task.x), dtype=task.x.dtype)
    return mog.train(task, target, keep, steps=STEPS)


def leave_one_out_by_loop(task: mog.Task, y: Tensor) -> Tensor:
    """The same one after the other: a module, torch's Adam, ``backward``."""
    models = []
    for i in range(len(task.x)):
        x, labels = (torch.cat([value[:i], value[i + 1 :]]) for value in (task.x, y))
        module = Module(task.start)
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(STEPS):
            optimiser.zero_grad()
            nll_loss(module(x).log(), labels).backward()
            optimiser.step()
        models.append(parameters_to_vector(module.parameters()).detach())
    return torch.stack(models)


@contextmanager
def loo_case(n_per_class: int) -> Iterator[Case]:
    """Supervised training from the shared start, labels aligned with its clusters."""
    task = mog.make_task(0, n_per_class=n_per_class)
    y = mog.aligned_labels(task)
    ours, theirs = partial(leave_one_out, task, task.labels(y)), partial(leave_one_out_by_loop, task, y)
    yield Case(timed(ours), {"loop": timed(theirs)})


def _loo_row(points: int, goal: float) -> Row:
    return Row(
        id=f"mog_loo_{points}",
        title=f"Leave-one-out training, {points} points",
        rival="one nn.Module after the other with torch.optim.Adam, float64",
        n=f"{points} models, {STEPS} Adam steps on {points - 1} points each",
        goal=goal,
        bound=1e-12,
        case=partial(loo_case, points // 3),
    )


ROWS = (
    Row(
        id="mog_pairs",
        title="Scores of all pairs, three estimators",
        rival="per-pair autograd loop in the order of the public code, float64; it takes each training gradient again "
        "for every test point, and a loop that kept them would be somewhat cheaper",
        n="150 x 150",
        goal=100,
        bound=1e-8,
        case=pairs_case,
        repeats=3,
    ),
    _loo_row(150, 12),
    _loo_row(450, 5),
)
