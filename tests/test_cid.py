"""Groups, draws and the confound influence difference, against plain loops over pairs."""

import numpy as np
import pytest
import torch
from text_cases import model, tokens
from tuning_cases import CONFOUNDS, LABELS, confounded, slopes

from clif_kit.cid import Watch, confound_difference
from clif_kit.confounds import Confounded, accessible, check_groups, draw_tuple
from clif_kit.text_models import text_losses
from clif_kit.text_vectors import text_gradients, text_states

HELD = tokens(3, seed=9, pairs=False)


def loop(train, probes, own, members, cosine=True, published=False):
    """The definition: two lists a probe, filled pair by pair."""
    made, params = model("bert")
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}

    def score(a, b):
        top = float(a @ b)
        return top / float(a.norm() * b.norm()) if cosine else top

    vectors = slopes(text_losses(made), leaves, train.batch()).detach()
    asked = vectors if own else slopes(text_losses(made), leaves, probes.batch()).detach()
    where = train if own else probes
    found = []
    for i in probes if own else range(len(probes)):
        groups = {True: [], False: []}
        for j in members:
            if train.y[j] == where.y[i] and (published or not own or j != i):
                groups[bool(train.confound[j] == where.confound[i])].append(score(vectors[j], asked[i]))
        found.append(np.mean(groups[True]) - np.mean(groups[False]))
    return np.array(found)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("published", [False, True])
def test_cid_is_the_loop_over_pairs(cosine, published):
    train, (made, params) = confounded(), model("bert")
    probes = [3, 0, 11, 16, 7]
    wanted = loop(train, probes, True, range(len(train)), cosine, published)
    for chunk in (4, 100):
        got = confound_difference(
            text_gradients(made), params, train, probes, cosine=cosine, published=published, chunk=chunk
        )
        np.testing.assert_allclose(got.each, wanted, rtol=1e-9, atol=1e-11)
    assert got.mean == pytest.approx(wanted.mean())
    assert got.size == pytest.approx(np.abs(wanted).mean())


def test_cid_of_some_members_of_known_confounds_and_of_held_out_probes():
    train, (made, params) = confounded(), model("bert")
    vectors = text_gradients(made)
    members = [i for i in range(len(train)) if i not in (2, 5)]
    got = confound_difference(vectors, params, train, [2, 3], members=members)  # probe 2 is no member of its group
    np.testing.assert_allclose(got.each, loop(train, [2, 3], True, members), rtol=1e-9)
    known = torch.ones(len(train), dtype=torch.bool)
    known[[2, 5]] = False
    same = confound_difference(vectors, params, confounded(known), [2, 3])
    torch.testing.assert_close(same.each, got.each)
    held = Confounded(HELD, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]))
    got = confound_difference(vectors, params, train, held)
    np.testing.assert_allclose(got.each, loop(train, held, False, range(len(train))), rtol=1e-9)


def test_the_probe_in_its_own_group_adds_what_the_spec_says():
    """Published minus correct is (1 - mean over A) / size of A: positive as long as it is not all alike."""
    train, (made, params) = confounded(), model("bert")
    both = [
        confound_difference(text_gradients(made), params, train, range(17), published=p).each for p in (True, False)
    ]
    extra = both[0] - both[1]
    assert (extra > 0).all()
    assert (extra * torch.tensor([len(train.groups(i, published=True)[0]) for i in range(17)]) < 2).all()


def test_cid_of_states_and_the_watch():
    train, (made, params) = confounded(), model("bert")
    watch = Watch(text_states(made), train, [0, 4], every=10)
    assert watch(5, None, params) == {}
    shown = watch(10, None, params)
    watch.look(10, "after", params)
    wanted = confound_difference(text_states(made), params, train, [0, 4])
    assert shown == {"CID": wanted.mean}
    assert [(step, when) for step, when, _ in watch.points] == [(10, "label"), (10, "after")]
    assert torch.equal(watch.points[1][2].each, wanted.each)


def test_groups_have_the_label_and_not_the_probe():
    train = confounded(CONFOUNDS[torch.from_numpy(np.random.default_rng(4).permutation(len(LABELS)))] < 2)
    for i in range(len(train)):
        same, other = (set(group.tolist()) for group in train.groups(i))
        for j in range(len(train)):
            fits = bool(train.known[j]) and train.y[j] == train.y[i]
            assert (j in same) == (fits and j != i and train.confound[j] == train.confound[i])
            assert (j in other) == (fits and train.confound[j] != train.confound[i])
    assert i in train.groups(i, published=True)[0]


def test_tuples_are_drawn_from_the_groups_without_replacement():
    train, rng = confounded(), np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        probe, *rows = draw_tuple(train, 0, 2, rng).tolist()
        same, other = (set(group.tolist()) for group in train.groups(0))
        assert probe == 0
        assert set(rows[:2]) <= same
        assert set(rows[2:]) <= other
        assert len(set(rows)) == 4
        seen |= set(rows)
    assert seen == same | other
    assert any(0 in draw_tuple(train, 0, 2, rng, published=True)[1:3] for _ in range(60))


def test_access_draws_a_share_and_fills_up_the_small_groups():
    y, c = LABELS.repeat(20), CONFOUNDS.repeat(20)
    known = accessible(y, c, 0.25, seed=1)
    assert int(known.sum()) == 85
    assert torch.equal(known, accessible(y, c, 0.25, seed=1))
    assert not torch.equal(known, accessible(y, c, 0.25, seed=2))
    filled = accessible(y, c, 0.01, at_least=4, seed=1)
    counts = {pair: int((filled & (y == pair[0]) & (c == pair[1])).sum()) for pair in set(zip(y.tolist(), c.tolist()))}  # noqa: B905
    assert min(counts.values()) == 4
    assert int(filled.sum()) < 25


def test_bad_groups_are_refused_before_anything_starts():
    train = confounded()
    check_groups(train, 2)
    with pytest.raises(
        ValueError, match=r"k=3, but group A has 2 texts for probes of class 0 with confound 1: lower k"
    ):
        check_groups(train, 3)
    check_groups(confounded(train.confound < 2), 2)
    lonely = Confounded(train.tokens, train.y, torch.where(train.y == 1, 0, train.confound))
    with pytest.raises(ValueError, match="group B is empty for probes of class 1 with confound 0"):
        check_groups(lonely, 1)
    made, params = model("bert")
    one = int(torch.nonzero(lonely.y == 1)[0])
    with pytest.raises(ValueError, match="group B of probe"):
        confound_difference(text_gradients(made), params, lonely, [one])
    with pytest.raises(ValueError, match="no confound is known"):
        check_groups(confounded(torch.zeros(17, dtype=torch.bool)), 1)


@pytest.mark.parametrize(("y", "c", "says"), [
    (None, CONFOUNDS, "17 texts and none for 'label'"),
    (LABELS, None, "17 texts and none for 'confound'"),
    (LABELS, CONFOUNDS[:-1], "17 texts and 16 for 'confound'"),
    (LABELS, torch.where(CONFOUNDS == 2, -1, CONFOUNDS), "text 7 has no confound"),
    (LABELS, torch.tensor([float("nan"), *range(16)]), "text 0 has no confound"),
    (LABELS, CONFOUNDS.float(), "every confound must be an integer"),
])  # fmt: skip
def test_missing_labels_and_confounds_are_named(y, c, says):
    with pytest.raises(ValueError, match=says):
        Confounded(tokens(17), y, c)
