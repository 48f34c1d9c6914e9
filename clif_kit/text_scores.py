r"""Every score of the TracIn chapters for one trained model, by name, ``(tests, n)`` each and with one sign.

Sign: the predicted change of the query loss when the training text is REMOVED; positive = proponent. The query loss is
the cross-entropy of a test text. Which formula stands behind a name is said in ``FORMULAS``, as
:math:`L(x)\, S(x, x')\, L(x')` where it can be: a saliency of the training text, a similarity, a saliency of the test
text (Yeh et al. 2022, section 2.1).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from clif_kit.baselines import bm25, embedding_similarity, influence_last, representer_points, signed_by_label
from clif_kit.baselines import tfidf_similarity as tfidf
from clif_kit.text_study import TextStudy
from clif_kit.traced import Traced
from clif_kit.tracin import WordScores, frequent_rows, tracin_we_tops
from clif_kit.tracin_layers import by_layer, last_layer, tracin_last, tracin_layers, tracin_similarity
from clif_kit.train import Fitted

FORMULAS = {  # L(x): what the training text adds by itself; S(x, x'): how alike the two are
    "tr_we": ("gradient size at its words", "words in common, by the cosine of their gradients"),
    "tr_we_topk": ("the same, of its largest places", "the same"),
    "tr_we_noc": ("the same, rare words alone", "the same, without start, end and frequent words"),
    "tr_common": ("the same, start and end alone", "cosine of the gradients at start and end"),
    "tr_last": ("loss gradient in the logits", "inner product of last activations"),
    "tr_tfidf": ("loss gradient in the logits", "cosine of TF-IDF"),
    "inf_last": ("loss gradient in the logits", "inner product of last activations in the inverse Hessian's metric"),
    "rep": ("loss gradient in one logit", "inner product of last activations"),
    "tfidf": ("one; the label gives the sign", "cosine of TF-IDF"),
    "bm25": ("one; the label gives the sign", "BM25"),
    "embedding": ("one; the label gives the sign", "cosine of last activations"),
}


def trace(study: TextStudy, fitted: Fitted, store: str | Path | None = None) -> tuple[Traced, Traced]:
    """Training and test texts at the checkpoints of one training run; ``store`` keeps the token gradients."""
    points = fitted.checkpoints
    train = Traced(model=study.model, checkpoints=points, tokens=study.train, y=study.labels("train"), store=store)
    return train, train.of(study.test, study.labels("test"))


def text_scores(
    study: TextStudy, fitted: Fitted, names: Sequence[str] = tuple(FORMULAS), *, top: int = 10, damping: float = 1e-3,
    l2: float = 1e-3, share: float = 0.1, store: str | Path | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Scores of all training texts for all test texts, ``(tests, n)``, by name.

    Args:
        study: The task and the model.
        fitted: What :func:`clif_kit.text_study.train_text` made; its last checkpoint serves the methods that look once.
        names: Of ``FORMULAS``.
        top: Places that TR-WE-topk keeps.
        damping: Of Inf-Last.
        l2: Of the refitted last layer of representer points.
        share: Of texts that a frequent word stands in.
        store: Folder for token gradients.

    Raises:
        ValueError: If a name is unknown.
    """
    if unknown := [name for name in names if name not in FORMULAS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(FORMULAS)}")
    found = _Found(study, fitted, top, share, store)
    y, test_y = study.labels("train"), study.labels("test")
    ways: dict[str, Callable[[], np.ndarray]] = {
        "tr_we": lambda: found.words[0].total,
        "tr_we_topk": lambda: found.words[1].total,
        "tr_we_noc": lambda: found.words[0].words,
        "tr_common": lambda: found.words[0].special,
        "tr_last": lambda: tracin_last(*found.traced),
        "tr_tfidf": lambda: tracin_similarity(found.tfidf, *found.traced),
        "inf_last": lambda: influence_last(*found.last, y, damping=damping),
        "rep": lambda: representer_points(found.last[0].features, y, found.last[1].features, test_y, l2=l2),
        "tfidf": lambda: signed_by_label(found.tfidf, y, test_y),
        "bm25": lambda: signed_by_label(bm25(*plain_texts(study)), y, test_y),
        "embedding": lambda: signed_by_label(embedding_similarity(*(s.features for s in found.last)), y, test_y),
    }
    return {name: np.asarray(ways[name](), dtype=np.float64) for name in names}


def special_share(study: TextStudy, fitted: Fitted, store: str | Path | None = None) -> np.ndarray:
    """Share of each test text's TR-WE mass that start and end tokens carry, ``(tests,)``: always look at it."""
    return _Found(study, fitted, 10, 0.1, store).words[0].special_share


def layer_scores(study: TextStudy, fitted: Fitted, store: str | Path | None = None) -> dict[str, np.ndarray]:
    """TracIn of every layer, of all weights (``all``) and of all weights and biases (``all_with_bias``)."""
    train, query = trace(study, fitted, store)
    single = tracin_layers(train, query)
    weights, every = (study.model.layers(bias=bias) for bias in (False, True))
    groups = dict(weights) | {
        "all": [name for names in weights.values() for name in names],
        "all_with_bias": [name for names in every.values() for name in names],
    }
    return by_layer(single, groups)


class _Found:
    """What several methods share, computed when the first of them asks."""

    def __init__(self, study: TextStudy, fitted: Fitted, top: int, share: float, store: str | Path | None) -> None:
        self.study, self.top, self.share = study, top, share
        self.traced = trace(study, fitted, store)

    @cached_property
    def words(self) -> list[WordScores]:
        return tracin_we_tops(*self.traced, [None, self.top], frequent=frequent_rows(self.study.train, self.share))

    @cached_property
    def last(self) -> tuple:
        return tuple(last_layer(side, len(side.checkpoints) - 1) for side in self.traced)

    @cached_property
    def tfidf(self) -> np.ndarray:
        return tfidf(*plain_texts(self.study))


def plain_texts(study: TextStudy) -> tuple[list[str], list[str]]:
    """Training and test texts as a search engine reads them; the two texts of a pair one after the other."""
    return tuple((split["text"] + " " + split["pair"]).tolist() for split in (study.task.train, study.task.test))
