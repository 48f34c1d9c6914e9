"""Oracles: plain loops over lists of words, autograd, dense solves, gensim called by hand, every choice from a few."""

from itertools import combinations

import numpy as np
import oracles
import pytest
import torch

from clif_kit.corpora import Sentences
from clif_kit.evaluate import spearman
from clif_kit.neighbour_study import (
    BASELINES,
    METHODS,
    Case,
    chance,
    choose_words,
    displacement_scores,
    excerpts,
    largest_sources,
    make_case,
    make_word_study,
    nearest,
    neighbour_share,
    plain_scores,
    relevance,
    top,
)
from clif_kit.neighbour_truth import (
    SETS,
    outcome,
    ranking_metrics,
    removal_metrics,
    removal_sets,
    retrain_seeds,
    study_seeds,
)
from clif_kit.sgns_train import Trained, train_gensim

SETTINGS = {"width": 8, "window": 3, "negatives": 3, "epochs": 30}


def planted():
    """Two shows with words of their own; `hero` is at home in `mars` (30 sentences) and a guest in `moon` (12)."""
    rng = np.random.default_rng(0)
    words, source, title = [], [], []
    for show, own, guests in (
        ("mars", [f"red{c}" for c in "abcdefgh"], 30),
        ("moon", [f"pale{c}" for c in "abcdefgh"], 12),
    ):
        for i in range(120):
            sentence = list(rng.choice(own, 6))
            if i < guests:
                sentence[rng.integers(6)] = "hero"
            words.append(sentence)
            source.append(show)
            title.append(f"part {i % 4}")
    return Sentences(words, source, ["text"] * len(words), title)


@pytest.fixture(scope="module")
def world():
    study = make_word_study(planted(), window=3, negatives=3, min_count=1)
    return study, make_case(study, "hero"), train_gensim(study.corpus, seed=1, **SETTINGS)


def small():
    """Ten words, drawn vectors in float64, and three cases."""
    rng = np.random.default_rng(3)
    words = [[f"q{chr(97 + j)}" for j in rng.integers(0, 10, size=rng.integers(2, 9))] for _ in range(60)]
    texts = Sentences(words, [f"s{i % 3}" for i in range(60)], ["text"] * 60)
    study = make_word_study(texts, window=2, negatives=2, min_count=1)
    draw = lambda scale: torch.from_numpy(scale * rng.normal(size=(10, 4)))  # noqa: E731
    return study, Trained({"input": draw(1.0), "context": draw(1.0)}, {"input": draw(0.1), "context": draw(0.0)})


# --- the corpus and the words ---


def test_stop_words_leave_the_corpus_and_stay_in_the_texts():
    texts = Sentences([["the", "red", "ship"], ["the", "red", "sky", "is"]] * 5, ["a"] * 10, ["text"] * 10)
    study, whole = make_word_study(texts), make_word_study(texts, stop_words=False)
    assert sorted(study.corpus.vocabulary.words) == ["red", "ship", "sky"]
    assert study.corpus.words(1) == ["red", "sky"]
    assert study.sentences.words[1] == ["the", "red", "sky", "is"]
    assert whole.corpus.words(1) == ["the", "red", "sky", "is"]
    assert len(make_word_study(texts, size=2, stop_words=False).corpus.vocabulary) == 2
    noise = np.array([10, 5, 5]) ** 0.75
    np.testing.assert_allclose(study.loss.noise.numpy(), noise / noise.sum())


def test_the_largest_sources_are_kept_in_order():
    texts = Sentences([["a", "b"]] * 6, ["x", "y", "z", "y", "x", "w"], ["text"] * 6, list("123456"))
    assert largest_sources(texts, 2).title == ["1", "2", "4", "5"]
    assert largest_sources(texts, 3).source == ["x", "y", "y", "x", "w"]  # w before z: the alphabet
    assert largest_sources(texts, 0).title == texts.title


