"""The tables of the page for teachers: every exercise of the book with its minutes and points, out of the notebooks.

``python -m clif_kit.teach`` writes them between the markers of ``book/teach.md``; the rest of that page is written by
hand, and a plan for a course there names chapters by their number.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clif_kit import report
from clif_kit.notebooks import FOLDER

PAGE = report.ROOT / "book" / "teach.md"
BEGIN, END = "<!-- {}: written by `python -m clif_kit.teach` -->", "<!-- end of {} -->"


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        notebook: Stem of the file.
        label: What the book calls it, such as ``ex-00-sign``.
        title: Its heading.
        points: 1 (a few lines) to 3 (hard).
        minutes: What a student needs.
    """

    notebook: str
    label: str
    title: str
    points: int
    minutes: int


def exercises(path: Path) -> list[Exercise]:
    """The exercises of a notebook, in its order.

    Raises:
        ValueError: If one has no heading, minutes or points.
    """
    found = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        about, text = cell["metadata"].get("exercise"), "".join(cell["source"])
        if not about or cell["cell_type"] != "markdown" or "{exercise-start}" not in text:
            continue
        title = re.search(r"\{exercise-start\}[ \t]*(\S.*)", text)
        if not title or not all(isinstance(about.get(name), int) for name in ("minutes", "points")):
            raise ValueError(
                f"{path.name}: exercise {about.get('id')!r} needs a title, and minutes and points as numbers"
            )
        found.append(Exercise(path.stem, about["id"], title[1].strip(), about["points"], about["minutes"]))
    return found


def chapter_title(path: Path) -> str:
    """The first heading of a notebook."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "markdown" and (found := re.search(r"^# (.+)$", "".join(cell["source"]), re.M)):
            return found[1].strip()
    raise ValueError(f"{path.name} has no heading")


def tables(paths: Sequence[Path]) -> dict[str, str]:
    """The generated parts of the page by name: ``chapters``, with sums, and ``exercises``."""
    every = {path: exercises(path) for path in paths}
    chapters = ["| chapter | exercises | minutes | points |", "|---|---:|---:|---:|"]
    rows = ["| chapter | exercise | minutes | points |", "|---|---|---:|---:|"]
    for path, found in every.items():
        number, link = path.stem.split("_")[0], f"{{doc}}`{_cell(chapter_title(path))} </notebooks/{path.stem}>`"
        chapters.append(f"| {number} {link} | {len(found)} | {_minutes(found)} | {_points(found)} |")
        rows += [
            f"| {number} | {{ref}}`{_cell(one.title)} <{one.label}>` | {one.minutes} | {one.points} |" for one in found
        ]
    everything = [one for found in every.values() for one in found]
    chapters.append(f"| **all** | **{len(everything)}** | **{_minutes(everything)}** | **{_points(everything)}** |")
    return {"chapters": "\n".join(chapters), "exercises": "\n".join(rows)}


def filled(page: str, parts: dict[str, str]) -> str:
    r"""The page with each part between its markers.

    Raises:
        ValueError: If a marker is missing.

    >>> page = "a\n" + BEGIN.format("x") + "\nold\n" + END.format("x") + "\nb"
    >>> filled(page, {"x": "new"}).split("\n")[3:5]
    ['new', '']
    """
    for name, text in parts.items():
        begin, end = BEGIN.format(name), END.format(name)
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
            raise ValueError(f"the page needs the markers {begin!r} and {end!r}, once each")
        head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
        page = f"{head}\n\n{text}\n\n{tail}"
    return page


def write_teach(page: Path = PAGE, folder: Path = FOLDER) -> None:
    """Fill the page's tables from the notebooks."""
    parts = tables(sorted(folder.glob("*.ipynb")))
    report._write(page, filled(page.read_text("utf-8"), parts).encode())


def _minutes(found: Sequence[Exercise]) -> int:
    return sum(one.minutes for one in found)


def _points(found: Sequence[Exercise]) -> int:
    return sum(one.points for one in found)


def _cell(text: str) -> str:
    """A heading inside a table and a role: neither may end before it."""
    return text.replace("|", "/").replace("`", "'").replace("<", "‹").replace(">", "›")


if __name__ == "__main__":
    write_teach()
