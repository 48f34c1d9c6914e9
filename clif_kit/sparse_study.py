"""The study of chapter 42: for each seed texts or images, a net, frozen features, a sparse and a dense last layer.

Everything that a seed says is one dictionary of numbers, kept on disk; :mod:`clif_kit.sparse_metrics` puts intervals on
them. The sparse layer is chosen on validation data that carry the same bias as the training data (as a user's would);
flips and accuracies are counted on test data.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder

import numpy as np
import torch

from clif_kit import (
    datasets,
    models,
    planted_toxicity,
    proximal,
    sparse,
    sparse_images,
    sparse_metrics,
    sparse_text,
    text_models,
    text_tasks,
    train,
)
from clif_kit.parallel import map_seeds
from clif_kit.planted_toxicity import INSULTS, NAMES, insert_word, remove_word
from clif_kit.sparse_text import TextNet, ToxicTexts
from clif_kit.store import Store, fingerprint

Run = dict[str, np.ndarray]
PLACES = ("inside", "end")
SOURCES = {"toxic": "jigsaw_5k", "tweets": "davidson", "digits": "digits", "mnist": "mnist_t10k"}  # real data
PROBES = {  # sentences by name; a name of a person goes into the braces, an insult into the brackets
    "president": "{} is the president",
    "black": "{} is black",
    "tall": "{} is tall",
    "insult": "{} is the president what a []",
    "insult_christian": "{} is the christian president what a []",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides a study, besides the seed.

    Attributes:
        data: ``planted``, ``toxic`` or ``tweets`` (texts); ``digits`` or ``mnist`` (images).
        sizes: Training, validation and test examples; the last is a maximum for images.
        rate: How often what is planted goes with its class, .5 to 1 for texts.
        width: Features.
        steps: Training steps of 64 examples.
        within: Points of validation accuracy that the sparse layer may cost.
        l1_ratio: Of the elastic net.
        n_lambdas: Points of the path.
        eps: The last penalty as a share of the first.
        tries: Texts at most into which each word is put.
        top: Words of a list; images of a panel.
        target: The class of the planted patch (images).
    """

    data: str
    sizes: tuple[int, int, int]
    rate: float = 0.85
    width: int = 64
    steps: int = 300
    within: float = 0.5
    l1_ratio: float = 0.99
    n_lambdas: int = 30
    eps: float = 0.005
    tries: int = 60
    top: int = 10
    target: int = 3


@dataclass(frozen=True)
class Layers:
    """The last layers on one set of frozen features.

    Attributes:
        path: The whole path.
        chosen: Position of the sparse layer in it.
        dense: A path of one point.
    """

    path: sparse.Path
    chosen: int
    dense: sparse.Path

    def weights(self, layer: str, row: int = 0) -> np.ndarray:
        """Weights of an output of the ``"sparse"`` or the ``"dense"`` layer, ``(h,)``; two classes have one output."""
        return (self.path.weights[self.chosen] if layer == "sparse" else self.dense.weights[0])[row].numpy()

    def predict(self, layer: str, z: np.ndarray) -> np.ndarray:
        """Classes, ``(n,)``."""
        logits = self.logits(layer, z)
        return (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else logits.argmax(1)

    def logits(self, layer: str, z: np.ndarray) -> np.ndarray:
        """Shape ``(n, outputs)``."""
        path, k = (self.path, self.chosen) if layer == "sparse" else (self.dense, 0)
        return z @ path.weights[k].numpy().T + path.bias[k].numpy()


def fit_layers(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], setting: Setting, classes: int
) -> Layers:
    """The path, the sparsest layer within so many points of the best on validation data, and the dense layer.

    Raises:
        ValueError: If that layer uses no feature at all.
    """
    (z, y), held = train, (torch.as_tensor(val[0]), torch.as_tensor(val[1]))
    y = torch.as_tensor(y).long()
    path = sparse.elastic_net_path(
        z, y, classes=classes, l1_ratio=setting.l1_ratio, n_lambdas=setting.n_lambdas, eps=setting.eps, tol=1e-3
    )
    chosen = sparse.select_sparse(path, path.accuracy(*held), setting.within)
    if not int(path.nonzero[chosen]):
        raise ValueError(
            f"the sparsest layer within {setting.within} points uses no feature, so it has nothing to show: "
            "lower `within`, or give the net more data or steps to learn from"
        )
    return Layers(path, chosen, sparse.dense(z, y, held, classes=classes, ridges=(0.1, 0.01, 1e-3)))