def test_a_case_finds_its_sentences_and_the_right_show():
    words = [
        ["kirk", "ship"],
        ["kirk"] * 2,
        ["ship", "sky"],
        ["kirk", "sky"],
        ["sky", "kirk", "ship"],
        ["ship", "kirk"],
    ]
    source = ["tv-tos", "tv-tos", "tv-tos", "film", "film", "film"]
    title = ["One", "Two", "Two", "Star Trek", "Star Wars", "Star Trek [II]"]
    study = make_word_study(Sentences(words, source, ["scifi"] * 6, title), min_count=1)
    case = make_case(study, "kirk", "tv-tos*; film: Star Trek*")
    assert case.holds.tolist() == [0, 1, 3, 4, 5]
    assert case.right.tolist() == [True, True, True, True, False, True]
    assert case.base == 4 / 5
    assert make_case(study, "kirk").right.tolist() == [False] * 3 + [True] * 3  # film holds three, tv-tos two
    brackets = Sentences([["kirk", "ship"]] * 3, ["[x]", "[x]", "x"], ["text"] * 3)
    assert make_case(make_word_study(brackets, min_count=1), "kirk").right.tolist() == [True, True, False]
    assert excerpts(study, case, np.arange(6.0), 2) == [
        "* film: Star Trek [II] | ship kirk",
        "  film: Star Wars | sky kirk ship",
    ]
    alone = make_word_study(Sentences([["kirk", "ship"]] * 2, ["a", "b"], ["text"] * 2, ["", "b"]), min_count=1)
    assert excerpts(alone, make_case(alone, "kirk"), np.array([2.0, 1.0]), 1) == ["* a | kirk ship"]
    with pytest.raises(KeyError, match="'dooku' is not among the 3 words"):
        make_case(study, "dooku")
    with pytest.raises(ValueError, match="no sentence is from the show 'tng'"):
        make_case(study, "kirk", "tng")


def test_a_sentence_without_a_pair_does_not_hold_the_word():
    texts = Sentences([["kirk", "the"], ["kirk", "ship"], ["kirk", "ship"]], ["a", "b", "b"], ["text"] * 3)
    assert make_case(make_word_study(texts, min_count=1), "kirk").holds.tolist() == [1, 2]


def test_words_are_chosen_by_the_rule(world):
    rng, vocabulary = np.random.default_rng(5), [f"q{chr(97 + j)}" for j in range(20)]
    chance_of = {s: rng.dirichlet(np.full(20, 0.5)) for s in "pqrs"}
    source = rng.choice(list("pqrs"), 300).tolist()
    texts = Sentences([list(rng.choice(vocabulary, 4, p=chance_of[s])) for s in source], source, ["text"] * 300)
    found, taken = [], set()
    ranked = []
    for word in vocabulary:
        homes = [s for s, words in zip(source, texts.words, strict=True) if word in words]
        if 20 <= len(homes) <= 90 and len(set(homes)) >= 3:
            best = max(sorted(set(homes)), key=homes.count)
            ranked.append((abs(homes.count(best) / len(homes) - 0.5), word, best))
    for _, word, best in sorted(ranked):
        if best not in taken:
            taken.add(best)
            found.append(word)
    study = make_word_study(texts, min_count=1)
    assert len(found) >= 3
    assert choose_words(study, len(found), least=20, most=90) == found
    with pytest.raises(ValueError, match="0 words stand in 40 to 80 sentences of three sources, need 3"):
        choose_words(world[0])


# --- scores: loops, autograd, dense solves ---


def by_loops(study, model, row, sentence, published):
    """(gradient of f) times (gradient of the loss of the sentence), by autograd through one pair at a time."""
    u, v = (model.params[name].clone().requires_grad_() for name in ("input", "context"))
    f = -((u[row] - model.initial["input"][row]) ** 2).sum() / u.shape[1]
    (grad_f,) = torch.autograd.grad(f, u)
    k, noise = (0.0, None) if published else (study.loss.negatives, study.loss.noise)
    loss = oracles.sentence_loss(u, v, sentence, study.loss.window, k, noise, mean=published)
    return float((grad_f * torch.autograd.grad(loss, u)[0]).sum())


def test_both_dot_products_equal_autograd_and_only_sentences_with_the_word_score():
    study, model = small()
    cases = [make_case(study, word) for word in ("qa", "qd", "qg")]
    scores = displacement_scores(study, model, cases, neighbours=3)
    pairs = sum(len(oracles.skipgram_pairs(study.corpus.sentence(i), 2)) for i in range(60))
    for j, case in enumerate(cases):
        for name, published in (("dot_published", True), ("dot", False)):
            want = [
                by_loops(study, model, case.row, study.corpus.sentence(i).tolist(), published) / pairs
                for i in range(60)
            ]
            np.testing.assert_allclose(scores[name][j], want, rtol=1e-9, atol=1e-14)
        for name in ("dot_published", "lissa_published", "per_word", "dot"):
            assert set(np.flatnonzero(scores[name][j])) == set(case.holds)


