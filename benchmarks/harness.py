"""Measure one row: ours and its rivals in turns, in CPU seconds if nothing else is said, and only if they agree."""

import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from clif_kit.ledger import ROOT
from clif_kit.report import _write
from clif_kit.runs import machine

RESULTS = ROOT / "benchmarks" / "results.json"
IDS = (  # every row that the project wants; the page says which of them nobody has measured yet
    "mog_pairs", "mog_loo_150", "mog_loo_450", "ihvp_exact", "sgns_scores_numba", "sgns_scores_torch", "sgns_floor",
    "sgns_lissa", "sgns_queries8", "sgns_memory", "sgns_linear", "weat_perm", "tracin_we_captum", "tracin_we_floor",
    "tracin_pairs", "tracin_memory", "tracin_last", "tuning_gradj_128", "tuning_gradj_256", "tuning_round",
    "dm_logistic", "dm_mlp", "dm_cnn", "lasso", "lasso_gram", "glm_path", "glm_path_skglm",
)  # fmt: skip
CPU, WALL, BYTES = "cpu", "wall", "bytes"  # what is measured: seconds of CPU, seconds by the clock, peak memory
CLOCKS = {CPU: time.process_time, WALL: time.perf_counter}
Side = Callable[[], tuple[float, Tensor]]  # runs once: what it took and the answer


class Differs(RuntimeError):
    """Ours and a rival do not give the same answer; there is nothing to compare."""


class Unavailable(RuntimeError):
    """A rival cannot be run here; the message says what to do."""


@dataclass(frozen=True)
class Case:
    """Both sides of a row on one input.

    Attributes:
        ours: What clif_kit does.
        theirs: Rivals by name; the fastest of them counts.
        versions: Of the rivals' packages.
    """

    ours: Side
    theirs: Mapping[str, Side]
    versions: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is compared, and what must come out.

    Attributes:
        id: One of ``IDS``.
        title: For the page.
        rival: Who they are, in words.
        n: Sizes, in words.
        goal: The least ratio that we want.
        bound: The largest difference between two answers that still counts as none; None where the rival is a floor
            that computes nothing, so that there is nothing to compare.
        case: Makes both sides; what it does before it yields is not measured.
        relative: Whether differences are divided by the largest entry of our answer.
        unit: What the sides measure: CPU, WALL or BYTES.
        repeats: Rounds that are measured, after one that warms up.
    """

    id: str
    title: str
    rival: str
    n: str
    goal: float
    bound: float | None
    case: Callable[[], AbstractContextManager[Case]]
    relative: bool = False
    unit: str = CPU
    repeats: int = 7


def timed(function: Callable[[], Tensor], unit: str = CPU, scale: float = 1.0) -> Side:
    """A side that runs in this process; ``scale`` times its seconds count, where it does a part of the work only."""
    clock = CLOCKS[unit]

    def side() -> tuple[float, Tensor]:
        start = clock()
        answer = function()
        return (clock() - start) * scale, answer

    return side


def difference(ours: Tensor, theirs: Tensor, relative: bool = False) -> float:
    """Largest difference of two answers; infinite where a value is not finite.

    Raises:
        Differs: If they do not even have one shape and dtype.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        shapes = (f"{tuple(side.shape)} {side.dtype}" for side in (ours, theirs))
        raise Differs("an answer of {} against one of {}".format(*shapes))
    found = float((ours - theirs).abs().max() / (ours.abs().max() if relative else 1))
    return found if found < float("inf") else float("inf")  # NaN too


def measure(row: Row, say: Callable[[str], None] = print) -> dict[str, Any]:
    """One row of the results.

    The sides take turns, so that whatever else the machine does meets them alike. The ratio is that of the medians;
    ``low`` and ``high`` are the smallest and the largest ratio within one round.

    Raises:
        Differs: If an answer of a rival is further from ours than the bound.
        Unavailable: If a rival cannot be run here.
    """
    torch.set_num_threads(1)
    with row.case() as case:
        sides = {"ours": case.ours, **case.theirs}
        answers = {name: side()[1] for name, side in sides.items()}  # warms up too
        apart = None if row.bound is None else _apart(row, answers)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for k in range(row.repeats):
            for name, side in sides.items():
                seconds[name].append(side()[0])
            say(f"{row.id}: round {k + 1} of {row.repeats}")
        versions = dict(case.versions or {})
    middle = {name: median(values) for name, values in seconds.items()}
    fastest = min(case.theirs, key=middle.__getitem__)
    each = [theirs / ours for theirs, ours in zip(seconds[fastest], seconds["ours"], strict=True)]
    return {
        "id": row.id, "title": row.title, "ratio": middle[fastest] / middle["ours"], "low": min(each),
        "high": max(each), "goal": row.goal, "rival": row.rival, "unit": row.unit, "max_diff": apart,
        "bound": row.bound, "relative": row.relative, "ours": middle["ours"], "theirs": middle[fastest],
        "rivals": {name: middle[name] for name in case.theirs}, "n": row.n, "repeats": row.repeats,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")} | versions,
        "machine": machine(),
    }  # fmt: skip


def _apart(row: Row, answers: Mapping[str, Tensor]) -> float:
    """The largest difference of a rival's answer from ours, which comes first."""
    ours, *rivals = answers
    apart = {name: difference(answers[ours], answers[name], row.relative) for name in rivals}
    worst = max(apart, key=apart.__getitem__)
    if apart[worst] > row.bound:
        raise Differs(f"{row.id}: the answer of {worst} differs by {apart[worst]:.2g}, allowed is {row.bound:g}")
    return apart[worst]


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The stored rows, none if there is no file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def write(row: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Put one row into the file, in the order of ``IDS``; whoever reads it sees the old file or the new one."""
    rows = {old["id"]: old for old in read(path)} | {row["id"]: row}
    ordered = [rows[name] for name in sorted(rows, key=IDS.index)]
    _write(path, (json.dumps(ordered, indent=1, allow_nan=False) + "\n").encode())


def run(rows: Sequence[Row], say: Callable[[str], None] = print, path: Path = RESULTS) -> bool:
    """Measure rows and store each as it is done; whether all could be stored. A low ratio is said, not punished."""
    lines, good = [f"{'id':<18} {'ratio':>7} {'goal':>6}  ok"], True
    for row in rows:
        try:
            found = measure(row, say)
        except (Differs, Unavailable) as error:
            lines.append(f"{row.id:<18} {'–':>7} {row.goal:>6g}  FAILED: {error}")
            good = False
            continue
        write(found, path)
        word = "ok" if found["ratio"] >= row.goal else "below its goal"
        lines.append(f"{row.id:<18} {found['ratio']:>7.3g} {row.goal:>6g}  {word}")
    say("\n".join(lines))
    return good
