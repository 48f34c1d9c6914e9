r"""TracIn on any layer, on the last one in closed form, and the loss gradient weighed by a similarity of texts.

.. math:: \text{TracIn}_W(x, x') = \sum_c \eta_c\, \nabla_W \ell(x) \cdot \nabla_W \ell(x')

Scores of different tensors add up, so TR-second, TR-all, with or without biases, are sums of the same numbers. Sign:
the predicted change of the query loss when the training text is REMOVED: positive = helpful = proponent, as the prose
of Yeh et al. (2022) has it; their printed equations carry a minus. Units as in :mod:`clif_kit.tracin`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

from clif_kit.text_models import Params, each_loss, text_losses
from clif_kit.text_tokens import alike
from clif_kit.traced import Traced
from clif_kit.tracin import check_sides, tracin_we


class LastLayer(NamedTuple):
    """What the last layer sees of n texts: ``features`` that enter it, ``(n, h)``, and ``residuals``, ``(n, classes)``.

    Residuals are the gradients of each loss in the logits; with the cross-entropy, probability minus one-hot label.
    """

    features: np.ndarray
    residuals: np.ndarray


def last_layer(traced: Traced, c: int) -> LastLayer:
    """Features and residuals at checkpoint ``c``: one forward pass, and no backward pass through the model."""
    params, model, pieces = traced.checkpoints[c].params, traced.model, []
    device = params[model.embedding].device
    for rows in alike(traced.tokens.parts, traced.chunk):
        part, y = traced.tokens.take(rows).to(device), traced.y[rows].to(device)
        with torch.no_grad():
            embedded = model.embed(params, part.ids, part.parts)
            features = model.features(params, embedded, part.parts)
            logits = model.classify(params, embedded, features)
        pieces.append((rows, {"features": features, "residuals": _residuals(traced, logits, y)}))
    return LastLayer(**{name: value.cpu().numpy() for name, value in _joined(pieces).items()})


def tracin_last(train: Traced, query: Traced, *, bias: bool = False) -> np.ndarray:
    r"""TracIn on the weight of the last layer, in closed form (TR-last).

    .. math:: \sum_c \eta_c\, (a \cdot a' [+ 1])\, (r \cdot r')

    with features a and residuals r; the 1 is the bias, which the paper leaves out. For a model with tied embeddings
    this is the part of the table's gradient that flows through the last layer alone. Sign: positive = helpful.

    Args:
        train: n training texts.
        query: q texts; their loss is the query loss.
        bias: With the bias of the last layer.

    Returns:
        Scores ``(q, n)``, float64, in the units of the query loss.
    """
    check_sides(train, query)
    out = np.zeros((len(query), len(train)))
    for c, point in enumerate(train.checkpoints):
        a, b = last_layer(query, c), last_layer(train, c)
        out += point.lr * (a.features @ b.features.T + float(bias)) * (a.residuals @ b.residuals.T)
    return out


def tracin_similarity(similarity: np.ndarray, train: Traced, query: Traced) -> np.ndarray:
    r"""A similarity of texts times the loss gradients in the logits: TR-TFIDF (equation 7 of the paper).

    .. math:: \sum_c \eta_c\, S(x, x')\, \frac{\partial \ell(x)}{\partial f} \cdot \frac{\partial \ell(x')}{\partial f}

    Sign: positive = helpful, where similarities are not negative and the labels agree.

    Args:
        similarity: ``(q, n)``, see :func:`clif_kit.baselines.tfidf_similarity`.
        train: n training texts.
        query: q texts.

    Returns:
        Scores ``(q, n)``, float64.

    Raises:
        ValueError: If the similarity has another shape.
    """
    check_sides(train, query)
    if similarity.shape != (len(query), len(train)):
        raise ValueError(
            f"similarity is {similarity.shape}, need {(len(query), len(train))}: queries by training texts"
        )
    out = np.zeros(similarity.shape)
    for c, point in enumerate(train.checkpoints):
        out += point.lr * (last_layer(query, c).residuals @ last_layer(train, c).residuals.T)
    return similarity * out


def tracin_layers(
    train: Traced, query: Traced, names: Sequence[str] | None = None, *, chunk: int = 16, progress: bool = False
) -> dict[str, np.ndarray]:
    """TracIn scores ``(q, n)`` of every parameter tensor by itself; :func:`by_layer` adds them up.

    The table of word vectors goes the sparse way of :func:`clif_kit.tracin.tracin_we`; the others by one gradient an
    example, ``chunk`` of them at a time, and all queries in memory. Sign: positive = helpful.

    Args:
        train: n training texts.
        query: q texts.
        names: Parameters. None: all of the model.
        chunk: Gradients in memory at a time.
        progress: Draw a bar on the error stream.

    Raises:
        ValueError: If a name is no parameter of the model.
    """
    check_sides(train, query)
    model = train.model
    names = list(model.shapes if names is None else names)
    if unknown := [name for name in names if name not in model.shapes]:
        raise ValueError(f"{unknown[0]!r} is no parameter of the model; there are {', '.join(model.shapes)}")
    dense = [name for name in names if name != model.embedding]
    out = {name: np.zeros((len(query), len(train))) for name in names}
    if model.embedding in names:
        out[model.embedding] = tracin_we(train, query).total
    for c, point in enumerate(train.checkpoints if dense else ()):
        asked = _joined(example_gradients(query, c, dense, chunk=chunk))
        for rows, found in tqdm(example_gradients(train, c, dense, chunk=chunk), disable=not progress):
            for name in dense:
                out[name][:, rows.numpy()] += point.lr * (asked[name] @ found[name].T).double().cpu().numpy()
    return out


def by_layer(scores: Mapping[str, np.ndarray], layers: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Sum scores of tensors to scores of layers, such as those of :meth:`clif_kit.text_models.TextModel.layers`.

    >>> by_layer({"a.weight": np.array([1.0]), "a.bias": np.array([3.0])}, {"a": ["a.weight", "a.bias"]})
    {'a': array([4.])}
    """
    return {layer: np.sum([scores[name] for name in names], axis=0) for layer, names in layers.items()}


def example_gradients(
    traced: Traced, c: int, names: Sequence[str], *, chunk: int = 16
) -> Iterator[tuple[Tensor, Params]]:
    """Each example's gradient in the named tensors at checkpoint ``c``: ``(rows, {name: (b, p_name)})``, in pieces.

    Rows say which examples a piece holds: those of like length come together.
    """
    params = traced.checkpoints[c].params
    device = params[traced.model.embedding].device
    chosen = {name: params[name].detach() for name in names}
    losses = text_losses(traced.model, traced.loss, {n: v.detach() for n, v in params.items() if n not in chosen})

    def one(theta: Params, *example: Tensor) -> Tensor:
        return losses(theta, *(value.unsqueeze(0) for value in example)).squeeze(0)

    for rows in alike(traced.tokens.parts, chunk):
        part, y = traced.tokens.take(rows).to(device), traced.y[rows].to(device)
        found = vmap(grad(one), in_dims=(None, 0, 0, 0))(chosen, part.ids, part.parts, y)
        yield rows, {name: value.flatten(1) for name, value in found.items()}


def _joined(pieces: Iterable[tuple[Tensor, Params]]) -> Params:
    """All pieces in the order of the examples."""
    rows, found = zip(*pieces, strict=True)
    order = torch.argsort(torch.cat(rows))
    return {name: torch.cat([piece[name] for piece in found])[order] for name in found[0]}


def _residuals(traced: Traced, logits: Tensor, y: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    (found,) = torch.autograd.grad(each_loss(traced.loss, leaf, y).sum(), leaf)
    return found
