"""What a class saw in the panels of the study: shares correct on real and on shuffled ones, with intervals.

Students download their answers from the page of :mod:`clif_kit.study_page` as JSON or CSV. The files come from many
hands, so nothing in them is trusted: sizes are bounded, every field is checked, and what is correct is looked up in the
study and not read from the file. Shares are between 0 and 1; intervals are over students.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clif_kit.evaluate import Interval, interval, paired_difference

FORMAT = "clif-study-1"
LARGEST = 200_000  # bytes of a file
COLUMNS = ("format", "study", "id", "answer", "seconds")


def read_study(path: str | Path) -> dict[str, Any]:
    """The study on a page that was handed out: the book's ``book/study_data.html``, or the file made to stand alone.

    Raises:
        ValueError: If there is no study in the file.
    """
    found = re.search(
        r'<script type="application/json" id="explorer-data">(.*?)</script>', Path(path).read_text("utf-8")
    )
    data = json.loads(found[1]) if found else {}
    if not {"study", "kinds", "questions"} <= set(data):
        raise ValueError(f"{Path(path).name} holds no study; `python -m clif_kit.study_page` writes one")
    return data


def read_answers(path: str | Path, data: Mapping) -> dict[str, str]:
    """Answers of one student, by question.

    Args:
        path: A file that the page let the student download, ``.json`` or ``.csv``.
        data: The study, from :func:`read_study`.

    Raises:
        ValueError: If the file is too large, no JSON or CSV of this format, of another study, or holds a question or an
            answer that the study does not have, or one question twice. The message begins with the file's name.
    """
    path = Path(path)

    def refuse(what: str) -> ValueError:
        return ValueError(f"{path.name}: {what}")

    if not path.is_file():
        raise refuse("no such file")
    if path.stat().st_size > LARGEST:
        raise refuse(f"larger than {LARGEST:,} bytes; answers are not. Ask for the file that the page makes")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = _csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(json.loads(text))
    except (ValueError, RecursionError, csv.Error) as error:
        raise refuse(f"not a file of answers ({type(error).__name__}: {str(error)[:80]})") from None
    known, found = {question["id"]: question for question in data["questions"]}, {}
    for row in rows:
        if row["format"] != FORMAT or row["study"] != data["study"]:
            raise refuse(f"answers to another study; wanted {FORMAT} {data['study']}. Use the page of this version")
        name, answer = row["id"], row["answer"]
        if not isinstance(name, str) or name not in known or name in found:
            raise refuse(f"question {str(name)[:20]!r} is not in the study, or stands there twice")
        if not isinstance(answer, str) or answer not in data["kinds"][known[name]["kind"]]["answers"]:
            raise refuse(f"answer {str(answer)[:20]!r} to question {name} is none that the page offers")
        found[name] = answer
    if set(found) != set(known):
        raise refuse(f"{len(found)} of {len(known)} questions are answered; only finished studies count")
    return found


def class_statistic(files: Sequence[str | Path], data: Mapping) -> dict[str, Interval]:
    """Shares correct of a class, with 95 % intervals over students.

    Args:
        files: One of each student; 2 or more.
        data: The study.

    Returns:
        ``correct/KIND/real``, ``correct/KIND/shuffled`` and ``correct/KIND/real_minus_shuffled`` for both kinds of
        question; ``yes/real_minus_shuffled``: how much oftener a class sees a pattern where there is one. Chance is
        1/2 for pairs, real or shuffled.

    Raises:
        ValueError: As :func:`read_answers`; if there are fewer than two files, or two hold the very same bytes.
    """
    paths, seen = [Path(path) for path in files], {}
    if len(paths) < 2:
        raise ValueError(f"a class is two students or more, got {len(paths)} file{'' if len(paths) == 1 else 's'}")
    students = []
    for path in paths:
        students.append(read_answers(path, data))
        content = path.read_bytes()
        if content in seen:
            raise ValueError(f"{path.name} is the same file as {seen[content]}: one for each student")
        seen[content] = path.name

    def shares(kind: str, real: bool, hit: Any) -> np.ndarray:
        """One number a student."""
        asked = [q for q in data["questions"] if q["kind"] == kind and q["real"] == real]
        return np.array([np.mean([hit(q, answers[q["id"]]) for q in asked]) for answers in students])

    out = {}
    for kind in data["kinds"]:
        real, shuffled = (shares(kind, which, lambda q, answer: answer == q["right"]) for which in (True, False))
        out[f"correct/{kind}/real"] = interval(np.mean, real, over="students")
        out[f"correct/{kind}/shuffled"] = interval(np.mean, shuffled, over="students")
        out[f"correct/{kind}/real_minus_shuffled"] = paired_difference(real, shuffled, over="students")
    yes = [shares("pattern", which, lambda _, answer: answer == "yes") for which in (True, False)]
    return out | {"yes/real_minus_shuffled": paired_difference(*yes, over="students")}


def _json_rows(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get("answers"), list):
        raise ValueError("an object with a list `answers` is wanted")
    if not all(isinstance(row, dict) for row in content["answers"]) or not content["answers"]:
        raise ValueError("`answers` must be a list of objects")
    head = {name: content.get(name) for name in ("format", "study")}
    return [head | {name: row.get(name) for name in ("id", "answer")} for row in content["answers"]]


def _csv_rows(text: str) -> list[dict[str, Any]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    if not rows or tuple(rows[0]) != COLUMNS or len(rows) < 2:
        raise ValueError(f"the first line must be {','.join(COLUMNS)}, with answers below it")
    if any(len(row) != len(COLUMNS) for row in rows):
        raise ValueError("a line has too many or too few cells")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:]]
