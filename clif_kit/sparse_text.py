r"""Texts for chapter 42 and a small text CNN on them: frozen features, and what each word does to them.

.. math:: C_{wf} = \frac{1}{|T_w|} \sum_{t \in T_w} \bigl( z_f(t) - z_f(t \setminus w) \bigr)

is the contribution of word w to feature f: the mean change over the texts :math:`T_w` that hold the word when it is
deleted from them, in standard deviations of the feature. Positive = the word raises the feature.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clif_kit.planted_toxicity import CLEAN_SIDE, CONTROLS, TOXIC_SIDE, planted_toxicity
from clif_kit.text_models import Params, TextModel, text_cnn, text_losses
from clif_kit.text_tasks import text_task
from clif_kit.train import fit

IDENTITY = (  # neutral words for groups of people; which way each leans is counted in the training texts
    "black", "white", "gay", "lesbian", "muslim", "islam", "jewish", "jew", "jews", "christian", "christianity",
    "catholic", "hindu", "atheist", "women", "woman", "female", "girl", "man", "male", "men", "american", "americans",
    "african", "asian", "mexican", "arab", "indian", "chinese", "irish", "turkish", "russian", "german", "immigrants",
    "blind", "disabled", "young", "homosexual",
)  # fmt: skip
Texts = tuple[str, ...]


@dataclass(frozen=True)
class ToxicTexts:
    """Texts to debug a classifier on.

    Attributes:
        texts: By split: ``train`` (biased if planted), ``val`` (likewise), ``test`` (not biased if planted).
        y: 1 = toxic, by split.
        sides: Identity terms by the class they lean to in the training texts: ``toxic`` and ``clean``.
        control: An unrelated word of about the same frequency for each of these terms.
        offensive: Whether texts are printed masked only.
        leaning: Ordinary words that lean as each term does (real tasks).
    """

    texts: Mapping[str, Texts]
    y: Mapping[str, np.ndarray]
    sides: Mapping[str, Texts]
    control: Mapping[str, str]
    offensive: bool = False
    leaning: Mapping[str, Texts] = field(default_factory=dict)

    @property
    def identity(self) -> frozenset[str]:
        """The terms of both sides."""
        return frozenset(self.sides["toxic"] + self.sides["clean"])


@dataclass(frozen=True)
class TextNet:
    """A trained text CNN whose features are used frozen.

    Attributes:
        model: The network.
        params: Its parameters.
        vocabulary: Words by their number; 0 is padding, 1 any unknown word.
        mean: Of each feature over the training texts, ``(h,)``.
        std: Likewise; 1 where a feature is constant.
    """

    model: TextModel
    params: Params
    vocabulary: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    def features(self, texts: Sequence[str], chunk: int = 512) -> np.ndarray:
        """Standardised features, float64, ``(n, h)``."""
        return (raw_features(self.model, self.params, self.vocabulary, texts, chunk) - self.mean) / self.std


def words_of(text: str, longest: int = 60) -> list[str]:
    """Lower-case words, the first ``longest`` of them.

    >>> words_of("Don't, SIR!")
    ["don't", 'sir']
    """
    return re.findall(r"[a-z][a-z']*", text.lower())[:longest]


def toxic_texts(task: str, sizes: tuple[int, int, int], *, seed: int, rate: float = 0.85, least: int = 3) -> ToxicTexts:
    """Texts of a task: ``planted`` (generated), ``toxic`` (talk-page comments) or ``tweets``.

    Args:
        task: Its name; real ones are cut by :func:`clif_kit.text_tasks.text_task`.
        sizes: Training, validation and test texts.
        seed: Of the texts or of the cut.
        rate: How often a planted term goes with its class (validation too, test never).
        least: Training texts that must hold an identity term before it counts (real tasks).

    Raises:
        ValueError: As the generator or ``text_task``, or if no identity term leans to either class.

    >>> toxic_texts("planted", (40, 20, 20), seed=0).control["black"]
    'tall'
    """
    if task == "planted":
        made = [planted_toxicity(n, seed=3 * seed + i, rate=(rate, rate, 0.5)[i]) for i, n in enumerate(sizes)]
        names = ("train", "val", "test")
        control = {word: CONTROLS[i] for side in (TOXIC_SIDE, CLEAN_SIDE) for i, word in enumerate(side)}
        texts, y = ({k: getattr(m, what) for k, m in zip(names, made, strict=True)} for what in ("texts", "y"))
        return ToxicTexts(texts, y, {"toxic": TOXIC_SIDE, "clean": CLEAN_SIDE}, control)
    cut = text_task(task, train=sizes[0], val=sizes[1], test=sizes[2], seed=seed)
    frames = {"train": cut.train, "val": cut.val, "test": cut.test}
    texts = {name: tuple(frame["text"]) for name, frame in frames.items()}
    y = {name: frame["label"].to_numpy(copy=True) for name, frame in frames.items()}
    sides, control = lean(texts["train"], y["train"], IDENTITY, least)
    if not control:
        raise ValueError(f"{task}: no identity term leans to a class among {sizes[0]} texts; ask for more of them")
    leaning = lean_alike(texts["train"], y["train"], sides, IDENTITY, least)
    return ToxicTexts(texts, y, sides, control, cut.offensive, leaning)


def lean(
    texts: Sequence[str], y: np.ndarray, terms: Sequence[str], least: int = 3
) -> tuple[dict[str, Texts], dict[str, str]]:
    """Which class each term leans to, and for each a control: of the 30 words nearest in frequency the most even.

    Frequencies are numbers of texts. A term leans to ``toxic`` if more than the share of toxic texts among all are.

    >>> lean(["a axe", "a oak", "b axe", "b oak"] * 5, np.array([1, 1, 0, 0] * 5), ["a", "b"])
    ({'toxic': ('a',), 'clean': ('b',)}, {'a': 'axe', 'b': 'axe'})
    """
    n, gap = _gaps(texts, y)
    kept = [term for term in terms if n[term] >= least and gap[term] != 0]
    sides = {"toxic": tuple(t for t in kept if gap[t] > 0), "clean": tuple(t for t in kept if gap[t] < 0)}
    free = sorted(word for word in n if word not in terms and len(word) > 2 and n[word] >= min(least, 2))
    control = {}
    for term in kept:
        near = sorted(free, key=lambda word, term=term: (abs(n[word] - n[term]), word))[:30]
        control[term] = min(near, key=lambda word: (abs(gap[word]), word))
    return sides, control


def lean_alike(
    texts: Sequence[str], y: np.ndarray, sides: Mapping[str, Texts], terms: Sequence[str], least: int = 3, k: int = 3
) -> dict[str, Texts]:
    """For each term the ``k`` ordinary words that lean to its side most nearly as much, of the 30 nearest in frequency.

    A bias about groups would have to turn more than these do: any word that leans turns predictions.

    >>> lean_alike(["a axe", "a oak", "b axe", "c axe"] * 5, np.array([1, 1, 0, 1] * 5), {"toxic": ("a",)}, ["a"], k=1)
    {'a': ('oak',)}
    """
    n, gap = _gaps(texts, y)
    found = {}
    for term in (term for side in sides.values() for term in side):
        free = [w for w in n if w not in terms and len(w) > 2 and n[w] >= min(least, 2) and gap[w] * gap[term] > 0]
        near = sorted(free, key=lambda word, term=term: (abs(n[word] - n[term]), word))[:30]
        found[term] = tuple(sorted(near, key=lambda word, term=term: (abs(gap[word] - gap[term]), word))[:k])
    return found


def _gaps(texts: Sequence[str], y: np.ndarray) -> tuple[Counter, dict[str, float]]:
    """Texts that hold each word, and how much larger the share of toxic ones is among them than among all."""
    sets = [set(words_of(text)) for text in texts]
    n = Counter(word for held in sets for word in held)
    toxic = Counter(word for held, label in zip(sets, y, strict=True) if label for word in held)
    return n, {word: toxic[word] / n[word] - float(np.mean(y)) for word in n}


def encode(vocabulary: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Numbers of the words and where there are any, both ``(n, longest)``."""
    number = {word: i for i, word in enumerate(vocabulary)}
    rows = [[number.get(word, 1) for word in words_of(text)] or [1] for text in texts]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, (ids > 0).long()


