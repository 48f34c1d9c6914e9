"""Rivals whose packages are not ours: they run in an environment of their own, one process a row, and take their turns.

Input and answers travel as safetensors files, the rest as one line of JSON each way. The clock is the CPU time of the
process that computes, so reading and writing are not measured.

``python -m benchmarks.peer MODULE FOLDER`` is the other end. ``MODULE`` has ``RIVALS``, name to a function that takes
the input and returns one without arguments: what the first does is set-up, what the second does is measured.
"""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, set_default_dtype, set_num_threads

from benchmarks.harness import ROOT, Side, Unavailable, timed
from clif_kit.watchdog import PARENT_PID, watch_parent

PYTHON = ROOT / "_build" / "peers" / "bin" / "python"  # bootstrap.py makes it


@contextmanager
def rivals(module: str, inputs: Mapping[str, Tensor], names: tuple[str, ...]) -> Iterator[tuple[dict[str, Side], dict]]:
    """Start the rivals of a module; a side for each, and the versions of the packages they are called after.

    Raises:
        Unavailable: If there is no environment for them, or their process ended; says what it said last.
    """
    if not PYTHON.exists():
        raise Unavailable("the rivals' environment is missing; `make bench` sets it up")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        save_file({name: value.contiguous() for name, value in inputs.items()}, Path(folder) / "input")
        process = subprocess.Popen(
            [str(PYTHON), "-m", "benchmarks.peer", module, folder],
            cwd=ROOT, env={**os.environ, PARENT_PID: str(os.getpid())}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip

        def ask(name: str) -> dict:
            try:
                print(name, file=process.stdin, flush=True)
                return json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                process.wait()
                said.seek(0)
                raise Unavailable(f"{name} failed: {(said.read().strip().splitlines() or ['no word'])[-1]}") from None

        def side(name: str) -> tuple[float, Tensor]:
            return ask(name)["seconds"], load_file(Path(folder) / name)["answer"]

        try:
            versions = ask("versions")
            yield {name: lambda name=name: side(name) for name in names}, versions
        finally:
            process.stdin.close()
            process.wait()


def serve(module: str, folder: Path) -> None:
    """Answer until the input ends: ``versions``, or the name of a rival, which then runs once."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the packages print as they like; it is not an answer
    set_num_threads(1)
    inputs = load_file(folder / "input")
    set_default_dtype(next(value.dtype for value in inputs.values() if value.is_floating_point()))
    sides = {name: timed(make(inputs)) for name, make in importlib.import_module(module).RIVALS.items()}
    for line in sys.stdin:
        name = line.strip()
        if name == "versions":
            found = {name: importlib.metadata.version(name) for name in sides}
        else:
            seconds, answer = sides[name]()
            save_file({"answer": answer.detach().contiguous()}, folder / name)
            found = {"seconds": seconds}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    watch_parent()
    serve(sys.argv[1], Path(sys.argv[2]))
