"""The rules that a chapter keeps, checked on the file; nbval checks that it runs."""

import ast
import copy
import importlib.util
import itertools
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMAGES = {"image/png", "image/svg+xml", "image/jpeg"}
LOADED_TEX = re.compile(r"\\(boldsymbol|color|cancel|bcancel|textcolor|mathtools|require|bm|unicode|ce|bra|ket)\b")
HOME = re.compile(r"""["'](/(?!/)\w|~/|[A-Za-z]:\\)""")  # an absolute path inside a string

pytestmark = pytest.mark.skipif(not CHAPTERS, reason="no chapters yet")


def tags(cell):
    return cell.metadata.get("tags", [])


def figure(cell):
    return cell.metadata.get("mystnb", {}).get("figure", {})


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def images(cell):
    return [out for out in cell.get("outputs", []) if IMAGES & set(out.get("data", {}))]


def directives(notebook, name):
    """(argument, options) of each fenced directive of a name, e.g. ``exercise-start``."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.findall(rf"^(`{{3,}}|:{{3,}}){{{name}}}[ ]*(.*)\n((?::\w+:.*\n)*)", text, re.M)
    return [(argument.strip(), dict(re.findall(r"^:(\w+):[ ]*(.*)$", options, re.M))) for _, argument, options in found]


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return nbformat.read(request.param, 4)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_file_is_small_enough_to_review(path):
    assert path.stat().st_size <= 500_000


def test_parameters_are_plain_literals_that_are_read_and_never_reassigned(chapter):
    cells = code_cells(chapter)
    marked = [k for k, cell in enumerate(cells) if "parameters" in tags(cell)]
    assert len(marked) == 1, "exactly one cell is tagged `parameters`"
    source = cells[marked[0]].source
    names = []
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign), f"not `name = literal`: {ast.unparse(statement)}"
        assert len(statement.targets) == 1
        assert isinstance(statement.targets[0], ast.Name)
        ast.literal_eval(statement.value)  # raises on a derived value, which papermill would leave stale
        names.append(statement.targets[0].id)
        comment = source.splitlines()[statement.end_lineno - 1].partition("#")[2]
        assert comment.strip(), f"{names[-1]} lacks its comment (unit, range)"
        assert "=" not in comment, f"`=` in the comment of {names[-1]}: papermill would lose the parameter"
    used = [use for cell in cells[marked[0] + 1 :] for use in module_level(ast.parse(cell.source), frozenset())]
    loaded, stored = ({name for name, kind in used if kind is want} for want in (ast.Load, ast.Store))
    assert set(names) <= loaded, f"never read: {set(names) - loaded}"
    assert not set(names) & stored, f"reassigned: {set(names) & stored}"


def module_level(node, local):
    """(name, ast.Load or ast.Store) of the notebook's own variables: not of a function's arguments and locals."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        arguments = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        assigned = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        local = local | arguments | assigned
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        local = local | {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
    if isinstance(node, ast.Name) and node.id not in local:
        yield node.id, ast.Load if isinstance(node.ctx, ast.Load) else ast.Store
    for child in ast.iter_child_nodes(node):
        yield from module_level(child, local)


def test_cells_are_short_and_plain(chapter):
    for k, cell in enumerate(code_cells(chapter)):
        where = f"code cell {k}: {cell.source[:60]!r}"
        assert len(cell.source.splitlines()) <= 25, f"{where}: more than 25 lines"
        assert not re.search(r"^\s*[!%]", cell.source, re.M), f"{where}: shell or magic line"
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.ClassDef), f"{where}: a class belongs in clif_kit"
            assert not (isinstance(node, ast.Attribute) and node.attr == "environ"), f"{where}: os.environ"
            if isinstance(node, (ast.List, ast.Tuple)):
                floats = sum(isinstance(x, ast.Constant) and isinstance(x.value, float) for x in node.elts)
                assert floats < 5, f"{where}: pasted numbers; compute them or read them"
        assert not HOME.search(cell.source), f"{where}: absolute path"


def test_one_result_cell_at_least_is_compared_and_asserts(chapter):
    compared = [cell for cell in code_cells(chapter) if "nbval-check-output" in tags(cell)]
    assert any(isinstance(n, ast.Assert) for cell in compared for n in ast.walk(ast.parse(cell.source)))
    assert not any(images(cell) for cell in compared), "image bytes differ between machines"


def test_outputs_are_stored_in_order_and_clean(chapter):
    assert [cell.execution_count for cell in code_cells(chapter)] == list(range(1, len(code_cells(chapter)) + 1))
    for cell in code_cells(chapter):
        for out in cell.outputs:
            assert out.output_type != "error", cell.source[:80]
            assert out.get("name") != "stderr", f"stderr in the page: {out.text[:200]}"


