"""The elastic-net path of a last layer: all penalties in groups against one penalty after the other."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Row, Side, timed
from benchmarks.peer import rivals
from clif_kit.sparse import elastic_net_path, lambda_max, standardise

N, WIDTH, PENALTIES, FIRST, LAST, MIX = 10_000, 384, 50, 0.9, 0.01, 0.99
FEW = 5_000  # examples that saga gets: with all of them it takes minutes
GAP = 1e-7  # largest distance of two objectives, in nats
SAGA_TOL, SKGLM_TOL = 1e-4, 1e-5  # saga's is the loosest power of ten that keeps to it
Setting = tuple[Tensor, Tensor, Tensor]


def setting(n: int = N, width: int = WIDTH, penalties: int = PENALTIES) -> Setting:
    """Features with a falling spectrum, as those of a network have, labels of a sparse layer, and penalties.

    The largest penalty itself is left out: where every weight is zero, saga stops before its bias is right.
    """
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    raw = torch.randn(n, width, generator=generator, dtype=torch.float64)
    (x,) = standardise(raw * torch.arange(1, width + 1) ** -0.25 @ turn)
    used = torch.rand(width, generator=generator) < 0.2
    layer = torch.randn(width, generator=generator, dtype=torch.float64) * used
    y = (torch.sigmoid(x @ layer * 0.5) > torch.rand(n, generator=generator)).long()
    top = lambda_max(x, y, classes=2, l1_ratio=MIX)
    return x, y, top * torch.logspace(math.log10(FIRST), math.log10(LAST), penalties, dtype=torch.float64)


def ours(given: Setting) -> Tensor:
    """Layers of shape ``(k, d + 1)``, the bias last."""
    x, y, lambdas = given
    path = elastic_net_path(x, y, classes=2, l1_ratio=MIX, lambdas=lambdas)
    return torch.cat([path.weights[:, 0], path.bias], 1)


def saga(given: Setting) -> Callable[[], Tensor]:
    """The path by sklearn: each layer starts from the one before."""
    from sklearn.linear_model import LogisticRegression

    x, y, lambdas = given
    rows, labels = np.ascontiguousarray(x.numpy()), y.numpy()

    def run() -> Tensor:
        model = LogisticRegression(solver="saga", l1_ratio=MIX, warm_start=True, tol=SAGA_TOL, max_iter=10_000)
        model.random_state, found = 0, []
        for lam in lambdas.tolist():
            model.set_params(C=1 / (lam * len(labels))).fit(rows, labels)
            found.append(np.concatenate([model.coef_[0], model.intercept_]))
        return torch.from_numpy(np.stack(found))

    return run


def objectives(given: Setting, layers: Tensor) -> Tensor:
    """What each layer was to make small, in nats, shape ``(k,)``."""
    x, y, lambdas = given
    logits = x @ layers[:, :-1].T + layers[:, -1]  # (n, k)
    loss = torch.nn.functional.softplus(torch.where(y[:, None] == 1, -logits, logits)).mean(0)
    weights = layers[:, :-1]
    return loss + lambdas * ((1 - MIX) / 2 * weights.square().sum(1) + MIX * weights.abs().sum(1))


def judged(given: Setting, side: Side) -> Side:
    """The same side, whose answer is its objectives; they are not timed."""

    def run() -> tuple[float, Tensor]:
        seconds, layers = side()
        return seconds, objectives(given, layers)

    return run


@contextmanager
def saga_case(given: Setting | None = None) -> Iterator[Case]:
    """Ours and sklearn."""
    given = given or setting(FEW)
    sides = timed(partial(ours, given)), timed(saga(given))
    yield Case(judged(given, sides[0]), {"sklearn saga": judged(given, sides[1])}, _sklearn())


@contextmanager
def skglm_case(given: Setting | None = None) -> Iterator[Case]:
    """Ours and skglm in the rivals' environment."""
    given = given or setting()
    inputs = dict(zip(("x", "y", "lambdas"), given, strict=True))
    with rivals("benchmarks.sparse_rivals", inputs, ("skglm",)) as (theirs, versions):
        sides = {name: judged(given, side) for name, side in theirs.items()}
        yield Case(judged(given, timed(partial(ours, given))), sides, versions)


def _sklearn() -> dict[str, str]:
    import sklearn

    return {"scikit-learn": sklearn.__version__}


def _size(n: int) -> str:
    return (
        f"{n:,} examples, {WIDTH} features, 2 classes, {PENALTIES} penalties, {FIRST:g} to {LAST:g} of the largest; "
        f"a = {MIX}"
    )


ROWS = (
    Row(
        id="glm_path",
        title="Elastic-net path of a last layer",
        rival=f"sklearn's saga, each penalty from the layer before, tolerance {SAGA_TOL:g}; what must agree is the "
        "objective of each layer, in nats",
        n=_size(FEW),
        goal=5,
        bound=GAP,
        case=saga_case,
        repeats=2,
    ),
    Row(
        id="glm_path_skglm",
        title="The same path by skglm",
        rival=f"skglm's proximal Newton method called penalty by penalty, each from the layer before, tolerance "
        f"{SKGLM_TOL:g}; compiled beforehand",
        n=_size(N),
        goal=1,
        bound=GAP,
        case=skglm_case,
        repeats=3,
    ),
)
