"""Which training texts made the model say that, by exact influence and by BM25, and which of their words.

Sign: positive = helpful (a proponent): without the text the loss of the test text is predicted to rise.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from torch import Tensor
from tqdm import tqdm

from clif_kit.baselines import bm25, signed_by_label
from clif_kit.own_encoder import whole_words
from clif_kit.own_layer import influence, losses, pulls, residuals, self_influence
from clif_kit.own_study import MOST_SELF, OwnStudy

METHODS = ("influence", "bm25")


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
        A row for each: ``test_row, test_text, test_label, predicted, method, side`` (proponent, opponent),
        ``rank, score, bm25, train_row, train_id, train_label, train_text, words`` (that carry the influence, largest
        first, with their share of it) and ``shared`` (words of both texts).
    """
    scores, found = own_scores(study, tests), []
    pulled = pulls(study.layer, study.test_x[list(tests)], study.test_y[list(tests)])
    predicted, shared = study.predicted(), shared_words()
    for at, q in enumerate(tqdm(tests, disable=not progress, unit="text", desc="explaining")):
        test = study.test.iloc[q]
        head = {
            "test_row": test["row"],
            "test_text": test["text"],
            "test_label": test["label"],
            "predicted": predicted[q],
        }
        for method in METHODS:
            for side, order in ends(scores[method][at], k):
                for rank, i in enumerate(order.tolist(), 1):
                    text = study.train.iloc[i]
                    found.append(head | {
                        "method": method, "side": side, "rank": rank, "score": scores["influence"][at, i],
                        "bm25": scores["bm25"][at, i], "train_row": text["row"], "train_id": text["id"],
                        "train_label": text["label"], "train_text": text["text"],
                        "words": carried(word_parts(study, i, pulled[at])),
                        "shared": shared(test["text"], text["text"]),
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


def ends(scores: np.ndarray, k: int) -> list[tuple[str, np.ndarray]]:
    """The largest positive and the smallest negative scores."""
    order = np.argsort(-scores, kind="stable")
    top, bottom = order[:k], order[::-1][:k]
    return [("proponent", top[scores[top] > 0]), ("opponent", bottom[scores[bottom] < 0])]


def shared_words() -> Callable[[str, str], str]:
    """A function that gives the words, no stop words, that two texts have in common, in one line."""
    cut = CountVectorizer().build_analyzer()
    return lambda a, b: " ".join(sorted((set(cut(a)) & set(cut(b))) - ENGLISH_STOP_WORDS))
