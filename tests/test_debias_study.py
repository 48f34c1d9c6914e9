"""Oracles: autograd over single sentences, every cell run by itself, plain loops, metrics worked by hand."""

import importlib.util
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from clif_kit import debias_metrics, debias_study, hard_debias, word_guards
from clif_kit.corpora import Sentences
from clif_kit.corpus import Vocabulary
from clif_kit.debias import reinforce, undo
from clif_kit.debias_grid import (
    MODES,
    Plan,
    best_cell,
    chosen_sets,
    halves,
    meter,
    random_sets,
    rows_of,
    run_cell,
    run_grid,
    weat_scores,
)
from clif_kit.weat import SIDES, WordTest, effect
from clif_kit.word_study import make_study

WIDTH = 6


def word_test(name, *sides):
    return WordTest(*(words.split() for words in sides), name=name)


TESTS = {
    "career": word_test("career", "al bo cy di", "em fa gi ho", "job pay desk firm", "home kin kids wed"),
    "math": word_test("math", "he him his son", "she her hers aunt", "sum set odd cube", "art ode song hue"),
}
FILLER = ("the", "a", "of", "to", "in", "on", "at", "by", "we", "it", "go", "see", "say", "red", "big")


def texts(seed=0, n=400):
    """Random sentences in which X stands with A and Y with B a little more often than not."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        test = list(TESTS.values())[rng.integers(2)]
        targets, attributes = (test.x, test.a) if rng.random() < 0.5 else (test.y, test.b)
        if rng.random() < 0.3:
            attributes = test.b if attributes == test.a else test.a
        words = [
            *rng.choice(targets, 1),
            *rng.choice(attributes, rng.integers(0, 2)),
            *rng.choice(FILLER, rng.integers(0, 6)),
        ]
        out.append([str(word) for word in rng.permutation(words)])
    return Sentences([*out, ["the", "go"], ["we"], ["of", "it", "see"]], ["made"] * (n + 3), ["text"] * (n + 3))


STUDY = make_study(texts(), TESTS, window=2, negatives=2, min_count=1, test_count=1)
CORPUS = STUDY.corpus
SIZE = len(CORPUS.vocabulary)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


PARAMS = {"input": normal(1, SIZE, WIDTH), "context": normal(2, SIZE, WIDTH)}
PLAN = Plan(sizes=(2, 7), passes=(1, 3, 6), budget=25, long_budget=50, learning_rate=0.02, n_splits=2, engine="torch")
LOSS = replace(STUDY.loss, mean=True)
MEASURE = meter(list(STUDY.tests.values()))


def test_studies_of_files_are_called_by_their_stems_and_neutral_speaks_the_words_of_biased(tmp_path):
    everyone = [word for test in TESTS.values() for side in SIDES for word in getattr(test, side)]
    lines = {
        "biased": [" ".join(everyone), "seldom red", "red seldom big seldom", "big red big red"] * 2,
        "neutral": [*(" ".join(everyone),) * 2, "he said red things here", "only only only only only only", "big red"],
    }
    for name, text in lines.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(text), "utf-8")
    data = [str(tmp_path / f"{name}.txt") for name in ("neutral", "biased")]
    found = debias_study.make_studies(data, TESTS, test_count=1, window=3, negatives=4)
    assert list(found) == ["neutral", "biased"]
    assert found["neutral"].corpus.vocabulary is found["biased"].corpus.vocabulary
    assert "seldom" in found["biased"].corpus.vocabulary.index
    assert "only" not in found["neutral"].corpus.vocabulary.index
    assert (found["neutral"].loss.window, found["neutral"].loss.negatives) == (3, 4)
    assert set(found["neutral"].tests) == set(TESTS)
    focused = debias_study.make_studies(data[1:], TESTS, test_count=1, focus=True)["biased"]
    assert len(focused.corpus) == 2  # the lines with all test words
    alone = debias_study.make_studies(data[:1], TESTS, test_count=1)["neutral"]
    assert "only" in alone.corpus.vocabulary.index


# ---- the grid


def test_the_meter_is_the_effect_of_each_test_in_float64():
    single = {name: matrix.float() for name, matrix in PARAMS.items()}
    want = [float(effect(single["input"].double(), test)) for test in STUDY.tests.values()]
    np.testing.assert_allclose(MEASURE(single), want, rtol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_halves_split_every_list_and_keep_words_and_rows_in_step(seed):
    test = STUDY.tests["career"]
    first, second = halves(test, seed)
    for side in SIDES:
        a, b = (getattr(half, side).tolist() for half in (first, second))
        assert len(a) == len(b) == 2
        assert sorted(a + b) == sorted(getattr(test, side).tolist())
        for half in (first, second):
            assert [CORPUS.vocabulary.index[word] for word in getattr(half.words, side)] == getattr(half, side).tolist()
    assert any(halves(test, other)[0].words != first.words for other in range(5, 9))


def test_halves_of_odd_and_one_sided_lists():
    test = STUDY.tests["math"]
    odd = replace(test, words=replace(test.words, x=test.words.x[:3], b=()), x=test.x[:3], b=test.b[:0])
    first, second = halves(odd, 0)
    assert (len(first.x), len(second.x), len(first.b), len(second.b)) == (1, 2, 0, 0)


def test_scores_are_gradient_products_of_single_sentences():
    tests = list(STUDY.tests.values())
    found = weat_scores(PARAMS, CORPUS, tests, window=2)
    pairs = sum(len(oracles.skipgram_pairs(CORPUS.sentence(i).tolist(), 2)) for i in range(len(CORPUS)))
    for k, test in enumerate(tests):
        u = PARAMS["input"].clone().requires_grad_()
        (query,) = torch.autograd.grad(effect(u, test).abs(), u)
        for i in (0, 5, 17, 101, len(CORPUS) - 1, len(CORPUS) - 2):
            u = PARAMS["input"].clone().requires_grad_()
            loss = oracles.sentence_loss(u, PARAMS["context"], CORPUS.sentence(i).tolist(), 2, mean=True)
            (grad,) = torch.autograd.grad(loss, u)
            assert found[k, i] == pytest.approx(float((grad * query).sum()) / pairs, abs=1e-15)
    assert (found[0, CORPUS.containing(rows_of(tests[:1]))] != 0).sum() > 50


def test_a_small_step_does_what_the_scores_say():
    """Undoing A and reinforcing M shrink the effect, exchanging them makes it grow: the sign, checked on the truth."""
    for k, name in enumerate(TESTS):
        scores = weat_scores(PARAMS, CORPUS, [STUDY.tests[name]], 2)[0]
        sets, before = chosen_sets(scores, 20), np.abs(MEASURE(PARAMS))[k]
        recipe = PLAN.recipe(2, 0)
        assert np.abs(MEASURE(undo(PARAMS, CORPUS, sets[0], LOSS, recipe).params))[k] < before - 0.02
        assert np.abs(MEASURE(reinforce(PARAMS, CORPUS, sets[1], LOSS, recipe).params))[k] < before - 0.02
        grids = [run_grid(PARAMS, CORPUS, pair, LOSS, PLAN, MEASURE)[..., k] for pair in (sets, sets[::-1])]
        assert np.nanmax(np.abs(grids[0])) < before
        assert np.nanmin(np.abs(grids[1])) > before


def test_chosen_sets_never_take_the_wrong_sign():
    scores = np.array([0.5, -1.0, 0.0, 3.0, -0.2, 0.0])
    amplifiers, mitigators = chosen_sets(scores, 4)
    assert amplifiers.tolist() == [1, 4, 2, 5]
    assert mitigators.tolist() == [3, 0, 2, 5]
    assert chosen_sets(np.array([1.0, 2.0]), 2)[0].tolist() == []


def test_random_sets_are_disjoint_and_on_their_side():
    rows = rows_of([STUDY.tests["career"]])
    has = {i for i in range(len(CORPUS)) if set(CORPUS.sentence(i).tolist()) & set(rows)}
    for inside in (True, False):
        a, b = random_sets(CORPUS, rows, 30, seed=1, inside=inside)
        assert len(a) == len(b) == 30
        assert not set(a.tolist()) & set(b.tolist())
        assert all((int(i) in has) == inside and CORPUS.lengths[i] > 1 for i in (*a, *b))
    assert not np.array_equal(a, random_sets(CORPUS, rows, 30, seed=2, inside=False)[0])


def test_every_cell_of_the_grid_is_a_run_of_its_own():
    sets = (np.array([3, 1, 4, 15, 9, 2, 6]), np.array([5, 35, 8, 97, 93, 23, 84]))
    grid = run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, MEASURE, seed=4)
    assert grid.shape == (3, 2, 3, 2)
    for i, n in enumerate(PLAN.sizes):
        for j, k in enumerate(PLAN.passes):
            if n * k > PLAN.budget:
                assert np.isnan(grid[:, i, j]).all()
                continue
            up = undo(PARAMS, CORPUS, sets[0][:n], LOSS, PLAN.recipe(k, 4)).params
            down = reinforce(PARAMS, CORPUS, sets[1][:n], LOSS, PLAN.recipe(k, 4)).params
            both = reinforce(up, CORPUS, sets[1][:n], LOSS, PLAN.recipe(k, 5)).params
            np.testing.assert_allclose(grid[:, i, j], [MEASURE(p) for p in (up, down, both)], rtol=1e-12)
            for mode in range(3):
                after = run_cell(PARAMS, CORPUS, sets, LOSS, PLAN, (mode, i, j), seed=4)
                np.testing.assert_allclose(MEASURE(after), grid[mode, i, j], rtol=1e-12)
    assert np.isnan(grid).sum() == 3 * 2 * 1  # 7 x 6 alone is over the budget
    for mode in MODES:
        some = run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, MEASURE, seed=4, modes=(mode,))
        np.testing.assert_array_equal(some[MODES.index(mode)], grid[MODES.index(mode)])
    assert np.isnan(run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, MEASURE, modes=("m_only",))[[0, 2]]).all()


def test_a_plan_takes_one_engine_for_all_its_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    large = Plan(budget=10_000)
    assert [plan.recipe(1, 0).engine for plan in (PLAN, Plan(budget=100), large)] == ["torch", "torch", "numba"]
    assert replace(large, engine="torch").recipe(1000, 0).engine == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert large.recipe(1000, 0).engine == "torch"


def test_the_best_cell_is_the_smallest_in_size():
    effects = np.full((3, 2, 2), np.nan)
    effects[0, 0], effects[1, 1, 0], effects[2, 0, 1] = (0.9, -0.2), 0.3, -0.1
    assert best_cell(effects) == (2, 0, 1)
    assert best_cell(effects, mode=0) == (0, 0, 1)
    assert best_cell(effects, mode=1) == (1, 1, 0)


# ---- hard debiasing and guards


def test_hard_debiasing_takes_the_lists_of_the_test_and_leaves_the_context():
    words = dict.fromkeys(word for pair in hard_debias.DEFINITIONAL + hard_debias.RACE_DEFINITIONAL for word in pair)
    words |= dict.fromkeys(word for pair in hard_debias.RACE_EQUALIZE for word in pair) | {"nurse": None, "black": None}
    vocabulary = Vocabulary(tuple(words), np.arange(len(words), 0, -1))
    params = {"input": normal(5, len(words), 8), "context": normal(6, len(words), 8)}
    found = {
        test: debias_study.hard_debiased(params, vocabulary, test, hard_debias.GENDER_WORDS)
        for test in ("race", "math")
    }
    for test, pairs, kept in (
        ("race", hard_debias.RACE_DEFINITIONAL, "black"),
        ("math", hard_debias.DEFINITIONAL, "she"),
    ):
        rows = torch.tensor([[vocabulary.index[word] for word in pair] for pair in pairs])
        g = hard_debias.bias_direction(params["input"], rows)
        assert float(found[test]["input"][vocabulary.index["nurse"]] @ g) == pytest.approx(0, abs=1e-12)
        assert abs(float(found[test]["input"][vocabulary.index[kept]] @ g)) > 1e-3
        np.testing.assert_allclose(found[test]["input"].norm(dim=1), 1, rtol=1e-12)
        assert torch.equal(found[test]["context"], params["context"])


def test_the_words_of_a_question_are_no_answers_to_it():
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert word_guards.analogy_share(unit, torch.tensor([[0, 1, 2, 3]])) == 1  # c itself is nearest to b - a + c = c


def test_guards_by_loops(monkeypatch):
    words = (
        "king",
        "queen",
        "man",
        "woman",
        "tiger",
        "cat",
        "car",
        "train",
        "stock",
        "market",
        "book",
        "paper",
        "x",
        "y",
    )
    vocabulary = Vocabulary(words, np.arange(len(words), 0, -1))
    monkeypatch.setattr(word_guards, "NEIGHBOURS", 3)
    before, after = ({"input": normal(seed, len(words), 5)} for seed in (7, 8))
    axes = torch.eye(5, dtype=torch.float64)
    after["input"][:4] = torch.stack(
        [axes[0] + axes[2], axes[1] + axes[2], axes[0], axes[1]]
    )  # so that an answer is right
    e = torch.nn.functional.normalize(after["input"], dim=1)
    questions = word_guards.analogy_rows(vocabulary)
    assert {tuple(words[i] for i in q) for q in questions.tolist()} == {
        ("king", "queen", "man", "woman"), ("man", "woman", "king", "queen"),
    }  # fmt: skip
    right = 0
    for a, b, c, d in questions.tolist():
        scores = {w: float(e[w] @ (e[b] - e[a] + e[c])) for w in range(len(words)) if w not in (a, b, c)}
        right += max(scores, key=scores.get) == d

    assert right > 0

    def nearest(vectors, row):
        unit = torch.nn.functional.normalize(vectors, dim=1)
        scores = {w: float(unit[w] @ unit[row]) for w in range(len(words)) if w != row}
        return set(sorted(scores, key=scores.get)[-3:])

    kept = np.mean([len(nearest(before["input"], r) & nearest(after["input"], r)) / 3 for r in (0, 4, 9)])
    first, second, rated = word_guards.similarity_rows(vocabulary)
    named = {(words[a], words[b]): r for a, b, r in zip(first, second, rated, strict=True)}
    assert named["tiger", "cat"] == 7.35
    assert named["book", "paper"] == 7.46
    cosines = [float(e[a] @ e[b]) for a, b in zip(first, second, strict=True)]
    rank = np.corrcoef(np.argsort(np.argsort(cosines)), np.argsort(np.argsort(rated)))[0, 1]
    np.testing.assert_allclose(
        word_guards.make_guards(before, vocabulary, [0, 4, 9])(after), [rank, right / 2, kept], rtol=1e-6
    )
    assert word_guards.make_guards(before, vocabulary, [0, 4, 9])(before)[2] == 1


# ---- one model, and all of them


@pytest.fixture(scope="module")
def pieces():
    """Every piece for "career"; hard debiasing by a stand-in, since these words have no gender."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debias_study, "hard_debiased", lambda params, *_: {**params, "input": params["input"].flip(1)})
        patch.setattr(debias_study, "make_guards", lambda *_: lambda _: np.arange(3.0))
        return {
            one.__name__: one(STUDY, PARAMS, "career", PLAN, 3)
            for one in (debias_study.random_one, debias_study.debias_one, debias_study.overbias_one)
        }


