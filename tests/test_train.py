"""Training against a loop in numpy, scikit-learn's optimum, and fresh processes."""

import ast
import functools
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression, Ridge

from clif_kit.train import Checkpoint, _polish, converge, fit, set_seed

F64 = torch.float64


def squared(params, x, y):
    return (x @ params["w"] - y).square() / 2


def logistic_with_l2(params, x, y):
    margin = (2 * y - 1) * (x @ params["w"] + params["b"])
    return torch.nn.functional.softplus(-margin) + 0.05 * params["w"].square().sum()


@pytest.fixture(name="regression")
def _regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    return x, x @ [1.0, -2.0, 0.5] + rng.normal(size=12)


def start(p=3):
    return {"w": torch.zeros(p, dtype=F64)}


def test_sgd_with_weights_and_a_schedule_is_the_recursion_in_numpy(regression):
    x, y = regression
    weights = np.array([0.0, 3.0] + [1.0] * 10)
    theta, values = np.zeros(3), []
    for step in range(25):
        residual = x @ theta - y
        values.append((weights * residual**2 / 2).sum() / weights.sum())
        theta = theta - 0.3 / (1 + step) * x.T @ (weights * residual) / weights.sum()
    batch = torch.from_numpy(x), torch.from_numpy(y)
    fitted = fit(
        squared, start(), batch, steps=25, lr=lambda step: 0.3 / (1 + step), optimizer=torch.optim.SGD,
        weights=torch.from_numpy(weights), checkpoint_every=10,
    )  # fmt: skip
    np.testing.assert_allclose(fitted.params["w"].numpy(), theta, rtol=1e-12)
    np.testing.assert_allclose(fitted.history.numpy(), values, rtol=1e-12)
    assert fitted.loss == pytest.approx((weights * (x @ theta - y) ** 2 / 2).sum() / weights.sum(), rel=1e-12)
    assert [c.step for c in fitted.checkpoints] == [10, 20, 25]
    np.testing.assert_allclose([c.lr for c in fitted.checkpoints], [0.3 / 10, 0.3 / 20, 0.3 / 25])
    assert torch.equal(fitted.checkpoints[-1].params["w"], fitted.params["w"])
    early = fit(squared, start(), batch, steps=10, lr=lambda step: 0.3 / (1 + step), optimizer=torch.optim.SGD,
                weights=torch.from_numpy(weights))  # fmt: skip
    assert torch.equal(fitted.checkpoints[0].params["w"], early.params["w"])


