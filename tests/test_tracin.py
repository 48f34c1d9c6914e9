"""Oracle: the gradient of one unpadded text at a time in every parameter, by plain autograd, and their dot products."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from text_cases import CLASSES, END, F64, KINDS, ROWS, START, labels, model, tokens

from clif_kit import token_gradients as token_module
from clif_kit import traced as traced_module
from clif_kit.text_models import cross_entropy, negative_probability
from clif_kit.text_tokens import Tokens
from clif_kit.token_gradients import TokenGradients, concatenate, row_map, token_gradients
from clif_kit.traced import Traced
from clif_kit.tracin import frequent_rows, normalised, pair_scores, tracin_we, tracin_we_tops, word_parts
from clif_kit.tracin_layers import (
    by_layer,
    example_gradients,
    last_layer,
    tracin_last,
    tracin_layers,
    tracin_similarity,
)

TRAIN, QUERY = tokens(n=13, seed=0), tokens(n=5, seed=7)
Y, YQ = labels(13), labels(5, seed=2)
RATES = (0.5, 0.125)


@pytest.fixture(params=KINDS, name="kind")
def _kind(request):
    return request.param


@functools.cache
def checkpoints(kind):
    """Two unlike ones with unlike learning rates."""
    _, params = model(kind)
    draw = torch.Generator().manual_seed(11)
    later = {k: v + 0.3 * torch.randn(v.shape, generator=draw, dtype=F64) for k, v in params.items()}
    return tuple(SimpleNamespace(params=p, lr=lr) for p, lr in zip((params, later), RATES, strict=True))


def sides(kind, query_loss=negative_probability, **options):
    train = Traced(model=model(kind)[0], checkpoints=checkpoints(kind), tokens=TRAIN, y=Y, **options)
    return train, train.of(QUERY, YQ, query_loss)


@functools.cache
def brute(kind, side, c, loss=cross_entropy):
    """``{name: (n, p)}``, each text alone and without padding, with respect to the parameters themselves."""
    made, some, y = model(kind)[0], *((TRAIN, Y) if side == "train" else (QUERY, YQ))
    leaves = {name: value.clone().requires_grad_() for name, value in checkpoints(kind)[c].params.items()}
    rows = []
    for i in range(len(some)):
        real = some.parts[i] > 0
        value = loss(made.logits(leaves, some.ids[i][real][None], some.parts[i][real][None]), y[i : i + 1])[0]
        rows.append([g.flatten() for g in torch.autograd.grad(value, list(leaves.values()))])
    return dict(zip(leaves, (torch.stack(column).numpy() for column in zip(*rows, strict=True)), strict=True))


def table(kind, side, c, loss=cross_entropy):
    name = model(kind)[0].embedding
    return brute(kind, side, c, loss)[name].reshape(-1, ROWS, 8)


def dots(kind, keep=slice(None)):
    """TR-WE by dense dot products over some rows of the table."""
    pairs = [(table(kind, "train", c), table(kind, "query", c, negative_probability)) for c in (0, 1)]
    return sum(r * np.einsum("nrd,qrd->qn", t[:, keep], q[:, keep]) for r, (t, q) in zip(RATES, pairs, strict=True))


def close(found, expected, tolerance=1e-11):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(expected).max() > 0


# --- token gradients ---


def test_token_gradients_add_up_to_the_gradient_of_the_table(kind):
    made, params = model(kind)
    found = token_gradients(made, params, TRAIN, Y, chunk=4)
    dense = np.zeros((len(TRAIN), ROWS, 8))
    np.add.at(dense, (found.owners, found.tokens), found.values)
    close(dense, table(kind, "train", 0))
    np.testing.assert_allclose(found.norms(), np.linalg.norm(table(kind, "train", 0), axis=(1, 2)), rtol=1e-12)


def test_each_gradient_stands_at_its_place(kind):
    made, params = model(kind)
    found = token_gradients(made, params, TRAIN, Y)
    for i in range(len(TRAIN)):
        mine = slice(found.offsets[i], found.offsets[i + 1])
        length = int((TRAIN.parts[i] > 0).sum())
        tied = len(made.label_words)
        assert found.places[mine].tolist() == [*range(length), *range(-tied, 0)]
        assert found.tokens[mine].tolist() == [*TRAIN.ids[i, :length].tolist(), *made.label_words]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_batch_padding_and_order_do_not_matter(kind, chunk):
    made, params = model(kind)
    whole = token_gradients(made, params, TRAIN, Y)
    draw = torch.Generator().manual_seed(chunk)
    wide = torch.randint(ROWS, (13, 15), generator=draw)
    wide[:, : TRAIN.ids.shape[1]] = torch.where(TRAIN.parts > 0, TRAIN.ids, wide[:, : TRAIN.ids.shape[1]])
    padded = Tokens(wide, torch.nn.functional.pad(TRAIN.parts, (0, 6)), TRAIN.special, TRAIN.names)
    order = torch.randperm(13, generator=draw)
    found = token_gradients(made, params, padded.take(order), Y[order], chunk=chunk)
    for new, old in enumerate(order.tolist()):
        a, b = slice(*found.offsets[new : new + 2]), slice(*whole.offsets[old : old + 2])
        assert found.tokens[a].tolist() == whole.tokens[b].tolist()
        np.testing.assert_allclose(found.values[a], whole.values[b], rtol=1e-10, atol=1e-13)


def test_the_largest_places_by_hand():
    values = np.array([[3.0, 0], [0, -4], [1, 1], [2, 0], [0, 2], [1, 0]])
    made = TokenGradients(np.array([5, 5, 6, 7, 8, 9]), np.array([0, 1, 2, 0, 1, 2]), np.array([0, 3, 6]), values)
    assert made.top(2).tokens.tolist() == [5, 5, 7, 8]
    assert made.top(1).tokens.tolist() == [5, 7]  # the first of equals
    assert made.top(1).places.tolist() == [1, 0]
    assert made.top(9).offsets.tolist() == [0, 3, 6]
    joined = concatenate([made.top(1), made])
    assert joined.offsets.tolist() == [0, 1, 2, 5, 8]
    np.testing.assert_allclose(joined.norms(), [4, 2, np.sqrt(9 + 16 + 2), 3])
    with pytest.raises(ValueError, match="at least 1"):
        made.top(0)


def test_two_tokens_worked_by_hand():
    """One word twice in the training text: its row gets 1 + 2 before the product, (1 + 2) * 5 + 7 * (-1) = 8."""
    train = TokenGradients(np.array([4, 9, 4]), np.arange(3), np.array([0, 3]), np.array([[1.0], [7.0], [2.0]]))
    query = TokenGradients(np.array([9, 4, 8]), np.arange(3), np.array([0, 3]), np.array([[-1.0], [5.0], [100.0]]))
    assert pair_scores(row_map(train), row_map(query), 1, 1).tolist() == [[[8.0]]]
    kinds = np.zeros(10, dtype=int)
    kinds[[4, 9]] = 1, 2
    assert pair_scores(row_map(train), row_map(query), 1, 1, kinds)[:, 0, 0].tolist() == [0.0, 15.0, -7.0]
    alone = TokenGradients(np.array([8]), np.arange(1), np.array([0, 1]), np.array([[1.0]]))
    assert pair_scores(row_map(train), row_map(alone), 1, 1).tolist() == [[[0.0]]]


# --- scores on words ---


def test_scores_equal_dense_gradients_of_each_text_alone(kind):
    train, query = sides(kind, block=4, chunk=3)
    close(tracin_we(train, query).total, dots(kind))


def test_without_special_tokens_and_without_frequent_words(kind):
    """Special tokens can carry nearly all of a score, so an agreement that includes them would show little."""
    train, query = sides(kind, block=5)
    frequent = [5, 8]
    found = tracin_we(train, query, frequent=frequent)
    plain = [row for row in range(ROWS) if row not in (START, END, *frequent)]
    close(found.words, dots(kind, plain))
    close(found.special, dots(kind, [START, END]))
    close(found.frequent, dots(kind, frequent))
    special, rest = np.abs(dots(kind, [START, END])), np.abs(dots(kind, [*plain, *frequent]))
    np.testing.assert_allclose(found.special_share, special.sum(1) / (special.sum(1) + rest.sum(1)), rtol=1e-10)
    assert ((found.special_share[1:] > 0) & (found.special_share[1:] < 1)).all()
    assert (found.special_share[0] == 1) == (kind != "tied")  # the first query is an empty text


def top_dense(kind, side, c, k, loss):
    """The k largest places of each text, by a loop over places on gradients that are taken place by place."""
    made, some, y = model(kind)[0], *((TRAIN, Y) if side == "train" else (QUERY, YQ))
    params, dense = checkpoints(kind)[c].params, np.zeros((len(some), ROWS, 8))
    for i in range(len(some)):
        ids, parts = (t[i][some.parts[i] > 0][None] for t in (some.ids, some.parts))
        x = made.embed(params, ids, parts).requires_grad_()
        logits = made.classify(params, x, made.features(params, x, parts))
        (g,) = torch.autograd.grad(loss(logits, y[i : i + 1]).sum(), x)
        places = sorted(range(g.shape[1]), key=lambda p, g=g: -float(g[0, p].norm()))[:k]
        for p in places:
            dense[i, [*ids[0].tolist(), *made.label_words][p]] += g[0, p].numpy()
    return dense


@pytest.mark.parametrize("kind", ["cnn", "bert", "tied"])
def test_top_places_are_chosen_at_each_checkpoint_on_both_sides(kind):
    train, query = sides(kind, block=6)
    all_places, three, many = tracin_we_tops(train, query, [None, 3, 99])
    expected = sum(
        rate * np.einsum("nrd,qrd->qn", top_dense(kind, "train", c, 3, cross_entropy),
                         top_dense(kind, "query", c, 3, negative_probability))
        for c, rate in enumerate(RATES)
    )  # fmt: skip
    close(three.total, expected)
    np.testing.assert_array_equal(many.total, all_places.total)
    np.testing.assert_allclose(tracin_we(train, query, top=3).total, three.total, rtol=1e-12, atol=1e-15)
    kept = tracin_we(replace(train, top=3), replace(query, top=3))
    np.testing.assert_allclose(kept.total, three.total, rtol=1e-12, atol=1e-15)


def test_more_places_than_were_kept_are_refused():
    train, query = sides("cnn", top=3)
    with pytest.raises(ValueError, match="top = 5, but only the first 3 were kept"):
        tracin_we(train, query, top=5)


def test_the_sign_is_that_of_helpful_and_the_learning_rate_counts():
    """A text is a proponent of itself; half the learning rates, half the score."""
    train, _ = sides("bert")
    own = tracin_we(train, train)
    assert (np.diag(own.total) > 0).all()
    np.testing.assert_allclose(np.diag(normalised(own.total)), 1)
    half = tuple(SimpleNamespace(params=p.params, lr=p.lr / 2) for p in train.checkpoints)
    slow = replace(train, checkpoints=half)
    np.testing.assert_allclose(tracin_we(slow, slow).total, own.total / 2, rtol=1e-12)


def test_one_small_step_on_a_text_does_what_the_score_says():
    """Oracle: the query loss before and after a plain gradient step on the table, with its sign: -change / lr."""
    train = sides("cnn")[0]
    made, params = model("cnn")
    first = replace(train, checkpoints=(SimpleNamespace(params=params, lr=1e-6),))
    found = tracin_we(first, first.of(QUERY, YQ, negative_probability)).total
    gradient = table("cnn", "train", 0)
    before = negative_probability(made.logits(params, QUERY.ids, QUERY.parts), YQ)
    for i in range(3):
        moved = {**params, made.embedding: params[made.embedding] - 1e-6 * torch.from_numpy(gradient[i])}
        after = negative_probability(made.logits(moved, QUERY.ids, QUERY.parts), YQ)
        np.testing.assert_allclose((before - after).numpy(), found[:, i], rtol=1e-3, atol=1e-11)


# --- words ---


def test_word_parts_sum_to_the_score_on_every_side(kind):
    train, query = sides(kind)
    scores = tracin_we(train, query).total
    for i, q in ((0, 0), (1, 1), (4, 3)):
        parts = word_parts(train, query, i, q)
        for side in (parts.parts, parts.train, parts.query):
            np.testing.assert_allclose(side.sum(), scores[q, i], rtol=1e-9, atol=1e-14)
        extra = {train.tokens.names[w] for w in train.model.label_words}
        assert set(parts.names) == (set(TRAIN.words(i)) | extra) & (set(QUERY.words(q)) | extra)
        assert len(parts.train) == len(TRAIN.words(i)) + len(extra)


def test_each_word_carries_its_own_rows_product():
    train, query = sides("roberta")
    parts = word_parts(train, query, 4, 1)
    for name, part in zip(parts.names, parts.parts, strict=True):
        row = train.tokens.names.index(name)
        np.testing.assert_allclose(part, dots("roberta", [row])[1, 4], rtol=1e-9)
    three = word_parts(train, query, 4, 1, top=3)
    np.testing.assert_allclose(three.parts.sum(), tracin_we(train, query, top=3).total[1, 4], rtol=1e-9)
    np.testing.assert_allclose(three.train.sum(), three.parts.sum(), rtol=1e-9)


def test_frequent_rows_by_hand():
    ids = torch.tensor([[2, 7, 7, 3], [2, 7, 9, 3], [2, 8, 3, 0], [2, 9, 9, 3]])
    made = Tokens(ids, (ids > 0).long(), (2, 3), tuple("abcdefghij"))
    assert frequent_rows(made, share=0.5) == [7, 9]
    assert frequent_rows(made, share=0.25) == [7, 8, 9]


# --- layers ---


def test_every_tensor_equals_gradients_of_each_text_alone(kind):
    train, query = sides(kind)
    found = tracin_layers(train, query, chunk=4)
    assert list(found) == list(train.model.shapes)
    biggest = max(np.abs(value).max() for value in found.values())
    for name, scores in found.items():
        pairs = [(brute(kind, "query", c, negative_probability)[name], brute(kind, "train", c)[name]) for c in (0, 1)]
        expected = sum(rate * q @ t.T for rate, (q, t) in zip(RATES, pairs, strict=True))
        np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-12 * biggest)
    whole = by_layer(found, {"all": list(found)})["all"]
    np.testing.assert_allclose(whole, sum(found.values()), rtol=1e-12, atol=1e-14)


def test_the_last_layer_in_closed_form(kind):
    train, query = sides(kind, chunk=4)
    head = train.model.head
    weight, both = tracin_last(train, query), tracin_last(train, query, bias=True)
    if kind != "tied":
        by_name = tracin_layers(train, query, [f"{head}.weight", f"{head}.bias"])
        close(weight, by_name[f"{head}.weight"])
        close(both, by_name[f"{head}.weight"] + by_name[f"{head}.bias"])
        return
    made, expected = train.model, 0  # the rows of the table that serve as the weight, with the look-ups held fixed
    for point in train.checkpoints:
        rows = []
        for side in (query, train):
            weights = point.params[made.embedding][list(made.label_words)].requires_grad_()
            embedded = made.embed(point.params, side.tokens.ids, side.tokens.parts)
            features = made.features(point.params, embedded, side.tokens.parts)
            each = side.loss(features @ weights.T + point.params[f"{head}.bias"], side.y)
            rows.append(torch.stack([torch.autograd.grad(v, weights, retain_graph=True)[0].flatten() for v in each]))
        expected = expected + point.lr * (rows[0] @ rows[1].T)
    close(weight, expected.numpy())


def test_residuals_are_probability_minus_label():
    train, _ = sides("bert", chunk=5)
    found = last_layer(train, 1)
    made, params = train.model, train.checkpoints[1].params
    probability = torch.softmax(made.logits(params, TRAIN.ids, TRAIN.parts), 1).numpy()
    close(found.residuals, probability - np.eye(CLASSES)[Y.numpy()])
    logits = found.features @ params[f"{made.head}.weight"].numpy().T + params[f"{made.head}.bias"].numpy()
    close(logits, made.logits(params, TRAIN.ids, TRAIN.parts).numpy())


def test_a_similarity_weighs_the_loss_gradients():
    train, query = sides("cnn")
    similarity = np.random.default_rng(0).random((5, 13))
    expected = np.zeros((5, 13))
    for c, rate in enumerate(RATES):
        a, b = last_layer(query, c).residuals, last_layer(train, c).residuals
        for q in range(5):
            for i in range(13):
                expected[q, i] += rate * similarity[q, i] * sum(x * y for x, y in zip(a[q], b[i], strict=True))
    close(tracin_similarity(similarity, train, query), expected)
    with pytest.raises(ValueError, match="queries by training texts"):
        tracin_similarity(similarity.T, train, query)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match=r"'conv9.weight' is no parameter of the model; there are embedding.weight"):
        tracin_layers(*sides("cnn"), ["conv9.weight"])


# --- losses, checkpoints, tokenizers that differ ---


def test_reductions_may_differ_between_the_two_sides():
    """A module's mean or sum means the loss of each example here, on either side."""
    train, query = sides("cnn", query_loss=torch.nn.CrossEntropyLoss(reduction="sum"))
    plain = tracin_we(train, query.of(QUERY, YQ, cross_entropy)).total
    mean = replace(train, loss=torch.nn.CrossEntropyLoss(reduction="mean"))
    np.testing.assert_allclose(tracin_we(mean, query).total, plain, rtol=1e-12)
    np.testing.assert_allclose(tracin_last(mean, query), tracin_last(train, query), rtol=1e-12)
    found = tracin_layers(mean, query, ["conv1.weight"])["conv1.weight"]
    np.testing.assert_allclose(found, tracin_layers(train, query, ["conv1.weight"])["conv1.weight"], rtol=1e-12)


