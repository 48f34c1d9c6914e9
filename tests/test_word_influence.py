"""Oracles: autograd of the naive loss, dense Hessians, literal recursions, and retraining without a sentence."""

import numpy as np
import oracles
import pytest
import torch
from test_corpus import corpus_of
from torch.autograd.functional import hessian
from torch.autograd.functional import hvp as autograd_hvp

from clif_kit.sentence_stream import stream_scores
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.sgns_train import fit, start
from clif_kit.skipgram import SkipgramLoss, noise_distribution
from clif_kit.solvers import NotConverged
from clif_kit.weat import RELIGION, Resolved
from clif_kit.word_influence import (
    algorithm_one_scores,
    dot_direction,
    full_direction,
    lissa_published_direction,
    per_word_direction,
    safe_damping,
)
from clif_kit.word_queries import cluster_query, cosine_query, displacement_query, query_gradient, weat_query

SIZE, WIDTH = 8, 3
PUBLISHED = SkipgramLoss.published(window=3)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def drawn_sentences(lengths, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(size, size=length).tolist() for length in lengths]


def seen_rows(*rows, seed=9, width=WIDTH, size=SIZE):
    """The gradient of a query that sees these rows of the input matrix."""
    full = torch.zeros(size, width, dtype=torch.float64)
    full[list(rows)] = normal(seed, len(rows), width)
    return {"input": full}


# SIZE - 1 is missing from the sentences, so that a query can see a word that none of them holds
SENTENCES = drawn_sentences([5, 1, 0, 7, 2, 3, 12, 1, 6, 4] + [5] * 40, size=SIZE - 1)
SENTENCES[1], SENTENCES[7] = [4], [1]  # no pair, although the queries see the word
CORPUS = corpus_of(SENTENCES, SIZE)
FEW = 16  # of them are enough where the oracle is slow
PARAMS = {"input": normal(1, SIZE, WIDTH), "context": normal(2, SIZE, WIDTH)}
TRAINED_AS = SkipgramLoss(window=3, negatives=2.0, noise=noise_distribution(CORPUS.vocabulary.counts))


def naive(sentence, loss):
    """The loss of a sentence as a function of the two matrices."""
    return lambda u, v: oracles.sentence_loss(u, v, sentence, loss.window, loss.negatives, loss.noise, loss.mean)


def naive_gradient(sentence, loss, params=PARAMS):
    leaves = [params[name].clone().requires_grad_() for name in ("input", "context")]
    return torch.autograd.grad(naive(sentence, loss)(*leaves), leaves)


def holding(rows):
    return [i for i, s in enumerate(SENTENCES) if len(s) > 1 and set(s) & set(rows)]


def assert_relative(found, expected, tolerance):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# --- queries: by hand, and what moving a word does ---


def cosine(a, b):
    return sum(a * b) / (np.sqrt(sum(a * a)) * np.sqrt(sum(b * b)))


def moved(row, towards, step):
    """The input row goes a part of the way to a point; 0 leaves it, 1 puts it there."""
    u = PARAMS["input"].clone()
    u[row] += step * (torch.as_tensor(towards) - u[row])
    return {**PARAMS, "input": u}


TEST = Resolved(RELIGION, *(torch.tensor(rows) for rows in ([0, 1], [2, 3], [4, 5], [6, 7])))


def test_values_of_the_queries_by_hand():
    u = PARAMS["input"].numpy()
    assert float(cosine_query(1, 4)(PARAMS)) == pytest.approx(-cosine(u[1], u[4]), rel=1e-12)
    first = np.array([0.5, -1.0, 2.0])
    assert float(displacement_query(2, torch.from_numpy(first))(PARAMS)) == pytest.approx(
        -sum((u[2] - first) ** 2) / 3, rel=1e-12
    )
    centre = (u[3] + u[5] + u[6]) / 3
    assert float(cluster_query(0, [3, 5, 6])(PARAMS)) == pytest.approx(sum((u[0] - centre) ** 2), rel=1e-12)
    s = [
        np.mean([cosine(u[w], u[a]) for a in (4, 5)]) - np.mean([cosine(u[w], u[b]) for b in (6, 7)]) for w in range(4)
    ]
    size = (np.mean(s[:2]) - np.mean(s[2:])) / np.std(s)
    assert float(weat_query(TEST, absolute=False)(PARAMS)) == pytest.approx(size, rel=1e-12)
    assert float(weat_query(TEST)(PARAMS)) == pytest.approx(abs(size), rel=1e-12)
    assert float(weat_query(TEST, ddof=1)(PARAMS)) == pytest.approx(abs(size) * np.sqrt(3 / 4), rel=1e-12)


