"""The numba engine of :mod:`clif_kit.sentence_stream`: the same numbers, several times faster on a large corpus.

numba is optional. Compiling takes some seconds in each process, so short runs are better off with torch.
"""

import numba
import numpy as np

from clif_kit.corpus import Corpus

PIECES = 64  # more than cores, so that long sentences do not hold one core back


def scores(corpus: Corpus, work: tuple, window: int) -> np.ndarray:
    """The numba engine, ``(q, n)``; ``work`` is :class:`clif_kit.sentence_stream.Work`."""
    u, v, hu, hc, noise, busy = (matrix.numpy() for matrix in work[:6])
    out = np.zeros((len(corpus), noise.shape[1]))
    longest = int(corpus.lengths.max(initial=1))
    _stream(corpus.tokens, corpus.offsets, u, v, hu, hc, noise, busy, work[6], window, longest, out)
    return out.T


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _stream(tokens, offsets, u, v, hu, hc, noise, busy, with_context, window, longest, out):  # pragma: no cover
    n, width = len(offsets) - 1, u.shape[1]
    for piece in numba.prange(PIECES):
        mine = np.empty((longest, width), u.dtype)
        near = np.empty((longest, width), u.dtype)
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
                for j in range(length):
                    if i == j or j - i > window or i - j > window:
                        residual[i, j] = 0
                    else:
                        residual[i, j] = -1 / (1 + np.exp(residual[i, j]))
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
