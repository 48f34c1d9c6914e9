"""The page for teachers: its tables are those of the notebooks, and what it names is there."""

import json
import re

import pytest

from clif_kit import teach
from clif_kit.notebooks import FOLDER, ROOT


def notebook(tmp_path, *cells, name="07_test.ipynb"):
    made = [{"cell_type": kind, "source": text, "metadata": metadata} for kind, text, metadata in cells]
    (tmp_path / name).write_text(json.dumps({"cells": made}), "utf-8")
    return tmp_path / name


HEAD = ("markdown", ["# A | title of `code`\n", "More."], {})
START = "```{exercise-start} Count them\n:label: ex-07-a\n```\nText"


def test_the_committed_tables_are_in_step_with_the_notebooks():
    page = teach.PAGE.read_text("utf-8")
    parts = teach.tables(sorted(FOLDER.glob("*.ipynb")))
    assert teach.filled(page, parts) == page, "python -m clif_kit.teach writes them"


def test_every_exercise_of_the_notebooks_is_there_once():
    """Counted from the text of the cells, without their metadata."""
    labels = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
        for text in cells:
            if text.startswith("```{exercise-start}"):
                (label,) = re.findall(r"^:label: (\S+)", text, re.M)
                (minutes,) = re.findall(r"(\d+) minutes", text)[:1]
                labels.append((label, int(minutes)))
    found = [(one.label, one.minutes) for path in sorted(FOLDER.glob("*.ipynb")) for one in teach.exercises(path)]
    assert found == labels
    page = teach.PAGE.read_text("utf-8")
    assert all(page.count(f"<{label}>`") == 1 for label, _ in labels)
    total = sum(minutes for _, minutes in labels)
    assert f"**{len(labels)}** | **{total}**" in page


def test_a_small_notebook_by_hand(tmp_path):
    path = notebook(
        tmp_path, HEAD,
        ("markdown", START, {"exercise": {"id": "ex-07-a", "minutes": 5, "points": 2}}),
        ("markdown", "```{solution-start} ex-07-a\n```", {"exercise": {"id": "ex-07-a"}}),
        ("code", "x = 1", {"exercise": {"id": "ex-07-a"}}),
    )  # fmt: skip
    assert teach.exercises(path) == [teach.Exercise("07_test", "ex-07-a", "Count them", 2, 5)]
    parts = teach.tables([path])
    assert "| 07 {doc}`A / title of 'code' </notebooks/07_test>` | 1 | 5 | 2 |" in parts["chapters"]
    assert parts["chapters"].splitlines()[-1] == "| **all** | **1** | **5** | **2** |"
    assert parts["exercises"].splitlines()[-1] == "| 07 | {ref}`Count them <ex-07-a>` | 5 | 2 |"


def test_what_is_missing_is_named(tmp_path):
    without = notebook(tmp_path, HEAD, ("markdown", START, {"exercise": {"id": "ex-07-a", "minutes": 5}}))
    with pytest.raises(ValueError, match=r"07_test\.ipynb: exercise 'ex-07-a' needs a title, and minutes and points"):
        teach.exercises(without)
    with pytest.raises(ValueError, match=r"08\.ipynb has no heading"):
        teach.chapter_title(notebook(tmp_path, name="08.ipynb"))
    with pytest.raises(ValueError, match="the page needs the markers"):
        teach.filled("nothing", {"x": ""})


def test_the_plans_name_chapters_that_exist():
    page = teach.PAGE.read_text("utf-8")
    there = {path.stem for path in FOLDER.glob("*.ipynb")}
    named = set(re.findall(r"/notebooks/(\w+)>`", page))
    assert there <= named <= there
    numbers = {name.split("_")[0] for name in there} | {"40", "41", "42", "43", "44"}  # the lecture's chapters
    plans = page[page.index("## One day") : page.index("## All exercises")]
    for row in re.findall(r"^\|.*\|$", plans, re.M):
        chapters = re.findall(r"\b\d\d\b(?!:| %)", row.split("|")[2])
        assert set(chapters) <= numbers, row
    assert "file: book/teach\n" in (ROOT / "_toc.yml").read_text("utf-8")


def test_there_are_templates_and_seeds():
    page = teach.PAGE.read_text("utf-8")
    for part in ("Introduction", "Related work", "Proposed method", "Progress"):
        assert f"**{part}" in page
    seeds = page[page.index("## Project seeds") :]
    assert 8 <= len(re.findall(r"^\d+\. \*\*", seeds, re.M)) <= 10