def test_queries_are_losses():
    """Lower is better: nearer to the other word, nearer to the centre, further from the start, less biased."""
    u = PARAMS["input"]
    falls = [
        (cosine_query(1, 4), moved(1, u[4], 0.1)),
        (cosine_query(4, 1), moved(1, u[4], 0.1)),
        (cluster_query(0, [3, 5]), moved(0, (u[3] + u[5]) / 2, 0.1)),
        (displacement_query(2, torch.zeros(WIDTH)), moved(2, torch.zeros(WIDTH, dtype=torch.float64), -0.1)),
    ]
    assert all(float(query(after)) < float(query(PARAMS)) for query, after in falls)


@pytest.mark.parametrize("positive", [True, False])
def test_bias_is_a_loss_and_its_signed_form_leans_towards_a(positive):
    """On a quarter circle from A (0 degrees) to B (90): a word of X that turns to A raises the signed effect."""

    def turned(x, y):
        angles = torch.deg2rad(torch.tensor([*x, *y, 0.0, 1.0, 89.0, 90.0], dtype=torch.float64))
        return {"input": torch.stack([angles.cos(), angles.sin()], 1), "context": torch.zeros(8, 2)}

    signed, absolute = weat_query(TEST, absolute=False), weat_query(TEST)
    x, y = ([30.0, 60.0], [40.0, 65.0]) if positive else ([40.0, 65.0], [30.0, 60.0])
    here, nearer = turned(x, y), turned([x[0], x[1] - 5], y)
    assert (float(signed(here)) > 0) == positive
    assert float(signed(nearer)) > float(signed(here))
    assert (float(absolute(nearer)) > float(absolute(here))) == positive


def test_the_gradient_of_a_query_equals_differences_and_leaves_out_what_it_does_not_see():
    queries = [cosine_query(1, 4), cluster_query(0, [3, 5]), displacement_query(2, torch.ones(WIDTH)), weat_query(TEST)]
    for query in queries:
        slope = query_gradient(query, PARAMS)
        assert set(slope) == {"input"}
        step = 1e-6 * normal(8, SIZE, WIDTH)
        ends = [float(query({**PARAMS, "input": PARAMS["input"] + sign * step})) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((slope["input"] * step).sum()), rel=1e-6, abs=1e-14)
    assert set(query_gradient(lambda p: (p["input"] * p["context"]).sum(), PARAMS)) == {"input", "context"}
    assert set(query_gradient(lambda p: p["context"].square().sum(), PARAMS)) == {"context"}
    assert not any(matrix.requires_grad for matrix in PARAMS.values())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (lambda p: p["input"].sum(1), r"^a query returns one finite number, this one returned \[.*\]$"),
        (lambda p: p["input"].sum() * float("nan"), r"^a query returns one finite number, this one returned nan$"),
        (lambda p: p["input"].detach().sum(), r"^the query does not depend on the vectors that it was given$"),
        (lambda _: 3.0, r"^the query does not depend on the vectors that it was given$"),
    ],
)
def test_a_callable_that_is_no_query_is_refused(query, said):
    with pytest.raises(ValueError, match=said):
        query_gradient(query, PARAMS)


# --- gradient dot ---


@pytest.mark.parametrize("loss", [PUBLISHED, TRAINED_AS], ids=["published", "as trained"])
def test_gradient_dot_is_one_product_of_gradients(loss):
    """Removing z is a step of size 1/P along its gradient: positive where that raises the query."""
    slope = {"input": normal(3, SIZE, WIDTH), "context": normal(4, SIZE, WIDTH)}
    total = sum(len(oracles.skipgram_pairs(s, loss.window)) for s in SENTENCES)
    found = stream_scores(CORPUS, PARAMS, [dot_direction(slope, CORPUS, loss)], loss, engine="torch")[0]
    expected = []
    for sentence in SENTENCES:
        grads = naive_gradient(sentence, loss)
        expected.append(float((grads[0] * slope["input"]).sum() + (grads[1] * slope["context"]).sum()) / total)
    assert_relative(found, np.array(expected), 1e-12)


# --- the published estimators ---


