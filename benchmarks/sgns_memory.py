"""A hundred times more sentences: a hundred times the time, and no more memory.

``python -m benchmarks.sgns_memory N`` is one run in a process of its own, since the peak of a process never falls.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import BYTES, CPU, Case, Row
from benchmarks.own_process import own_process
from benchmarks.sgns import LENGTH, LOSS, WIDTH, WORDS, dense_queries, matrices, two_threads, zipf
from clif_kit.corpus import Corpus
from clif_kit.sentence_stream import stream_scores
from clif_kit.watchdog import PARENT_PID, watch_parent

PIECE, FEW, SOME, MANY = 10_000, 10_000, 100_000, 1_000_000
COMPARED = 1000  # sentences: those at the start are the same in each run


def run(n: int) -> dict:
    """Score n sentences that are made as they are asked for; CPU seconds, peak bytes and the first scores."""
    two_threads()
    params = matrices()
    direction = dense_queries(1, params)

    def pieces(n: int) -> Iterator[Corpus]:
        for seed, start in enumerate(range(0, n, PIECE)):
            yield zipf(min(PIECE, n - start), seed=seed)

    stream_scores(pieces(10), params, direction, LOSS, engine="numba")  # compiles
    start = time.process_time()
    scores = stream_scores(pieces(n), params, direction, LOSS, engine="numba")
    seconds = time.process_time() - start
    return {CPU: seconds, BYTES: float(peak_bytes()), "answer": scores[0, :COMPARED].tolist()}


def peak_bytes() -> int:
    """The most memory that this program held. (Linux's getrusage inherits the peak of whoever started it.)"""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def side(n: int, unit: str, scale: float = 1.0) -> tuple[float, Tensor]:
    """One run in its own process.

    Raises:
        Unavailable: If it ended with an error.
    """
    found = own_process("benchmarks.sgns_memory", n)
    return found[unit] * scale, torch.tensor(found["answer"], dtype=torch.float64)


@contextmanager
def case(unit: str, few: int = FEW, some: int = SOME, many: int = MANY) -> Iterator[Case]:
    """The largest corpus against smaller ones; times are scaled to its size, memory is not."""
    scales = {n: many / n if unit == CPU else 1.0 for n in (few, some)}
    smaller = {f"{n:,} sentences": partial(side, n, unit, scale) for n, scale in scales.items()}
    yield Case(partial(side, many, unit), smaller, two_threads())


def _row(name: str, title: str, rival: str, unit: str, goal: float) -> Row:
    return Row(
        id=name, title=title, rival=f"ourselves on {FEW:,} and {SOME:,} sentences, {rival}",
        n=f"{MANY:,} sentences of {LENGTH} words in pieces of {PIECE:,}, {WORDS:,} words, d={WIDTH}, numba",
        goal=goal, bound=1e-12, relative=True, unit=unit, case=partial(case, unit), repeats=1,
    )  # fmt: skip


ROWS = (
    _row("sgns_memory", "Memory stays flat", "the least peak of the whole process", BYTES, 0.9),
    _row("sgns_linear", "Time grows no faster than the corpus", "the least time, scaled to as many", CPU, 0.8),
)


if __name__ == "__main__":
    if PARENT_PID in os.environ:
        watch_parent()
    print(json.dumps(run(int(sys.argv[1]))))
