"""Every method against a shortcut: what is trained, on which texts, what is reported of a run, and that runs resume."""

import copy
from dataclasses import replace

import cloudpickle
import numpy as np
import pytest
import torch
from text_cases import NAMES, bert_config, tokenizer
from tuning_cases import noisy_model

from clif_kit import tuning_panels, tuning_run, tuning_study
from clif_kit.confounds import Confounded, accessible, check_groups, draw_tuple
from clif_kit.finetune import Schedule, fine_tune
from clif_kit.shortcut_tasks import ShortcutTask, ShortcutTexts
from clif_kit.text_tokens import Tokens
from clif_kit.text_vectors import text_gradients
from clif_kit.tuning import influence
from clif_kit.tuning_run import Published, Tuning
from clif_kit.tuning_study import (
    Look,
    Method,
    TuningStudy,
    accuracies,
    make_tuning_study,
    method_store,
    run_method,
    run_methods,
    sample_groups,
    train_method,
)

SCHEDULE = Schedule(epochs=2, lr=1e-3, batch_size=12)  # 24 training texts: 4 steps
TUNING = Tuning(interval=2, epochs=1, probes=5, k=2, batch=2, lr=1e-3)  # one round, after step 2
LOOK = Look(members=5, probes=2, curve=3, every=2)
FINE = Method(schedule=SCHEDULE)
INFLUENCE = Method(kind="influence", schedule=SCHEDULE, tuning=TUNING)
EMBEDDING = Method(kind="embedding", schedule=SCHEDULE, tuning=TUNING)
ADVERSARIAL = Method(kind="adversarial", schedule=SCHEDULE)
ALL = {"fine": FINE, "adversarial": ADVERSARIAL, "influence": INFLUENCE, "embedding": EMBEDDING}
TRAIN = (9, 3, 3, 9)  # texts of (0, 0), (0, 1), (1, 0), (1, 1)


def texts(counts, seed, plain=False):
    """A word for the shortcut, one for the label, one by chance; without the shortcut there is another word."""
    draw, pairs = np.random.default_rng(seed), [(0, 0), (0, 1), (1, 0), (1, 1)]
    codes = draw.permutation(np.repeat(pairs, counts, axis=0))
    ids = torch.zeros(len(codes), 6, dtype=torch.long)
    for row, (y, c) in zip(ids, codes.tolist(), strict=True):
        inside = [8 if plain else 6 + c, 10 + y, int(draw.integers(20, 30))][: int(draw.integers(2, 4))]
        row[: len(inside) + 2] = torch.tensor([2, *inside, 3])
    tokens = Tokens(ids, (ids > 0).long(), (2, 3), NAMES)
    return Confounded(tokens, *torch.from_numpy(codes).T.contiguous())


