r"""TracIn on word embeddings, word by word: what single words carry, and whether leaving *words* out moves a model.

A score is a sum over the tokens that both texts have, :math:`\sum_w G_w(x) \cdot G_w(x')`. Signs as everywhere:
positive = the training text helps the query; without it the query loss is predicted to be larger.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from clif_kit.evaluate import spearman, top_k_overlap
from clif_kit.store import resumable
from clif_kit.text_scores import trace
from clif_kit.text_study import TextStudy, accuracy, predict, train_text
from clif_kit.text_tokens import Tokens
from clif_kit.text_truth import truth_store
from clif_kit.traced import Traced
from clif_kit.tracin import normalised, tracin_we, tracin_we_tops, word_parts
from clif_kit.train import Fitted

Scalars = dict[str, np.ndarray]


# ---- parts of a score


def at_the_end(study: TextStudy, fitted: Fitted) -> tuple[Traced, Traced]:
    """Training and test texts at the last checkpoint alone, learning rate 1: plain products of gradients."""
    last = (replace(fitted.checkpoints[-1], lr=1.0),)
    return tuple(replace(side, checkpoints=last) for side in trace(study, fitted))


def carried(train: Traced, query: Traced, i: int, q: int) -> dict[str, float]:
    """What each token that both texts have carries of their score."""
    found = word_parts(train, query, i, q)
    return dict(zip(found.names, found.parts.tolist(), strict=True))


def shared_words(train: Traced, query: Traced) -> np.ndarray:
    """How many different tokens two texts have in common, the special ones left out, ``(q, n)``."""
    rows = len(train.checkpoints[0].params[train.model.embedding])
    sides = []
    for tokens in (query.tokens, train.tokens):
        has = np.zeros((len(tokens), rows), dtype=np.float32)
        text, place = torch.nonzero(tokens.parts > 0, as_tuple=True)
        has[text.numpy(), tokens.ids[text, place].numpy()] = 1
        has[:, list(tokens.special)] = 0
        sides.append(has)
    return sides[0] @ sides[1].T


def sum_gaps(train: Traced, query: Traced, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Distance of the sum of a score's parts from the score, over the parts' sizes, for pairs (text, query)."""
    total = tracin_we(train, query).total
    parts = [np.array(list(carried(train, query, i, q).values())) for i, q in pairs]
    gaps = [abs(p.sum() - total[q, i]) / np.abs(p).sum() for p, (i, q) in zip(parts, pairs, strict=True)]
    return np.array(gaps)