def test_the_published_inverse_is_one_solve_in_the_row_of_the_word():
    study, model = small()
    case = make_case(study, "qb")
    scores = displacement_scores(study, model, [case], neighbours=3)
    u, v, row = model.params["input"].numpy(), model.params["context"].numpy(), case.row
    H, grads = np.zeros((4, 4)), {}
    for i in case.holds:
        sentence = study.corpus.sentence(i).tolist()
        found = oracles.skipgram_pairs(sentence, 2)
        p = {c: 1 / (1 + np.exp(-u[row] @ v[c])) for w, c in found if w == row}
        near = [c for w, c in found if w == row]
        H += sum(p[c] * (1 - p[c]) * np.outer(v[c], v[c]) for c in near) / len(found) / len(case.holds)
        grads[i] = -sum((1 - p[c]) * v[c] for c in near) / len(found)
    grad_f = -2 / 4 * (u[row] - model.initial["input"][row].numpy())
    solved = np.linalg.solve(H + 0.25 * np.eye(4), grad_f) / len(case.holds)
    np.testing.assert_allclose(scores["per_word"][0, case.holds], [solved @ grads[i] for i in case.holds], rtol=1e-9)
    step = grad_f.copy()  # the recursion, literally, in the order that the code draws
    for i in np.random.default_rng([0, 0]).permutation(case.holds):
        sentence = study.corpus.sentence(i).tolist()
        found = oracles.skipgram_pairs(sentence, 2)
        bend = np.zeros((4, 4))
        for w, c in found:
            if w == row:
                p = 1 / (1 + np.exp(-u[row] @ v[c]))
                bend += p * (1 - p) * np.outer(v[c], v[c]) / len(found)
        step = grad_f + 0.99 * step - bend @ step / 25
    np.testing.assert_allclose(
        scores["lissa_published"][0, case.holds], [step @ grads[i] / len(case.holds) for i in case.holds], rtol=1e-9
    )


def test_the_full_inverse_equals_a_dense_gauss_newton_solve():
    study, model = small()
    case = make_case(study, "qb")
    found = displacement_scores(study, model, [case], damping=0.3, neighbours=3)["cg_full"][0]
    u, v = (model.params[name].numpy() for name in ("input", "context"))
    noise, every = study.loss.noise.numpy(), [study.corpus.sentence(i).tolist() for i in range(60)]
    P = np.zeros((10, 10))
    for sentence in every:
        for w, c in oracles.skipgram_pairs(sentence, 2):
            P[w, c] += 1
    mass, total = P.sum(1), P.sum()
    weight = P + 2 * mass[:, None] * noise
    G = np.zeros((80, 80))
    for w in range(10):
        for c in range(10):
            p, J = 1 / (1 + np.exp(-u[w] @ v[c])), np.zeros((2, 10, 4))
            J[0, w], J[1, c] = v[c], u[w]
            G += weight[w, c] / total * p * (1 - p) * np.outer(J.ravel(), J.ravel())
    root = np.tile(np.repeat(np.sqrt(mass / total), 4), 2)
    grad = np.zeros((2, 10, 4))
    grad[0, case.row] = -2 / 4 * (u[case.row] - model.initial["input"][case.row].numpy())
    h = np.linalg.solve(G / np.outer(root, root) + 0.3 * np.eye(80), grad.ravel() / root) / root / total
    leaves = [model.params[name].clone().requires_grad_() for name in ("input", "context")]
    want = []
    for sentence in every:
        loss = oracles.sentence_loss(*leaves, sentence, 2, 2.0, study.loss.noise)
        want.append(h @ torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]).numpy())
    assert np.abs(found - want).max() < 0.02 * np.abs(want).max()  # CG stops at a hundredth


