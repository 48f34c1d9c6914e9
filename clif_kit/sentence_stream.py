r"""One pass over a corpus: :math:`\langle h, \nabla \ell(z) \rangle` for every sentence z and every direction h.

Every first-order score of a sentence is such an inner product; the estimators differ in h alone. Within a sentence of
L words the gradient is two products of small matrices, made once for all directions; noise in expectation depends on
the centre word only and costs one sweep over the vocabulary. Two engines give the same numbers: torch, and numba where
it is installed.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clif_kit.corpus import Corpus, pair_numbers
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.store import fingerprint, resumable

ROOM = 2**22  # numbers in the largest temporary of the torch engine


class Work(NamedTuple):
    """What an engine works with: the matrices, and what is the same for all sentences, word by word."""

    input: Tensor  # U, (V, d)
    context: Tensor  # V, (V, d)
    to_input: Tensor  # directions of the input matrix, (V, q, d)
    to_context: Tensor  # directions of the context matrix, (V, q, d), or (1, q, d) if they are zero
    noise: Tensor  # what a pair of each centre adds by its noise words, (V, q)
    busy: Tensor  # words that can contribute at all, (V,)
    with_context: bool  # whether to_context is not zero


def stream_scores(
    corpus: Corpus | Iterable[Corpus],
    params: Params,
    directions: Sequence[Params],
    loss: SkipgramLoss,
    *,
    engine: str = "auto",
    block: int = 10_000,
    store: str | Path | None = None,
    progress: bool = False,
) -> np.ndarray:
    r"""Return :math:`\langle h_q, \nabla_\theta\, \ell(z_i) \rangle`, shape ``(q, n)``, float64.

    Args:
        corpus: n sentences; or pieces of it, one after the other, so that the whole need never be in memory.
        params: ``{"input": (V, d), "context": (V, d)}``; their dtype is the dtype of the work.
        directions: h, each ``{"input": (V, d)}`` and perhaps ``"context": (V, d)``; a block that is missing is zero.
            Rows that are zero cost nothing, so a query that sees 32 words is cheap.
        loss: The loss of a sentence; noise is taken in expectation.
        engine: "numba", "torch", or "auto": numba where it is installed and a large corpus pays for its start.
        block: Sentences a step, and a file of the store.
        store: A folder. Blocks that are finished lie there and are read, not computed, when the same call comes again.
        progress: Draw a bar on the error stream.

    Raises:
        ValueError: If a matrix or a direction does not fit the vocabulary or holds a value that is not finite, there is
            no sentence, or the engine is unknown.
        ModuleNotFoundError: If numba is asked for and not installed.

    >>> from clif_kit.corpus import Vocabulary
    >>> corpus = Corpus(np.array([0, 1, 1]), np.array([0, 2, 3]), Vocabulary(("a", "b"), np.array([1, 2])))
    >>> params = {"input": torch.zeros(2, 1), "context": torch.tensor([[1.0], [3.0]])}
    >>> stream_scores(corpus, params, [{"input": torch.ones(2, 1)}], SkipgramLoss(negatives=0))
    array([[-2.,  0.]])
    """
    _check(params, loss)
    kernel, work = _engine(engine, corpus), _prepare(params, directions, loss)
    pieces, total = (corpus.blocks(block), len(corpus)) if isinstance(corpus, Corpus) else (corpus, None)
    once = resumable(store, "stream", params, dict(enumerate(directions)), vars(loss), kernel.__name__)
    scores = []
    with tqdm(total=total, disable=not progress, unit="sentence") as bar:
        for number, piece in enumerate(pieces):
            _check_fit(piece, params)
            key = f"{number:06d}-{_mark(piece)}"
            scores.append(once(key, lambda p=piece: {"scores": _block(kernel, p, work, loss)})["scores"])
            bar.update(len(piece))
    if not scores:
        raise ValueError("there is no sentence to score: the corpus is empty, or an iterator of pieces was used up")
    return np.concatenate(scores, axis=1)


def negative_sweep(
    params: Params, directions: Sequence[Params], loss: SkipgramLoss, rows: Tensor | None = None
) -> Tensor:
    r"""What one pair of centre w adds by its k noise words, in expectation, shape ``(q, V)``.

    .. math:: E_{qw} = k \sum_{c} q_c\, \sigma(u_w^\top v_c)\, (v_c^\top h^u_{qw} + u_w^\top h^v_{qc})

    One sweep over the vocabulary, and none over pairs. Directions without a context block need only the centres whose
    rows they move.

    Args:
        params: The two matrices.
        directions: One a query.
        loss: Noise and k.
        rows: Centres that are wanted; the others stay 0. None takes all.
    """
    u, v = params["input"], params["context"]
    hu, hc = _stack(params, directions)
    if rows is None:
        rows = torch.arange(len(u)) if hc.any() else torch.nonzero((hu != 0).any(2).any(0)).flatten()
    out, q = torch.zeros(hu.shape[:2]).to(u), loss.noise.to(u)
    for some in rows.split(max(1, ROOM // len(u))):
        weight = q * torch.sigmoid(u[some] @ v.T)  # (rows, V)
        mean_context = weight @ v  # (rows, d)
        for k in range(len(hu)):
            out[k, some] = (mean_context * hu[k, some]).sum(1)
            if hc[k].any():
                out[k, some] += (u[some] * (weight @ hc[k])).sum(1)
    return loss.negatives * out


def word_parts(corpus: Corpus, i: int, params: Params, direction: Params, loss: SkipgramLoss) -> np.ndarray:
    """The score of one sentence split by the word that carries it, shape ``(length, 2)``: input rows, context rows.

    Each word's own row moves with its own gradient, so the parts add up to the score. (The noise in expectation moves
    the context rows of the whole vocabulary; that share is given to the centre it belongs to.)
    """
    hu, hc = _stack(params, [direction])
    rows = torch.from_numpy(corpus.sentence(i).astype(np.int64))
    if len(rows) < 2:
        return np.zeros((len(rows), 2))
    u, v, weight = params["input"][rows], params["context"][rows], _band(len(rows), loss.window, params["input"])
    residual = -torch.sigmoid(-(u @ v.T)) * weight  # (L, L)
    first = (residual @ v * hu[0, rows]).sum(1)
    second = (residual.T @ u * hc[0, rows]).sum(1)
    if loss.negatives:
        first = first + weight.sum(1) * negative_sweep(params, [direction], loss, rows.unique())[0, rows]
    scale = 1 / float(weight.sum()) if loss.mean else 1.0
    return torch.stack([first, second], 1).mul(scale).double().numpy()


def _band(length: int, window: int, like: Tensor) -> Tensor:
    """1 where two places are neighbours: ``(L, L)``."""
    return torch.ones(length, length).to(like).triu_(-window).tril_(window).fill_diagonal_(0)


def _stack(params: Params, directions: Sequence[Params]) -> tuple[Tensor, Tensor]:
    """Directions as ``(q, V, d)`` for the input and for the context matrix."""
    zero = torch.zeros_like(params["input"])
    for name, block in ((name, block) for h in directions for name, block in h.items()):
        if name not in params or block.shape != zero.shape:
            raise ValueError(
                f"a direction has {name!r} of shape {tuple(block.shape)}; it may have 'input' and 'context', each "
                f"{tuple(zero.shape)} like the matrices"
            )
        if not _finite(block):
            raise ValueError(f"the {name} block of a direction holds values that are not finite")
    return tuple(
        torch.stack([h.get(name, zero).to(zero) for h in directions])
        if any(name in h for h in directions)
        else zero[:1, :1].expand(len(directions), *zero.shape)  # takes no memory
        for name in ("input", "context")
    )


def _finite(matrix: Tensor) -> bool:
    """Whether all values are finite; least and largest value say so in one reading, and both are NaN if one is."""
    return not matrix.numel() or bool(torch.isfinite(torch.stack(matrix.aminmax())).all())


def _check(params: Params, loss: SkipgramLoss) -> None:
    for name in ("input", "context"):
        if params[name].ndim != 2 or params[name].shape != params["input"].shape:
            raise ValueError(f"need two matrices (V, d) of one shape, the {name} matrix is {tuple(params[name].shape)}")
        if not _finite(params[name]):
            raise ValueError(f"the {name} matrix holds values that are not finite (NaN or infinite): train it again")
    if loss.negatives and len(loss.noise) != len(params["input"]):
        raise ValueError(f"the noise is over {len(loss.noise)} words, the matrices have {len(params['input'])} rows")


def _check_fit(piece: Corpus, params: Params) -> None:
    if len(params["input"]) != len(piece.vocabulary):
        raise ValueError(
            f"the matrices have {len(params['input'])} rows, the vocabulary has {len(piece.vocabulary)} words: "
            "use the vocabulary that the vectors were trained with"
        )


def _mark(piece: Corpus) -> str:
    return fingerprint(piece.tokens, piece.offsets)[:16]


def _prepare(params: Params, directions: Sequence[Params], loss: SkipgramLoss) -> Work:
    """What is the same for all sentences, word by word, so that a word's directions lie side by side."""
    hu, hc = _stack(params, directions)
    noise = torch.zeros(hu.shape[:2]).to(hu)
    if loss.negatives:
        noise = negative_sweep(params, directions, loss)
    with_context = bool(hc.any())
    hu, hc, noise = (h.transpose(0, 1).contiguous() for h in (hu, hc if with_context else hc[:, :1], noise))
    busy = hu.flatten(1).any(1) | hc.flatten(1).any(1) | noise.any(1)  # a lone row of hc is zero, so it fits any V
    return Work(params["input"], params["context"], hu, hc, noise, busy, with_context)


