"""The book's page about the measurements, text and figure: generated from ``results.json``, never typed.

``python -m benchmarks.page`` writes both without measuring anything.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import BYTES, CPU, IDS, ROOT, WALL, read
from clif_kit.report import COLORS, STYLE, _write
from clif_kit.reproduction import escape

PAGE = ROOT / "book" / "performance.md"
FIGURE = ROOT / "book" / "_static" / "performance.svg"
HEAD = """<!-- Written by `make bench` from benchmarks/results.json. Do not edit. -->

# How fast it is, and against whom

Speed is only worth something when the answer is the same. So each row below runs two programs on the same input: ours,
and one that you might use instead, a library or the papers' own algorithm written out. Both must give the same answer,
to within a stated bound; a row whose answers differ is not written. Then the two take turns, round after round.
Unless the row says otherwise, in double precision, on one thread, and what counts is CPU time, so that other work on
the machine disturbs little. The ratio says how many times less ours takes.

Some rows have another kind of rival: a floor, which no program can go below (there the ratio is less than 1), or
ourselves on less work, to show that the cost grows as it should, or a limit that was set beforehand.
"""
RERUN = """## Measure it yourself

```bash
make bench                      # all rows; the rivals get an environment of their own
make bench ARGS=mog_loo_150     # one row, the others are kept
make bench ARGS=--list          # which rows there are
```

It rewrites `benchmarks/results.json`, the figure and this page. The goals were set before the code was written; a
ratio below its goal is shown like any other.
"""


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as MyST."""
    return "\n".join([HEAD, _figure(rows), *map(_section, rows), RERUN, _missing(rows)])


def _figure(rows: Sequence[Mapping[str, Any]]) -> str:
    said = "; ".join(f"{row['title']}: {_times(row['ratio'])}, goal {row['goal']:g}" for row in rows)
    return f"""```{{figure}} _static/{FIGURE.name}
:name: fig-performance
:alt: Ratios, theirs to ours, on a logarithmic axis. {said}.
:width: 100%

How many times less ours takes. Dot: ratio of the medians; line: smallest and largest ratio of one round;
upright tick: the goal. Dots to the right of their tick have reached it.
```
"""


def _section(row: Mapping[str, Any]) -> str:
    what, amount = UNITS[row["unit"]]
    kind = "of the largest score" if row["relative"] else "in absolute terms"
    differ = "nothing to compare: a floor has no answer"
    if row["bound"] is not None:
        differ = f"{row['max_diff']:.1g} {kind} (allowed: {row['bound']:g})"
    word = "reached" if row["ratio"] >= row["goal"] else "below its goal"
    theirs = ", ".join(f"{name} {amount(value)}" for name, value in row["rivals"].items())
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"""## {escape(row["title"])}

| id | `{row["id"]}` |
|---|---|
| against | {escape(row["rival"])} |
| size | {escape(row["n"])} |
| {what}, ours | {amount(row["ours"])} |
| {what}, theirs | {escape(theirs)} |
| times less | **{_times(row["ratio"])}** (rounds: {_times(row["low"])} to {_times(row["high"])}) |
| goal | {row["goal"]:g}: {word} |
| answers differ by | {differ} |
| with | {escape(versions)}; median of {row["repeats"]} rounds |
"""


def _missing(rows: Sequence[Mapping[str, Any]]) -> str:
    measured = {row["id"] for row in rows}
    rest = [f"`{name}`" for name in IDS if name not in measured]
    return f"Planned, and not measured yet: {', '.join(rest)}.\n" if rest else "All planned rows are measured.\n"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 3 else f"{ratio:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _megabytes(value: float) -> str:
    return f"{value / 2**20:.0f}"


UNITS = {
    CPU: ("CPU seconds", _seconds),
    WALL: ("seconds by the clock", _seconds),
    BYTES: ("peak memory in MiB", _megabytes),
}


def figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The figure as SVG, the same bytes for the same rows."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 1.1 + 0.45 * len(rows)))
        ax = fig.add_subplot()
        places = range(len(rows), 0, -1)
        for y, row in zip(places, rows, strict=True):
            ax.plot([row["low"], row["high"]], [y, y], color=COLORS["blue"], linestyle="-", linewidth=2)
            ax.plot(row["ratio"], y, marker="o", markersize=7, color=COLORS["blue"], linestyle="")
            ax.plot(row["goal"], y, marker="|", markersize=16, markeredgewidth=2.5, color=COLORS["vermillion"])
        ax.axvline(1, color="0.5", linewidth=1, linestyle="--", zorder=0)
        ax.set(xscale="log", ylim=(0.4, len(rows) + 0.6), xlabel="times less than the rival (log scale)")
        ax.set_yticks(list(places), [row["id"] for row in rows])
        ax.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        out = io.BytesIO()
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": "Ratios of CPU time"})
    return out.getvalue()


def write(page: Path = PAGE, picture: Path = FIGURE) -> None:
    """Write the page and its figure from the stored results."""
    rows = read()
    for path, content in ((page, text(rows).encode()), (picture, figure(rows))):
        _write(path, content)


if __name__ == "__main__":
    write()