def test_an_epoch_of_minibatches_sees_every_example_once_and_shuffles(regression):
    """Oracle: with a linear loss, SGD adds up the rows that it has seen."""
    x = torch.from_numpy(regression[0])
    seen = []

    def linear(params, rows, index):
        seen.append(index.tolist())
        return rows @ params["w"]

    fit(linear, start(), (x, torch.arange(12)), steps=6, lr=0.1, batch_size=5, optimizer=torch.optim.SGD, seed=1)
    first, second = (seen[i] + seen[i + 1] + seen[i + 2] for i in (0, 3))
    assert [len(rows) for rows in seen[:6]] == [5, 5, 2, 5, 5, 2]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_same_seed_gives_the_same_bits_and_the_global_stream_does_not_matter(regression):
    x, y = map(torch.from_numpy, regression)

    def noisy(params, x, y):
        return squared(params, x * torch.bernoulli(torch.full_like(x, 0.5)), y)

    run = functools.partial(fit, noisy, start(), (x, y), steps=20, lr=0.05, batch_size=4)
    torch.manual_seed(1)
    first, state = run(seed=7).params["w"], torch.get_rng_state()
    torch.rand(3)
    again, other = run(seed=7).params["w"], run(seed=8).params["w"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("what", ["order", "noise"])
def test_the_seed_decides_the_order_and_the_noise(regression, what):
    x, y = map(torch.from_numpy, regression)

    def losses(params, x, y):
        return squared(params, x if what == "order" else x * torch.bernoulli(torch.full_like(x, 0.5)), y)

    size = 4 if what == "order" else None
    ends = [fit(losses, start(), (x, y), steps=5, lr=0.05, batch_size=size, seed=s).params["w"] for s in (0, 1, 1)]
    assert not torch.equal(ends[0], ends[1])
    assert torch.equal(ends[1], ends[2])


def test_minibatch_training_with_weight_zero_ignores_the_example(regression):
    x, y = map(torch.from_numpy, regression)
    weights = torch.ones(12)
    weights[4] = 0
    spoilt = y.clone()
    spoilt[4] = 1e6
    runs = [
        fit(squared, start(), (x, t), steps=30, lr=0.1, batch_size=5, weights=weights).params["w"] for t in (y, spoilt)
    ]
    assert torch.equal(*runs)


def test_the_start_is_left_as_it_was(regression):
    params = start()
    fit(squared, params, tuple(map(torch.from_numpy, regression)), steps=3, lr=0.1)
    converge(squared, params, tuple(map(torch.from_numpy, regression)))
    assert torch.equal(params["w"], torch.zeros(3, dtype=F64))
    assert not params["w"].requires_grad


def test_converge_finds_scikit_learns_logistic_optimum():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 4))
    y = (x @ [1, -1, 0.5, 0] + rng.normal(size=60) > 0).astype(float)
    weights = rng.uniform(0.5, 2, size=60)
    fitted = converge(
        logistic_with_l2, {"w": torch.zeros(4), "b": torch.zeros(())},
        (torch.from_numpy(x), torch.from_numpy(y)), tol=1e-10, weights=torch.from_numpy(weights),
    )  # fmt: skip
    scaled = weights / weights.mean()
    oracle = LogisticRegression(C=1 / (0.1 * 60), tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(
        x, y, scaled
    )
    np.testing.assert_allclose(fitted.params["w"].numpy(), oracle.coef_[0], atol=1e-8)
    assert float(fitted.params["b"]) == pytest.approx(oracle.intercept_[0], abs=1e-8)
    residual = 1 / (1 + np.exp(-(x @ oracle.coef_[0] + oracle.intercept_[0]))) - y
    gradient = np.append(x.T @ (scaled * residual) / 60 + 0.1 * oracle.coef_[0], (scaled * residual).mean())
    assert np.linalg.norm(gradient) < 1e-8  # the oracle is one
    assert fitted.grad_norm <= 1e-10


def test_converge_gets_below_the_noise_of_the_objective_where_it_is_ill_conditioned():
    """Oracle: ridge by scikit-learn. With condition 1e6 a line search on values alone stops early."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 6)) * np.logspace(0, 3, 6)
    y = rng.normal(size=40) + 1e3

    def penalised(params, x, y):
        return squared(params, x, y) + 0.005 * params["w"].square().sum()

    fitted = converge(penalised, start(6), (torch.from_numpy(x), torch.from_numpy(y)), tol=1e-7)
    oracle = Ridge(alpha=0.01 * 40, fit_intercept=False, solver="cholesky").fit(x, y).coef_
    np.testing.assert_allclose(fitted.params["w"].numpy(), oracle, rtol=1e-7)
    assert fitted.grad_norm <= 1e-7


def test_converge_says_so_when_it_did_not(regression):
    x, y = map(torch.from_numpy, regression)

    def kinked(params, x, y):  # no second derivative that would help
        return (x @ params["w"] - y).abs()

    with pytest.warns(RuntimeWarning, match=r"\|gradient\| is .*, above tol=1e-08"):
        fitted = converge(kinked, start(), (x, y), max_iter=20)
    gradient = x.T @ (x @ fitted.params["w"] - y).sign() / 12
    assert fitted.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-9)
    assert fitted.grad_norm > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converge(squared, start(), (x, y))


def test_converge_does_not_climb_to_a_saddle():
    """The second round looks at gradients only; w = 0 is a maximum of this one, with a gradient of zero."""

    def double_well(params, _):
        return (params["w"] ** 2 - 1).square().sum().expand(1)

    fitted = converge(double_well, {"w": torch.tensor([0.1, -0.3])}, (torch.zeros(1),))
    np.testing.assert_allclose(fitted.params["w"].abs().numpy(), 1, atol=1e-8)


def test_the_newton_round_does_not_buy_a_smaller_gradient_with_a_higher_objective():
    """From 1.3, Newton's step on -cos(w) lands at -2.3: flatter, and higher."""
    found, loss, _ = _polish(lambda w: -torch.cos(w).sum(), torch.tensor([1.3], dtype=F64), 1e-8)
    assert loss <= -math.cos(1.3)
    assert loss == -math.cos(float(found))


def test_an_exploding_run_stops_and_names_the_step(regression):
    with pytest.raises(FloatingPointError, match=r"step \d+: lower the learning rate"):
        fit(squared, start(), tuple(map(torch.from_numpy, regression)), steps=2000, lr=10.0, optimizer=torch.optim.SGD)


def test_converge_does_not_speak_of_a_learning_rate_that_it_does_not_have():
    with pytest.raises(FloatingPointError, match=r"at step 0: start elsewhere"):
        converge(lambda params, x: params["w"] * x, start(), (torch.full((3,), math.nan),))


@pytest.mark.parametrize("weights", [torch.ones(11), -torch.ones(12), torch.zeros(12), torch.full((12,), math.nan)])
def test_bad_weights_are_refused(regression, weights):
    with pytest.raises(ValueError, match="weights must be 12 numbers"):
        fit(squared, start(), tuple(map(torch.from_numpy, regression)), steps=1, lr=0.1, weights=weights)


PARAMS = {"z.weight": torch.randn(2, 3), "a.bias": torch.tensor([1e-300], dtype=F64), "m": torch.arange(4)}


def test_a_checkpoint_comes_back_exactly_in_another_process(tmp_path):
    path = tmp_path / "c.safetensors"
    Checkpoint({**PARAMS, "view": torch.eye(3)[:, ::2]}, lr=0.1 + 0.2, step=12).save(path)
    code = """
import sys
from clif_kit.train import Checkpoint
c = Checkpoint.load(sys.argv[1])
numbers = {name: value.tolist() for name, value in c.params.items()}
print(repr((list(numbers), numbers, c.lr, c.step)))
"""
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    numbers = {**{name: value.tolist() for name, value in PARAMS.items()}, "view": [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]}
    assert ast.literal_eval(out) == (list(numbers), numbers, 0.1 + 0.2, 12)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z.weight": torch.zeros(3, 2)}, r"z\.weight: \(2, 3\) where \(3, 2\) is expected; 1 differences"),
        ({"extra": torch.zeros(1)}, r"extra: missing where \(1,\) is expected"),
        ({"m": None}, r"m: \(4,\) where nothing is expected"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    Checkpoint(PARAMS, lr=0.1, step=1).save(path)
    like = {name: value for name, value in {**PARAMS, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Checkpoint.load(path, like=like)
    assert list(Checkpoint.load(path, like=PARAMS).params) == list(PARAMS)


def test_what_is_no_checkpoint_is_refused_and_no_pickle_is_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    path = tmp_path / "c"
    for content in (pickle.dumps(Bomb()), b"", b"\x10" + b"\0" * 7 + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no checkpoint"):
            Checkpoint.load(path)
    save_file({"w": torch.ones(1)}, path)  # someone else's safetensors
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        Checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        Checkpoint.load(tmp_path / "missing")


def test_set_seed_seeds_python_numpy_and_torch():
    import random

    def draws():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    set_seed(4)
    first = draws()
    set_seed(4)
    assert draws() == first
    set_seed(5)
    assert not set(draws()) & set(first)
