"""Oracles: numpy.linalg on matrices with a chosen spectrum."""

import numpy as np
import oracles
import pytest
import torch

from clif_kit.solvers import (
    NotConverged,
    SolverConfig,
    cg,
    cg_solve,
    exact,
    extreme_eigenvalues,
    lissa,
    lissa_solve,
    pseudo_inverse,
)

P = 30
SPECTRUM = np.geomspace(0.05, 4.0, P)
MATRIX = oracles.random_symmetric(SPECTRUM)
B = np.random.default_rng(1).normal(size=(3, P))


def product(matrix):
    tensor = torch.from_numpy(matrix)
    return lambda v: tensor @ v


def solved_by_numpy(matrix, damping, b=B):
    return np.linalg.solve(matrix + damping * np.eye(len(matrix)), b.T).T


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda damping: exact(torch.from_numpy(MATRIX), damping), 1e-12),
        (lambda damping: cg(product(MATRIX), SolverConfig(damping=damping, rtol=1e-12)), 1e-9),
        (lambda damping: lissa(product(MATRIX), P, damping=damping, rtol=1e-12, depth=4000), 1e-9),
        (lambda damping: lissa(product(MATRIX), P, damping=damping, scale=9.0, rtol=1e-12, depth=8000), 1e-9),
    ],
    ids=["exact", "cg", "lissa", "lissa-own-scale"],
)
def test_every_solver_matches_numpy_for_one_and_for_many_rows(make, tolerance, damping):
    solve, expected = make(damping), solved_by_numpy(MATRIX, damping)
    assert relative(solve(torch.from_numpy(B)).numpy(), expected) < tolerance
    assert relative(solve(torch.from_numpy(B[1])).numpy(), expected[1]) < tolerance
    assert relative(solve(torch.from_numpy(B[1:2])).numpy(), expected[1:2]) < tolerance
    assert not solve(torch.zeros(P, dtype=torch.float64)).any()


def test_exact_solves_an_indefinite_system():
    matrix = oracles.random_symmetric(np.linspace(-1.0, 2.0, P))
    assert relative(exact(torch.from_numpy(matrix))(torch.from_numpy(B)).numpy(), solved_by_numpy(matrix, 0)) < 1e-11


@pytest.mark.parametrize("spectrum", [np.r_[0.0, SPECTRUM[1:]], np.r_[0.0, -1.0, SPECTRUM[2:]], np.zeros(P)])
def test_exact_refuses_a_singular_matrix_and_damping_repairs_it(spectrum):
    matrix = oracles.random_symmetric(spectrum)
    with pytest.raises(torch.linalg.LinAlgError, match="raise the damping or use pseudo_inverse"):
        exact(torch.from_numpy(matrix))
    solve = exact(torch.from_numpy(matrix), damping=0.5)
    assert relative(solve(torch.from_numpy(B)).numpy(), solved_by_numpy(matrix, 0.5)) < 1e-11


def test_exact_refuses_a_matrix_that_only_rounding_keeps_positive_definite():
    """Cholesky itself goes through here: every pivot is positive."""
    with pytest.raises(torch.linalg.LinAlgError, match="singular to working precision"):
        exact(torch.diag(torch.tensor([1.0, 1e-18], dtype=torch.float64)))


