"""Examples as TracIn sees them: at every checkpoint of a training run, block by block, on disk if wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from clif_kit.store import fingerprint, resumable
from clif_kit.text_models import LogitLoss, Params, TextModel, check, cross_entropy
from clif_kit.text_tokens import Tokens
from clif_kit.token_gradients import TokenGradients, concatenate, token_gradients

Arrays = dict[str, np.ndarray]


class Point(Protocol):
    """A checkpoint: :class:`clif_kit.train.Checkpoint`, or anything with these two."""

    params: Params
    lr: float


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Examples as TracIn looks at them: texts, labels and a loss, at every checkpoint of one training run.

    Training and query texts are two of these; the losses may differ. :meth:`of` makes the second from the first.

    Attributes:
        model: The classifier.
        checkpoints: Parameters and learning rates.
        tokens: n texts.
        y: n labels, or whatever else the loss takes.
        loss: ``loss(logits, y) -> (n,)``.
        chunk: Texts in a forward pass.
        block: Texts held at a time, and in a shard of the store.
        top: Keep only so many places of a text, those with the largest gradients. None: all.
        dtype: Of the stored gradients: "float32", or "float16" (scaled, so that small ones survive).
        store: A folder for the gradients. What is there is read, so a killed run goes on, and the next score is quick.
    """

    model: TextModel
    checkpoints: Sequence[Point]
    tokens: Tokens
    y: Tensor
    loss: LogitLoss = field(default_factory=lambda: cross_entropy)  # a plain default would become a method
    chunk: int = 32
    block: int = 1024
    top: int | None = None
    dtype: str = "float32"
    store: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ValueError("there is no checkpoint to trace: keep some in training (checkpoint_every)")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', got {self.dtype!r}")
        for point in self.checkpoints:
            check(self.model, point.params, self.tokens.ids, self.tokens.parts, self.y)

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, tokens: Tokens, y: Tensor, loss: LogitLoss | None = None) -> "Traced":
        """Other examples at the same checkpoints, not stored."""
        return replace(self, tokens=tokens, y=y, loss=loss or self.loss, store=None)

    def take(self, index: Sequence[int]) -> "Traced":
        """Some of the examples, not stored."""
        return self.of(self.tokens.take(index), self.y[index])

    def ranges(self) -> list[slice]:
        """The examples of each block."""
        return [slice(start, min(start + self.block, len(self))) for start in range(0, len(self), self.block)]

    def key(self, which: slice) -> str:
        """A name for the results of a block, that changes with its texts and labels."""
        part = self.tokens.take(which)
        return f"{which.start:07d}-{fingerprint(part.ids, part.parts, self.y[which])[:16]}"

    def reader(self, c: int) -> Callable[[slice], TokenGradients]:
        """A function from a block to its token gradients at checkpoint ``c``, which it reads or computes."""
        params = self.checkpoints[c].params
        if self.store is None:
            return lambda which: self._compute(params, which)
        once = resumable(self.store, self.model, params, self.loss, [self.top or 0, self.dtype])
        return lambda which: _unpack(once(self.key(which), lambda: _pack(self._compute(params, which), self.dtype)))

    def gradients(self, c: int) -> TokenGradients:
        """Token gradients of all examples at checkpoint ``c``: for queries, and for few training texts."""
        read = self.reader(c)
        return concatenate([read(which) for which in self.ranges()])

    def _compute(self, params: Params, which: slice) -> TokenGradients:
        part, y = self.tokens.take(which), self.y[which]
        found = token_gradients(self.model, params, part, y, self.loss, chunk=self.chunk)
        return found if self.top is None else found.top(self.top)


def _pack(gradients: TokenGradients, dtype: str) -> Arrays:
    """Arrays for a shard; each text's gradients are divided by their largest entry, which float16 needs."""
    counts = np.diff(gradients.offsets)
    largest = np.abs(gradients.values).max(1, initial=0)
    scale = np.maximum.reduceat(largest, gradients.offsets[:-1])  # every text has a token
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    values = gradients.values / np.repeat(scale, counts)[:, None]
    where = {"tokens": gradients.tokens.astype(np.int32), "places": gradients.places.astype(np.int32)}
    return {**where, "offsets": gradients.offsets, "scale": scale, "values": values.astype(dtype)}


def _unpack(arrays: Arrays) -> TokenGradients:
    scale = np.repeat(arrays["scale"], np.diff(arrays["offsets"]))[:, None]
    whole = {name: arrays[name].astype(np.int64) for name in ("tokens", "places")}
    return TokenGradients(**whole, offsets=arrays["offsets"], values=arrays["values"].astype(np.float32) * scale)
