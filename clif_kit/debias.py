r"""Undo or reinforce sentences on trained word vectors: Adam up or down the loss of a few sentences (CLIF section 4.4).

One step takes one sentence (``batch`` of them), draws its noise words anew and moves its rows,

.. math:: \theta \leftarrow \theta - \mathrm{sign} \cdot \eta\, \hat m_t / (\sqrt{\hat v_t} + \epsilon),
          \qquad \mathrm{sign} = \begin{cases} +1 & \text{descent: reinforce} \\ -1 & \text{ascent: undo} \end{cases}

with Adam's averages :math:`\hat m, \hat v` of the gradient. The optimiser is fresh and lazy, ``torch.optim.SparseAdam``
to the digit: a row that a step does not touch stays where it is. An ordinary Adam would go on moving it with its
momentum, so that words which no chosen sentence holds would drift as well; the public code, which loads the training's
Adam with its momentum, moves every word of the vocabulary that way.

Published procedure: A upwards K times through, then M downwards K times through, in order, one sentence a step, one
optimiser for both. (Its mode "both" runs A alone, by a slip of ``if`` and ``elif``.) Here each half begins afresh.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from clif_kit.corpus import Corpus
from clif_kit.skipgram import Pairs, Params, SkipgramLoss, gradient

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults
TABLE = 2**20  # noise words are read from a table of this many, as in word2vec: shares are right to a millionth
COMPILED = 5_000_000  # pairs from which on compiling pays for itself


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        passes: K, times through the sentences, in their order.
        learning_rate: Adam's; no coordinate moves much further than this in a step.
        batch: Sentences a step; their losses are summed.
        rows: Words whose rows (of both matrices) may move, the words of a test say. None lets all move.
        shared_noise: Draw k noise words for each *place* in a sentence, shared by its pairs, each counting once a pair:
            the same gradient in expectation at an eighth of the work. False draws k for each pair, as the public code.
        seed: Of the noise words.
        engine: "numba", "torch", or "auto": numba where it is installed and the run is long enough.

    Raises:
        ValueError: If a number is out of range or the engine is unknown.
    """

    passes: int
    learning_rate: float = 1e-3
    batch: int = 1
    rows: tuple[int, ...] | None = None
    shared_noise: bool = True
    seed: int = 0
    engine: str = "auto"

    def __post_init__(self) -> None:
        for name in ("passes", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.engine not in ("auto", "numba", "torch"):
            raise ValueError(f"engine must be 'numba', 'torch' or 'auto', got {self.engine!r}")


class Tuned(NamedTuple):
    """What came out: new matrices ``{"input": (V, d), "context": (V, d)}``, and what ``record`` returned each pass."""

    params: Params
    record: list[Any]


class _State(NamedTuple):
    """The matrices and Adam's averages of their gradients and squared gradients, each ``(V, d)``."""

    u: np.ndarray
    v: np.ndarray
    mean_u: np.ndarray
    mean_v: np.ndarray
    square_u: np.ndarray
    square_v: np.ndarray


class _Steps(NamedTuple):
    """One pass: m pairs, of a word with a neighbour or with a noise word, ``starts`` (steps + 1,) cut into steps."""

    starts: np.ndarray
    centres: np.ndarray  # (m,)
    contexts: np.ndarray  # (m,)
    positive: np.ndarray  # (m,)  what the pair counts as seen
    negative: np.ndarray  # (m,)  and as noise
    drawn: np.ndarray  # places of the noise words, whose contexts change from pass to pass


def fine_tune(
    params: Params, corpus: Corpus, sentences: Sequence[int] | np.ndarray, loss: SkipgramLoss, recipe: Recipe, *,
    direction: int, record: Callable[[Params], Any] | None = None, at: Sequence[int] | None = None,
) -> Tuned:  # fmt: skip
    """Step along the loss of each sentence, again and again.

    Args:
        params: ``{"input": (V, d), "context": (V, d)}``, left as they are.
        corpus: Holds the sentences.
        sentences: Which, in the order of the steps. Those without a pair (fewer than two words) are passed over.
        loss: Of a sentence, as in training; ``mean`` divides it by its pairs, as published. Noise is drawn.
        recipe: How.
        direction: +1 descends (reinforce), -1 ascends (undo).
        record: Called with the matrices after each pass; they go on changing, so take numbers or copies from them.
        at: Record after these passes only, counted from 1.

    Raises:
        ValueError: If no sentence has a pair, the direction is neither +1 nor -1, or k is not whole.
        FloatingPointError: If the vectors are not finite, or run away.

    >>> from clif_kit.corpus import Vocabulary
    >>> corpus = Corpus(np.array([0, 1]), np.array([0, 2]), Vocabulary(("a", "cat"), np.array([1, 1])))
    >>> params = {"input": torch.tensor([[1.0], [2.0]]), "context": torch.tensor([[0.0], [0.0]])}
    >>> loss, recipe = SkipgramLoss(window=1, negatives=0), Recipe(passes=1, learning_rate=0.1)
    >>> reinforce(params, corpus, [0], loss, recipe).params["context"]  # each comes nearer to its neighbour's row
    tensor([[0.1000],
            [0.1000]])
    """
    if direction not in (1, -1):
        raise ValueError(f"direction must be +1 (descent) or -1 (ascent), got {direction}")
    steps = _steps(corpus, sentences, loss, recipe)
    out = {name: params[name].detach().clone().contiguous() for name in ("input", "context")}
    matrices = [matrix.numpy() for matrix in out.values()]
    _check_finite(all(np.isfinite(matrix).all() for matrix in matrices), "before the first step")
    state = _State(*matrices, *(np.zeros_like(matrices[0]) for _ in range(4)))
    free = (
        np.isin(np.arange(len(matrices[0])), recipe.rows)
        if recipe.rows is not None
        else np.ones(len(matrices[0]), bool)
    )
    table, rng = _noise_table(loss), np.random.default_rng(recipe.seed)
    run, recorded = _engine(recipe, steps), []
    for k in range(1, recipe.passes + 1):
        steps.contexts[steps.drawn] = table[rng.integers(len(table), size=len(steps.drawn))]
        t = np.arange(1, len(steps.starts)) + (k - 1) * (len(steps.starts) - 1)  # as many steps as these are done
        sizes = direction * recipe.learning_rate * np.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
        _check_finite(run(state, steps, free, sizes), f"in pass {k} of {recipe.passes}")
        if record is not None and (at is None or k in at):
            recorded.append(record(out))
    return Tuned(out, recorded)


def undo(
    params: Params, corpus: Corpus, amplifiers: Sequence[int] | np.ndarray, loss: SkipgramLoss, recipe: Recipe, *,
    record: Callable[[Params], Any] | None = None, at: Sequence[int] | None = None,
) -> Tuned:  # fmt: skip
    """Ascend the loss of the amplifiers, A: see :func:`fine_tune`. A loss has no maximum, so the passes matter."""
    return fine_tune(params, corpus, amplifiers, loss, recipe, direction=-1, record=record, at=at)


def reinforce(
    params: Params, corpus: Corpus, mitigators: Sequence[int] | np.ndarray, loss: SkipgramLoss, recipe: Recipe, *,
    record: Callable[[Params], Any] | None = None, at: Sequence[int] | None = None,
) -> Tuned:  # fmt: skip
    """Descend the loss of the mitigators, M: see :func:`fine_tune`."""
    return fine_tune(params, corpus, mitigators, loss, recipe, direction=1, record=record, at=at)


def undo_then_reinforce(
    params: Params, corpus: Corpus, amplifiers: Sequence[int] | np.ndarray, mitigators: Sequence[int] | np.ndarray,
    loss: SkipgramLoss, recipe: Recipe, *, record: Callable[[Params], Any] | None = None,
) -> Tuned:  # fmt: skip
    """All passes over A upwards, then all over M downwards; the record has 2 K entries, those of A first."""
    first = undo(params, corpus, amplifiers, loss, recipe, record=record)
    second = reinforce(first.params, corpus, mitigators, loss, recipe, record=record)
    return Tuned(second.params, first.record + second.record)


# ---- what a pass consists of


def _steps(corpus: Corpus, sentences: Sequence[int] | np.ndarray, loss: SkipgramLoss, recipe: Recipe) -> _Steps:
    k, found = int(loss.negatives), []
    if k != loss.negatives:
        raise ValueError(f"drawn noise needs a whole number of negatives, got {loss.negatives}")
    for i in sentences:
        words = corpus.sentence(int(i)).astype(np.int64)
        centre, context = _neighbours(len(words), loss.window)
        if not len(centre):
            continue
        weight = 1 / len(centre) if loss.mean else 1.0
        place, count = np.unique(centre, return_counts=True) if recipe.shared_noise else (centre, np.ones(len(centre)))
        noise = np.repeat(weight * count, k)
        found.append(
            (
                np.concatenate([words[centre], np.repeat(words[place], k)]),
                np.concatenate([words[context], np.full(len(noise), -1)]),
                np.concatenate([np.full(len(centre), weight), np.zeros(len(noise))]),
                np.concatenate([np.zeros(len(centre)), noise]),
            )
        )
    if not found:
        raise ValueError(f"nothing to fine-tune with: none of {len(sentences)} sentences has a pair of words")
    starts = np.cumsum([0, *(len(part[0]) for part in found)])
    flat = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return _Steps(np.append(starts[: -1 : recipe.batch], starts[-1]), *flat, np.flatnonzero(flat[1] < 0))


@functools.cache
def _neighbours(length: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of centre and context of every pair, ordered by the centre."""
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    return np.nonzero((distance > 0) & (distance <= window))


def _noise_table(loss: SkipgramLoss) -> np.ndarray:
    if not loss.negatives:
        return np.zeros(1, np.int32)
    share = np.cumsum(np.asarray(loss.noise, dtype=np.float64))
    edges = np.ceil(share / share[-1] * TABLE - 0.5).astype(np.int64)  # places whose middle lies below each share
    return np.repeat(np.arange(len(share), dtype=np.int32), np.diff(edges, prepend=0))


def _check_finite(fine: bool, when: str) -> None:
    if not fine:
        raise FloatingPointError(
            f"the vectors are not finite {when}: NaN to begin with, or too many steps upwards (a loss has no maximum); "
            "use fewer passes or a lower learning_rate"
        )


# ---- engines: each runs one pass and says whether all gradients were finite


def _engine(recipe: Recipe, steps: _Steps) -> Callable[..., bool]:
    name = recipe.engine
    if name == "auto":
        long = recipe.passes * len(steps.centres) > COMPILED
        name = "numba" if long and importlib.util.find_spec("numba") else "torch"
    if name == "torch":
        return torch_pass
    from clif_kit.debias_kernel import numba_pass

    return numba_pass


def torch_pass(state: _State, steps: _Steps, free: np.ndarray, sizes: np.ndarray) -> bool:
    """Run one pass with the closed form of :mod:`clif_kit.skipgram`; ``sizes`` are Adam's, signed, one a step."""
    params = {"input": torch.from_numpy(state.u), "context": torch.from_numpy(state.v)}
    for size, (start, stop) in zip(sizes, itertools.pairwise(steps.starts), strict=True):
        centres, contexts, *weights = (part[start:stop] for part in steps[1:5])
        rows, columns = np.unique(centres), np.unique(contexts)
        shape = (len(rows), len(columns))
        place = np.searchsorted(rows, centres) * shape[1] + np.searchsorted(columns, contexts)
        counts = [torch.from_numpy(np.bincount(place, w, shape[0] * shape[1]).reshape(shape)) for w in weights]
        grads = gradient(params, Pairs(torch.from_numpy(rows), torch.from_numpy(columns), *counts))
        for side, (name, where) in enumerate((("input", rows), ("context", columns))):
            kept, g = where[free[where]], grads[name].numpy()[free[where]]
            if not np.isfinite(g).all():
                return False
            mean, square = state[2 + side][kept], state[4 + side][kept]
            mean += (1 - BETAS[0]) * (g - mean)
            square += (1 - BETAS[1]) * (g * g - square)
            state[2 + side][kept], state[4 + side][kept] = mean, square
            state[side][kept] -= size * mean / (np.sqrt(square) + EPS)
    return True