@pytest.mark.parametrize("factory", [exact, pseudo_inverse])
def test_matrices_that_are_no_hessians_are_refused(factory):
    with pytest.raises(ValueError, match="square"):
        factory(torch.ones(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        factory(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="not symmetric"):
        factory(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("zeros", [0, 1, 12])
def test_pseudo_inverse_is_numpy_pinv_on_singular_and_indefinite_matrices(zeros):
    spectrum = np.r_[np.zeros(zeros), np.linspace(-1.05, 2.0, P - zeros)]
    matrix = oracles.random_symmetric(spectrum)
    expected = B @ np.linalg.pinv(matrix, rcond=1e-8, hermitian=True)
    solve = pseudo_inverse(torch.from_numpy(matrix))
    assert relative(solve(torch.from_numpy(B)).numpy(), expected) < 1e-11
    assert relative(solve(torch.from_numpy(B[0])).numpy(), expected[0]) < 1e-11


def test_pseudo_inverse_cuts_relative_to_the_largest_eigenvalue():
    matrix = torch.diag(torch.tensor([100.0, 2.0, 0.5], dtype=torch.float64))
    ones = torch.ones(3, dtype=torch.float64)
    assert pseudo_inverse(matrix, rtol=1e-2)(ones).tolist() == [0.01, 0.5, 0]
    assert pseudo_inverse(matrix, rtol=1e-3)(ones).tolist() == [0.01, 0.5, 2]


def test_cg_needs_no_more_steps_than_there_are_distinct_eigenvalues():
    matrix = oracles.random_symmetric(np.repeat([1.0, 2.0, 5.0], P // 3))
    solved = cg_solve(product(matrix), torch.from_numpy(B[0]), SolverConfig(damping=0.0, rtol=1e-10))
    assert solved.steps == 3
    assert relative(solved.x.numpy(), solved_by_numpy(matrix, 0)[0]) < 1e-10


@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
@pytest.mark.parametrize(
    "solve",
    [
        lambda b, rtol: cg_solve(product(MATRIX), b, SolverConfig(damping=0.1, rtol=rtol)),
        lambda b, rtol: lissa_solve(product(MATRIX), b, damping=0.1, scale=4.1, rtol=rtol),
    ],
    ids=["cg", "lissa"],
)
def test_the_reported_residual_is_the_true_one_and_within_the_tolerance(solve, rtol):
    b = torch.from_numpy(B[0])
    solved = solve(b, rtol)
    true = np.linalg.norm(B[0] - (MATRIX + 0.1 * np.eye(P)) @ solved.x.numpy()) / np.linalg.norm(B[0])
    assert solved.residual == pytest.approx(true, rel=1e-6)
    assert 0 < solved.residual <= rtol
    assert solve(8 * b, rtol).steps == solved.steps  # the tolerance is relative; 8 scales without rounding


def test_cg_names_negative_curvature_and_enough_damping_repairs_it():
    matrix = oracles.random_symmetric(np.linspace(-0.5, 2.0, P))
    for damping in (0.0, 0.45):
        with pytest.raises(NotConverged, match=r"negative curvature -.*raise the damping .*above -min_eig"):
            cg(product(matrix), SolverConfig(damping=damping))(torch.from_numpy(B))
    solve = cg(product(matrix), SolverConfig(damping=0.6, rtol=1e-10))
    assert relative(solve(torch.from_numpy(B)).numpy(), solved_by_numpy(matrix, 0.6)) < 1e-8


def test_cg_out_of_steps_says_how_far_it_came():
    with pytest.raises(
        NotConverged, match=r"residual \d\.\d+ after 4 steps, asked for 1e-06; raise max_iter"
    ) as caught:
        cg_solve(product(MATRIX), torch.from_numpy(B[0]), SolverConfig(damping=0.0, max_iter=4))
    solved = caught.value.solved
    true = np.linalg.norm(B[0] - MATRIX @ solved.x.numpy()) / np.linalg.norm(B[0])
    assert solved.residual == pytest.approx(true, rel=1e-10)
    assert solved.steps == 4


def test_cg_does_not_believe_a_recurrence_that_drifted():
    """In float32, with one eigenvalue of 1e-5 among ones, the recurrence passes 1e-6 and the truth never does."""
    matrix = torch.from_numpy(oracles.random_symmetric(np.r_[1e-5, np.ones(P - 1)])).float()
    b = torch.from_numpy(B[0]).float()
    with pytest.raises(NotConverged, match="after 50 steps") as caught:
        cg_solve(lambda v: matrix @ v, b, SolverConfig(damping=0.0, rtol=1e-6, max_iter=50))
    assert caught.value.solved.residual > 2e-6


def test_solvers_stop_at_a_product_that_is_not_finite():
    b = torch.from_numpy(B[0])
    with pytest.raises(NotConverged, match="not finite"):
        cg(lambda v: v * torch.nan)(b)
    with pytest.raises(NotConverged, match="diverged: residual nan"):
        lissa(lambda v: v * torch.nan, P, scale=1.0)(b)


@pytest.mark.parametrize(
    ("spectrum", "scale"),
    [(SPECTRUM, 1.9), (np.linspace(-0.5, 2.0, P), 2.0), (np.linspace(-0.5, 2.0, P), None)],
    ids=["scale-too-small", "indefinite", "indefinite-own-scale"],
)
def test_lissa_that_diverges_raises_and_names_what_to_change(spectrum, scale):
    matrix = oracles.random_symmetric(spectrum)
    message = r"diverged: residual .* raise the scale \(now .*\) above half the largest eigenvalue, and the damping"
    with pytest.raises(NotConverged, match=message) as caught:
        lissa(product(matrix), P, damping=0.01, scale=scale)(torch.from_numpy(B))
    assert caught.value.solved.residual >= 1e3


def test_lissa_out_of_depth_returns_the_truncated_neumann_series_in_the_error():
    """After t products the iterate is (1/σ) Σ_{j<t-1} (I - A/σ)^j b, here summed by hand."""
    scale, depth, damping = 5.0, 8, 0.2
    A = MATRIX + damping * np.eye(P)
    series = sum(np.linalg.matrix_power(np.eye(P) - A / scale, j) @ B[0] for j in range(depth - 1)) / scale
    with pytest.raises(
        NotConverged, match=r"LiSSA: residual 0\.\d+ after 8 steps.*raise depth or the damping"
    ) as caught:
        lissa_solve(product(MATRIX), torch.from_numpy(B[0]), damping=damping, scale=scale, depth=depth)
    np.testing.assert_allclose(caught.value.solved.x, series, atol=1e-14)


def test_lissa_refuses_a_scale_that_cannot_be_and_a_matrix_without_positive_eigenvalues():
    b = torch.from_numpy(B[0])
    with pytest.raises(ValueError, match="scale must be > 0"):
        lissa_solve(product(MATRIX), b, damping=0.0, scale=0.0)
    with pytest.raises(ValueError, match="depth >= 1"):
        lissa_solve(product(MATRIX), b, damping=0.0, scale=1.0, depth=0)
    with pytest.raises(ValueError, match="largest eigenvalue"):
        lissa(product(-MATRIX - np.eye(P)), P)


@pytest.mark.parametrize(
    "spectrum",
    [
        SPECTRUM,
        -SPECTRUM,
        np.linspace(-3.0, 1.0, P),
        np.linspace(-1.0, 3.0, P),
        np.r_[np.zeros(P - 2), 1e-3, 7.0],
        np.full(P, 2.5),
        np.full(P, -2.5),
        np.zeros(P),
        np.linspace(-3.0, 1.0, 5),
        np.array([4.0]),
    ],
)
def test_extreme_eigenvalues_match_numpy(spectrum):
    matrix = oracles.random_symmetric(spectrum)
    values = np.linalg.eigvalsh(matrix)
    actual = extreme_eigenvalues(product(matrix), len(spectrum), rtol=1e-9)
    np.testing.assert_allclose(actual, (values[0], values[-1]), atol=1e-8 * max(1.0, np.abs(values).max()))


def test_extreme_eigenvalues_takes_float32_products():
    matrix = torch.from_numpy(MATRIX).float()
    actual = extreme_eigenvalues(lambda v: matrix @ v, P, rtol=1e-4, dtype=torch.float32)
    np.testing.assert_allclose(actual, (SPECTRUM[0], SPECTRUM[-1]), atol=1e-3)


@pytest.mark.parametrize("bad", [{"damping": -0.1}, {"rtol": 0.0}, {"rtol": 1.0}, {"max_iter": 0}])
def test_config_refuses_values_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SolverConfig(**bad)
