"""A study of labelled texts: a frozen encoder's features and a last layer trained on them to its optimum.

What it says about single texts is in :mod:`clif_kit.own_scores`, the check by retraining in :mod:`clif_kit.own_check`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clif_kit.own_encoder import Encoder, features_of
from clif_kit.own_layer import MAX_SIZE, Layer, choose_l2, fit_layer, losses, with_one
from clif_kit.own_texts import OwnTexts

GRID = (1e-3, 1e-2, 1e-1)  # penalties to choose from, for features whose mean square is one
WIDTH = 128  # main directions of an encoder's features that are kept
MOST_SELF = 20_000  # texts whose self-influence is computed


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
        few = f"{len(frame):,} rows, {len(left)} classes that need three texts each, of which one occurs once"
        raise ValueError(f"no text can be held out to be explained: {few}; give more rows, a label, or a test file")
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
    """Roughly what everything after the features takes: operations counted, their speed measured."""
    a, size = torch.ones(512, 512, dtype=torch.float64), classes * (min(width, WIDTH, MAX_SIZE // classes - 1) + 1)
    began = time.perf_counter()
    a @ a
    each = (time.perf_counter() - began) / (2 * 512**3)
    hessians = 4 * n * size * (size + size / classes)
    slopes = 4 * n * size * (300 + 20 * checks * (2 + draws))
    return each * 2 * (hessians + slopes + size**3 + 2 * min(n, MOST_SELF) * size**2)


def _scaling(raw: np.ndarray, centre: np.ndarray, classes: int) -> np.ndarray:
    """The main directions of the features, ``WIDTH`` or as many as the last layer has room for, on one scale."""
    n, width = raw.shape
    room = min(WIDTH, MAX_SIZE // classes - 1)
    spread = sum(float(np.square(raw[k : k + 4096] - centre).sum()) for k in range(0, n, 4096)) / (n * width)
    scale = 1 / np.sqrt(spread) if spread > 0 else 1.0
    if width <= room:
        return np.eye(width) * scale
    covariance = sum((part := raw[k : k + 4096] - centre).T @ part for k in range(0, n, 4096))
    return np.linalg.eigh(covariance)[1][:, ::-1][:, :room] * scale
