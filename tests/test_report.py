"""Oracles: bytes of figures from two processes, verdicts and refusals worked out by hand, the HTML read by a parser."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from clif_kit import ledger, report
from clif_kit.evaluate import Interval

GOOD = {"value": 0.6, "low": 0.4, "high": 0.7, "n": 20, "over": "seeds", "unit": "r"}
DATA = {"digits": {"tier": "embedded", "sha256": "0" * 64}}
ROWS = """
- {id: one, paper: p, notebook: 99_test, source: Table 1, kind: number, value: 0.55, tolerance: 0.1, key: r/ours}
- {id: two, paper: p, notebook: 99_test, source: Table 2, kind: number, value: 5, tolerance: 1, unit: s, key: t/ours,
   comparable: "no: a <small> model"}
- {id: three, paper: p, notebook: 99_test, source: S4, kind: claim, text: "a & b", key: gain/ours, holds_if: "> 0"}
- {id: four, paper: p, notebook: 99_test, source: S5, kind: claim, text: never run}
- {id: five, paper: p, notebook: 99_test, source: Figure 1, kind: figure, shows: dots}
- {id: six, paper: p, notebook: 98_other, source: Table 1, kind: number, value: 1, tolerance: 0, key: n/ours}
"""


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch):
    """A repository of its own with a small ledger; no run under way; nothing recorded."""
    monkeypatch.delenv("CLIF_RUN_DIR", raising=False)
    monkeypatch.delenv("CLIF_PROFILE", raising=False)
    monkeypatch.setattr(report, "_recorded", {})
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "book" / "paper_values.yml").write_text(ROWS)
    yield tmp_path
    plt.close("all")


def publish(book, metrics):
    (book / "book" / "results" / "99_test.book.json").write_text(json.dumps({"metrics": metrics}))


# ---- the schema


def test_an_interval_and_its_dictionary_are_the_same_metric():
    one = Interval(0.6, 0.4, 0.7, 20, "seeds", "r")
    assert ledger.check_metrics({"r/ours/what/data": one}) == {"r/ours/what/data": GOOD}


def test_numpy_numbers_become_plain_ones():
    metric = GOOD | {"value": np.float32(0.5), "n": np.int64(3), "values": (np.float64(1.0), 2)}
    assert json.loads(json.dumps(ledger.check_metrics({"r/ours": metric})))["r/ours"]["values"] == [1.0, 2]


@pytest.mark.parametrize("key", ["weat/bolukbasi/career/biased", "lds/tr_last/agnews_cnn/drop05", "a+b/c.d/e-f", "r/o"])
def test_keys_that_are_right(key):
    assert ledger.check_metrics({key: GOOD})


@pytest.mark.parametrize("key", ["pearson", "Pearson/ours", "a//b", "a/b/c/d/e", "a/b c", "/a/b", "a/b/"])
def test_keys_that_are_wrong(key):
    with pytest.raises(ValueError, match=r"quantity/method"):
        ledger.check_metrics({key: GOOD})


@pytest.mark.parametrize("key", ["p/gain/ours", "n/removed", "cost/seconds/ours/loo/digits"])
def test_plain_numbers_where_no_interval_is_needed(key):
    assert ledger.check_metrics({key: 3}) == {key: {"value": 3}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "value has nan"),
        ({"high": float("inf")}, "high has inf"),
        ({"n": True}, "n has True"),
        ({"value": "0.6"}, "value has 0.6"),
        ({"values": [1.0, float("nan")]}, "values has nan"),
        ({"low": 0.65}, "outside"),
        ({"high": 0.5}, "outside"),
        ({"mean": 0.6}, "unknown field mean"),
    ],
)
def test_a_broken_metric_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=rf"r/ours/loo: .*{message}"):
        ledger.check_metrics({"r/ours/loo": GOOD | change})


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=f"r/ours: no {field}"):
        ledger.check_metrics({"r/ours": {k: v for k, v in GOOD.items() if k != field}})


def test_a_plain_number_elsewhere_is_refused():
    with pytest.raises(ValueError, match="r/ours: a plain number"):
        ledger.check_metrics({"r/ours": 0.5})
    with pytest.raises(ValueError, match="n/x: value has nan"):
        ledger.check_metrics({"n/x": float("nan")})


def test_rounding_may_break_the_bounds_by_a_hair():
    assert ledger.check_metrics({"r/ours": GOOD | {"value": 0.3 - 0.1, "low": 0.2, "high": 0.2}})


# ---- record


def test_record_writes_only_inside_a_run(book, monkeypatch):
    report.record("99_test", {"r/ours": GOOD}, DATA)
    assert not list(book.rglob("*.metrics.json"))
    monkeypatch.setenv("CLIF_RUN_DIR", str(book / "run"))
    report.record("99_test", {"n/removed": 3}, {})
    written = json.loads((book / "run" / "99_test.metrics.json").read_text())
    assert written == {"notebook": "99_test", "metrics": {"r/ours": GOOD, "n/removed": {"value": 3}}, "data": DATA}
    assert [path.name for path in (book / "run").iterdir()] == ["99_test.metrics.json"]  # no .part left


@pytest.mark.parametrize("data", [{"digits": {"tier": "home", "sha256": ""}}, {"digits": {"tier": "real"}}])
def test_data_without_tier_or_checksum_is_refused(data):
    with pytest.raises(ValueError, match="digits"):
        report.record("99_test", {}, data)


@pytest.mark.parametrize("name", ["../x", "A", "", "a/b", "a.b"])
def test_names_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match="plain"):
        report.record(name, {}, {})
    with pytest.raises(ValueError, match="plain"):
        report.figure(plt.figure(), name, "99_test", data=["digits"])


def test_profile_is_one_of_four_words(monkeypatch):
    assert report.profile() == "quick"
    monkeypatch.setenv("CLIF_PROFILE", "fast")
    with pytest.raises(ValueError, match="fast"):
        report.profile()


# ---- figures

DRAW = """
import numpy as np
from matplotlib import pyplot as plt
from clif_kit import report
report.style()
fig, axes = plt.subplots(1, 2)
x = np.linspace(0, 1, 30)
report.scatter_identity(axes[0], x**2, x, label="squares")
axes[0].legend()
axes[1].plot(x, np.sin(9 * x)); axes[1].imshow(np.eye(4)); axes[1].set_title("$\\\\sigma^2$")
report.figure(fig, "dots", "99_test", data=["digits"])
"""


def test_two_processes_write_the_same_bytes(book):
    written = []
    for hash_seed in ("1", "2"):
        run = book / hash_seed
        env = os.environ | {"CLIF_RUN_DIR": str(run), "PYTHONHASHSEED": hash_seed, "MPLBACKEND": "agg"}
        subprocess.run([sys.executable, "-c", DRAW], check=True, env=env, cwd=Path(__file__).parents[1])
        written.append((run / "figures" / "99_test.dots.svg").read_bytes())
    assert written[0] == written[1]
    assert b"<title>99_test: dots</title>" in written[0]
    assert b"<dc:date>" not in written[0]


def test_figure_says_profile_and_data_once_and_is_shown_once(monkeypatch):
    monkeypatch.setenv("CLIF_PROFILE", "book")
    fig, _ = plt.subplots()
    assert report.figure(report.figure(fig, "a", "99_test", data=DATA), "a", "99_test", data=DATA) is fig
    assert [text.get_text() for text in fig.texts] == ["99_test · profile: book · data: digits"]
    assert not plt.get_fignums()  # closed: the cell's value is the only picture


def test_figure_knows_the_recorded_data_and_refuses_to_guess():
    with pytest.raises(ValueError, match="which data"):
        report.figure(plt.figure(), "a", "99_test")
    report.record("99_test", {}, DATA)
    assert "data: digits" in report.figure(plt.figure(), "a", "99_test").texts[0].get_text()


def test_figure_writes_only_inside_a_run(book, monkeypatch):
    report.figure(plt.figure(), "a", "99_test", data=DATA)
    assert not list(book.rglob("*.svg"))
    monkeypatch.setenv("CLIF_RUN_DIR", str(book / "run"))
    report.figure(plt.figure(), "a", "99_test", data=DATA)
    assert [path.name for path in (book / "run" / "figures").iterdir()] == ["99_test.a.svg"]


def luminance(color):
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_neighbouring_colours_differ_in_grey_and_markers_and_lines_differ_always():
    levels = [luminance(color) for color in report.COLORS.values()]
    assert min(abs(a - b) for a, b in pairwise(levels)) > 0.07
    assert len(set(report.MARKERS)) == len(set(report.LINES)) == len(report.COLORS)


def test_style_sets_colours_and_lines_together():
    with mpl.rc_context():
        report.style()
        _, ax = plt.subplots()
        a, b = (ax.plot([0, 1])[0] for _ in range(2))
        assert (a.get_color(), b.get_color()) == ("#0072B2", "#E69F00")
        assert a.get_linestyle() != b.get_linestyle()


def test_scatter_identity_puts_the_truth_on_x_and_grows():
    _, ax = plt.subplots()
    report.scatter_identity(ax, [1.0, 2.0], [3.0, 4.0], label="a")
    report.scatter_identity(ax, [-5.0, 0.0], [0.0, 9.0], label="b")
    first, second = ax.collections
    np.testing.assert_array_equal(first.get_offsets(), [[3, 1], [4, 2]])
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] <= -5
    assert ax.get_xlim()[1] >= 9
    assert first.get_facecolor().tolist() != second.get_facecolor().tolist()
    assert len(ax.lines) == 1  # one diagonal
    assert "actual" in ax.get_xlabel()


def test_image_strip_shares_one_grey_scale():
    fig = report.image_strip(np.arange(12).reshape(3, 2, 2), ["a", "b", "c"])
    assert {ax.images[0].get_clim() for ax in fig.axes} == {(0, 11)}
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "c"]


# ---- numbers as text


def test_numbers_are_rounded_the_same_way_everywhere():
    values = [0.875421, -0.2, 1e-9, 12345.6, 2.5e7, 0.0, np.float64(-0.0), np.int64(7), 99.999, None, "x"]
    texts = ["0.88", "-0.20", "1.0e-09", "12346", "2.5e+07", "0", "0", "7", "100.00", "–", "x"]
    assert [report.fmt(v) for v in values] == texts
    nearly = GOOD | {"value": 0.6 + 1e-9, "low": 0.4 - 1e-9}
    assert report.table({"r/ours": nearly}) == report.table({"r/ours": GOOD}) == "r/ours  0.60 [0.40, 0.70], 20 seeds"


# ---- the ledger and its verdicts


@pytest.mark.parametrize(
    ("row", "result", "word"),
    [
        ({"kind": "number", "value": 0.5, "tolerance": 0.1}, {"value": 0.6}, "within"),  # the bound belongs to it
        ({"kind": "number", "value": 0.5, "tolerance": 0.1}, {"value": 0.61}, "differs"),
        ({"kind": "number", "value": 0.5, "tolerance": 0.1, "comparable": "no: x"}, {"value": 0.5}, "not comparable"),
        ({"kind": "number", "value": 0.5, "tolerance": 0.1, "comparable": "no: x"}, None, "not run here"),
        ({"kind": "claim", "holds_if": "> 0"}, {"low": 0.1, "high": 0.2}, "holds"),
        ({"kind": "claim", "holds_if": "> 0"}, {"low": -0.2, "high": -0.1}, "does not hold"),
        ({"kind": "claim", "holds_if": "> 0"}, {"low": -0.2, "high": 0.1}, "undecided"),
        ({"kind": "claim", "holds_if": "> 0"}, {"low": 0.0, "high": 0.1}, "undecided"),
        ({"kind": "claim", "holds_if": "> 0.5"}, {"low": 0.4, "high": 0.9}, "undecided"),
        ({"kind": "claim", "holds_if": "> -0.10"}, {"low": -0.05, "high": 0.9}, "holds"),
        ({"kind": "claim", "holds_if": "< 0.2"}, {"low": 0.0, "high": 0.1}, "holds"),
        ({"kind": "claim", "holds_if": "< 0.2"}, {"low": 0.3, "high": 0.4}, "does not hold"),
        ({"kind": "claim", "holds_if": "< 0.5"}, {"low": 0.1, "high": 0.9}, "undecided"),
        ({"kind": "claim", "holds_if": "> 0", "comparable": "no: x"}, {"low": 0.1, "high": 0.2}, "holds"),
        ({"kind": "claim"}, None, "not run here"),
    ],
)
def test_verdict(row, result, word):
    assert ledger.verdict(row, result) == word


def test_a_figure_is_not_judged():
    with pytest.raises(ValueError, match="shown"):
        ledger.verdict({"kind": "figure"}, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{id: a, kind: number, paper: p, source: s, notebook: n, value: 1, key: a/b}", "a: no tolerance"),
        ("{id: a, kind: guess, paper: p, source: s, notebook: n}", "kind is 'guess'"),
        ("{id: a, kind: claim, paper: p, source: s, notebook: n}", "a: no text"),
        ("{id: a, kind: claim, paper: p, source: s, notebook: n, text: t, key: a/b}", "holds_if"),
        ("{id: a, kind: claim, paper: p, source: s, notebook: n, text: t, key: a/b, holds_if: 0}", "holds_if"),
        ("{id: a, kind: claim, paper: p, source: s, notebook: n, text: t, key: p/b, holds_if: '< 1'}", "interval"),
        ("{id: a, kind: claim, paper: p, source: s, notebook: n, text: t, key: A/b, holds_if: '> 0'}", "metric key"),
        ("{id: a, kind: figure, paper: p, source: s, notebook: n, holds: x}", "unknown field holds"),
        ("{id: a, kind: figure, paper: p, source: s, notebook: n, comparable: maybe}", "comparable"),
        ("{id: one, kind: figure, paper: p, source: s, notebook: n}", "two rows"),
    ],
)
def test_a_broken_row_is_refused_by_name(book, row, message):
    (book / "book" / "paper_values.yml").write_text(ROWS + "- " + row)
    with pytest.raises(ValueError, match=message):
        report.ledger()


def test_the_books_own_ledger_is_sound():
    path = Path(__file__).parents[1] / "book" / "paper_values.yml"
    rows = {row["id"]: row for row in ledger.rows(path)}
    assert rows["kl-pearson-cnn"]["value"] == 0.8754
    recalled = [r["id"] for r in rows.values() if r["paper"] == "koh_liang" and r["kind"] == "number"]
    assert recalled == ["kl-pearson-cnn"]  # their other numbers are remembered, not read: claims only


# ---- the box


def words(box):
    return [row[3] for row in box.rows]


def test_box_without_any_run():
    assert words(report.box("99_test")) == ["not run here"] * 4


def test_box_judges_this_run_until_the_book_profile_is_published(book):
    metrics = {"r/ours": GOOD, "t/ours": GOOD, "gain/ours": GOOD | {"low": -1}}
    report.record("99_test", metrics, DATA)
    box = report.box("99_test")
    assert words(box) == ["within", "not comparable", "undecided", "not run here"]
    assert "this run" in box.caption
    publish(book, {"r/ours": GOOD | {"value": 0.9, "high": 0.95}, "gain/ours": GOOD})
    box = report.box("99_test")
    assert words(box) == ["differs", "not run here", "holds", "not run here"]
    assert box.rows[0][1:3] == ("0.60 [0.40, 0.70], 20 seeds", "0.90 [0.40, 0.95], 20 seeds")
    assert "book profile's" in box.caption


def test_under_the_book_profile_this_run_is_the_book_profile(book, monkeypatch):
    publish(book, {"gain/ours": GOOD})
    monkeypatch.setenv("CLIF_PROFILE", "book")
    report.record("99_test", {"gain/ours": GOOD | {"low": -1}}, DATA)
    box = report.box("99_test")
    assert words(box)[2] == "undecided"
    assert box.rows[2][1] == box.rows[2][2]


def test_box_without_rows_says_so():
    assert "no published number" in repr(report.box("97_none"))
    assert report.box("97_none")._repr_html_().startswith("<p>")


class Cells(HTMLParser):
    """Collects tags, the attributes of headers, and the text of each table row."""

    def __init__(self):
        super().__init__()
        self.tags, self.scopes, self.rows = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "th":
            self.scopes.append(dict(attrs).get("scope"))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if data.strip() and self.rows:
            self.rows[-1].append(data)


def test_box_is_an_accessible_table_with_escaped_text():
    report.record("99_test", {"gain/ours": GOOD | {"over": "<b>seeds</b>"}}, DATA)
    page = report.box("99_test")._repr_html_()
    cells = Cells()
    cells.feed(page)
    assert cells.rows[0] == ["paper", "here now", "book profile", "verdict"]
    assert cells.scopes == ["col"] * 4 + ["row"] * 4
    assert {"caption", "thead", "tbody"} <= set(cells.tags)
    assert not {"small", "b"} & set(cells.tags)
    assert "not comparable: a &lt;small&gt; model" in page
    assert "a &amp; b" in page
    assert cells.rows[2][0] == "Table 2: two = 5 ± 1 s (not comparable: a <small> model)"


def test_box_as_text_is_stable():
    report.record("99_test", {"r/ours": GOOD | {"value": 0.6 + 1e-9}}, DATA)
    text = repr(report.box("99_test"))
    assert "Table 1: one = 0.55 ± 0.1\n    here now: 0.60 [0.40, 0.70], 20 seeds\n    book profile: –" in text