@pytest.fixture(scope="module")
def study():
    """Texts with and without the shortcut, and a transformer of width 8 in float64, another start for each seed."""
    model, params = noisy_model()
    sets = {"train": texts(TRAIN, 1), "dev": texts((4, 2, 2, 4), 2), "test": texts((4, 4, 3, 4), 3)}
    plain = {f"plain_{name}": texts(*spec, plain=True) for name, spec in
             {"train": (TRAIN, 1), "dev": ((4, 2, 2, 4), 2), "test": ((4, 4, 3, 4), 3)}.items()}  # fmt: skip
    nothing = ShortcutTexts((), np.zeros(0), np.zeros(0))
    task = ShortcutTask("tiny", ("a", "b"), ("c", "d"), nothing, nothing, nothing, ())

    bias = f"{model.head}.bias"
    params = {**params, bias: params[bias] + torch.tensor([3.0, 0.0])}  # else every text is of class 1

    def start(seed):
        return {name: value * (1 + 0.01 * seed) for name, value in params.items()}

    return TuningStudy(task=task, model=model, start=start, sets=sets | plain)


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def apart(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# --- encoding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformer of width 8 with a tokenizer of eight words, as ``save_pretrained`` leaves it."""
    from transformers import BertModel

    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("tiny")
    BertModel(bert_config()).save_pretrained(where)
    tokenizer().save(str(where / "tokenizer.json"))
    return where


def small_task(plain=True):
    def one(lines, y, confound):
        bare = tuple(line.split(" ", 1)[1] for line in lines) if plain else None
        return ShortcutTexts(tuple(lines), np.array(y), np.array(confound), bare)

    train = one(["not film good", "bad film", "not good good good good"], [0, 1, 1], [0, 1, 0])
    test = one(["bad good", "not unheard film"], [1, 0], [1, 0])
    nothing = ShortcutTexts((), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return ShortcutTask("made", ("a", "b"), ("not", "bad"), train, nothing, test, ())


def test_a_study_gives_the_librarys_own_logits_with_a_table_of_the_words_that_occur(folder):
    from transformers import BertModel

    made = make_tuning_study(small_task(), source=str(folder), layers=1, max_length=6)
    assert set(made.sets) == {"train", "test", "plain_train", "plain_test"}
    params, library = made.start(5), BertModel.from_pretrained(folder, num_hidden_layers=1).eval()
    assert len(params[made.model.embedding]) == 7  # all but [PAD]
    words = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "not", "good", "bad", "film"])}
    head, bias = params[f"{made.model.head}.weight"], params[f"{made.model.head}.bias"]
    for name, one in made.sets.items():
        own = getattr(small_task(), name.removeprefix("plain_"))
        for i, line in enumerate(own.plain if name.startswith("plain_") else own.texts):
            ids = [2, *(words.get(word, 1) for word in line.split()[:4]), 3]
            with torch.no_grad():
                wanted = library(torch.tensor([ids])).pooler_output @ head.T + bias
            row = one.tokens.take([i])
            torch.testing.assert_close(made.model.logits(params, row.ids, row.parts), wanted, rtol=1e-4, atol=1e-5)
        assert (one.y.tolist(), one.confound.tolist()) == (own.y.tolist(), own.confound.tolist())


def test_a_seed_draws_the_head_and_nothing_else(folder):
    made = make_tuning_study(small_task(plain=False), source=str(folder), layers=2, dropout=0.3)
    assert set(made.sets) == {"train", "test"}
    first, again, other = (made.start(seed) for seed in (0, 0, 1))
    assert_same(first, again)
    assert [name for name in first if not torch.equal(first[name], other[name])] == [f"{made.model.head}.weight"]
    assert {part.p for part in made.model.module.modules() if isinstance(part, torch.nn.Dropout)} == {0.3}
    assert {name.split(".")[4] for name in first if ".layer." in name} == {"0", "1"}


# --- training


def test_plain_fine_tuning_is_plain_fine_tuning(study):
    train = study.sets["train"]
    wanted = fine_tune(study.model, study.start(3), train.tokens, train.y, SCHEDULE, seed=3)
    found = train_method(study, FINE, 3)
    assert_same(found.params, wanted.params)
    assert apart(train_method(study, FINE, 4).params, wanted.params) > 1e-3
    quiet = replace(SCHEDULE, dropout=False)
    wanted = fine_tune(study.model, study.start(3), train.tokens, train.y, quiet, seed=3)
    assert_same(train_method(study, Method(schedule=quiet), 3).params, wanted.params)


def test_the_upper_bound_is_trained_without_the_shortcut(study):
    train = study.sets["plain_train"]
    wanted = fine_tune(study.model, study.start(3), train.tokens, train.y, SCHEDULE, seed=3).params
    assert_same(train_method(study, replace(FINE, plain=True), 3).params, wanted)
    assert apart(train_method(study, FINE, 3).params, wanted) > 1e-3


def test_every_method_starts_alike_and_takes_the_same_label_steps(study):
    """Rounds that do not move, and a reversal of no strength, leave plain fine-tuning."""
    still = replace(TUNING, lr=0.0)
    plain = train_method(study, FINE, 2)
    for kind in ("influence", "embedding"):
        found = train_method(study, Method(kind=kind, schedule=SCHEDULE, tuning=still), 2)
        assert_same(found.params, plain.params)
        assert torch.equal(found.loss, plain.loss)
        assert [one.step for one in found.rounds] == [2]
    weak, strong = (train_method(study, replace(ADVERSARIAL, lam=lam), 2) for lam in (0.0, 3.0))
    assert apart(weak.params, plain.params) < 1e-7 < apart(strong.params, plain.params)


