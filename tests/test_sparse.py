"""The elastic-net path against sklearn's saga, closed forms and the conditions of a minimum; insertions by hand."""

import math

import numpy as np
import pytest
import torch

from clif_kit import proximal
from clif_kit.insertion import insertion_test, top_words, wilson, word_means
from clif_kit.sparse import NotConverged, Path, dense, elastic_net_path, lambda_max, select_sparse, standardise


def data(classes, n=150, d=8, seed=0):
    """Correlated features, labels drawn from a sparse layer of known weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    (x,) = standardise(x)
    logits = x.numpy() @ (rng.normal(size=(d, classes)) * (rng.random((d, 1)) < 0.6)) + rng.gumbel(size=(n, classes))
    return x, torch.from_numpy(logits.argmax(1))


def objective(x, y, weights, bias, lam, ratio):
    """Cross-entropy in numpy, from logits of both classes where there is one output, plus the penalty."""
    logits = x.numpy() @ weights.T + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([0 * logits, logits], 1)
    top = logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y.numpy()]
    return loss.mean() + lam * ((1 - ratio) / 2 * (weights**2).sum() + ratio * np.abs(weights).sum())


@pytest.mark.parametrize(("classes", "ratio"), [(2, 0.99), (2, 0.5), (2, 1.0), (3, 0.99), (4, 0.3)])
def test_saga_has_the_same_layers(classes, ratio):
    from sklearn.linear_model import LogisticRegression

    x, y = data(classes)
    path = elastic_net_path(x, y, classes=classes, l1_ratio=ratio, n_lambdas=4, eps=0.02, tol=1e-7)
    assert path.weights.shape == (4, 1 if classes == 2 else classes, 8)
    for i in (1, 3):
        lam = path.lambdas[i].item()
        saga = LogisticRegression(
            solver="saga", l1_ratio=ratio, C=1 / (lam * len(y)), tol=1e-9, max_iter=20_000, random_state=0
        ).fit(x.numpy(), y.numpy())
        ours, theirs = path.weights[i].numpy(), saga.coef_
        gap = objective(x, y, ours, path.bias[i].numpy(), lam, ratio) - objective(
            x, y, theirs, saga.intercept_, lam, ratio
        )
        assert abs(gap) < 1e-7
        assert np.abs(ours - theirs).max() < 1e-4
        bias = path.bias[i].numpy() - saga.intercept_
        assert np.abs(bias - (bias.mean() if classes > 2 else 0)).max() < 1e-4


@pytest.mark.parametrize("classes", [2, 3])
def test_every_point_is_a_minimum(classes):
    """Autograd of the loss lies in the subdifferential of the penalty, and no small step is lower."""
    x, y = data(classes, seed=1)
    ratio = 0.9
    path = elastic_net_path(x, y, classes=classes, l1_ratio=ratio, n_lambdas=6, tol=1e-6)
    for lam, w, b in zip(path.lambdas, path.weights, path.bias, strict=True):
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        logits = x @ w.T + b
        loss = (
            torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.double())
            if classes == 2
            else torch.nn.functional.cross_entropy(logits, y)
        )
        slope, free = torch.autograd.grad(loss, (w, b))
        slope = slope + lam * (1 - ratio) * w
        assert free.abs().max() < 1e-6
        used = w != 0
        assert (slope + lam * ratio * w.sign())[used].abs().sum() < 1e-5
        assert (slope[~used].abs() <= lam * ratio + 1e-6).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_at_the_largest_penalty_all_weights_are_zero_and_just_below_not(classes):
    x, y = data(classes)
    top = lambda_max(x, y, classes=classes)
    path = elastic_net_path(x, y, classes=classes, lambdas=[1.001 * top, top, 0.995 * top])
    assert path.nonzero.tolist()[:2] == [0, 0]
    assert path.nonzero[2] >= 1
    shares = torch.bincount(y).double() / len(y)
    wanted = torch.logit(shares[1:]) if classes == 2 else shares.log() - shares.log().mean()
    assert torch.allclose(path.bias[0], wanted, atol=1e-12)
    one_hot = np.eye(classes)[y.numpy()]
    by_hand = max(abs(float(x[:, j].numpy() @ (one_hot[:, c] - one_hot[:, c].mean()))) / len(y) / 0.99
                  for j in range(x.shape[1]) for c in range(classes))  # fmt: skip
    assert math.isclose(top, by_hand, rel_tol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_both_ways_to_the_minimum_end_in_one_place(classes, monkeypatch):
    x, y = data(classes, seed=2)
    models = elastic_net_path(x, y, classes=classes, n_lambdas=4, eps=0.05)
    monkeypatch.setattr(proximal, "LARGEST", 0)
    steps = elastic_net_path(x, y, classes=classes, n_lambdas=4, eps=0.05)
    assert (models.weights != steps.weights).any()  # another way
    assert (models.weights - steps.weights).abs().max() < 1e-4
    assert (models.bias - steps.bias).abs().max() < 1e-4


def test_more_features_than_examples_and_separable_classes():
    """The penalty keeps the layer finite; the largest eigenvalue is found without the matrix."""
    rng = np.random.default_rng(0)
    (x,) = standardise(rng.normal(size=(600, 530)))
    assert proximal.largest_eigenvalue(x) >= torch.linalg.matrix_norm(x, 2) ** 2 / 600 * (1 - 1e-9)
    assert proximal.largest_eigenvalue(x) < torch.linalg.matrix_norm(x, 2) ** 2 / 600 * 1.05
    x, y = x[:30, :60], torch.arange(30) % 3
    path = elastic_net_path(x, y, classes=3, n_lambdas=5, eps=0.02)
    assert path.accuracy(x, y)[-1] == 1
    assert (path.residual <= 1e-6).all()


def test_one_feature_has_a_closed_form():
    """Of +1s, a share q is of class 1, of -1s the share 1 - q: the bias is 0, the mean gradient q - sigma(w)."""
    x = torch.tensor([1.0] * 10 + [-1.0] * 10)[:, None]
    y = torch.tensor([1] * 8 + [0] * 2 + [0] * 8 + [1] * 2)
    path = elastic_net_path(x, y, classes=2, l1_ratio=1.0, lambdas=[0.3, 0.2, 0.1, 0.01], tol=1e-10)
    wanted = [0.0, *(math.log((0.8 - lam) / (0.2 + lam)) for lam in (0.2, 0.1, 0.01))]
    assert torch.allclose(path.weights.flatten(), torch.tensor(wanted, dtype=torch.float64), atol=1e-8)
    assert path.bias.abs().max() < 1e-8


def test_the_path_predicts_and_counts():
    x, y = data(3)
    path = elastic_net_path(x, y, classes=3, n_lambdas=5)
    assert (path.lambdas.diff() < 0).all()
    assert math.isclose(path.lambdas[-1] / path.lambdas[0], 0.01, rel_tol=1e-9)
    logits = path.logits(x)
    assert logits.shape == (5, len(y), 3)
    for i in range(5):
        by_hand = x @ path.weights[i].T + path.bias[i]
        assert torch.allclose(logits[i], by_hand)
        assert path.accuracy(x, y)[i] == (by_hand.argmax(1) == y).double().mean()
        assert path.nonzero[i] == np.count_nonzero(path.weights[i].numpy())
        assert path.features[i] == np.count_nonzero(path.weights[i].abs().sum(0).numpy())
    assert path.accuracy(x, y)[-1] > path.accuracy(x, y)[0] + 0.2
    two = elastic_net_path(x, y.clamp(max=1), classes=2, n_lambdas=3)
    assert two.predict(x)[-1].tolist() == (two.logits(x)[-1, :, 0] > 0).long().tolist()


def test_standardised_features_are_those_of_sklearn():
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 5, (20, 4)), rng.normal(size=(5, 4))
    scaler = StandardScaler().fit(train)
    ours = standardise(train, test)
    for mine, theirs in zip(ours, (train, test), strict=True):
        assert np.abs(mine.numpy() - scaler.transform(theirs)).max() < 1e-12
    constant = standardise(np.full((7, 1), 0.1), np.ones((2, 1)))
    assert all((value == 0).all() for value in constant)


def test_the_dense_end_is_ridge_and_chosen_on_validation_data():
    from sklearn.linear_model import LogisticRegression

    x, y = data(2, seed=3)
    other = data(2, seed=3)
    found = dense(x, y, other, classes=2, ridges=(0.1, 0.001))
    assert found.lambdas.shape == (1,)
    assert found.nonzero.item() == 8
    sk = LogisticRegression(C=1 / (found.lambdas.item() * len(y)), tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    assert np.abs(found.weights[0].numpy() - sk.coef_).max() < 1e-4
    each = elastic_net_path(x, y, classes=2, l1_ratio=0.0, lambdas=(0.1, 0.001)).accuracy(*other)
    assert found.accuracy(*other).item() == each.max()


def test_the_sparsest_layer_within_so_many_points():
    weights = torch.zeros(4, 1, 5)
    for i, used in enumerate((0, 2, 2, 4)):
        weights[i, 0, :used] = 1
    path = Path(torch.tensor([4.0, 3.0, 2.0, 1.0]), weights, torch.zeros(4, 1))
    assert select_sparse(path, [0.5, 0.86, 0.87, 0.9], within=0) == 3
    assert select_sparse(path, [0.5, 0.86, 0.87, 0.9], within=5) == 2  # of equally sparse ones the better
    assert select_sparse(path, [0.5, 0.87, 0.87, 0.9], within=5) == 1
    assert select_sparse(path, [0.5, 0.87, 0.87, 0.9], within=40) == 0
    with pytest.raises(ValueError, match="4 layers need as many"):
        select_sparse(path, [0.5], within=1)
    with pytest.raises(ValueError, match="shares between 0 and 1"):
        select_sparse(path, [50, 60, 70, 80], within=1)


def test_what_cannot_be_fitted_is_refused():
    x, y = data(2)
    with pytest.raises(ValueError, match=r"classes must be 0 to 2 and each must occur, got \[0, 1\]"):
        elastic_net_path(x, y, classes=3)
    with pytest.raises(ValueError, match="whole numbers"):
        elastic_net_path(x, y.double(), classes=2)
    with pytest.raises(ValueError, match="a row for each of 150 labels"):
        elastic_net_path(x[1:], y, classes=2)
    with pytest.raises(ValueError, match="l1_ratio must be"):
        elastic_net_path(x, y, classes=2, l1_ratio=1.5)
    with pytest.raises(ValueError, match="0 < eps < 1"):
        elastic_net_path(x, y, classes=2, eps=1)
    with pytest.raises(ValueError, match="fall from one to the next"):
        elastic_net_path(x, y, classes=2, lambdas=[0.1, 0.2])
    with pytest.raises(ValueError, match="no feature goes with a class"):
        elastic_net_path(torch.zeros(150, 2), y, classes=2)
    broken = x.clone()
    broken[7, 1] = torch.nan
    with pytest.raises(ValueError, match="row 7 of x"):
        elastic_net_path(broken, y, classes=2)
    with pytest.raises(NotConverged, match="after 3 steps"):
        elastic_net_path(x, y, classes=2, max_steps=3)


def test_progress_is_said_in_lines():
    lines = []
    elastic_net_path(*data(2), classes=2, n_lambdas=3, progress=lines.append)
    assert lines
    assert all("of 3 penalties" in line for line in lines)


def test_means_of_words_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    ids, values = rng.integers(0, 6, (9, 5)), rng.normal(size=(9, 5))
    found = word_means(values, ids, words=8, least=2)
    for word in range(8):
        texts = [i for i in range(9) if word in ids[i]] if word else []
        sums = [sum(values[i, j] for j in range(5) if ids[i, j] == word) for i in texts]
        assert np.isnan(found[word]) if len(texts) < 2 else math.isclose(found[word], np.mean(sums))
    with pytest.raises(ValueError, match="ids must be 0 to 3"):
        word_means(values, ids, words=4)
    with pytest.raises(ValueError, match="one shape"):
        word_means(values[1:], ids, words=8)
    with pytest.raises(ValueError, match="not finite"):
        word_means(values * np.nan, ids, words=8)
    with pytest.raises(ValueError, match="2 words need"):
        top_words([1.0], ["a", "b"])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_flips_are_counted_by_hand(kind):
    """The class is the sign; inserting adds 2, the control 0.5: of the five negative inputs, three and one flip."""
    inputs = kind([-0.2, -1.0, -1.5, -3.0, -4.0, 1.0])

    def predict(x):
        return (torch.as_tensor(np.asarray(x)) > 0).long()

    found = insertion_test(predict, inputs, lambda x: x + 2, lambda x: x + 0.5, source=0, over="numbers")
    assert found.flipped.tolist() == [True, True, True, False, False]
    assert found.control_flipped.tolist() == [True, False, False, False, False]
    assert (found.flips.value, found.control.value) == (0.6, 0.2)
    assert math.isclose(found.difference.value, 0.4)
    assert found.kept.tolist() == [0, 1, 2, 3, 4]
    assert found.flips.n == 5
    assert found.flips.over == "numbers"
    assert insertion_test(predict, inputs, lambda x: x + 2, lambda x: x, target=0).flips.value == 0
    with pytest.raises(ValueError, match="predicted as class 7"):
        insertion_test(predict, inputs, lambda x: x, lambda x: x, source=7)
    with pytest.raises(ValueError, match="one class for each of 6 inputs"):
        insertion_test(lambda _: [0], inputs, lambda x: x, lambda x: x)


def test_wilsons_interval_solves_its_equation():
    found, z = wilson([True] * 3 + [False] * 9, "texts"), 1.959963984540054
    for end in (found.low, found.high):
        assert math.isclose(abs(end - 0.25), z * math.sqrt(end * (1 - end) / 12), rel_tol=1e-9)
    assert wilson([False] * 4, "texts").low == 0
    with pytest.raises(ValueError, match="needs units"):
        wilson([], "texts")
