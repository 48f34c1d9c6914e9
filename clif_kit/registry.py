"""Which data sets there are, where they come from, and whether the copy here is right.

``data_scripts/registry.toml`` made usable. A set is *embedded* (its files lie inside an installed package), *real* or
*paper* (fetched into the cache folder). Nothing here reads the network or writes; see :mod:`clif_kit.download`.
"""

import hashlib
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

ROOT = Path(os.environ.get("CLIF_ROOT") or Path(__file__).resolve().parents[1])
TIERS = ("embedded", "real", "paper")


class DataError(Exception):
    """Something is wrong with a data set; the message is one line that says what to do."""


class Missing(DataError, FileNotFoundError):
    """A data set is not on this machine."""


class Corrupt(DataError, ValueError):
    """A file is not the one that the registry names."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a set.

    Attributes:
        path: Relative to the set's folder, with forward slashes.
        digest: ``"sha256:..."`` or ``"md5:..."``; None where none was ever published.
        bytes: Size, where known.
        url: Where it is fetched from; None for files of packages and of archives.
    """

    path: str
    digest: str | None
    bytes: int | None = None
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One entry of the registry; the head of ``registry.toml`` explains the fields."""

    name: str
    title: str
    tier: str
    about: str
    page: str
    licence: str
    citation: str
    redistribute: str
    quote: str
    chapters: tuple[str, ...]
    files: tuple[File, ...]
    package: str | None = None
    manual: str | None = None
    archive: dict | None = None

    @property
    def bytes(self) -> int | None:
        """Size of all files, or None where one is unknown."""
        sizes = [self.archive["bytes"]] if self.archive else []
        sizes += [f.bytes for f in self.files if f.url or not self.archive]
        return None if None in sizes else sum(sizes)

    @property
    def folder(self) -> Path:
        """Where its files lie: inside the package, or in the cache. Raises Missing without the package."""
        if self.package is None:
            return data_dir() / self.name
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise Missing(f"data set '{self.name}' comes with the package {self.package}: install it as locked")
        return Path(next(iter(spec.submodule_search_locations)))


@cache
def registry() -> dict[str, DataSet]:
    """All data sets by name, as ``data_scripts/registry.toml`` lists them.

    >>> registry()["mnist_t10k"].tier
    'real'
    """
    folder = ROOT / "data_scripts"
    entries = tomllib.loads((folder / "registry.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, dict(entry), folder) for name, entry in entries.items()}


def find(name: str) -> DataSet:
    """The set called ``name``. Raises KeyError that lists the names."""
    if name not in registry():
        raise KeyError(f"no data set is called {name!r}; there are: {', '.join(registry())}")
    return registry()[name]


def data_dir() -> Path:
    """The cache folder: ``CLIF_DATA_DIR`` (relative: from the repository root) or ``_build/data``."""
    return ROOT / (os.environ.get("CLIF_DATA_DIR") or "_build/data")


def checked(name: str) -> dict[str, Path]:
    """The files of a set, each hashed now: registry path -> path on this machine.

    Raises:
        KeyError: If no set has that name.
        Missing: If it is not here; the message has the size and the command that gets it.
        Corrupt: If a file is not the one that the registry names.
    """
    data = find(name)
    for file in data.files:
        state, message = inspect(data, file)
        if state != "ok":
            raise (Missing if state == "missing" else Corrupt)(message)
    return {file.path: data.folder / file.path for file in data.files}


def inspect(data: DataSet, file: File) -> tuple[str, str]:
    """``ok``, ``missing`` or ``corrupt``, and one line that says so and what to do (empty when ok)."""
    path = data.folder / file.path
    if not path.is_file():
        return "missing", _missing(data)
    if file.digest is None:
        return "ok", ""
    kind, expected = file.digest.split(":")
    found = digest(path, kind)
    return ("ok", "") if found == expected else ("corrupt", mismatch(data, str(path), kind, expected, found))


def verify(name: str = "all") -> list[dict[str, str]]:
    """Hash every file of a set, a tier or (``all``) everything.

    Returns:
        One row a file: ``name``, ``file``, ``state`` (``ok``, ``missing`` or ``corrupt``), ``message``.
    """
    rows = []
    for data in select(name):
        for file in data.files:
            try:
                state, message = inspect(data, file)
            except Missing as error:  # the package is not installed
                state, message = "missing", str(error)
            rows.append({"name": data.name, "file": file.path, "state": state, "message": message})
    return rows


def list_sets() -> list[dict]:
    """One row a set: ``name``, ``title``, ``tier``, ``bytes``, ``size``, ``present``, ``licence``, ``chapters``.

    ``present`` looks for the files but does not hash them; :func:`verify` does.
    """
    return [
        {"name": d.name, "title": d.title, "tier": d.tier, "bytes": d.bytes, "size": size_text(d.bytes),
         "present": present(d), "licence": d.licence, "chapters": list(d.chapters)}
        for d in registry().values()
    ]  # fmt: skip


def select(name: str) -> list[DataSet]:
    """The set called ``name``, the sets of the tier ``name``, or (``all``) every set."""
    if name == "all" or name in TIERS:
        return [d for d in registry().values() if name in ("all", d.tier)]
    return [find(name)]


def present(data: DataSet) -> bool:
    """Whether all files of a set are here, right or not."""
    try:
        return all((data.folder / file.path).is_file() for file in data.files)
    except Missing:
        return False


def digest(path: Path, kind: str = "sha256") -> str:
    """Hash of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def mismatch(data: DataSet, where: str, kind: str, expected: str, found: str) -> str:
    """The one line about a file with a wrong hash."""
    fix = f"install {data.package} as locked" if data.package else f"run `clif data fetch {data.name}` again"
    return f"{where}: {kind} is {found}, expected {expected}: {fix}"


def size_text(size: int | None) -> str:
    """Bytes for people.

    >>> size_text(1857427), size_text(51), size_text(None)
    ('1.9 MB', '51 B', 'size unknown')
    """
    if size is None:
        return "size unknown"
    power = next(k for k in (3, 2, 1, 0) if size >= 1000**k or k == 0)
    return f"{size / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB')[power]}"


def _missing(data: DataSet) -> str:
    what = f"data set '{data.name}' ({data.title}, {size_text(data.bytes)}) is not here"
    if data.package:
        return f"{what}: install {data.package} as locked"
    if data.manual:
        return f"{what}: go to {data.page}, {data.manual} and save it as {data.folder / data.files[0].path}"
    return f"{what}: get it with `clif data fetch {data.name}`"


def _entry(name: str, entry: dict, folder: Path) -> DataSet:
    base = entry.pop("url", None)
    files = [_file(row, base) for row in entry.pop("files")]
    if "archive" in entry:
        sums = (folder / entry["archive"]["sums"]).read_text(encoding="utf-8").splitlines()
        files += [File(path=path, digest=f"sha256:{value}") for value, path in (line.split("  ", 1) for line in sums)]
    return DataSet(name=name, files=tuple(files), chapters=tuple(entry.pop("chapters")), **entry)


def _file(row: dict, base: str | None) -> File:
    path = PurePosixPath(row["path"])
    url = row.get("url") or (base and base.format(path=path, stem=path.with_suffix("")))
    known = next((f"{kind}:{row[kind]}" for kind in ("sha256", "md5") if kind in row), None)
    return File(path=str(path), digest=known, bytes=row.get("bytes"), url=url)
