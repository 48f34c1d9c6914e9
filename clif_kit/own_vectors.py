"""Reading a reader's word vectors without ever opening a pickle: word2vec and GloVe text files, word2vec's binary."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

_REFUSED = (".model", ".kv", ".pkl", ".pickle", ".npy", ".npz")


class BadVectors(ValueError):
    """Vectors or lists cannot be read; the message is one line that names the cause and the fix."""


def read_vectors(path: str | Path, words: Iterable[str]) -> dict[str, np.ndarray]:
    """The vectors of some words from a word2vec or GloVe text file, or a word2vec ``.bin``; the rest is passed over.

    Pickles run what is in them when they are opened, so gensim's own files (``.model``, ``.kv``) are refused.

    Raises:
        BadVectors: If it is a pickle, damaged, or of another format.
    """
    path, wanted = Path(path), set(words)
    with open(path, "rb") as stream:
        head = stream.read(2**16)
    fix = "in Python: vectors.save_word2vec_format('vectors.txt') (of a Word2Vec model: model.wv.save_word2vec_format)"
    if path.suffix.lower() in _REFUSED or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise BadVectors(f"{path}: is a pickle or an archive, which is never opened here; {fix}")
    first = head.split(b"\n", 1)[0].split()
    counted = len(first) == 2 and all(part.isdigit() for part in first)
    if not (counted or len(first) > 2):
        raise BadVectors(f"{path}: does not begin like a word2vec file; {fix}")
    width = int(first[1]) if counted else len(first) - 1
    binary = counted and _is_binary(head.split(b"\n", 1)[1])
    try:
        rows = _binary(path, int(first[0]), width) if binary else _text(path, counted)
        found = {}
        for word, values in rows:
            name = word.decode("utf-8", "replace")
            key = name if name in wanted else name.lower()
            if key in wanted and (key == name or key not in found):
                found[key] = values()
    except ValueError as error:
        raise BadVectors(f"{path}: damaged ({error}); {fix}") from None
    if bad := [word for word, vector in found.items() if vector.shape != (width,) or not np.isfinite(vector).all()]:
        raise BadVectors(f"{path}: the vector of {bad[0]!r} does not have {width} finite numbers")
    return found


def _is_binary(body: bytes) -> bool:
    """Whether what follows the first line is no line of words and numbers."""
    try:
        [float(part) for part in body.split(b"\n", 1)[0].split(b" ")[1:] if part.strip()]
        return False
    except ValueError:
        return True


def _text(path: Path, counted: bool) -> Iterator[tuple[bytes, Callable[[], np.ndarray]]]:
    with open(path, "rb") as stream:
        if counted:
            next(stream)
        for line in stream:
            word, _, rest = line.strip().partition(b" ")
            if rest:
                yield word, lambda rest=rest: np.array(rest.split(), dtype=np.float64)


def _binary(path: Path, count: int, width: int) -> Iterator[tuple[bytes, Callable[[], np.ndarray]]]:
    with open(path, "rb") as stream:
        stream.readline()
        for k in range(count):
            word = bytearray()
            while (letter := stream.read(1)) != b" ":
                if not letter or len(word) > 1000:
                    raise ValueError(f"it ends or breaks at vector {k + 1} of {count}")
                word += letter
            raw = stream.read(4 * width)
            if len(raw) < 4 * width:
                raise ValueError(f"it ends at vector {k + 1} of {count}")
            yield bytes(word).strip(), lambda raw=raw: np.frombuffer(raw, "<f4").astype(np.float64)
