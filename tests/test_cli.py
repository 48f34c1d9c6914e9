"""The `clif` command: answers a newcomer can use, and mistakes that cost one line."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from clif_kit import cli, notebooks

CELLS = [
    {"id": "a", "cell_type": "markdown", "metadata": {}, "source": ["Badges\n", "# The title of the chapter"]},
    {
        "id": "b", "cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None,
        "source": ["n_train = 400  # examples, 5 to [10_000]\n", "damping = 0.01  # 0 or more"],
    },
    {
        "id": "c", "cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None,
        "source": ["print(n_train)"],
    },
]  # fmt: skip
RESULT = {
    "notebook": "03_demo", "profile": "book", "seconds": 412.4, "peak_rss_mb": 610,
    "metrics": {
        "pearson/exact": {"value": 0.991, "low": 0.98, "high": 0.995, "n": 40, "over": "points", "unit": "correlation"},
        "cost/solves": {"value": 3},
    },
}  # fmt: skip


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with one chapter and one published result."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "results").mkdir()
    content = json.dumps({"cells": CELLS, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (tmp_path / "notebooks" / "03_demo.ipynb").write_text(content)
    (tmp_path / "results" / "03_demo.book.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    return tmp_path


def clif(*arguments):
    done = CliRunner().invoke(cli.app, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def complaint(monkeypatch, capsys, *arguments):
    """What main() says and its exit code, for a call that a user got wrong."""
    monkeypatch.setattr(sys, "argv", ["clif", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return caught.value.code, err


@pytest.mark.usefixtures("book")
def test_list_shows_title_parameters_comments_and_cost():
    shown = " ".join(clif("list").split())
    assert "03_demo The title of the chapter book: 412 s, 610 MB" in shown
    assert "n_train 400 examples, 5 to [10_000] damping 0.01 0 or more" in shown


@pytest.mark.usefixtures("book")
def test_results_shows_intervals_and_what_was_resampled():
    shown = " ".join(clif("results", "03").split())
    assert "pearson/exact 0.991 0.98 to 0.995 40 points correlation" in shown
    assert "cost/solves 3" in shown
    assert "pearson" not in clif("results", "--profile", "book", "03").replace("pearson/exact", "")


@pytest.mark.usefixtures("book")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "03_demo", "-p", "n_tran=5"], r"unknown parameter 'n_tran' \(did you mean 'n_train'\?\).* damping"),
        (["run", "03_demo", "-p", "n_train=five"], r"n_train expects a whole number \(int\), such as 400; got 'five'"),
        (["run", "04_demo"], r"no notebook '04_demo' \(did you mean '03_demo'\?\); there are: 03_demo"),
        (["run", "03", "-p", "n_train"], "-p needs name=value"),
        (["run", "03", "--profile", "tiny"], "unknown profile 'tiny'"),
        (["list", "9"], "no notebook '9'"),
        (["results", "--profile", "paper"], "no such results"),
        (["results", "--profile", "x"], "unknown profile 'x'"),
        (["data", "fetch", "nope"], "no data set is called 'nope'; there are: .*digits"),
        (["data", "verify", "nope"], "no data set is called 'nope'"),
    ],
)
def test_a_mistake_costs_one_line_and_code_2(monkeypatch, capsys, arguments, says):
    code, line = complaint(monkeypatch, capsys, *arguments)
    assert code == 2
    assert re.match(f"clif: {says}", line)


def test_run_dry_prints_the_plan_and_runs_nothing(book):
    shown = clif("run", "03", "-p", "n_train=9", "--dry")
    assert "03_demo (custom, from quick)" in shown
    assert "n_train = 9  # examples" in shown
    assert not (book / "_build").exists()


@pytest.mark.usefixtures("book")
def test_run_writes_the_notebook_and_its_result(tmp_path):
    shown = clif("run", "03", "-p", "n_train=9", "--out", str(tmp_path / "mine"))
    assert "mine/03_demo.json" in shown
    assert json.loads((tmp_path / "mine" / "03_demo.json").read_text())["parameters"] == {"n_train": 9, "damping": 0.01}
    assert '"9\\n"' in (tmp_path / "mine" / "03_demo.ipynb").read_text()


def test_a_failing_notebook_is_reported_with_code_1(book, tmp_path):
    path = book / "notebooks" / "03_demo.ipynb"
    path.write_text(path.read_text().replace("print(n_train)", "1/0"))
    done = CliRunner().invoke(cli.app, ["run", "03", "--out", str(tmp_path / "mine")])
    assert done.exit_code == 1
    assert "ZeroDivisionError" in done.output


def test_data_list_and_verify():
    shown = clif("data", "list")
    assert re.search(r"digits +embedded +\S+ kB +yes", shown)
    assert clif("data", "verify", "digits").endswith("0 missing, 0 corrupt\n")


@pytest.mark.parametrize("command", ["", "run", "list", "results", "data", "data list", "data fetch", "data verify"])
def test_every_command_explains_itself(command):
    shown = clif(*command.split(), "--help")
    assert len(shown.split()) > 30


def test_help_needs_no_heavy_import():
    code = "import sys; from clif_kit import cli; sys.exit(bool({'torch', 'numpy', 'papermill'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(notebooks.PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