@pytest.mark.parametrize("damping", [0.25, 1e-3])
@pytest.mark.parametrize("loss", [PUBLISHED, TRAINED_AS], ids=["published", "as trained"])
def test_per_word_solves_the_hessian_of_one_row(loss, damping):
    """Row by row autograd of the mean loss of the sentences that hold a seen word; one row is in no sentence."""
    rows, slope = (1, 4, SIZE - 1), seen_rows(1, 4, SIZE - 1)
    chosen = [i for i in holding(rows) if i < FEW]
    found = per_word_direction(PARAMS, CORPUS.select(range(FEW)), slope, loss, damping=damping)
    expected, (u, v) = torch.zeros(SIZE, WIDTH, dtype=torch.float64), PARAMS.values()
    for row in rows:

        def mean_loss(x, row=row):
            matrix = torch.cat([u[:row], x[None], u[row + 1 :]])
            return sum(naive(SENTENCES[i], loss)(matrix, v) for i in chosen) / len(chosen)

        damped = hessian(mean_loss, u[row]) + damping * torch.eye(WIDTH, dtype=torch.float64)
        expected[row] = torch.linalg.solve(damped, slope["input"][row]) / len(chosen)
    assert set(found) == {"input"}
    assert_relative(found["input"], expected, 1e-11)


def literal_recursion(order, slope, loss, damping=0.01, scale=25.0):
    """Autograd's product with the Hessian of one sentence a step, over the whole input matrix, from h = v."""
    u, v = PARAMS.values()
    h = slope["input"].clone()
    for i in order:
        _, product = autograd_hvp(lambda x, i=i: naive(SENTENCES[i], loss)(x, v), u, h)
        h = slope["input"] + (1 - damping) * h - product / scale
    return h


@pytest.mark.parametrize("options", [{}, {"damping": 0.2, "scale": 3.0}])
@pytest.mark.parametrize("loss", [PUBLISHED, SkipgramLoss(window=2, negatives=0.0)], ids=["mean", "sum"])
def test_the_published_recursion_equals_a_dense_literal_one(loss, options):
    """30 steps, two repeats, the same order; most rows are idle at most steps."""
    rows, slope = (1, 4, SIZE - 1), seen_rows(1, 4, SIZE - 1)
    chosen = holding(rows)
    assert len(chosen) >= 30
    found = lissa_published_direction(PARAMS, CORPUS, slope, loss, depth=30, repeats=2, seed=7, **options)
    orders = [np.random.default_rng([7, repeat]).permutation(chosen)[:30] for repeat in range(2)]
    expected = sum(literal_recursion(order, slope, loss, **options) for order in orders) / 2 / len(chosen)
    assert set(found) == {"input"}
    assert_relative(found["input"], expected, 1e-12)


def test_the_recursion_ends_when_the_sentences_do_and_follows_its_seed():
    slope = seen_rows(1)
    chosen = holding([1])
    order = np.random.default_rng([0, 0]).permutation(chosen)
    found = lissa_published_direction(PARAMS, CORPUS, slope, PUBLISHED, repeats=1)
    assert_relative(found["input"], literal_recursion(order, slope, PUBLISHED) / len(chosen), 1e-12)
    other = lissa_published_direction(PARAMS, CORPUS, slope, PUBLISHED, repeats=1, seed=1)
    assert not torch.equal(found["input"], other["input"])


def test_the_recursion_tends_to_the_solve_per_word_times_the_scale():
    """One sentence 3000 times, so that every step has the mean Hessian; both rows are met at every step."""
    corpus, slope = corpus_of([[1, 4, 2, 1, 5]] * 3000, SIZE), seen_rows(1, 4)
    found = lissa_published_direction(PARAMS, corpus, slope, PUBLISHED, repeats=1)
    limit = per_word_direction(PARAMS, corpus, slope, PUBLISHED)
    assert_relative(found["input"], 25.0 * limit["input"], 1e-10)
    assert float((limit["input"][1] / slope["input"][1]).std()) > 1e-7  # not a multiple of v: H matters here


def test_a_recursion_that_cannot_work_says_so():
    slope, corpus = seen_rows(1, 4), corpus_of(drawn_sentences([8] * 400), SIZE)
    steep = {"input": 1e-3 * PARAMS["input"], "context": 30 * PARAMS["context"]}  # curvature far above twice the scale
    with pytest.raises(NotConverged, match=r"^the recursion grew without bound; raise the scale \(now 1\)$"):
        lissa_published_direction(steep, corpus, slope, PUBLISHED, scale=1.0, repeats=1)
    said = r"^the published recursion sees positives only and needs 0 < damping < 1, got negatives=\d and damping=\S+$"
    for options in ({"loss": TRAINED_AS}, {"loss": PUBLISHED, "damping": 0.0}, {"loss": PUBLISHED, "damping": 1.0}):
        with pytest.raises(ValueError, match=said):
            lissa_published_direction(PARAMS, CORPUS, slope, **options)


