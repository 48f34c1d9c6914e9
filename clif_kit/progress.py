"""Which notebook, which cell, how long: one line now and then while a notebook runs, and the text when it fails."""

import os
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

EVERY = 0.5  # seconds between two looks at the memory
BEGAN = time.time()
PAUSE, SIGN_OF_LIFE = 2.0, 30.0  # seconds between two lines: at least; at most


def elapsed() -> str:
    """``[ 12 s]``: since the whole command began, if whoever started us said when; else since we began."""
    return f"[{time.time() - float(os.environ.get('CLIF_STARTED') or BEGAN):3.0f} s]"


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"{elapsed()} {text}", flush=True)


class Progress:
    """Prints ``[ 12 s] 03_koh_liang  cell 7/14`` from a thread and measures the memory of all child processes.

    Used as a context manager. It is a class because it holds the state that the thread and papermill's hook share.

    Args:
        name: The notebook's name.
        cells: Its cells, as :func:`clif_kit.notebooks.read` gives them.
        shift: Whether papermill adds a cell with parameter values, which is not counted.
    """

    def __init__(self, name: str, cells: Sequence[dict], shift: bool = False) -> None:
        self.name, self.peak, self.at = name, 0, 0
        self.total = sum(_runs(cell) for cell in cells)
        self.extra = "injected-parameters" if shift else None
        self.began = time.time()
        self._printed, self._printed_at = 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, error: type | None, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self.say(f"done in {time.time() - self.began:.0f} s, {self.peak / 2**20:.0f} MB")

    def cell_start(self, cell: Any, cell_index: int) -> None:  # noqa: ARG002  nbclient's signature
        """Papermill's hook: a cell begins."""
        if _runs(cell) and self.extra not in cell.metadata.get("tags", []):
            self.at += 1

    def say(self, text: str) -> None:
        """Print a line of this notebook."""
        say(f"{self.name}  {text}")

    def failed(self, source: str, trace: str, partial: Path) -> str:
        """What to tell the user: the cell, the last lines of the traceback, where the rest is."""
        lines = [f"{elapsed()} {self.name}  FAILED in cell {self.at}/{self.total}"]
        if source:
            lines.append(textwrap.indent(source, "    | "))
        lines.append(textwrap.indent("\n".join(_plain(trace).strip().splitlines()[-12:]), "    "))
        if partial.exists():
            lines.append(f"    The notebook as far as it came: {os.path.relpath(partial)}")
        return "\n".join(lines)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self.peak = max(self.peak, _children_memory())
            quiet = time.time() - self._printed_at
            if quiet > SIGN_OF_LIFE or (self.at != self._printed and quiet > PAUSE):
                self._printed, self._printed_at = self.at, time.time()
                self.say(f"cell {self.at}/{self.total}" if self.at else "starting")


def _runs(cell: Any) -> bool:
    return cell["cell_type"] == "code" and bool(cell["source"].strip())


def _plain(text: str) -> str:
    """Text without terminal colours."""
    from papermill.exceptions import strip_color

    return strip_color(text)


def _children_memory() -> int:
    """Bytes that the kernel and everything below it hold now. Shared pages count once for each process."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:  # ended meanwhile
            continue
    return total
