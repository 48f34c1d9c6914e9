"""Influence between examples; the gradient of J against plain autograd, finite differences and p, q, r, s."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from text_cases import model, tokens
from tuning_cases import noisy_model, slopes, tuple_of

from clif_kit.example_vectors import loss_gradients
from clif_kit.gradients import flatten
from clif_kit.text_models import text_losses
from clif_kit.text_vectors import text_gradients, text_states
from clif_kit.tuning import (
    confound_gradient,
    confound_gradient_grouped,
    four_terms,
    influence,
    influence_gap,
)

K = 3
KINDS = ("bert", "roberta", "tied", "cnn")
SUBSET = ("model.bert.embeddings.word_embeddings.weight", "model.bert.pooler.dense.weight", "model.classifier.bias")
INNER = ("model.bert.encoder.layer.1.output.dense.weight", "model.bert.encoder.layer.0.output.LayerNorm.bias")


def leaves_of(params):
    return {name: value.clone().requires_grad_() for name, value in params.items()}


def cosines(vectors):
    units = vectors / vectors.norm(dim=1, keepdim=True)
    return units @ units.T


def oracle(losses, params, batch, names=None, cosine=True):
    """J and its gradient: gradients one by one over the whole table, cosines written out, autograd of the square."""
    leaves = leaves_of(params)
    found = slopes(losses, leaves, batch, names)
    scores = (cosines(found) if cosine else found @ found.T)[0, 1:]
    gap = sum(scores[:K]) / K - sum(scores[K:]) / (len(scores) - K)
    gradient = torch.autograd.grad(gap**2, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return gap.item(), dict(zip(leaves, gradient, strict=True))


def distance(a, b):
    return float((flatten(a) - flatten(b)).norm() / flatten(b).norm())


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("names", [None, SUBSET, INNER])
def test_influence_is_that_of_single_gradients(names, cosine):
    made, params, batch = tuple_of("bert")
    y = torch.tensor([0, 1, 2, 1, 0, 1, 2, 2])
    batch = (*batch[:2], y)
    with torch.enable_grad():
        whole = slopes(text_losses(made), leaves_of(params), batch, names).detach()
    wanted = (cosines(whole) if cosine else whole @ whole.T)[2:5]
    for chunk in (3, 100):
        got = influence(
            text_gradients(made, names), params, batch, tuple(v[2:5] for v in batch), cosine=cosine, chunk=chunk
        )
        assert got.shape == (3, 8)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    assert not cosine or torch.allclose(got[:, 2:5].diagonal(), torch.ones(3, dtype=got.dtype))


def test_influence_foretells_the_probe_when_an_example_is_taken_out():
    """The sign: a small step that leaves out example i raises the probe's loss in proportion to the product."""
    made, params, batch = tuple_of("bert")
    probe, losses, rate = tuple(v[:1] for v in batch), text_losses(made), 1e-8
    product = influence(text_gradients(made), params, batch, probe, cosine=False)[0]
    one = slopes(losses, leaves_of(params), batch).detach()

    def after(keep):
        moved, at = {}, flatten(params) - rate * one[keep].sum(0)
        for name, value in params.items():
            moved[name], at = at[: value.numel()].reshape(value.shape), at[value.numel() :]
        return losses(moved, *probe).item()

    everyone = list(range(len(one)))
    without = [after([j for j in everyone if j != i]) - after(everyone) for i in everyone]
    np.testing.assert_allclose(np.array(without) / rate, product, rtol=1e-4)


@pytest.mark.parametrize("way", [confound_gradient, confound_gradient_grouped])
@pytest.mark.parametrize(("kind", "names", "cosine"), [
    *((kind, None, True) for kind in KINDS), ("bert", None, False), ("bert", SUBSET, True), ("bert", INNER, True),
])  # fmt: skip
def test_gradient_of_j_is_autograd_over_single_examples(way, kind, names, cosine):
    made, params, batch = tuple_of(kind)
    gap, wanted = oracle(text_losses(made), params, batch, names, cosine)
    found = way(text_gradients(made, names), params, batch, K, cosine=cosine)
    assert found.gap == pytest.approx(gap, rel=1e-9)
    assert found.loss == pytest.approx(gap**2, rel=1e-9)
    assert list(found.gradient) == list(params)
    assert distance(found.gradient, wanted) < 1e-8


