r"""The data of the book's second explorer page: test sentences, and who made a classifier say what it says of them.

``python -m clif_kit.text_explorer`` trains the CNN on sentences of Wikipedia articles that gensim ships and writes
``book/text_explorer_data.html``, which ``book/text_explorer.md`` includes and ``book/_static/text_explorer.js`` shows.
Nothing else writes that file. Three methods and a control by chance name training texts; each list is put to the test:
its texts leave together, and the model is trained again.

A score is the predicted change of the test text's loss when the training text is removed: positive = proponent.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from clif_kit import corpora, report
from clif_kit.deletion_metrics import judge
from clif_kit.deletion_study import CONTROLS, Deletions, Panel, run_panel
from clif_kit.explorer import carried_by, digits, frame, html_table, signed
from clif_kit.text_scores import trace
from clif_kit.text_study import Recipe, TextStudy, predict, train_text
from clif_kit.text_tokens import read_tokenizer
from clif_kit.tracin import word_parts
from clif_kit.train import Fitted

PAGE = report.ROOT / "book" / "text_explorer_data.html"
FOLDER = report.ROOT / "_build" / "store" / "explorer"
CONTROL = CONTROLS[0]
METHODS = {  # "parts": what the parts of its scores go with
    "tr_we": {
        "title": "TR-WE",
        "note": "TracIn on the word vectors: gradients at the words that both sentences have. The parts of the words "
        "and of the start and end tokens add up to the score.",
        "parts": "tokens",
    },
    "tr_last": {
        "title": "TR-last",
        "note": "TracIn on the last layer: one number for the whole sentence. It has no words, so none is marked.",
    },
    "tr_tfidf": {
        "title": "TR-TFIDF",
        "note": "Likeness by TF-IDF, times both sentences' loss gradients. The parts of the words add up to the score.",
        "parts": "words",
    },
    CONTROL: {"title": "Control: chance", "note": "No method and no score: drawn by chance, once."},
}
ENDS = {  # what the methods predict without these texts, and what the control draws from
    "high": {"title": "Proponents", "predicted": "would fall", "drawn": "the same topic"},
    "low": {"title": "Opponents", "predicted": "would rise", "drawn": "other topics"},
}
PANEL = Panel(
    task="topics", kind="cnn", train=1200, val=240, test=8, max_length=24, width=32, methods=tuple(METHODS),
    recipe=Recipe(epochs=3, lr=0.005, batch_size=64, optimizer="adam"), sizes=(20,), seeds=5,
)  # fmt: skip


# ---- numbers


def text_explorer_data(panel: Panel = PANEL, folder: str | Path = FOLDER, *, n_jobs: int = 1) -> dict:
    """All that the page shows: scores of 3 significant digits, probabilities of 3 decimals, and texts.

    Args:
        panel: Of the task "topics", with the methods of ``METHODS`` and one k: the length of a list.
        folder: Where retrainings are kept. A killed run goes on.
        n_jobs: Processes.

    Returns:
        ``settings``, ``classes``, ``methods``, ``ends``; ``texts``, each ``[article, class, text, words of it that the
        model reads]``; ``questions``, one a test text: ``text`` likewise, ``predicted`` class, ``probability`` of the
        true class by seed, ``special``: share of TR-WE's mass at start and end tokens, and ``lists`` by method and end.
        An end has ``rows`` ``[place in texts, score, parts]`` and ``trained``, the change of the probability by seed.
        The first part is that of the start and end tokens, the others go with the words; zeros at the end are left
        out. ``summary`` by method, all test texts and seeds together: ``high`` and ``low``, the mean change at either
        end, and ``gain``, half the distance of the two, less the control's; each with its 95 % interval.

    Raises:
        ValueError: If a list as long as k would hold a score of the wrong sign.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum in another order would give other last digits
    try:
        found = run_panel(panel, folder, n_jobs=n_jobs)
        fitted = train_text(found.study, 0)  # the model that the scores are from
        lists = _lists(found, carriers(found.study, fitted, found.scores))
    finally:
        torch.set_num_threads(threads)
    rows = [row for one in lists for ends in one.values() for end in ends.values() for row in end["rows"]]
    shown = sorted({row[0] for row in rows})
    for row in rows:
        row[0] = shown.index(row[0])
    study, before = found.study, found.results["probability"][0]  # (seeds, tests)
    columns = {
        "text": _texts(study, "test", range(panel.test)),
        "predicted": predict(study, fitted.params).argmax(1).tolist(),
        "probability": [_decimals(column) for column in before.T],
        "special": _decimals(np.nan_to_num(found.special)),
        "lists": lists,
    }
    return {
        "settings": {
            "train": panel.train, "validation": panel.val, "k": panel.sizes[0], "seeds": panel.seeds,
            "accuracy": round(100 * float(found.correct.mean())),
            "special": "+".join(study.train.names[row] for row in study.train.special),
        },
        "classes": list(study.task.classes),
        "methods": METHODS,
        "ends": ENDS,
        "texts": _texts(study, "train", shown),
        "questions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "summary": _summary(found),
    }  # fmt: skip


