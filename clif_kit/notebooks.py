"""What a notebook says about itself, above all its parameters; and a form of it that is the same on every machine.

Standard library and PyYAML only, so that Snakemake and ``clif list`` read it in a moment. Runs nothing; see ``runs``.
"""

import ast
import difflib
import hashlib
import io
import json
import os
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(os.environ.get("CLIF_ROOT") or Path(__file__).parents[1]).resolve()
FOLDER = ROOT / "notebooks"
PACKAGE = Path(__file__).parent
PROFILES = ("quick", "book", "paper")
TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a list"}
NOISE = ("execution", "papermill", "ExecuteTime", "collapsed", "scrolled")  # cell metadata that runs and editors leave


class BadParameter(ValueError):
    """A parameter, profile or notebook that does not exist, or a value of the wrong type; the message is one line."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: ``name = default  # comment``."""

    name: str
    default: Any
    comment: str


# --- which notebooks there are ---


def names() -> list[str]:
    """The notebooks, in the order of the book."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def find(text: str) -> Path:
    """The notebook that is meant by a path, a name (``03_koh_liang``) or the beginning of one (``03``).

    Raises:
        BadParameter: If there is none, or more than one.
    """
    if text.endswith(".ipynb") and Path(text).exists():
        return Path(text).resolve()
    stem, known = Path(text).stem, names()
    hits = [stem] if stem in known else [name for name in known if name.startswith(stem)]
    if len(hits) == 1:
        return FOLDER / f"{hits[0]}.ipynb"
    raise BadParameter(f"no notebook {text!r}{_did_you_mean(stem, known)}; there are: {', '.join(known) or 'none'}")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def read(path: Path) -> list[dict]:
    """The cells of a notebook file, each source as one string.

    Raises:
        BadParameter: If the file is not a notebook.
    """
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise BadParameter(f"{path.name} is not a notebook: {error}") from None
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def tags(cell: Mapping[str, Any]) -> list[str]:
    """The tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def kept(cell: Mapping[str, Any]) -> dict:
    """The metadata of a cell that an author gave it: what a run or an editor left is not there."""
    return {key: value for key, value in cell.get("metadata", {}).items() if key not in NOISE and value != []}


# --- parameters ---


