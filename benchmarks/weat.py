"""The permutation test of WEAT, against WEFE as :mod:`benchmarks.weat_rivals` once timed it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.harness import Case, Row, timed
from benchmarks.weat_rivals import FILE, TIMED, weat_case
from clif_kit.weat import RELIGION, Resolved, effect, permutation_test

RUNS = 10_000


@contextmanager
def permutations() -> Iterator[Case]:
    """Both sides answer with the effect: WEFE draws words with replacement, so its p is another number.

    WEFE's seconds are stored, of fewer draws, and scaled: it does the same for each draw.
    """
    stored = json.loads(FILE.read_text("utf-8"))
    (x, y, a, b), vectors = weat_case(TIMED)
    vectors = torch.from_numpy(vectors)
    test = Resolved(RELIGION, *torch.arange(len(vectors)).split([len(x), len(y), len(a), len(b)]))
    answer = torch.tensor(stored["weat"][TIMED]["effect_size"], dtype=vectors.dtype)
    seconds = stored["permutations"]["cpu_seconds"] * RUNS / stored["permutations"]["runs"]

    def ours() -> torch.Tensor:
        permutation_test(vectors, test, runs=RUNS)
        return effect(vectors, test)

    versions = {name: stored["versions"][name] for name in ("wefe",)}
    yield Case(timed(ours), {"wefe": lambda: (seconds, answer)}, versions)


ROWS = (
    Row(
        id="weat_perm",
        title="Permutation test of a word-embedding association",
        rival="WEFE (stored figure: 200 draws, scaled)",
        n="10,000 permutations, 4 lists of 25 words, d=100",
        goal=1000,
        bound=1e-6,
        case=permutations,
    ),
)
