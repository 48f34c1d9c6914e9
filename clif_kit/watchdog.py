"""End this process when the process that it works for is gone.

A killed run must not leave kernels and workers behind that eat the cores for minutes. A handler for SIGTERM cannot
help (nobody sends one after ``kill -9``), so each helper process looks for itself. Standard library only; not a
supervisor: it restarts nothing.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PARENT_PID = "CLIF_PARENT_PID"  # environment variable: pid of the ancestor, parent or farther, to die with

_watched: set[int] = set()
_parent = 0  # direct parent at the first call
_started_in = 0  # pid of the process whose thread polls; a fork has the memory but not the thread


def watch_parent(pid: int | None = None, *, signal_on_linux: bool = False, every: float = 0.5) -> None:
    """Kill this process (SIGKILL) soon after its parent, or process ``pid``, has died.

    One daemon thread polls. It ends the process when ``os.getppid()`` changes, which is how a direct parent's death
    shows, or when ``pid`` is gone. The second covers a farther ancestor (snakemake, when a shell stands between) and
    the race in which the parent died before this call. Calling it again adds a ``pid`` and starts nothing new. On
    Windows it does nothing.

    Args:
        pid: Process to watch besides the direct parent. Default: the environment variable ``CLIF_PARENT_PID``, if
            set, which a starter gives to its children and which they hand on.
        signal_on_linux: Also ask the kernel for SIGKILL at the parent's death (``prctl``), which works even while a C
            extension holds the interpreter. Linux ties it to the parent *thread*: say True only when the starter's
            main thread started us.
        every: Seconds between two looks. Only the first call's value counts.

    Raises:
        ValueError: If the environment variable is not a number.

    >>> watch_parent(signal_on_linux=True)  # doctest: +SKIP
    """
    global _parent, _started_in
    if sys.platform == "win32":
        return
    if pid is None and os.environ.get(PARENT_PID):
        pid = int(os.environ[PARENT_PID])
    first = _started_in != os.getpid()
    if first:
        _watched.clear()
        _parent, _started_in = os.getppid(), os.getpid()
    if pid is not None:
        _watched.add(pid)
    if signal_on_linux and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    _end_if_orphaned()  # after prctl, so that a death between the two is not missed
    if first:
        threading.Thread(target=_poll, args=(every,), name="clif-watchdog", daemon=True).start()


def _poll(every: float) -> None:
    while True:
        time.sleep(every)
        _end_if_orphaned()


def _end_if_orphaned() -> None:
    if os.getppid() != _parent or not all(map(_alive, tuple(_watched))):
        os.kill(os.getpid(), signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie answers signal 0 until somebody reaps it; in a container perhaps nobody does
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no /proc here, or gone this instant: the next look will tell
        return True
