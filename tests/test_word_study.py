"""The word chapters' shared code, against plain loops and direct retraining on a planted toy corpus."""

import numpy as np
import pytest
import torch

from clif_kit import evaluate, weat_claims, word_study, word_truth
from clif_kit.corpora import Sentences
from clif_kit.sentence_stream import stream_scores
from clif_kit.sentence_table import sentence_table
from clif_kit.skipgram import SkipgramLoss
from clif_kit.weat import WordTest, effect

TEST = WordTest(
    x=[f"he{c}" for c in "abcd"], y=[f"she{c}" for c in "abcd"], a=[f"job{c}" for c in "abcd"],
    b=[f"home{c}" for c in "abcd"], name="toy",
)  # fmt: skip


def planted(n=400, seed=0):
    """Sentences in which X meets A and Y meets B three times out of four."""
    rng = np.random.default_rng(seed)
    words = []
    for _ in range(n):
        man = rng.random() < 0.5
        paid = man if rng.random() < 0.75 else not man
        target = rng.choice(TEST.x if man else TEST.y)
        attribute = rng.choice(TEST.a if paid else TEST.b)
        filler = [f"word{chr(97 + k)}" for k in rng.integers(0, 10, rng.integers(1, 5))]
        sentence = [target, *filler, attribute]
        rng.shuffle(sentence)
        words.append([str(word) for word in sentence])
    return Sentences(words, ["toy"] * n, ["text"] * n)


@pytest.fixture(scope="module")
def study():
    return word_study.make_study(planted(), {"toy": TEST}, window=3, min_count=1, test_count=1)


@pytest.fixture(scope="module")
def optimum(study):
    return word_study.fit_optimum(study, width=4, l2=0.01)


@pytest.fixture(scope="module")
def scores(study, optimum):
    objective, best = optimum
    return word_study.all_scores(study, best.params, objective, repeats=1, engine="torch")


def test_the_planted_bias_is_found(study, optimum):
    assert word_study.effects(optimum[1].params, study.tests)[0] > 1


def test_a_test_that_cannot_be_answered_says_why():
    odd = WordTest(x=["zebra"] * 0 + list("pqrs"), y=list("tuvw"), a=list("klmn"), b=list("ghij"), name="odd")
    found = word_study.make_study(planted(50), {"toy": TEST, "odd": odd}, min_count=1, test_count=1)
    assert list(found.tests) == ["toy"]
    assert "odd" in found.unavailable["odd"]
    assert "need 4" in found.unavailable["odd"]


def test_a_study_like_another_has_its_vocabulary_and_rows(study):
    other = word_study.make_study(planted(60, seed=3), {"toy": TEST}, like=study)
    assert other.corpus.vocabulary is study.corpus.vocabulary
    assert other.tests is study.tests
    assert len(other.corpus) == 60


def test_about_tests_keeps_sentences_with_a_test_word():
    texts = Sentences([["he", "ran"], ["hea", "ran"], ["ran", "jobc"]], ["s"] * 3, ["text"] * 3)
    assert word_study.about_tests(texts, [TEST]).tolist() == [1, 2]


def test_overlap_counts_words_and_pairs(study, optimum, scores):
    sign = np.sign(word_study.effects(optimum[1].params, study.tests)[0])
    for i in range(0, 400, 7):
        words = study.sentences.words[i]
        x, y, a, b = (sum(word in getattr(TEST, side) for word in words) for side in "xyab")
        assert scores["overlap"][0, i] == -(x + y + a + b)
        assert scores["overlap_signed"][0, i] == -sign * (x * a + y * b - x * b - y * a)


def test_full_inverse_predicts_retraining_without_each_set(study, optimum, scores, tmp_path):
    objective, best = optimum
    sets = word_truth.random_sets(400, 0.02, 12, seed=0)
    actual = word_truth.optimum_changes(study, objective, best, sets, folder=tmp_path, gtol=1e-9, n_jobs=1)
    guess = word_truth.predicted(scores["cg_full"], sets)
    assert evaluate.pearson(guess[0], actual[0]) > 0.97
    assert 0.8 < np.polyfit(guess[0], actual[0], 1)[0] < 1.25
    once_more = word_truth.optimum_changes(
        study, objective, best, sets[:1], folder=None or tmp_path / "b", gtol=1e-9, n_jobs=1
    )
    np.testing.assert_allclose(once_more[:, 0], actual[:, 0], atol=1e-7)


