"""The rows on the elastic-net path: both sides end in one place, and a wrong layer is seen. Nothing is timed."""

import numpy as np
import pytest
import torch

from benchmarks import harness, sparse


@pytest.fixture(scope="module")
def small():
    return sparse.setting(200, 12, 5)


def test_sklearn_and_ours_have_the_same_objectives(small, monkeypatch):
    monkeypatch.setattr(sparse, "SAGA_TOL", 1e-8)
    with sparse.saga_case(small) as case:
        found, theirs = case.ours()[1], case.theirs["sklearn saga"]()[1]
    assert found.shape == (5,)
    assert (found.diff() < 0).all()  # a weaker penalty leaves a smaller objective
    assert harness.difference(found, theirs) < sparse.GAP
    assert set(case.versions) == {"scikit-learn"}


def test_the_objective_is_that_of_numpy_and_sees_another_layer(small):
    x, y, lambdas = (value.numpy() for value in small)
    layers = sparse.ours(small)
    for lam, layer, value in zip(lambdas, layers.numpy(), sparse.objectives(small, layers), strict=True):
        p = 1 / (1 + np.exp(-(x @ layer[:-1] + layer[-1])))
        loss = -np.log(np.where(y == 1, p, 1 - p)).mean()
        penalty = lam * (0.005 * (layer[:-1] ** 2).sum() + 0.99 * np.abs(layer[:-1]).sum())
        assert float(value) == pytest.approx(loss + penalty, abs=1e-12)
    other = sparse.objectives(small, layers + 0.01)
    assert (other > sparse.objectives(small, layers) + 1e-6).all()


def test_the_setting_is_hard_and_not_hopeless():
    x, y, lambdas = sparse.setting(2000, 40, 50)
    values = torch.linalg.eigvalsh(x.T @ x / len(x))
    assert values[-1] / values[0] > 20
    assert 0.3 < y.double().mean() < 0.7
    assert float(lambdas[0] / lambdas[-1]) == pytest.approx(90)
    assert len(lambdas) == 50


def test_what_must_agree_and_what_is_wanted():
    assert [(row.id, row.goal, row.bound) for row in sparse.ROWS] == [
        ("glm_path", 5, 1e-7),
        ("glm_path_skglm", 1, 1e-7),
    ]
