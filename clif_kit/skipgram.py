r"""Skip-gram with negative sampling (SGNS): the loss of sentences, its gradient and its curvature, in closed form.

Word :math:`w` at the centre has the row :math:`u_w` of the *input* matrix, word :math:`c` near it the row :math:`v_c`
of the *context* matrix. With :math:`s_{wc} = u_w^\top v_c` every loss here has one form,

.. math:: L = \sum_{w, c} P_{wc}\, \bigl[-\log \sigma(s_{wc})\bigr] + N_{wc}\, \bigl[-\log \sigma(-s_{wc})\bigr]

P counts how often the pair was seen, N how often it was (or would be, in expectation) drawn as noise. A sentence, a
set of sentences and a whole corpus differ in P and N only, so gradient and curvature are written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from clif_kit.corpus import Corpus, pair_counts, pair_numbers

Params = dict[str, Tensor]  # {"input": (V, d), "context": (V, d)}


@dataclass(frozen=True, kw_only=True)
class SkipgramLoss:
    r"""Which loss a sentence has.

    .. math:: \ell(z) = \sum_{(w, c) \in z} \Bigl[-\log \sigma(u_w^\top v_c)
              - k\, \mathbb{E}_{c' \sim q} \log \sigma(-u_w^\top v_{c'})\Bigr]

    Attributes:
        window: Words on either side of the centre that make a pair with it.
        negatives: k, noise words a pair. 0 leaves the positives only.
        noise: q, the noise distribution over the vocabulary, shape ``(V,)``. Needed where ``negatives`` is above 0.
        mean: Divide the loss of a sentence by its number of pairs. Training does not: there each pair counts once.
    """

    window: int = 5
    negatives: float = 5.0
    noise: Tensor | None = None
    mean: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 word, got {self.window}")
        if self.negatives < 0:
            raise ValueError(f"negatives must be >= 0, got {self.negatives}")
        if self.negatives and self.noise is None:
            raise ValueError("with negatives the loss needs `noise`, see noise_distribution(counts)")

    @classmethod
    def published(cls, window: int = 10) -> "SkipgramLoss":
        """The loss that the public code of the paper scores with: positives only, averaged over the sentence's pairs.

        It was trained with negatives; and it moves the input matrix alone, which is a matter of the query, see
        :mod:`clif_kit.word_influence`.
        """
        return cls(window=window, negatives=0.0, mean=True)

    def sentence_weights(self, corpus: Corpus) -> np.ndarray:
        """What each pair of a sentence counts: 1, or 1 / its number of pairs. Shape ``(n,)``."""
        if not self.mean:
            return np.ones(len(corpus))
        return 1 / np.maximum(pair_numbers(corpus.lengths, self.window), 1)


def noise_distribution(counts: np.ndarray, exponent: float = 0.75) -> Tensor:
    """Noise words in proportion to ``counts ** exponent`` (word2vec: 0.75; the public code of CLIF: 1), float64.

    >>> noise_distribution(np.array([3, 1]), exponent=1)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    weights = torch.as_tensor(np.asarray(counts), dtype=torch.float64) ** exponent
    return weights / weights.sum()


@dataclass(frozen=True)
class Pairs:
    """Weighted pairs among some rows of the two matrices.

    Attributes:
        centres: Rows of the input matrix, each once, shape ``(a,)``.
        contexts: Rows of the context matrix, each once, shape ``(b,)``.
        positive: P, shape ``(a, b)``.
        negative: N, shape ``(a, b)``.
    """

    centres: Tensor
    contexts: Tensor
    positive: Tensor
    negative: Tensor

    def to(self, like: Tensor) -> "Pairs":
        """The same pairs with weights of the dtype and on the device of ``like``."""
        return Pairs(
            self.centres.to(like.device), self.contexts.to(like.device), self.positive.to(like), self.negative.to(like)
        )


