"""Memory: scores of ten times more texts in no more of it, and what the scores of a small BERT take beside captum.

``python -m benchmarks.tracin_memory WHAT N ROWS`` is one run in a process of its own, since the peak of a process
never falls. ``WHAT`` is "whole", "ours" or "captum".
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import BYTES, Case, Row
from benchmarks.own_process import own_process
from benchmarks.sgns_memory import peak_bytes
from benchmarks.tracin import CLASSES, LONGEST, LR, QUERIES, TABLE, WIDTH, labels, peer_inputs, sides, texts
from clif_kit.text_models import text_cnn
from clif_kit.text_tokens import Tokens
from clif_kit.traced import Traced
from clif_kit.tracin import tracin_we
from clif_kit.train import Checkpoint
from clif_kit.watchdog import PARENT_PID, watch_parent

SIZES, LIMIT = (10_000, 30_000, 100_000), 1.5 * 2**30
PIECE, COMPARED = 10_000, 1000  # texts: those at the start are the same in each run
RESET = Path("/proc/self/clear_refs")  # a 5 sets the peak to what is held now


def cnn_sides(n: int, rows: int = TABLE) -> tuple[Traced, Traced]:
    """The paper's CNN at one checkpoint of random weights, and n texts."""
    model, params = text_cnn(rows, CLASSES, width=WIDTH)
    pieces = [texts(min(PIECE, n - start), start, rows) for start in range(0, n, PIECE)]
    ids, parts = (torch.cat([getattr(piece, name) for piece in pieces]) for name in ("ids", "parts"))
    tokens = Tokens(ids, parts, pieces[0].special, pieces[0].names)
    y = torch.cat([labels(len(piece), i) for i, piece in enumerate(pieces)])
    train = Traced(model=model, checkpoints=[Checkpoint(params, LR, step=1)], tokens=tokens, y=y)
    return train, train.of(texts(QUERIES, 3, rows), labels(QUERIES, 4))


def whole(n: int, rows: int) -> dict:
    """Peak of a process that scores n texts, and the first scores."""
    scores = tracin_we(*cnn_sides(n, rows)).total
    return {BYTES: float(peak_bytes()), "answer": scores[:, :COMPARED].tolist()}


def extra(who: str, n: int, rows: int) -> dict:
    """What the scores take beside the model, the texts and the program, which a few texts have loaded before."""
    train, query = sides(n, rows=rows)
    small, all_of_it = (_scorer(who, train.take(range(k)), query) for k in (2, n))
    small()
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = peak_bytes()
    all_of_it()
    return {BYTES: float(peak_bytes() - before)}


def _scorer(who: str, train: Traced, query: Traced) -> Callable[[], object]:
    if who == "ours":
        return partial(tracin_we, train, query)
    from benchmarks.tracin_rivals import captum

    return captum(peer_inputs(train, query, "we"))


def apart(what: str, n: int, rows: int, python: str = sys.executable) -> dict:
    """One run in its own process.

    Raises:
        Unavailable: If it ended with an error.
    """
    return own_process("benchmarks.tracin_memory", what, n, rows, python=python)


@contextmanager
def case(sizes: Sequence[int] = SIZES, rows: int = TABLE) -> Iterator[Case]:
    """The largest peak of all sizes against the limit; scores of the most texts against those of the fewest."""

    def answer(run: dict) -> Tensor:
        return torch.tensor(run["answer"], dtype=torch.float64)

    def ours() -> tuple[float, Tensor]:
        runs = [apart("whole", n, rows) for n in sizes]
        return max(run[BYTES] for run in runs), answer(runs[-1])

    yield Case(ours, {"the limit": lambda: (float(LIMIT), answer(apart("whole", sizes[0], rows)))})


ROWS = (
    Row(
        id="tracin_memory",
        title="TracIn on word embeddings of many texts stays small",
        rival="a limit, not a rival: 1.5 GiB for the whole process; ours is the largest peak of the three sizes",
        n=f"{', '.join(f'{n:,}' for n in SIZES)} texts x {QUERIES} queries, up to {LONGEST} tokens; the paper's CNN, "
        f"d={WIDTH}, {TABLE:,} rows; float32",
        goal=1,
        bound=1e-5,
        relative=True,
        unit=BYTES,
        case=case,
        repeats=1,
    ),
)


if __name__ == "__main__":
    if PARENT_PID in os.environ:
        watch_parent()
    torch.set_num_threads(1)
    what, *numbers = sys.argv[1:]
    n, rows = map(int, numbers)
    print(json.dumps(whole(n, rows) if what == "whole" else extra(what, n, rows)))