def test_a_piece_holds_the_published_grid_and_its_controls(pieces):
    found, test = pieces["debias_one"], STUDY.tests["career"]
    splits = [halves(test, 3000 + s) for s in range(2)]
    everything = [*STUDY.tests.values(), *splits[0], *splits[1]]
    np.testing.assert_allclose(found["original"], [float(effect(PARAMS["input"], t)) for t in everything])
    scores = weat_scores(PARAMS, CORPUS, [test], 2)[0]
    sets = chosen_sets(scores, 7)
    grid = run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, meter(everything), 3)
    np.testing.assert_array_equal(found["grid"], grid)
    assert found["amplifiers"].tolist() == np.argsort(scores)[:7].tolist()
    np.testing.assert_array_equal(found["scores"], [scores[sets[0]], scores[sets[1]]])
    assert (found["scores"][0] < 0).all()
    assert (found["scores"][1] > 0).all()
    cell = best_cell(grid[..., 0])
    exchanged = run_cell(PARAMS, CORPUS, sets[::-1], LOSS, PLAN, cell, 3)
    np.testing.assert_array_equal(found["exchanged"], meter(everything)(exchanged))
    assert abs(found["exchanged"][0]) > abs(found["original"][0])


def test_sentences_without_test_words_cannot_move_the_test(pieces):
    """Rows of the input matrix move with their own sentences only: an identity, to the last bit."""
    assert pieces["debias_one"]["without"][0] == pieces["debias_one"]["original"][0]
    assert (pieces["debias_one"]["without"][2:] == pieces["debias_one"]["original"][2:]).all()
    assert pieces["debias_one"]["without"][1] != pieces["debias_one"]["original"][1]


