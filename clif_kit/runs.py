"""Run one notebook: check its parameters, execute it with papermill, write what it measured and what it cost.

From the shell::

    python -m clif_kit.runs notebooks/03_koh_liang.ipynb                        # the quick profile
    python -m clif_kit.runs 03 --profile book
    python -m clif_kit.runs 03 -p n_train=300 -p damping=0.001                  # into _build/run/custom/

All that it makes lies in one folder, ``_build/run/<profile>/``: the executed notebook, its result (JSON), its figures.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from clif_kit import fresh, notebooks
from clif_kit.notebooks import ROOT, BadParameter
from clif_kit.progress import Progress
from clif_kit.watchdog import PARENT_PID, watch_parent

PACKAGES = ("clif-kit", "torch", "numpy", "scipy", "scikit-learn", "gensim", "transformers", "papermill")
KERNEL = (
    "from clif_kit.watchdog import watch_parent; watch_parent(signal_on_linux=True); "
    "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died; the message says which cell, why, and where the partial notebook lies."""


def run(path: Path, *, profile: str = "quick", given: Mapping[str, Any] | None = None, out: Path | None = None) -> Path:
    """Execute a notebook and write ``<name>.ipynb``, ``<name>.json`` and ``figures/<name>.*.svg``.

    Args:
        path: The notebook.
        profile: ``quick``, ``book`` or ``paper``: which values of ``notebooks/profiles/`` to start from.
        given: Parameters to set on top of the profile. With any of them the run counts as ``custom``.
        out: Folder to write to, instead of ``_build/run/<profile>`` or ``_build/run/custom/<fingerprint>``.

    Returns:
        The result file, ``<name>.json``.

    Raises:
        BadParameter: If the profile or a parameter does not exist or has the wrong type; nothing has run then.
        NotebookFailed: If a cell failed.
    """
    name, defaults = path.stem, notebooks.parameters(path)
    values = notebooks.profile_values(name, profile) | notebooks.check(given or {}, defaults, name)
    label = "custom" if given else profile
    folder = (out or run_folder(path, label, values)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / f"{name}.metrics.json", *folder.glob(f"figures/{name}.*.svg")):
        old.unlink(missing_ok=True)
    state = fresh.state(path, label, values)  # before the run: who edits meanwhile gets another run
    start = perf_counter()
    with _environment(CLIF_RUN_DIR=str(folder), CLIF_PROFILE=label, IPYTHONDIR=str(ROOT / "_build" / "ipython")):
        peak = _execute(path, folder / f"{name}.ipynb", values, label)
    recorded = folder / f"{name}.metrics.json"
    measured = json.loads(recorded.read_text("utf-8")) if recorded.exists() else {}
    result = {
        "notebook": name,
        "profile": label,
        "commit": commit(path),
        "state": state,
        **_cost(perf_counter() - start, peak),
        "machine": machine(),
        "versions": versions(),
        "parameters": {p.name: values.get(p.name, p.default) for p in defaults.values()},
        "data": measured.get("data", {}),
        "metrics": measured.get("metrics", {}),
    }
    target = folder / f"{name}.json"
    _write(target, to_json(result))
    return target


def run_folder(path: Path, label: str, values: Mapping[str, Any]) -> Path:
    """Where a run's files lie: a folder for each profile, and one for each set of custom values."""
    folder = ROOT / "_build" / "run" / label
    return folder if label != "custom" else folder / notebooks.digest(path.stem, fresh.source(path), dict(values))


def _execute(path: Path, target: Path, values: Mapping[str, Any], label: str) -> int:
    """Run all cells; the notebook appears at ``target`` only when it is complete. Returns the peak memory in bytes."""
    import nbformat  # these three take a second, which a refused parameter need not wait for
    import papermill
    from papermill.exceptions import PapermillExecutionError

    partial = target.with_suffix(".partial.ipynb")
    cells = notebooks.read(path)
    injected = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}  # papermill writes "(1,)"
    with Progress(path.stem, cells, shift=bool(values)) as progress:
        try:
            nb = papermill.execute_notebook(
                path, partial, injected, kernel_name="python3", language="python", cwd=path.parent,
                progress_bar=False, record_timing=False,
                kernel_manager_class=_kernel_manager(), on_cell_start=progress.cell_start,
            )  # fmt: skip
        except PapermillExecutionError as error:
            text = notebooks.clean_text("\n".join(error.traceback))
            raise NotebookFailed(progress.failed(error.source, text, partial)) from None
        except Exception as error:  # the kernel died or never started: nbclient and zmq have many names for that
            reason = f"{type(error).__name__}: {error}{' (killed, or out of memory?)' * ('died' in str(error))}"
            raise NotebookFailed(progress.failed("", reason, partial)) from None
    notebooks.normalise(nb, f"This run's values ({label}); the others are as above")
    _write(target, nbformat.writes(nb, 4) + "\n")
    partial.unlink()
    return progress.peak