def test_changes_are_in_the_direction_of_the_bias(study, optimum, tmp_path):
    """Leaving out sentences that join X with A must lower the planted effect, however it is signed."""
    objective, best = optimum
    speak_for = [
        i for i, words in enumerate(study.sentences.words)
        if bool(set(words) & set(TEST.x)) == bool(set(words) & set(TEST.a))
    ][:60]  # fmt: skip
    changed = word_truth.optimum_changes(study, objective, best, [np.array(speak_for)], folder=tmp_path, n_jobs=1)
    assert changed[0, 0] < 0


def test_cold_retraining_finds_the_same_effect(study, optimum, tmp_path):
    objective, best = optimum
    sets = word_truth.random_sets(400, 0.05, 2, seed=4)
    warm = word_truth.optimum_changes(study, objective, best, sets, folder=tmp_path, gtol=1e-8, n_jobs=1)
    cold = word_truth.optimum_changes(study, objective, best, sets, folder=tmp_path, cold_seed=0, gtol=1e-8, n_jobs=1)
    np.testing.assert_allclose(cold, warm, atol=1e-4)


def test_causes_add_up_and_belong_to_their_side(study, optimum):
    params, loss = optimum[1].params, SkipgramLoss.published(3)
    way = word_study.weat_gradients(params, study.tests)["toy"]
    total = stream_scores(study.corpus, params, [way], loss, engine="torch")[0]
    for i in (0, 5, 9):
        parts = word_study.causes(study, i, params, way, loss, study.tests["toy"])
        assert np.isclose(sum(part for words in parts.values() for part in words.values()), total[i], rtol=1e-12)
        assert all(word in getattr(TEST, side) for side in "xyab" for word in parts[side])
        assert all(part == 0 for part in parts["other"].values())


def test_lds_interval_equals_evaluate():
    rng = np.random.default_rng(0)
    guess, actual = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    actual[:, 0] += 2 * guess[:, 0]
    ours = word_truth.lds_interval(guess, actual)
    theirs = evaluate.interval(lambda p, a: float(evaluate.lds(p.T, a.T).mean()), guess, actual, over="removed sets")
    assert ours.value == pytest.approx(theirs.value, abs=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)
    gain = word_truth.lds_interval(guess, actual, minus=actual)
    assert gain.value == pytest.approx(ours.value - 1)
    assert word_truth.lds_interval(np.ones((9, 1)), rng.normal(size=(9, 1))).value == 0  # ranks nothing


def test_extremes_leave_out_what_they_say(study, optimum, scores, tmp_path):
    objective, best = optimum
    some = {"cg_full": scores["cg_full"]}
    found = word_truth.extremes(study, objective, best, some, sizes=(0.02,), folder=tmp_path, n_random=2, n_jobs=1)
    guess, actual = found["cg_full", "toy"]
    ranked = np.sort(scores["cg_full"][0])
    np.testing.assert_allclose(guess[:2], [ranked[-8:].sum(), ranked[:8].sum()])
    assert actual[0] > 0 > actual[1]  # without mitigating sentences the bias rises, without amplifying ones it falls
    assert word_truth.extremes(study, objective, best, some, sizes=(), folder=tmp_path) == {}


def test_gensim_changes_are_differences_of_effects(study, tmp_path):
    settings = {"width": 4, "epochs": 2, "window": 3, "negatives": 2}
    sets = [np.arange(40), np.arange(40, 80)]
    truth = word_truth.gensim_truth(study, sets, seeds=[0, 1], settings=settings, folder=tmp_path, repeats=1, n_jobs=1)
    full = [word_study.train_gensim(study.corpus, seed=seed, **settings).params for seed in (0, 1)]
    less = word_study.train_gensim(study.corpus.without(sets[1]), seed=1, **settings).params
    before = np.array([word_study.effects(params, study.tests)[0] for params in full])
    want = np.sign(before.mean()) * (word_study.effects(less, study.tests)[0] - before[1])
    assert truth.changes.shape == (2, 1, 2)
    assert truth.changes[1, 0, 1] == pytest.approx(want, abs=1e-6)
    metrics = word_truth.judge_gensim(study, truth)
    assert {"lds/cg_full/toy_gensim/drop05", "lds/ceiling/mean_gensim/drop05"} <= set(metrics)


