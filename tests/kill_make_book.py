"""The kill drill: SIGKILL `make book` at several moments, twice each, and see that `make book` again ends well.

    python tests/kill_make_book.py [--work FOLDER] [--random 5]      about ten minutes; not run by pytest

It copies this checkout to a folder and replaces the chapters by slow throw-away notebooks (one with joblib workers). At
each moment it kills once only the top process (make) and once the whole tree. Then nothing that belonged to the killed
run may be alive after 30 s, and the same command must exit 0, with every page there.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "CLIF_DRILL"  # environment variable that every process of a run inherits
MOMENTS = {  # name: what must be true when the axe falls
    "set-up": lambda repo, _: len(list((repo / ".venv").glob("lib/python*/site-packages/*.dist-info"))) > 20,
    "notebooks": lambda _, output: "cell 4/5" in output,
    "workers": lambda _, output: "02_workers  cell 3/3" in output,
    "pages": lambda repo, _: (repo / "_build/src/quick/_build/.unfinished").exists(),
}
CONFIG = """
title: Drill
author: Nobody
only_build_toc_files: true
exclude_patterns: ['.venv/**', '**/site-packages/**', _build, tests]
execute: {execute_notebooks: 'off'}
"""
SLOW = ["import time", "time.sleep(1)", "seconds = 4", "time.sleep(seconds)\nprint('slept')", "time.sleep(2)"]
WORKERS = [
    "import time\nfrom joblib import Parallel, delayed\nfrom clif_kit.watchdog import watch_parent",
    "def work(i):\n    watch_parent()\n    time.sleep(1.5)\n    return i",
    "print(Parallel(n_jobs=2)(delayed(work)(i) for i in range(8)))",
]


def notebook(sources: list[str]) -> str:
    """A notebook file with these code cells under a title; a cell `seconds = ...` holds the parameters."""
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "# Title", "id": "title"}]
    for i, source in enumerate(sources):
        tags = ["parameters"] if source.startswith("seconds") else []
        cell = {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "id": f"c{i}"}
        cells.append({**cell, "outputs": [], "execution_count": None})
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def checkout(repo: Path) -> None:
    """A copy of this checkout with slow notebooks instead of the chapters."""
    skip = (".venv", "_build", ".git", ".snakemake", "*.ipynb", "__pycache__", "*.egg-info", "vendor")
    shutil.copytree(ROOT, repo, ignore=shutil.ignore_patterns(*skip))
    shutil.rmtree(repo / "book")
    (repo / "book").mkdir()
    (repo / "book" / "index.md").write_text("# Drill\n")
    (repo / "_config.yml").write_text(CONFIG)
    chapters = {"01_slow": SLOW, "02_workers": WORKERS, "03_slow": SLOW}
    toc = ["format: jb-book", "root: book/index", "chapters:", *(f"- file: notebooks/{name}" for name in chapters)]
    (repo / "_toc.yml").write_text("\n".join(toc) + "\n")
    for profile in (repo / "notebooks" / "profiles").glob("*.yml"):
        profile.write_text("{}\n")
    for name, sources in chapters.items():
        (repo / "notebooks" / f"{name}.ipynb").write_text(notebook(sources))


def start(repo: Path, mark: str) -> tuple[subprocess.Popen, Path]:
    """`make book` in the background, its output in a file."""
    log = repo.parent / f"{mark}.log"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "CLIF_"))} | {MARK: mark}
    command = ["make", "book", f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=repo, env=env, stdout=file, stderr=file, start_new_session=True)
    return process, log


def alive(mark: str) -> list[psutil.Process]:
    """The processes of one run, found by what they inherited."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(process: subprocess.Popen, mark: str, kind: str) -> int:
    """SIGKILL `top` (make), `bootstrap` (bootstrap.py) or the `tree` of both; how many processes there were."""
    family = alive(mark)
    if kind == "bootstrap":
        next(member for member in family if "bootstrap.py" in member.cmdline()).kill()
    for member in family if kind == "tree" else []:
        member.send_signal(signal.SIGSTOP)  # so that none can start another meanwhile
    for member in alive(mark) if kind == "tree" else []:
        member.kill()
    if kind == "top":
        process.kill()
    process.wait()
    return len(family)


def drill(repo: Path, moment: str, kind: str, after: float | None = None) -> bool:
    """One kill, at a moment or so many seconds after the start, and what follows; prints one line."""
    mark = f"{moment}-{kind}" if after is None else f"{after:.1f}s-{kind}"
    prepare(repo, moment)
    process, log = start(repo, mark)
    began = time.monotonic()
    while not (MOMENTS[moment](repo, log.read_text()) if after is None else time.monotonic() - began > after):
        if process.poll() is not None or time.monotonic() - began > 300:
            print(f"{mark:20} the run was over before; see {log}", flush=True)
            return after is not None and process.returncode == 0
        time.sleep(0.02)
    size = kill(process, mark, kind)
    killed = time.monotonic()
    while (left := alive(mark)) and time.monotonic() - killed < 30:
        time.sleep(0.05)
    gone = time.monotonic() - killed
    again, second_log = start(repo, f"{mark}-again")
    code = again.wait(300)
    took = time.monotonic() - killed - gone
    pages = [repo / "_build/html/quick/notebooks" / f"{name}.html" for name in ("01_slow", "02_workers", "03_slow")]
    good = not left and code == 0 and all(page.exists() for page in pages) and not alive(f"{mark}-again")
    text = f"{size:2} processes, {f'{len(left)} LEFT' if left else 'gone'} after {gone:4.1f} s"
    print(f"{mark:20} {text}; again: exit {code} in {took:3.0f} s  {'ok' if good else second_log}", flush=True)
    return good


def prepare(repo: Path, moment: str) -> None:
    """Undo just so much that the moment comes."""
    gone = {"set-up": [".venv"], "pages": ["_build/html", "_build/src", "_build/run/quick/book.done"]}
    for name in gone.get(moment, ["_build/run"]):
        target = repo / name
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)


def main() -> int:
    """All moments, both ways; 0 when every one ended well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--moment", choices=MOMENTS, action="append", help="only this moment")
    parser.add_argument("--kind", choices=("top", "bootstrap", "tree"), action="append", help="default: top and tree")
    parser.add_argument("--random", type=int, default=0, help="so many kills more, at random moments")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="clif-drill-"))
    repo = work / "repo"
    if not repo.exists():
        checkout(repo)
    moments, kinds = args.moment or list(MOMENTS), args.kind or ["top", "tree"]
    results = [drill(repo, moment, kind) for moment in moments for kind in kinds]
    results += [drill(repo, "notebooks", kinds[i % len(kinds)], random.uniform(0.2, 30)) for i in range(args.random)]
    print(f"{sum(results)} of {len(results)} ended well; logs in {work}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