def test_methods_do_what_they_are_called(study):
    """J of influence tuning is that of gradients, J of embedding tuning that of the state that was asked for."""
    gaps = {}
    for name, method in {**ALL, "pooled": replace(EMBEDDING, state="pooled")}.items():
        found = train_method(study, method, 0)
        rounds = getattr(found, "rounds", ())
        assert len(rounds) == (name not in ("fine", "adversarial"))
        assert hasattr(found, "head") == (name == "adversarial")
        gaps[name] = rounds[0].gap if rounds else None
    drawn = [train_method(study, ALL[kind], 0).rounds[0].probes.tolist() for kind in ("influence", "embedding")]
    assert drawn[0] == drawn[1]  # the same tuples, so the gaps below differ by the vectors alone
    for a, b in (("influence", "embedding"), ("influence", "pooled"), ("embedding", "pooled")):
        assert (gaps[a] - gaps[b]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["influence", "embedding"])
def test_rounds_see_only_texts_whose_shortcut_is_known(study, monkeypatch, kind):
    rows = []

    def draw(*arguments, **options):
        rows.append(draw_tuple(*arguments, **options))
        return rows[-1]

    monkeypatch.setattr(tuning_run, "draw_tuple", draw)
    tuning = replace(TUNING, epochs=2, probes=12, k=1, lr=0.0)
    method = Method(kind=kind, schedule=SCHEDULE, tuning=tuning, access=0.4, at_least=3)
    seen = {}
    for seed in (0, 1):
        rows.clear()
        train_method(study, method, seed)
        seen[seed] = set(torch.cat(rows).tolist())
        order = np.random.default_rng(seed).permutation(24)
        known = set(order[:10].tolist())  # 40 % of 24
        y, confound = (study.sets["train"].y.tolist(), study.sets["train"].confound.tolist())
        for pair in ((0, 0), (0, 1), (1, 0), (1, 1)):
            have = [i for i in known if (y[i], confound[i]) == pair]
            more = [int(i) for i in order if (y[i], confound[i]) == pair and i not in known]
            known |= set(more[: max(0, 3 - len(have))])
        assert len(known) >= 12
        assert seen[seed] == known
    assert seen[0] != seen[1]
    rows.clear()
    train_method(study, replace(method, access=1.0, tuning=replace(tuning, epochs=1, probes=24)), 0)
    assert set(torch.cat(rows).tolist()) == set(range(24))
    assert study.sets["train"].known is None


# --- what is said of a run


def class_by_hand(study, params, tokens, i):
    row = tokens.take([i])
    with torch.no_grad():
        return int(study.model.logits(params, row.ids, row.parts).argmax())


def difference_by_hand(study, params, train, members, asked, inside):
    """Mean influence of A minus that of B from the whole matrix, the probe left out of its own group."""
    matrix = influence(text_gradients(study.model), params, train.batch(torch.tensor(members)), asked.batch())
    found = []
    for q in range(len(asked)):
        a, b = [], []
        for n, member in enumerate(members):
            if train.y[member] != asked.y[q] or (inside and member == inside[q]):
                continue
            (a if train.confound[member] == asked.confound[q] else b).append(float(matrix[q, n]))
        found.append(sum(a) / len(a) - sum(b) / len(b))
    return found


def some(examples, rows):
    return Confounded(examples.tokens.take(torch.tensor(rows)), examples.y[rows], examples.confound[rows])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", list(ALL))
def test_a_run_reports_accuracies_of_a_loop_and_differences_of_the_whole_matrix(study, name, plain):
    method = replace(ALL[name], plain=plain)
    out, found = run_method(study, method, LOOK, 1), train_method(study, method, 1)
    sets = {split: study.sets[f"plain_{split}" if plain else split] for split in ("train", "dev", "test")}
    for split, one in sets.items():
        guess = [class_by_hand(study, found.params, one.tokens, i) for i in range(len(one))]
        right = [a == b for a, b in zip(guess, one.y.tolist(), strict=True)]
        assert set(guess) == {0, 1}
        assert out[f"accuracy/{split}"] == pytest.approx(100 * sum(right) / len(right))
        for y in (0, 1):
            for c in (0, 1):
                of = [right[i] for i in range(len(one)) if (int(one.y[i]), int(one.confound[i])) == (y, c)]
                assert out[f"groups/{split}"][y, c] == pytest.approx(100 * sum(of) / len(of))
    train, test = sets["train"], sets["test"]
    members, probes, held = (
        sample_groups(one, n, seed=0).tolist() for one, n in ((train, 5), (train, 2), (test, 2))
    )  # fmt: skip
    assert (len(members), len(probes), len(held)) == (5 + 3 + 3 + 5, 8, 8)
    for key, asked, inside in (("probes", some(train, probes), probes), ("heldout", some(test, held), None)):
        wanted = difference_by_hand(study, found.params, train, members, asked, inside)
        np.testing.assert_allclose(out[f"cid/{key}"], wanted, rtol=1e-9, atol=1e-12)
    assert float(out["loss"]) == float(found.loss[-1])
    np.testing.assert_allclose(out["J"], [one.loss.mean() for one in getattr(found, "rounds", ())])


