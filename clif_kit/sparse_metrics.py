"""What a debugged layer says, as numbers: share of planted words in its lists, flips by insertion, by seed.

A seed is a unit: it has its own net and layers, and its own data where they are generated. Real texts and images are
cut anew from one sample, so there the intervals say how much cut and net matter, not what other data would give. Layers
of one seed share data and net, so they are compared in pairs. There are few seeds, so intervals are Student's.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from clif_kit.evaluate import Interval
from clif_kit.tuning_metrics import share, student

Metrics = dict[str, Interval | float]


def features_used(weights: np.ndarray, k: int | None = None) -> np.ndarray:
    """Features with a weight, heaviest first; ``k`` keeps that many (the same for a dense layer as for a sparse one).

    >>> features_used(np.array([0.0, -3.0, 1.0])), features_used(np.array([0.5, -3.0, 1.0]), 2)
    (array([1, 2]), array([1, 2]))
    """
    order = np.argsort(-np.abs(weights), kind="stable")
    order = order[weights[order] != 0]
    return order if k is None else order[:k]


def word_lists(words: Sequence[str], c: np.ndarray, features: Sequence[int], n: int) -> list[list[str]]:
    """The ``n`` words that move each feature most, up or down.

    Args:
        words: Of the rows of ``c``.
        c: Contributions of words to features, ``(words, h)``.
        features: Of which features.
        n: Words a list.

    >>> word_lists(["a", "b", "c"], np.array([[0.1, 2.0], [-3.0, 1.0], [1.0, 0.0]]), [0, 1], 2)
    [['b', 'c'], ['a', 'b']]
    """
    return [[words[i] for i in np.argsort(-np.abs(c[:, f]), kind="stable")[:n]] for f in features]


def listed_share(lists: Sequence[Sequence[str]], terms: Collection[str]) -> float:
    """Share of all entries of the lists that are among the terms, in per cent.

    Raises:
        ValueError: If there is no list: the layer uses no feature.

    >>> listed_share([["a", "b"], ["a", "c"]], {"a"})
    50.0
    """
    entries = [word for words in lists for word in words]
    if not entries:
        raise ValueError("the layer uses no feature, so there are no words to read: lower `within`, or train longer")
    return 100 * float(np.mean([word in terms for word in entries]))


def flip_rate(
    predict: Callable[[Sequence[str]], np.ndarray],
    change: Callable[[str, str], str],
    texts: Sequence[str],
    words: Sequence[str],
    seen: Callable[[str], object] = str,
) -> float:
    """Share of the predictions that turn when a word is put into (or taken out of) a text, in per cent.

    Args:
        predict: Classes of texts.
        change: The text with (or without) the word.
        texts: All pairs of a text and a word are tried whose change the classifier can see.
        words: Likewise.
        seen: What it sees of a text, for example its first 60 words.

    Returns:
        NaN if there is no pair.

    >>> shout = lambda texts: np.array(["!" in text for text in texts])
    >>> flip_rate(shout, lambda text, word: text + word, ["a", "b!"], ["!", "?"])
    25.0
    """
    pairs = [(i, change(text, word)) for word in words for i, text in enumerate(texts)]
    before = [seen(text) for text in texts]
    pairs = [(i, new) for i, new in pairs if seen(new) != before[i]]
    if not pairs:
        return float("nan")
    old, now = np.asarray(predict(texts))[[i for i, _ in pairs]], np.asarray(predict([new for _, new in pairs]))
    return 100 * float(np.mean(old != now))


def column(runs: Sequence[Mapping[str, np.ndarray]], key: str) -> np.ndarray:
    """One number a run; runs that could not try anything (NaN) are left out."""
    values = np.array([float(run[key]) for run in runs])
    return values[np.isfinite(values)]


def mean_metric(runs: Sequence[Mapping[str, np.ndarray]], key: str, unit: str = "per cent") -> Interval | None:
    """Student's interval over seeds; None with fewer than two seeds that have the number."""
    values = column(runs, key)
    return student(values, unit) if len(values) > 1 else None


def gap_metric(runs: Sequence[Mapping[str, np.ndarray]], key: str, other: str, unit: str = "points") -> Interval | None:
    """The paired difference ``key - other`` over the seeds that have both.

    >>> gap_metric([{"a": 3.0, "b": 1.0}, {"a": 5.0, "b": 3.0}], "a", "b").value
    2.0
    """
    pairs = np.array([[float(run[key]), float(run[other])] for run in runs])
    pairs = pairs[np.isfinite(pairs).all(1)]
    return student(pairs[:, 0] - pairs[:, 1], unit) if len(pairs) > 1 else None


