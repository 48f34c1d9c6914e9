"""The page that sets every published number, figure, table and claim beside what the book measured.

``book/reproduction.md`` is generated from the ledger (``book/paper_values.yml``) and ``book/results/``; only
``make publish`` writes it. Nothing is typed by hand and nothing is computed here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clif_kit import ledger
from clif_kit.notebooks import FOLDER, ROOT, read
from clif_kit.report import _write, fmt_metric

PAGE = ROOT / "book" / "reproduction.md"
RESULTS = ROOT / "book" / "results"
PAPERS = {
    "clif": ("Cross-loss influence functions", "silva2022cross"),
    "tracin_we": ("TracIn on word embeddings", "yeh2022first"),
    "influence_tuning": ("Influence tuning", "han2021influence"),
    "koh_liang": ("Influence functions for black-box models", "koh2017understanding"),
    "lecture": ("The lecture", None),
}
NUMBER_WORDS = ("within", "differs", "not comparable", "not run here")
CLAIM_WORDS = ("holds", "does not hold", "undecided", "not run here")
HEAD = """<!-- Written by `make publish` from book/paper_values.yml and book/results/. Do not edit. -->

# What the papers reported, and what came out here

Every number, figure, table and claim of the three papers and of the lecture is a row of one ledger,
`book/paper_values.yml`. How far a number may be off, and which comparison decides a claim, was written into the
ledger *before* the chapter ran at full size, unless its row or its chapter says otherwise. This page is generated from
the ledger and from the runs.

**How to read it.** Brackets hold 95 % intervals, followed by what was resampled. A number is *within* when it lies
inside its tolerance and *differs* when it does not; it is *not comparable* when data or models are others than the
paper's, and the reason stands beside it. A claim *holds* when the whole interval of the deciding comparison is on its
side, *does not hold* when the whole interval is on the other side, and is *undecided* between. *Not run here* says
that no run of ours answers the row, yet. The verdict is on our runs under our conditions, not on the papers. Rows are
judged by the book profile; where only the quick profile has run, the row says so.
"""


def page(rows: Sequence[Mapping[str, Any]] | None = None, folder: Path = RESULTS) -> str:
    """The whole page as MyST text.

    Args:
        rows: Of the ledger; by default all.
        folder: Where ``<notebook>.<profile>.json`` and ``figures/`` are.
    """
    rows = ledger.rows() if rows is None else rows
    results = {name: _result(name, folder) for name in {row["notebook"] for row in rows}}
    parts = [HEAD, _counts(rows, results)]
    for paper, (title, key) in PAPERS.items():
        mine = [row for row in rows if row["paper"] == paper]
        if mine:
            parts.append(f"## {title}\n" + (f"\n{{cite:t}}`{key}`\n" if key else ""))
            parts += [_chapter(name, group, *results[name], folder) for name, group in _by_chapter(mine)]
    return "\n".join(parts)


def _by_chapter(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list]]:
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(row["notebook"], []).append(row)
    return sorted(groups.items())


def _result(name: str, folder: Path) -> tuple[str, dict]:
    """Profile and metrics of the published run that judges a chapter; ``("", {})`` if none has been published."""
    for profile in ("book", "quick"):
        path = folder / f"{name}.{profile}.json"
        if path.exists():
            return profile, json.loads(path.read_text("utf-8"))["metrics"]
    return "", {}


def judge(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The verdict on a number or a claim, by the metrics of its chapter."""
    return ledger.verdict(row, metrics.get(row.get("key")))


def _counts(rows: Sequence[Mapping[str, Any]], results: Mapping[str, tuple[str, dict]]) -> str:
    """How many rows have which verdict, a table for the numbers and one for the claims."""
    text = ""
    for kind, words in (("number", NUMBER_WORDS), ("claim", CLAIM_WORDS)):
        text += f"| {kind}s | {' | '.join(words)} | all |\n|---|{'---|' * (len(words) + 1)}\n"
        for paper, (title, _) in PAPERS.items():
            mine = [row for row in rows if row["paper"] == paper and row["kind"] == kind]
            count = Counter(judge(row, results[row["notebook"]][1]) for row in mine)
            if mine:
                text += f"| {title} | {' | '.join(str(count[word]) for word in words)} | {len(mine)} |\n"
        text += "\n"
    return text