def test_each_figure_has_caption_name_and_alt_text(chapter):
    for cell in code_cells(chapter):
        if not images(cell) and not figure(cell):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        where = f"{figure(cell).get('name')}: {cell.source[:60]!r}"
        assert len(images(cell)) == 1, f"{where}: one image a figure cell"
        assert figure(cell).get("caption"), f"{where}: no caption"
        assert figure(cell).get("name", "").startswith("fig-"), f"{where}: the name must start with fig-"
        assert len(alt) >= 20, f"{where}: alt text says what a reader who cannot see it needs"
        for text in (figure(cell)["caption"], alt):
            assert not re.search(r"\d\.\d", text), f"{where}: a number that a run could change: {text}"


def test_each_exercise_has_metadata_a_check_and_a_solution_that_ran(chapter):
    exercises = [options.get("label") for _, options in directives(chapter, "exercise-start")]
    solutions = [argument for argument, _ in directives(chapter, "solution-start")]
    assert sorted(exercises) == sorted(solutions)
    assert len(directives(chapter, "exercise-end")) == len(directives(chapter, "solution-end")) == len(exercises)
    of = lambda cell: cell.metadata.get("exercise", {})  # noqa: E731
    stated = {of(c)["id"]: of(c) for c in chapter.cells if c.cell_type == "markdown" and "points" in of(c)}
    assert sorted(stated) == sorted(exercises)
    assert all(of(c)["id"] in stated for c in chapter.cells if of(c))
    for label in exercises:
        assert stated[label]["points"] > 0
        assert stated[label]["minutes"] > 0
        own = [cell for cell in code_cells(chapter) if of(cell).get("id") == label]
        assert any("solution" in tags(cell) for cell in own), f"{label}: no cell tagged `solution`"
        assert any("check" in tags(cell) for cell in own), f"{label}: no cell tagged `check`"


def test_prose_has_one_title_and_only_tex_that_is_vendored(chapter):
    text = "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^(#+) ", re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.M | re.S), re.M)
    assert headings[0] == "#"
    assert headings.count("#") == 1
    assert all(len(b) <= len(a) + 1 for a, b in itertools.pairwise(headings)), "a heading level is skipped"
    assert not LOADED_TEX.search(text), f"MathJax would have to load a script for {LOADED_TEX.search(text)[0]}"
    assert "{glue" not in text


def test_labels_are_unique_over_the_book():
    found = {}
    for path in CHAPTERS:
        notebook = nbformat.read(path, 4)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        names = [figure(cell)["name"] for cell in notebook.cells if figure(cell).get("name")]
        names += re.findall(r"^\$\$ \(([\w-]+)\)", text, re.M) + re.findall(r"^:label: *(\S+)", text, re.M)
        for name in names:
            assert name not in found, f"{name} is in {found[name]} and in {path.stem}"
            found[name] = path.stem


def tiny():
    """A chapter of the least size that keeps all rules."""
    new, exercise = nbformat.v4, {"id": "ex-1"}
    cells = [
        new.new_markdown_cell("# Title\n\n## Part\n\n$$\nx\n$$ (eq-1)"),
        new.new_code_cell("n = 3  # examples, 1 or more", metadata={"tags": ["parameters"]}),
        new.new_code_cell("print(n)\nassert n > 0", metadata={"tags": ["nbval-check-output"]}),
        new.new_code_cell("draw()", metadata={"mystnb": {"figure": {"caption": "What it shows.", "name": "fig-1"},
                                                         "image": {"alt": "A line that rises from left to right."}}}),
        new.new_markdown_cell("```{exercise-start} One\n:label: ex-1\n```\nDo it.\n```{exercise-end}\n```",
                              metadata={"exercise": {**exercise, "points": 1, "minutes": 5}}),
        new.new_code_cell("check = print", metadata={"tags": ["check"], "exercise": exercise}),
        new.new_markdown_cell("```{solution-start} ex-1\n:class: dropdown\n```", metadata={"exercise": exercise}),
        new.new_code_cell("check(n)", metadata={"tags": ["solution"], "exercise": exercise}),
        new.new_markdown_cell("```{solution-end}\n```", metadata={"exercise": exercise}),
    ]  # fmt: skip
    notebook = new.new_notebook(cells=cells)
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
    notebook.cells[3].outputs = [new.new_output("display_data", {"image/png": "AAAA"})]
    return notebook