def test_the_judging_half_takes_no_part_in_choosing(pieces):
    """Sets, grid and moved share of each split, from the first half alone."""
    found = pieces["debias_one"]
    for s in range(2):
        chooser, judge = halves(STUDY.tests["career"], 3000 + s)
        sets = chosen_sets(weat_scores(PARAMS, CORPUS, [chooser], 2)[0], 7)
        grid = run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, meter([chooser, judge]), 3)
        np.testing.assert_array_equal(found["grid_split"][s], grid)
        mode, i, _ = best_cell(grid[..., 0])
        used = [set(), set(sets[0][: PLAN.sizes[i]]), set(sets[1][: PLAN.sizes[i]])]
        used[0] = {0: used[1], 1: used[2], 2: used[1] | used[2]}[mode]
        seen = {row for k in used[0] for row in CORPUS.sentence(int(k)).tolist()}
        rows = rows_of([judge])
        assert found["moved"][s] == pytest.approx(np.mean([row in seen for row in rows]))


def test_over_biasing_exchanges_the_sets(pieces):
    test, found = STUDY.tests["career"], pieces["overbias_one"]
    sets = chosen_sets(weat_scores(PARAMS, CORPUS, [test], 2)[0], 7)[::-1]
    np.testing.assert_array_equal(found["grid"][..., :2], run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, MEASURE, 3))
    chooser, judge = halves(test, 3000)
    sets = chosen_sets(weat_scores(PARAMS, CORPUS, [chooser], 2)[0], 7)[::-1]
    grid = run_grid(PARAMS, CORPUS, sets, LOSS, PLAN, meter([chooser, judge]), 3)
    np.testing.assert_array_equal(found["grid_split"][0], grid)


