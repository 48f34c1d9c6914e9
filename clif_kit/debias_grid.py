r"""The grid of the paper's fine-tuning: which sentences, how many, how often, up or down; and what comes of it.

A *cell* is a mode (undo A, reinforce M, both), a number of sentences N and a number of passes K. The paper reports for
each test the cell with the smallest effect on that very test: the best of 48.

Sign: scores as everywhere (positive = mitigating: without the sentence the bias would be larger), so A holds the most
negative scores and M the most positive ones.
"""

import importlib.util
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clif_kit.corpus import Corpus
from clif_kit.debias import Recipe, reinforce, undo
from clif_kit.hard_debias import GENDER_WORDS
from clif_kit.sentence_stream import stream_scores
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.weat import SIDES, Resolved, effect
from clif_kit.word_influence import dot_direction
from clif_kit.word_queries import query_gradient, weat_query

MODES = ("a_only", "m_only", "both")
LONG = 1000  # budget from which on compiling pays for itself
Cell = tuple[int, int, int]  # which mode, size and number of passes
Sets = tuple[np.ndarray, np.ndarray]  # sentences to undo and to reinforce, the strongest first
Measure = Callable[[Params], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The grid, and what is run beside it.

    Attributes:
        sizes: N, sentences of A and of M, ascending.
        passes: K, times through them, ascending.
        budget: Cells with N K above it are left out.
        long_budget: The same for the one mode and N of each test whose every K is shown in a figure.
        learning_rate: Of Adam.
        n_splits: Random halvings of the word lists.
        seed: Of the halvings.
        keep: Words that hard debiasing for gender does not neutralise.
        engine: "numba", "torch", or "auto": numba where it is installed and the budget is large.
    """

    sizes: tuple[int, ...] = (5, 10, 100, 1000)
    passes: tuple[int, ...] = (5, 10, 100, 1000)
    budget: int = 10_000
    long_budget: int = 100_000
    learning_rate: float = 1e-3
    n_splits: int = 3
    seed: int = 0
    keep: frozenset[str] = GENDER_WORDS
    engine: str = "auto"

    def recipe(self, k: int, seed: int) -> Recipe:
        """K passes with noise drawn by this seed."""
        engine = self.engine
        if engine == "auto":  # one engine for the whole grid: its many short runs pay together for compiling
            engine = "numba" if self.budget >= LONG and importlib.util.find_spec("numba") else "torch"
        return Recipe(passes=k, learning_rate=self.learning_rate, seed=seed, engine=engine)

    def affordable(self, n: int, budget: int | None = None) -> list[int]:
        """The numbers of passes with N K within the budget."""
        return [k for k in self.passes if n * k <= (budget or self.budget)]


# ---- what is measured


def rows_of(tests: Sequence[Resolved]) -> list[int]:
    """Rows of all words of the tests, each once, ascending."""
    return sorted({row for test in tests for side in SIDES for row in getattr(test, side).tolist()})


def meter(tests: Sequence[Resolved]) -> Measure:
    """A function that measures the signed effect of each test, in float64 and on the rows of their words alone."""
    rows = torch.cat([getattr(test, side) for test in tests for side in SIDES]).unique()
    local = [replace(test, **{side: torch.searchsorted(rows, getattr(test, side)) for side in SIDES}) for test in tests]

    def measure(params: Params) -> np.ndarray:
        vectors = params["input"][rows].double()
        return np.array([float(effect(vectors, test)) for test in local])

    return measure


def halves(test: Resolved, seed: int) -> tuple[Resolved, Resolved]:
    """Two tests with half of the words of each list, drawn at random; of an odd list the second gets one more."""
    rng, parts = np.random.default_rng(seed), ({}, {})
    sizes = {side: len(getattr(test, side)) for side in SIDES}
    for side, size in sizes.items():
        order = rng.permutation(size)
        for part, places in zip(parts, (order[: size // 2], order[size // 2 :]), strict=True):
            part[side] = np.sort(places)
    return tuple(
        replace(
            test,
            words=replace(test.words, **{side: [getattr(test.words, side)[i] for i in part[side]] for side in SIDES}),
            **{side: getattr(test, side)[part[side]] for side in SIDES},
        )
        for part in parts
    )


def weat_scores(params: Params, corpus: Corpus, tests: Sequence[Resolved], window: int) -> np.ndarray:
    """The published scores: gradient dot of the absolute effect with the loss of positives, ``(tests, n)``, float64.

    LiSSA at the published settings ranks the same (its effective damping makes the inverse a multiple of one).
    """
    loss = SkipgramLoss.published(window)
    seen = corpus.containing(rows_of(tests))
    directions = [dot_direction(query_gradient(weat_query(test), params), corpus, loss) for test in tests]
    scores = np.zeros((len(tests), len(corpus)))
    scores[:, seen] = stream_scores(corpus.select(seen), params, directions, loss, engine="torch")
    return scores


def chosen_sets(scores: np.ndarray, most: int) -> Sets:
    """A and M, ``most`` sentences each, the strongest first: amplifiers score below 0, mitigators above.

    Where there are too few, sentences that score 0 fill up; one of the wrong sign never does. (In the public code A
    begins at the weakest of the 10,000 strongest, or, with fewer sentences, at the most *mitigating* one.)

    >>> chosen_sets(np.array([0.0, -2.0, 3.0, -1.0, 5.0]), 2)
    (array([1, 3]), array([4, 2]))
    >>> chosen_sets(np.array([0.0, -2.0, 3.0]), 2)
    (array([1, 0]), array([2, 0]))
    """
    first, last = np.argsort(scores, kind="stable")[:most], np.argsort(-scores, kind="stable")[:most]
    return first[scores[first] <= 0], last[scores[last] >= 0]


def random_sets(corpus: Corpus, rows: Sequence[int], most: int, seed: int, *, inside: bool = True) -> Sets:
    """Two disjoint random sets, of sentences with (``inside``) or without one of these words and with a pair."""
    among = np.zeros(len(corpus), bool)
    among[corpus.containing(rows)] = True
    pool = np.flatnonzero((among == inside) & (corpus.lengths > 1))
    drawn = np.random.default_rng(seed).permutation(pool)
    return drawn[: min(most, len(drawn) // 2)], drawn[len(drawn) // 2 :][:most]


# ---- the grid


def run_grid(
    params: Params, corpus: Corpus, sets: Sets, loss: SkipgramLoss, plan: Plan,
    measure: Measure, seed: int = 0, modes: Collection[str] = MODES,
) -> np.ndarray:  # fmt: skip
    """Every affordable cell: shape ``(3 modes, sizes, passes, what is measured)``, NaN for the others.

    One run with the largest K serves all smaller ones; only "both" needs a second half for each K.

    Args:
        params: Where each run starts.
        corpus: Of the sentences.
        sets: What is undone and what is reinforced, the strongest first. Exchanged, they over-bias.
        loss: Of a sentence.
        plan: The grid.
        measure: From the matrices to numbers, see :func:`meter`.
        seed: Of the noise words.
        modes: Which to run; the others stay NaN.
    """
    out = np.full((3, len(plan.sizes), len(plan.passes), len(measure(params))), np.nan)
    for i, n in enumerate(plan.sizes):
        if not (ks := plan.affordable(n)):
            continue
        recipe, first, second = plan.recipe(ks[-1], seed), sets[0][:n], sets[1][:n]
        if "m_only" in modes:
            out[1, i, : len(ks)] = reinforce(params, corpus, second, loss, recipe, at=ks, record=measure).record
        if not {"a_only", "both"} & set(modes):
            continue
        up = undo(params, corpus, first, loss, recipe, at=ks, record=lambda p: (measure(p), _copy(p))).record
        out[0, i, : len(ks)] = [values for values, _ in up]
        for j, k in enumerate(ks if "both" in modes else []):
            out[2, i, j] = measure(reinforce(up[j][1], corpus, second, loss, plan.recipe(k, seed + 1)).params)
    return out


def run_cell(
    params: Params, corpus: Corpus, sets: Sets, loss: SkipgramLoss, plan: Plan, cell: Cell,
    seed: int = 0,
) -> Params:  # fmt: skip
    """The vectors after one cell of :func:`run_grid`, to the digit."""
    mode, n, k = MODES[cell[0]], plan.sizes[cell[1]], plan.passes[cell[2]]
    longest = plan.recipe(k, seed)
    if mode == "m_only":
        return reinforce(params, corpus, sets[1][:n], loss, longest).params
    up = undo(params, corpus, sets[0][:n], loss, longest).params
    return up if mode == "a_only" else reinforce(up, corpus, sets[1][:n], loss, plan.recipe(k, seed + 1)).params


def best_cell(effects: np.ndarray, mode: int | None = None) -> Cell:
    """The cell with the smallest effect in size, ``(3, sizes, passes)``; of one mode, or of all.

    >>> best_cell(np.array([[[0.5, -0.1]], [[0.2, np.nan]], [[0.3, 0.1]]])), best_cell(np.ones((3, 1, 1)), mode=1)
    ((0, 0, 1), (1, 0, 0))
    """
    size = np.abs(effects)
    if mode is not None:
        size = np.where(np.arange(3)[:, None, None] == mode, size, np.nan)
    return tuple(int(i) for i in np.unravel_index(np.nanargmin(size), size.shape))


def _copy(params: Params) -> Params:
    return {name: matrix.clone() for name, matrix in params.items()}
