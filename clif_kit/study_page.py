r"""A classroom study: do the panels of a feature show a pattern to people, and more so than shuffled panels do?

``python -m clif_kit.study_page`` writes ``book/study_data.html``, which ``book/study.md`` includes and
``book/_static/study.js`` shows; ``python -m clif_kit.study_page FILE`` writes one HTML file with everything in it, to
be opened without a network. A student answers, sees a score, and downloads the answers;
:mod:`clif_kit.study_answers` reads those of a class.

A *real* panel shows the inputs that excite a feature most; in a *shuffled* one the feature's values were dealt out
again at random before. Somebody who sees patterns everywhere says yes to both. After Wong, Santurkar & Madry (2021).
"""

import base64
import hashlib
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clif_kit import corpora, report
from clif_kit.explorer import frame, html_table
from clif_kit.sparse import elastic_net_path, select_sparse, standardise

PAGE = report.ROOT / "book" / "study_data.html"
STATIC = report.ROOT / "book" / "_static"
SHOWN = 6  # pictures, or words, of a panel
KINDS = {
    "pattern": {"question": "Is there a shared pattern?", "answers": ["yes", "no"]},
    "pair": {"question": "Which of these two does it belong to?", "answers": ["a", "b"]},
}
SIZES = {"images": 4, "words": 2}  # real panels of each kind of question, and as many shuffled ones


def study_data(sizes: Mapping[str, int] = SIZES, seed: int = 0) -> dict:
    """All that the page shows.

    Args:
        sizes: Real panels of each question by what they show, and as many shuffled ones.
        seed: Of the network, the shuffling and the order.

    Returns:
        ``study``: digest of the questions; ``kinds``; ``questions``, each with ``id``, ``kind``, ``what`` ("images" or
        "words"), ``panel``, ``choices`` (of a pair: two pictures or words), ``real`` and ``right``, the answer that is
        counted as correct. Of a shuffled pair one is right too, by a value that was dealt out: chance is a half.
    """
    rng, questions = np.random.default_rng(seed), []
    for what, features in (("images", image_features(seed)), ("words", word_features(seed))):
        items, values = features
        for real in (True, False):
            dealt = values if real else rng.permuted(values, axis=0)
            chosen = rng.choice(values.shape[1], 2 * sizes[what], replace=False)
            for k, feature in enumerate(chosen):
                kind = "pattern" if k < sizes[what] else "pair"
                questions.append(_question(kind, what, real, items, dealt[:, feature], rng))
    order = rng.permutation(len(questions))
    questions = [{"id": f"q{i + 1:02d}", **questions[k]} for i, k in enumerate(order)]
    digest = hashlib.sha256(repr(questions).encode()).hexdigest()[:12]
    return {"study": digest, "kinds": KINDS, "questions": questions}


def _question(
    kind: str, what: str, real: bool, items: Sequence[str], values: np.ndarray, rng: np.random.Generator
) -> dict:
    """One question; the one that belongs comes from the next best, the other from the lower half."""
    down = np.argsort(-values, kind="stable")
    panel, belongs = down[:SHOWN], down[SHOWN + rng.integers(4)]
    other = rng.choice(down[len(down) // 2 :])
    right = int(rng.integers(2))
    choices = [] if kind == "pattern" else [items[i] for i in ((belongs, other) if right == 0 else (other, belongs))]
    answer = ("yes" if real else "no") if kind == "pattern" else "ab"[right]
    shown = {"panel": [items[i] for i in rng.permutation(panel)], "choices": choices}
    return {"kind": kind, "what": what, **shown, "real": real, "right": answer}


def image_features(seed: int = 0, width: int = 48) -> tuple[list[str], np.ndarray]:
    """Pictures as data URIs, and the hidden units that a sparse last layer keeps: ``(n,)`` and ``(n, features)``."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    net = MLPClassifier((width,), max_iter=30, random_state=seed, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that 30 passes are few
        net.fit(images / 16, labels)
    hidden = np.maximum(images / 16 @ net.coefs_[0] + net.intercepts_[0], 0)
    train, val = standardise(hidden[:1200], hidden[1200:])
    path = elastic_net_path(train, labels[:1200], classes=10, n_lambdas=12, eps=0.02, tol=1e-4)
    best = select_sparse(path, path.accuracy(val, labels[1200:]), within=2)
    used = (path.weights[best] != 0).any(0).numpy()
    return [png(image) for image in images.reshape(-1, 8, 8)], hidden[:, used]


def word_features(seed: int = 0, topics: int = 24) -> tuple[list[str], np.ndarray]:
    """Words of Wikipedia, and how much each belongs to a topic: ``(words,)`` and ``(words, topics)``."""
    from sklearn.decomposition import NMF
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join(words) for words in corpora.wikipedia().words]
    vectors = TfidfVectorizer(min_df=15, max_features=1500, stop_words="english", token_pattern=r"[a-z]{4,}")
    table = vectors.fit_transform(texts)
    model = NMF(topics, init="nndsvd", max_iter=60, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 60 passes are few
        model.fit(table)
    return vectors.get_feature_names_out().tolist(), model.components_.T


def png(image: np.ndarray) -> str:
    """A grey picture as a data URI, dark on light; values from 0 to 16.

    >>> png(np.zeros((8, 8)))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray((255 - image * 255 / 16).round().astype(np.uint8)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


# ---- the page


def page_data(data: Mapping) -> str:
    """The part of the page that is generated: the questions, and the word lists as a table without JavaScript."""
    note = "The study needs JavaScript. Without it, these are the word lists, real and shuffled ones mixed:"
    rows = [(q["id"], KINDS[q["kind"]]["question"], ", ".join(q["panel"]), " or ".join(q["choices"]))
            for q in data["questions"] if q["what"] == "words"]  # fmt: skip
    table = html_table("Word lists of the study", ("number", "question", "panel", "choices"), rows)
    return frame(data, "clif_kit.study_page", note, table, look=' class="study"')


def alone(data: Mapping) -> str:
    """One HTML file with everything in it."""
    style, code = ((STATIC / name).read_text("utf-8") for name in ("study.css", "study.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Do you see a pattern?</title>\n<style>{style}</style></head>\n"
        f'<body class="alone"><main><h1>Do you see a pattern?</h1>\n{page_data(data)}</main>\n'
        f"<script>{code}</script></body></html>\n"
    )


def write_study(path: Path | None = None) -> None:
    """Compute and write: the book's part, or one file with everything. The same bytes on the same machine."""
    data = study_data()
    report._write(path or PAGE, (alone(data) if path else page_data(data)).encode())


if __name__ == "__main__":
    write_study(*map(Path, sys.argv[1:2]))
