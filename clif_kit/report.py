"""What a chapter hands over: checked metrics, byte-stable figures, and the box that sets them beside the paper.

Nothing here computes a score. :func:`record` and :func:`figure` write only when ``CLIF_RUN_DIR`` is set
(``clif_kit.runs`` sets it), so plain Jupyter and nbval leave no file behind. The schema of the metrics, the rows of the
papers and the verdicts are in :mod:`clif_kit.ledger`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clif_kit.ledger import ROOT, check_metrics, verdict
from clif_kit.ledger import rows as ledger

PROFILES = ("quick", "book", "paper", "custom")
TIERS = ("embedded", "generated", "real", "paper", "own")

# Okabe & Ito (2008), ordered so that neighbours differ in lightness too.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "sky": "#56B4E9",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "black": "#000000",
}
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)))
STYLE = {
    "axes.prop_cycle": cycler(color=list(COLORS.values())) + cycler(linestyle=list(LINES)),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",  # pages have a light and a dark theme
    "figure.figsize": (6.0, 3.8),
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 10,
    "image.cmap": "gray_r",
    "legend.frameon": False,
    "path.simplify": False,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
    "savefig.pad_inches": 0.15,
    "svg.fonttype": "path",
    "svg.hashsalt": "clif-book",  # without it element ids change from run to run
}

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_recorded: dict[str, dict[str, dict]] = {}


def profile() -> str:
    """``quick``, ``book``, ``paper`` or ``custom``: what ``CLIF_PROFILE`` says, ``quick`` without it.

    Raises:
        ValueError: If ``CLIF_PROFILE`` is another word.
    """
    name = os.environ.get("CLIF_PROFILE", "quick")
    if name not in PROFILES:
        raise ValueError(f"CLIF_PROFILE is {name!r}; it is one of {', '.join(PROFILES)}")
    return name


def style() -> None:
    """Set the one plot style: Okabe-Ito colours with a line style each, white background, byte-stable SVG."""
    mpl.rcParams.update(STYLE)


def fmt(x: float | int | str | None) -> str:
    """A number as tables print it, rounded to two digits so that the text is the same on another machine.

    >>> [fmt(v) for v in (0.8754, -0.001, 0, 20, 412.34, 2.5e-7, None)]
    ['0.88', '-1.0e-03', '0', '20', '412', '2.5e-07', '–']
    """
    if x is None or isinstance(x, str):
        return x or "–"
    if isinstance(x, int | np.integer) or x == 0:
        return str(int(x))
    if 100 <= abs(x) < 1e5:
        return f"{x:.0f}"
    return f"{x:.2f}" if 0.01 <= abs(x) < 100 else f"{x:.1e}"


def fmt_metric(metric: Mapping[str, Any] | None) -> str:
    """A metric as one line: value, interval, and what was resampled.

    >>> fmt_metric({"value": 0.61, "low": 0.44, "high": 0.75, "n": 20, "over": "seeds", "unit": ""})
    '0.61 [0.44, 0.75], 20 seeds'
    """
    if metric is None:
        return "–"
    text = fmt(metric["value"])
    if {"low", "high", "n", "over"} <= metric.keys():
        text += f" [{fmt(metric['low'])}, {fmt(metric['high'])}], {metric['n']} {metric['over']}"
    return text


def table(metrics: Mapping[str, Any]) -> str:
    """Metrics as aligned plain text, one a line: what a chapter's result cell prints and nbval compares.

    >>> print(table({"n/removed": 40, "cost/solves": 1}))
    n/removed    40
    cost/solves  1
    """
    rows = {key: fmt_metric(metric) for key, metric in check_metrics(metrics).items()}
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {text}" for key, text in rows.items())


def record(notebook: str, metrics: Mapping[str, Any], data: Mapping[str, Mapping[str, str]]) -> None:
    """Check a chapter's metrics and keep them for :func:`box`.

    Under ``CLIF_RUN_DIR`` also write ``<notebook>.metrics.json`` with ``{"notebook", "metrics", "data"}``, to which
    ``clif_kit.runs`` adds commit, machine and cost. Later calls add to earlier ones.

    Args:
        notebook: Its name without folder and suffix, such as ``03_koh_liang``.
        metrics: See :func:`check_metrics`.
        data: For each data set what ``clif_kit.datasets.provenance`` returns, such as
            ``{"digits": {"tier": "embedded", "sha256": "..."}}``.

    Raises:
        ValueError: If a metric, the name or a data entry breaks the schema.
    """
    _check_name(notebook)
    for name, source in data.items():
        if source.get("tier") not in TIERS or not isinstance(source.get("sha256"), str):
            raise ValueError(f"data {name!r} needs a tier ({', '.join(TIERS)}) and a sha256, got {dict(source)}")
    kept = _recorded.setdefault(notebook, {"metrics": {}, "data": {}})
    kept["metrics"].update(check_metrics(metrics))
    kept["data"].update({name: dict(source) for name, source in data.items()})
    if folder := os.environ.get("CLIF_RUN_DIR"):
        text = json.dumps({"notebook": notebook, **kept}, indent=1, sort_keys=True, allow_nan=False)
        _write(Path(folder) / f"{notebook}.metrics.json", (text + "\n").encode())


def figure(fig: Figure, name: str, notebook: str, data: Iterable[str] | None = None) -> Figure:
    """Add the footer (profile and data), save the figure for the reproduction page, and return it to be shown.

    Make this call the last line of the cell, without ``plt.show()``: the figure is closed in pyplot and shown once, as
    the cell's value. Under ``CLIF_RUN_DIR`` it is written to ``figures/<notebook>.<name>.svg``, with the same bytes in
    every process.

    Args:
        fig: The figure.
        name: What it shows, in lower case: the part of the file name after the notebook's.
        notebook: As in :func:`record`.
        data: Names of the data sets that it shows; by default those that :func:`record` was given before.

    Raises:
        ValueError: If the names are not plain, or nobody said which data the figure shows.
    """
    _check_name(name)
    _check_name(notebook)
    names = list(data or _recorded.get(notebook, {}).get("data", ()))
    if not names:
        raise ValueError(f"figure {name!r} does not say which data it shows: pass data=[...]")
    for old in [text for text in fig.texts if text.get_gid() == "footer"]:
        old.remove()
    note = f"{notebook} · profile: {profile()} · data: {', '.join(names)}"
    fig.text(1.0, 0.0, note, gid="footer", ha="right", va="top", fontsize=7, color="0.35", in_layout=True)
    if folder := os.environ.get("CLIF_RUN_DIR"):
        path = Path(folder) / "figures" / f"{notebook}.{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with mpl.rc_context(STYLE):
            fig.savefig(part, format="svg", metadata={"Date": None, "Creator": None, "Title": f"{notebook}: {name}"})
        os.replace(part, path)
    plt.close(fig)
    return fig


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a plain lower-case name (a-z, 0-9, _ and -)")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


@dataclass(frozen=True)
class Box:
    """A chapter's paper-versus-here table: HTML in a notebook, plain text elsewhere.

    Attributes:
        caption: Says which run the verdict judges.
        rows: Cells of ``paper``, ``here now``, ``book profile``, ``verdict``.
    """

    caption: str
    rows: tuple[tuple[str, str, str, str], ...]
    columns = ("paper", "here now", "book profile", "verdict")

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{escape(self.caption)}</p>"
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = ""
        for first, *rest in self.rows:
            body += f'<tr><th scope="row">{escape(first)}</th>'
            body += "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>\n"
        return (
            f'<table class="paper-here">\n<caption>{escape(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
        )

    def __repr__(self) -> str:
        lines = [self.caption]
        for row in self.rows:
            lines += [row[0], *(f"    {c}: {v}" for c, v in zip(self.columns[1:], row[1:], strict=True))]
        return "\n".join(lines)


def box(notebook: str) -> Box:
    """What the paper reported, what this run measured, what the published book-profile run measured, and the verdict.

    Judged is the book profile's result where there is one (``book/results/<notebook>.book.json``, or this run under
    the book profile), else this run. Rows of kind ``figure`` and ``table`` belong to the reproduction page.

    A chapter without such a row gets one sentence that says so.
    """
    now = _recorded.get(notebook, {}).get("metrics", {})
    path = ROOT / "book" / "results" / f"{notebook}.book.json"
    book = now if profile() == "book" else json.loads(path.read_text("utf-8"))["metrics"] if path.exists() else {}
    rows = [row for row in ledger() if row["notebook"] == notebook and row["kind"] in ("number", "claim")]
    if not rows:
        return Box(f"The ledger has no published number and no claim for {notebook}.", ())
    cells = []
    for row in rows:
        mine, published = now.get(row.get("key")), book.get(row.get("key"))
        word = verdict(row, published if book else mine)
        cells.append((_paper_cell(row), fmt_metric(mine), fmt_metric(published), word))
    judged = "the book profile's result" if book else "this run; the book profile has not been published"
    return Box(f"Paper and here, {notebook} (profile: {profile()}). The verdict judges {judged}.", tuple(cells))


def _paper_cell(row: Mapping[str, Any]) -> str:
    text = f"{row['source']}: {row.get('text', row['id'])}".strip()
    if row["kind"] == "number":
        text += f" = {row['value']} ± {row['tolerance']} {row.get('unit', '')}".rstrip()
    reason = row.get("comparable", True)
    return text if reason is True else f"{text} (not comparable: {reason.removeprefix('no: ')})"


def scatter_identity(ax: Axes, predicted: Any, actual: Any, *, label: str | None = None, unit: str = "loss") -> None:
    """Predicted (y) against actual (x) change, with the diagonal on which a perfect score would lie.

    Call it again on the same axes for another method: colour and marker change together, the limits grow.

    Args:
        ax: Where to draw.
        predicted: Shape ``(m,)``.
        actual: Shape ``(m,)``.
        label: The method's name, for the legend.
        unit: Of both, for the axis labels.
    """
    predicted, actual = np.asarray(predicted), np.asarray(actual)
    first = not ax.collections
    i = len(ax.collections) % len(MARKERS)
    color = list(COLORS.values())[i]
    ax.scatter(actual, predicted, s=18, marker=MARKERS[i], color=color, alpha=0.8, linewidths=0, label=label)
    low, high = min(predicted.min(), actual.min()), max(predicted.max(), actual.max())
    if not first:
        low, high = min(low, ax.get_xlim()[0]), max(high, ax.get_xlim()[1])
    else:
        pad = 0.05 * (high - low) or 1.0
        low, high = low - pad, high + pad
        ax.axline((0, 0), slope=1, color="0.5", linewidth=1, linestyle="--", zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set(xlabel=f"actual change after retraining ({unit})", ylabel=f"predicted change ({unit})")


def image_strip(images: Any, titles: Sequence[str] | None = None, *, size: float = 1.3) -> Figure:
    """Small images side by side on one grey scale, dark = large.

    Args:
        images: Shape ``(m, height, width)`` or ``(m, height, width, 3)``.
        titles: One a picture, or None.
        size: Width of each, in inches.
    """
    images = np.asarray(images)
    low, high = images.min(), images.max()
    fig, axes = plt.subplots(1, len(images), figsize=(size * len(images), size * 1.25), squeeze=False)
    for ax, image, title in zip(axes[0], images, titles or [""] * len(images), strict=True):
        ax.imshow(image, vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    return fig