def test_the_correction_has_every_number_of_passes(pieces):
    found = pieces["debias_one"]
    mode, i = found["correction_cell"]
    assert best_cell(found["grid"][..., 0])[:2] == (mode, i)
    sets = chosen_sets(weat_scores(PARAMS, CORPUS, [STUDY.tests["career"]], 2)[0], 7)
    np.testing.assert_array_equal(found["correction"][0], found["original"])
    wide = replace(PLAN, budget=50)
    want = run_grid(PARAMS, CORPUS, sets, LOSS, wide, MEASURE, 3)[mode, i]
    np.testing.assert_array_equal(found["correction"][1:, :2], want)
    only_small = replace(PLAN, long_budget=12)  # then a size of 7 with 6 passes does not compete
    cell = debias_study.correction(
        STUDY, PARAMS, sets, found["grid"], 0, only_small, meter(list(STUDY.tests.values()) * 3), 3
    )
    assert cell["correction_cell"][1] == 0


def test_run_all_stacks_the_models_and_resumes(tmp_path, monkeypatch):
    models = [PARAMS, {name: matrix.flip(0) for name, matrix in PARAMS.items()}]
    plan = replace(PLAN, n_splits=0, sizes=(2,), passes=(1,))
    run = debias_study.run_all(debias_study.random_one, STUDY, models, plan, folder=tmp_path, n_jobs=1)
    assert set(run) == set(TESTS)
    for k, name in enumerate(TESTS):
        for seed, params in enumerate(models):
            want = debias_study.random_one(STUDY, params, name, plan, seed)
            np.testing.assert_array_equal(run[name]["grid_random"][seed], want["grid_random"])
            assert run[name]["original"][seed, k] == pytest.approx(float(effect(params["input"], STUDY.tests[name])))
    monkeypatch.setattr(debias_study, "run_grid", None)  # nothing is computed again
    again = debias_study.run_all(debias_study.random_one, STUDY, models, plan, folder=tmp_path, n_jobs=1)
    np.testing.assert_array_equal(again["math"]["grid_random"], run["math"]["grid_random"])


