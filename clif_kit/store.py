"""Results on disk that survive a kill: one file a shard, written whole or not at all, checked when read.

A store is a folder that belongs to one fingerprint (of code, settings and data). It resumes work; it is not a cache
that guesses: other settings in the same folder are an error, and nothing is ever deleted.
"""

import dataclasses
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

_SUFFIX = ".safetensors"


class StoreMismatch(ValueError):
    """The folder holds the results of other code, settings or data."""


class StoreLocked(RuntimeError):
    """Another process writes to the folder."""


class StoreFull(OSError):
    """No space left; what was stored before is intact."""


def fingerprint(*things: object) -> str:
    """Return a SHA-256 of things that decide a result: the same in every process, on every machine.

    Functions and classes count by source text (functions also by defaults and by what they close over; a function or
    module that they merely call and a global that they read do not, so pass them too); modules by the text of their
    file; dataclasses by name and fields; dicts regardless of order; lists and tuples alike; arrays and tensors by
    dtype, shape and bytes; ``torch.nn.Module`` by class, printed structure and weights.

    Raises:
        TypeError: For anything else, since its ``repr`` may hold an address; for what contains itself.
        ValueError: For a function whose source cannot be had, as with ``python -c``.

    >>> fingerprint({"a": 1, "b": 2.5}) == fingerprint({"b": 2.5, "a": 1})
    True
    >>> fingerprint(np.zeros(3)) == fingerprint(np.zeros((3, 1)))
    False
    """
    try:
        return _digest(things).hex()
    except RecursionError:
        raise TypeError("cannot fingerprint what contains itself (a nested function that calls itself?)") from None


def _digest(thing: object) -> bytes:
    """Hash of a tag and of the hashes of the parts, so that no two different things run into one another."""
    tag, parts = _describe(thing)
    return hashlib.sha256(
        tag.encode() + b"\0" + b"".join(p if isinstance(p, bytes) else _digest(p) for p in parts)
    ).digest()


def _describe(thing: object) -> tuple[str, list]:
    """What kind of thing this is, and its parts: things again, or bytes of a known length."""
    match thing:
        case None | bool() | int() | float() | str():
            return json.dumps(thing), []
        case np.generic():
            return _describe(thing.item())
        case bytes():
            return "bytes", [hashlib.sha256(thing).digest()]
        case torch.Tensor():
            raw = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return f"array {str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}", [raw.tobytes()]
        case np.ndarray() if thing.dtype.kind in "biufcSU":
            return f"array {thing.dtype.name} {list(thing.shape)}", [np.ascontiguousarray(thing).tobytes()]
        case list() | tuple():
            return "list", list(map(_digest, thing))  # of one length each: bytes as they are would run together
        case set() | frozenset():
            return "set", sorted(map(_digest, thing))
        case Mapping():
            return "dict", sorted(_digest(k) + _digest(v) for k, v in thing.items())
        case functools.partial():
            return "partial", [thing.func, thing.args, thing.keywords]
        case torch.nn.Module():
            weights = {k: v for k, v in thing.state_dict().items() if not v.is_meta}  # a skeleton on "meta" has none
            return "module", [type(thing), repr(thing), weights]
        case types.ModuleType():
            return "file", [hashlib.sha256(Path(thing.__file__).read_bytes()).digest()]
        case types.MethodType():
            return "method", [thing.__func__, thing.__self__]
        case types.FunctionType():
            closure = [cell.cell_contents for cell in thing.__closure__ or ()]
            return "function", [_source(thing), thing.__defaults__, thing.__kwdefaults__, closure]
        case type() if thing.__module__.partition(".")[0] in ("torch", "numpy", "builtins"):
            return f"class {thing.__module__}.{thing.__qualname__}", []
        case type():
            return "class", [thing.__qualname__, _source(thing)]
        case types.BuiltinFunctionType() | torch.dtype() | torch.device():
            return f"builtin {thing!s}" if not callable(thing) else f"builtin {thing.__qualname__}", []
        case _ if dataclasses.is_dataclass(thing):
            return "dataclass", [
                type(thing).__qualname__,
                {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)},
            ]
    raise TypeError(
        f"cannot fingerprint a {type(thing).__qualname__}; pass numbers, text, arrays, functions or dataclasses"
    )


def _source(thing: object) -> str:
    try:
        return inspect.cleandoc(inspect.getsource(thing))
    except (OSError, TypeError) as error:
        raise ValueError(f"no source text for {thing.__qualname__}; define it in a file or a notebook") from error


