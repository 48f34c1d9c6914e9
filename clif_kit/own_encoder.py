"""Texts as fixed features: the mean over tokens of what a frozen encoder says, so that a score splits into tokens.

An encoder is anything with ``mark`` (what its features depend on), ``features(texts) -> (n, d)`` and
``parts(text) -> (words, (T, d))`` whose mean over T is the text's features. Here are two: any encoder of Hugging Face
(MiniLM from its pip package by default, offline), and fixed random vectors of words, which need nothing and are fast.
"""

import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from clif_kit import datasets
from clif_kit.store import Store, fingerprint
from clif_kit.text_tokens import alike, encode, read_tokenizer

Words = tuple[list[str], np.ndarray]
FIRST = 64  # texts of the first chunk: small, so that the estimate comes soon


class BadModel(ValueError):
    """No encoder can be made of this; the message is one line that names the cause and the fix."""


class Encoder(Protocol):
    """What :func:`features_of` and the explanations need."""

    mark: str

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Features ``(n, d)``, float32."""

    def parts(self, text: str) -> Words:
        """The tokens of a text as words, and the rows ``(T, d)`` whose mean its features are."""


class WordVectors:
    """The mean of fixed random vectors of the words (lower case, digits too): no download, 20,000 texts a second.

    >>> words, rows = WordVectors(4).parts("A ship, a ship")
    >>> words, rows.shape, bool((rows[0] == rows[2]).all())
    (['a', 'ship', 'a', 'ship'], (4, 4), True)
    """

    def __init__(self, width: int = 192) -> None:
        self.width, self.mark = width, f"words {width}"

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Means of the vectors."""
        return np.stack([self.parts(text)[1].mean(0) for text in texts]).astype(np.float32)

    def parts(self, text: str) -> Words:
        """Words and their vectors; a text without a word is one empty word with zeros."""
        words = re.findall(r"\w+", text.lower()) or [""]
        return words, np.stack([_vector(word, self.width) for word in words])


@lru_cache(maxsize=200_000)
def _vector(word: str, width: int) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(word.encode("utf-8", "surrogatepass")))
    return rng.standard_normal(width).astype(np.float32) * bool(word)