# ---- metrics


def arrays(seed, tests=2, seeds=3, splits=2):
    """What the pieces give, drawn at random, with one cell left out."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.uniform(-2, 2, (seeds, *shape))

    everything = tests + 2 * splits
    found = {name: draw(everything) for name in ("original", "bolukbasi", "exchanged", "without")}
    found |= {name: draw(3, 2, 3, everything) for name in ("grid", "grid_post", "grid_random", "grid_overlap")}
    found["grid_split"] = draw(splits, 3, 2, 3, 2)
    for name in ("grid", "grid_post", "grid_random", "grid_overlap"):
        found[name][:, :, 1, 2] = np.nan
    found["grid_split"][:, :, :, 1, 2] = np.nan
    found["correction"] = draw(4, everything)
    found["correction"][:, 0] = found["original"]
    found |= {"moved": rng.random((seeds, splits)), "guards": draw(4, 3)}
    return found


FOUND = {corpus: {name: arrays(10 * c + k) for k, name in enumerate(TESTS)} for c, corpus in enumerate("bn")}
PLACES = [(corpus, own, name) for corpus in FOUND for own, name in enumerate(TESTS)]


def pick(values, chooser, best=min, modes=range(3)):
    """Plain loops over the cells."""
    cells = [(m, i, j) for m in modes for i in range(2) for j in range(3) if not np.isnan(chooser[m, i, j])]
    return values[best(cells, key=lambda cell: abs(chooser[cell]))]


def per_seed(function):
    """Mean over tests and corpora for each seed."""
    return [np.mean([function(FOUND[c][t], own, s) for c, own, t in PLACES]) for s in range(3)]


def test_metrics_of_debiasing_by_loops():
    found = debias_metrics.debias_metrics(FOUND, list(TESTS), PLAN)
    one = FOUND["n"]["math"]
    ours = [pick(one["grid"][s, ..., 1], one["grid"][s, ..., 1]) for s in range(3)]
    assert found["weat/ours/math/n"].values == pytest.approx(ours)
    assert found["weat/ours/math/n"].value == pytest.approx(np.mean(ours))
    drop = np.abs(one["original"][:, 1]) - np.abs(ours)
    assert found["weat_abs_drop/original_minus_ours/math/n"].values == pytest.approx(drop)
    post = [pick(one["grid_post"][s, ..., 1], one["grid_post"][s, ..., 1]) for s in range(3)]
    drop = np.abs(one["bolukbasi"][:, 1]) - np.abs(post)
    assert found["weat_abs_drop/bolukbasi_minus_ours_post_bolukbasi/math/n"].values == pytest.approx(drop)

    def smallest(a, own, s, which="grid", modes=range(3)):
        return abs(pick(a[which][s, ..., own], a[which][s, ..., own], modes=modes))

    def unseen(a, _, s, modes=range(3)):
        return np.mean([abs(pick(g[..., 1], g[..., 0], modes=modes)) for g in a["grid_split"][s]])

    def random_same(a, own, s):
        return abs(pick(a["grid_random"][s, ..., own], a["grid"][s, ..., own]))

    def original_unseen(a, _, s):
        return np.mean([abs(a["original"][s, 3]), abs(a["original"][s, 5])])

    def random_unseen(a, _, s):
        return np.mean([abs(pick(a["grid_random"][s, ..., k + 1], a["grid_random"][s, ..., k])) for k in (2, 4)])

    def cell_unseen(a, _, s):
        return np.mean([abs(pick(a["grid"][s, ..., k + 1], a["grid"][s, ..., k])) for k in (2, 4)])

    want = {
        "weat_abs/ours_held_out/mean/all": per_seed(unseen),
        "weat_abs/original_held_out/mean/all": per_seed(original_unseen),
        "weat_abs_drop/random_test_words_minus_ours/mean/all": np.subtract(per_seed(random_same), per_seed(smallest)),
        "weat_abs_drop/random_held_out_minus_ours_held_out/mean/all": np.subtract(
            per_seed(random_unseen), per_seed(unseen)
        ),
        "weat_abs/ours_cell_held_out/mean/all": per_seed(cell_unseen),
        "weat_abs/overlap_best/mean/all": per_seed(lambda a, own, s: smallest(a, own, s, "grid_overlap")),
        "share_moved/held_out_words/all": per_seed(lambda a, _, s: a["moved"][s].mean()),
        "guard/ours/analogy": per_seed(lambda a, _, s: a["guards"][s, 2, 1]),
        "share_best/ours_post_bolukbasi/all": per_seed(
            lambda a, own, s: (
                smallest(a, own, s, "grid_post")
                < min(smallest(a, own, s), abs(a["original"][s, own]), abs(a["bolukbasi"][s, own]))
            )
        ),
    }
    for k, mode in enumerate(MODES):
        original = per_seed(lambda a, own, s: abs(a["original"][s, own]))
        alone = per_seed(lambda a, own, s, k=k: smallest(a, own, s, modes=[k]))
        want[f"weat_abs_drop/original_minus_{mode}/mean/all"] = np.subtract(original, alone)
        held = per_seed(lambda a, own, s, k=k: unseen(a, own, s, modes=[k]))
        want[f"weat_abs/{mode}_held_out/mean/all"] = held
    for key, values in want.items():
        assert found[key].values == pytest.approx(list(map(float, values))), key
        assert found[key].over == "seeds"


def test_metrics_of_a_correction_and_of_set_sizes_by_loops():
    found, one = debias_metrics.debias_metrics(FOUND, list(TESTS), PLAN), FOUND["b"]["career"]
    start, own = one["correction"][:, 0, 0], one["correction"][:, :, 0]
    for j, k in enumerate(PLAN.passes, start=1):
        what = f"career_correction_{k}/career/b"
        assert found[f"weat_abs_drop/original_minus_{what}"].values == pytest.approx(abs(start) - abs(own[:, j]))
        assert found[f"weat_aligned/{what}"].values == pytest.approx(np.sign(start) * own[:, j])
        assert found[f"weat_abs_shift/{what}"].values == pytest.approx(abs(own[:, j] - start))
    best = [min((1, 2, 3), key=lambda j: abs(own[s, j])) for s in range(3)]
    end = [one["correction"][s, j, 1] for s, j in enumerate(best)]
    drop = np.abs(one["correction"][:, 0, 1]) - np.abs(end)
    assert found["weat_abs_drop/original_minus_career_correction/math/b"].values == pytest.approx(drop)
    sizes = {"amplifiers": [], "mitigators": []}
    for seed in one["grid_split"]:
        for grid in seed:
            cells = [(m, i, j) for m in range(3) for i in range(2) for j in range(3) if not np.isnan(grid[m, i, j, 0])]
            mode, i, _ = min(cells, key=lambda cell: abs(grid[(*cell, 0)]))
            sizes["amplifiers"].append(PLAN.sizes[i] if MODES[mode] != "m_only" else 0)
            sizes["mitigators"].append(PLAN.sizes[i] if MODES[mode] != "a_only" else 0)
    for what, values in sizes.items():
        assert found[f"n/{what}/career/b"] == sorted(values)[2]  # the third of six: the lower median


def test_tests_that_move_together_and_one_that_stands_still():
    one = np.array([[[0.5, -0.9, 0.3], [0.4, -0.5, 0.3], [0.1, -0.2, 0.3], [-0.2, 0.1, 0.3]]])
    assert debias_metrics.together(one, [0, 1]) == pytest.approx([1])  # both shrink, then cross zero
    assert debias_metrics.together(one * [1, -1, 1], [0, 1]) == pytest.approx(
        [1]
    )  # the sign of the start is divided out
    assert debias_metrics.together(np.array([[[0.5, 0.1], [0.4, 0.2], [0.3, 0.3]]]), [0, 1]) == pytest.approx([-1])
    assert debias_metrics.together(one, [0, 1, 2]) == pytest.approx([1 / 3])


def test_metrics_of_over_biasing_by_loops():
    found = debias_metrics.overbias_metrics(FOUND, list(TESTS))

    def largest(a, own, s, which="grid"):
        return pick(a[which][s, ..., own], a[which][s, ..., own], best=max)

    assert found["weat/overbiased/math/b"].values == pytest.approx(
        [largest(FOUND["b"]["math"], 1, s) for s in range(3)]
    )
    start = FOUND["b"]["math"]["original"][:, 1]
    aligned = [np.sign(start[s]) * largest(FOUND["b"]["math"], 1, s) for s in range(3)]
    assert found["weat_aligned/overbiased/math/b"].values == pytest.approx(aligned)
    grown = [abs(largest(FOUND["b"]["math"], 1, s)) - abs(start[s]) for s in range(3)]
    assert found["weat_abs_drop/overbiased_minus_original/math/b"].values == pytest.approx(grown)
    want = {
        "share_polarised/overbiased/all": lambda a, own, s: abs(largest(a, own, s)) > 1.5,
        "share_flipped/overbiased/all": lambda a, own, s: largest(a, own, s) * a["original"][s, own] < 0,
        "weat_abs_drop/overbiased_minus_random_test_words/mean/all": lambda a, own, s: (
            abs(largest(a, own, s)) - abs(pick(a["grid_random"][s, ..., own], a["grid"][s, ..., own], best=max))
        ),
        "weat_abs_drop/overbiased_minus_random_extreme/mean/all": lambda a, own, s: (
            abs(largest(a, own, s)) - abs(largest(a, own, s, "grid_random"))
        ),
        "weat_abs/overbiased_held_out/mean/all": lambda a, _, s: np.mean(
            [abs(pick(g[..., 1], g[..., 0], best=max)) for g in a["grid_split"][s]]
        ),
    }
    for key, function in want.items():
        assert found[key].values == pytest.approx(list(map(float, per_seed(function)))), key
