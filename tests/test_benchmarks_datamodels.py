"""The rows on datamodels: both sides of each agree on a few models and targets. Nothing here is timed."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from benchmarks import datamodels, harness
from clif_kit.subset_training import sample_masks

SMALL = {one.kind: replace(one, models=3, steps=5, n=80) for one in datamodels.SETTINGS}


@pytest.fixture
def without_celer(monkeypatch):
    """The rivals' environment is not there in tests; what it would get is kept."""
    sent = {}

    @contextmanager
    def rivals(_, inputs, names):
        sent.update(inputs)
        yield {name: lambda: (6.0, torch.zeros(3, 20)) for name in names}, {}

    monkeypatch.setattr(datamodels, "rivals", rivals)
    return sent


@pytest.mark.parametrize("kind", SMALL)
def test_stack_and_loop_give_the_same_parameters(kind):
    with datamodels.training_case(SMALL[kind]) as sides:
        ours = sides.ours()[1]
        (theirs,) = (side()[1] for side in sides.theirs.values())
    assert ours.dtype == torch.float32
    assert ours.shape == (3, sum(value.numel() for value in datamodels.network(kind).parameters()))
    assert harness.difference(ours, theirs) < datamodels.CLOSE
    assert ours.std(0).max() > 0.01  # the models differ, so that an order that was mixed up would be seen
    assert harness.difference(ours, theirs.roll(1, 0)) > 0.01


def test_the_rival_trains_on_its_subset_only(monkeypatch):
    setting = SMALL["mlp"]
    x, y = datamodels.digits("mlp", setting.n)
    mask = sample_masks(1, setting.n, 0.5, 0)[0]
    other = torch.where(mask[:, None], x, -x)
    found = [datamodels.train_one(setting, one, y, mask, seed=0) for one in (x, other)]
    assert torch.equal(*found)
    monkeypatch.setattr(datamodels, "L2", 0.1)
    assert not torch.equal(found[0], datamodels.train_one(setting, x, y, mask, seed=0))


def test_all_lassos_have_one_answer(without_celer):
    with datamodels.lasso_case(models=300, features=20, targets=5, sample=3) as sides:
        ours = sides.ours()[1]
        answers = {name: side()[1] for name, side in sides.theirs.items()}
        assert sides.theirs["celer"]()[0] == 2.0  # seconds a target
    assert answers.pop("celer").shape == ours.shape == (3, 20)
    assert len(answers) == 2
    for name, answer in answers.items():
        assert harness.difference(ours, answer) < datamodels.COEFFICIENTS, name
    x, y = without_celer["x"].double().numpy(), without_celer["y"].double().numpy()
    assert np.abs(x.mean(0)).max() < 1e-6
    exact = [Lasso(alpha=lam, tol=1e-12).fit(x, y[:, j]).coef_ for j, lam in enumerate(without_celer["lam"].tolist())]
    assert np.abs(np.stack(exact) - ours.numpy()).max() < datamodels.COEFFICIENTS
    assert 0.05 < (ours != 0).double().mean() < 0.95


def test_the_inner_descent_has_the_same_answer():
    with datamodels.gram_case(models=300, features=20, targets=5, sample=3) as sides:
        ours, theirs = sides.ours()[1], sides.theirs["scikit-learn's descent"]()[1]
    assert harness.difference(ours, theirs) < datamodels.COEFFICIENTS


def test_each_row_has_its_goal():
    goals = {"dm_logistic": 8, "dm_mlp": 6, "dm_cnn": 1.5, "lasso": 8, "lasso_gram": 1}
    assert {row.id: row.goal for row in datamodels.ROWS} == goals
    assert [row.bound for row in datamodels.ROWS] == [1e-5, 1e-5, 1e-5, 1e-4, 1e-4]
