"""A reader's own CSV, read whatever made it, with one line for each thing that was found in it.

:mod:`clif_kit.csv_contract` is the strict reader of the chapters; this one is for files that nobody prepared. What can
be read without a guess is read (byte-order marks, UTF-16 with a mark, Windows line ends, ``;`` or tab between columns),
what cannot be used is left out and its rows are named, what makes an answer meaningless is refused in one line.
"""

import codecs
import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from clif_kit.csv_contract import BadCSV, content_ids

MAX_BYTES = 2**29  # of a file
MAX_CELL = 2**26  # characters of a cell
MAX_CLASSES = 100
LONGEST = 20_000  # characters of a text that are kept: far more than any encoder here reads
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class OwnTexts:
    """Labelled texts and what is known about them.

    Attributes:
        frame: ``row`` (counted from 1 after the header), ``id``, ``text``, ``label``; rows that cannot be used are out.
        classes: The different labels, sorted.
        found: Numbers: ``rows``, ``used``, ``classes``, ``empty``, ``unlabelled``, ``duplicates`` (further copies of a
            text with its label), ``conflicts`` (different texts that stand there with two labels or more), ``cut``.
        notes: The same as lines for people; the first one sums up.
    """

    frame: pd.DataFrame = field(repr=False)
    classes: tuple[str, ...]
    found: dict[str, int]
    notes: tuple[str, ...]


def read_texts(path: str | Path, *, text: str = "text", label: str = "label", classes: int = 2) -> OwnTexts:
    """Read a CSV of labelled texts, leave out what cannot be used, say what was found.

    Cells are text, always: a number, ``NA`` or a formula stays the characters it is. Texts are cut to ``LONGEST``
    characters.

    Args:
        path: The file.
        text: Name of the column with the texts.
        label: Name of the column with the labels.
        classes: Different labels that are needed; 1 for a file of test texts.

    Raises:
        FileNotFoundError: If there is no such file.
        BadCSV: In one line, if the file is too large, no text, no CSV, lacks a column, has rows of another length, has
            labels for fewer than half of the rows, too few classes, or more than ``MAX_CLASSES``.
    """
    path = Path(path)
    header, rows = _rows(path, _decode(path), text, label)
    at = [header.index(column) for column in (text, label)]
    frame = pd.DataFrame([[row[k] for k in at] for row in rows], columns=["text", "label"], dtype=str)
    frame.insert(0, "row", np.arange(1, len(frame) + 1))
    frame["label"] = frame["label"].str.strip()
    blank, bare = frame["text"].str.strip() == "", frame["label"] == ""
    if bare.sum() > len(frame) / 2:
        raise BadCSV(
            f"{path}: {bare.sum():,} of {len(frame):,} rows have no label in {label!r}: is it the right column?"
        )
    kept = frame[~blank & ~bare].reset_index(drop=True)
    names = tuple(sorted(set(kept["label"])))
    _check_classes(path, label, names, len(kept), classes)
    long = kept["text"].str.len() > LONGEST
    kept["text"] = kept["text"].str.slice(0, LONGEST)
    kept.insert(1, "id", content_ids(kept["text"].tolist(), kept["label"].tolist()))
    twice = kept.duplicated(["text", "label"])
    several = kept.groupby("text")["label"].nunique()
    torn = kept["text"].isin(several.index[several > 1])
    found = {"rows": len(frame), "used": len(kept), "classes": len(names), "conflicts": int((several > 1).sum())}
    found |= _counts(empty=blank, unlabelled=bare & ~blank, duplicates=twice, cut=long)
    lines = {
        "no text: left out": frame["row"][blank],
        f"no label in {label!r}: left out": frame["row"][bare & ~blank],
        "the same text and label as an earlier row: kept": kept["row"][twice],
        "the same text with another label elsewhere: kept, look at them": kept["row"][torn],
        f"only the first {LONGEST:,} characters are read": kept["row"][long],
    }
    notes = [_summary(path, kept, names, found)]
    notes += [f"{some_rows(rows)}: {what}" for what, rows in lines.items() if len(rows)]
    rare = [name for name, count in kept["label"].value_counts().items() if count < 5]
    if rare and classes > 1:
        notes.append(f"class {rare[0]!r} has fewer than five texts: scores about it say little")
    return OwnTexts(kept, names, found, tuple(notes))


