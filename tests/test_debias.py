"""Oracle: autograd of a naive loop over pairs and ``torch.optim.SparseAdam``; the noise words are dealt out anew."""

import importlib.util

import numpy as np
import oracles
import pytest
import torch
from test_corpus import corpus_of

from clif_kit import debias
from clif_kit.debias import Recipe, fine_tune, reinforce, undo, undo_then_reinforce
from clif_kit.skipgram import SkipgramLoss, noise_distribution

SIZE, WIDTH = 12, 3
NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is optional")
ENGINES = pytest.mark.parametrize("engine", ["torch", pytest.param("numba", marks=NUMBA)])


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


SENTENCES = [[0, 1, 2, 1, 5], [3], [4, 0, 6, 6, 2, 7, 1], [], [8, 9], [2, 0]]  # words 10 and 11 are in none
CORPUS = corpus_of(SENTENCES, SIZE)
PARAMS = {"input": normal(1, SIZE, WIDTH), "context": normal(2, SIZE, WIDTH)}
NOISE = noise_distribution(np.arange(1, SIZE + 1))


def loss_of(window=2, k=2, mean=False, noise=NOISE):
    return SkipgramLoss(window=window, negatives=k, noise=noise, mean=mean)


def drawn(rng, sentences, loss, shared):
    """For each sentence its noise as (centre, noise word, weight), from one draw a pass, in the order of the pairs."""
    every = [oracles.skipgram_pairs(sentence, loss.window) for sentence in sentences]
    k = int(loss.negatives)
    owners = []  # (sentence, centre, weight)
    for s, (sentence, pairs) in enumerate(zip(sentences, every, strict=True)):
        scale = 1 / len(pairs) if loss.mean else 1.0
        if shared:
            for i, word in enumerate(sentence):
                near = sum(1 for j in range(len(sentence)) if i != j and abs(i - j) <= loss.window)
                owners += [(s, word, scale * near)] * k
        else:
            for word, _ in pairs:
                owners += [(s, word, scale)] * k
    share = np.cumsum(loss.noise.numpy())
    places = (rng.integers(debias.TABLE, size=len(owners)) + 0.5) / debias.TABLE
    words = [int(np.argmax(share >= place)) for place in places]
    dealt = [[] for _ in sentences]
    for (s, centre, weight), word in zip(owners, words, strict=True):
        dealt[s].append((centre, word, weight))
    return dealt


def by_sparse_adam(numbers, loss, recipe, direction):
    """Both matrices after every pass, by autograd and torch's own optimiser."""
    sentences = [SENTENCES[i] for i in numbers if len(SENTENCES[i]) > 1]
    leaves = {name: matrix.clone().requires_grad_() for name, matrix in PARAMS.items()}
    adam = torch.optim.SparseAdam(list(leaves.values()), lr=recipe.learning_rate, maximize=direction < 0)
    rng, out = np.random.default_rng(recipe.seed), []
    for _ in range(recipe.passes):
        noise = drawn(rng, sentences, loss, recipe.shared_noise) if loss.negatives else [[] for _ in sentences]
        for start in range(0, len(sentences), recipe.batch):
            batch = range(start, min(start + recipe.batch, len(sentences)))
            total, touched = 0, {"input": set(), "context": set()}
            for s in batch:
                total = total + oracles.sentence_loss(*leaves.values(), sentences[s], loss.window, mean=loss.mean)
                for centre, word, weight in noise[s]:
                    score = leaves["input"][centre] @ leaves["context"][word]
                    total = total - weight * torch.nn.functional.logsigmoid(-score)
                touched["input"] |= set(sentences[s])
                touched["context"] |= set(sentences[s]) | {word for _, word, _ in noise[s]}
            for (name, leaf), grad in zip(
                leaves.items(), torch.autograd.grad(total, list(leaves.values())), strict=True
            ):
                rows = sorted(touched[name] & set(range(SIZE) if recipe.rows is None else recipe.rows))
                leaf.grad = torch.sparse_coo_tensor(torch.tensor([rows]), grad[rows], grad.shape, check_invariants=True)
            adam.step()
        out.append({name: leaf.detach().clone() for name, leaf in leaves.items()})
    return out


def difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@ENGINES
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mean": True},
        {"k": 0},
        {"shared_noise": False, "mean": True},
        {"shared_noise": False, "k": 3, "window": 1},
        {"batch": 3},
        {"rows": (0, 2, 6, 10), "window": 9},
        {"rows": (1,), "shared_noise": False, "batch": 2},
    ],
    ids=str,
)
def test_every_pass_equals_torch_sparse_adam_on_autograd_gradients(engine, direction, options):
    loss = loss_of(**{name: options[name] for name in ("window", "k", "mean") if name in options})
    settings = {name: options[name] for name in ("batch", "rows", "shared_noise") if name in options}
    recipe = Recipe(passes=4, learning_rate=0.05, seed=3, engine=engine, **settings)
    numbers = [2, 0, 1, 4, 3, 0]  # 1 and 3 have no pair; 0 comes twice
    want = by_sparse_adam(numbers, loss, recipe, direction)
    found = fine_tune(
        PARAMS, CORPUS, numbers, loss, recipe, direction=direction,
        record=lambda params: {name: matrix.clone() for name, matrix in params.items()},
    )  # fmt: skip
    assert [difference(a, b) for a, b in zip(found.record, want, strict=True)] == pytest.approx([0] * 4, abs=1e-10)
    assert difference(found.params, want[-1]) < 1e-10
    assert difference(found.params, PARAMS) > 0.01


def test_the_first_step_is_that_of_an_ordinary_adam():
    loss, leaves = loss_of(k=0), {name: matrix.clone().requires_grad_() for name, matrix in PARAMS.items()}
    adam = torch.optim.Adam(list(leaves.values()), lr=0.02)
    oracles.sentence_loss(*leaves.values(), SENTENCES[2], 2).backward()
    adam.step()
    found = reinforce(PARAMS, CORPUS, [2], loss, Recipe(passes=1, learning_rate=0.02)).params
    assert difference(found, {name: leaf.detach() for name, leaf in leaves.items()}) < 1e-6  # epsilon stands elsewhere


def expected_loss(params, numbers, loss):
    """Sum over the sentences, noise in expectation."""
    args = (loss.window, loss.negatives, loss.noise.tolist(), loss.mean)
    return float(sum(oracles.sentence_loss(params["input"], params["context"], SENTENCES[i], *args) for i in numbers))


@ENGINES
@pytest.mark.parametrize("mean", [False, True])
def test_ascent_raises_the_loss_of_the_set_and_descent_lowers_it(engine, mean):
    loss, recipe = loss_of(mean=mean), Recipe(passes=30, learning_rate=0.01, engine=engine)
    before = expected_loss(PARAMS, [0, 2], loss)
    assert expected_loss(undo(PARAMS, CORPUS, [0, 2], loss, recipe).params, [0, 2], loss) > 1.1 * before
    assert expected_loss(reinforce(PARAMS, CORPUS, [0, 2], loss, recipe).params, [0, 2], loss) < 0.9 * before


@ENGINES
def test_rows_that_no_step_touches_and_rows_that_may_not_move_keep_every_bit(engine):
    recipe = Recipe(passes=20, learning_rate=0.05, engine=engine)
    free = fine_tune(PARAMS, CORPUS, [0], loss_of(), recipe, direction=1).params["input"]
    inside = sorted(set(SENTENCES[0]))
    outside = [row for row in range(SIZE) if row not in inside]
    assert torch.equal(free[outside], PARAMS["input"][outside])
    assert (free[inside] != PARAMS["input"][inside]).all()
    chosen = Recipe(passes=20, learning_rate=0.05, rows=(1, 5), engine=engine)
    found = fine_tune(PARAMS, CORPUS, [0], loss_of(), chosen, direction=1).params
    others = [row for row in range(SIZE) if row not in (1, 5)]
    for name, matrix in found.items():
        assert torch.equal(matrix[others], PARAMS[name][others])
        assert (matrix[[1, 5]] != PARAMS[name][[1, 5]]).all()


def test_records_come_after_each_pass_or_after_those_asked_for():
    recipe, rows = Recipe(passes=5, learning_rate=0.05), (0, 1)
    every = undo(PARAMS, CORPUS, [0, 2], loss_of(), recipe, record=lambda p: p["input"][list(rows)].clone())
    assert len(every.record) == 5
    some = undo(PARAMS, CORPUS, [0, 2], loss_of(), recipe, record=lambda p: p["input"][list(rows)].clone(), at=[2, 5])
    assert [torch.equal(a, b) for a, b in zip(some.record, (every.record[1], every.record[4]), strict=True)] == [
        True
    ] * 2
    assert torch.equal(every.record[4], every.params["input"][list(rows)])
    shorter = undo(PARAMS, CORPUS, [0, 2], loss_of(), Recipe(passes=2, learning_rate=0.05)).params
    assert torch.equal(shorter["input"][list(rows)], every.record[1])  # one long run serves all shorter ones
    assert undo(PARAMS, CORPUS, [0, 2], loss_of(), recipe).record == []


def test_both_halves_in_their_order_each_with_a_fresh_optimiser():
    recipe = Recipe(passes=3, learning_rate=0.05)
    first = undo(PARAMS, CORPUS, [0, 4], loss_of(), recipe).params
    second = reinforce(first, CORPUS, [2, 5], loss_of(), recipe).params
    both = undo_then_reinforce(PARAMS, CORPUS, [0, 4], [2, 5], loss_of(), recipe, record=lambda p: p["input"].sum())
    assert difference(both.params, second) == 0
    assert len(both.record) == 6
    assert both.record[2] == first["input"].sum()
    assert both.record[5] == second["input"].sum()


