"""The rows on influence tuning: every side is autograd of J on a small model, and what is refused. Nothing is timed."""

import pytest
import torch
from tuning_cases import slopes

from benchmarks import harness, tuning
from clif_kit.text_models import text_losses
from clif_kit.tuning import ConfoundGradient

SMALL = 16, 1, 60  # width, layers, rows


@pytest.fixture(autouse=True)
def _large_weights(monkeypatch):
    """So narrow a model needs them, else texts of one label look alike."""
    monkeypatch.setattr(tuning, "SPREAD", 0.5)


def gradient_by_hand(given):
    """J from the cosines of single gradients over the whole table, and plain autograd of it; ``(gap, gradient)``."""
    model, params, batch = given
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    found = slopes(text_losses(model), leaves, batch)
    units = found / found.norm(dim=1, keepdim=True)
    scores = units[1:] @ units[0]
    gap = sum(scores[:5]) / 5 - sum(scores[5:]) / 5
    return gap.item(), torch.cat([value.flatten() for value in torch.autograd.grad(gap**2, list(leaves.values()))])


def test_texts_are_full_and_differ_and_b_has_the_other_label():
    _, _, (ids, parts, y) = tuning.setting(*SMALL)
    assert ids.shape == parts.shape == (11, 32)
    assert (parts == 1).all()
    assert y.tolist() == [1] * 6 + [0] * 5
    assert len(ids.unique(dim=0)) == 11
    assert ((ids[:, 0] == tuning.START) & (ids[:, -1] == tuning.END) & (ids[:, 1:-1] > tuning.END).all(1)).all()


def test_every_side_is_autograd_of_j():
    given = tuning.setting(*SMALL, torch.float64)
    gap, wanted = gradient_by_hand(given)
    assert abs(gap) > 0.1  # else J has next to no gradient, and what is compared is rounding
    with tuning.gradient_case(given) as sides:
        found = {"ours": sides.ours()[1], **{name: side()[1] for name, side in sides.theirs.items()}}
    found["grouped"] = tuning.ours(given, "grouped")
    assert len(found) == 4
    for name, one in found.items():
        assert harness.difference(wanted, one, relative=True) < 1e-9, name


def test_single_precision_keeps_to_the_bound():
    with tuning.gradient_case(tuning.setting(*SMALL)) as sides:
        ours = sides.ours()[1]
        assert ours.dtype == torch.float32
        for side in sides.theirs.values():
            assert harness.difference(ours, side()[1], relative=True) < tuning.CLOSE


def test_a_plain_gradient_is_that_of_the_mean_loss():
    model, params, batch = given = tuning.setting(*SMALL, torch.float64)
    rows = slopes(text_losses(model), {k: v.clone().requires_grad_() for k, v in params.items()}, batch).detach()
    assert harness.difference(rows.mean(0), tuning.plain(given), relative=True) < 1e-12


def test_one_gradient_of_j_stands_against_thirteen_plain_ones(monkeypatch):
    done, way, plain = [], tuning.WAYS["whole"], tuning.plain
    monkeypatch.setitem(tuning.WAYS, "whole", lambda *given: done.append("J") or way(*given))
    monkeypatch.setattr(tuning, "plain", lambda given: done.append("plain") or plain(given))
    with tuning.round_case(*SMALL) as sides:
        assert done == []
        ours = sides.ours()[1]
        assert done == ["J"]
        (theirs,) = (side()[1] for side in sides.theirs.values())
    assert done == ["J", *["plain"] * 13]
    assert harness.difference(ours, theirs, relative=True) < 1e-5


def test_what_stands_beside_a_row_is_said_and_another_gradient_refused(monkeypatch):
    given = tuning.setting(*SMALL)
    said = tuning.beside(given, {"whole": 50 * 2**20, "grouped": 7 * 2**20}.get, repeats=1)
    assert "one graph at a time takes" in said
    assert said.index("7 MiB") < said.index("50 MiB")
    exact = tuning.WAYS["grouped"]

    def wrong(*arguments):
        found = exact(*arguments)
        return ConfoundGradient(found.loss, found.gap, {name: 1.001 * value for name, value in found.gradient.items()})

    monkeypatch.setitem(tuning.WAYS, "grouped", wrong)
    with pytest.raises(harness.Differs, match=r"one graph at a time differs by 0\.001, allowed is 0\.0001"):
        tuning.beside(given, {}.get)


def test_each_width_has_its_row():
    assert [row.id for row in tuning.ROWS] == ["tuning_gradj_128", "tuning_gradj_256", "tuning_round"]
    assert [row.goal for row in tuning.ROWS] == [2.3, 2.3, 1]
    assert all(row.relative and row.bound == 1e-4 for row in tuning.ROWS)