def test_the_neighbour_query_is_the_mean_cosine():
    study, model = small()
    case = make_case(study, "qb")
    found = displacement_scores(study, model, [case], neighbours=3)["dot_neighbours"][0]
    u = model.params["input"].clone().requires_grad_()
    unit = u.detach() / u.detach().norm(dim=1, keepdim=True)
    cosines = (unit @ unit[case.row]).tolist()
    near = sorted((j for j in range(10) if j != case.row), key=lambda j: -cosines[j])[:3]
    assert nearest(model.params, [case.row], 3).tolist() == [near]
    f = -sum(u[case.row] @ u[j] / (u[case.row].norm() * u[j].norm()) for j in near) / 3
    (grad_f,) = torch.autograd.grad(f, u)
    pairs = sum(len(oracles.skipgram_pairs(study.corpus.sentence(i), 2)) for i in range(60))
    for i in range(0, 60, 7):
        loss = oracles.sentence_loss(
            u, model.params["context"], study.corpus.sentence(i).tolist(), 2, 2.0, study.loss.noise
        )
        assert found[i] == pytest.approx(float((grad_f * torch.autograd.grad(loss, u)[0]).sum()) / pairs, rel=1e-9)


def test_pairs_and_length_by_loops():
    study, _ = small()
    cases = [make_case(study, word) for word in ("qa", "qb")]
    plain = plain_scores(study, cases)
    assert set(plain) == set(BASELINES)
    for i in range(60):
        sentence = study.corpus.sentence(i).tolist()
        found = [w for w, _ in oracles.skipgram_pairs(sentence, 2)]
        assert [plain["pairs"][j, i] for j in (0, 1)] == [found.count(case.row) for case in cases]
        assert plain["short"][1, i] == -len(sentence)


# --- the sign ---


def test_the_sign_agrees_with_a_step_and_with_training_on_more_copies(world):
    """A reinforcing sentence, given 15 more times, moves the word further; a removing one less far."""
    study, case, model = world
    scores = displacement_scores(study, model, [case])["dot"][0]
    best, worst = top(scores, case, 1)[0], top(-scores, case, 1)[0]
    assert scores[best] > 0 > scores[worst]
    for i in case.holds:  # one small step along the sentence alone
        u = model.params["input"].double().requires_grad_()
        v = model.params["context"].double()
        loss = oracles.sentence_loss(u, v, study.corpus.sentence(i).tolist(), 3, 3.0, study.loss.noise)
        stepped = u.detach() - 1e-6 * torch.autograd.grad(loss, u)[0]
        first = model.initial["input"][case.row].double()
        moved = float((stepped[case.row] - first).square().sum() - (u.detach()[case.row] - first).square().sum())
        assert moved * scores[i] > 0 or abs(scores[i]) < 1e-3 * scores[best]  # scores are made in float32
    everyone = np.arange(len(study.corpus))
    more = [study.corpus.select(np.append(everyone, [i] * 15)) for i in (best, worst)]
    far = [[outcome(train_gensim(c, seed=s, **SETTINGS), [case])["displacement"] for s in range(3)] for c in more]
    assert np.mean(far[0]) > np.mean(far[1])


# --- rankings ---


def test_a_planted_show_is_found(world):
    study, case, model = world
    assert case.show == "mars: *"
    scores = displacement_scores(study, model, [case]) | plain_scores(study, [case])
    share = {name: float(relevance(scores[name][None], [case], 10)[0, 0]) for name in scores}
    lowest = float(relevance(-scores["lissa_published"][None], [case], 10)[0, 0])
    assert case.base == pytest.approx(30 / 42)
    for name in ("lissa_published", "per_word", "dot_published", "dot_neighbours"):
        assert share[name] == 1.0, name
    assert lowest < case.base - 0.3
    assert spearman(scores["lissa_published"][0, case.holds], scores["dot_published"][0, case.holds]) > 0.99
    assert neighbour_share(study, case, nearest(model.params, [case.row], 5)[0]) == 1.0


def test_relevance_and_top_by_hand():
    right = np.array([True, False, True, False, True, True])
    case = Case("w", 0, np.array([0, 1, 3, 4]), right, "")
    scores = np.array([[[1.0, 3.0, 9.0, 3.0, 2.0, 9.0]], [[5.0, 0.0, 9.0, 1.0, 4.0, 9.0]]])
    assert top(scores[0, 0], case, 2).tolist() == [1, 3]  # 2 and 5 do not hold the word; a tie goes to the earlier
    assert relevance(scores, [case], 2).tolist() == [[0.0], [1.0]]
    with pytest.raises(ValueError, match="'w' stands in 4 sentences, need 6: choose k smaller"):
        top(scores[0, 0], case, 3)


