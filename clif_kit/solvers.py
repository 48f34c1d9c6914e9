r"""Solving :math:`(H + \lambda I)\, s = b`: exact, truncated pseudo-inverse, conjugate gradients, LiSSA.

Each factory returns a ``solve``: a function that maps ``(p,)`` or ``(q, p)`` to the same shape, row by row. One that
has not converged raises :class:`NotConverged`; it never hands back a number that looks like an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

Solve = Callable[[Tensor], Tensor]  # (p,) -> (p,) and (q, p) -> (q, p)
MatVec = Callable[[Tensor], Tensor]  # (p,) -> (p,), symmetric


@dataclass(frozen=True)
class Solved:
    """What an iterative solve ended with.

    Attributes:
        x: The solution, shape ``(p,)``.
        residual: ``‖b - (H + λI)x‖ / ‖b‖``, computed from ``x`` itself and not from a recurrence; 0 for ``b = 0``.
        steps: Steps of the method, each with one matrix-vector product.
    """

    x: Tensor
    residual: float
    steps: int


class NotConverged(RuntimeError):
    """An iterative solve that stopped before its tolerance. ``solved`` holds how far it came, None where unknown."""

    def __init__(self, message: str, solved: Solved | None = None) -> None:
        super().__init__(message)
        self.solved = solved


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How to solve ``(H + damping·I) s = b``. One value object per solve; no globals.

    Attributes:
        damping: λ, added to every eigenvalue of H; same units as H. Above ``-min_eig(H)`` the system is positive
            definite; 0 solves it as it is.
        rtol: Stop when ``‖b - (H + λI)s‖ ≤ rtol·‖b‖``.
        max_iter: Steps allowed for one right-hand side before :class:`NotConverged`.

    Raises:
        ValueError: If a value lies outside its range.

    >>> SolverConfig(damping=-1)
    Traceback (most recent call last):
    ValueError: damping must be >= 0, got -1
    """

    damping: float = 1e-2
    rtol: float = 1e-6
    max_iter: int = 200

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise ValueError(f"damping must be >= 0, got {self.damping}")
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1), got {self.rtol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be >= 1, got {self.max_iter}")


def exact(matrix: Tensor, damping: float = 0.0) -> Solve:
    r"""Solve :math:`(H + \lambda I)\, s = b` by factorising once: Cholesky when positive definite, else LU.

    An indefinite system is solved as it is (the point is a saddle, and the solution its Newton step); only a singular
    one is refused.

    Args:
        matrix: H, shape ``(p, p)``, symmetric.
        damping: :math:`\lambda`, added to the diagonal.

    Raises:
        ValueError: If the matrix is not square, not finite or not symmetric.
        torch.linalg.LinAlgError: If the damped matrix is singular to working precision.

    >>> exact(torch.tensor([[3.0, 0.0], [0.0, 15.0]]), damping=1.0)(torch.tensor([4.0, 32.0]))
    tensor([1., 2.])
    """
    _check_symmetric(matrix)
    damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        _check_pivots(lower.diagonal().square())
        return lambda b: torch.cholesky_solve(_columns(b), lower).T.reshape(b.shape)
    lu, pivots, _ = torch.linalg.lu_factor_ex(damped)
    _check_pivots(lu.diagonal().abs())
    return lambda b: torch.linalg.lu_solve(lu, pivots, _columns(b)).T.reshape(b.shape)


def pseudo_inverse(matrix: Tensor, rtol: float = 1e-8) -> Solve:
    r"""Solve by :math:`s = \sum_k h_k^{-1} u_k u_k^\top b` over the eigenvalues with :math:`|h_k| >` cut.

    Null directions (a parameter that nothing depends on, a symmetry of the model) get 0 instead of a division by noise.

    Args:
        matrix: H, shape ``(p, p)``, symmetric.
        rtol: The cut, relative to the largest absolute eigenvalue.

    Raises:
        ValueError: If the matrix is not square, not finite or not symmetric.

    >>> pseudo_inverse(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))(torch.tensor([4.0, 7.0]))
    tensor([2., 0.])
    """
    _check_symmetric(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    keep = values.abs() > rtol * values.abs().max()
    values, vectors = values[keep], vectors[:, keep]  # (r,), (p, r)
    return lambda b: ((b @ vectors) / values) @ vectors.T


def cg(matvec: MatVec, config: SolverConfig = SolverConfig()) -> Solve:
    """Solve by conjugate gradients, row by row; :func:`cg_solve` also says how it went.

    Args:
        matvec: ``v -> H v`` on ``(p,)``, symmetric, *without* the damping.
        config: Damping, tolerance and budget.

    >>> cg(lambda v: 3 * v, SolverConfig(damping=1.0))(torch.tensor([4.0, 8.0]))
    tensor([1., 2.])
    """
    return lambda b: _row_by_row(b, lambda row: cg_solve(matvec, row, config).x)


def cg_solve(matvec: MatVec, b: Tensor, config: SolverConfig = SolverConfig()) -> Solved:
    r"""Conjugate gradients for one right-hand side ``(p,)``, with its true residual (Hestenes & Stiefel 1952).

    One product a step, and one more to check the end. Arguments as for :func:`cg`.

    Raises:
        NotConverged: If a direction of negative curvature shows up (CG is not defined there), if a product is not
            finite, or if ``config.max_iter`` steps did not reach ``config.rtol``.
    """

    def damped(v: Tensor) -> Tensor:
        return matvec(v) + config.damping * v

    x, size = torch.zeros_like(b), float(b.norm())
    if size == 0:
        return Solved(x, 0.0, 0)
    r, d, rr = b, b, b @ b
    for step in range(1, config.max_iter + 1):
        product = damped(d)
        curvature = d @ product
        if not torch.isfinite(curvature):
            raise NotConverged("CG met a product that is not finite; look for NaN in the data or the parameters")
        if curvature <= 0:
            raise NotConverged(
                f"CG met negative curvature {float(curvature / (d @ d)):.3g} at step {step}; "
                f"raise the damping (now {config.damping:g}) above -min_eig(H), see extreme_eigenvalues"
            )
        x, r = x + (rr / curvature) * d, r - (rr / curvature) * product
        if float(r.norm()) <= config.rtol * size or step == config.max_iter:
            r = b - damped(x)  # the recurrence drifts from the truth, so the truth decides
            solved = Solved(x, float(r.norm()) / size, step)
            if solved.residual <= config.rtol:
                return solved
            d, rr = r, r @ r  # restart from it
        else:
            d, rr = r + ((r @ r) / rr) * d, r @ r
    raise NotConverged(
        f"CG: residual {solved.residual:.3g} after {config.max_iter} steps, asked for {config.rtol:g}; "
        "raise max_iter, the damping or rtol",
        solved,
    )


def lissa(
    matvec: MatVec,
    dim: int,
    *,
    damping: float = 1e-2,
    scale: float | None = None,
    depth: int = 5000,
    rtol: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Solve:
    r"""Solve by LiSSA's recursion, row by row; :func:`lissa_solve` also says how it went.

    Args:
        matvec: ``v -> H v`` on ``(p,)``, symmetric, *without* the damping.
        dim: p.
        damping: :math:`\lambda`; the result is :math:`(H + \lambda I)^{-1} b`, never a scaled system's.
        scale: Must exceed half the largest eigenvalue of :math:`H + \lambda I`. None takes that eigenvalue.
        depth: Steps, one product each.
        rtol: Stop when the relative residual is this small.
        dtype: Of the vectors that ``matvec`` takes, as ``device``; both only serve to find the scale.
        device: See ``dtype``.

    Raises:
        ValueError: If no scale is given and the damped matrix has no positive eigenvalue.

    >>> lissa(lambda v: torch.tensor([1.0, 3.0]) * v, 2, damping=1.0, dtype=torch.float32)(torch.tensor([2.0, 4.0]))
    tensor([1.0000, 1.0000])
    """
    if scale is None:
        largest = extreme_eigenvalues(matvec, dim, dtype=dtype, device=device)[1] + damping
        if largest <= 0:
            raise ValueError(f"the largest eigenvalue of H + {damping:g}·I is {largest:.3g}; LiSSA needs it positive")
        scale = largest
    return lambda b: _row_by_row(
        b, lambda row: lissa_solve(matvec, row, damping=damping, scale=scale, depth=depth, rtol=rtol).x
    )


def lissa_solve(
    matvec: MatVec, b: Tensor, *, damping: float, scale: float, depth: int = 5000, rtol: float = 1e-6
) -> Solved:
    r"""LiSSA for one right-hand side ``(p,)``, with its true residual (Agarwal et al. 2017, as in Koh & Liang 2017).

    .. math:: w_{t+1} = b + \Bigl(I - \frac{H + \lambda I}{\sigma}\Bigr) w_t, \qquad
              s = w_\infty / \sigma = (H + \lambda I)^{-1} b

    Each product gives the residual of the iterate for free, :math:`w_{t+1} - w_t = b - (H + \lambda I) w_t / \sigma`.
    The last division is part of the method: without it the result is :math:`\sigma` times too large.

    Raises:
        ValueError: If ``scale`` is not positive or ``depth`` is less than 1.
        NotConverged: If the recursion diverges or ``depth`` steps do not reach ``rtol``; says which.
    """
    if scale <= 0 or depth < 1:
        raise ValueError(f"scale must be > 0 and depth >= 1, got {scale} and {depth}")
    size = float(b.norm())
    w = torch.zeros_like(b)
    if size == 0:
        return Solved(w, 0.0, 0)
    for step in range(1, depth + 1):
        s = w / scale
        r = b - (matvec(s) + damping * s)
        solved = Solved(s, float(r.norm()) / size, step)
        if solved.residual <= rtol:
            return solved
        # For a symmetric matrix the residual can only grow when an eigenvalue leaves (0, 2·scale).
        if not solved.residual < 1e3:
            raise NotConverged(
                f"LiSSA diverged: residual {solved.residual:.3g} at step {step}; raise the scale (now {scale:.3g}) "
                f"above half the largest eigenvalue, and the damping (now {damping:g}) above -min_eig(H)",
                solved,
            )
        w = w + r
    raise NotConverged(
        f"LiSSA: residual {solved.residual:.3g} after {depth} steps, asked for {rtol:g}; "
        f"raise depth or the damping (now {damping:g}); a scale (now {scale:.3g}) above the largest eigenvalue is slow",
        solved,
    )


def extreme_eigenvalues(
    matvec: MatVec,
    dim: int,
    *,
    rtol: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    r"""The smallest and the largest eigenvalue of a symmetric map, by Lanczos (ARPACK).

    Damping must exceed minus the smallest one; LiSSA's scale must exceed half the largest (damped) one.

    Args:
        matvec: ``v -> H v`` on ``(p,)``.
        dim: p. Below 20 the matrix is built and diagonalised.
        rtol: Accuracy, relative to the largest absolute eigenvalue (so a smallest one near 0 is known absolutely).
        dtype: Of the vectors that ``matvec`` takes.
        device: Of the same vectors.

    Returns:
        ``(smallest, largest)``, in units of H.

    Raises:
        NotConverged: If Lanczos does not reach ``rtol``.

    >>> extreme_eigenvalues(lambda v: torch.tensor([2.0, -1.0, 5.0]) * v, 3, dtype=torch.float32)
    (-1.0, 5.0)
    """

    def times(vector: np.ndarray) -> np.ndarray:
        return matvec(torch.as_tensor(vector.reshape(-1), dtype=dtype, device=device)).double().cpu().numpy()

    if dim < 20:
        values = np.linalg.eigvalsh(np.stack([times(row) for row in np.eye(dim)]))
        return float(values[0]), float(values[-1])
    start = np.random.default_rng(0).normal(size=dim)
    if not times(start).any():
        return 0.0, 0.0  # ARPACK cannot start on the zero matrix

    def dominant(shift: float) -> float:
        shifted = LinearOperator((dim, dim), matvec=lambda v: times(v) - shift * v.reshape(-1), dtype=np.float64)
        return float(eigsh(shifted, k=1, which="LM", v0=start, tol=rtol, return_eigenvectors=False)[0])

    try:
        one = dominant(0.0)
        other = dominant(2 * one) + 2 * one  # shifted by twice the dominant one, the opposite end dominates
    except ArpackNoConvergence as error:
        raise NotConverged(f"Lanczos did not reach {rtol:g}; raise rtol") from error
    return min(one, other), max(one, other)


def _columns(b: Tensor) -> Tensor:
    """``(p,)`` or ``(q, p)`` as columns ``(p, q)``."""
    return b.reshape(-1, b.shape[-1]).T


def _row_by_row(b: Tensor, solve_one: Solve) -> Tensor:
    return solve_one(b) if b.ndim == 1 else torch.stack([solve_one(row) for row in b])


def _check_symmetric(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"need a square matrix, got the shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise ValueError("the matrix holds values that are not finite")
    tolerance = 100 * torch.finfo(matrix.dtype).eps * len(matrix) * matrix.abs().max()
    if (matrix - matrix.T).abs().max() > tolerance:
        raise ValueError("the matrix is not symmetric")


def _check_pivots(pivots: Tensor) -> None:
    if pivots.min() <= torch.finfo(pivots.dtype).eps * len(pivots) * pivots.max():
        raise torch.linalg.LinAlgError(
            f"the matrix is singular to working precision (pivots from {float(pivots.min()):.3g} to "
            f"{float(pivots.max()):.3g}); raise the damping or use pseudo_inverse"
        )