def test_a_loss_that_is_one_number_is_refused():
    train, query = sides("cnn", loss=lambda logits, y: cross_entropy(logits, y).mean())
    with pytest.raises(ValueError, match=r"the loss returned the shape \(\) for 13 examples: return one number each"):
        tracin_we(train, query)


def test_a_checkpoint_of_another_architecture_is_refused():
    other = SimpleNamespace(params=model("bert")[1], lr=0.1)
    with pytest.raises(ValueError, match="another architecture"):
        Traced(model=model("cnn")[0], checkpoints=[other], tokens=TRAIN, y=Y)


def test_two_runs_are_not_mixed():
    train, query = sides("cnn")
    copies = tuple(SimpleNamespace(params=dict(p.params), lr=2 * p.lr) for p in train.checkpoints)
    for other in (copies, train.checkpoints[:1]):
        with pytest.raises(ValueError, match="different checkpoints"):
            tracin_we(train, replace(query, checkpoints=other))
    renamed = replace(query, tokens=replace(QUERY, names=("x",) * ROWS))
    for score in (tracin_we, tracin_last, tracin_layers):
        with pytest.raises(ValueError, match="different tokenizers"):
            score(train, renamed)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="no checkpoint"):
        sides("cnn")[0].__class__(model=model("cnn")[0], checkpoints=(), tokens=TRAIN, y=Y)
    with pytest.raises(ValueError, match="dtype must be"):
        sides("cnn", dtype="int8")


