"""The rows on TracIn: both sides of each agree on a few texts, and what is refused. Nothing here is timed."""

import numpy as np
import pytest
import torch

from benchmarks import harness, tracin, tracin_memory, tracin_pairs
from clif_kit.tracin import tracin_we
from clif_kit.tracin_layers import tracin_last

ROWS = 300


@pytest.fixture(scope="module")
def few():
    return tracin.sides(6, 3, ROWS, chunk=4)


def test_texts_start_end_and_never_score_at_padding():
    tokens = tracin.texts(200, 0, ROWS)
    lengths = (tokens.parts > 0).sum(1)
    assert (int(lengths.min()), int(lengths.max())) == (tracin.LONGEST // 4, tracin.LONGEST)
    for ids, length in zip(tokens.ids, lengths.tolist(), strict=True):
        assert (int(ids[0]), int(ids[length - 1])) == (tracin.START, tracin.END)
        assert int(ids[1 : length - 1].min()) > tracin.END
        assert int(ids[length:].abs().sum()) == 0
    counts = torch.bincount(tokens.ids[tokens.ids > tracin.END])[tracin.END + 1 :]
    assert float(counts[0] / counts[7]) == pytest.approx(8, rel=0.3)  # Zipf: the first word is 8 times the eighth


def test_brute_force_sees_a_score_that_is_wrong_on_words_alone(few, monkeypatch):
    tracin.check_against_brute_force(*few)
    right = tracin_we(*few)
    assert right.special_share.min() > 0.9  # so a wrong share of the words hides in the total

    def broken(*_):
        return type(right)(right.words * 1.01, right.frequent, right.special)

    monkeypatch.setattr(tracin, "tracin_we", broken)
    with pytest.raises(harness.Differs, match="special ones left out differ from brute force"):
        tracin.check_against_brute_force(*few)


def test_the_library_s_own_model_gives_the_scores_of_the_last_layer(few):
    """Weight gradient of each text by autograd on the plain module: what captum is asked for."""
    train, query = few
    module = tracin.bert(train.checkpoints[0].params).double()
    weight = module.classifier.weight.requires_grad_()

    def grads(side):
        for ids, parts, y in zip(side.tokens.ids, side.tokens.parts, side.y, strict=True):
            logits = module(input_ids=ids[None], attention_mask=parts[None]).logits
            loss = torch.nn.functional.cross_entropy(logits, y[None])
            yield torch.autograd.grad(loss, weight)[0].flatten()

    expected = tracin.LR * torch.stack(list(grads(query))) @ torch.stack(list(grads(train))).T
    assert harness.difference(expected, torch.from_numpy(tracin_last(train, query)), relative=True) < 1e-5


def test_the_floor_goes_to_the_word_vectors_of_every_text(few):
    train, _ = few
    found = tracin._pass(tracin.bert(train.checkpoints[0].params), train)
    gradients = train.gradients(0)
    assert found.tolist() == pytest.approx(gradients.values[gradients.offsets[:-1], 0].tolist(), rel=1e-3, abs=1e-7)


def test_both_sides_of_the_pairs_agree():
    with tracin_pairs.case(20, 4, ROWS, 5) as sides:
        ours, theirs = sides.ours()[1], sides.theirs["dots"]()[1]
    assert ours.shape == (4, 5)
    assert ours.abs().min() > 1e-3
    assert harness.difference(ours, theirs, relative=True) < 1e-5


def test_a_dense_gradient_adds_up_what_repeats():
    tokens = tracin.texts(3, 0, ROWS)
    found = tracin_pairs.gradients(tokens, 1)
    table = np.zeros((ROWS, tracin.WIDTH))
    for place, token in enumerate(tokens.ids[1][tokens.parts[1] > 0].tolist()):
        table[token] += found.values[found.offsets[1] + place]
    assert np.allclose(tracin_pairs.dense(found, 1, ROWS).numpy(), table.ravel(), atol=1e-5)


def test_the_scores_of_more_texts_begin_with_those_of_fewer(monkeypatch):
    for name in ("COMPARED", "PIECE"):
        monkeypatch.setattr(tracin_memory, name, 20)
    fewer, more = (tracin_memory.whole(n, ROWS) for n in (20, 50))
    apart = harness.difference(torch.tensor(more["answer"]), torch.tensor(fewer["answer"]), relative=True)
    assert apart < 1e-5
    assert fewer[harness.BYTES] > 5e7


def test_the_largest_peak_stands_against_the_limit(monkeypatch):
    peaks = {10: 3.0, 20: 7.0, 30: 5.0}
    monkeypatch.setattr(tracin_memory, "apart", lambda _, n, __: {harness.BYTES: peaks[n], "answer": [float(n)]})
    with tracin_memory.case((10, 20, 30)) as sides:
        assert sides.ours() == (7.0, torch.tensor([30.0], dtype=torch.float64))
        assert sides.theirs["the limit"]() == (1.5 * 2**30, torch.tensor([10.0], dtype=torch.float64))