RULES = (
    test_parameters_are_plain_literals_that_are_read_and_never_reassigned,
    test_cells_are_short_and_plain,
    test_one_result_cell_at_least_is_compared_and_asserts,
    test_outputs_are_stored_in_order_and_clean,
    test_each_figure_has_caption_name_and_alt_text,
    test_each_exercise_has_metadata_a_check_and_a_solution_that_ran,
    test_prose_has_one_title_and_only_tex_that_is_vendored,
)
FAULTS = {  # (cell, text to replace, by what) on the tiny chapter
    "a derived parameter": (1, "n = 3", "m = 1  # one\nn = m * 2"),
    "an unread parameter": (1, "n = 3", "unread = 1  # one\nn = 3"),
    "a parameter that is only an argument's name": (2, "print(n)", "k = lambda odd: odd"),
    "a parameter without comment": (1, "  # examples, 1 or more", ""),
    "an equals sign in the comment": (1, "1 or more", "n >= 1"),
    "an annotated parameter": (1, "n = 3", "n: int = 3"),
    "a reassigned parameter": (2, "print(n)", "n = 4\nprint(n)"),
    "a class": (3, "draw()", "class A: pass"),
    "a shell line": (3, "draw()", "!pip install x"),
    "the environment": (3, "draw()", "import os; os.environ['A'] = 'b'"),
    "an absolute path": (3, "draw()", "open('/srv/data')"),
    "pasted numbers": (3, "draw()", "[1.0, 2.0, 3.0, 4.0, 5.0]"),
    "a long cell": (3, "draw()", "draw()\n" * 26),
    "no assert": (2, "assert n > 0", ""),
    "a second title": (0, "## Part", "# Part"),
    "a skipped level": (0, "## Part", "### Part"),
    "TeX that is not vendored": (0, "x", r"\boldsymbol x"),
    "a solution to nothing": (6, "ex-1", "ex-2"),
    "an exercise without end": (4, "{exercise-end}", "{note}"),
}


def broken_rules(notebook):
    """Names of the rules that a notebook breaks."""
    broken = []
    for rule in RULES:
        try:
            rule(copy.deepcopy(notebook))
        except (AssertionError, KeyError, SyntaxError, ValueError):
            broken.append(rule.__name__)
    return broken


def test_the_tiny_chapter_keeps_all_rules():
    assert broken_rules(tiny()) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_caught(fault):
    cell, old, new = FAULTS[fault]
    notebook = tiny()
    assert old in notebook.cells[cell].source
    notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)
    if fault == "a parameter that is only an argument's name":
        notebook.cells[1].source = "odd = 1  # one"
    assert broken_rules(notebook)


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        (1, lambda c: c.metadata.pop("tags")),
        (2, lambda c: c.update(execution_count=None)),
        (2, lambda c: c.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning"))),
        (3, lambda c: c.metadata["mystnb"].pop("image")),
        (3, lambda c: c.metadata["mystnb"]["figure"].pop("caption")),
        (3, lambda c: c.metadata["mystnb"]["figure"].update(caption="It reaches 0.97.")),
        (3, lambda c: c.metadata["mystnb"]["figure"].update(name="plot")),
        (3, lambda c: c.outputs.append(c.outputs[0])),
        (3, lambda c: c.outputs.clear()),
        (4, lambda c: c.metadata["exercise"].pop("minutes")),
        (5, lambda c: c.metadata.update(tags=[])),
        (7, lambda c: c.metadata.update(tags=[])),
    ],
)
def test_a_fault_in_metadata_or_outputs_is_caught(cell, change):
    notebook = tiny()
    change(notebook.cells[cell])
    assert broken_rules(notebook)


def test_numbers_are_compared_with_the_cells_tolerance_and_text_exactly():
    spec = importlib.util.spec_from_file_location("nbval_conftest", ROOT / "notebooks" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    line = conftest.tolerant("pearson  0.97 [0.95, 0.99]", {})
    assert line == "pearson 0.96 [0.95, 0.98]"
    assert line != "pearson 0.92 [0.95, 0.99]"
    assert conftest.tolerant("r 0.05", {}) == "r 0.03"  # no more than 0.02, though 0.05 - 0.03 is more in binary
    assert conftest.tolerant("r 0.0501", {}) != "r 0.03"
    assert line != "spearman 0.97 [0.95, 0.99]"
    assert line != "pearson 0.97 [0.95]"
    assert conftest.tolerant("r 0.97", {"nbval": {"atol": 0.1}}) == "r 0.90"
    assert conftest.tolerant("n 1000", {"nbval": {"atol": 0, "rtol": 0.01}}) == "n 1005"
    assert conftest.tolerant("r \u22120.01", {}) == "r 0.01"
    assert conftest.tolerant("r nan", {}) != "r 0.01"
    assert conftest.tolerant("p 1e-3", {"nbval": {"atol": 0}}) != "p 1.1e-3"
