r"""What word gradients know of their context, what words carry over many pairs of texts, and what scoring costs.

:math:`G_w(x)` is the gradient of the loss of text x in the row of word w (:mod:`clif_kit.tracin`). Two texts of one
label are alike in context when a model that was never fine-tuned gives them features of a high cosine; that measure
sees no gradient. After sections 4.1 to 4.5 of Yeh et al. (2022), over many pairs instead of a few.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from clif_kit.text_study import TextStudy
from clif_kit.token_gradients import RowMap, row_map
from clif_kit.traced import Traced
from clif_kit.tracin import pair_scores, word_parts

LEAST = 4  # partners of a text, of which half are the more alike


def likeness(study: TextStudy, rows: Sequence[int], split: str = "train", seed: int = 0) -> np.ndarray:
    """Cosine of the features of some texts before any fine-tuning, ``(n, n)``."""
    tokens, params = getattr(study, split).take(list(rows)), study.start(seed)
    with torch.no_grad():
        embedded = study.model.embed(params, tokens.ids, tokens.parts)
        features = study.model.features(params, embedded, tokens.parts)
        unit = torch.nn.functional.normalize(features.double(), dim=1)
    return (unit @ unit.T).numpy()


def context_gaps(texts: Traced, like: np.ndarray, frequent: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Are word gradients more alike where the contexts are? Mean cosine with the more alike half minus the other half.

    Every text is set beside the others of its label. ``word``: partners that share a word (no special token, not a
    frequent one), cosine of the two gradients of that word, mean over such words. ``start_end``: partners that share
    none, cosine of the gradients of the special tokens, taken together. The partners are cut at the median of their
    likeness. Positive: like contexts have like gradients.

    Args:
        texts: n texts; gradients are those of the last checkpoint.
        like: Likeness of their contexts, ``(n, n)``, see :func:`likeness`.
        frequent: Rows of frequent words, see :func:`clif_kit.tracin.frequent_rows`.

    Returns:
        For each of the two names one gap a text that has at least 4 partners, ``(m,)``.
    """
    found = row_map(texts.gradients(len(texts.checkpoints) - 1))
    n, special = len(texts), set(texts.tokens.special)
    total, count = np.zeros((n, n)), np.zeros((n, n))
    dots, size = np.zeros((n, n)), np.zeros(n)
    for owners, values, row in _rows(found):
        if row in special:
            dots[np.ix_(owners, owners)] += values @ values.T
            size[owners] += (values**2).sum(1)
        elif row not in frequent:
            length = np.linalg.norm(values, axis=1, keepdims=True)
            unit = values / np.where(length > 0, length, 1)
            total[np.ix_(owners, owners)] += unit @ unit.T
            count[np.ix_(owners, owners)] += 1
    label = texts.y.numpy()
    mates = (label[:, None] == label) & ~np.eye(n, dtype=bool)
    scale = np.sqrt(np.outer(size, size))
    cosines = {"word": total / np.maximum(count, 1), "start_end": dots / np.where(scale > 0, scale, 1)}
    return {
        name: _gaps(cosines[name], like, mates & pairs)
        for name, pairs in (("word", count > 0), ("start_end", (count == 0) & (scale > 0)))
    }


def word_shares(
    train: Traced, query: Traced, texts: Sequence[int], queries: Sequence[int], frequent: Sequence[int]
) -> dict[str, np.ndarray]:
    """What kinds of words carry the scores of some training texts for some queries, one number a training text.

    Args:
        train: The training texts.
        query: The queries.
        texts: Which training texts.
        queries: Which queries, 2 or more.
        frequent: Rows of frequent words.

    Returns:
        ``frequent``: their share of the sum of all parts' sizes. ``same_top``: of two queries, how often the strongest
        part is that of the same word. NaN where a text shares nothing with a query, or with fewer than two.
    """
    common = {train.tokens.names[row] for row in frequent}
    shares, same = [], []
    for i in texts:
        found = [word_parts(train, query, int(i), int(q)) for q in queries]
        size = sum(np.abs(one.parts).sum() for one in found)
        mine = sum(
            abs(part) for one in found for name, part in zip(one.names, one.parts, strict=True) if name in common
        )
        shares.append(mine / size if size > 0 else np.nan)
        tops = [one.names[int(np.abs(one.parts).argmax())] for one in found if len(one.parts)]
        pairs = [a == b for k, a in enumerate(tops) for b in tops[:k]]
        same.append(np.mean(pairs) if pairs else np.nan)
    return {"frequent": np.array(shares), "same_top": np.array(same)}


def scoring_seconds(train: Traced, query: Traced, top: int, repeats: int = 5) -> dict[str, np.ndarray]:
    """Seconds for the products of gradients alone, ``(repeats,)`` each, measured in turn.

    ``sparse``: over the rows that two texts share; ``topk``: likewise, of the ``top`` places with the largest
    gradients; ``dense``: over whole tables of word vectors, as if nothing were known of their zeros.

    Args:
        train: n texts, few: a dense gradient is as large as the table.
        query: The queries.
        top: Places that are kept.
        repeats: Measurements.
    """
    last = len(train.checkpoints) - 1
    whole = [side.gradients(last) for side in (train, query)]
    maps = {"sparse": [row_map(one) for one in whole], "topk": [row_map(one.top(top)) for one in whole]}
    rows = len(train.checkpoints[last].params[train.model.embedding])
    tables = [_dense(one, len(side), rows) for one, side in zip(maps["sparse"], (train, query), strict=True)]
    work: dict[str, Callable[[], np.ndarray]] = {
        name: lambda pair=pair: pair_scores(*pair, len(train), len(query))[0] for name, pair in maps.items()
    }
    work["dense"] = lambda: tables[1] @ tables[0].T
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, one in work.items():
            began = time.perf_counter()
            one()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def _rows(found: RowMap) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Examples, their gradients, and the row of the table."""
    for k, row in enumerate(found.tokens.tolist()):
        part = slice(found.starts[k], found.starts[k + 1])
        yield found.owners[part], found.values[part].astype(np.float64), row


def _gaps(cosine: np.ndarray, like: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    gaps = []
    for values, near, may in zip(cosine, like, pairs, strict=True):
        if may.sum() >= LEAST:
            closer = near[may] > np.median(near[may])
            if closer.any():
                gaps.append(values[may][closer].mean() - values[may][~closer].mean())
    return np.array(gaps)


def _dense(found: RowMap, n: int, rows: int) -> np.ndarray:
    table = np.zeros((n, rows, found.values.shape[1]), dtype=np.float32)
    for owners, values, row in _rows(found):
        table[owners, row] = values
    return table.reshape(n, -1)