class Store:
    """Named groups of arrays in one folder, each written atomically.

    A shard is a ``.safetensors`` file with a checksum. It is written to ``.part``, flushed and renamed, so that a kill
    or a full disk leaves the last good state. A shard that is damaged or came from elsewhere counts as missing, with
    one warning.

    Args:
        folder: Made if need be. It belongs to ``fingerprint`` from then on.
        fingerprint: What the results depend on, see :func:`fingerprint`.

    Raises:
        StoreMismatch: If the folder belongs to another fingerprint.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp(), fingerprint=fingerprint("settings"))
    >>> store.save("first", {"theta": np.arange(3.0)})
    >>> store.has("first"), store.keys(), store.load("first")["theta"]
    (True, ['first'], array([0., 1., 2.]))
    """

    def __init__(self, folder: str | os.PathLike, *, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        self._warned: set[str] = set()
        self._claim()

    def _claim(self) -> None:
        label = self.folder / "fingerprint"
        if not label.exists():
            self._write(label, self.fingerprint.encode())
        if (found := label.read_text()) != self.fingerprint:
            raise StoreMismatch(
                f"{self.folder} holds results of {found[:12]}, but code, settings or data are now "
                f"{self.fingerprint[:12]}: use another folder, or delete this one to start again"
            )

    def has(self, key: str) -> bool:
        """Whether the shard is there and sound."""
        return self._read(key) is not None

    def load(self, key: str) -> dict[str, np.ndarray]:
        """Return the arrays of a shard.

        Raises:
            KeyError: If the shard is missing or damaged.
        """
        arrays = self._read(key)
        if arrays is None:
            raise KeyError(f"no sound shard {key!r} in {self.folder}")
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a shard, whole or not at all, over an older one of that name.

        Raises:
            StoreFull: If no space is left.
            StoreLocked: If another process writes to the folder.
        """
        arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        label = {"fingerprint": self.fingerprint, "sha256": fingerprint(key, arrays)}
        with self.lock():
            self._write(self._path(key), to_safetensors(arrays, metadata=label))
        self._warned.discard(key)

    def keys(self) -> list[str]:
        """Names of the shards in the folder, sorted; damaged ones too."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"*{_SUFFIX}"))

    @contextmanager
    def lock(self, wait: float = 0) -> Iterator[None]:
        """Hold the folder for this process; may be nested.

        Args:
            wait: Seconds to wait for another process to let go.

        Raises:
            StoreLocked: If another process holds it.
        """
        try:
            self._lock.acquire(timeout=wait)
        except filelock.Timeout:
            raise StoreLocked(f"{self.folder} is being written by another process: wait for it or stop it") from None
        try:
            yield
        finally:
            self._lock.release()

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[\w-][\w.-]*", key):
            raise ValueError(f"a key is made of letters, digits, '_', '-' and '.', got {key!r}")
        return self.folder / f"{key}{_SUFFIX}"

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "np") as file:
                label, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return self._damaged(key)
        sound = label.get("fingerprint") == self.fingerprint and label.get("sha256") == fingerprint(key, arrays)
        return arrays if sound else self._damaged(key)

    def _damaged(self, key: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(
                f"shard {key!r} in {self.folder} is damaged and counts as missing", RuntimeWarning, stacklevel=4
            )

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(path.name + ".part")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreFull(
                error.errno,
                f"no space left for {path.name} ({len(content)} bytes); what is stored is intact: run again with more",
            ) from None


def resumable(
    folder: str | os.PathLike | None, *depends: object
) -> Callable[[str, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]:
    """Return ``once(key, compute)``: what is in the store is read, what is not is computed and stored.

    For a long run of a few dozen steps that may be killed. Each fingerprint of ``depends`` has a folder of its own
    inside ``folder``, so other parameters start afresh and disturb nothing.

    Args:
        folder: Where the stores lie. None stores nothing: ``once`` then computes each time.
        depends: All that decides the result, see :func:`fingerprint`: parameters, data, functions, modules they call.

    >>> import tempfile
    >>> once = resumable(tempfile.mkdtemp(), "settings")
    >>> once("a", lambda: {"x": np.arange(2)}), once("a", lambda: {"x": np.arange(9)})
    ({'x': array([0, 1])}, {'x': array([0, 1])})
    """
    if folder is None:
        return lambda _, compute: {name: np.asarray(value) for name, value in compute().items()}
    mark = fingerprint(*depends)
    store = Store(Path(folder) / mark[:16], fingerprint=mark)

    def once(key: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        if not store.has(key):
            store.save(key, compute())
        return store.load(key)

    return once
