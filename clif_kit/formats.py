"""File formats that need care: pickles that must not run anything, MNIST's arrays, the Theme Ontology's stories."""

import gzip
import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clif_kit.registry import Corrupt, DataError

MAX_PICKLE = MAX_IDX = 64 * 2**20  # bytes; the largest of ours has 1.6 and 7.8 MB
_BLOCK = re.compile(r"^(.+)\n=+[ \t]*\n", re.MULTILINE)  # a story's id, underlined
_FIELD = re.compile(r"^:: (.+)\n", re.MULTILINE)


class UnsafePickle(DataError, ValueError):
    """A pickle holds something else than plain values."""


class SafeUnpickler(pickle.Unpickler):
    """Reads lists, tuples, dicts, text and numbers; refuses every class and function, so nothing can run."""

    def find_class(self, module: str, name: str) -> None:
        """Refuse."""
        raise UnsafePickle(f"refused: this pickle asks for {module}.{name}; only plain values are read")


def load_pickle(path: Path) -> list:
    """A list from a pickle of plain values of at most ``MAX_PICKLE`` bytes. Raises UnsafePickle otherwise."""
    if path.stat().st_size > MAX_PICKLE:
        raise UnsafePickle(f"{path}: larger than {MAX_PICKLE} bytes")
    try:
        found = SafeUnpickler(io.BytesIO(path.read_bytes())).load()
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UnsafePickle(f"{path}: not a pickle of plain values: {error}") from None
    if not isinstance(found, list):
        raise UnsafePickle(f"{path}: holds a {type(found).__name__}, not a list")
    return found


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes from a gzipped IDX file (MNIST's format). Raises Corrupt when header and length disagree."""
    try:
        with gzip.open(path) as stream:
            raw = stream.read(MAX_IDX + 1)
    except (OSError, EOFError) as error:
        raise Corrupt(f"{path}: not a gzip file: {error}") from None
    rank = raw[3] if len(raw) > 3 and raw[:3] == b"\x00\x00\x08" else 0  # 8: unsigned bytes
    start = 4 + 4 * rank
    shape = tuple(np.frombuffer(raw[4:start], ">u4").tolist()) if rank and len(raw) >= start else ()
    if not shape or len(raw) - start != int(np.prod(shape, dtype=object)):
        raise Corrupt(f"{path}: not an IDX file of bytes, or of another length than its header says")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_stories(text: str) -> Iterator[dict[str, str]]:
    r"""The stories of one file that have a description; collections of stories are left out.

    >>> list(read_stories("a1\n==\n\n:: Title\nOne\n\n:: Date\n1999\n\n:: Description\nA ship\nsails.\n"))
    [{'id': 'a1', 'title': 'One', 'date': '1999', 'text': 'A ship sails.'}]
    """
    _, *blocks = _BLOCK.split(text)
    for story, body in zip(blocks[::2], blocks[1::2], strict=True):
        _, *parts = _FIELD.split(body)
        fields = {key.strip(): " ".join(value.split()) for key, value in zip(parts[::2], parts[1::2], strict=True)}
        if fields.get("Description") and not story.startswith("Collection:"):
            title, date = fields.get("Title", ""), fields.get("Date", "")
            yield {"id": story.strip(), "title": title, "date": date, "text": fields["Description"]}
