"""The numba engine of :mod:`clif_kit.debias`: the same steps, several times faster.

numba is optional. Compiling takes some seconds in each process, so short runs are better off with torch.
"""

import numba
import numpy as np

BETAS, EPS = (0.9, 0.999), 1e-8  # those of clif_kit.debias
_jit = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")  # NaN stays NaN


@_jit
def numba_pass(state, steps, free, sizes):  # pragma: no cover
    """Run one pass, pair by pair; arguments as for ``clif_kit.debias.torch_pass``."""
    u, v, number, width = state.u, state.v, state.u.dtype.type, state.u.shape[1]
    most = np.max(steps.starts[1:] - steps.starts[:-1])
    grads_u, grads_v = np.empty((most, width), u.dtype), np.empty((most, width), u.dtype)  # of the rows of a step
    rows_u, rows_v = np.empty(most, np.int64), np.empty(most, np.int64)  # which they are
    place_u, place_v = np.full(len(u), -1), np.full(len(u), -1)  # and where among them a word is
    for s in range(len(sizes)):
        a, b = 0, 0
        for p in range(steps.starts[s], steps.starts[s + 1]):
            w, c = np.uint64(steps.centres[p]), np.uint64(steps.contexts[p])  # unsigned: no test for below 0
            if not (free[w] or free[c]):
                continue
            x = number(0)
            for t in range(width):
                x += u[w, t] * v[c, t]
            total = number(steps.positive[p] + steps.negative[p])
            residual = total / (number(1) + np.exp(-x)) - number(steps.positive[p])
            if free[w]:
                if place_u[w] < 0:
                    place_u[w], rows_u[a], grads_u[a], a = a, w, 0, a + 1
                k = np.uint64(place_u[w])
                for t in range(width):
                    grads_u[k, t] += residual * v[c, t]
            if free[c]:
                if place_v[c] < 0:
                    place_v[c], rows_v[b], grads_v[b], b = b, c, 0, b + 1
                k = np.uint64(place_v[c])
                for t in range(width):
                    grads_v[k, t] += residual * u[w, t]
        fine = True
        for k in range(a):
            place_u[rows_u[k]] = -1
            fine &= _adam(u, state.mean_u, state.square_u, rows_u[k], grads_u[k], number(sizes[s]))
        for k in range(b):
            place_v[rows_v[k]] = -1
            fine &= _adam(v, state.mean_v, state.square_v, rows_v[k], grads_v[k], number(sizes[s]))
        if not fine:
            return False
    return True


@_jit
def _adam(matrix, means, squares, row, grad, size):  # pragma: no cover
    number = matrix.dtype.type
    x, mean, square = matrix[row], means[row], squares[row]
    c1, c2, eps, total = number(1 - BETAS[0]), number(1 - BETAS[1]), number(EPS), number(0)
    for t in range(len(x)):
        g = grad[t]
        mean[t] += c1 * (g - mean[t])
        square[t] += c2 * (g * g - square[t])
        x[t] -= size * mean[t] / (np.sqrt(square[t]) + eps)
        total += g
    return np.isfinite(total)
