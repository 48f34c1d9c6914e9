"""Chapter 42's parts against counts by hand, loops and known truths."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clif_kit import planted_toxicity as planted
from clif_kit import sparse_images, sparse_metrics, sparse_study, sparse_text
from clif_kit.planted_toxicity import CLEAN_SIDE, CONTROLS, INSULTS, TOXIC_SIDE, planted_toxicity

SMALL = sparse_study.Setting(data="planted", sizes=(240, 120, 200), width=16, steps=120, n_lambdas=12)
DIGITS = sparse_study.Setting(data="digits", sizes=(400, 200, 300), width=24, steps=150, n_lambdas=10, eps=0.05)


@pytest.fixture(scope="module")
def fitted():
    return sparse_study.fit_text(SMALL, 0)


@pytest.fixture(scope="module")
def images():
    return sparse_study.fit_images(DIGITS, 0)


# ---- what is planted


@pytest.mark.parametrize("rate", [0.5, 0.85, 1.0])
def test_terms_are_planted_at_the_rate_and_controls_are_not(rate):
    made = planted_toxicity(2000, seed=3, rate=rate)
    toxic = {word: np.mean([y for y, w in zip(made.y, made.word, strict=True) if w == word]) for word in made.word}
    assert made.y.mean() == 0.5
    for words, want in ((TOXIC_SIDE, rate), (CLEAN_SIDE, 1 - rate), (CONTROLS, 0.5)):
        assert np.allclose([toxic.get(w, 0) for w in words], want, atol=0.02)
    counts = Counter(made.word)
    assert {counts[w] for w in (*TOXIC_SIDE, *CLEAN_SIDE, *CONTROLS)} <= set(range(118, 123))
    held = [set(text.split()) for text in made.texts]  # by the texts themselves, not by what is reported of them
    assert all(not word or word in words for word, words in zip(made.word, held, strict=True))
    insulted = np.array([bool(words & set(INSULTS)) for words in held])
    assert abs(insulted[made.y == 1].mean() - 0.7) < 0.05
    assert abs(insulted[made.y == 0].mean() - 0.05) < 0.03


def test_the_same_seed_gives_the_same_texts_and_another_gives_others():
    assert planted_toxicity(50, seed=1).texts == planted_toxicity(50, seed=1).texts
    assert planted_toxicity(50, seed=1).texts != planted_toxicity(50, seed=2).texts


@pytest.mark.parametrize("bad", [{"n": 3}, {"n": 0}, {"n": 4, "rate": 1.5}, {"n": 4, "insults": -1}])
def test_bad_arguments_of_the_generator_are_named(bad):
    with pytest.raises(ValueError, match="need an even n"):
        planted_toxicity(**{"seed": 0, **bad})


def test_words_go_where_they_are_put_and_come_out_again():
    assert planted.insert_word("ed is the baker and reads", "tall", "inside") == "ed is the tall baker and reads"
    assert planted.insert_word("one two three four", "x", "inside") == "one two x three four"
    for place in ("inside", "end"):
        new = planted.insert_word("Ed sees the baker", "tall", place)
        assert planted.remove_word(new, "tall") == "Ed sees the baker"
    assert planted.remove_word("a Black, blackbird", "black") == "a blackbird"
    with pytest.raises(ValueError, match="place is"):
        planted.insert_word("a", "b", "front")


def test_lean_counts_texts_and_the_control_is_even_and_as_frequent():
    texts = ["gay the", "gay the", "gay pie", "irish the", "irish pie", "irish pie", "even the", "even pie"] * 2
    y = np.array([1, 1, 0, 0, 0, 1, 1, 0] * 2)
    sides, control = sparse_text.lean(texts, y, ["gay", "irish", "muslim"], least=4)
    assert sides == {"toxic": ("gay",), "clean": ("irish",)}  # 4 of 6 and 2 of 6 against a half; muslim never stands
    assert control == {"gay": "even", "irish": "even"}  # 2 of 4: the only even one of the three


def test_patches_are_planted_at_their_rates():
    y = np.arange(20_000) % 10
    made = sparse_images.plant_patches(
        np.zeros((20_000, 4, 4), np.float32), y, target=2, seed=0, rate=0.8, elsewhere=0.05
    )
    assert abs(made.patch[y == 2].mean() - 0.8) < 0.03
    assert abs(made.patch[y != 2].mean() - 0.05) < 0.01
    assert abs(made.control[y == 2].mean() - 0.125) < 0.03
    assert abs(made.control.mean() - made.patch.mean()) < 0.01
    assert (made.x[:, 0, 0] == made.patch).all()
    assert (made.x[:, 3, 0] == made.control).all()
    assert not made.clean.any()
    assert made.x.sum() == made.patch.sum() + made.control.sum()
    with pytest.raises(ValueError, match="target=11"):
        sparse_images.plant_patches(made.clean, y, target=11, seed=0)


# ---- features


def test_features_are_standardised_and_do_not_depend_on_the_batch(fitted):
    data, net, z, _ = fitted
    alive = z["train"].std(0) > 1e-6
    assert np.allclose(z["train"].mean(0), 0, atol=1e-6)
    assert np.allclose(z["train"].std(0)[alive], 1)
    one = np.concatenate([net.features([text]) for text in data.texts["test"][:9]])
    assert np.allclose(one, z["test"][:9], atol=1e-4)


def test_contributions_equal_a_loop_over_words_and_texts(fitted):
    data, net, _, _ = fitted
    texts = data.texts["train"][:60]
    words, c = sparse_text.contributions(net, texts, least=5)
    assert len(words) > 10
    for word in words[::5]:
        change = []
        for text in texts:
            if word in text.split():
                without = " ".join(x for x in text.split() if x != word)
                change.append(net.features([text])[0] - net.features([without])[0])
        assert len(change) >= 5
        assert np.allclose(c[words.index(word)], np.mean(change, axis=0), atol=1e-4)


def test_the_hidden_layer_gives_the_nets_own_outputs(images):
    data, net, z, _ = images
    hidden = z["test"] * net.std + net.mean
    last = max(name for name in net.params if name.endswith("weight")).removesuffix("weight")
    logits = hidden @ net.params[last + "weight"].double().numpy().T + net.params[last + "bias"].double().numpy()
    flat = torch.as_tensor(data["test"].x.reshape(len(hidden), -1), dtype=torch.float32)
    assert np.allclose(logits, net.net(net.params, flat).numpy(), atol=1e-3)


def test_the_effect_of_a_patch_is_the_mean_of_differences(images):
    data, net, _, _ = images
    some = data["test"].clean[:20]
    loop = [net.features(sparse_images.stamp(x[None]))[0] - net.features(x[None])[0] for x in some]
    assert np.allclose(sparse_images.patch_effect(net, some), np.mean(loop, axis=0), atol=1e-4)


# ---- layers and what they say


def test_the_sparse_layer_is_the_sparsest_near_the_best_and_agrees_with_sklearn(fitted):
    data, _, z, layers = fitted
    val = np.array([((z["val"] @ w[0] + b[0] > 0) == data.y["val"]).mean()
                    for w, b in zip(layers.path.weights.numpy(), layers.path.bias.numpy(), strict=True)])  # fmt: skip
    near = val >= val.max() - SMALL.within / 100 - 1e-9
    assert layers.path.nonzero[layers.chosen] == layers.path.nonzero[torch.as_tensor(near)].min()
    lam = float(layers.path.lambdas[layers.chosen])
    other = LogisticRegression(l1_ratio=0.99, C=1 / (lam * 240), solver="saga", tol=1e-6, max_iter=5000)
    other.fit(z["train"], data.y["train"])

    def objective(w, b):  # two features are alike, so their weights are hardly determined; the objective is
        logits = z["train"] @ w + b
        loss = np.logaddexp(0, logits) - data.y["train"] * logits
        return loss.mean() + lam * (0.005 * w @ w + 0.99 * np.abs(w).sum())

    ours = objective(layers.weights("sparse"), float(layers.path.bias[layers.chosen, 0]))
    theirs = objective(other.coef_[0], other.intercept_[0])
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours < objective(0.9 * layers.weights("sparse"), float(layers.path.bias[layers.chosen, 0])) - 1e-5
    assert (layers.predict("dense", z["test"]) == (layers.logits("dense", z["test"])[:, 0] > 0)).all()


def test_flips_are_counted_by_hand():
    predict = lambda texts: np.array([text.count("x") > 1 for text in texts])  # noqa: E731
    add = lambda text, word: text + word  # noqa: E731
    assert sparse_metrics.flip_rate(predict, add, ["x", "a", "xx"], ["x", "y"]) == pytest.approx(100 / 6)
    assert np.isnan(sparse_metrics.flip_rate(predict, lambda text, _: text, ["x"], ["x"]))
    only = sparse_metrics.flip_rate(predict, planted.remove_word, ["x x", "b"], ["x"])  # "b" has no x: not a try
    assert only == 100


def test_a_change_that_the_net_cannot_see_is_no_try():
    texts = ("and " * 70, "and " * 5)  # the net sees 60 words, so a word at the end of the first is lost
    data = sparse_text.ToxicTexts({"test": texts}, {}, {"toxic": ("gay",), "clean": ()}, {"gay": "tall"})
    net = SimpleNamespace(features=lambda texts: np.array([["gay" in sparse_text.words_of(t)] for t in texts]))
    layers = SimpleNamespace(predict=lambda _, z: z[:, 0].astype(int))
    found = sparse_study._flips(data, net, layers, "sparse", 60)
    assert found["flip/toxic_end_sparse/identity"] == found["flip/toxic_inside_sparse/identity"] == 100
    assert found["flip/toxic_end_sparse/control"] == 0
    long = ("and " * 70 + "gay gay",)  # likewise for what stands behind the sixtieth word
    assert np.isnan(sparse_metrics.flip_rate(len, planted.remove_word, long, ["gay"], sparse_text.words_of))


def test_words_that_lean_alike_are_as_frequent_and_lean_to_the_same_side():
    texts = ["gay bad", "gay bad", "gay pie", "nice pie", "nice sky", "sky", "mean", "mean", "mean", "sky"] * 3
    y = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1, 1] * 3)
    sides, _ = sparse_text.lean(texts, y, ["gay"])
    found = sparse_text.lean_alike(texts, y, sides, ["gay"], k=5)
    assert sides["toxic"] == ("gay",)  # 2 of 3 against 6 of 10
    assert found == {"gay": ("bad", "mean")}  # always toxic; pie, nice and sky lean the other way


def test_gains_are_identity_minus_control_and_patch_minus_unrelated():
    one = defaultdict(float, {"share/sparse": 9.0, "share/sparse_control": 4.0})
    for layer, more in (("sparse", 0), ("dense", 5)):
        for group, value in (("identity", 30 + more), ("control", 10), ("leaning", 25)):
            one[f"flip/toxic_inside_{layer}/{group}"] = one[f"removal/toxic_{layer}/{group}"] = value
        for kind in ("flip", "removal"):
            one[f"{kind}/patch/{layer}"], one[f"{kind}/control/{layer}"] = 30, 10
    found = sparse_metrics.text_metrics([one, one], "d") | sparse_metrics.image_metrics([one, one], "e")
    assert found["flip_gain/toxic_inside_sparse_minus_control/d"].value == 20
    assert found["flip_gain/toxic_inside_sparse_minus_leaning/d"].value == 5
    assert found["removal_gain/toxic_sparse_minus_control/d"].value == 20
    assert found["flip_gain/toxic_inside_dense_minus_sparse/d"].value == 5
    assert found["share_identity_gain/sparse_minus_control/d"].value == 5
    assert found["flip_gain/spurious_patch_minus_unrelated_sparse/e"].value == 20
    assert found["removal_gain/spurious_patch_minus_unrelated_dense/e"].value == 20


def test_a_share_found_has_wilsons_interval():
    runs = [defaultdict(float, {"found/sparse": value}) for value in (100.0, 100.0, 0.0)]
    found = sparse_metrics.image_metrics(runs, "digits")["share_found/patch_sparse/digits"]
    assert found.value == pytest.approx(200 / 3)
    assert (found.low, found.high) == (pytest.approx(20.77, abs=0.01), pytest.approx(93.85, abs=0.01))


def test_metrics_of_runs_are_students_and_leave_out_what_was_not_tried():
    runs = [{"a": a, "b": b} for a, b in ((1.0, 0.0), (3.0, 1.0), (np.nan, 5.0))]
    gap = sparse_metrics.gap_metric(runs, "a", "b")
    assert (gap.value, gap.n) == (1.5, 2)
    assert gap.high - gap.value == pytest.approx(12.706 * np.std([1, 2], ddof=1) / np.sqrt(2), rel=1e-3)
    assert sparse_metrics.mean_metric(runs, "a").value == 2
    assert sparse_metrics.mean_metric(runs[1:], "a") is None


def test_a_text_study_finds_what_was_planted():
    run = sparse_study.study_text(SMALL, 0)
    assert run["share/chance"] == pytest.approx(100 * 10 / 75, abs=5)
    assert run["flip/toxic_inside_dense/identity"] > run["flip/toxic_inside_dense/control"] + 10
    assert run["accuracy/sparse"] > 60
    assert run["features"] == (sparse_study.fit_text(SMALL, 0)[3].weights("sparse") != 0).sum()
    keys = sparse_metrics.text_metrics([run, run], "planted")
    assert keys["flip_gain/toxic_inside_dense_minus_control/planted"].n == 2


def test_an_image_study_flips_by_the_patch_and_not_by_the_control():
    run = sparse_study.study_images(DIGITS, 0)
    assert run["flip/patch/dense"] > run["flip/control/dense"] + 5
    assert run["panel/patch"] > run["panel/all"]
    assert run["found/chance"] == pytest.approx(100 * run["features"] / DIGITS.width)


def test_an_empty_layer_is_refused_with_a_reason():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 4)), np.arange(60) % 2
    setting = sparse_study.Setting(data="planted", sizes=(2, 2, 2), within=60.0, n_lambdas=4)
    with pytest.raises(ValueError, match="lower `within`"):
        sparse_study.fit_layers((z, y), (z, y), setting, 2)
    with pytest.raises(ValueError, match="no feature"):
        sparse_metrics.listed_share([], {"a"})
