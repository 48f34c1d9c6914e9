r"""What TracIn on word embeddings must beat: scores from the last layer, and similarity of texts.

Inputs are what the last layer sees (:class:`clif_kit.tracin_layers.LastLayer`), plain texts, or labels. Everything
comes out as ``(q, n)``, queries by training texts, with one sign: the predicted change of the query loss when the
training text is REMOVED, so positive = helpful = proponent. A similarity knows no sign of its own;
:func:`signed_by_label` gives it one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from torch import Tensor

from clif_kit.curvature import softmax_hessian
from clif_kit.solvers import NotConverged, exact
from clif_kit.tracin_layers import LastLayer


def influence_last(
    train: LastLayer, query: LastLayer, y: Tensor, *, damping: float = 1e-3, bias: bool = False
) -> np.ndarray:
    r"""Influence functions on the last layer (Inf-Last): :math:`\tfrac1n g'^\top (H + \lambda I)^{-1} g_i`.

    H is the Hessian of the *mean* cross-entropy in the last layer's weight, in closed form. The paper's is that of the
    sum, without the :math:`1/n`: the same number with a damping of :math:`n \lambda`. Softmax leaves a shift of all
    classes free, so H is singular and some damping is needed.

    Sign: positive = helpful.

    Args:
        train: n training texts, with the cross-entropy as their loss.
        query: q texts with any loss.
        y: Labels of the training texts, ``(n,)``.
        damping: :math:`\lambda`, in the units of H.
        bias: With the bias of the last layer.

    Returns:
        Scores ``(q, n)``, in the units of the query loss per removed text.

    Raises:
        ValueError: If the residuals are not those of the cross-entropy.
        torch.linalg.LinAlgError: If the damped Hessian is singular.
    """
    a, r, b, s = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (*train, *query))
    (n, classes), width = r.shape, a.shape[1]
    probabilities = r + torch.nn.functional.one_hot(y.cpu(), classes)
    matrix = softmax_hessian(a, probabilities)
    if not bias:
        matrix = matrix[: classes * width, : classes * width]
    gradients = (s.unsqueeze(2) * b.unsqueeze(1)).flatten(1)  # (q, classes * width)
    solved = exact(matrix, damping)(torch.cat([gradients, s], 1) if bias else gradients)
    weight = solved[:, : classes * width].unflatten(1, (classes, width))
    pulled = weight @ a.T  # (q, classes, n)
    if bias:
        pulled = pulled + solved[:, classes * width :].unsqueeze(2)
    return ((pulled * r.T).sum(1) / n).numpy()


def representer_points(
    features: np.ndarray, y: Tensor, query_features: np.ndarray, query_y: Tensor, *, l2: float = 1e-3
) -> np.ndarray:
    r"""Representer points (Yeh et al. 2018; equation 1 of the TracIn-WE paper), on a last layer that is refitted first.

    .. math:: -\frac{1}{\gamma n}\, \frac{\partial \ell(x)}{\partial f_j(x)}\; a \cdot a'

    with j the label of the query. They rest on the last layer being the optimum of the mean cross-entropy plus
    :math:`\tfrac\gamma2 \|W\|^2` (the paper's :math:`\lambda` is :math:`\gamma / 2`), so it is brought there
    (:func:`refit_last_layer`). The scores of all training texts then add up to the query's logit, exactly.

    Sign: positive = helpful: without the text the logit of the query's label falls. The paper's minus is right here.

    Args:
        features: What enters the last layer for n training texts, ``(n, h)``.
        y: Their labels, ``(n,)``.
        query_features: ``(q, h)``.
        query_y: ``(q,)``.
        l2: :math:`\gamma`.

    Returns:
        Scores ``(q, n)``, in units of the logit.
    """
    a = torch.from_numpy(np.asarray(features, dtype=np.float64))
    weight = refit_last_layer(features, y, l2=l2, classes=int(max(y.max(), query_y.max())) + 1)
    residuals = torch.softmax(a @ weight.T, 1) - torch.nn.functional.one_hot(y.cpu(), len(weight))
    alike = np.asarray(query_features, dtype=np.float64) @ a.numpy().T  # (q, n)
    return -alike * residuals[:, query_y.cpu()].T.numpy() / (l2 * len(a))


def refit_last_layer(features: np.ndarray, y: Tensor, *, l2: float, classes: int | None = None) -> Tensor:
    r"""The weight ``(classes, h)`` that minimises the mean cross-entropy plus :math:`\tfrac\gamma2 \|W\|^2`: no bias.

    Newton's method with a line search; the gradient at the end is below 1e-10.

    Args:
        features: ``(n, h)``; append a column of ones for a bias, which is then penalised too.
        y: Labels, ``(n,)``.
        l2: :math:`\gamma`, above 0.
        classes: Number of classes. None: up to the largest label.

    Raises:
        ValueError: If ``l2`` is not positive.
        NotConverged: If 100 steps are not enough.

    >>> refit_last_layer(np.array([[1.0], [1.0]]), torch.tensor([0, 1]), l2=1.0)
    tensor([[0.],
            [0.]], dtype=torch.float64)
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}: without it the optimum does not exist or is not unique")
    x = torch.from_numpy(np.asarray(features, dtype=np.float64))
    target = torch.nn.functional.one_hot(y.cpu(), classes or -1).double()
    weight = x.new_zeros(target.shape[1], x.shape[1])

    def objective(w: Tensor) -> Tensor:
        return -(torch.log_softmax(x @ w.T, 1) * target).sum(1).mean() + l2 / 2 * w.square().sum()

    for _ in range(100):
        probabilities = torch.softmax(x @ weight.T, 1)
        slope = (probabilities - target).T @ x / len(x) + l2 * weight  # (classes, h)
        if slope.norm() < 1e-10:
            return weight
        matrix = softmax_hessian(x, probabilities, l2)[: weight.numel(), : weight.numel()]
        step, length = exact(matrix)(slope.flatten()).reshape(weight.shape), 1.0
        value, fall = objective(weight), (step * slope).sum()
        while objective(weight - length * step) > value - 1e-4 * length * fall + 1e-14 and length > 1e-6:
            length /= 2
        weight = weight - length * step
    raise NotConverged(f"the last layer did not converge: |gradient| is {slope.norm():.1e}; raise l2")


