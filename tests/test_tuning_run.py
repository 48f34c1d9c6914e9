"""The alternating schedule: label steps against AdamW written out, rounds replayed by hand, each published fault."""

from functools import partial

import numpy as np
import pytest
import torch
from text_cases import bert_config
from torch.nn import functional
from tuning_cases import confounded, noisy_model, slopes

from clif_kit import tuning_run
from clif_kit.cid import Watch
from clif_kit.confounds import draw_tuple
from clif_kit.finetune import Schedule, by_length, fine_tune, minimise
from clif_kit.text_models import text_losses
from clif_kit.text_transformers import transformer
from clif_kit.text_vectors import text_gradients
from clif_kit.tuning_run import Published, Tuning, embedding_tune, influence_tune

SCHEDULE = Schedule(epochs=3, lr=1e-3, batch_size=5)  # 17 texts: 12 steps, planned for 9 by the floor
TUNING = Tuning(interval=4, epochs=2, probes=3, k=2, batch=4, lr=1e-3)  # rounds after 4 and 8: 6 tuples, 4 + 2


class Eyes(list):
    """Stands in for a watch: keeps the parameters before and after rounds."""

    def look(self, step, when, params):
        self.append((step, when, {name: value.detach().clone() for name, value in params.items()}))

    def __call__(self, *_):
        return {}

    def last(self):
        return {}


class AdamW:
    """The algorithm of Loshchilov and Hutter, one array after the other."""

    def __init__(self, params, decay, decay_all=False):
        self.decay = {n: decay * (decay_all or v.ndim > 1) for n, v in params.items()}
        self.m, self.v, self.t = {n: 0.0 for n in params}, {n: 0.0 for n in params}, 0

    def step(self, params, gradient, lr):
        self.t += 1
        for n, g in gradient.items():
            self.m[n], self.v[n] = 0.9 * self.m[n] + 0.1 * g, 0.999 * self.v[n] + 0.001 * g**2
            size = np.sqrt(self.v[n] / (1 - 0.999**self.t)) + 1e-8
            params[n] = params[n] * (1 - lr * self.decay[n]) - lr * self.m[n] / (1 - 0.9**self.t) / size


def arrays(params):
    return {name: value.numpy().copy() for name, value in params.items()}


def tensors(params):
    return {name: torch.from_numpy(value).requires_grad_() for name, value in params.items()}


def assert_same(a, b, **tolerance):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], torch.as_tensor(b[name]), msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def rate(step, top, steps, warm):
    return top * step / warm if step < warm else max(0.0, top * (steps - step) / (steps - warm))


