"""What a run depends on, so that nothing old is shown as new and nothing that is still right runs again.

A run is fresh when its :func:`state` is what it was: the notebook's source, its values, the clif_kit modules it
imports directly or not, the lock, and what its box shows of the ledger. Snakemake uses the parts, ``publish`` it all.
"""

import ast
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clif_kit.notebooks import PACKAGE, ROOT, BadParameter, digest, kept, read


def imported(source: str) -> set[str]:
    """The clif_kit modules that a piece of Python imports.

    >>> sorted(imported("from clif_kit import report, watchdog as w; import clif_kit.store"))
    ['report', 'store', 'watchdog']
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("clif_kit.")}
        elif isinstance(node, ast.ImportFrom):
            module = f"clif_kit.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            if module == "clif_kit":
                found |= {a.name for a in node.names}
            elif module.startswith("clif_kit."):
                found.add(module.split(".")[1])
    return {name for name in found if (PACKAGE / f"{name}.py").exists()}


def code_files(path: Path) -> list[Path]:
    """The files of clif_kit that a notebook imports, directly or not, and the registry of data if one of them reads it.

    Raises:
        BadParameter: If a code cell is not Python.
    """
    python = "\n".join(cell["source"] for cell in read(path) if cell["cell_type"] == "code")
    try:
        todo = imported(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", python))
    except SyntaxError as error:
        raise BadParameter(f"{path.name} is not Python: {error}") from None
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= imported((PACKAGE / f"{module}.py").read_text("utf-8")) - seen
    files = [PACKAGE / "__init__.py", *(PACKAGE / f"{module}.py" for module in sorted(seen))]
    registry = ROOT / "data_scripts" / "registry.toml"
    return files + [registry] * ("registry" in seen and registry.exists())


def source(path: Path) -> str:
    """Digest of what an author writes in a notebook. Outputs and ids do not count: publishing them changes nothing."""
    return digest(*((cell["cell_type"], cell["source"], kept(cell)) for cell in read(path)))


def judged_by(name: str, profile: str) -> str:
    """Digest of what the box of a quick run shows besides its own numbers: ledger rows, the book profile's result.

    Other profiles do not depend on it, or publishing one would make it stale.
    """
    ledger, result = ROOT / "book" / "paper_values.yml", ROOT / "book" / "results" / f"{name}.book.json"
    if profile != "quick":
        return ""
    rows = (yaml.safe_load(ledger.read_text("utf-8")) or []) if ledger.exists() else []
    mine = [row for row in rows if row.get("notebook") == name]
    return digest(mine, result.read_text("utf-8") if result.exists() else "")


def state(path: Path, profile: str, values: Mapping[str, Any]) -> str:
    """Digest of everything that decides a run's result; equal means still fresh."""
    files = [file for file in (*code_files(path), ROOT / "requirements.lock") if file.exists()]
    contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return digest(source(path), dict(values), contents, judged_by(path.stem, profile))