def _chapter(name: str, rows: list, profile: str, metrics: Mapping[str, Any], folder: Path) -> str:
    if not (FOLDER / f"{name}.ipynb").exists():
        return _waiting(name, rows)
    claims, numbers, shown = ([row for row in rows if row["kind"] in kinds] for kinds in _KINDS)
    judged = f"judged by the {profile} profile" if profile else "no run has been published"
    text = f"### Chapter {name[:2]}: {_title(name)}\n\n{{doc}}`The chapter </notebooks/{name}>`, {judged}.\n\n"
    if claims:
        text += "| claim | here | verdict |\n|---|---|---|\n"
        for row in claims:
            text += _line(_source(row), fmt_metric(metrics.get(row.get("key"))), judge(row, metrics))
    if numbers:
        text += "\n| number | paper | here | verdict |\n|---|---|---|---|\n"
        for row in numbers:
            paper = f"{row['value']} ± {row['tolerance']} {row.get('unit', '')}".strip()
            here = fmt_metric(metrics.get(row["key"]))
            text += _line(_source(row), paper, here, judge(row, metrics))
    return text + "".join(f"\n{_shown(name, row, folder)}" for row in shown) + "\n"


_KINDS = (("claim",), ("number",), ("figure", "table"))


def _title(name: str) -> str:
    return read(FOLDER / f"{name}.ipynb")[0]["source"].splitlines()[0].removeprefix("# ")


def _line(first: str, *cells: str) -> str:
    return f"| {first} | {' | '.join(escape(cell) for cell in cells)} |\n"


def _source(row: Mapping[str, Any]) -> str:
    """Where it stands and what it says, with the reason if numbers cannot be compared."""
    text = f"**{escape(row['source'])}.** {escape(row.get('text', row['id']))}"
    reason = row.get("comparable", True)
    if row["kind"] == "number" and reason is not True:
        text += f" *Not comparable: {escape(reason.removeprefix('no: '))}.*"
    return text + (f" *{escape(row['note'])}*" if "note" in row else "")


def _shown(name: str, row: Mapping[str, Any], folder: Path) -> str:
    """A figure or table of the paper in words, and ours where the book profile has drawn one."""
    text = f"**{escape(row['source'])}**, the paper's: {escape(row.get('shows', row.get('text', row['id'])))}"
    text += f" *{escape(row['note'])}*\n" if "note" in row else "\n"
    path = folder / "figures" / f"{name}.{row.get('figure')}.svg"
    if not path.exists():
        where = f"in {{doc}}`the chapter </notebooks/{name}>`" if "figure" in row else "*not run here*"
        return f"{text}Ours: {where}.\n"
    image = f"```{{image}} results/figures/{path.name}\n:alt: {alt_text(name, row['figure'])}\n:width: 100%\n```\n"
    return f"{text}Ours:\n\n{image}"


def alt_text(name: str, figure: str) -> str:
    """The alt text that a notebook gives the cell which draws a figure.

    Raises:
        ValueError: If no cell of the notebook draws it, or the cell has no alt text.
    """
    for cell in read(FOLDER / f"{name}.ipynb"):
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
        if alt and f'"{figure}", "{name}"' in cell["source"]:  # report.figure(fig, "figure", "name", ...)
            return alt
    raise ValueError(f"{name} has no cell with alt text that draws {figure!r}")


def _waiting(name: str, rows: list) -> str:
    """The rows of a chapter that is not written yet, folded away."""
    text = f":::{{dropdown}} Chapter {name.replace('_', ' ')}: {len(rows)} rows, not run here\n\n"
    for row in rows:
        words = row.get("text") or row.get("shows") or row["id"]
        paper = f": {row['value']} {row.get('unit', '')}".rstrip() if row["kind"] == "number" else ""
        text += f"- {row['kind']}, {escape(row['source'])}. {escape(words)}{escape(paper)}\n"
    return text + ":::\n"


def escape(text: str) -> str:
    r"""Plain text as Markdown that shows the same characters.

    >>> escape("|WEAT| < 0.5, f_1 = $x$")
    '\\|WEAT\\| \\< 0.5, f\\_1 = \\$x\\$'
    """
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", " ".join(text.split()))


def write() -> bool:
    """Write the page if it changed; whether it did. A repository without a ledger has no page."""
    if not (ROOT / "book" / "paper_values.yml").exists():
        return False
    text = page()
    if PAGE.exists() and PAGE.read_text("utf-8") == text:
        return False
    _write(PAGE, text.encode())
    return True
