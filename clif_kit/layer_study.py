r"""The layers of a text classifier side by side: how much they cancel, how alike their gradients are, what they score.

Layers go by the words of Yeh et al. (2022): ``first`` is the table of word vectors, ``last`` the last linear layer,
``second``, ``third`` ... are the convolutions of the CNN or the blocks of a transformer. Weights only; ``bias`` is all
biases, ``all`` is all weights (a transformer's positions, normalisations and pooler among them).

Sign of scores: the predicted change of the query loss when the training text is REMOVED, positive = proponent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clif_kit import cancellation as cancellation_module
from clif_kit.cancellation import cancellation, gradient_cosines, mean_cosine
from clif_kit.evaluate import Interval, interval, paired_difference, spearman
from clif_kit.parallel import map_seeds
from clif_kit.store import Store, fingerprint
from clif_kit.text_models import TextModel, text_losses
from clif_kit.text_scores import layer_scores, trace
from clif_kit.text_study import TextStudy, accuracy, train_text
from clif_kit.text_tokens import alike
from clif_kit.text_truth import truth_store
from clif_kit.traced import Traced
from clif_kit.train import Checkpoint, Fitted

ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")
DEPTH = ("first", "second", "third", "last")  # what the paper calls the layers of its CNN; its 1-wide one has no name
UNITS = {
    "cancellation": "ratio",
    "cancellation_sum": "ratio",
    "gradient_sum": "norm",
    "weight_change": "norm",
    "accuracy": "per cent",
}


# ---- layers


def layer_names(model: TextModel) -> dict[str, str]:
    """The layer of :meth:`clif_kit.text_models.TextModel.layers` behind each of our names, from first to last.

    >>> from clif_kit.text_models import text_cnn
    >>> layer_names(text_cnn(rows=9, classes=2, width=4)[0])
    {'first': 'embedding', 'second': 'conv1', 'third': 'conv2', 'fourth': 'conv3', 'last': 'head'}
    """
    keys, first = list(model.layers()), model.embedding.rpartition(".")[0]
    blocks = [key for key in keys if key.startswith("layer.")]
    middle = blocks or [key for key in keys if key not in (first, model.head)]
    return {"first": first, **dict(zip(ORDINALS, middle, strict=False)), "last": model.head}


def layer_groups(model: TextModel) -> dict[str, tuple[str, ...]]:
    """Parameter names of every layer (weights), of ``all`` weights and of every ``bias``."""
    weights = model.layers()
    found = {name: weights[key] for name, key in layer_names(model).items()}
    every = tuple(name for names in weights.values() for name in names)
    return found | {"all": every, "bias": tuple(name for name in model.shapes if name.endswith("bias"))}


def layer_tracin(study: TextStudy, fitted: Fitted) -> dict[str, np.ndarray]:
    """TracIn of each layer, ``(tests, n)``: ``tr_first`` ... ``tr_last``, ``tr_all`` and ``tracin_with_bias``."""
    scores = layer_scores(study, fitted)
    found = {f"tr_{name}": scores[key] for name, key in layer_names(study.model).items()}
    return found | {"tr_all": scores["all"], "tracin_with_bias": scores["all_with_bias"]}


# ---- one training run


def run_traced(study: TextStudy, seed: int) -> Traced:
    """The training texts at the start and after every epoch of one training run."""
    every = replace(study, recipe=replace(study.recipe, checkpoints=study.recipe.epochs))
    fitted = train_text(every, seed)
    start = Checkpoint(study.start(seed), study.recipe.lr, 0)
    return trace(study, replace(fitted, checkpoints=(start, *fitted.checkpoints)))[0]


def layer_numbers(
    study: TextStudy, seed: int, *, texts: int = 0, layers: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    r"""Train once and measure every layer.

    Args:
        study: Task, model, recipe.
        seed: Of the training run.
        texts: Validation texts whose gradients at the end are compared, pair by pair. 0: none.
        layers: Names of :func:`layer_groups`; those that are frozen have no ratio. None: all.

    Returns:
        Scalars by ``<quantity>/<layer>``: ``cancellation`` :math:`C(W) = \sum_c G_c / \sum_c \Delta_c`,
        ``gradient_sum``, ``weight_change``; ``cancellation_sum``, the same with the length of the summed gradients
        below, whatever the optimiser made of them (1: nothing cancels); mean ``cosine`` over pairs of different texts,
        ``cosine_same`` and ``cosine_other`` over pairs of one and of two classes; and ``accuracy/model``, per cent of
        the validation texts.

    Raises:
        ValueError: If a layer is frozen.
    """
    run, groups, recipe = run_traced(study, seed), layer_groups(study.model), study.recipe
    groups = {name: groups[name] for name in layers or groups}
    steps = -(-len(study.train) // recipe.batch_size)
    out = {"accuracy/model": 100 * accuracy(study, run.checkpoints[-1].params)}
    for layer, one in cancellation(run, groups, steps=steps).items():
        out |= {f"cancellation/{layer}": one.ratio, f"gradient_sum/{layer}": one.g.sum()}
        out[f"weight_change/{layer}"] = one.delta.sum()
    lengths = sum_lengths(run, groups)
    out |= {f"cancellation_sum/{layer}": out[f"gradient_sum/{layer}"] / length for layer, length in lengths.items()}
    if texts:
        y = study.labels("val")[:texts]
        unseen = run.of(study.val.take(slice(0, texts)), y)
        same = (y[:, None] == y).numpy()
        for layer, cosines in gradient_cosines(unseen, groups).items():
            out[f"cosine/{layer}"] = mean_cosine(cosines)
            out[f"cosine_same/{layer}"] = mean_cosine(np.where(same, cosines, np.nan))
            out[f"cosine_other/{layer}"] = mean_cosine(np.where(same, np.nan, cosines))
    return {name: np.array(value, dtype=float) for name, value in out.items()}


def sum_lengths(run: Traced, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    r"""By layer :math:`\sum_c \eta_c \| \sum_i \nabla_W \ell(x_i; \theta_c) \|`, over all checkpoints but the last."""
    out = dict.fromkeys(groups, 0.0)
    losses = text_losses(run.model, run.loss)
    for point in run.checkpoints[:-1]:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in point.params.items()}
        for rows in alike(run.tokens.parts, run.chunk):
            part = run.tokens.take(rows)
            losses(leaves, part.ids, part.parts, run.y[rows]).sum().backward()
        for layer, names in groups.items():
            squares = sum(float(leaves[name].grad.double().square().sum()) for name in names)
            out[layer] += point.lr * squares**0.5
    return out


def many_numbers(
    study: TextStudy, seeds: Sequence[int], *, folder: str | Path, texts: int = 0, layers: Sequence[str] | None = None,
    n_jobs: int = 2,
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """:func:`layer_numbers` of several seeds; those that ``folder`` has are read.

    Args:
        study: As there.
        seeds: Each once.
        folder: Where stores lie.
        texts: As there.
        layers: As there.
        n_jobs: Processes.
    """
    mark = fingerprint(
        truth_store(study, folder).fingerprint,
        layer_numbers,
        sum_lengths,
        run_traced,
        layer_groups,
        layer_names,
        cancellation_module,
        texts,
        list(layers or ()),
    )
    store = Store(Path(folder) / f"layers-{mark[:16]}", fingerprint=mark)

    def one(seed: int) -> dict[str, np.ndarray]:
        return layer_numbers(study, seed, texts=texts, layers=layers)

    return map_seeds(one, seeds, store=store, n_jobs=n_jobs, progress=False)


# ---- over several runs


def layer_metrics(
    runs: Sequence[Mapping[str, np.ndarray]], where: str, depth: Sequence[str] = DEPTH
) -> dict[str, Interval]:
    """Means over training runs with their intervals, and the differences that the paper makes claims about.

    Args:
        runs: From :func:`layer_numbers`, two or more.
        where: Data and model, as in ``cancellation/first/agnews_cnn``.
        depth: Layers in order, for the rank correlations with depth.

    Returns:
        ``<quantity>/<layer>/<where>`` for every number but the accuracy; ``<quantity>_gap/<a>_minus_<b>/<where>``;
        ``spearman/depth_<quantity>/<where>``. ``weight`` is another name of ``all``.
    """
    values = {name: np.array([float(run[name]) for run in runs]) for name in runs[0] if name != "accuracy/model"}
    for name in [name for name in values if name.endswith("/all") and not name.startswith("cosine")]:
        values[f"{name.removesuffix('all')}weight"] = values[name]
    out = {f"{name}/{where}": _mean(value, UNITS.get(name.partition("/")[0], "")) for name, value in values.items()}
    rising = ("cancellation", "cancellation_sum", "cosine")
    gaps = [
        ("cancellation", "bias", "weight"),
        ("cancellation_sum", "bias", "weight"),
        ("gradient_sum", "bias", "weight"),
        ("weight_change", "weight", "bias"),
    ]
    for what, a, b in (*gaps, *((what, "last", "first") for what in rising)):
        if f"{what}/{a}" in values and f"{what}/{b}" in values:
            found = paired_difference(values[f"{what}/{a}"], values[f"{what}/{b}"], "trainings", UNITS.get(what, ""))
            out[f"{what}_gap/{a}_minus_{b}/{where}"] = found
    for what in rising:
        if all(f"{what}/{layer}" in values for layer in depth):
            table = np.stack([values[f"{what}/{layer}"] for layer in depth], axis=1)  # (runs, layers)
            out[f"spearman/depth_{what}/{where}"] = interval(_depth, table, over="trainings", unit="rho")
    return out


def relative(
    runs: Sequence[Mapping[str, np.ndarray]], what: str = "cancellation", layers: Sequence[str] = DEPTH
) -> list[float]:
    """Cancellation of each layer over that of all weights of its model, mean over runs: what two models can share.

    The ratio itself grows with the number of texts, and depends on the optimiser.
    """
    return [float(np.mean([run[f"{what}/{name}"] / run[f"{what}/all"] for run in runs])) for name in layers]


def _mean(values: np.ndarray, unit: str) -> Interval:
    return interval(np.mean, values, over="trainings", unit=unit, keep_values=True)


def _depth(table: np.ndarray) -> float:
    return spearman(range(table.shape[1]), table.mean(0))