def fit_text(setting: Setting, seed: int) -> tuple[ToxicTexts, TextNet, dict[str, np.ndarray], Layers]:
    """Texts, net, standardised features by split, and layers of one seed."""
    data = sparse_text.toxic_texts(setting.data, setting.sizes, seed=seed, rate=setting.rate)
    net = sparse_text.train_net(data, seed=seed, filters=setting.width, steps=setting.steps)
    z = {split: net.features(texts) for split, texts in data.texts.items()}
    return data, net, z, fit_layers((z["train"], data.y["train"]), (z["val"], data.y["val"]), setting, 2)


def study_text(setting: Setting, seed: int) -> Run:
    """All numbers of a text task for a seed: accuracies, identity words in the lists, flips, probes."""
    data, net, z, layers = fit_text(setting, seed)
    words, c = sparse_text.contributions(net, data.texts["train"])
    control = set(data.control.values())
    run = _path_numbers(layers, z, data.y)
    k = len(sparse_metrics.features_used(layers.weights("sparse")))
    run["features"] = k
    for layer in ("sparse", "dense"):
        used = sparse_metrics.features_used(layers.weights(layer), k)
        lists = sparse_metrics.word_lists(words, c, used, setting.top)
        run[f"share/{layer}"] = sparse_metrics.listed_share(lists, data.identity)
        as_many = len(data.identity) / len(control)
        run[f"share/{layer}_control"] = as_many * sparse_metrics.listed_share(lists, control)
    run["share/chance"] = sparse_metrics.listed_share([words], data.identity)
    for layer in ("sparse", "dense"):
        run |= _flips(data, net, layers, layer, setting.tries)
    run |= probes(net, layers)
    return {name: np.asarray(value) for name, value in run.items()}


def _flips(data: ToxicTexts, net: TextNet, layers: Layers, layer: str, tries: int) -> dict[str, float]:
    """Insertions into texts without identity terms that are predicted the other way; removals from texts with one."""

    def predict(texts: Sequence[str]) -> np.ndarray:
        return layers.predict(layer, net.features(texts))

    rate = partial(sparse_metrics.flip_rate, predict, seen=sparse_text.words_of)  # the net sees the first words only
    out, texts = {}, data.texts["test"]
    held = [set(sparse_text.words_of(text)) for text in texts]
    now = predict(texts)
    for side, label in (("toxic", 1), ("clean", 0)):
        terms = data.sides[side]
        groups = {"identity": terms, "control": [data.control[term] for term in terms]}
        leaning = [word for term in terms for word in data.leaning.get(term, ())]
        other = [t for t, h, p in zip(texts, held, now, strict=True) if p != label and not h & data.identity][:tries]
        alike = [t for t, p in zip(texts, now, strict=True) if p == label]
        for group, words in groups.items():
            for place in PLACES:
                key = f"flip/{side}_{place}_{layer}/{group}"
                out[key] = rate(partial(insert_word, place=place), other, words)
            out[f"removal/{side}_{layer}/{group}"] = rate(remove_word, alike, words)
        if data.leaning and layer == "sparse":
            out[f"flip/{side}_inside_{layer}/leaning"] = rate(partial(insert_word, place="inside"), other, leaning)
    return out


def probes(net: TextNet, layers: Layers, layer: str = "sparse") -> dict[str, float]:
    """Probe sentences over all names and insults: mean probability of toxic, and per cent that are called toxic."""
    out = {}
    for name, form in PROBES.items():
        insults = INSULTS if "[]" in form else ("",)
        texts = [form.format(person).replace("[]", insult) for person in NAMES for insult in insults]
        logits = layers.logits(layer, net.features(texts))[:, 0]
        out[f"probability/{name}"] = float((1 / (1 + np.exp(-logits))).mean())
        out[f"toxic/{name}"] = 100 * float((logits > 0).mean())
    return out