@pytest.mark.parametrize("names", [None, INNER])
def test_four_terms_of_the_paper_make_the_gradient(names):
    """And a wrong sign of any of them does not."""
    made, params, batch = tuple_of("bert")
    losses, probe = text_losses(made), tuple(v[:1] for v in batch)
    terms = [four_terms(losses, params, tuple(v[i : i + 1] for v in batch), probe, names) for i in range(1, 2 * K + 2)]
    gap = influence_gap(text_gradients(made, names), params, batch, K).item()

    def assemble(signs):
        each = [{n: sum(s * t[c][n] for c, s in zip("pqrs", signs, strict=True)) for n in params} for t in terms]
        a, b = ({n: sum(e[n] for e in part) / len(part) for n in params} for part in (each[:K], each[K:]))
        return {n: 2 * gap * (a[n] - b[n]) for n in params}

    found = confound_gradient(text_gradients(made, names), params, batch, K).gradient
    assert distance(assemble((1, 1, -1, -1)), found) < 1e-8
    for wrong in ((1, 1, 1, -1), (1, 1, -1, 1), (-1, 1, -1, -1), (1, -1, -1, -1)):
        assert distance(assemble(wrong), found) > 1e-2


@pytest.mark.parametrize("vectors", [text_gradients, text_states, lambda made: text_states(made, "pooled")])
def test_gradient_of_j_is_a_finite_difference(vectors):
    made, params, batch = tuple_of("bert")
    vectors = vectors(made)
    found = confound_gradient(vectors, params, batch, K).gradient
    draw, h = torch.Generator().manual_seed(0), 1e-5
    for name in (
        "model.bert.embeddings.word_embeddings.weight",
        "model.bert.encoder.layer.0.attention.self.key.weight",
    ):
        way = torch.randn(params[name].shape, generator=draw, dtype=params[name].dtype)
        above, below = (
            influence_gap(vectors, {**params, name: params[name] + s * h * way}, batch, K).square() for s in (1, -1)
        )
        assert float((above - below) / (2 * h)) == pytest.approx(float((found[name] * way).sum()), rel=1e-5)


def test_a_step_along_the_gradient_closes_the_gap():
    made, params, batch = tuple_of("bert")
    vectors = text_gradients(made)
    found = confound_gradient(vectors, params, batch, K)
    step = 0.1 * found.loss / float(flatten(found.gradient).square().sum())
    moved = {name: value - step * found.gradient[name] for name, value in params.items()}
    assert float(influence_gap(vectors, moved, batch, K).square()) == pytest.approx(0.9 * found.loss, rel=0.02)


def test_embedding_influence_is_that_of_the_labels_row_in_the_last_layer():
    """Section 4.1 holds for what enters the last layer: the pooled state, not the raw one of [CLS]."""
    made, params, batch = tuple_of("bert")
    head = f"{made.head}.weight"
    rows = slopes(text_losses(made), leaves_of(params), batch, [head]).detach()
    rows = rows.reshape(len(rows), *params[head].shape)[:, 1]  # every text has the label 1
    probe = tuple(v[:1] for v in batch)
    pooled, raw = (influence(text_states(made, state), params, batch, probe)[0] for state in ("pooled", "cls"))
    torch.testing.assert_close(pooled, cosines(rows)[0], rtol=1e-10, atol=1e-12)
    assert (raw - pooled).abs().max() > 1e-2