class TransformerEncoder:
    """The mean of the last hidden states of a frozen transformer, its own start and end tokens included.

    Args:
        source: A local folder, a name on the Hugging Face hub, or None for MiniLM.
        max_length: Tokens of a text that are read.

    Raises:
        BadModel: If there is no such encoder, with the fix.
    """

    def __init__(self, source: str | os.PathLike | None = None, *, max_length: int = 128) -> None:
        self.tokenizer, self.model = _read(source)
        room = getattr(self.model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, room - 2 if room < max_length + 2 else max_length)
        self.mark = f"{_weights_mark(self.model)} {self.max_length}"

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Means of the hidden states, texts of like length together."""
        tokens = encode(self.tokenizer, [text or " " for text in texts], max_length=self.max_length)
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for rows in alike(tokens.parts, 32):
            part = tokens.take(rows)
            real = (part.parts > 0).unsqueeze(-1)
            found[rows] = ((self._states(part.ids, real[..., 0]) * real).sum(1) / real.sum(1)).numpy()
        return found

    def parts(self, text: str) -> Words:
        """The pieces of a text and their hidden states; each carries what the text around it says, too."""
        tokens = encode(self.tokenizer, [text or " "], max_length=self.max_length)
        return tokens.words(0), self._states(tokens.ids, tokens.parts > 0)[0].numpy()

    @torch.no_grad()
    def _states(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state


def read_encoder(name: str | os.PathLike | None, *, max_length: int = 128) -> Encoder:
    """``minilm`` or None, ``words``, or a folder or name of a Hugging Face encoder."""
    if str(name) == "words":
        return WordVectors()
    return TransformerEncoder(None if name is None or str(name) == "minilm" else name, max_length=max_length)


def whole_words(pieces: Sequence[str], values: np.ndarray) -> list[tuple[str, float]]:
    """Pieces of words joined (``##`` of BERT's kind, a leading blank's mark of the others), their values added.

    >>> whole_words(["[CLS]", "play", "##ing"], np.array([1.0, 2.0, 3.0]))
    [('[CLS]', 1.0), ('playing', 5.0)]
    """
    blanks = any(piece.startswith(("Ġ", "▁")) for piece in pieces)
    words: list[list] = []
    for piece, value in zip(pieces, np.asarray(values, dtype=float).tolist(), strict=True):
        special = re.fullmatch(r"\[\w+\]|</?\w+>", piece)
        goes_on = not special and (piece.startswith("##") or (blanks and not piece.startswith(("Ġ", "▁"))))
        if goes_on and words and not words[-1][2]:
            words[-1][0] += piece.removeprefix("##")
            words[-1][1] += value
        else:
            words.append([piece.lstrip("Ġ▁") or piece, value, bool(special)])
    return [(word, value) for word, value, _ in words]


# ---- all features, in chunks that survive a kill


def features_of(
    encoder: Encoder, texts: Sequence[str], folder: str | Path | None = None, *, chunk: int = 512,
    say: Callable[[float, int], bool | None] | None = None, progress: bool = False,
) -> np.ndarray | None:  # fmt: skip
    """Features of all texts ``(n, d)``, each different text once, chunk by chunk.

    Args:
        encoder: Makes them.
        texts: n texts.
        folder: Where finished chunks are kept, so that a run that was killed goes on where it was. None: nowhere.
        chunk: Texts a shard; the first has ``FIRST`` at most.
        say: Called after the first chunk that had to be made, with the seconds that the rest will take and the number
            of chunks that were there already; False stops before the rest.
        progress: Draw a bar on the error stream.

    Returns:
        The features, or None when ``say`` stopped.
    """
    unique = list(dict.fromkeys(texts))
    ends = [0, *range(min(FIRST, chunk), len(unique), chunk), len(unique)]
    pieces = [unique[start:end] for start, end in pairwise(ends)]
    store, found, todo = _store(encoder, unique, folder, chunk), {}, []
    for k in range(len(pieces)):
        if store is not None and store.has(f"features-{k:05d}"):
            found[k] = store.load(f"features-{k:05d}")["x"]
        else:
            todo.append(k)
    there = len(found)
    for count, k in enumerate(tqdm(todo, disable=not progress, unit="chunk", desc="features")):
        if count == 0 and say is not None:
            encoder.features(pieces[k][:1])  # what is read or made once does not count
        began = time.perf_counter()
        found[k] = encoder.features(pieces[k])
        each, began = (time.perf_counter() - began) / len(pieces[k]), time.perf_counter()
        if store is not None:
            store.save(f"features-{k:05d}", {"x": found[k]})
        kept, left = time.perf_counter() - began, todo[1:]
        rest = each * sum(len(pieces[j]) for j in left) + kept * len(left)
        if count == 0 and say is not None and say(rest, there) is False:
            return None
    if not todo and say is not None and say(0.0, there) is False:
        return None
    place = {text: i for i, text in enumerate(unique)}
    return np.concatenate([found[k] for k in range(len(pieces))])[[place[text] for text in texts]]


def _store(encoder: Encoder, texts: Sequence[str], folder: str | Path | None, chunk: int) -> Store | None:
    if folder is None:
        return None
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    mark = fingerprint("own features", encoder.mark, digest.hexdigest(), *sorted({min(FIRST, chunk), chunk}))
    return Store(Path(folder) / mark[:16], fingerprint=mark)


def _read(source: str | os.PathLike | None) -> tuple[Any, Any]:
    from transformers import AutoModel
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = read_tokenizer(source)
        where = datasets.minilm() if source is None else source
        model = AutoModel.from_pretrained(where, dtype=torch.float32, attn_implementation="eager").eval()
    except Exception as error:
        fix = "give a folder with config.json, tokenizer.json and model.safetensors, a name that the hub can be asked "
        fix += "for, or leave it out: MiniLM needs no network"
        raise BadModel(f"no encoder from {str(source)!r} ({_first_line(error)}); {fix}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    if getattr(model.config, "is_encoder_decoder", False):
        raise BadModel(f"{source!r} is an encoder with a decoder; name an encoder such as BERT's or RoBERTa's family")
    return tokenizer, model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _weights_mark(model: torch.nn.Module) -> str:
    """A digest of the weights: another model in the same folder is another encoder."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().view(-1)[:4096].numpy().tobytes())
    return digest.hexdigest()[:16]
