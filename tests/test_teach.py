"""The page for teachers: plans that fit the book, sums recomputed by hand, markers, and the page in step."""

import json

import pytest

from clif_kit import teach
from clif_kit.notebooks import FOLDER, read

START = "```{exercise-start} Half a sum\n:label: ex-00-a\n```\n●●○ · 10 minutes. Write `half`."


def cell(source, **exercise):
    return {"source": source, "metadata": {"exercise": exercise} if exercise else {}}


def demo(name, minutes, *tasks):
    return teach.Chapter(name, minutes, tuple(teach.Exercise(i, i.upper(), "●○○", m, p) for i, m, p in tasks))


BOOK = [demo("00_a", 20, ("ex-a", 5, 1), ("ex-b", 15, 2)), demo("01_b", 30, ("ex-c", 10, 3)), demo("01_c", 7)]


def test_a_chapter_is_read_from_its_cells():
    cells = [
        cell("*Needs:* nothing. *Time:* 20 minutes to read, 10 seconds to run."),
        cell(START, id="ex-00-a", minutes=10, points=2),
    ]
    cells += [cell("solution", id="ex-00-a")]
    assert teach.chapter("00", cells) == teach.Chapter(
        "00", 20, (teach.Exercise("ex-00-a", "Half a sum", "●●○", 10, 2),)
    )


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([cell("no time here")], "no cell says"),
        ([cell("*Time:* 5 minutes"), cell(START, id="ex-00-a", minutes=10)], "ex-00-a"),
        ([cell("*Time:* 5 minutes"), cell(START.replace("●●○", ""), id="ex-00-a", minutes=10, points=1)], "stars"),
    ],
)
def test_a_chapter_without_its_data_is_refused(cells, says):
    with pytest.raises(ValueError, match=says):
        teach.chapter("00", cells)


def test_sums_are_those_of_a_pencil():
    plan = (teach.Session("A", "00", "x", ("ex-b",)), teach.Session("B", "01_b", "y", ("ex-c",), read=False))
    table = teach.plan_table((*plan, teach.Session("C", "", "talks")), BOOK).splitlines()
    assert table[-1] == "| | **in all** | | | **20** | **25** |"
    assert [row.split("|")[5:7] for row in table[2:5]] == [[" 20 ", " 15 "], ["  ", " 10 "], ["  ", "  "]]
    assert teach.exercise_table(BOOK).splitlines()[-1] == "| | **3 exercises** | | **30** | **6** |"


@pytest.mark.parametrize(
    ("session", "says"),
    [
        (teach.Session("A", "07", "x"), "0 chapters begin with '07'"),
        (teach.Session("A", "01", "x"), "2 chapters begin with '01'"),
        (teach.Session("A", "00", "x", ("ex-c",)), "00_a has no exercise 'ex-c'; it has ex-a, ex-b"),
    ],
)
def test_a_plan_that_does_not_fit_the_book_is_refused(session, says):
    with pytest.raises(ValueError, match=says):
        teach.plan_table((session,), BOOK)


@pytest.mark.parametrize(
    "text",
    ["", "<!-- begin: a -->", "<!-- end: a --><!-- begin: a -->", "<!-- begin: a --><!-- end: a -->" * 2],
)
def test_missing_markers_are_named(text):
    with pytest.raises(ValueError, match="begin: a"):
        teach.fill(text, {"a": "x"})


def test_what_stands_outside_the_markers_stays():
    text = "top\n<!-- begin: a -->\nold\n<!-- end: a -->\nbottom"
    once = teach.fill(text, {"a": "new"})
    assert once.startswith("top\n")
    assert once.endswith("\nbottom")
    assert "old" not in once
    assert teach.fill(once, {"a": "new"}) == once


def test_the_page_is_what_the_chapters_say():
    text = teach.PAGE.read_text("utf-8")
    assert text == teach.page(text), "run: python -m clif_kit.teach"


def test_each_exercise_of_the_notebooks_is_in_the_table():
    """Oracle: the raw files, searched for labels."""
    text = teach.PAGE.read_text("utf-8")
    for path in FOLDER.glob("*.ipynb"):
        raw = json.dumps([c["source"] for c in read(path)])
        labels = {part.split("\\n")[0] for part in raw.split(":label: ") if part.startswith("ex-")}
        assert labels, path.name
        assert all(f"<{label}>`" in text for label in labels), path.name


def test_a_plan_that_does_not_fit_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(teach, "DAY", (teach.Session("A", "99", "x"),))
    assert teach.main() == 1
    assert capsys.readouterr().err == "teach: A: 0 chapters begin with '99'; name one\n"