def test_the_pooled_state_is_made_from_that_of_cls():
    made, params, batch = tuple_of("bert")
    raw, pooled = (text_states(made, state)(params, *batch).values[state] for state in ("cls", "pooled"))
    weight, bias = (params[f"model.bert.pooler.dense.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(torch.tanh(raw @ weight.T + bias), pooled)


def test_states_of_a_classifier_need_no_classifier():
    made, params, batch = tuple_of("bert")
    found = confound_gradient(text_states(made), params, batch, K).gradient
    still = [name for name, value in found.items() if not value.any()]
    assert f"{made.head}.weight" in still
    assert "model.bert.pooler.dense.weight" in still
    pooled = confound_gradient(text_states(made, "pooled"), params, batch, K).gradient
    assert [name for name, value in pooled.items() if not value.any()] == [f"{made.head}.weight", f"{made.head}.bias"]


def test_padding_and_unused_words_do_not_matter():
    made, params, batch = tuple_of("bert")
    wide = tuple(torch.cat([value, torch.zeros(len(value), 4, dtype=value.dtype)], 1) for value in batch[:2])
    wide[0][wide[1] == 0] = 31
    found, same = (confound_gradient(text_gradients(made), params, b, K) for b in (batch, (*wide, batch[2])))
    assert distance(same.gradient, found.gradient) < 1e-12
    assert not found.gradient[made.embedding][30:].any()


def test_rows_of_one_text_and_of_many_are_the_same_vectors():
    made, params, batch = tuple_of("tied")
    vectors = text_gradients(made)
    whole, dense, sums = vectors(params, *batch), None, None
    for i in range(len(whole)):
        part = vectors(params, *(v[i : i + 1] for v in batch))
        dense, sums = dense or part.zeros(8, params), sums or part.zeros(1, params)
        part.add_to(dense, torch.eye(8, dtype=torch.float64)[:, i : i + 1])
        part.add_to(sums, torch.full((1, 1), float(i), dtype=torch.float64))
        torch.testing.assert_close(part.squares(), whole.squares()[i : i + 1])
    torch.testing.assert_close(whole.dot(dense), whole.gram())
    torch.testing.assert_close(whole.dot(sums), whole.gram() @ torch.arange(8.0, dtype=torch.float64)[:, None])


def test_dropout_is_refused():
    made, params = noisy_model()
    with pytest.raises(ValueError, match="pass the model itself"):
        text_gradients(made.training())
    with pytest.raises(ValueError, match="pass the model itself"):
        text_states(made.training())
    part = tokens(8)
    batch = (part.ids, part.parts, torch.ones(8, dtype=torch.long))
    first, second = (confound_gradient(text_gradients(made), params, batch, K).loss for _ in range(2))
    assert first == second


def test_a_fused_attention_gives_way_to_the_eager_one():
    made, params, batch = tuple_of("bert")
    module = copy.deepcopy(made.module)
    module.model.config._attn_implementation = "sdpa"
    fused = replace(made, module=module)
    with pytest.warns(UserWarning, match="'sdpa' cannot be differentiated twice: 'eager' is used"):
        vectors = text_gradients(fused)
    found = confound_gradient(vectors, params, batch, K).gradient
    assert distance(found, confound_gradient(text_gradients(made), params, batch, K).gradient) < 1e-10
    assert module.model.config._attn_implementation == "sdpa"


def test_bad_input_says_what_to_do():
    made, params, batch = tuple_of("bert")
    with pytest.raises(ValueError, match="nonsense is no parameter"):
        text_gradients(made, ["nonsense"])
    with pytest.raises(ValueError, match="nothing is no parameter"):
        loss_gradients(text_losses(made), [])(params, *batch)
    with pytest.raises(ValueError, match="state must be"):
        text_states(made, "mean")
    with pytest.raises(ValueError, match="use state='pooled'"):
        text_states(model("cnn")[0])
    for k in (0, 7):
        with pytest.raises(ValueError, match="one is empty"):
            confound_gradient(text_gradients(made), params, batch, k)
    with pytest.raises(ValueError, match="chunk"):
        influence(text_gradients(made), params, batch, batch, chunk=0)


def test_a_gradient_of_zero_is_not_passed_over():
    losses = loss_gradients(lambda params, x: (x * params["w"] ** 2).sum(1))
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    for way in (confound_gradient, confound_gradient_grouped):
        with pytest.raises(FloatingPointError, match=r"J is nan.*its vector is zero"):
            way(losses, {"w": torch.ones(2)}, (x,), 1)
    with pytest.raises(FloatingPointError, match="influence of example 1 on probe 0"):
        influence(losses, {"w": torch.ones(2)}, (x,), (x[:1],))
    tiny = loss_gradients(lambda params, x: (x * params["w"] ** 2).sum(1) * 1e-15)
    gap = confound_gradient(tiny, {"w": torch.ones(2)}, (x[[0, 0, 2]],), 1).gap
    assert gap == pytest.approx(1 - 3 / np.sqrt(10), rel=1e-4)
