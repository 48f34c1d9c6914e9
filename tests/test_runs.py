"""Parameters are refused before anything runs; a run leaves the same bytes twice; nothing stale is published."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clif_kit import fresh, notebooks, pages, runs
from clif_kit.notebooks import BadParameter

ROOT = Path(__file__).parents[1]
CELL = """# Defaults
n = 400           # examples, 1 to 10_000 (paper: 10_000)
rate = 0.5        # a share >= 0
name = "digits"
exact = True
limit = None      # or a path
sizes = (10, 20)
"""
KNOWN = notebooks.parse(CELL)


def write(path, *sources, tags=()):
    """A notebook of code cells under a title; `tags` are those of the first one."""
    cells = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# A title\n", "Text."]}]
    for i, source in enumerate(sources):
        metadata = {"tags": list(tags)} if i == 0 and tags else {}
        cell = {"cell_type": "code", "id": f"c{i}", "metadata": metadata, "source": source.splitlines(keepends=True)}
        cells.append({**cell, "outputs": [], "execution_count": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


# --- parameters ---


def test_parse_reads_names_values_and_comments():
    assert [(p.name, p.default) for p in KNOWN.values()] == [
        ("n", 400), ("rate", 0.5), ("name", "digits"), ("exact", True), ("limit", None), ("sizes", (10, 20)),
    ]  # fmt: skip
    assert KNOWN["n"].comment == "examples, 1 to 10_000 (paper: 10_000)"
    assert KNOWN["rate"].comment == "a share >= 0"  # papermill's own inspector loses this parameter


@pytest.mark.parametrize("source", ["n = 2\nhalf = n // 2", "import os", "a, b = 1, 2", "n: int = 3", "n = "])
def test_a_parameters_cell_of_anything_else_is_refused(tmp_path, source):
    with pytest.raises(BadParameter, match="must hold 'name = literal' lines only"):
        notebooks.parameters(write(tmp_path / "a.ipynb", source, tags=["parameters"]))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("n", "5", 5), ("n", "10_000", 10_000), ("n", -3, -3), ("rate", "1", 1.0), ("rate", "1e-4", 1e-4),
        ("rate", 2, 2.0), ("name", "5", "5"), ("name", "None", "None"), ("exact", "false", False),
        ("exact", "True", True),
        ("limit", "none", None), ("limit", "my/data.csv", "my/data.csv"), ("limit", "7", 7),
        ("sizes", "(1, 2)", (1, 2)), ("sizes", "[3]", (3,)), ("sizes", [4], (4,)),
    ],
)  # fmt: skip
def test_a_value_takes_the_type_of_the_default(name, given, expected):
    value = notebooks.check({name: given}, KNOWN, "demo")[name]
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "given", "expects"),
    [
        ("n", "five", "a whole number"), ("n", "5.0", "a whole number"), ("n", "True", "a whole number"),
        ("n", 2.5, "a whole number"), ("rate", "fast", "a number"), ("rate", True, "a number"),
        ("rate", None, "a number"), ("exact", "1", "True or False"), ("exact", "yes", "True or False"),
        ("name", 5, "a text"), ("sizes", "5", "a list"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_in_one_line(name, given, expects):
    with pytest.raises(BadParameter, match=rf"^{name} expects {expects} \(\w+\), such as .*; got .*$") as caught:
        notebooks.check({name: given}, KNOWN, "demo")
    assert "\n" not in str(caught.value)


def test_an_unknown_parameter_gets_a_hint_and_the_list():
    expected = r"unknown parameter 'nam' \(did you mean 'name'\?\); demo has: n, rate, name, exact, limit, sizes$"
    with pytest.raises(BadParameter, match=expected):
        notebooks.check({"nam": "x"}, KNOWN, "demo")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks in the place of ours."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    for name in ("01_one", "02_two", "03_two"):
        write(tmp_path / "notebooks" / f"{name}.ipynb", CELL, tags=["parameters"])
    (tmp_path / "notebooks" / "profiles").mkdir()
    return tmp_path / "notebooks"


def test_profile_values_are_checked_like_any_others(folder):
    profile = folder / "profiles" / "book.yml"
    profile.write_text("01_one: {n: 2000, rate: 1e-3}\n02_two:\n")  # YAML takes 1e-3 for a text
    assert notebooks.profile_values("01_one", "book") == {"n": 2000, "rate": 0.001}
    assert notebooks.profile_values("02_two", "book") == notebooks.profile_values("01_one", "quick") == {}
    for text, message in {
        "01_one: {m: 1}": r"unknown parameter 'm'.*; book.yml: 01_one has: n",
        "01_one: {n: many}": "n expects a whole number",
        "01_on: {n: 1}": r"names the notebook '01_on', which does not exist \(did you mean '01_one'\?\)",
    }.items():
        profile.write_text(text)
        with pytest.raises(BadParameter, match=message):
            notebooks.profile_values("01_one", "book")
    with pytest.raises(BadParameter, match=r"unknown profile 'bok' \(did you mean 'book'\?\)"):
        notebooks.profile_values("01_one", "bok")


def test_find_takes_a_path_a_name_or_its_beginning(folder):
    one = folder / "01_one.ipynb"
    assert [notebooks.find(text) for text in (str(one), "01_one", "01", "01_one.ipynb")] == [one] * 4
    for text in ("0", "nope", "04"):
        with pytest.raises(BadParameter, match=r"there are: 01_one, 02_two, 03_two"):
            notebooks.find(text)


# --- what a run depends on ---


def test_only_what_an_author_writes_makes_a_notebook_another_one(tmp_path):
    path = write(tmp_path / "a.ipynb", "x = 1", "print(x)")
    before, cells = fresh.source(path), json.loads(path.read_text())
    cells["cells"][2] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}], "id": "new"}
    cells["cells"][2]["metadata"] = {"execution": {"a": 1}, "tags": [], "papermill": {}}
    path.write_text(json.dumps(cells))
    assert fresh.source(path) == before
    cells["cells"][0]["source"] = ["# Another title"]
    path.write_text(json.dumps(cells))
    assert fresh.source(path) != before


def test_code_files_follows_imports_through_the_library(tmp_path):
    path = write(tmp_path / "a.ipynb", "%matplotlib inline\nfrom clif_kit import influence", "if True:\n    !ls")
    names = {file.stem for file in fresh.code_files(path)}
    assert {"__init__", "influence", "gradients"} <= names
    assert not {"cli", "runs", "store"} & names


def test_state_changes_with_source_values_code_and_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "PACKAGE", tmp_path / "clif_kit")
    monkeypatch.setattr(fresh, "ROOT", tmp_path)
    (tmp_path / "clif_kit").mkdir()
    for name, text in {"__init__": "", "store": "from clif_kit import deep", "deep": "a = 1", "other": ""}.items():
        (tmp_path / "clif_kit" / f"{name}.py").write_text(text)
    path = write(tmp_path / "notebooks" / "a.ipynb", "from clif_kit import store")
    state = fresh.state(path, "quick", {})
    assert state == fresh.state(path, "quick", {})
    (tmp_path / "clif_kit" / "other.py").write_text("b = 2")
    assert state == fresh.state(path, "quick", {})
    assert state != fresh.state(path, "quick", {"n": 1})
    (tmp_path / "clif_kit" / "deep.py").write_text("a = 2")
    changed = fresh.state(path, "quick", {})
    assert changed != state
    (tmp_path / "book").mkdir()
    book = fresh.state(path, "book", {})
    (tmp_path / "book" / "paper_values.yml").write_text("- {id: x, notebook: a}\n")
    assert fresh.state(path, "quick", {}) != changed
    assert fresh.state(path, "book", {}) == book  # else publishing a result would make it stale


# --- a run ---

BODY = """import json, os, sys, warnings
from pathlib import Path
assert sys.executable == PYTHON
assert os.environ["CLIF_PROFILE"] == "custom" and os.environ["OMP_NUM_THREADS"]
assert Path.cwd() == Path(FOLDER)
result = {"metrics": {"n/total": {"value": n}}, "data": {"digits": {"tier": "embedded", "sha256": "0"}}}
(Path(os.environ["CLIF_RUN_DIR"]) / "demo.metrics.json").write_text(json.dumps(result))
print("one"); print("two", flush=True); print(str(Path(ROOT) / "clif_kit"))
warnings.warn("careful", stacklevel=1)
object()"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One notebook, run twice with a parameter of one's own: the folders of the two runs."""
    work = tmp_path_factory.mktemp("runs")
    body = BODY
    for word, value in {"PYTHON": sys.executable, "FOLDER": str(work), "ROOT": str(ROOT)}.items():
        body = body.replace(word, repr(value))
    path = write(work / "demo.ipynb", "n = 1  # a count", body, tags=["parameters"])
    return [runs.run(path, given={"n": "7"}, out=work / name).parent for name in ("first", "second")]