@pytest.mark.parametrize("floor", [False, True])
def test_rates_rise_and_fall_as_the_closed_form_says(floor):
    schedule = Schedule(epochs=10, lr=2e-3, batch_size=5, floor_steps=floor)
    square = lambda params, x: (params["w"] - x) ** 2  # noqa: E731
    found = minimise(square, {"w": torch.tensor(1.0)}, (torch.zeros(17),), schedule)
    planned = 30 if floor else 40
    wanted = [rate(step, 2e-3, planned, planned // 10) for step in range(40)]
    np.testing.assert_allclose(found.lr, wanted, rtol=1e-6, atol=1e-12)
    assert (found.lr[-10:] == 0).all() == floor


def test_label_steps_are_adamw_without_decay_of_biases_and_norms():
    (model, params), train = noisy_model(), confounded()
    schedule = Schedule(epochs=2, lr=1e-3, batch_size=17, weight_decay=0.3, warmup=0.0, dropout=False)
    found = fine_tune(model, params, train.tokens, train.y, schedule)
    mine, machine, losses = arrays(params), AdamW(params, 0.3), []
    for step in range(2):
        leaves = tensors(mine)
        loss = functional.cross_entropy(model.logits(leaves, *train.batch()[:2]), train.y)
        slope = torch.autograd.grad(loss, list(leaves.values()))
        machine.step(mine, {n: g.numpy() for n, g in zip(leaves, slope, strict=True)}, rate(step, 1e-3, 2, 0))
        losses.append(loss.item())
    np.testing.assert_allclose(found.loss, losses, rtol=1e-6)
    far = {n: v for n, v in found.params.items() if "key.bias" not in n}  # its gradient is zero but for rounding
    assert_same(far, {n: mine[n] for n in far}, rtol=1e-7, atol=1e-8)


def test_an_epoch_takes_every_text_once_in_an_order_that_the_seed_decides():
    seen = []
    losses = lambda params, x: seen.append(x.tolist()) or params["w"] * x  # noqa: E731
    for seed in (0, 0, 1):
        minimise(losses, {"w": torch.tensor(1.0)}, (torch.arange(17.0),), SCHEDULE, seed=seed)
    first, again, other = ([i for part in seen[k : k + 12] for i in part] for k in (0, 12, 24))
    assert first == again != other
    assert all(sorted(first[k : k + 17]) == list(range(17)) for k in (0, 17, 34))
    assert first[:17] != first[17:34]


def test_dropout_is_at_work_or_not():
    (model, params), train = noisy_model(), confounded()
    whole = partial(fine_tune, model, params, train.tokens, train.y)
    noisy, quiet = whole(SCHEDULE), whole(Schedule(epochs=3, lr=1e-3, batch_size=5, dropout=False))
    assert abs(noisy.loss[0] - quiet.loss[0]) > 1e-3
    state = torch.random.get_rng_state()
    assert torch.equal(whole(SCHEDULE).loss, noisy.loss)
    assert torch.equal(torch.random.get_rng_state(), state)
    bare = transformer(bert_config(), classes=2)[0]
    with pytest.raises(ValueError, match=r"the model has no dropout: make it with transformer\(..., dropout=0.1\)"):
        fine_tune(bare, params, train.tokens, train.y, SCHEDULE)


@pytest.mark.parametrize("tune", [influence_tune, embedding_tune])
def test_rounds_that_move_nothing_leave_plain_fine_tuning_bit_for_bit(tune):
    """Dropout comes back, its stream and the order of texts go on, no gradient is left over."""
    (model, params), train = noisy_model(), confounded()
    plain = fine_tune(model, params, train.tokens, train.y, SCHEDULE, seed=2)
    found = tune(model, params, train, SCHEDULE, Tuning(interval=4, epochs=2, probes=3, k=2, batch=4, lr=0.0), seed=2)
    assert [(one.step, one.steps) for one in found.rounds] == [(4, 2), (8, 2)]
    assert torch.equal(found.loss, plain.loss)
    assert_same(found.params, plain.params)
    late = tune(model, params, train, SCHEDULE, Tuning(interval=11, epochs=1, probes=3, k=2), seed=2)
    assert not late.rounds  # in the last half interval


def record(monkeypatch):
    rows = []

    def draw(*arguments, **options):
        rows.append(draw_tuple(*arguments, **options))
        return rows[-1]

    monkeypatch.setattr(tuning_run, "draw_tuple", draw)
    return rows


def j_gradient(model, params, batch, names):
    """J of one tuple by autograd over single examples, and its gradient in the named parameters."""
    leaves = tensors(params)
    found = slopes(text_losses(model), leaves, batch)
    units = found / found.norm(dim=1, keepdim=True)
    scores = units[1:] @ units[0]
    loss = (scores[:2].mean() - scores[2:].mean()) ** 2
    slope = torch.autograd.grad(loss, [leaves[name] for name in names])
    return loss.item(), {name: value.numpy() for name, value in zip(names, slope, strict=True)}


@pytest.mark.parametrize("fault", [{}, {"stale_gradients": True}, {"decay_everything": True}, {"zero_moments": True}])
def test_rounds_replayed_by_hand(monkeypatch, fault):
    """Two rounds of 6 tuples, 4 a step: what the second optimizer does to the parameters, and the J that is noted."""
    (model, params), train = noisy_model(), confounded()
    rows, eyes = record(monkeypatch), Eyes()
    tuning = Tuning(
        interval=4, epochs=2, probes=3, k=2, batch=4, lr=1e-3, weight_decay=0.3, published=Published(**fault)
    )
    found = influence_tune(model, params, train, SCHEDULE, tuning, watch=eyes)
    assert [(step, when) for step, when, _ in eyes] == [(s, w) for s in (4, 8) for w in ("before", "after")]
    machine, wait = AdamW(params, 0.3, decay_all="decay_everything" in fault), []
    for number in range(2):
        mine, noted, steps = arrays(eyes[2 * number][2]), [], 0

        def step(mine=mine):
            mean = {n: sum(one[n] for one in wait) / len(wait) for n in params}
            machine.step(mine, mean, 1e-3)
            wait.clear()
            return 1

        for index in rows[6 * number : 6 * number + 6]:
            loss, gradient = j_gradient(model, mine, train.batch(index), list(params))
            noted.append(loss)
            wait.append(gradient)
            steps += step() if len(wait) == 4 else 0
        steps += step() if wait and "stale_gradients" not in fault else 0
        if "zero_moments" in fault:
            machine.m, machine.v = {n: 0.0 for n in params}, {n: 0.0 for n in params}
        one = found.rounds[number]
        assert (one.step, one.steps) == (4 + 4 * number, steps)
        assert one.probes.tolist() == [int(index[0]) for index in rows[6 * number : 6 * number + 6]]
        np.testing.assert_allclose(one.loss, noted, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(one.gap.square(), noted, rtol=1e-5, atol=1e-9)
        assert_same(eyes[2 * number + 1][2], mine, rtol=1e-6, atol=1e-7)
    assert [one.steps for one in found.rounds] == ([1, 2] if "stale_gradients" in fault else [2, 2])


def test_dropout_stays_off_after_an_incomplete_group_if_published():
    """As in the public code: 6 tuples are 4 + 2, so off; with the 2 of before 8 = 4 + 4, so on again."""
    (model, params), train = noisy_model(), confounded()
    noisy, quiet = (by_length(text_losses(one, trim=True)) for one in (model.training(), model))

    def switched(off):
        done = []

        def losses(theta, *batch):
            done.append(1)
            return (quiet if len(done) - 1 in off else noisy)(theta, *batch)

        return minimise(losses, params, train.batch(), SCHEDULE)

    def tuned(**faults):
        options = {"interval": 4, "epochs": 2, "probes": 3, "k": 2, "batch": 4, "lr": 0.0}
        return influence_tune(model, params, train, SCHEDULE, Tuning(**options, published=Published(**faults)))

    assert torch.equal(tuned().loss, switched(()).loss)
    assert torch.equal(tuned(dropout_off=True).loss, switched(range(4, 12)).loss)
    assert torch.equal(tuned(dropout_off=True, stale_gradients=True).loss, switched(range(4, 8)).loss)
    assert torch.equal(tuned(stale_gradients=True).loss, switched(()).loss)
    assert not torch.equal(switched(()).loss, switched(range(4, 12)).loss)


def test_moments_of_the_label_optimizer_are_zeroed_if_published():
    (model, params), train = noisy_model(), confounded()
    options = {"interval": 4, "epochs": 1, "probes": 1, "k": 2, "batch": 1, "lr": 0.0}
    found = influence_tune(
        model, params, train, SCHEDULE, Tuning(**options, published=Published(zero_moments=True)), seed=5
    )

    def wipe(step, machine, _):
        for state in machine.state.values() if step in (4, 8) else ():
            state["exp_avg"] *= 0
            state["exp_avg_sq"] *= 0

    wanted = fine_tune(model, params, train.tokens, train.y, SCHEDULE, seed=5, after=wipe)
    assert_same(found.params, wanted.params)
    plain = fine_tune(model, params, train.tokens, train.y, SCHEDULE, seed=5)
    assert (plain.params[model.embedding] - wanted.params[model.embedding]).abs().max() > 1e-4


def test_probes_are_drawn_again_in_every_epoch_unless_published():
    (model, params), train = noisy_model(), confounded()

    def probes(fixed):
        options = {
            "interval": 6,
            "epochs": 4,
            "probes": 5,
            "k": 1,
            "lr": 0.0,
            "published": Published(fixed_probes=fixed),
        }
        found = embedding_tune(model, params, train, SCHEDULE, Tuning(**options))
        return [tuple(part.tolist()) for part in found.rounds[0].probes.split(5)]

    for fixed in (False, True):
        drawn = probes(fixed)
        assert all(len(set(part)) == 5 for part in drawn)
        assert (len(set(drawn)) == 1) == fixed


@pytest.mark.parametrize("own", [False, True])
def test_a_probe_is_in_its_own_group_only_if_published(monkeypatch, own):
    (model, params), train = noisy_model(), confounded()
    rows = record(monkeypatch)
    tuning = Tuning(interval=6, epochs=4, probes=9, k=3 if own else 2, lr=0.0, published=Published(own_group=own))
    embedding_tune(model, params, train, SCHEDULE, tuning)
    assert any(int(index[0]) in index[1:].tolist() for index in rows) == own
    for index in rows:
        same = train.confound[index] == train.confound[index[0]]
        assert same.tolist() == [True] * (1 + tuning.k) + [False] * tuning.k
        assert len(train.y[index].unique()) == 1


def test_access_keeps_rounds_to_texts_whose_confound_is_known(monkeypatch):
    (model, params), train = noisy_model(), confounded()
    known = torch.ones(17, dtype=torch.bool)
    known[torch.nonzero((train.y == 0) & (train.confound == 0))[0]] = False
    rows = record(monkeypatch)
    embedding_tune(model, params, confounded(known), SCHEDULE, Tuning(interval=6, epochs=9, probes=16, k=2, lr=0.0))
    assert set(torch.cat(rows).tolist()) == set(torch.nonzero(known).squeeze(1).tolist())


def test_embedding_tuning_moves_everything_but_the_classifier():
    (model, params), train = noisy_model(), confounded()
    still = {}
    for state in ("cls", "pooled"):
        eyes = Eyes()
        embedding_tune(model, params, train, SCHEDULE, TUNING, state=state, watch=eyes)
        before, after = eyes[0][2], eyes[1][2]
        still[state] = {name for name in params if torch.equal(before[name], after[name])}
        assert (after[model.embedding] - before[model.embedding]).abs().max() > 1e-4
    assert still["pooled"] == {f"{model.head}.weight", f"{model.head}.bias"}
    assert still["cls"] == still["pooled"] | {"model.bert.pooler.dense.bias"}  # no gradient; its weight decays


def test_the_gap_closes_within_a_round():
    (model, params), train = noisy_model(), confounded()
    tuning = Tuning(interval=7, epochs=8, probes=5, k=2, batch=5, lr=5e-3)
    for tune in (influence_tune, embedding_tune):
        (only,) = tune(model, params, train, SCHEDULE, tuning).rounds
        assert only.steps == 8
        assert only.loss[-10:].mean() < 0.5 * only.loss[:10].mean()


def test_the_same_seed_gives_the_same_run_and_little_memory_too():
    (model, params), train = noisy_model(), confounded()
    first, second = (influence_tune(model, params, train, SCHEDULE, TUNING, seed=7) for _ in range(2))
    assert_same(first.params, second.params)
    assert torch.equal(first.rounds[1].loss, second.rounds[1].loss)
    frugal = Tuning(interval=4, epochs=2, probes=3, k=2, batch=4, lr=1e-3, low_memory=True)
    third = influence_tune(model, params, train, SCHEDULE, frugal, seed=7)
    torch.testing.assert_close(third.rounds[1].loss, first.rounds[1].loss, rtol=1e-4, atol=1e-8)
    other = influence_tune(model, params, train, SCHEDULE, TUNING, seed=8)
    assert not torch.equal(other.rounds[0].probes, first.rounds[0].probes)
    assert first.rounds[0].probes.tolist() != first.rounds[1].probes.tolist()


def test_a_watch_sees_steps_and_rounds():
    (model, params), train = noisy_model(), confounded()
    watch = Watch(text_gradients(model), train, [0, 5, 9], every=6)
    influence_tune(model, params, train, SCHEDULE, TUNING, watch=watch)
    assert [(step, when) for step, when, _ in watch.points] == [
        (4, "before"), (4, "after"), (6, "label"), (8, "before"), (8, "after"), (12, "label"),
    ]  # fmt: skip
    assert all(-2 <= point[2].mean <= 2 for point in watch.points)


def test_everything_published_runs():
    (model, params), train = noisy_model(), confounded()
    tuning = Tuning(interval=4, epochs=2, probes=3, k=2, batch=4, published=Published.everything())
    schedule = Schedule(epochs=3, lr=1e-3, batch_size=5, floor_steps=True)
    found = influence_tune(model, params, train, schedule, tuning)
    assert [one.step for one in found.rounds] == [4]  # 9 planned: at 8 the end is nearer than half an interval
    assert (found.lr[-3:] == 0).all()


def test_bad_input_is_refused_before_training(monkeypatch):
    (model, params), train = noisy_model(), confounded()
    monkeypatch.setattr(tuning_run, "minimise", lambda *_, **__: pytest.fail("training started"))
    for tune in (influence_tune, embedding_tune):
        with pytest.raises(ValueError, match="k=5, but group A has"):
            tune(model, params, train, SCHEDULE, Tuning(probes=3))
        with pytest.raises(ValueError, match="75 probes, but the confound of 17 texts is known"):
            tune(model, params, train, SCHEDULE, Tuning(k=2))
        with pytest.raises(ValueError, match="no dropout"):
            tune(transformer(bert_config(), classes=2)[0], params, train, SCHEDULE, TUNING)
    with pytest.raises(ValueError, match="nonsense is no parameter"):
        influence_tune(model, params, train, SCHEDULE, Tuning(interval=4, probes=3, k=2, names=("nonsense",)))
    with pytest.raises(ValueError, match=r"leave Tuning.names"):
        embedding_tune(model, params, train, SCHEDULE, Tuning(names=("x",)))
    with pytest.raises(ValueError, match="probes must be 1 or more"):
        Tuning(probes=0)
    with pytest.raises(ValueError, match="warmup"):
        Schedule(warmup=1.0)


def test_a_j_that_is_not_a_number_names_round_and_probe():
    (model, params), train = noisy_model(), confounded()
    dead = {**params, f"{model.head}.weight": torch.zeros_like(params[f"{model.head}.weight"])}
    tuning = Tuning(interval=1, probes=3, k=2, names=("model.bert.pooler.dense.bias",))
    with pytest.raises(FloatingPointError, match=r"in the round after step 1, probe \d+: J is nan"):
        influence_tune(model, dead, train, SCHEDULE, tuning)  # the first label step has the rate 0
    broken = {**params, f"{model.head}.bias": torch.full((2,), float("nan"), dtype=torch.float64)}
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        influence_tune(model, broken, train, SCHEDULE, TUNING)