def _lists(found: Deletions, parts: Mapping[str, Callable[[int, int], np.ndarray]]) -> list[dict]:
    """The lists of each test text, by method and end."""
    for method, scores in found.scores.items():
        high, low = (np.take_along_axis(scores, chosen, 1) for chosen in found.ranks[method])
        if not ((high > 0).all() and (low < 0).all()):
            raise ValueError(f"{method}: k = {found.panel.sizes[0]} texts have scores of both signs: take a smaller k")
    lists = [{method: {} for method in found.ranks} for _ in range(found.panel.test)]
    for method, ranks in found.ranks.items():
        scores, carried = found.scores.get(method), parts.get(method, lambda *_: ())
        for q, one in enumerate(lists):
            for end, chosen, changes in zip(ENDS, ranks[:, q].tolist(), found.effects[method][:, 0, q], strict=True):
                sizes = [None if scores is None else digits(scores[q, i]) for i in chosen]
                rows = [[i, size, _short(carried(i, q))] for i, size in zip(chosen, sizes, strict=True)]
                one[method][end] = {"rows": rows, "trained": _decimals(changes)}
    return lists


def _texts(study: TextStudy, split: str, rows: Sequence[int]) -> list[list]:
    titles, frame, tokens = corpora.wikipedia().source, getattr(study.task, split), getattr(study, split).take(rows)
    frame = frame.loc[list(rows)]
    special, owners = {tokens.names[row] for row in tokens.special}, words_of_pieces(frame["text"])
    counts = [sum(piece not in special for piece in tokens.words(k)) for k in range(len(tokens))]
    read = [int(owner[:count].max(initial=-1)) + 1 for owner, count in zip(owners, counts, strict=True)]
    articles = [titles[int(name.removeprefix("wikipedia-"))] for name in frame["id"]]
    return [list(row) for row in zip(articles, frame["label"].tolist(), frame["text"], read, strict=True)]


def _summary(found: Deletions) -> dict[str, dict[str, list[float]]]:
    what = judge(found.effects, "here", [(name, CONTROL) for name in found.scores])
    keys = {"high": "auc_del_plus/{}", "low": "auc_del_minus/{}", "gain": f"auc_del_gain/{{}}_minus_{CONTROL}"}
    rows = {name: {end: what.get(f"{key.format(name)}/here") for end, key in keys.items()} for name in found.effects}
    return {name: {e: _decimals((x.value, x.low, x.high)) for e, x in row.items() if x} for name, row in rows.items()}


def _decimals(values: Sequence[float]) -> list[float]:
    return [round(float(x), 3) + 0.0 for x in values]  # no minus before a zero


def _short(parts: Sequence[float]) -> list[float]:
    return [digits(x) for x in np.trim_zeros(np.asarray(parts, dtype=float), "b")]


# ---- the words that carry a score