def test_two_runs_leave_the_same_notebook(done):
    first, second = (folder / "demo.ipynb" for folder in done)
    assert first.read_bytes() == second.read_bytes()


def test_the_notebook_tells_neither_when_nor_where_it_ran(done):
    notebook = json.loads((done[0] / "demo.ipynb").read_text())
    cells = notebook["cells"]
    left = json.dumps([notebook["metadata"], [[cell["metadata"], cell.get("outputs")] for cell in cells]])
    for word in (str(ROOT), str(done[0].parent), str(Path.home()), "papermill", "start_time", "ipykernel_"):
        assert word not in left, word
    assert "".join(cells[2]["source"]) == "# This run's values (custom); the others are as above\nn = 7\n"
    stdout, stderr, value = cells[3]["outputs"]
    assert "".join(stdout["text"]) == "one\ntwo\nclif_kit\n"
    assert "".join(stderr["text"]).startswith("<cell>:9: UserWarning: careful")
    assert value["data"]["text/plain"] == ["<object at 0x...>"]
    assert [cell["id"][:3] for cell in cells] == ["00-", "01-", "02-", "03-"]


def test_the_result_follows_the_schema(done):
    result = json.loads((done[0] / "demo.json").read_text())
    assert list(result) == [
        "notebook", "profile", "commit", "state", "seconds", "cpu_seconds", "peak_rss_mb", "machine", "versions",
        "parameters", "data", "metrics",
    ]  # fmt: skip
    assert (result["notebook"], result["profile"], result["parameters"]) == ("demo", "custom", {"n": 7})
    assert result["metrics"] == {"n/total": {"value": 7}}
    assert result["data"] == {"digits": {"tier": "embedded", "sha256": "0"}}
    assert result["seconds"] > 0
    assert result["peak_rss_mb"] > 10
    assert os.uname().nodename not in json.dumps(result["machine"])