def parameters(path: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, read from its cell tagged ``parameters`` without running it.

    Raises:
        BadParameter: If the cell holds anything but ``name = literal`` lines, or there are two such cells.
    """
    sources = [cell["source"] for cell in read(path) if "parameters" in tags(cell)]
    if len(sources) > 1:
        raise BadParameter(f"{path.name} has {len(sources)} cells tagged 'parameters'")
    try:
        return parse(sources[0]) if sources else {}
    except (SyntaxError, ValueError) as error:
        raise BadParameter(f"{path.name}: the parameters cell must hold 'name = literal' lines only: {error}") from None


def parse(source: str) -> dict[str, Parameter]:
    """Read a parameters cell.

    >>> parse("n_train = 400  # examples, 50 to 10_000")["n_train"]
    Parameter(name='n_train', default=400, comment='examples, 50 to 10_000')
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise ValueError(f"line {node.lineno} is something else")
        name = node.targets[0].id
        found[name] = Parameter(name, ast.literal_eval(node.value), comments.get(node.end_lineno, ""))
    return found


def check(given: Mapping[str, Any], known: Mapping[str, Parameter], where: str) -> dict[str, Any]:
    r"""The given values in the types of the defaults. Text (from a command line) is converted.

    Args:
        given: Name to value.
        known: From :func:`parameters`.
        where: The notebook's name, for messages.

    Raises:
        BadParameter: Naming the parameter, if it is unknown or its value has the wrong type.

    >>> check({"n": "5", "rate": 1}, parse("n = 400\nrate = 0.5"), "demo")
    {'n': 5, 'rate': 1.0}
    """
    for name in given:
        if name not in known:
            hint = _did_you_mean(name, known)
            raise BadParameter(f"unknown parameter {name!r}{hint}; {where} has: {', '.join(known) or 'none'}")
    return {name: _convert(known[name], value) for name, value in given.items()}


def _convert(parameter: Parameter, value: Any) -> Any:
    """The value in the type of the parameter's default; a default of None takes any literal or text."""
    kind = type(parameter.default)
    if isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
        except (SyntaxError, ValueError):
            if kind is type(None):
                return value
    if kind is type(None):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (tuple, list) and isinstance(value, list | tuple):
        return kind(value)
    if type(value) is not kind:
        wanted = TYPES.get(kind, kind.__name__)
        example = f"({kind.__name__}), such as {parameter.default!r}"
        raise BadParameter(f"{parameter.name} expects {wanted} {example}; got {value!r}")
    return value


def profile_values(name: str, profile: str) -> dict[str, Any]:
    """The values that a profile sets for a notebook; none for ``quick``, whose values are the defaults.

    Raises:
        BadParameter: If the profile names an unknown notebook or parameter, or a value has the wrong type.
    """
    if profile not in PROFILES:
        hint = _did_you_mean(profile, PROFILES)
        raise BadParameter(f"unknown profile {profile!r}{hint}; there are: {', '.join(PROFILES)}")
    path = FOLDER / "profiles" / f"{profile}.yml"
    table = (yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}
    for notebook in table:
        if notebook not in names():
            hint = _did_you_mean(notebook, names())
            raise BadParameter(f"{path.name} names the notebook {notebook!r}, which does not exist{hint}")
    if not table.get(name):
        return {}
    return check(table[name], parameters(FOLDER / f"{name}.ipynb"), f"{path.name}: {name}")


# --- the same bytes on every machine ---


def normalise(nb: Any, note: str = "") -> None:
    """Take everything out of an executed notebook that differs from run to run or tells where it ran. In place.

    Timing and papermill's metadata go; cell ids become position and content; paths in the repository become relative.

    Args:
        nb: A notebook node of nbformat.
        note: First line of the cell with a run's own parameter values, if it has one.
    """
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
    }
    for i, cell in enumerate(nb.cells):
        cell.metadata = kept(cell)
        if "injected-parameters" in tags(cell):
            cell.source = re.sub(r"\A# Parameters\n", f"# {note}\n", cell.source)
        cell.id = f"{i:02d}-{digest(cell.cell_type, cell.source)[:8]}"
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
            for output in cell.outputs:
                _clean_output(output)
    nb.nbformat, nb.nbformat_minor = 4, 5


def _merged(outputs: list) -> list:
    """Neighbouring pieces of one stream as one: how a kernel cuts its prints depends on the machine's load."""
    merged: list = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == last.get("output_type") == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            merged.append(output)
    return merged


def _clean_output(output: Any) -> None:
    output.get("metadata", {}).pop("papermill", None)
    if "text" in output:
        output["text"] = clean_text(output["text"])
    if "traceback" in output:
        output["traceback"] = [clean_text(line) for line in output["traceback"]]
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(content, str):
            output["data"][kind] = clean_text(content)


def clean_text(text: str) -> str:
    """Text without absolute paths, kernel temporary files and memory addresses.

    >>> clean_text("/tmp/ipykernel_7/123.py:2: UserWarning: <object at 0x7f00aa>")
    '<cell>:2: UserWarning: <object at 0x...>'
    """
    text = re.sub(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for folder in dict.fromkeys((str(ROOT), os.path.realpath(ROOT))):
        text = text.replace(folder + os.sep, "").replace(folder, ".")
    text = re.sub(r"\S*/(site-packages/)", r"\1", text)
    text = text.replace(str(Path.home()) + os.sep, "~/")
    return re.sub(r" at 0x[0-9a-f]+>", " at 0x...>", text)


def digest(*things: Any) -> str:
    """Twelve hex digits that change when one of the things does."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]