def _block(kernel: Callable, piece: Corpus, work: Work, loss: SkipgramLoss) -> np.ndarray:
    scores = kernel(piece, work, loss.window)
    return scores / np.maximum(pair_numbers(piece.lengths, loss.window), 1) if loss.mean else scores


def _engine(name: str, corpus: Corpus | Iterable[Corpus]):
    if name == "auto":
        large = not isinstance(corpus, Corpus) or len(corpus.tokens) > 1_000_000
        name = "numba" if large and importlib.util.find_spec("numba") else "torch"
    if name == "numba":
        from clif_kit.sentence_kernel import scores as numba_scores

        return numba_scores
    if name != "torch":
        raise ValueError(f"engine must be 'numba', 'torch' or 'auto', got {name!r}")
    return torch_scores


def torch_scores(corpus: Corpus, work: Work, window: int) -> np.ndarray:
    """The torch engine, ``(q, n)``: sentences of like length are padded together."""
    wanted = np.bincount(corpus.owners, weights=work.busy.numpy()[corpus.tokens], minlength=len(corpus)) > 0
    out = np.zeros((work.noise.shape[1], len(corpus)))
    for sentences in _alike(corpus, np.flatnonzero(wanted & (corpus.lengths > 1)), work.input.shape[1]):
        rows, weight = _padded(corpus, sentences, window, work.input)
        flat, shape = rows.flatten(), (*rows.shape, -1)
        u, v = (matrix.index_select(0, flat).view(shape) for matrix in (work.input, work.context))  # (B, L, d)
        residual = torch.sigmoid(torch.bmm(u, v.mT).neg_()).mul_(weight).neg_()  # (B, L, L)
        value = _inner(torch.bmm(residual, v), work.to_input, flat)
        if work.with_context:
            value += _inner(torch.bmm(residual.mT, u), work.to_context, flat)
        value += (work.noise.index_select(0, flat).view(shape) * weight.sum(-1, keepdim=True)).sum(1).T
        out[:, sentences] = value.double().numpy()
    return out