def text_metrics(runs: Sequence[Mapping[str, np.ndarray]], data: str) -> Metrics:
    """All metrics of a text task from the runs of :func:`clif_kit.sparse_study.study_text`.

    Returns:
        ``accuracy/<layer>/<data>``, ``accuracy_gain/sparse_minus_dense/<data>``, ``share_identity/<layer>/<data>``,
        ``share_identity_gain/sparse_minus_<dense|chance>/<data>``, and for each side, place and layer
        ``flip_rate/<side>_<place>_<layer>/<data>``, its control, and ``flip_gain/..._minus_control/<data>``; the same
        for removal; ``flip_gain/<side>_<place>_sparse_minus_leaning/<data>`` on real texts and
        ``flip_gain/<side>_<place>_dense_minus_sparse/<data>`` (of the gains); probes under ``toxic_...``.
    """
    found: dict[str, Interval | float | None] = {"n/seeds/" + data: len(runs)}
    for layer in ("sparse", "dense"):
        found[f"accuracy/{layer}/{data}"] = mean_metric(runs, f"accuracy/{layer}")
        found[f"share_identity/{layer}/{data}"] = mean_metric(runs, f"share/{layer}")
    found[f"share_identity/chance/{data}"] = mean_metric(runs, "share/chance")
    found[f"features/sparse/{data}"] = mean_metric(runs, "features", "features")
    found[f"accuracy_gain/sparse_minus_dense/{data}"] = gap_metric(runs, "accuracy/sparse", "accuracy/dense")
    for layer, other in (("sparse", "dense"), ("sparse", "chance"), ("dense", "chance")):
        key = f"share_identity_gain/{layer}_minus_{other}/{data}"
        found[key] = gap_metric(runs, f"share/{layer}", f"share/{other}")
    found[f"share_identity_gain/sparse_minus_control/{data}"] = gap_metric(runs, "share/sparse", "share/sparse_control")
    for key in [key for key in runs[0] if key.startswith(("flip/", "removal/")) and key.endswith("/identity")]:
        kind, what, _ = key.split("/")
        found[f"{kind}_rate/{what}/{data}"] = mean_metric(runs, key)
        found[f"{kind}_rate/{what}_control/{data}"] = mean_metric(runs, f"{kind}/{what}/control")
        found[f"{kind}_gain/{what}_minus_control/{data}"] = gap_metric(runs, key, f"{kind}/{what}/control")
        if f"{kind}/{what}/leaning" in runs[0]:
            found[f"{kind}_rate/{what}_leaning/{data}"] = mean_metric(runs, f"{kind}/{what}/leaning")
            found[f"{kind}_gain/{what}_minus_leaning/{data}"] = gap_metric(runs, key, f"{kind}/{what}/leaning")
        if kind == "flip" and what.endswith("_dense"):
            where = what.removesuffix("_dense")
            gains = [{layer: _gain(run, f"flip/{where}_{layer}") for layer in ("dense", "sparse")} for run in runs]
            found[f"flip_gain/{where}_dense_minus_sparse/{data}"] = gap_metric(gains, "dense", "sparse")
    return {key: value for key, value in (found | probe_metrics(runs, data)).items() if value is not None}


def _gain(run: Mapping[str, np.ndarray], key: str) -> float:
    return float(run[f"{key}/identity"]) - float(run[f"{key}/control"])


def probe_metrics(runs: Sequence[Mapping[str, np.ndarray]], data: str) -> dict[str, Interval | None]:
    """The probe sentences under the sparse layer: probabilities of toxic, and gaps between two of them."""
    found = {}
    for name in ("insult", "president"):
        found[f"toxic_probability/{name}/probe_{data}"] = mean_metric(runs, f"probability/{name}", "probability")
    for name in ("black", "president"):
        found[f"toxic_rate/{name}/probe_{data}"] = mean_metric(runs, f"toxic/{name}")
    found[f"toxic_rate_gap/black_minus_president/probe_{data}"] = gap_metric(runs, "toxic/black", "toxic/president")
    found[f"toxic_rate_gap/black_minus_tall/probe_{data}"] = gap_metric(runs, "toxic/black", "toxic/tall")
    key = f"toxic_drop/insult_minus_insult_christian/probe_{data}"
    found[key] = gap_metric(runs, "probability/insult", "probability/insult_christian", "probability")
    return found


def image_metrics(runs: Sequence[Mapping[str, np.ndarray]], data: str) -> Metrics:
    """All metrics of the planted patch from the runs of :func:`clif_kit.sparse_study.study_images`."""
    found: dict[str, Interval | float | None] = {"n/seeds/" + data: len(runs)}
    for layer in ("sparse", "dense"):
        found[f"accuracy/{layer}/{data}"] = mean_metric(runs, f"accuracy/{layer}")
        for kind in ("flip", "removal"):
            found[f"{kind}_rate/spurious_patch_{layer}/{data}"] = mean_metric(runs, f"{kind}/patch/{layer}")
            found[f"{kind}_rate/unrelated_patch_{layer}/{data}"] = mean_metric(runs, f"{kind}/control/{layer}")
            key = f"{kind}_gain/spurious_patch_minus_unrelated_{layer}/{data}"
            found[key] = gap_metric(runs, f"{kind}/patch/{layer}", f"{kind}/control/{layer}")
    found[f"features/sparse/{data}"] = mean_metric(runs, "features", "features of the class")
    found[f"accuracy_gain/sparse_minus_dense/{data}"] = gap_metric(runs, "accuracy/sparse", "accuracy/dense")
    hits = column(runs, "found/sparse") > 50  # all or nothing in each seed, hence Wilson's interval
    found[f"share_found/patch_sparse/{data}"] = share(hits, "seeds", scale=100, unit="per cent")
    found[f"share_found_gain/patch_minus_chance/{data}"] = gap_metric(runs, "found/sparse", "found/chance")
    found[f"share_found_gain/patch_sparse_minus_dense/{data}"] = gap_metric(runs, "found/sparse", "found/dense")
    found[f"share_panel/patch/{data}"] = mean_metric(runs, "panel/patch")
    found[f"share_panel_gain/patch_minus_all/{data}"] = gap_metric(runs, "panel/patch", "panel/all")
    return {key: value for key, value in found.items() if value is not None}