def test_a_diverged_checkpoint_is_refused():
    made, params = model("cnn")
    broken = {**params, "head.bias": torch.full((CLASSES,), torch.nan, dtype=F64)}
    with pytest.raises(FloatingPointError, match="diverged checkpoint"):
        token_gradients(made, broken, TRAIN, Y)


# --- the store ---


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-7), ("float16", 2e-3)])
def test_stored_gradients_give_the_same_scores(tmp_path, dtype, tolerance):
    train, query = sides("bert", block=4)
    kept = replace(train, store=tmp_path, dtype=dtype)
    expected = tracin_we(train, query).total
    close(tracin_we(kept, query).total, expected, tolerance)
    close(tracin_we(kept, query).total, expected, tolerance)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 4
    assert size > 0


def test_stored_gradients_are_those_of_their_loss_checkpoint_and_places(tmp_path):
    train, _ = sides("bert")
    kept = replace(train, store=tmp_path)
    whole = kept.gradients(0).values
    np.testing.assert_allclose(replace(kept, loss=_tiny).gradients(0).values, 1e-9 * whole, rtol=1e-5, atol=1e-18)
    assert np.diff(replace(kept, top=2).gradients(0).offsets).tolist() == [2] * 13
    np.testing.assert_allclose(kept.gradients(1).values, train.gradients(1).values, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(kept.gradients(0).values, whole)


def test_small_gradients_survive_half_precision(tmp_path):
    """Gradients of a well-fitted text lie below the smallest float16."""
    train, _ = sides("bert")
    tiny = replace(train, loss=_tiny)
    kept = replace(tiny, store=tmp_path, dtype="float16")
    found, expected = kept.gradients(0).values, tiny.gradients(0).values
    assert np.abs(expected).max() < 1e-8
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def _tiny(logits, y):
    return 1e-9 * cross_entropy(logits, y)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    train, query = sides("cnn", block=3)
    kept, calls, original = replace(train, store=tmp_path), [], token_module.token_gradients

    def counted(*args, **options):
        calls.append(len(args[2]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(traced_module, "token_gradients", counted)
    with pytest.raises(KeyboardInterrupt):
        tracin_we(kept, query)
    assert calls == [3, 2, 3, 3]  # the queries, and two blocks, of which one was stored
    found = tracin_we(kept, query).total
    assert calls[4:] == [3, 2, 3, 3, 3, 1, 3, 2, 3, 3, 3, 3, 1]
    close(found, tracin_we(train, query).total, 3e-7)


def test_finished_scores_are_read_again_and_only_for_the_same_question(tmp_path, monkeypatch):
    train, query = sides("cnn", block=5)
    expected = tracin_we(train, query, store=tmp_path).total
    monkeypatch.setattr(Traced, "_compute", _only_queries(Traced._compute))
    np.testing.assert_array_equal(tracin_we(train, query, store=tmp_path).total, expected)
    others = [
        (train, query, {"top": 2}),
        (train, query.of(QUERY, YQ, cross_entropy), {}),
        (replace(train, loss=_tiny), query, {}),
        (replace(train, y=1 - Y.clamp(max=1)), query, {}),
    ]
    for one, other, options in others:
        with pytest.raises(AssertionError, match="computed again"):
            tracin_we(one, other, store=tmp_path, **options)


def _only_queries(original):
    def compute(self, params, which):
        assert len(self) == 5, "computed again"
        return original(self, params, which)

    return compute


# --- gradients of single tensors ---


def test_example_gradients_come_with_their_rows():
    train, _ = sides("bert")
    name = "model.classifier.weight"
    seen = []
    for rows, found in example_gradients(train, 0, [name], chunk=4):
        np.testing.assert_allclose(
            found[name].numpy(), brute("bert", "train", 0)[name][rows.numpy()], rtol=1e-9, atol=1e-14
        )
        seen += rows.tolist()
    assert sorted(seen) == list(range(13))