def test_chance_counts_every_choice():
    case = Case("w", 0, np.arange(7), np.array([1, 1, 0, 1, 0, 0, 0, 1, 1], dtype=bool), "")
    every = [case.right[list(chosen)].sum() for chosen in combinations(range(7), 3)]
    for chosen in ([0, 1, 3], [0, 1, 2], [2, 4, 5]):
        hits = case.right[chosen].sum()
        assert chance(case, np.array(chosen)) == pytest.approx((np.mean(every >= hits), np.mean(every <= hits)))


def test_neighbour_share_leaves_out_the_sentences_of_the_word():
    words = [["hero", "red"], ["red", "sky"], ["red", "sea"], ["hero", "sky"], ["sky", "sea"]]
    study = make_word_study(Sentences(words, ["a", "a", "b", "b", "b"], ["text"] * 5), min_count=1)
    case = make_case(study, "hero", "a: *")
    rows = np.array([study.corpus.vocabulary.row(w) for w in ("red", "sky")])
    assert neighbour_share(study, case, rows[:1]) == 1 / 2  # red sky, red sea; with hero's own sentence two thirds
    assert neighbour_share(study, case, rows[1:]) == 1 / 2  # red sky, sky sea


# --- models without some sentences ---


def test_outcome_by_hand():
    study, model = small()
    case = make_case(study, "qc")
    found = outcome(model, [case], 4)
    a, b = model.initial["input"][case.row].numpy(), model.params["input"][case.row].numpy()
    assert found["displacement"] == pytest.approx(sum((b - a) ** 2) / 4)
    assert (found["began"][0], found["ended"][0]) == pytest.approx((np.sqrt(sum(a * a)), np.sqrt(sum(b * b))))
    assert case.row not in found["nearest"]


def test_six_sets_leave(world):
    study, case, model = world
    other = make_case(study, "reda")
    cases = [case, other]
    scores = displacement_scores(study, model, cases) | plain_scores(study, cases)
    sets = removal_sets(cases, scores, 5, len(study.corpus), seed=2)
    assert tuple(sets) == SETS
    for name, ranked in (("reinforcing", scores["lissa_published"]), ("removing", -scores["lissa_published"]),
                         ("dot", scores["dot"]), ("pairs", scores["pairs"])):  # fmt: skip
        want = set()
        for j, c in enumerate(cases):
            want |= set(sorted(c.holds, key=lambda i: (-ranked[j, i], i))[:5])
        assert set(sets[name]) == want, name
    held = set(case.holds) | set(other.holds)
    assert len(sets["elsewhere"]) == 10
    assert not set(sets["elsewhere"]) & held
    assert set(sets["contains"]) <= held
    assert len(set(sets["contains"]) & set(case.holds)) >= 5
    again, later = (removal_sets(cases, scores, 5, len(study.corpus), seed=s) for s in (2, 3))
    assert all(np.array_equal(sets[name], again[name]) for name in SETS)
    assert not np.array_equal(sets["contains"], later["contains"])


def test_seeds_and_retrainings_are_gensims_in_order_and_resume(world, tmp_path, monkeypatch):
    study, case, _ = world
    settings = SETTINGS | {"epochs": 3}
    args = {"settings": settings, "folder": tmp_path, "n_jobs": 1}
    before = study_seeds(study, [case], [4, 7], damping=0.1, **args)
    assert {*METHODS, "displacement", "began", "ended", "nearest"} == set(before)
    model = train_gensim(study.corpus, seed=7, **settings)
    assert before["displacement"][1] == outcome(model, [case])["displacement"]
    np.testing.assert_array_equal(before["dot"][1], displacement_scores(study, model, [case])["dot"])
    sets = [{"a": np.array([0, 1]), "b": np.array([5])}, {"a": np.array([2]), "b": np.arange(9)}]
    after = retrain_seeds(study, [case], sets, [4, 7], **args)
    assert after["displacement"].shape == (2, 2, 1)
    for s, seed in enumerate((4, 7)):
        for m, name in enumerate("ab"):
            rest = study.corpus.select([i for i in range(len(study.corpus)) if i not in sets[s][name]])
            want = outcome(train_gensim(rest, seed=seed, **settings), [case])
            assert after["displacement"][s, m] == want["displacement"]
            assert after["nearest"][s, m].tolist() == want["nearest"].tolist()
    monkeypatch.setattr("clif_kit.neighbour_truth.outcome", outcome)  # the same function: the same fingerprint
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    retrain_seeds(study, [case], sets, [4, 7], **args)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    assert len(files) == 6


