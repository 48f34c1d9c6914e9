"""The numba engine of :mod:`clif_kit.sentence_stream`: the same numbers, several times faster on a large corpus.

numba is optional. Compiling takes some seconds in each process, so short runs are better off with torch.
"""

import numba
import numpy as np

from clif_kit.corpus import Corpus

PIECES = 64  # more than cores, so that long sentences do not hold one core back
FAST = {"reassoc", "contract", "nsz", "arcp"}
LOG_2 = np.log(2.0)
LOG2_E = 1 / LOG_2


def scores(corpus: Corpus, work: tuple, window: int) -> np.ndarray:
    """The numba engine, ``(q, n)``; ``work`` is :class:`clif_kit.sentence_stream.Work`."""
    u, v, hu, hc, noise, busy = (matrix.numpy() for matrix in work[:6])
    out = np.zeros((len(corpus), noise.shape[1]))
    longest = int(corpus.lengths.max(initial=1))
    _stream(corpus.tokens, corpus.offsets, u, v, hu, hc, noise, busy, work[6], window, longest, out)
    return out.T


@numba.njit(fastmath=FAST, inline="always")
def _minus_sigmoid(s, bits, powers):  # pragma: no cover
    r"""Replace each s by :math:`-\sigma(-s) = -1 / (1 + e^s)`, with :math:`e^s = 2^k e^r`, :math:`|r| \le \log(2) / 2`.

    The series of :math:`e^r` ends where the next term is below 2e-16; it takes half the time of a call of exp.
    ``bits`` and ``powers`` are one room to work in, as int64 and as float64.
    """
    for j in range(len(s)):
        x = min(max(np.float64(s[j]), -700.0), 700.0)
        k = np.floor(x * LOG2_E + 0.5)
        r = x - k * LOG_2
        series = 1.0
        for term in range(12, 0, -1):
            series = 1 + series * r * (1 / term)
        bits[j] = (np.int64(k) + 1023) << 52  # 2^k, as a float64
        s[j] = -1 / (1 + series * powers[j])


@numba.njit(parallel=True, fastmath=FAST)
def _stream(tokens, offsets, u, v, hu, hc, noise, busy, with_context, window, longest, out):  # pragma: no cover
    n, width = len(offsets) - 1, u.shape[1]
    for piece in numba.prange(PIECES):
        mine = np.empty((longest, width), u.dtype)
        near = np.empty((longest, width), u.dtype)
        bits = np.empty(longest, np.int64)
        powers = bits.view(np.float64)
        for s in range(piece * n // PIECES, (piece + 1) * n // PIECES):
            first, length = offsets[s], offsets[s + 1] - offsets[s]
            wanted = False
            for i in range(length):
                row = tokens[first + i]
                wanted = wanted or busy[row]
            if length < 2 or not wanted:
                continue
            for i in range(length):
                row = tokens[first + i]
                for t in range(width):
                    mine[i, t] = u[row, t]
                    near[i, t] = v[row, t]
            residual = np.dot(mine[:length], near[:length].T)  # (L, L)
            for i in range(length):
                _minus_sigmoid(residual[i], bits, powers)
                for j in range(length):
                    if i == j or j - i > window or i - j > window:
                        residual[i, j] = 0
            to_u = np.dot(residual, near[:length])  # gradient of the input rows
            to_v = np.dot(residual.T, mine[:length]) if with_context else to_u
            for i in range(length):
                row = tokens[first + i]
                if not busy[row]:
                    continue
                neighbours = min(i, window) + min(length - 1 - i, window)
                for q in range(hu.shape[1]):
                    value = neighbours * noise[row, q]
                    for t in range(width):
                        value += to_u[i, t] * hu[row, q, t]
                    if with_context:
                        for t in range(width):
                            value += to_v[i, t] * hc[row, q, t]
                    out[s, q] += value