@pytest.mark.parametrize("name", list(ALL))
def test_the_curve_is_taken_on_few_examples_as_training_goes(study, name, monkeypatch):
    """At each point: the difference of the whole matrix at the parameters of that moment."""
    moments, take = [], tuning_study.Watch.look

    def look(self, step, when, params):
        moments.append({key: value.detach().clone() for key, value in params.items()})
        return take(self, step, when, params)

    monkeypatch.setattr(tuning_study.Watch, "look", look)
    out = run_method(study, ALL[name], LOOK, 0)
    rounds = name in ("influence", "embedding")
    assert out["curve/step"].tolist() == ([2, 2, 4] if rounds else [2, 4])
    assert out["curve/when"].tolist() == ([1, 2, 0] if rounds else [0, 0])  # before, after, label
    train = study.sets["train"]
    few = sample_groups(train, 3, seed=0).tolist()
    for params, point in zip(moments, out["curve/cid"], strict=True):
        wanted = difference_by_hand(study, params, train, few, some(train, few), few)
        assert point == pytest.approx(np.mean(wanted), rel=1e-9)
    bare = run_method(study, ALL[name], replace(LOOK, every=None), 0)
    assert not [key for key in bare if key.startswith("curve")]
    np.testing.assert_array_equal(bare["cid/probes"], out["cid/probes"])  # looking changes nothing


def test_a_model_that_is_certain_has_no_difference_and_the_run_goes_on(study, monkeypatch):
    def broken(*_, **__):
        raise FloatingPointError("the CID of probe 3 is not a number")

    monkeypatch.setattr(tuning_study, "confound_difference", broken)
    out = run_method(study, FINE, replace(LOOK, every=None), 0)
    assert np.isnan(out["cid/probes"]).all()
    assert np.isnan(out["cid/heldout"]).all()
    assert (len(out["cid/probes"]), len(out["cid/heldout"])) == (8, 8)
    assert 0 <= out["accuracy/test"] <= 100


def test_a_group_without_texts_has_no_accuracy(study):
    one = texts((3, 0, 2, 4), 5)
    whole, table = accuracies(study.model, study.start(0), one)
    assert np.isnan(table).tolist() == [[False, True], [False, False]]
    assert whole == pytest.approx((3 * table[0, 0] + 2 * table[1, 0] + 4 * table[1, 1]) / 9)


def test_groups_are_sampled_at_random_and_a_larger_sample_holds_the_smaller():
    train = texts((20, 5, 5, 20), 7)
    few, more, other = (sample_groups(train, n, seed=seed) for n, seed in ((3, 0), (8, 0), (3, 1)))
    for rows, sizes in ((few, (3, 3, 3, 3)), (more, (8, 5, 5, 8))):
        pairs = list(zip(train.y[rows].tolist(), train.confound[rows].tolist(), strict=True))
        assert tuple(pairs.count(pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))) == sizes
        assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(few.tolist()) < set(more.tolist())  # so that probes are members, and left out of their own group
    assert few.tolist() != other.tolist()
    firsts = [i for i in range(50) if (train.y[i], train.confound[i]) == (0, 0)][:3]
    assert not set(firsts) <= set(few.tolist())


# --- runs on disk