def _kernel_manager() -> type:
    """Kernels of exactly this interpreter, whatever kernels the machine knows, which die with us."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    argv = [sys.executable, "-c", KERNEL, "-f", "{connection_file}", "--IPKernelApp.log_level=50"]

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**{**get_kernel_dict(), "argv": argv})

    return OwnKernel


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the kernel, put back afterwards. One thread a process unless somebody decided."""
    before = os.environ.copy()
    os.environ.update(values)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cost(seconds: float, peak: int) -> dict[str, float]:
    """Wall and CPU seconds, and the largest memory that kernel and children held at once."""
    used, own = (resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    spike = used.ru_maxrss if used.ru_maxrss > own.ru_maxrss else 0  # a child inherits our own peak: that says nothing
    largest = spike * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mb": round(max(peak, largest) / 2**20),
    }


def commit(path: Path) -> str:
    """The commit of the checkout, with ``-dirty`` if the notebook or the library differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = head and git("status", "--porcelain", "--", "clif_kit", str(path))
    except OSError:  # no git
        return "unknown"
    return f"{head}-dirty" if changed else head or "unknown"


def machine() -> dict[str, Any]:
    """What a reader needs to judge the seconds; nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "system": platform.system(),
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def plan(path: Path, profile: str, given: Mapping[str, Any]) -> str:
    """What a run would do, as text: folder, values, and what it cost when it was last published."""
    defaults = notebooks.parameters(path)
    values = notebooks.profile_values(path.stem, profile) | notebooks.check(given, defaults, path.stem)
    folder = run_folder(path, "custom" if given else profile, values)
    lines = [f"{path.stem} ({'custom, from ' if given else ''}{profile}) into {os.path.relpath(folder)}"]
    lines += [f"  {p.name} = {values.get(p.name, p.default)!r}  # {p.comment}".rstrip(" #") for p in defaults.values()]
    published = ROOT / "book" / "results" / f"{path.stem}.{profile}.json"
    if published.exists():
        cost = json.loads(published.read_text("utf-8"))
        lines.append(f"  last published: {cost['seconds']:.0f} s, {cost['peak_rss_mb']} MB")
    return "\n".join(lines)


def to_json(result: Mapping[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line, so that diffs stay readable.

    >>> print(to_json({"values": [1, 2.5]}), end="")
    {
     "values": [1, 2.5]
    }
    """
    text = json.dumps(result, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([-+0-9.,eE\s]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def split(pairs: Sequence[str]) -> dict[str, str]:
    """``["n=5"]`` as ``{"n": "5"}``.

    Raises:
        BadParameter: If there is no equals sign.
    """
    for pair in pairs:
        if "=" not in pair:
            raise BadParameter(f"-p needs name=value, got {pair!r}")
    return {name.strip(): value.strip() for name, value in (pair.split("=", 1) for pair in pairs)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 when the notebook ran, 1 when it failed, 2 when nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m clif_kit.runs", description="Run one notebook.")
    parser.add_argument("notebook", help="path, name (03_koh_liang) or the beginning of one (03)")
    parser.add_argument("-p", metavar="NAME=VALUE", action="append", default=[], help="set a parameter (repeatable)")
    parser.add_argument("--profile", default="quick", help="quick (default), book or paper")
    parser.add_argument("--out", type=Path, help="folder for the run, instead of one below _build/run/")
    parser.add_argument("--dry", action="store_true", help="check the parameters, print the plan, run nothing")
    args = parser.parse_args(argv)
    if PARENT_PID in os.environ:  # started by bootstrap.py or snakemake, not by a person at a shell
        watch_parent()
    try:
        path, given = notebooks.find(args.notebook), split(args.p)
        if args.dry:
            print(plan(path, args.profile, given))
            return 0
        target = run(path, profile=args.profile, given=given, out=args.out)
        if given or args.out:
            print(f"The run: {os.path.relpath(target)} (and the notebook beside it)")
    except BadParameter as error:
        print(f"clif_kit.runs: {error}", flush=True)
        return 2
    except NotebookFailed as error:
        print(error, flush=True)
        return 1
    except Exception:  # on stdout, like everything a user should see: snakemake's log takes stderr
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