def agreement(
    train: Traced, query: Traced, tops: Sequence[int], k: int = 10
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """TR-WE against TR-WE-topk: for each number of places rank correlations and shares of the top k, ``(q,)`` each.

    A query whose few places meet no training text has no ranking: correlation 0.
    """
    whole, *cut = (one.total for one in tracin_we_tops(train, query, [None, *tops]))
    return {
        top: (
            np.array([spearman(a, b) if np.ptp(b) else 0.0 for a, b in zip(whole, part, strict=True)]),
            np.array([top_k_overlap(a, b, k) for a, b in zip(whole, part, strict=True)]),
        )
        for top, part in zip(tops, cut, strict=True)
    }


def colored(names: Sequence[str], values: np.ndarray, label: str = "") -> str:
    """Tokens as HTML: blue and underlined helps, orange and dotted hurts, the stronger the larger."""
    size = np.abs(values).max() or 1.0
    spans = []
    for name, value in zip(names, values, strict=True):
        color, line = ("0,114,178", "solid") if value > 0 else ("213,94,0", "dotted")
        weight = abs(value) / size
        look = f"background:rgba({color},{0.45 * weight:.2f});border-bottom:2px {line} rgba({color},{weight:.2f})"
        spans.append(f'<span style="{look}">{escape(name)}</span>' if weight >= 0.03 else escape(name))
    return f"<p>{f'<b>{escape(label)}</b> ' if label else ''}{' '.join(spans)}</p>"


def clusters(texts: Traced, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Group texts by normalised TR-WE: labels from 1, ``(n,)``, and the similarities, ``(n, n)``.

    Complete linkage on one minus the similarity; a text without gradient is a stranger to all.
    """
    near = normalised(tracin_we(texts, texts).total)
    far = np.clip(1 - (near + near.T) / 2, 0, None)
    np.fill_diagonal(far, 0)
    return hierarchy.fcluster(hierarchy.linkage(squareform(far, checks=False), "complete"), count, "maxclust"), near


# ---- the paper's sentences


def pair_numbers(study: TextStudy, seed: int, dots: Mapping[str, tuple[str, str, Sequence[str]]]) -> Scalars:
    """Train, then look at the test split, whose ``id`` names the sentences.

    Args:
        study: Task, model, recipe.
        seed: Of the training.
        dots: By name two sentences and the tokens whose word-gradient similarity is wanted (summed); no tokens: all.

    Returns:
        Scalars: the similarities by name; ``share/<name>``, their share of the sum of all sizes; ``probability/<id>``
        of the label; ``norm/<id>/<token>``: gradient size at the first token of the name, if the text has it;
        ``accuracy/model``, per cent of the validation texts.
    """
    fitted = train_text(study, seed)
    _, texts = at_the_end(study, fitted)
    names = study.task.test["id"].tolist()
    true = torch.softmax(predict(study, fitted.params), 1).gather(1, study.labels("test")[:, None]).squeeze(1)
    out = {f"probability/{name}": float(p) for name, p in zip(names, true, strict=True)}
    out["accuracy/model"] = 100 * accuracy(study, fitted.params)
    for name, (a, b, tokens) in dots.items():
        parts = carried(texts, texts, names.index(a), names.index(b))
        wanted = sum(parts.get(token, 0.0) for token in tokens or parts)
        out[name] = wanted
        out[f"share/{name}"] = abs(wanted) / max(sum(map(abs, parts.values())), 1e-30)
        for one in (a, b):
            own = carried(texts, texts, names.index(one), names.index(one))
            if tokens and tokens[0] in own:
                out[f"norm/{one}/{tokens[0].strip('[]').lower()}"] = own[tokens[0]] ** 0.5
    return {key: np.array(value) for key, value in out.items()}


# ---- leave words out, train again


def without_places(tokens: Tokens, drop: torch.Tensor) -> Tokens:
    """The texts without some places, closed up: ``drop`` is bool, ``(n, L)``.

    >>> t = Tokens(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]]), (5,), tuple("abcdefgh"))
    >>> without_places(t, torch.tensor([[False, True, False]])).ids.tolist()
    [[5, 7, 0]]
    """
    parts = torch.where(drop, 0, tokens.parts)
    order = torch.argsort((parts == 0).int(), dim=1, stable=True)
    parts = parts.gather(1, order)
    return replace(tokens, ids=torch.where(parts > 0, tokens.ids.gather(1, order), 0), parts=parts)


def word_drops(
    train: Traced, query: Traced, q: int, chosen: Sequence[int], seed: int = 0
) -> dict[str, tuple[torch.Tensor, list[str]]]:
    """Which places leave in the chosen texts: those of the word that helps query q most, or of another word, or all.

    ``strongest``: of each text the token with the largest positive part (special tokens stay); ``other``: a token of
    that text that the query does not have, drawn at random; ``texts``: everything. With the tokens that left.
    """
    tokens, special = train.tokens, set(train.tokens.special)
    drops = {name: torch.zeros_like(tokens.ids, dtype=torch.bool) for name in ("strongest", "other", "texts")}
    names: dict[str, list[str]] = {name: [] for name in drops}
    asked = set(query.tokens.ids[q][query.tokens.parts[q] > 0].tolist())
    rng = np.random.default_rng([seed, q])
    for i in map(int, chosen):
        real = tokens.parts[i] > 0
        parts = carried(train, query, i, q)
        row_of = {tokens.names[row]: row for row in tokens.ids[i][real].tolist()}
        helping = {row_of[n]: v for n, v in parts.items() if v > 0 and n in row_of and row_of[n] not in special}
        others = sorted(set(row_of.values()) - asked - special)
        drops["texts"][i] = real
        for name, row in (
            ("strongest", max(helping, key=helping.get) if helping else None),
            ("other", int(rng.choice(others)) if others and helping else None),
        ):
            if row is not None:
                drops[name][i] = real & (tokens.ids[i] == row)
                names[name].append(tokens.names[row])
    return {name: (drops[name], names[name]) for name in drops}


def probability_without(study: TextStudy, drop: torch.Tensor, seed: int, q: int) -> float:
    """p(true class) of test text q after training without some places; texts that lose all of them leave whole."""
    gone = ((study.train.parts > 0) & ~drop).sum(1) == 0
    tokens = without_places(study.train, drop & ~gone[:, None])
    params = train_text(replace(study, train=tokens), seed, (~gone).numpy()).params
    return float(torch.softmax(predict(study, params)[q], 0)[study.labels("test")[q]])


def kept(study: TextStudy, folder: str | Path, *depends: object) -> Callable[..., Scalars]:
    """``once(key, compute)`` in a store of this study: what it has is read, see :func:`clif_kit.store.resumable`."""
    mark = truth_store(study, folder).fingerprint
    functions = (pair_numbers, carried, at_the_end, word_drops, without_places, probability_without)
    return resumable(Path(folder) / "words", mark, functions, *depends)