def _inner(grads: Tensor, directions: Tensor, flat: Tensor) -> Tensor:
    """Sum over the words of each sentence: grads ``(B, L, d)``, directions ``(V, q, d)``; the result ``(q, B)``."""
    batch, length, width = grads.shape
    rows = directions.index_select(0, flat).view(batch, length, -1, width)  # (B, L, q, d)
    return torch.matmul(rows, grads[..., None]).squeeze(-1).sum(1).T


def _alike(corpus: Corpus, sentences: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Groups of sentences of like length, small enough that their matrices stay in the cache."""
    ordered = sentences[np.argsort(corpus.lengths[sentences], kind="stable")]
    start = 0
    while start < len(ordered):
        stop = min(start + 512, len(ordered))
        longest = corpus.lengths[ordered[stop - 1]]
        stop = max(start + 1, min(stop, start + int(2**17 // (longest * max(longest, width)))))
        yield ordered[start:stop]
        start = stop


def _padded(corpus: Corpus, sentences: np.ndarray, window: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(B, L)``, padded with row 0, and the weights of their pairs, ``(B, L, L)`` or ``(1, L, L)``."""
    lengths = corpus.lengths[sentences]
    longest = int(lengths.max())
    place = corpus.offsets[sentences][:, None] + np.arange(longest)
    real = np.arange(longest) < lengths[:, None]
    rows = np.where(real, corpus.tokens[np.minimum(place, len(corpus.tokens) - 1)], 0)
    weight = _band(longest, window, like)[None]
    if not real.all():
        filled = torch.from_numpy(real).to(like)
        weight = weight * filled[:, None, :] * filled[:, :, None]
    return torch.from_numpy(rows.astype(np.int64)), weight