def train_net(
    data: ToxicTexts, *, seed: int, width: int = 32, filters: int = 64, steps: int = 300, lr: float = 3e-3
) -> TextNet:
    """Train a CNN on the training texts; words that stand in one text only are unknown to it.

    Args:
        data: Texts.
        seed: Of start and order.
        width: Length of a word vector.
        filters: Features.
        steps: Of Adam, 64 texts each.
        lr: Learning rate, falling to zero.
    """
    counts = Counter(word for text in data.texts["train"] for word in set(words_of(text)))
    vocabulary = ("", "?", *sorted(word for word, n in counts.items() if n > 1))
    model, params = text_cnn(len(vocabulary), 2, width=width, filters=filters, seed=seed)
    ids, parts = encode(vocabulary, data.texts["train"])
    y = torch.as_tensor(data.y["train"])
    batch = (ids, parts, y)
    fitted = fit(
        text_losses(model, trim=True),
        params,
        batch,
        steps=steps,
        lr=lambda k: lr * (1 - k / steps),
        batch_size=64,
        seed=seed,
    )
    raw = raw_features(model, fitted.params, vocabulary, data.texts["train"])
    std = raw.std(0)
    return TextNet(model, fitted.params, vocabulary, raw.mean(0), np.where(std > 1e-8, std, 1.0))


def raw_features(
    model: TextModel, params: Params, vocabulary: Sequence[str], texts: Sequence[str], chunk: int = 512
) -> np.ndarray:
    """What enters the last layer, float64, ``(n, h)``; texts of like length share a batch."""
    order = np.argsort([len(words_of(text)) for text in texts], kind="stable")
    out = np.empty((len(texts), model.shapes[f"{model.head}.weight"][1]))
    with torch.no_grad():
        for rows in np.split(order, range(chunk, len(order), chunk)):
            ids, parts = encode(vocabulary, [texts[i] for i in rows])
            out[rows] = model.features(params, model.embed(params, ids, parts), parts).double().numpy()
    return out


def contributions(net: TextNet, texts: Sequence[str], *, least: int = 5) -> tuple[tuple[str, ...], np.ndarray]:
    """What each word does to each feature: ``words`` and the matrix C of the module's equation, ``(words, h)``.

    Args:
        net: The features.
        texts: Each is run once for each of its different words, with all places of that word deleted.
        least: Texts that must hold a word.
    """
    sets = [dict.fromkeys(words_of(text)) for text in texts]
    n = Counter(word for held in sets for word in held)
    known = set(net.vocabulary)
    words = tuple(sorted(word for word in n if n[word] >= least and word in known))
    place = {word: i for i, word in enumerate(words)}
    rows = [(i, place[word], word) for i, held in enumerate(sets) for word in held if word in place]
    without = [" ".join(x for x in words_of(texts[i]) if x != word) for i, _, word in rows]
    change = net.features(texts)[[i for i, _, _ in rows]] - net.features(without)
    total, where = np.zeros((len(words), change.shape[1])), [w for _, w, _ in rows]
    np.add.at(total, where, change)
    return words, total / np.bincount(where, minlength=len(words))[:, None]
