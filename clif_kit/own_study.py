"""From labelled texts to ranked, explained training texts: what made the model say that, and is it so?

A frozen encoder, a last layer trained to its optimum, exact influence through it (:mod:`clif_kit.own_layer`), the words
that carry each score, BM25 beside it, and the check that counts: remove the texts, train again, look at the loss.
Sign: positive = helpful (a proponent): without the text the loss of the test text is predicted to rise.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from torch import Tensor
from tqdm import tqdm

from clif_kit.baselines import bm25, signed_by_label
from clif_kit.evaluate import Interval, interval, paired_difference
from clif_kit.own_encoder import Encoder, features_of, whole_words
from clif_kit.own_layer import (
    MAX_SIZE,
    Layer,
    choose_l2,
    fit_layer,
    influence,
    losses,
    pulls,
    refit,
    residuals,
    self_influence,
    with_one,
)
from clif_kit.own_texts import OwnTexts

GRID = (1e-3, 1e-2, 1e-1)  # penalties to choose from, for features whose mean square is one
MOST_SELF = 20_000  # texts whose self-influence is computed, those with the largest losses
METHODS = ("influence", "bm25")


@dataclass(frozen=True, kw_only=True)
class OwnStudy:
    """Texts, features, the trained last layer.

    Attributes:
        train: ``row, id, text, label``.
        test: Likewise: what is explained.
        classes: Names; a label's number is its place here.
        layer: Trained on ``train``.
        test_x: Features of the test texts with a column of ones, ``(q, d + 1)``.
        test_y: Their labels as numbers, ``(q,)``.
        encoder: Makes features.
        centre: What is taken from an encoder's features, ``(D,)``.
        matrix: What they are multiplied with then, ``(D, d)``.
    """

    train: pd.DataFrame = field(repr=False)
    test: pd.DataFrame = field(repr=False)
    classes: tuple[str, ...]
    layer: Layer = field(repr=False)
    test_x: Tensor = field(repr=False)
    test_y: Tensor = field(repr=False)
    encoder: Encoder = field(repr=False)
    centre: np.ndarray = field(repr=False)
    matrix: np.ndarray = field(repr=False)

    def test_losses(self, weight: Tensor | None = None) -> np.ndarray:
        """Loss of each test text in nats, ``(q,)``."""
        return losses(self.test_x, self.test_y, self.layer.weight if weight is None else weight)

    def predicted(self) -> list[str]:
        """The class that the model gives each test text."""
        return [self.classes[k] for k in (self.test_x.double() @ self.layer.weight.T).argmax(1).tolist()]


def hold_out(texts: OwnTexts, tests: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training texts and ``tests`` test texts (at most a fifth), drawn from texts that stand there once.

    Every class keeps at least two training texts.
    """
    frame, rng = texts.frame, np.random.default_rng(seed)
    plain = frame["text"].str.lower().str.split().str.join(" ")
    order = rng.permutation(np.flatnonzero(~plain.duplicated(keep=False)))
    left, chosen = frame["label"].value_counts().to_dict(), []
    for place in order.tolist():
        if len(chosen) >= min(tests, len(frame) // 5):
            break
        if left[frame["label"].iat[place]] > 2:
            left[frame["label"].iat[place]] -= 1
            chosen.append(place)
    if not chosen:
        raise ValueError("no text can be held out to be explained: too few rows, or all occur twice; give a test file")
    out = np.zeros(len(frame), dtype=bool)
    out[chosen] = True
    return frame[~out].reset_index(drop=True), frame.iloc[chosen].reset_index(drop=True)


def make_own_study(
    train: pd.DataFrame, test: pd.DataFrame, classes: Sequence[str], encoder: Encoder, *, l2: float | None = None,
    folder: str | Path | None = None, chunk: int = 512, seed: int = 0,
    say: Callable[[float, int], bool | None] | None = None, progress: bool = False,
) -> OwnStudy | None:  # fmt: skip
    """Compute features (see :func:`clif_kit.own_encoder.features_of`), choose the penalty, train the last layer.

    Args:
        train: ``row, id, text, label``.
        test: Likewise; its labels must be among the classes.
        classes: Names of the classes.
        encoder: Makes features.
        l2: Penalty; None: chosen from ``GRID`` on a part of the training texts.
        folder: Where features are kept.
        chunk: Texts a shard.
        seed: Of the choice.
        say: Is told the seconds that the features will take, and the chunks that were there; may stop with False.
        progress: Draw bars.

    Returns:
        The study, or None when ``say`` stopped.

    Raises:
        ValueError: If a test text has a label that no training text has.
    """
    code = {name: k for k, name in enumerate(classes)}
    if unknown := sorted(set(test["label"]) - set(train["label"])):
        raise ValueError(f"test texts have the label {unknown[0]!r}, which no training text has")
    texts = [*test["text"], *train["text"]]
    raw = features_of(encoder, texts, folder, chunk=chunk, say=say, progress=progress)
    if raw is None:
        return None
    raw_test, raw_train = raw[: len(test)], raw[len(test) :]
    centre = raw_train.mean(0, dtype=np.float64)
    matrix = _scaling(raw_train, centre, len(classes))
    x, test_x = (with_one(((part - centre) @ matrix).astype(np.float32)) for part in (raw_train, raw_test))
    y, test_y = (torch.tensor([code[name] for name in part["label"]]) for part in (train, test))
    if l2 is None:
        l2 = choose_l2(x, y, len(classes), GRID, seed=seed)
    return OwnStudy(
        train=train, test=test, classes=tuple(classes), layer=fit_layer(x, y, len(classes), l2), test_x=test_x,
        test_y=test_y, encoder=encoder, centre=centre, matrix=matrix,
    )  # fmt: skip


def layer_seconds(n: int, width: int, classes: int, checks: int, draws: int) -> float:
    """Roughly what training, influence and the deletion check take after the features: counted flops, measured speed."""
    a, size = torch.ones(512, 512, dtype=torch.float64), classes * (min(width, MAX_SIZE // classes - 1) + 1)
    began = time.perf_counter()
    a @ a
    each = (time.perf_counter() - began) / (2 * 512**3)
    hessians = 4 * n * size * (size + size / classes)
    slopes = 4 * n * size * (300 + 20 * checks * (len(METHODS) + draws))
    return each * 2 * (hessians + slopes + size**3 + 2 * min(n, MOST_SELF) * size**2)


# ---- scores and what carries them


def own_scores(study: OwnStudy, tests: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of all training texts for some test texts, ``(len(tests), n)``: ``influence`` in nats, ``bm25``."""
    y, rows = study.test_y[list(tests)], list(tests)
    like = bm25(study.train["text"].tolist(), study.test["text"].iloc[rows].tolist())
    return {
        "influence": influence(study.layer, study.test_x[rows], y),
        "bm25": signed_by_label(like, study.layer.y, y),
    }


def word_parts(study: OwnStudy, i: int, pulled: Tensor) -> list[tuple[str, float]]:
    r"""The influence of training text i split among its words; the parts add up to the score.

    The features are the mean of T rows, so the score is
    :math:`\tfrac{1}{nT} \sum_t \sum_a r_{ia} \langle s_a, \tilde h_t \rangle` with :math:`s = H^{-1} g'`. What goes
    through the column of ones knows the label alone: it is the last part, ``(label)``. A row of a transformer says also
    what stands around its word.

    Args:
        study: Texts and model.
        i: Number of the training text.
        pulled: s of one query (:func:`clif_kit.own_layer.pulls`), ``(classes, d + 1)``.
    """
    words, rows = study.encoder.parts(study.train["text"].iat[i])
    r = residuals(study.layer.x[[i]], study.layer.y[[i]], study.layer.weight)[0]
    along = (r @ pulled).numpy() / len(study.train)  # (d + 1,)
    values = (np.asarray(rows, dtype=np.float64) - study.centre) @ (study.matrix @ along[:-1]) / len(rows)
    return [*whole_words(words, values), ("(label)", float(along[-1]))]


def ranked(study: OwnStudy, tests: Sequence[int], k: int, *, progress: bool = False) -> pd.DataFrame:
    """The k most helpful and k most harmful training texts of some test texts, by each method, with their words.

    Returns:
        A row for each: ``test_row, test_text, test_label, predicted, method, side`` (proponent, opponent), ``rank,
        score, bm25, train_row, train_id, train_label, train_text, words`` (that carry the influence, largest first, with
        their share of it) and ``shared`` (words of both texts).
    """
    scores, found = own_scores(study, tests), []
    pulled = pulls(study.layer, study.test_x[list(tests)], study.test_y[list(tests)])
    predicted, shared = study.predicted(), _shared_words()
    for at, q in enumerate(tqdm(tests, disable=not progress, unit="text", desc="explaining")):
        test = study.test.iloc[q]
        head = {
            "test_row": test["row"],
            "test_text": test["text"],
            "test_label": test["label"],
            "predicted": predicted[q],
        }
        for method in METHODS:
            for side, order in _ends(scores[method][at], k):
                for rank, i in enumerate(order.tolist(), 1):
                    text = study.train.iloc[i]
                    found.append(head | {
                        "method": method, "side": side, "rank": rank, "score": scores["influence"][at, i],
                        "bm25": scores["bm25"][at, i], "train_row": text["row"], "train_id": text["id"],
                        "train_label": text["label"], "train_text": text["text"],
                        "words": carried(word_parts(study, i, pulled[at])), "shared": shared(test["text"], text["text"]),
                    })  # fmt: skip
    return pd.DataFrame(found)


def carried(parts: Sequence[tuple[str, float]], most: int = 5) -> str:
    """The words with the largest parts, equal words added, as shares of the whole.

    >>> carried([("goal", 3.0), ("the", -1.0), ("goal", 1.0), ("(label)", 1.0)])
    'goal +100 %, the -25 %, (label) +25 %'
    """
    sums: dict[str, float] = {}
    for word, value in parts:
        sums[word] = sums.get(word, 0.0) + value
    whole = sum(sums.values())
    first = sorted(sums.items(), key=lambda item: -abs(item[1]))[:most]
    return ", ".join(f"{word} {value / whole:+.0%}".replace("%", " %") for word, value in first) if whole else ""


def suspicious(study: OwnStudy, k: int) -> pd.DataFrame:
    """The k training texts with the largest self-influence, where wrong labels gather.

    Returns:
        ``train_row, train_id, label, model_says, loss`` (nats), ``self_influence`` and ``text``.
    """
    own = losses(study.layer.x, study.layer.y, study.layer.weight)
    rows = np.argsort(-own, kind="stable")[:MOST_SELF]
    values = self_influence(study.layer, rows)
    order = np.argsort(-values, kind="stable")[:k]
    picked = rows[order]
    says = (study.layer.x[picked].double() @ study.layer.weight.T).argmax(1).tolist()
    train = study.train.iloc[picked]
    return pd.DataFrame({
        "train_row": train["row"].to_numpy(), "train_id": train["id"].to_numpy(), "label": train["label"].to_numpy(),
        "model_says": [study.classes[c] for c in says], "loss": own[picked], "self_influence": values[order],
        "text": train["text"].to_numpy(),
    })  # fmt: skip


# ---- the check


def deletion_check(
    study: OwnStudy, tests: Sequence[int], *, share: float = 0.02, draws: int = 3, seed: int = 0, progress: bool = False
) -> dict[str, np.ndarray]:
    """What the loss of a test text does when its proponents leave and the last layer is trained again.

    Args:
        study: Texts and model.
        tests: Which test texts.
        share: Of the training texts that leave, at least one text; never more than half of the class.
        draws: Random sets of the same size from the test text's class; their mean change is the control.
        seed: Of the draws.
        progress: Draw a bar.

    Returns:
        Change of the loss in nats, ``(len(tests),)``: ``influence``, ``bm25``, ``same_class_random``; and ``removed``.
    """
    scores, rng = own_scores(study, tests), np.random.default_rng(seed)
    names = (*METHODS, "same_class_random", "removed")
    found = {name: np.zeros(len(tests)) for name in names}
    for at, q in enumerate(tqdm(tests, disable=not progress, unit="text", desc="deletion check")):
        same = np.flatnonzero(study.layer.y.numpy() == int(study.test_y[q]))
        m = max(1, min(round(share * len(study.train)), len(same) // 2))
        sets = {method: [np.argsort(-scores[method][at], kind="stable")[:m]] for method in METHODS}
        sets["same_class_random"] = [rng.choice(same, m, replace=False) for _ in range(draws)]
        for name, gone in sets.items():
            found[name][at] = np.mean([_loss_without(study, q, rows) for rows in gone]) - study.test_losses()[q]
        found["removed"][at] = m
    return found


def check_intervals(found: dict[str, np.ndarray]) -> dict[str, Interval]:
    """Mean change of each method, and of each minus the random control, with intervals over test texts."""
    names = [name for name in found if name != "removed"]
    means = {name: interval(np.mean, found[name], over="test texts", unit="nats") for name in names}
    control = found["same_class_random"]
    gains = {name: paired_difference(found[name], control, "test texts", "nats") for name in names[:-1]}
    return means | {f"{name} minus random": gain for name, gain in gains.items()}


def _loss_without(study: OwnStudy, q: int, gone: np.ndarray) -> float:
    keep = np.ones(len(study.train), dtype=bool)
    keep[gone] = False
    return float(losses(study.test_x[[q]], study.test_y[[q]], refit(study.layer, keep))[0])


def _scaling(raw: np.ndarray, centre: np.ndarray, classes: int) -> np.ndarray:
    """One scale for all features; the main directions only where all of them would make the last layer too large."""
    n, width = raw.shape
    room = MAX_SIZE // classes - 1
    spread = sum(float(np.square(raw[k : k + 4096] - centre).sum()) for k in range(0, n, 4096)) / (n * width)
    scale = 1 / np.sqrt(spread) if spread > 0 else 1.0
    if width <= room:
        return np.eye(width) * scale
    covariance = sum((part := raw[k : k + 4096] - centre).T @ part for k in range(0, n, 4096))
    return np.linalg.eigh(covariance)[1][:, ::-1][:, :room] * scale


def _ends(scores: np.ndarray, k: int) -> list[tuple[str, np.ndarray]]:
    """The largest positive and the smallest negative scores."""
    order = np.argsort(-scores, kind="stable")
    top, bottom = order[:k], order[::-1][:k]
    return [("proponent", top[scores[top] > 0]), ("opponent", bottom[scores[bottom] < 0])]


def _shared_words() -> Callable[[str, str], str]:
    cut = CountVectorizer().build_analyzer()
    return lambda a, b: " ".join(sorted((set(cut(a)) & set(cut(b))) - ENGLISH_STOP_WORDS))