@pytest.mark.parametrize("loss", [PUBLISHED, TRAINED_AS], ids=["published", "as trained"])
def test_algorithm_one_is_gradient_hessian_query(loss):
    """Literally, sentence by sentence, input matrix alone, for two queries at once."""
    slopes = [seen_rows(1, 4), seen_rows(6, SIZE - 1, seed=10)]
    found = algorithm_one_scores(PARAMS, CORPUS.select(range(FEW)), slopes, loss)
    expected, (u, v) = np.zeros((2, FEW)), PARAMS.values()
    for i, sentence in enumerate(SENTENCES[:FEW]):
        grad = naive_gradient(sentence, loss)[0]
        for q, slope in enumerate(slopes):
            _, product = autograd_hvp(lambda x, s=sentence: naive(s, loss)(x, v), u, slope["input"])
            expected[q, i] = float((grad * product).sum()) / FEW
    assert_relative(found, expected, 1e-11)
    assert not found[0, [i for i, s in enumerate(SENTENCES[:FEW]) if not {1, 4} & set(s)]].any()


def test_queries_that_no_sentence_answers_are_refused():
    lonely = seen_rows(SIZE - 1)
    blind = {"context": PARAMS["context"]}
    for estimate in (per_word_direction, lissa_published_direction):
        with pytest.raises(ValueError, match=r"^no sentence of two words or more holds a word that the query sees$"):
            estimate(PARAMS, CORPUS, lonely, PUBLISHED)
        with pytest.raises(
            ValueError, match=r"^the query does not see the input matrix, which is all that the publish"
        ):
            estimate(PARAMS, CORPUS, blind, PUBLISHED)


# --- the full inverse Hessian: dense, and against retraining ---


TOPICS, SENTENCES_ENOUGH, WORDS = 4, 2000, 10


@pytest.fixture(scope="module")
def optimum():
    """A deterministic model: 2000 short sentences on four overlapping topics, so that one is a small change."""
    rng = np.random.default_rng(0)
    topics = 0.8 * rng.dirichlet(np.full(WORDS, 0.4), size=TOPICS) + 0.2 / WORDS
    lengths = rng.integers(2, 12, size=SENTENCES_ENOUGH)
    sentences = [rng.choice(WORDS, size=n, p=topics[i % TOPICS]).tolist() for i, n in enumerate(lengths)]
    corpus = corpus_of(sentences, WORDS)
    loss = SkipgramLoss(window=3, negatives=2.0, noise=noise_distribution(corpus.vocabulary.counts))
    objective = CorpusObjective(corpus, loss, width=WIDTH, l2=0.003)
    return objective, fit(objective, start(objective, seed=1))


BIAS = Resolved(RELIGION, *(torch.tensor(rows) for rows in ([0, 1], [2, 3], [4, 5], [6, 7])))
QUERIES = {
    "cosine": cosine_query(0, 1),
    "weat": weat_query(BIAS),
    "cluster": cluster_query(2, [3, 4]),
    "displacement": displacement_query(5, torch.tensor([1.0, -0.5, 0.3])),  # sees turns, as a start is no optimum
    "both matrices": lambda params: params["input"][1] @ params["context"][2],
}


@pytest.fixture(scope="module")
def retrained(optimum):
    """Parameters without one sentence, for every 40th; and without 20 sentences at once, 30 times."""
    objective, full = optimum
    singles = [[i] for i in range(0, SENTENCES_ENOUGH, 40)]
    rng = np.random.default_rng(5)
    groups = [rng.choice(SENTENCES_ENOUGH, size=20, replace=False).tolist() for _ in range(30)]
    refit = {tuple(gone): fit(objective.without(gone), full.x, lbfgs_steps=0).params for gone in singles + groups}
    return singles, groups, refit


def dense_hessian(objective, x, width=WIDTH):
    """By autograd, from pair counts by loops, in scaled variables."""
    corpus, loss, log_sigmoid = objective.corpus, objective.loss, torch.nn.functional.logsigmoid
    counts = torch.zeros(WORDS, WORDS, dtype=torch.float64)
    for i in range(len(corpus)):
        for w, c in oracles.skipgram_pairs(corpus.sentence(i).tolist(), loss.window):
            counts[w, c] += 1
    total, root = float(counts.sum()), (counts.sum(1, keepdim=True) / counts.sum()).sqrt()

    def value(x):
        u, v = x.view(2, WORDS, width) / root
        noise = loss.negatives * counts.sum(1, keepdim=True) * loss.noise
        return -(counts * log_sigmoid(u @ v.T) + noise * log_sigmoid(-u @ v.T)).sum() / total + objective.l2 / 2 * x @ x

    return hessian(value, x), root, total