@ENGINES
def test_the_seed_decides_and_the_given_vectors_are_left_alone(engine):
    before = {name: matrix.clone() for name, matrix in PARAMS.items()}

    def run(seed):
        return undo(PARAMS, CORPUS, [0, 2], loss_of(), Recipe(passes=3, seed=seed, engine=engine)).params

    assert difference(run(5), run(5)) == 0
    assert difference(run(5), run(6)) > 1e-4
    assert difference(PARAMS, before) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_noise_has_the_distribution_of_the_loss_and_weighs_k_times_the_pairs(shared):
    loss, recipe = loss_of(mean=True), Recipe(passes=1, shared_noise=shared)
    table = debias._noise_table(loss)
    share = np.bincount(table, minlength=SIZE) / len(table)
    np.testing.assert_allclose(share, NOISE.numpy(), atol=1.01 / debias.TABLE)
    steps = debias._steps(CORPUS, [0, 2], loss, recipe)
    for start, stop in zip(steps.starts[:-1], steps.starts[1:], strict=True):
        for word in np.unique(steps.centres[start:stop]):
            mine = steps.centres[start:stop] == word
            seen, noise = (steps[k][start:stop][mine].sum() for k in (3, 4))
            assert noise == pytest.approx(loss.negatives * seen)
        assert steps.positive[start:stop].sum() == pytest.approx(1)


@NUMBA
def test_the_engines_agree_on_a_longer_run_in_both_precisions():
    rng = np.random.default_rng(0)
    corpus = corpus_of([rng.integers(300, size=rng.integers(2, 30)).tolist() for _ in range(40)], 300)
    loss = SkipgramLoss(window=5, negatives=5, noise=noise_distribution(corpus.vocabulary.counts + 1), mean=True)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-3)):
        params = {name: normal(seed, 300, 16).to(dtype) for seed, name in enumerate(PARAMS)}
        a, b = (
            fine_tune(params, corpus, range(40), loss, Recipe(passes=5, engine=engine), direction=-1).params
            for engine in ("torch", "numba")
        )
        assert a["input"].dtype == b["context"].dtype == dtype
        assert difference(a, b) < tolerance


def test_auto_takes_numba_only_for_long_runs(monkeypatch):
    steps = debias._steps(CORPUS, [0], loss_of(), Recipe(passes=1))
    assert debias._engine(Recipe(passes=10), steps) is debias.torch_pass
    assert debias._engine(Recipe(passes=10**9, engine="torch"), steps) is debias.torch_pass
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert debias._engine(Recipe(passes=10**9), steps) is debias.torch_pass


@NUMBA
def test_the_kernel_has_the_constants_of_the_module():
    from clif_kit import debias_kernel

    assert (debias_kernel.BETAS, debias_kernel.EPS) == (debias.BETAS, debias.EPS)
    steps = debias._steps(CORPUS, [0], loss_of(), Recipe(passes=1))
    assert debias._engine(Recipe(passes=10**9), steps) is debias_kernel.numba_pass


@pytest.mark.parametrize("sentences", [[], [1, 3]], ids=["empty", "no pair"])
def test_a_set_without_a_pair_is_refused(sentences):
    with pytest.raises(ValueError, match=f"none of {len(sentences)} sentences has a pair"):
        undo(PARAMS, CORPUS, sentences, loss_of(), Recipe(passes=1))


@ENGINES
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_vectors_that_are_not_finite_stop_the_run_with_a_clear_line(engine):
    broken = {"input": PARAMS["input"].clone(), "context": PARAMS["context"]}
    broken["input"][11, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite before the first step"):
        undo(broken, CORPUS, [0], loss_of(), Recipe(passes=1, engine=engine))
    with pytest.raises(
        FloatingPointError, match=r"not finite in pass \d+ of 50: .* fewer passes or a lower learning_rate"
    ):
        undo(PARAMS, CORPUS, [0], loss_of(), Recipe(passes=50, learning_rate=1e160, engine=engine))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "passes must be at least 1"),
        ({"passes": 1, "batch": 0}, "batch must be at least 1"),
        ({"passes": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"passes": 1, "engine": "cuda"}, "engine must be"),
    ],
)
def test_a_recipe_checks_itself(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="direction must be"):
        fine_tune(PARAMS, CORPUS, [0], loss_of(), Recipe(passes=1), direction=0)
    with pytest.raises(ValueError, match="whole number of negatives"):
        undo(PARAMS, CORPUS, [0], loss_of(k=2.5), Recipe(passes=1))
