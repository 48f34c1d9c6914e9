"""From runs to pages: stage them with the book's text, build the HTML, publish fresh runs to what git keeps.

``python -m clif_kit.pages build`` renders the runs of a profile, ``committed`` renders what is committed. Runs nothing.
"""

import argparse
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clif_kit import fresh, notebooks, reproduction
from clif_kit.notebooks import ROOT, BadParameter
from clif_kit.progress import say
from clif_kit.watchdog import PARENT_PID, watch_parent

BUILD = ROOT / "_build"
BOOK = "from clif_kit.watchdog import watch_parent; watch_parent(); from jupyter_book.cli.main import main; main()"
STRICT = ("-n", "-W", "--keep-going", "-q")


class Failed(RuntimeError):
    """Pages could not be built or published; the message says why."""


def stage(profile: str) -> Path:
    """Bring ``_build/src/<profile>`` in step with the book's text and the runs of a profile; the folder.

    Raises:
        Failed: If a notebook has not been run.
    """
    runs = BUILD / "run" / profile
    missing = [name for name in notebooks.names() if not (runs / f"{name}.ipynb").exists()]
    if missing:
        raise Failed(f"not run under the {profile} profile yet: {', '.join(missing)}")
    kept = [*ROOT.glob("_*.yml"), *ROOT.glob("*.md"), ROOT / "CITATION.cff"]
    for folder in ("book", "data_scripts", "notebooks"):
        kept += [path for path in (ROOT / folder).rglob("*") if path.suffix not in (".ipynb", ".pyc")]
    sources = {path.relative_to(ROOT): path for path in kept if path.is_file()}
    sources |= {Path("notebooks") / f"{name}.ipynb": runs / f"{name}.ipynb" for name in notebooks.names()}
    target = BUILD / "src" / profile
    sync(sources, target)
    return target


def sync(sources: Mapping[Path, Path], target: Path) -> None:
    """Make a folder hold exactly these files; equal ones are not touched, so that Sphinx rebuilds only what changed.

    Args:
        sources: Path inside ``target`` to the file to copy.
        target: The folder. Its ``_build`` is left alone.
    """
    for path in [p for p in target.rglob("*") if p.is_file() and p.relative_to(target).parts[0] != "_build"]:
        if path.relative_to(target) not in sources:
            path.unlink()
    for name, source in sources.items():
        copy = target / name
        if not (copy.exists() and filecmp.cmp(source, copy, shallow=False)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def build(source: Path, work: Path, html: Path, profile: str) -> Path:
    """Render a staged book with every warning an error; the path of its first page.

    Sphinx's cache in ``work`` is kept only after a success: it remembers pages, but not that they gave warnings.

    Args:
        source: Folder with ``_config.yml``, ``_toc.yml`` and all that they name.
        work: Where jupyter-book puts its ``_build``.
        html: Where the pages go; replaced file by file.
        profile: For ``CLIF_PROFILE``.

    Raises:
        Failed: With what Sphinx said.
    """
    cache, unfinished = work / "_build", work / "_build" / ".unfinished"
    if unfinished.exists():
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    command = [sys.executable, "-c", BOOK, "build", str(source), "--path-output", str(work), *STRICT]
    env = {**os.environ, "CLIF_PROFILE": profile, PARENT_PID: str(os.getpid())}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.replace(f"{source}{os.sep}", "")).strip()
        warnings = "\n".join(line for line in said.splitlines() if re.search("WARNING|ERROR", line))
        raise Failed(f"{warnings or said}\nThe book was not built: jupyter-book ended with {done.returncode}.")
    unfinished.unlink()
    pages = cache / "html"
    sync({path.relative_to(pages): path for path in pages.rglob("*") if path.is_file()}, html)
    return html / "index.html"


def publish(profile: str, wanted: Sequence[str]) -> list[str]:
    """Copy fresh runs to ``book/results/``, quick ones to ``notebooks/`` too; the names of what was copied.

    Without names: every notebook of the quick profile; of the others, which run chapter by chapter, what has run.

    Raises:
        Failed: If a run is missing or stale; nothing has been copied then.
    """
    folder = BUILD / "run" / profile
    have = [name for name in notebooks.names() if (folder / f"{name}.json").exists()]
    chosen = list(wanted) or (notebooks.names() if profile == "quick" else have)
    if not chosen:
        raise Failed(f"nothing has run under the {profile} profile: make notebook NB=... PROFILE={profile}")
    stale = [f"{name}: {reason}" for name in chosen if (reason := staleness(name, profile))]
    if stale:
        again = "make book" if profile == "quick" else f"make notebook NB={stale[0].split(':')[0]} PROFILE={profile}"
        raise Failed(f"nothing published; {'; '.join(stale)}. Run again: {again}")
    results = ROOT / "book" / "results"
    for name in chosen:
        _copy(folder / f"{name}.json", results / f"{name}.{profile}.json")
        if profile == "quick":
            _copy(folder / f"{name}.ipynb", notebooks.FOLDER / f"{name}.ipynb")
        if profile == "book":
            for old in (results / "figures").glob(f"{name}.*.svg"):
                old.unlink()
            for figure in (folder / "figures").glob(f"{name}.*.svg"):
                _copy(figure, results / "figures" / figure.name)
    return chosen


def staleness(name: str, profile: str) -> str:
    """Why the stored run of a notebook cannot be published, or nothing."""
    folder, path = BUILD / "run" / profile, notebooks.FOLDER / f"{name}.ipynb"
    result = folder / f"{name}.json"
    if not (result.exists() and (folder / f"{name}.ipynb").exists()):
        return "not run"
    state = fresh.state(path, profile, notebooks.profile_values(name, profile))
    return "" if json.loads(result.read_text("utf-8"))["state"] == state else "changed since it ran"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    os.replace(part, target)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m clif_kit.pages", description="Render or publish runs.")
    parser.add_argument("task", choices=("build", "committed", "publish"))
    parser.add_argument("names", nargs="*", help="publish: only these notebooks")
    parser.add_argument("--profile", default="quick", choices=notebooks.PROFILES)
    args = parser.parse_intermixed_args(argv)
    if PARENT_PID in os.environ:
        watch_parent()
    html = BUILD / "html"
    try:
        if args.task == "build":
            say("rendering the pages")
            source = stage(args.profile)
            build(source, source, html / args.profile, args.profile)
        elif args.task == "committed":
            print(build(ROOT, BUILD / "src" / "committed", html / "committed", "quick"))
        else:
            published = publish(args.profile, [notebooks.find(name).stem for name in args.names])
            print(f"published ({args.profile}): {', '.join(published)}")
            if reproduction.write():
                print("book/reproduction.md says what came out")
    except (Failed, BadParameter) as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