def pairs_of(
    corpus: Corpus,
    loss: SkipgramLoss,
    sentences: Sequence[int] | None = None,
    *,
    seed: int | None = None,
    centres: Sequence[int] | None = None,
) -> Pairs:
    """The pairs of some sentences.

    Args:
        corpus: Of n sentences.
        loss: Decides the window, the noise and the weights.
        sentences: Which of them; a repeated one counts twice. None takes all.
        seed: Draws the noise words (k for each pair) with this seed. None takes their expectation, which pairs every
            centre with the whole vocabulary.
        centres: Keep the pairs around these rows alone, where a large corpus would fill the memory. None keeps all.

    Raises:
        ValueError: If drawn noise is asked for and k is not whole.
    """
    chosen = corpus if sentences is None else corpus.select(sentences)
    if len(chosen) == 1 and centres is None and not (seed is not None and loss.negatives):
        return _of_one(chosen, loss)
    counts = pair_counts(chosen, loss.window, loss.sentence_weights(chosen) if loss.mean else None)
    rows = np.flatnonzero(np.diff(counts.indptr))
    rows = rows if centres is None else np.intersect1d(rows, centres)
    if seed is not None and loss.negatives:
        return _with_drawn_noise(chosen, loss, counts, rows, seed)
    if not loss.negatives:
        contexts = np.unique(counts[rows].indices).astype(np.int64)
        positive = _dense(counts, rows, contexts)
        return Pairs(torch.from_numpy(rows), torch.from_numpy(contexts), positive, torch.zeros_like(positive))
    positive = torch.from_numpy(counts[rows].toarray())
    negative = loss.negatives * positive.sum(1, keepdim=True) * loss.noise.to(positive)  # (a, V)
    return Pairs(torch.from_numpy(rows), torch.arange(len(corpus.vocabulary)), positive, negative)


def loss_value(params: Params, pairs: Pairs) -> Tensor:
    """L of the module's equation, a scalar that autograd can differentiate."""
    pairs = pairs.to(params["input"])
    s = params["input"][pairs.centres] @ params["context"][pairs.contexts].T  # (a, b)
    softplus = torch.nn.functional.softplus
    return (pairs.positive * softplus(-s)).sum() + (pairs.negative * softplus(s)).sum()


def gradient(params: Params, pairs: Pairs) -> Params:
    r"""The gradient of L on the rows of ``pairs``, ``{"input": (a, d), "context": (b, d)}``.

    .. math:: R = (P + N) \odot \sigma(S) - P, \qquad \nabla_U = R\, V, \qquad \nabla_V = R^\top U

    >>> params = {"input": torch.zeros(2, 1), "context": torch.tensor([[1.0], [3.0]])}
    >>> row, seen = torch.tensor([0]), torch.tensor([1])
    >>> gradient(params, Pairs(row, seen, positive=torch.ones(1, 1), negative=torch.zeros(1, 1)))
    {'input': tensor([[-1.5000]]), 'context': tensor([[0.]])}
    """
    u, v, residual, _ = _state(params, pairs)
    return {"input": residual @ v, "context": residual.T @ u}


def hvp(params: Params, pairs: Pairs, vector: Params, *, gauss_newton: bool = False) -> Params:
    r"""The Hessian of L times a vector, on the rows of ``pairs``.

    .. math:: \dot S = \dot U V^\top + U \dot V^\top, \quad T = (P + N) \odot \sigma'(S) \odot \dot S, \quad
              (H \dot\theta)_U = T V + R\, \dot V, \quad (H \dot\theta)_V = T^\top U + R^\top \dot U

    Args:
        params: The two matrices.
        pairs: Weighted pairs among a centres and b contexts.
        vector: ``{"input": (a, d), "context": (b, d)}``, on the same rows.
        gauss_newton: Leave out the terms with R: what remains is positive semi-definite.
    """
    u, v, residual, curvature = _state(params, pairs)
    du, dv = vector["input"], vector["context"]
    t = curvature * (du @ v.T + u @ dv.T)  # (a, b)
    first, second = t @ v, t.T @ u
    if gauss_newton:
        return {"input": first, "context": second}
    return {"input": first + residual @ dv, "context": second + residual.T @ du}