def test_what_is_finished_is_read_and_never_trained_again(study, tmp_path, monkeypatch):
    count, train = [], tuning_study.fine_tune

    def counted(*arguments, **options):
        count.append(options["seed"])
        return train(*arguments, **options)

    monkeypatch.setattr(tuning_study, "fine_tune", counted)
    options = {"folder": tmp_path, "look": replace(LOOK, every=None), "n_jobs": 1}
    methods = {"fine": FINE, "quiet": Method(schedule=replace(SCHEDULE, dropout=False)), "tuned": INFLUENCE}
    first = run_methods(study, methods, [0, 5], **options)
    assert count == [0, 5, 0, 5]
    assert len(list(tmp_path.iterdir())) == 3
    names = ("fine_tune", "influence_tune")

    def never(*_, **__):
        raise AssertionError("trained again")

    for name in names:
        monkeypatch.setattr(tuning_study, name, never)
    again = run_methods(study, methods, [5, 0], **options)
    for name in methods:
        for a, b in zip(first[name], reversed(again[name]), strict=True):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    assert first["fine"][0]["loss"] != first["fine"][1]["loss"]
    assert first["fine"][0]["loss"] != first["quiet"][0]["loss"]
    with pytest.raises(AssertionError, match="trained again"):
        run_methods(study, {"fine": FINE}, [0, 6], **options)
    for changed in (replace(FINE, schedule=replace(SCHEDULE, lr=2e-3)), replace(FINE, plain=True)):
        with pytest.raises(AssertionError, match="trained again"):
            run_methods(study, {"fine": changed}, [0], **options)


def test_a_study_that_is_sent_to_another_process_trains_the_same(study):
    there = cloudpickle.loads(cloudpickle.dumps((study, FINE)))
    assert there[0].model is not study.model
    assert_same(train_method(*there, 1).params, train_method(study, FINE, 1).params)


def test_whatever_decides_a_run_has_a_store_of_its_own(study, tmp_path):
    def mark(study=study, method=INFLUENCE, look=LOOK):
        return method_store(study, method, look, tmp_path).fingerprint

    def with_set(name, **change):
        return replace(study, sets={**study.sets, name: replace(study.sets[name], **change)})

    train, test = study.sets["train"], study.sets["test"]
    ids = train.tokens.ids.clone()
    ids[0, 1] = 40
    noisier = replace(study, model=noisier_model(study.model))
    marks = [
        mark(),
        *(mark(method=replace(INFLUENCE, **change)) for change in (
            {"schedule": replace(SCHEDULE, epochs=3)}, {"schedule": replace(SCHEDULE, dropout=False)},
            {"tuning": replace(TUNING, lr=1e-4)}, {"tuning": replace(TUNING, published=Published(own_group=True))},
            {"plain": True}, {"access": 0.5}, {"at_least": 3},
        )),
        mark(method=EMBEDDING), mark(method=replace(EMBEDDING, state="pooled")),
        mark(method=ADVERSARIAL), mark(method=replace(ADVERSARIAL, lam=1.0)),
        *(mark(look=replace(LOOK, **change)) for change in (
            {"members": 6}, {"probes": 3}, {"curve": 4}, {"every": 3}, {"every": None},
        )),
        mark(with_set("train", y=1 - train.y)), mark(with_set("test", confound=1 - test.confound)),
        mark(with_set("train", tokens=replace(train.tokens, ids=ids))),
        mark(replace(study, start=lambda seed: study.start(seed + 1))), mark(noisier),
    ]  # fmt: skip
    assert len(set(marks)) == len(marks)
    assert marks[0] == mark(replace(study), replace(INFLUENCE), replace(LOOK))
    where = method_store(study, INFLUENCE, LOOK, tmp_path).folder
    assert where.parent == tmp_path
    assert where.name == f"tiny_influence-{marks[0][:16]}"


def noisier_model(model):
    module = copy.deepcopy(model.module)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.4
    return replace(model, module=module)


# --- bad input


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "magic"}, "kind must be one of fine, adversarial, influence, embedding, got 'magic'"),
    ({"kind": "influence"}, "tuning is for 'influence' and 'embedding', and they need it: kind 'influence'"),
    ({"kind": "adversarial", "tuning": TUNING}, "tuning is for 'influence' and 'embedding', and they need it"),
    ({"access": 0.0}, "access is a share above 0, at most 1, got 0.0"),
    ({"access": 1.5}, "access is a share above 0, at most 1, got 1.5"),
    ({"access": 0.5}, "access is for 'influence' and 'embedding', not for 'fine'"),
])  # fmt: skip
def test_a_method_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Method(schedule=SCHEDULE, **options)


