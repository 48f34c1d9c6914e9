"""Texts as rows of a table of word vectors: reading a tokenizer, encoding with its real special tokens, padding.

Any tokenizer of the ``tokenizers`` library will do. The special tokens are those that it *adds* to a text (``[CLS]``
and ``[SEP]``, or ``<s>`` and ``</s>``); a text that merely says "[SEP]" does not get one.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from clif_kit import datasets


@dataclass(frozen=True)
class Tokens:
    """Encoded texts, padded on the right to a common length.

    Attributes:
        ids: Row of the table of word vectors at each place, int64, ``(n, length)``; 0 at padding.
        parts: 1 in the first text and 2 in the second of a pair, each with its special tokens; 0 at padding.
        special: Rows of the special tokens.
        names: The token of each row.
    """

    ids: Tensor
    parts: Tensor
    special: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Sequence[int] | Tensor | slice) -> "Tokens":
        """The chosen texts, in that order, padded no further than they need."""
        parts = self.parts[index]
        length = int((parts > 0).sum(1).max()) if len(parts) else 0
        return replace(self, ids=self.ids[index][:, :length], parts=parts[:, :length])

    def to(self, device: torch.device | str) -> "Tokens":
        """The same texts on a device."""
        return replace(self, ids=self.ids.to(device), parts=self.parts.to(device))

    def words(self, i: int) -> list[str]:
        """The tokens of one text, special ones included, padding left out."""
        return [self.names[row] for row in self.ids[i][self.parts[i] > 0].tolist()]


def read_tokenizer(source: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of a local folder (``tokenizer.json``), of any Hugging Face model, or of MiniLM (None, offline).

    Raises:
        ValueError: If there is none.
    """
    file = Path(datasets.minilm() if source is None else source) / "tokenizer.json"
    if file.exists():
        return Tokenizer.from_file(str(file))
    from transformers import AutoTokenizer  # two seconds to import, and only other sources need it

    try:
        found = AutoTokenizer.from_pretrained(source)
        return found.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"no tokenizer for {str(source)!r}: no folder has one, nor is it a model to be had") from error


def byte_pair_tokenizer(texts: Sequence[str], size: int = 2000) -> Tokenizer:
    """Train a tokenizer of RoBERTa's kind: byte pairs; ``<s> a </s>`` for a text, ``<s> a </s></s> b </s>`` for a pair.

    Args:
        texts: What to learn the pieces from.
        size: Rows at most, the 256 bytes and five special tokens among them.

    >>> byte_pair_tokenizer(["so it goes", "so"] * 3, size=300).encode("so", "it").tokens
    ['<s>', 'so', '</s>', '</s>', 'it', '</s>']
    """
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # rows 0 to 4
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int = 128
) -> Tokens:
    """Encode texts, or pairs of texts, with the tokenizer's special tokens; padding never counts later.

    Args:
        tokenizer: See :func:`read_tokenizer`. Its own settings for truncation and padding are not used.
        texts: n texts; an empty one is its special tokens.
        pairs: The second text of each pair.
        max_length: Tokens of a text or pair at most, special ones included; the longer text of a pair is cut first.

    Raises:
        ValueError: If a text has no token at all (it is empty and the tokenizer adds none), or the numbers of texts
            differ.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"there are {len(texts)} first and {len(pairs)} second texts")
    with _settings(tokenizer, max_length):
        found = tokenizer.encode_batch(list(texts if pairs is None else zip(texts, pairs, strict=True)))
        special = _added(tokenizer)
    lengths = torch.tensor([len(one) for one in found], dtype=torch.long)
    if len(empty := torch.nonzero(lengths == 0)):
        raise ValueError(f"text {int(empty[0])} is empty and the tokenizer adds no special tokens: leave it out")
    shape = (len(found), int(lengths.max()) if len(found) else 0)
    ids, parts = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, one in enumerate(found):
        ids[i, : len(one)] = torch.tensor(one.ids)
        parts[i, : len(one)] = 1 + torch.tensor(one.type_ids)
    return Tokens(ids, parts, special, _names(tokenizer))


def compact(*sets: Tokens, also: Sequence[int] = ()) -> tuple[Tensor, tuple[Tokens, ...]]:
    """Renumber the rows so that only those remain that some set uses: a table many times smaller trains as well.

    The rows that go never receive a gradient, so training gives the same model.

    Args:
        sets: Training and query texts, encoded by the same tokenizer.
        also: Rows to keep besides.

    Returns:
        The old number of each new row, ``(u,)``, to cut the table with (``table[rows]``), and the sets renumbered.

    >>> tokens = Tokens(torch.tensor([[7, 3, 0]]), torch.tensor([[1, 1, 0]]), (7,), tuple("abcdefgh"))
    >>> rows, (small,) = compact(tokens)
    >>> rows, small.ids, small.words(0)
    (tensor([3, 7]), tensor([[1, 0, 0]]), ['h', 'd'])
    """
    special, names = sets[0].special, sets[0].names
    if any((one.special, one.names) != (special, names) for one in sets):
        raise ValueError("the sets come from different tokenizers: encode them with the same one")
    used = [one.ids[one.parts > 0] for one in sets]
    rows = torch.cat([*used, torch.tensor([*special, *also], dtype=torch.long)]).unique()
    place = {old: new for new, old in enumerate(rows.tolist())}
    names, special = tuple(names[row] for row in rows.tolist()), tuple(place[row] for row in special)
    cut = [replace(one, ids=_renumber(one, rows), special=special, names=names) for one in sets]
    return rows, tuple(cut)


def alike(parts: Tensor, size: int) -> Iterator[Tensor]:
    """Indices of texts of like length, ``size`` at a time, the longest last: batches with little padding.

    >>> [rows.tolist() for rows in alike(torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]), 2)]
    [[1, 2], [0]]
    """
    yield from torch.argsort((parts > 0).sum(1), stable=True).split(size)


@contextmanager
def _settings(tokenizer: Tokenizer, max_length: int) -> Iterator[None]:
    """Our settings for a while: a copy of the tokenizer would cost a second."""
    truncation, padding, marks = tokenizer.truncation, tokenizer.padding, tokenizer.encode_special_tokens
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    tokenizer.encode_special_tokens = True  # "[SEP]" inside a text is text
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = marks
        tokenizer.enable_truncation(**truncation) if truncation else tokenizer.no_truncation()
        if padding:
            tokenizer.enable_padding(**padding)


def _renumber(tokens: Tokens, rows: Tensor) -> Tensor:
    return torch.where(tokens.parts > 0, torch.searchsorted(rows, tokens.ids.contiguous()), 0)


def _added(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer itself puts around a text and between two."""
    pair = tokenizer.encode("a", "a")
    return tuple(sorted({row for row, added in zip(pair.ids, pair.special_tokens_mask, strict=True) if added}))


def _names(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Tokens by row; RoBERTa's byte pairs keep their mark for a leading blank."""
    found = tokenizer.get_vocab()
    names = [""] * (max(found.values(), default=-1) + 1)
    for name, row in found.items():
        names[row] = name
    return tuple(names)
