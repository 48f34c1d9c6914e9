"""Get data sets: from a mirror if one is named, else from their public origin; every file is checked before it counts.

``CLIF_DATA_MIRROR`` names a folder or a base address, laid out as ``<set>/<file>``, that is looked in first (a relative
folder is taken from the repository root). pooch downloads into a temporary file, compares the hash and renames, so the
cache never holds half a file. Reading a set (:func:`paths`) may copy it from a mirror folder, never from the network.
"""

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import requests

from clif_kit import registry
from clif_kit.registry import ROOT, Corrupt, DataError, DataSet, File, Missing

with warnings.catch_warnings():  # in a kernel without widgets its progress bar complains on import
    warnings.simplefilter("ignore")
    import pooch

MAX_UNPACKED = 4 * 2**30  # bytes; no set comes near
TIMEOUT = 30  # seconds without an answer

pooch.get_logger().setLevel("WARNING")


class Unreachable(DataError, ConnectionError):
    """A download failed."""


class UnsafeArchive(DataError, ValueError):
    """An archive wants to write outside its folder, or holds something else than plain files."""


def fetch(name: str = "all", *, progress: bool = False) -> list[Path]:
    """Get a set, the sets of a tier, or (``all``) the whole real tier. What is here and right is left alone.

    Args:
        name: Name of a set, ``"real"``, ``"paper"``, or ``"all"`` (the same as ``"real"``: the paper tier is large).
        progress: Draw a bar for each download.

    Returns:
        The files, checked.

    Raises:
        KeyError: If no set has that name.
        Missing: If a set cannot be fetched by a program; the message says what a person does.
        Corrupt: If a download has a wrong hash; it is not kept.
        Unreachable: If there is no connection or no such address.
    """
    chosen = sorted(registry.select("real" if name == "all" else name), key=lambda d: bool(d.manual))  # those fail last
    for data in chosen:
        _get(data, [_mirror(), ""], progress)
    return [path for data in chosen for path in registry.checked(data.name).values()]


def paths(name: str) -> dict[str, Path]:
    """The files of a set, each hashed now: registry path -> path on this machine.

    A set that is not in the cache but in the folder ``CLIF_DATA_MIRROR`` is copied from there. Raises as
    :func:`clif_kit.registry.checked`.
    """
    data, mirror = registry.find(name), _mirror()
    if mirror and Path(mirror).is_dir() and not registry.present(data):
        _get(data, [mirror], progress=False)
    return registry.checked(name)