def fit_images(setting: Setting, seed: int) -> tuple[dict, sparse_images.ImageNet, dict[str, np.ndarray], Layers]:
    """Patched images by split (the test set is left clean), net, standardised features, and layers of one seed."""
    source = datasets.digits() if setting.data == "digits" else datasets.mnist_test()
    order = np.random.default_rng([5, seed]).permutation(len(source.y))
    a, b, _ = np.cumsum(setting.sizes)
    if b >= len(order):
        raise ValueError(f"{setting.data} has {len(order)} images: training and validation leave none to test on")
    parts = {"train": order[:a], "val": order[a:b], "test": order[b : sum(setting.sizes)]}
    plant = partial(sparse_images.plant_patches, target=setting.target)
    rates = {"train": (setting.rate, 0.02), "val": (setting.rate, 0.02), "test": (0.0, 0.0)}
    data = {
        name: plant(source.x[rows], source.y[rows], seed=10 * seed + i, rate=rates[name][0], elsewhere=rates[name][1])
        for i, (name, rows) in enumerate(parts.items())
    }
    net = sparse_images.train_image_net(data["train"], seed=seed, width=setting.width, steps=setting.steps)
    z = {name: net.features(part.x) for name, part in data.items()}
    layers = fit_layers((z["train"], data["train"].y), (z["val"], data["val"].y), setting, int(source.y.max()) + 1)
    return data, net, z, layers


def study_images(setting: Setting, seed: int) -> Run:
    """All numbers of the planted patch for a seed: accuracies, whether its feature is found, flips, panels."""
    data, net, z, layers = fit_images(setting, seed)
    run, test, target = (
        _path_numbers(layers, z, {name: part.y for name, part in data.items()}),
        data["test"],
        setting.target,
    )
    effect = np.abs(sparse_images.patch_effect(net, test.clean))
    own, used = int(effect.argmax()), sparse_metrics.features_used(layers.weights("sparse", target))
    run["features"], run["found/chance"] = len(used), 100 * len(used) / len(effect)
    run["found/sparse"] = 100 * float(own in used)
    run["found/dense"] = 100 * float(own in sparse_metrics.features_used(layers.weights("dense", target), len(used)))
    sign = np.sign(layers.weights("dense", target)[own])
    panel = np.argsort(-sign * z["train"][:, own], kind="stable")[: setting.top]
    run["panel/patch"], run["panel/all"] = 100 * data["train"].patch[panel].mean(), 100 * data["train"].patch.mean()
    for layer in ("sparse", "dense"):
        plain = layers.predict(layer, z["test"])
        for corner in ("patch", "control"):
            marked = layers.predict(layer, net.features(sparse_images.stamp(test.clean, corner)))
            other = (test.y != target) & (plain != target)
            run[f"flip/{corner}/{layer}"] = 100 * float((marked == target)[other].mean())  # a shortcut leads there
            alike = (test.y == target) & (marked == target)
            run[f"removal/{corner}/{layer}"] = 100 * float((marked != plain)[alike].mean()) if alike.any() else np.nan
    return {name: np.asarray(value) for name, value in run.items()}


def _path_numbers(layers: Layers, z: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> dict:
    outputs = layers.path.weights.shape[1]
    found = {"path/features": layers.path.nonzero.numpy() / outputs, "chosen": layers.chosen}
    for split in ("val", "test"):
        found[f"path/{split}"] = 100 * layers.path.accuracy(z[split], y[split]).numpy()
        found[f"path/dense_{split}"] = 100 * layers.dense.accuracy(z[split], y[split]).numpy()
    found["accuracy/sparse"] = found["path/test"][layers.chosen]
    found["accuracy/dense"] = found["path/dense_test"][0]
    return found


def run_study(
    setting: Setting, seeds: Sequence[int], folder: str | Folder, *, n_jobs: int = 1, progress: bool = False
) -> list[Run]:
    """One run a seed, from the disk where it is there; changed code or settings start afresh."""
    study = study_images if setting.data in ("digits", "mnist") else study_text
    code = (sys.modules[__name__], planted_toxicity, proximal, sparse, sparse_images, sparse_metrics, sparse_text)
    below = (datasets, models, text_models, text_tasks, train)
    source = datasets.provenance(SOURCES[setting.data])["sha256"] if setting.data in SOURCES else "generated"
    mark = fingerprint(study, setting, code, below, source, torch.__version__)
    store = Store(Folder(folder) / mark[:16], fingerprint=mark)
    return map_seeds(partial(study, setting), list(seeds), store=store, n_jobs=n_jobs, progress=progress)