def scaled(slope, root):
    zero = torch.zeros(WORDS, WIDTH, dtype=torch.float64)
    return torch.cat([(slope.get(name, zero) / root).flatten() for name in ("input", "context")])


def unscaled(h, root, total):
    return h.view(2, WORDS, WIDTH) / root / total


@pytest.mark.parametrize("query", QUERIES)
def test_the_full_direction_is_the_pseudo_inverse_of_the_dense_hessian(optimum, query):
    objective, full = optimum
    matrix, root, total = dense_hessian(objective, full.x)
    slope = query_gradient(QUERIES[query], full.params)
    inverse = torch.from_numpy(np.linalg.pinv(matrix.numpy(), rcond=1e-8, hermitian=True))
    expected = unscaled(inverse @ scaled(slope, root), root, total)
    found = full_direction(objective, full.params, slope, rtol=1e-10)
    assert_relative(torch.stack([found["input"], found["context"]]), expected, 1e-8)


@pytest.mark.parametrize("damping", [0.05, 1.0])
def test_damping_lifts_every_eigenvalue(optimum, damping):
    objective, full = optimum
    matrix, root, total = dense_hessian(objective, full.x)
    slope = query_gradient(QUERIES["both matrices"], full.params)
    damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    expected = unscaled(torch.linalg.solve(damped, scaled(slope, root)), root, total)
    found = full_direction(objective, full.params, slope, damping=damping, rtol=1e-11)
    assert_relative(torch.stack([found["input"], found["context"]]), expected, 1e-9)


def test_away_from_a_minimum_damping_is_chosen_and_gauss_newton_needs_none(optimum):
    objective, _ = optimum
    x = start(objective, seed=8, scale=0.7)
    params = objective.unpack(x)
    matrix, root, total = dense_hessian(objective, x)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert float(eigenvalues[0]) < -0.01
    lift = 0.01 * float(eigenvalues[-1]) - float(eigenvalues[0])
    assert safe_damping(objective.hessian_at(x), len(x), torch.float64) == pytest.approx(lift, rel=1e-2)
    slope = query_gradient(QUERIES["both matrices"], params)
    with pytest.raises(NotConverged, match="negative curvature"):
        full_direction(objective, params, slope, damping=0.0)
    found = full_direction(objective, params, slope, rtol=1e-11)
    chosen = safe_damping(objective.hessian_at(x), len(x), torch.float64)
    damped = matrix + chosen * torch.eye(len(matrix), dtype=torch.float64)
    expected = unscaled(torch.linalg.solve(damped, scaled(slope, root)), root, total)
    assert_relative(torch.stack([found["input"], found["context"]]), expected, 1e-8)
    times = objective.hessian_at(x, gauss_newton=True)  # its oracle stands in test_sgns_train
    dense = torch.stack([times(one) for one in torch.eye(len(x), dtype=torch.float64)], 1)
    expected = unscaled(torch.linalg.solve(dense, scaled(slope, root)), root, total)
    found = full_direction(objective, params, slope, gauss_newton=True, rtol=1e-11)
    assert_relative(torch.stack([found["input"], found["context"]]), expected, 1e-8)


def test_a_minimum_needs_no_damping(optimum):
    objective, full = optimum
    assert safe_damping(objective.hessian_at(full.x), len(full.x), torch.float64) == 0.0


@pytest.mark.parametrize("query", QUERIES)
def test_scores_predict_retraining_without_a_sentence(optimum, retrained, query):
    """Sign, scale and order: the change of the query when one sentence is removed, and (added up) when 20 are."""
    objective, full = optimum
    singles, groups, refit = retrained
    query = QUERIES[query]
    slope = query_gradient(query, full.params)
    directions = [full_direction(objective, full.params, slope), dot_direction(slope, objective.corpus, objective.loss)]
    scores, dot = stream_scores(objective.corpus, full.params, directions, objective.loss, engine="torch")
    before = float(query(full.params))
    for removals, least, tolerance in ((singles, 0.999, 0.02), (groups, 0.99, 0.1)):
        actual = np.array([float(query(refit[tuple(gone)])) - before for gone in removals])
        predicted = np.array([scores[gone].sum() for gone in removals])
        assert np.corrcoef(predicted, actual)[0, 1] > least
        assert np.polyfit(predicted, actual, 1)[0] == pytest.approx(1, abs=tolerance)
        assert np.corrcoef([dot[gone].sum() for gone in removals], actual)[0, 1] < 0.9  # the Hessian is what does it