def provenance(name: str | Path) -> dict[str, str]:
    """Tier and sha256 of what a run read, for ``report.record(data=...)``.

    A set of one file has that file's sha256; a set of many has that of the lines ``<digest>  <path>``, sorted by path.
    A reader's own file (a path) has the tier ``own``.

    >>> provenance("mnist_t10k")["tier"]
    'real'
    """
    if str(name) not in registry.registry() and Path(name).is_file():
        return {"tier": "own", "sha256": registry.digest(Path(name))}
    data = registry.find(str(name))
    values = {f.path: f.digest or "sha256:" + registry.digest(paths(data.name)[f.path]) for f in data.files}
    first = next(iter(values.values()))
    if len(values) == 1 and first.startswith("sha256:"):
        return {"tier": data.tier, "sha256": first.removeprefix("sha256:")}
    lines = "".join(f"{value.split(':')[1]}  {path}\n" for path, value in sorted(values.items()))
    return {"tier": data.tier, "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def extract(archive: Path, folder: Path, keep: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Unpack the plain files of a tar or zip archive whose names ``keep`` accepts; nothing is written if one is unsafe.

    Returns:
        Their names.

    Raises:
        UnsafeArchive: If a name is absolute or leaves ``folder``, if a member is a link or a device, if the whole is
            larger than ``MAX_UNPACKED``, or if the file is no archive.
    """
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            members = [m for m in _members(opened) if keep(m[0])]
            for name, plain, _, _ in members:
                if not plain or not _inside(folder, name):
                    raise UnsafeArchive(f"{archive.name}: member {name!r} is not a plain file inside its folder")
            if sum(size for *_, size, _ in members) > MAX_UNPACKED:
                raise UnsafeArchive(f"{archive.name}: unpacks to more than {MAX_UNPACKED} bytes")
            for *_, unpack in members:
                unpack(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UnsafeArchive(f"{archive.name}: cannot be unpacked: {str(error).splitlines()[0]}") from None
    return [name for name, *_ in members]


def _members(opened: tarfile.TarFile | zipfile.ZipFile) -> Iterator[tuple[str, bool, int, Callable[[Path], object]]]:
    """Name, whether it is a plain file, size, and what unpacks it; folders are made when needed."""
    if isinstance(opened, tarfile.TarFile):
        for m in opened:
            if not m.isdir():
                yield m.name, m.isreg(), m.size, lambda folder, m=m: opened.extract(m, folder, filter="data")
        return
    for z in opened.infolist():
        kind = stat.S_IFMT(z.external_attr >> 16)  # 0: made on a system without such bits
        if not z.is_dir():
            yield z.filename, kind in (0, stat.S_IFREG), z.file_size, lambda folder, z=z: opened.extract(z, folder)


def _inside(folder: Path, name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        return False
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _mirror() -> str:
    """The mirror as an address or an absolute folder; empty when none is named."""
    mirror = os.environ.get("CLIF_DATA_MIRROR", "")
    return mirror.rstrip("/") if "://" in mirror or not mirror else str(ROOT / mirror)


def _get(data: DataSet, mirrors: list[str], progress: bool) -> None:
    """Bring the files of a set into the cache, trying ``mirrors`` in order; ``""`` stands for the public origin."""
    if data.package:
        return
    wrong = [f for f in data.files if registry.inspect(data, f)[0] != "ok"]
    packed = [f for f in wrong if data.archive and f.url is None]
    for file in (f for f in wrong if f not in packed):
        _first(data, file.path, file.url, mirrors, lambda source, f=file: _retrieve(data, f, source, progress))
    if packed:
        archive = data.archive
        _first(data, archive["mirror"], archive["url"], mirrors, lambda source: _unpack(data, packed, source, progress))


def _first(data: DataSet, path: str, origin: str | None, mirrors: list[str], get: Callable[[str], None]) -> None:
    """Call ``get`` with each place that may hold a file until one has it. The origin must; a mirror may."""
    places = [f"{m}/{data.name}/{path}" if m else origin for m in dict.fromkeys(mirrors)]
    places = [place for place in places if place]
    for place in places:
        try:
            return get(place)
        except (FileNotFoundError, requests.RequestException) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            failure = f"cannot get {place} ({f'status {status}' if status else type(error).__name__})"
    if origin in places:
        fix = f"connect to the network, or let CLIF_DATA_MIRROR name a folder that holds {data.name}/{path}"
        raise Unreachable(f"{failure}: {fix}")
    if data.manual:
        raise Missing(registry.inspect(data, data.files[0])[1])


def _retrieve(data: DataSet, file: File, source: str, progress: bool) -> None:
    """One file into the cache, checked, under its own name or not at all."""
    target, get = data.folder / file.path, _downloader(source, progress)
    try:
        pooch.retrieve(source, file.digest, fname=target.name, path=target.parent, downloader=get)
    except ValueError as error:
        if "but got " not in str(error):
            raise
        kind, expected = file.digest.split(":")
        found = str(error).split("but got ")[1].split(".")[0]
        raise Corrupt(registry.mismatch(data, source, kind, expected, found)) from None


def _downloader(source: str, progress: bool) -> Callable:
    if "://" in source:
        return pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT)
    return lambda path, target, _: shutil.copyfile(path, target)


def _unpack(data: DataSet, files: list[File], source: str, progress: bool) -> None:
    """Those files of an archive into the cache, each checked; the archive itself is not kept."""
    names = {prefix + f.path: f for f in files for prefix in ("", data.archive["prefix"])}
    data.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data.folder, prefix=".unpack-") as scratch:
        get, inside = _downloader(source, progress), Path(scratch) / "files"
        archive = Path(pooch.retrieve(source, None, fname="archive", path=scratch, downloader=get))
        got = extract(archive, inside, keep=names.__contains__)
        for name in got:
            kind, expected = names[name].digest.split(":")
            if (found := registry.digest(inside / name, kind)) != expected:
                raise Corrupt(registry.mismatch(data, f"{source}, member {name}", kind, expected, found))
        for name in got:
            target = data.folder / names[name].path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(inside / name, target)