# --- metrics, from arrays made by hand ---


def hand_made():
    """Two seeds, one word in sentences 0 to 3 (right: 0 and 1), one per set; the model moves 2.0, with less: known."""
    case = Case("kirk", 0, np.arange(4), np.array([True, True, False, False, False]), "")
    base = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    scores = {name: np.stack([[base], [base]]) for name in (*METHODS, *BASELINES)}
    scores["dot"] = np.stack([[base], [base[[2, 3, 0, 1, 4]]]])
    scores["pairs"] = np.stack([[-base]] * 2)
    sets = [{name: np.array([m % 5]) for m, name in enumerate(SETS)} for _ in range(2)]
    before = {"displacement": np.array([[2.0], [4.0]]), "nearest": np.array([[[5, 6]], [[7, 8]]])}
    lost = np.array([[0.5, 0.1, 0.3, 0.0, 0.05, 0.2], [0.4, 0.2, 0.3, 0.1, 0.05, 0.1]])[..., None]
    near = np.array([[[[5, 6]], [[6, 9]], [[9, 9]], [[6, 5]], [[1, 2]], [[1, 5]]], [[[7, 8]]] * 6])
    return case, scores, sets, before, {"displacement": before["displacement"][:, None] * (1 - lost), "nearest": near}


def test_ranking_metrics_by_hand():
    case, scores, *_ = hand_made()
    found = ranking_metrics([case], scores, 2)
    value = {key: metric if isinstance(metric, float) else metric.value for key, metric in found.items()}
    assert value["relevance/lissa_published/kirk"] == 1.0
    assert value["relevance/lissa_published_removing/kirk"] == 0.0
    assert value["relevance/dot/kirk"] == 0.5
    assert found["relevance/dot/kirk"].values == (1.0, 0.0)
    assert value["relevance/contains/kirk"] == 0.5
    assert value["relevance/random/kirk"] == 0.4
    assert value["relevance_gain/reinforcing_minus_contains/kirk"] == 0.5
    assert value["relevance_gain/contains_minus_removing/kirk"] == 0.5
    assert value["relevance_gain/reinforcing_minus_short/kirk"] == 0.0
    assert value["p/reinforcing/kirk"] == pytest.approx(1 / 6)  # one choice of six has both
    assert value["p/removing/kirk"] == pytest.approx(1 / 6)
    assert value["rank/lissa_published_with_per_word/kirk"] == 1.0
    assert value["rank/lissa_published_with_dot/kirk"] == pytest.approx((1 - 0.6) / 2)  # 3 4 1 2 against 4 3 2 1: -0.6


def test_removal_metrics_by_hand():
    case, scores, sets, before, after = hand_made()
    found = removal_metrics([case], scores, sets, before, after)
    value = {key: metric.value for key, metric in found.items()}
    assert value["displacement/reinforcing/kirk"] == pytest.approx(0.45)
    assert value["displacement/removing/kirk"] == pytest.approx(0.15)
    assert value["displacement_gain/top_minus_contains/all"] == pytest.approx(0.15)
    assert value["displacement_gain/top_minus_contains/kirk"] == pytest.approx(0.15)
    assert value["displacement_gain/contains_minus_bottom/all"] == pytest.approx(0.15)
    assert value["displacement_gain/top_minus_pairs/all"] == pytest.approx(0.3)
    assert value["displacement_gain/dot_minus_contains/all"] == pytest.approx(-0.25)
    assert [found[f"neighbours_kept/{name}/kirk"].values for name in SETS] == [
        (1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.5, 1.0),
    ]  # fmt: skip
    assert value["neighbours_gain/contains_minus_top/all"] == pytest.approx(-0.5)
    predicted = [4.0, 3.0, 2.0, 0.0, 4.0]  # of the sets that hold the word: sentences 0, 1, 2, 4, 0
    actual = np.array([[0.5, 0.1, 0.3, 0.05, 0.2], [0.4, 0.2, 0.3, 0.05, 0.1]])
    assert value["truth/lissa_published/kirk/gensim"] == pytest.approx(
        np.mean([spearman(predicted, a) for a in actual])
    )
    assert value["truth/pairs/kirk/gensim"] == pytest.approx(-value["truth/lissa_published/kirk/gensim"])