@pytest.mark.parametrize(("method", "message"), [
    (replace(ADVERSARIAL, lam=-1.0), "lam must be 0 or more, got -1.0"),
    (replace(EMBEDDING, state="mean"), "state must be 'cls' or 'pooled', got 'mean'"),
    (replace(EMBEDDING, tuning=replace(TUNING, names=("x",))), "embedding tuning has no parameter subset"),
    (replace(INFLUENCE, tuning=replace(TUNING, names=("x",))), "x is no parameter"),
    (replace(INFLUENCE, tuning=replace(TUNING, k=3)), "k=3, but group A has 2 texts for probes of class 0 with conf"),
    (replace(INFLUENCE, tuning=replace(TUNING, probes=25)), "25 probes, but the confound of 24 texts is known"),
    (replace(INFLUENCE, access=0.02), "no confound is known"),
    (replace(INFLUENCE, access=0.06), "group B is empty for probes of class"),
    (replace(INFLUENCE, access=0.5, at_least=3, tuning=replace(TUNING, probes=20)), "20 probes, but the confound of"),
])  # fmt: skip
def test_what_cannot_be_trained_is_said_before_the_first_step(study, monkeypatch, method, message):
    def never(*_, **__):
        raise AssertionError("training has begun")

    for module in (tuning_run, tuning_study.adversarial):
        monkeypatch.setattr(module, "minimise", never)
    with pytest.raises(ValueError, match=message):
        train_method(study, method, 0)


def test_a_shortcut_that_cannot_be_left_out_has_no_control(study):
    bare = replace(study, sets={name: one for name, one in study.sets.items() if not name.startswith("plain")})
    with pytest.raises(ValueError, match="the shortcut of 'tiny' cannot be left out: no control without it"):
        train_method(bare, replace(FINE, plain=True), 0)


def test_each_seed_comes_once(study, tmp_path):
    with pytest.raises(ValueError, match=r"each seed once, got \[1, 1\]"):
        run_methods(study, {"fine": FINE}, [1, 1], folder=tmp_path, n_jobs=1)


# --- the chapters' settings


def test_every_method_had_three_settings_and_the_published_one_has_every_fault():
    for like in ("textlen", "msgs"):
        grid = tuning_panels.grid(like)
        assert {name: len(settings) for name, settings in grid.items()} == dict.fromkeys(tuning_study.KINDS, 3)
        for kind, settings in grid.items():
            assert {method.kind for method in settings.values()} == {kind}
            assert len({repr(method) for method in settings.values()}) == 3
    found = tuning_panels.published(INFLUENCE)
    assert found.schedule.floor_steps
    assert found.tuning.published == Published.everything()
    assert replace(found, schedule=SCHEDULE, tuning=TUNING) == INFLUENCE


@pytest.mark.parametrize("like", tuning_panels.ROUNDS)
def test_a_small_share_holds_texts_enough_for_groups_that_leave_the_probe_out(like):
    y, confound = torch.arange(400) % 2, (torch.arange(400) < 40).long()
    method = tuning_panels.methods(like, ["influence_tuning"], access=0.01)["influence_tuning"]
    words = torch.ones(400, 1, dtype=torch.long)
    tokens = Tokens(words, words, (), ("a", "b"))
    known = accessible(y, confound, method.access, at_least=method.at_least, seed=3)
    check_groups(Confounded(tokens, y, confound, known=known), method.tuning.k)  # raises where a group is too small
    fewer = accessible(y, confound, method.access, at_least=method.tuning.k, seed=3)
    with pytest.raises(ValueError, match="lower k"):
        check_groups(Confounded(tokens, y, confound, known=fewer), method.tuning.k)


def test_the_mean_of_the_groups_is_the_accuracy_on_balanced_texts():
    run = {"groups/dev": np.array([[100.0, 0.0], [50.0, 90.0]]), "groups/test": np.full((2, 2), 25.0)}
    assert (tuning_panels.group_mean(run), tuning_panels.group_mean(run, "test")) == (60.0, 25.0)
