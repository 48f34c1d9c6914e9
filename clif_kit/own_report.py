"""What is handed over: CSV files that no spreadsheet runs, and one HTML page without script or network.

Texts are shown as they are (they are the reader's own) and escaped; a long one shows its beginning. Files are made
whole in memory, written to ``.part`` and renamed, so a failure leaves nothing that is half written.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from clif_kit.own_texts import safe_cell

SHOWN = 300  # characters of a text on the page; the CSV has all that was read
_LOOK = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#111;
background:#fff}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{border-bottom:1px solid #bbb;padding:.3rem .5rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}td.n{text-align:right;white-space:nowrap}
caption{text-align:left;font-weight:600;padding:.4rem 0}details{margin:.6rem 0;
border:1px solid #bbb;padding:.4rem .8rem}
summary{cursor:pointer;overflow-wrap:anywhere}.helpful{color:#00517f}.harmful{color:#8a3b00}"""


def csv_bytes(table: pd.DataFrame) -> bytes:
    r"""A table as CSV in UTF-8 with a mark (so that Excel reads it right), its formulas made harmless.

    >>> csv_bytes(pd.DataFrame({"text": ["=1+1"], "score": [-0.5]})).decode("utf-8-sig")
    "text,score\n'=1+1,-0.5\n"
    """
    safe = table.map(safe_cell) if len(table) else table
    return safe.to_csv(index=False, lineterminator="\n").encode("utf-8-sig", "replace")


def html_page(title: str, parts: Sequence[str]) -> bytes:
    """A page of its own from ready parts."""
    body = "\n".join(parts)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_LOOK}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode("utf-8", "replace")


def html_list(lines: Sequence[str]) -> str:
    """Lines as a list, escaped.

    >>> html_list(["a < b"])
    '<ul><li>a &lt; b</li></ul>'
    """
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def html_text(text: str) -> str:
    """A paragraph, escaped."""
    return f"<p>{escape(text)}</p>"


def html_table(caption: str, table: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Some columns of a table under other names, every cell escaped, numbers to the right, texts cut.

    Args:
        caption: What the table shows.
        table: The rows.
        names: Heading by column.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names.values())
    rows = (zip(*(table[column] for column in names), strict=True)) if len(table) else ()
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def html_explained(table: pd.DataFrame, method: str = "influence") -> list[str]:
    """One foldable part for each test text: its most helpful and most harmful training texts, with their words."""
    parts = []
    names = {"score": "influence (nats)", "bm25": "BM25", "train_label": "label", "train_row": "row"}
    names |= {"train_text": "training text", "words": "words that carry the influence", "shared": "words in common"}
    for _, rows in table[table["method"] == method].groupby("test_row", sort=False):
        first = rows.iloc[0]
        wrong = "" if first["predicted"] == first["test_label"] else " (wrong)"
        says = f"{first['test_label']}, predicted {first['predicted']}{wrong}: {_short(first['test_text'])}"
        inside = ""
        for side, caption, look in (
            ("proponent", "Helpful: without them the model would be less sure of the label", "helpful"),
            ("opponent", "Harmful: without them it would be surer", "harmful"),
        ):
            inside += f'<div class="{look}">{html_table(caption, rows[rows["side"] == side], names)}</div>'
        parts.append(f"<details{' open' * (not parts)}><summary>{escape(says)}</summary>{inside}</details>")
    return parts


def check_folder(folder: str | Path) -> None:
    """Look whether a folder is there or can be made and may be written to, before anything is computed.

    Raises:
        ValueError: With one line that names the place, if not.
    """
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "may not be written to" if place.is_dir() else "is a file"
        raise ValueError(f"{folder}: {place} {what}; name another folder with --out")


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files, each to ``.part`` first; they take their names when all of them are on the disk."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in files]
    parts = [path.with_name(path.name + ".part") for path in paths]
    try:
        for part, content in zip(parts, files.values(), strict=True):
            part.write_bytes(content)
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return paths


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f"<td>{escape(_short(value))}</td>"
    return f'<td class="n">{value + 0.0:.3g}</td>' if isinstance(value, float) else f'<td class="n">{value}</td>'


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " […]"