def tfidf_similarity(train_texts: Sequence[str], query_texts: Sequence[str]) -> np.ndarray:
    """Cosine ``(q, n)`` of TF-IDF vectors, 0 to 1; words and their weights are the training texts'.

    >>> tfidf_similarity(["a good film", "a bad day"], ["good film"]).round(2)
    array([[1., 0.]])
    """
    vectors = TfidfVectorizer()
    train = vectors.fit_transform(train_texts)
    return (vectors.transform(query_texts) @ train.T).toarray()


def bm25(train_texts: Sequence[str], query_texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    r"""Okapi BM25 of every training text for every query, ``(q, n)``, 0 or more.

    .. math:: \sum_{w \in q} \log\Bigl(1 + \frac{n - n_w + \frac12}{n_w + \frac12}\Bigr)
              \frac{t_w (k_1 + 1)}{t_w + k_1 (1 - b + b L / \bar L)}

    over the words of the query as often as they stand there; :math:`n_w` training texts have the word, this one
    :math:`t_w` times among its L words (Robertson & Zaragoza 2009, with the logarithm that is never negative).

    Args:
        train_texts: n texts.
        query_texts: q texts.
        k1: How soon more of the same word stops to count.
        b: How much long texts are held back, 0 to 1.
    """
    counter = CountVectorizer()
    counts = counter.fit_transform(train_texts).astype(np.float64).tocoo()  # (n, words)
    n, lengths = counts.shape[0], np.asarray(counts.sum(1)).ravel()
    holders = np.bincount(counts.col, minlength=counts.shape[1])
    idf = np.log1p((n - holders + 0.5) / (holders + 0.5))
    damped = k1 * (1 - b + b * lengths / lengths.mean())
    counts.data = idf[counts.col] * counts.data * (k1 + 1) / (counts.data + damped[counts.row])
    return (counter.transform(query_texts).astype(np.float64) @ counts.T).toarray()


def embedding_similarity(features: np.ndarray, query_features: np.ndarray) -> np.ndarray:
    """Cosine ``(q, n)`` of features, such as those that enter the last layer; 0 where one of them is zero.

    >>> embedding_similarity(np.array([[3.0, 0.0], [0.0, -2.0]]), np.array([[1.0, 1.0]])).round(3)
    array([[ 0.707, -0.707]])
    """
    train, query = (_unit(np.asarray(x, dtype=np.float64)) for x in (features, query_features))
    return query @ train.T


def signed_by_label(similarity: np.ndarray, y: Tensor, query_y: Tensor) -> np.ndarray:
    """A similarity as a score: plus for training texts of the query's class, minus for those of another.

    >>> signed_by_label(np.array([[0.9, 0.5]]), torch.tensor([0, 1]), torch.tensor([1]))
    array([[-0.9,  0.5]])
    """
    same = query_y.cpu().numpy()[:, None] == y.cpu().numpy()
    return np.where(same, similarity, -similarity)


def least_similar(similarity: np.ndarray, k: int) -> np.ndarray:
    """The k training texts least similar to each query, ``(q, k)``: the candidates of the no-overlap protocol.

    >>> least_similar(np.array([[0.5, 0.0, 0.2]]), 2)
    array([[1, 2]])
    """
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k must be 1 to {similarity.shape[1]}, got {k}")
    return np.argsort(similarity, axis=1, kind="stable")[:, :k]


def _unit(x: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(size > 0, size, 1)
