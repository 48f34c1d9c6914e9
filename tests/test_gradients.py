"""Oracles: numpy closed forms of softmax regression, Python loops over examples, hand-made derivatives."""

import cases
import numpy as np
import oracles
import pytest
import torch

from clif_kit.gradients import (
    flatten,
    gradient,
    mean_loss,
    parameters,
    per_example_gradients,
    query_gradient,
    unflatten,
    with_l2,
)


@pytest.mark.parametrize("name", cases.ALL)
@pytest.mark.parametrize("chunk", [None, 1, 5, 256])
def test_per_example_gradients_match_a_loop_over_examples(name, chunk):
    case = cases.ALL[name]()
    actual = per_example_gradients(case.losses, case.params, case.batch, chunk=chunk)
    np.testing.assert_allclose(actual, oracles.loop_gradients(case.losses, case.params, case.batch), atol=1e-13)


def test_per_example_gradients_match_the_closed_form_of_softmax_regression():
    case = cases.softmax(l2=0.1)
    theta = flatten(case.params).numpy()
    expected = oracles.softmax_gradients(theta, *(b.numpy() for b in case.batch), k=3, l2=0.1)
    np.testing.assert_allclose(per_example_gradients(case.losses, case.params, case.batch), expected, atol=1e-13)


def test_order_of_examples_and_company_do_not_matter():
    case = cases.mlp()
    order = torch.randperm(29, generator=torch.Generator().manual_seed(0))[:13]
    some = tuple(value[order] for value in case.batch)
    everyone = per_example_gradients(case.losses, case.params, case.batch)
    np.testing.assert_allclose(per_example_gradients(case.losses, case.params, some), everyone[order], atol=1e-14)


def test_padding_has_no_gradient_unless_it_is_an_output():
    """The padding row takes part as an output word only, whose gradient is its probability times the mean vector."""
    case = cases.tied_words()
    table, (tokens, target) = case.params["table"].numpy(), (value.numpy() for value in case.batch)
    rows = per_example_gradients(case.losses, case.params, case.batch).reshape(11, 6, 3)[:, 0]
    for row, words, label in zip(rows, tokens, target, strict=True):
        mean = np.mean([table[w] for w in words if w > 0], axis=0)
        prob = np.exp(table @ mean) / np.exp(table @ mean).sum()
        np.testing.assert_allclose(row, (prob[0] - (label == 0)) * mean, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_the_weighted_sum_of_the_loop_over_n(weighted):
    case = cases.mlp()
    weights = torch.arange(29, dtype=torch.float64) if weighted else None
    each = oracles.loop_gradients(case.losses, case.params, case.batch).numpy()
    expected = (np.arange(29) if weighted else np.ones(29)) @ each / 29
    np.testing.assert_allclose(gradient(case.losses, case.params, case.batch, weights), expected, atol=1e-13)


def test_mean_loss_divides_by_n_also_when_weights_drop_examples():
    losses = lambda params, x: x * params["w"]  # noqa: E731
    keep = torch.tensor([1.0, 0.0, 1.0, 1.0])
    value = mean_loss(losses, {"w": torch.tensor(3.0)}, (torch.tensor([1.0, 100.0, 2.0, 5.0]),), keep)
    assert value.item() == 3 * (1 + 2 + 5) / 4


def test_with_l2_adds_the_penalty_to_each_example_and_its_gradient_to_each_row():
    case = cases.tied_words()
    penalised, theta = with_l2(case.losses, 0.3), flatten(case.params).numpy()
    before, after = case.losses(case.params, *case.batch), penalised(case.params, *case.batch)
    np.testing.assert_allclose(after - before, np.full(11, 0.15 * theta @ theta), rtol=1e-12)
    rows = per_example_gradients(penalised, case.params, case.batch).numpy()
    np.testing.assert_allclose(
        rows - oracles.loop_gradients(case.losses, case.params, case.batch).numpy(), np.tile(0.3 * theta, (11, 1))
    )
    with pytest.raises(ValueError, match="l2 must be >= 0"):
        with_l2(case.losses, -1.0)


def test_query_gradient_scalar_and_vector_match_closed_forms():
    """f_j = sin(a_j · w) + b²: gradient cos(a_j · w) a_j, and 2b."""
    rng = np.random.default_rng(0)
    A, w, b = rng.normal(size=(4, 3)), rng.normal(size=3), 0.7
    params = {"w": torch.from_numpy(w), "b": torch.tensor(b, dtype=torch.float64)}
    many = query_gradient(lambda p: torch.sin(torch.from_numpy(A) @ p["w"]) + p["b"] ** 2, params)
    expected = np.hstack([np.cos(A @ w)[:, None] * A, np.full((4, 1), 2 * b)])
    np.testing.assert_allclose(many, expected, atol=1e-14)
    one = query_gradient(lambda p: torch.sin(torch.from_numpy(A[2]) @ p["w"]) + p["b"] ** 2, params)
    assert one.shape == (4,)
    np.testing.assert_allclose(one, expected[2], atol=1e-14)


def test_query_that_ignores_a_parameter_has_zeros_there():
    params = {"unused": torch.ones(2, dtype=torch.float64), "w": torch.tensor([3.0], dtype=torch.float64)}
    assert query_gradient(lambda p: (p["w"] ** 2).sum(), params).tolist() == [0, 0, 6]


def test_query_with_two_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        query_gradient(lambda p: p["w"], {"w": torch.ones(2, 2)})


def test_flatten_and_unflatten_are_inverse_and_in_row_major_order():
    like = {"b": torch.zeros(()), "w": torch.zeros(2, 2), "v": torch.zeros(1)}
    stack = torch.arange(18.0).reshape(3, 6)
    params = unflatten(stack, like)
    assert params["b"].tolist() == [0, 6, 12]
    assert params["w"][1].tolist() == [[7, 8], [9, 10]]
    assert torch.equal(flatten(params, leading=1), stack)
    assert flatten({name: value[1] for name, value in params.items()}).tolist() == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="7 entries, the parameters have 6"):
        unflatten(torch.zeros(7), like)


def test_parameters_are_detached_copies_in_module_order():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    params = parameters(module)
    assert list(params) == [name for name, _ in module.named_parameters()]
    params["0.weight"].zero_()
    assert module[0].weight.abs().sum() > 0
    assert not any(value.requires_grad for value in params.values())


def test_float32_stays_float32():
    case = cases.mlp()
    params = {name: value.float() for name, value in case.params.items()}
    rows = per_example_gradients(case.losses, params, (case.batch[0].float(), case.batch[1]))
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, oracles.loop_gradients(case.losses, case.params, case.batch), atol=1e-5)