def test_memory_of_children_is_counted(tmp_path):
    size = 300
    child = f"import time; block = bytearray({size} * 2**20); time.sleep(2)"
    body = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    target = runs.run(write(tmp_path / "big.ipynb", body), out=tmp_path / "out")
    assert size < json.loads(target.read_text())["peak_rss_mb"] < 3 * size


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("for i in range(3):\n    1/0", ["FAILED in cell 2/2", "    |     1/0", "ZeroDivisionError: division by zero"]),
        ("import os; os._exit(3)", ["FAILED in cell 2/2", "Kernel died"]),
    ],
)
def test_a_failed_notebook_says_where_and_why_and_leaves_no_result(tmp_path, last, expected):
    path = write(tmp_path / "bad.ipynb", "print('before')", last)
    with pytest.raises(runs.NotebookFailed) as caught:
        runs.run(path, out=tmp_path / "out")
    for text in [*expected, "bad.partial.ipynb"]:
        assert text in str(caught.value)
    assert "before" in (tmp_path / "out" / "bad.partial.ipynb").read_text()
    assert not (tmp_path / "out" / "bad.json").exists()


def test_the_kernel_of_a_killed_run_dies(tmp_path):
    body = f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    body += "\ntime.sleep(60)"
    path = write(tmp_path / "slow.ipynb", body)
    command = [sys.executable, "-m", "clif_kit.runs", str(path), "--out", str(tmp_path / "out")]
    code = (
        "import os, pathlib, sys, time\n"
        "pid = pathlib.Path(sys.argv[1])\n"
        "while not (pid.exists() and pid.read_text()): time.sleep(0.05)\n"
        "os.kill(int(sys.argv[2]), 9)\n"
        "end = time.monotonic() + 10\n"
        "while pathlib.Path('/proc', pid.read_text()).exists() and time.monotonic() < end: time.sleep(0.05)\n"
        "sys.exit(time.monotonic() >= end)\n"
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        killer = [sys.executable, "-c", code, str(tmp_path / "pid"), str(process.pid)]
        assert subprocess.run(killer, check=False, timeout=60).returncode == 0
        assert process.wait() == -9


@pytest.mark.parametrize("arguments", [["-p", "m=5"], ["-p", "n=five"], ["-p", "n"], ["--profile", "huge"]])
def test_the_command_line_refuses_in_one_line_with_code_2(tmp_path, capsys, arguments):
    path = write(tmp_path / "demo.ipynb", "n = 1", tags=["parameters"])
    assert runs.main([str(path), *arguments]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


# --- pages ---


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A tiny repository with one notebook, and how to call a module of clif_kit on it."""
    root = tmp_path_factory.mktemp("checkout")
    write(root / "notebooks" / "01_one.ipynb", "n = 1", "print(n)", tags=["parameters"])
    (root / "requirements.lock").write_text("")
    (root / "_config.yml").write_text("title: T\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters: [{file: notebooks/01_one}]\n")
    (root / "book").mkdir()
    (root / "book" / "index.md").write_text("# Book\n")

    def call(module, *arguments):
        env = {**os.environ, "CLIF_ROOT": str(root)}
        command = [sys.executable, "-m", f"clif_kit.{module}", *arguments]
        return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)

    return root, call


def test_publish_refuses_missing_and_stale_runs_and_copies_fresh_ones(checkout):
    root, call = checkout
    missing = call("pages", "publish")
    assert missing.returncode == 1
    assert missing.stdout == "nothing published; 01_one: not run. Run again: make book\n"
    assert call("runs", "01").returncode == 0
    assert call("pages", "publish").stdout == "published (quick): 01_one\n"
    stored = json.loads((root / "notebooks" / "01_one.ipynb").read_text())
    assert stored["cells"][2]["outputs"][0]["text"] == ["1\n"]
    assert json.loads((root / "book" / "results" / "01_one.quick.json").read_text())["parameters"] == {"n": 1}
    assert call("pages", "publish").returncode == 0  # its own outputs do not make a notebook stale
    write(root / "notebooks" / "01_one.ipynb", "n = 2", "print(n)", tags=["parameters"])
    stale = call("pages", "publish")
    assert (stale.returncode, "changed since it ran" in stale.stdout) == (1, True)


def test_a_book_with_a_warning_is_not_built_and_not_the_second_time_either(checkout):
    root, call = checkout
    assert call("runs", "01").returncode == 0
    assert call("pages", "build").returncode == 0
    page = root / "_build" / "html" / "quick" / "notebooks" / "01_one.html"
    assert "A title" in page.read_text()
    (root / "book" / "index.md").write_text("# Book\n\n{ref}`nowhere`\n")
    for _ in range(2):  # Sphinx's cache would forget the warning
        broken = call("pages", "build")
        assert (broken.returncode, "nowhere" in broken.stdout) == (1, True)


def test_sync_makes_a_folder_equal_and_touches_nothing_else(tmp_path):
    for name in ("a", "b", "new/c"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    target = tmp_path / "to"
    for name, text in {"a": "a", "b": "old", "gone": "", "_build/cache": "kept"}.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    os.utime(target / "a", (1, 1))
    pages.sync({Path(name): tmp_path / "from" / name for name in ("a", "b", "new/c")}, target)
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {"a": "a", "b": "b", "new/c": "new/c", "_build/cache": "kept"}
    assert (target / "a").stat().st_mtime == 1


def test_the_snakefile_can_be_read_and_asks_for_every_notebook():
    if not notebooks.names():
        pytest.skip("no chapters yet")
    command = [sys.executable, "-m", "snakemake", "-n", "--forceall", "--nolock"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("rule notebook:") == len(notebooks.names())
