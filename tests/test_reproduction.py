"""The ledger against the chapters, and the page that is generated from both."""

import json
import re

import pytest

from clif_kit import ledger, reproduction
from clif_kit.notebooks import FOLDER, names

# The chapters of the design that are still to be written; their rows wait.
PLANNED = [
    "40_datamodels", "41_transfer", "42_sparse_debugging", "43_head_to_head", "44_your_own_data",
]  # fmt: skip
WORDS = {*reproduction.NUMBER_WORDS, *reproduction.CLAIM_WORDS}


def points_nowhere(row, published):
    """Why a row has no target, or nothing. ``published``: metrics of each chapter that has a result."""
    name = row["notebook"]
    if name not in {*names(), *PLANNED}:
        return f"{row['id']}: there is no chapter {name}"
    if name in published and "key" in row and (row["key"] in published[name]) == ("not_run" in row):
        return f"{row['id']}: {name} has {'the' if 'not_run' in row else 'no'} metric {row['key']}"
    if name in names() and "figure" in row:
        reproduction.alt_text(name, row["figure"])  # raises
    return ""


def published():
    found = {}
    for name in names():
        profile, metrics = reproduction._result(name, reproduction.RESULTS)
        if profile:
            found[name] = metrics
    return found


def test_each_row_of_the_ledger_points_somewhere():
    metrics = published()
    assert not [why for row in ledger.rows() if (why := points_nowhere(row, metrics))]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"notebook": "03_koh_laing"}, "no chapter 03_koh_laing"),
        ({"key": "pearson_loo/influence/cnn_topp"}, "no metric pearson_loo/influence/cnn_topp"),
    ],
)
def test_a_row_that_points_nowhere_is_caught(spoil, why):
    row = next(row for row in ledger.rows() if row["id"] == "kl-pearson-cnn")
    assert points_nowhere(row, published()) == ""
    assert why in points_nowhere(row | spoil, published())
    with pytest.raises(ValueError, match="no cell with alt text that draws 'nothing'"):
        points_nowhere(row | {"figure": "nothing"}, published())


def test_each_key_that_decides_a_claim_has_an_interval():
    claims = [row for row in ledger.rows() if row["kind"] == "claim" and "key" in row]
    metrics = published()
    for row in claims:
        found = metrics.get(row["notebook"], {}).get(row["key"])
        assert found is None or {"low", "high", "n", "over"} <= found.keys(), row["id"]


def test_every_verdict_on_the_page_is_a_word_of_the_list():
    lines = reproduction.PAGE.read_text("utf8").splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| **")]
    assert cells
    assert {row[-1] for row in cells} <= WORDS


def test_the_committed_page_is_what_the_ledger_and_the_results_say():
    same = reproduction.PAGE.read_text("utf8") == reproduction.page()
    assert same, "book/reproduction.md is out of date: make publish"


def test_the_ledger_holds_numbers_of_each_table_that_must_be_spot_checked():
    rows = ledger.rows()
    for paper, tables in {"clif": "3 5 6 8", "tracin_we": "1 3 4", "influence_tuning": "1 2 3"}.items():
        mine = [row for row in rows if row["paper"] == paper and row["kind"] == "number"]
        for table in tables.split():
            assert any(re.match(rf"Table {table}\b", row["source"]) for row in mine), f"{paper} table {table}"
    assert len(rows) >= 250


# ---- a small page whose every line is known

METRIC = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20, "unit": "r", "over": "seeds"}
ROWS = [
    {"kind": "number", "value": 0.48, "tolerance": 0.1, "unit": "r", "key": "r/a"},
    {"kind": "number", "value": 0.30, "tolerance": 0.1, "unit": "r", "key": "r/a"},
    {"kind": "number", "value": 0.48, "tolerance": 0.1, "unit": "r", "key": "r/a", "comparable": "no: other | data"},
    {"kind": "number", "value": 0.48, "tolerance": 0.1, "unit": "r", "key": "r/missing"},
    {"kind": "claim", "text": "a > b", "key": "r/a", "holds_if": "> 0"},
    {"kind": "claim", "text": "a < b", "key": "r/a", "holds_if": "< 0"},
    {"kind": "claim", "text": "a > half", "key": "r/a", "holds_if": "> 0.5"},
    {"kind": "claim", "text": "nobody asked"},
    {"kind": "figure", "shows": "a picture"},
]
VERDICTS = [*reproduction.NUMBER_WORDS, *reproduction.CLAIM_WORDS]


@pytest.fixture(name="small")
def _small(tmp_path):
    """The rows as those of a chapter that exists, with a result of the book profile."""
    name = names()[0]
    base = {"paper": "clif", "source": "Table 9", "notebook": name}
    (tmp_path / f"{name}.book.json").write_text(json.dumps({"metrics": {"r/a": METRIC}}))
    return [row | base | {"id": f"row-{i}"} for i, row in enumerate(ROWS)], tmp_path


def test_the_page_shows_paper_run_and_verdict_of_each_row(small):
    rows, folder = small
    text = reproduction.page(rows, folder)
    judged = [reproduction.judge(row, {"r/a": METRIC}) for row in rows if row["kind"] != "figure"]
    assert judged == VERDICTS
    assert "| **Table 9.** row-0 | 0.48 ± 0.1 r | 0.50 \\[0.40, 0.60\\], 20 seeds | within |" in text
    assert "*Not comparable: other \\| data.*" in text
    assert "| **Table 9.** a \\> b | 0.50 \\[0.40, 0.60\\], 20 seeds | holds |" in text
    assert "| Cross-loss influence functions | 1 | 1 | 1 | 1 | 4 |" in text  # numbers
    assert "judged by the book profile." in text
    assert "a picture\nOurs: *not run here*." in text


def test_without_the_book_profile_the_quick_one_judges_and_is_named(small):
    rows, folder = small
    (folder / f"{names()[0]}.book.json").rename(folder / f"{names()[0]}.quick.json")
    assert "judged by the quick profile." in reproduction.page(rows, folder)


def test_a_chapter_that_is_not_written_is_folded_away(small):
    rows, folder = small
    text = reproduction.page([rows[0] | {"notebook": "99_later"}], folder)
    assert ":::{dropdown} Chapter 99 later: 1 rows, not run here\n\n- number, Table 9. row-0: 0.48 r\n:::" in text


def test_each_figure_of_the_book_profile_is_drawn_by_a_cell_with_alt_text():
    for path in (reproduction.RESULTS / "figures").glob("*.svg"):
        name, figure, _ = path.name.split(".")
        assert (FOLDER / f"{name}.ipynb").exists()
        assert reproduction.alt_text(name, figure)
