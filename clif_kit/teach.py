"""The tables of the page for teachers: two course plans and every exercise, read from the chapters themselves.

``python -m clif_kit.teach`` rewrites what stands between the markers of ``book/teach.md``. Minutes and points come from
the notebooks' own cells, so a plan can never promise an exercise that is not there. Plans are data: change them.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clif_kit.notebooks import FOLDER, ROOT, names, read
from clif_kit.report import _write

PAGE = ROOT / "book" / "teach.md"
TIME = re.compile(r"\*Time:\*\s+(\d+) min")
STARS = re.compile(r"[●○]{3}")
TITLE = re.compile(r"\{exercise-start\}\s*(.+)")


@dataclass(frozen=True)
class Exercise:
    """One exercise as its notebook states it: ``id``, ``title``, ``stars`` (●○○ to ●●●), ``minutes``, ``points``."""

    id: str
    title: str
    stars: str
    minutes: int
    points: int


@dataclass(frozen=True)
class Chapter:
    """A chapter as a teacher sees it: its ``name``, minutes to ``read``, and its ``exercises``."""

    name: str
    read: int
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class Session:
    """One line of a course plan.

    Attributes:
        when: Such as ``09:00`` or ``Week 2, B``.
        chapter: The beginning of a chapter's name, ``03``; empty where no chapter is read.
        doing: What happens, in a few words.
        exercises: Their ids.
        read: Whether the chapter is read for it; its minutes then count.
    """

    when: str
    chapter: str
    doing: str
    exercises: tuple[str, ...] = ()
    read: bool = True


DAY = (
    Session("09:00", "00", "read alone, then the by-hand part on the board", ("ex-00-sign", "ex-00-own")),
    Session("10:15", "02", "predict which solver fails before the figure is shown", ("ex-02-fixed-point",)),
    Session("11:15", "03", "images: guess the most harmful ones, then look", ("ex-03-self", "ex-03-selection")),
    Session("13:30", "12", "words: which sentences carry a bias test", ("ex-12-permutation",)),
    Session("14:30", "21", "deletion: design a control before reading ours", ("ex-21-share", "ex-21-label")),
    Session("15:45", "44", "each pair brings a file; rank, explain, delete, train again", ("ex-44-parts",)),
    Session(
        "16:45", "43", "which score would you use, and what would change your mind?", ("ex-43-winner",), read=False
    ),
)
WEEKS = (
    Session("Week 1, A", "00", "what a score means", ("ex-00-sign", "ex-00-own")),
    Session("Week 1, B", "01", "two losses, one product", ("ex-01-difference", "ex-01-poisson")),
    Session("Week 1, lab", "02", "solvers and how they fail", ("ex-02-fixed-point", "ex-02-steps")),
    Session("Week 1, lab", "03", "images; proposals of projects are due", ("ex-03-selection",)),
    Session("Week 2, A", "10", "cross-loss influence; who is the judge?", ("ex-10-pull",)),
    Session("Week 2, B", "12", "bias tests on word vectors", ("ex-12-permutation", "ex-12-short")),
    Session("Week 2, lab", "13", "taking bias out, and what breaks", ("ex-13-held-out", "ex-13-luck")),
    Session("Week 2, lab", "20", "which layer?", ("ex-20-floor",)),
    Session("Week 3, A", "21", "deletion curves and their controls", ("ex-21-share", "ex-21-seeds")),
    Session("Week 3, B", "30", "unlearning a shortcut", ("ex-30-cid", "ex-30-ceiling")),
    Session("Week 3, lab", "40", "datamodels; the checkpoint report is due", ("ex-40-means", "ex-40-noise")),
    Session("Week 3, lab", "42", "sparse layers; the class takes the study of shared patterns", ("ex-42-luck",)),
    Session("Week 4, A", "41", "whole classes as training examples", ("ex-41-hold",)),
    Session("Week 4, B", "43", "all scores on one table; a debate", ("ex-43-winner", "ex-43-ceiling")),
    Session("Week 4, lab", "44", "your own data", ("ex-44-formula", "ex-44-precision")),
    Session("Week 4, last", "", "five-minute talks; reports", read=False),
)


def chapter(name: str, cells: Sequence[Mapping]) -> Chapter:
    """What a notebook says of its minutes and exercises.

    Args:
        name: The notebook's name.
        cells: As ``notebooks.read`` gives them.

    Raises:
        ValueError: If the notebook states no reading time, or an exercise lacks its title, stars, minutes or points.

    >>> cells = [{"source": "*Time:* 20 minutes to read", "metadata": {}}]
    >>> chapter("00_demo", cells)
    Chapter(name='00_demo', read=20, exercises=())
    """
    found = next((m for cell in cells if (m := TIME.search(cell["source"]))), None)
    if found is None:
        raise ValueError(f"{name}: no cell says '*Time:* N minutes to read'")
    starts = [cell for cell in cells if "minutes" in cell["metadata"].get("exercise", {})]
    return Chapter(name, int(found[1]), tuple(_exercise(name, cell) for cell in starts))


def _exercise(name: str, cell: Mapping) -> Exercise:
    said = cell["metadata"]["exercise"]
    title, stars = TITLE.search(cell["source"]), STARS.search(cell["source"])
    if not (title and stars and {"id", "minutes", "points"} <= said.keys()):
        raise ValueError(f"{name}: exercise {said.get('id')!r} lacks its title, its stars (●○○), minutes or points")
    return Exercise(said["id"], title[1].strip(), stars[0], int(said["minutes"]), int(said["points"]))


def chapters(folder: Path = FOLDER) -> list[Chapter]:
    """All chapters of a folder, in the order of the book."""
    return [chapter(name, read(folder / f"{name}.ipynb")) for name in names() if (folder / f"{name}.ipynb").exists()]


def exercise_table(book: Sequence[Chapter]) -> str:
    """All exercises as a Markdown table: chapter, exercise with its link, stars, minutes, points; and the sums."""
    every = [(one, task) for one in book for task in one.exercises]
    rows = [
        f"| {{doc}}`{one.name[:2]} </notebooks/{one.name}>` | {{ref}}`{task.title} <{task.id}>` | {task.stars} "
        f"| {task.minutes} | {task.points} |"
        for one, task in every
    ]
    minutes, points = sum(task.minutes for _, task in every), sum(task.points for _, task in every)
    total = f"| | **{len(every)} exercises** | | **{minutes}** | **{points}** |"
    return "\n".join(["| chapter | exercise | level | minutes | points |", "|---|---|---|---|---|", *rows, total])


def plan_table(plan: Sequence[Session], book: Sequence[Chapter]) -> str:
    """A course plan as a Markdown table, with the minutes of reading and of exercises that it asks for.

    Raises:
        ValueError: If the plan names a chapter or an exercise that does not exist.
    """
    rows, reading, working = [], 0, 0
    for session in plan:
        one, tasks = _find(session, book)
        read_minutes = one.read if one and session.read else 0
        work_minutes = sum(task.minutes for task in tasks)
        reading, working = reading + read_minutes, working + work_minutes
        link = f"{{doc}}`/notebooks/{one.name}`" if one else ""
        names_of = ", ".join(f"{{ref}}`{task.title} <{task.id}>`" for task in tasks)
        rows.append(
            f"| {session.when} | {link} | {session.doing} | {names_of} | {read_minutes or ''} | {work_minutes or ''} |"
        )
    total = f"| | **in all** | | | **{reading}** | **{working}** |"
    head = "| when | chapter | what happens | exercises | min. to read | min. to solve |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, total])


def _find(session: Session, book: Sequence[Chapter]) -> tuple[Chapter | None, list[Exercise]]:
    if not session.chapter:
        return None, []
    hits = [one for one in book if one.name.startswith(session.chapter)]
    if len(hits) != 1:
        raise ValueError(f"{session.when}: {len(hits)} chapters begin with {session.chapter!r}; name one")
    known = {task.id: task for task in hits[0].exercises}
    missing = [name for name in session.exercises if name not in known]
    if missing:
        raise ValueError(f"{session.when}: {hits[0].name} has no exercise {missing[0]!r}; it has {', '.join(known)}")
    return hits[0], [known[name] for name in session.exercises]


def fill(text: str, tables: Mapping[str, str]) -> str:
    """A page with each table between its two markers.

    Raises:
        ValueError: If a marker is missing or stands twice.

    >>> print(fill("<!-- begin: a -->old<!-- end: a -->", {"a": "new"}))
    <!-- begin: a -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- end: a -->
    """
    for name, table in tables.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"the page needs {begin} and, after it, {end}, once each")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


def page(text: str, book: Sequence[Chapter] | None = None) -> str:
    """The whole page with its tables made anew."""
    book = chapters() if book is None else book
    tables = {"day": plan_table(DAY, book), "weeks": plan_table(WEEKS, book), "exercises": exercise_table(book)}
    return fill(text, tables)


def main() -> int:
    """Rewrite the tables of ``book/teach.md``: 0 when done, 1 with one line when a plan or a chapter does not fit."""
    try:
        _write(PAGE, page(PAGE.read_text("utf-8")).encode())
    except ValueError as error:
        print(f"teach: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