def input_block_hessian(params: Params, pairs: Pairs) -> Tensor:
    r"""The second derivative of L by each centre's own row.

    .. math:: H_w = \sum_c (P + N)_{wc}\, \sigma'(s_{wc})\, v_c v_c^\top

    Rows of the input matrix do not meet in L, so with the context matrix held fixed the Hessian is block diagonal and
    these are its blocks, shape ``(a, d, d)``.
    """
    _, v, _, curvature = _state(params, pairs)
    return torch.stack([(row[:, None] * v).T @ v for row in curvature])


def scatter(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """A matrix of the shape of ``like``, zero but for ``values`` in ``rows`` (each once)."""
    full = torch.zeros_like(like)
    full[rows] = values
    return full


def _state(params: Params, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows u (a, d) and v (b, d), first and second derivative of L by S, each (a, b)."""
    pairs = pairs.to(params["input"])
    u, v = params["input"][pairs.centres], params["context"][pairs.contexts]
    p, total = torch.sigmoid(u @ v.T), pairs.positive + pairs.negative
    return u, v, total * p - pairs.positive, total * p * (1 - p)


def _of_one(corpus: Corpus, loss: SkipgramLoss) -> Pairs:
    """The pairs of one sentence without the detour over a sparse matrix of the whole vocabulary."""
    rows, place = np.unique(corpus.tokens.astype(np.int64), return_inverse=True)
    distance = np.abs(np.subtract.outer(np.arange(len(place)), np.arange(len(place))))
    first, second = np.nonzero((distance > 0) & (distance <= loss.window))
    local = np.zeros((len(rows), len(rows)))
    np.add.at(local, (place[first], place[second]), loss.sentence_weights(corpus)[0])
    centres = torch.from_numpy(rows)
    if not loss.negatives:
        return Pairs(centres, centres, torch.from_numpy(local), torch.zeros(local.shape, dtype=torch.float64))
    positive = torch.zeros(len(rows), len(corpus.vocabulary), dtype=torch.float64)
    positive[:, centres] = torch.from_numpy(local)
    return Pairs(
        centres,
        torch.arange(len(corpus.vocabulary)),
        positive,
        loss.negatives * positive.sum(1, keepdim=True) * loss.noise.to(positive),
    )


def _dense(counts: csr_matrix, centres: np.ndarray, contexts: np.ndarray) -> Tensor:
    return torch.from_numpy(counts[centres][:, contexts].toarray())


def _with_drawn_noise(corpus: Corpus, loss: SkipgramLoss, counts: csr_matrix, centres: np.ndarray, seed: int) -> Pairs:
    """For each pair k noise words; a centre of m pairs draws k m, each with the mean weight of those pairs."""
    if loss.negatives != int(loss.negatives):
        raise ValueError(f"drawn noise needs a whole number of negatives, got {loss.negatives}")
    rng = np.random.default_rng(seed)
    pairs = pair_counts(corpus, loss.window)  # unweighted: how many draws
    numbers = np.asarray(pairs[centres].sum(1)).ravel().astype(np.int64) * int(loss.negatives)
    noise = np.asarray(loss.noise, dtype=np.float64)
    drawn = np.searchsorted(np.cumsum(noise / noise.sum())[:-1], rng.random(numbers.sum()), side="right")
    weight = np.repeat(np.asarray(counts[centres].sum(1)).ravel() * loss.negatives / numbers, numbers)
    contexts = np.union1d(counts[centres].indices, drawn)
    negative = np.zeros((len(centres), len(contexts)))
    np.add.at(negative, (np.repeat(np.arange(len(centres)), numbers), np.searchsorted(contexts, drawn)), weight)
    return Pairs(
        torch.from_numpy(centres),
        torch.from_numpy(contexts.astype(np.int64)),
        _dense(counts, centres, contexts),
        torch.from_numpy(negative),
    )