def carriers(
    study: TextStudy, fitted: Fitted, scores: Mapping[str, np.ndarray]
) -> dict[str, Callable[[int, int], np.ndarray]]:
    """By method, a function of a training text and a test text: start and end tokens' part, then one for each word."""
    (train, query), texts, asked = trace(study, fitted), study.task.train["text"], study.task.test["text"]
    vectors, owners = TfidfVectorizer().fit(texts), words_of_pieces(texts)

    def by_gradients(i: int, q: int) -> np.ndarray:
        tokens, out = train.tokens.take([i]), np.zeros(texts[i].count(" ") + 2)
        special = np.isin(tokens.ids[0], tokens.special)
        places = np.zeros(len(special), dtype=np.int64)
        places[~special] = 1 + owners[i][: (~special).sum()]  # the end of a long text is cut off
        np.add.at(out, places, word_parts(train, query, i, q).train)
        return out

    def by_tfidf(i: int, q: int) -> np.ndarray:
        return np.array([0.0, *tfidf_parts(vectors, texts[i], asked[q]) * scores["tr_tfidf"][q, i]])

    return {"tr_we": by_gradients, "tr_tfidf": by_tfidf}


def words_of_pieces(texts: Sequence[str]) -> list[np.ndarray]:
    """For each word piece of MiniLM's tokenizer the place of its word; words stand between single blanks.

    >>> words_of_pieces(["aardvarks live"])[0].tolist()
    [0, 0, 0, 0, 1]
    """
    tokenizer = read_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[SEP]" inside a text is text
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [
        np.array([text.count(" ", 0, start) for start, _ in one.offsets], dtype=np.int64)
        for text, one in zip(texts, found, strict=True)
    ]


def tfidf_parts(vectors: TfidfVectorizer, text: str, other: str) -> np.ndarray:
    """What each word of a text has of its cosine of TF-IDF with another; a repeated word's is shared out. Sum 1, or 0.

    >>> tfidf_parts(TfidfVectorizer().fit(["red ship", "red sky"]), "red red sky", "red").tolist()
    [0.5, 0.5, 0.0]
    """
    a, b = vectors.transform([text, other]).toarray()
    products, text = a * b, text.lower()
    words = [(text.count(" ", 0, one.start()), one[0]) for one in re.finditer(vectors.token_pattern, text)]
    counts, out = Counter(word for _, word in words), np.zeros(text.count(" ") + 1)
    for place, word in words:
        if (column := vectors.vocabulary_.get(word)) is not None:
            out[place] += products[column] / counts[word]
    return out / (products.sum() or 1.0)


# ---- the page


def page_data(data: Mapping) -> str:
    """The part of the page that is generated: the data, and one list as a table for readers without JavaScript."""
    note = "With JavaScript you choose the sentence here and see all methods. Without it, the lists of one of them:"
    return frame(data, "clif_kit.text_explorer", note, plain_table(data), look=' class="texts"')


def plain_table(data: Mapping, rows: int = 5) -> str:
    """Both ends of the first test sentence's first list as an HTML table."""
    question, (method, about) = data["questions"][0], next(iter(data["methods"].items()))
    special, body = data["settings"]["special"], []
    for end, found in question["lists"][method].items():
        for i, score, parts in found["rows"][:rows]:
            article, topic, text, _ = data["texts"][i]
            words = f"{special} {text}"  # what the first part goes with, then what the others do
            carried = carried_by({"vocabulary": words.split(" ")}, words, parts)
            share = 100 * (parts or [0])[0] / (sum(map(abs, parts)) or 1)
            cells = (data["ends"][end]["title"], signed(f"{score:+.3g}"), text, data["classes"][topic], article)
            body.append((*cells, carried, signed(f"{share:+.0f} %")))
    caption = f"{about['title']} for: {question['text'][2]} ({data['classes'][question['text'][1]]})"
    return html_table(caption, ("end", "score", "sentence", "topic", "article", "carried by", special), body)


def write_explorer(path: Path = PAGE, folder: str | Path = FOLDER) -> None:
    """Compute and write. The same bytes on the same machine; on another one the last digit may differ."""
    report._write(path, page_data(text_explorer_data(folder=folder)).encode())


if __name__ == "__main__":
    write_explorer()
