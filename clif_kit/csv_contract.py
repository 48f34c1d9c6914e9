"""The table format for a reader's own texts: UTF-8 CSV with the columns ``text``, ``label`` and, optionally, ``id``."""

import csv
import hashlib
import io
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd


class BadCSV(ValueError):
    """A file breaks the contract; the message is one line that names the file and the rows."""


def read_csv(path: str | Path, *, text: str = "text", label: str = "label") -> pd.DataFrame:
    """Read a CSV of labelled texts, or say in one line what is wrong with it.

    Rows are counted from 1 after the header. Byte-order marks, Windows line ends and quoted line breaks are fine. Texts
    that occur more than once are kept and reported (a warning, and ``frame.attrs["duplicates"]``, their number).

    Args:
        path: The file. A header line is needed; other columns are kept as text.
        text: Name of the column with the texts.
        label: Name of the column with the labels.

    Returns:
        ``id`` (from the file, else :func:`content_id`), ``text``, ``label`` (categorical, two classes or more), then
        the file's other columns.

    Raises:
        FileNotFoundError: If there is no such file.
        BadCSV: If it is not UTF-8 or not CSV, if a column, a text or a label is missing, if ids repeat, or if all rows
            have the same label.
    """
    path = Path(path)
    header, rows = _rows(path)
    for column in (text, label):
        if column not in header:
            raise BadCSV(f"{path}: no column {column!r}; the columns are {', '.join(map(repr, header))}")
    frame = pd.DataFrame(rows, columns=header, dtype=str).rename(columns={text: "text", label: "label"})
    for column in ("text", "label", *(["id"] if "id" in frame else [])):
        _no_blanks(path, frame, column)
    frame["label"] = frame["label"].str.strip()
    classes = sorted(set(frame["label"]))
    if len(classes) < 2:
        raise BadCSV(
            f"{path}: {'all rows have the label ' + repr(classes[0]) if classes else 'no rows'}; need two labels"
        )
    _ids(path, frame)
    frame["label"] = pd.Categorical(frame["label"], categories=classes)
    _report_duplicates(path, frame)
    first = ["id", "text", "label"]
    return frame[first + [c for c in frame if c not in first]]


def content_id(text: str, label: str = "") -> str:
    """An id that follows the content: 12 hexadecimal digits of the sha256 of text and label.

    >>> content_id("a fine film", "good")
    '17beb8de825a'
    """
    return hashlib.sha256(f"{text}\x00{label}".encode()).hexdigest()[:12]


def content_ids(texts: list[str], labels: list[str]) -> list[str]:
    """:func:`content_id` of each row; the second, third ... equal row gets ``-2``, ``-3`` ..."""
    seen: Counter[str] = Counter()
    ids = []
    for pair in zip(texts, labels, strict=True):
        key = content_id(*pair)
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows as strings, all of the header's length."""
    raw = path.read_bytes()
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "UTF-16" if wide else f"not UTF-8 (byte {error.start})"
        raise BadCSV(f"{path}: is {what}; save it as CSV in UTF-8") from None
    if "\x00" in decoded:
        raise BadCSV(f"{path}: holds zero bytes, so it is no text file; save it as CSV in UTF-8")
    try:
        rows = [row for row in csv.reader(io.StringIO(decoded, newline=""), strict=True) if row]
    except csv.Error as error:
        raise BadCSV(f"{path}: not CSV: {error}") from None
    if not rows:
        raise BadCSV(f"{path}: is empty; need a header line and rows")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise BadCSV(f"{path}: a column name occurs twice: {', '.join(map(repr, header))}")
    _name_rows(path, [k for k, row in enumerate(rows[1:], 1) if len(row) != len(header)], f"not {len(header)} fields")
    return header, rows[1:]


def _no_blanks(path: Path, frame: pd.DataFrame, column: str) -> None:
    blank = frame[column].str.strip() == ""
    _name_rows(path, (frame.index[blank] + 1).tolist(), f"no {column}")


def _ids(path: Path, frame: pd.DataFrame) -> None:
    if "id" not in frame:
        frame.insert(0, "id", content_ids(frame["text"].tolist(), frame["label"].tolist()))
    _name_rows(path, (frame.index[frame["id"].duplicated()] + 1).tolist(), "an id that an earlier row has")


def _report_duplicates(path: Path, frame: pd.DataFrame) -> None:
    repeated = frame["text"].duplicated()
    frame.attrs["duplicates"] = int(repeated.sum())
    if repeated.any():
        rows = _some((frame.index[repeated] + 1).tolist())
        warnings.warn(f"{path}: {frame.attrs['duplicates']} texts occur again ({rows})", stacklevel=3)


def _name_rows(path: Path, rows: list[int], what: str) -> None:
    if rows:
        raise BadCSV(f"{path}: {_some(rows)}: {what}")


def _some(rows: list[int], most: int = 5) -> str:
    shown = ", ".join(map(str, rows[:most]))
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - most} more" if len(rows) > most else "")
