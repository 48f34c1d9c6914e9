"""A run in a process of its own, since the peak of a process never falls."""

import json
import os
import subprocess
import sys

from benchmarks.harness import ROOT, Unavailable
from clif_kit.watchdog import PARENT_PID


def own_process(module: str, *arguments: object, python: str = sys.executable) -> dict:
    """``python -m module arguments``: what its last line says, as JSON.

    Raises:
        Unavailable: If it ended with an error.
    """
    done = subprocess.run(
        [python, "-m", module, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, PARENT_PID: str(os.getpid())}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable((done.stderr.strip().splitlines() or ["no word"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