def test_train_seeds_are_read_again(study, tmp_path):
    first = word_study.train_seeds(study, [0], width=4, epochs=1, folder=tmp_path, n_jobs=1)
    second = word_study.train_seeds(study, [0, 1], width=4, epochs=1, folder=tmp_path, n_jobs=1)
    assert torch.equal(first[0].params["input"], second[0].params["input"])
    assert not torch.equal(second[0].params["input"], second[1].params["input"])


# ---- claims


def test_equation_12_as_printed_divides_by_the_variance(study, optimum):
    vectors, test = optimum[1].params["input"], study.tests["toy"]
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    s = [float((unit[w] @ unit[test.a].T).mean() - (unit[w] @ unit[test.b].T).mean()) for w in [*test.x, *test.y]]
    want = (np.mean(s[:4]) - np.mean(s[4:])) / np.var(s)
    assert float(weat_claims.literal_effect(vectors, test)) == pytest.approx(want)
    assert float(effect(vectors, test)) == pytest.approx(want * np.std(s))


def test_pair_parts_add_up_to_the_published_score(study, optimum):
    params, loss = optimum[1].params, SkipgramLoss.published(3)
    way = word_study.weat_gradients(params, study.tests)["toy"]
    total = stream_scores(study.corpus, params, [way], loss, engine="torch")[0]
    for i in (1, 2, 30):
        parts = weat_claims.pair_parts(study.corpus, i, params, way, 3)
        assert parts.sum() == pytest.approx(total[i], rel=1e-12)
        assert np.diag(parts).sum() == 0


def test_counter_share_by_loops(study, optimum):
    params = optimum[1].params
    way = word_study.weat_gradients(params, study.tests)["toy"]
    chosen = np.arange(25)
    counter = total = 0.0
    for i in chosen:
        parts, words = weat_claims.pair_parts(study.corpus, int(i), params, way, 3), study.corpus.words(int(i))
        for j, first in enumerate(words):
            for k, second in enumerate(words):
                total += parts[j, k]
                for target, attribute in ((first, second), (second, first)):
                    if (target in TEST.x and attribute in TEST.b) or (target in TEST.y and attribute in TEST.a):
                        counter += parts[j, k]
    assert weat_claims.counter_share(study, "toy", params, way, chosen, 1.0) == pytest.approx(counter / total)


def test_shared_top_counts_common_sentences_only():
    first, second = np.array([5.0, 4, 0, 0, 9]), np.array([6.0, 0, 0, 0, 8])
    assert weat_claims.shared_top(first, second, common=4, top=2)[0] == 0.5  # sentence 4 differs between the corpora
    assert weat_claims.shared_top(first, second, common=4, top=2)[1] == pytest.approx(1 * (2 / 3) * (2 / 2) / 2)


def test_closed_form_gradient_has_the_direction_of_autograd(study, optimum):
    assert weat_claims.closed_form_cosine(study, optimum[1].params, "toy") == pytest.approx(1, abs=1e-12)


def test_sentence_table_is_in_the_order_of_the_scores(study):
    values = np.arange(400.0)
    table = sentence_table(study, values, lambda _: {"x": {"hea": 1.0}, "other": {"word": -3.0}}, caption="<c>", k=2)
    assert [row[1] for row in table.rows] == [0, 1, 399, 398]
    assert "&lt;c&gt;" in table._repr_html_()
    assert table.rows[0][4] == "word 75 %, X hea 25 %"
    assert len(sentence_table(study, values, lambda _: {}, caption="c", k=2, skip=lambda i: i == 399).rows) == 4