def overlap(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Which test texts stand in the training texts too, whatever their case and blanks: bool, ``(tests,)``.

    >>> overlap(pd.DataFrame({"text": ["A  b"]}), pd.DataFrame({"text": ["a b", "c"]}))
    array([ True, False])
    """
    known = set(train["text"].map(_plain))
    return np.array([_plain(text) in known for text in test["text"]], dtype=bool)


def safe_cell(value: object) -> object:
    """A cell that no spreadsheet runs as a formula: text that begins like one gets an apostrophe in front.

    >>> safe_cell("=1+1"), safe_cell("fine"), safe_cell(-0.5)
    ("'=1+1", 'fine', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ")[:1] in tuple("=+-@\t\r\n") else value


def some_rows(rows: Sequence[int], most: int = 5) -> str:
    """Row numbers as a phrase: ``row 3``, ``rows 3, 5``, ``rows 1, 2, 3, 4, 5 and 7 more``."""
    rows = [int(row) for row in rows]
    shown = ", ".join(map(str, rows[:most]))
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - most:,} more" if len(rows) > most else "")


# ---- from bytes to rows


def _decode(path: Path) -> str:
    if path.is_dir():
        raise BadCSV(f"{path}: is a folder; give the CSV file in it")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise BadCSV(
            f"{path}: has {size / 2**20:,.0f} MiB, more than {MAX_BYTES / 2**20:,.0f}: take a sample of its rows"
        )
    raw = path.read_bytes()
    if raw[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise BadCSV(f"{path}: is UTF-32; save it as CSV in UTF-8")
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        decoded = raw.decode(encoding)
    except UnicodeDecodeError as error:
        fix = "save it as CSV in UTF-8 (Excel: 'CSV UTF-8')"
        raise BadCSV(f"{path}: byte {error.start} is not {encoding.removesuffix('-sig').upper()}; {fix}") from None
    if "\x00" in decoded:
        raise BadCSV(f"{path}: holds zero bytes (UTF-16 without its mark, or no text file); save it as CSV in UTF-8")
    return decoded


def _rows(path: Path, decoded: str, *columns: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the sign between the columns is the one that makes both columns appear, else the comma."""
    if len(set(columns)) < len(columns):
        raise BadCSV(f"{path}: text and label are to come from one column, {columns[0]!r}; name two")
    with _large_cells():
        heads = {}
        for sign in (",", ";", "\t"):
            try:
                heads[sign] = [name.strip() for name in next(_reader(decoded, sign), [])]
            except csv.Error:
                heads[sign] = []
        sign = next((sign for sign, head in heads.items() if set(columns) <= set(head)), ",")
        try:
            rows = [row for row in _reader(decoded, sign) if row]
        except csv.Error as error:
            raise BadCSV(f"{path}: not CSV: {error}; is a quotation mark left open?") from None
    if not any(cell.strip() for row in rows for cell in row):
        raise BadCSV(f"{path}: is empty; need a header line and rows")
    header = [name.strip() for name in rows[0]]
    for column in columns:
        if column not in header:
            raise BadCSV(f"{path}: no column {column!r}{_meant(column, header)}")
    if len(set(header)) < len(header):
        raise BadCSV(f"{path}: a column name occurs twice: {_listed(header)}")
    if wrong := [k for k, row in enumerate(rows[1:], 1) if len(row) != len(header)]:
        raise BadCSV(f"{path}: {some_rows(wrong)}: not {len(header)} fields; put texts with a {sign!r} in quotes")
    if len(rows) == 1:
        raise BadCSV(f"{path}: has a header and no rows")
    return header, rows[1:]


def _reader(decoded: str, sign: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(decoded, newline=""), delimiter=sign, strict=True)


@contextmanager
def _large_cells() -> Iterator[None]:
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_classes(path: Path, label: str, names: tuple[str, ...], rows: int, needed: int) -> None:
    if not names:
        raise BadCSV(f"{path}: no row has a text and a label")
    if len(names) < needed:
        raise BadCSV(f"{path}: all {rows:,} rows have the label {names[0][:40]!r}; need two labels to tell apart")
    if len(names) > MAX_CLASSES:
        few = f"{path}: {label!r} has {len(names):,} different values in {rows:,} rows"
        raise BadCSV(f"{few}: is it a label? At most {MAX_CLASSES} classes")


def _counts(**masks: pd.Series) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def _summary(path: Path, kept: pd.DataFrame, names: tuple[str, ...], found: dict[str, int]) -> str:
    sizes = kept["label"].value_counts()
    shown = ", ".join(f"{name[:30]!r} {sizes[name]:,}" for name in sizes.index[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{path.name}: {found['rows']:,} rows, {found['used']:,} of use, {len(names)} classes: {shown}{more}"


def _meant(column: str, header: list[str]) -> str:
    lower = {name.lower(): name for name in header}
    close = difflib.get_close_matches(column.lower(), list(lower), n=1, cutoff=0.6)
    hint = f"; did you mean {lower[close[0]][:40]!r}?" if close else ""
    return f"{hint} The columns are {_listed(header)}" if hint else f"; the columns are {_listed(header)}"


def _listed(header: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in header[:8])
    return shown + (f" and {len(header) - 8} more" if len(header) > 8 else "")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
