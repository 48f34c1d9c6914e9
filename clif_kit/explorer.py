"""The data of the book's explorer page: some questions, some estimators, their sentences, and each score word by word.

``python -m clif_kit.explorer`` trains the deterministic model on Wikipedia articles that gensim ships and writes
``book/explorer_data.html``, which ``book/explorer.md`` includes and ``book/_static/explorer.js`` shows. Nothing else
writes that file. Every list is put to the test: its sentences leave together, and the model is trained again.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from clif_kit import corpora, report
from clif_kit.explain import Model, Question, ask_test, ask_words, direction, make_model, question_study
from clif_kit.sentence_stream import stream_scores, word_parts
from clif_kit.sgns_train import fit
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.weat import SIDES, TESTS, effect
from clif_kit.word_study import Study

PAGE = report.ROOT / "book" / "explorer_data.html"
WORDS = (("apollo",), ("apollo", "nasa"), ("apollo", "god"))
SHAPE = {"window": 5, "negatives": 5, "min_count": 5, "test_count": 2, "size": 380}
GTOL = 2e-4  # of a model that is trained again: two digits of a change need no more
TITLES = {
    "career": "Career and family, with names of men and women",
    "math": "Mathematics and the arts, with words for men and women",
    "art": "The arts and science, with words for men and women",
}
METHODS = {  # title, note, whether its numbers have the unit of the loss
    "cg_full": ("Full inverse Hessian", "Both matrices, all sentences at once; in the unit of the loss.", True),
    "dot": ("Gradient dot", "No inverse. Only its order counts: the size hangs on a step length, here 1.", False),
    "lissa_published": (
        "Published recursion",
        "As in the papers' code: no noise words, the mean over a sentence's pairs, and only the words of the question "
        "move. Only its order counts.",
        False,
    ),
}
KINDS = {  # group, the loss, then what either end does and what happens without its sentences
    "test": (
        "How large is the bias?",
        "|effect|",
        {"high": ("Mitigating", "the bias would be larger"), "low": ("Amplifying", "the bias would be smaller")},
    ),
    "displacement": (
        "How far did a word move in training?",
        "minus the mean squared distance",
        {"high": ("Reinforcing", "it would have moved less"), "low": ("Holding back", "it would have moved further")},
    ),
    "cosine": (
        "How alike are two words?",
        "minus the cosine",
        {"high": ("Drawing together", "the cosine would fall"), "low": ("Pushing apart", "the cosine would rise")},
    ),
}


def explorer_study() -> Study:
    """The sentences of the embedded articles that hold a word of a question."""
    tests, words = {name: TESTS[name] for name in TITLES}, {word for asked in WORDS for word in asked}
    wanted = words.union(*(getattr(test, side) for test in tests.values() for side in SIDES))
    texts = corpora.wikipedia()
    chosen = texts.select(np.array([not wanted.isdisjoint(sentence) for sentence in texts.words]))
    return question_study(chosen, tests, words, **SHAPE)


# ---- numbers


def explorer_data(
    study: Study, words: Sequence[Sequence[str]] = WORDS, *, top: int = 20, width: int = 10, l2: float = 0.003,
    seed: int = 0, repeats: int = 1,
) -> dict:  # fmt: skip
    """All that the page shows, as numbers of 3 significant digits and texts.

    Args:
        study: Its tests are questions.
        words: Further questions: one word (how far it moved) or two (how alike they are).
        top: Sentences at either end of a list, as far as so many score above, or below, zero.
        width: d.
        l2: Penalty.
        seed: Of the start.
        repeats: Runs of the published recursion.

    Returns:
        ``settings``, ``vocabulary``, ``methods``, ``kinds``; ``sentences``, each ``[article, text]``, a row of
        ``articles``; ``questions``: by name ``kind``, ``title``, ``state``, ``words`` by role, and ``lists`` by method
        and end (``high``: helpful; ``low``: harmful). An end has ``rows`` ``[sentence, score, parts]``, one part for
        each word of the sentence that is in the vocabulary (zeros at the end are left out); ``predicted``, the sum of
        the scores, and ``trained``, the change of the loss when the model is trained without these sentences.
    """
    model = make_model(study, width=width, l2=l2, seed=seed)
    asked = [ask_test(model, name) for name in study.tests] + [ask_words(model, *pair) for pair in words]
    questions = {question.name: _question(model, question, top, repeats) for question in asked}
    ends = [end for question in questions.values() for lists in question["lists"].values() for end in lists.values()]
    shown = sorted({row[0] for end in ends for row in end["rows"]})
    articles = sorted({study.sentences.source[i] for i in shown})
    for row in (row for end in ends for row in end["rows"]):
        row[0] = shown.index(row[0])
    return {
        "settings": {"sentences": len(study.corpus), "width": width, "l2": l2, "seed": seed, "repeats": repeats},
        "methods": {name: dict(zip(("title", "note", "scaled"), row, strict=True)) for name, row in METHODS.items()},
        "kinds": {name: dict(zip(("group", "loss", "ends"), row, strict=True)) for name, row in KINDS.items()},
        "vocabulary": sorted(study.corpus.vocabulary.words),
        "articles": articles,
        "sentences": [[articles.index(study.sentences.source[i]), study.sentences.text(i)] for i in shown],
        "questions": questions,
    }


def _question(model: Model, question: Question, top: int, repeats: int) -> dict:
    corpus, params, lists = model.study.corpus, model.best.params, {}
    for method in METHODS:
        h, loss = direction(model, question, method, repeats=repeats)
        scores = stream_scores(corpus, params, [h], loss)[0]
        down = np.argsort(-scores, kind="stable")
        ends = {"high": down[scores[down] > 0], "low": down[::-1][scores[down[::-1]] < 0]}
        lists[method] = {end: _end(model, question, h, loss, scores, chosen[:top]) for end, chosen in ends.items()}
    return {
        "kind": question.kind,
        "title": TITLES.get(question.name, " and ".join(question.words.get("word", [question.name]))),
        "state": _state(model, question),
        "words": {role: list(words) for role, words in question.words.items()},
        "lists": lists,
    }


def _state(model: Model, question: Question) -> str:
    """What the vectors say now."""
    value = float(question.loss(model.best.params))
    if question.kind == "test":
        test, vectors = model.study.tests[question.name], model.best.params["input"]
        return f"|effect| {value:.2f}; X leans towards {'A' if effect(vectors, test) > 0 else 'B'}"
    return f"{'cosine' if question.kind == 'cosine' else 'mean squared distance'} {-value:.2f}"


def _end(
    model: Model, question: Question, h: Params, loss: SkipgramLoss, scores: np.ndarray, chosen: np.ndarray
) -> dict:
    """One end of a list: its sentences, and what happens without them."""
    params, rows = model.best.params, []
    for i in chosen.tolist():
        parts = [digits(part) for part in word_parts(model.study.corpus, i, params, h, loss).sum(1)]
        while parts and not parts[-1]:
            parts.pop()
        rows.append([i, digits(scores[i]), parts])
    again = fit(model.objective.without(chosen), model.best.x, gtol=GTOL, lbfgs_steps=0) if rows else model.best
    change = float(question.loss(again.params)) - float(question.loss(params))
    return {"rows": rows, "predicted": digits(scores[chosen].sum()), "trained": digits(change, 2)}


def digits(x: float, count: int = 3) -> float | int:
    """Round to so many significant digits; zero is the integer.

    >>> digits(0.0123456), digits(-1234.5), digits(-0.0)
    (0.0123, -1230.0, 0)
    """
    return float(f"{x:.{count}g}") or 0


# ---- the page


def page_data(data: Mapping) -> str:
    """The part of the page that is generated: the data, and one list as a table for readers without JavaScript."""
    note = "With JavaScript you choose the question and the estimator here. Without it, one of the lists:"
    return frame(data, "clif_kit.explorer", note, plain_table(data))


def frame(data: Mapping, module: str, note: str, table: str, look: str = "") -> str:
    """An explorer's generated part: who wrote it, a note, a table that needs no script, and the data for the script."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f"<!-- Written by `python -m {module}`. Do not edit. -->\n"
        f'<div id="explorer"{look}><p class="note">{note}</p>\n'
        f'<div class="pst-scrollable-table-container">{table}</div></div>\n'
        f'<script type="application/json" id="explorer-data">{text}</script>\n'
    )


def plain_table(data: Mapping, rows: int = 5) -> str:
    """Both ends of the first question's first list as an HTML table."""
    question, method = next(iter(data["questions"].values())), next(iter(data["methods"]))
    body = []
    for end, (name, _) in data["kinds"][question["kind"]]["ends"].items():
        for i, score, parts in question["lists"][method][end]["rows"][:rows]:
            article, text = data["sentences"][i]
            cells = (name, signed(f"{score:+.3g}"), text, data["articles"][article], carried_by(data, text, parts))
            body.append(cells)
    caption = f"{question['title']} ({question['state']}), by the {data['methods'][method]['title']}"
    return html_table(caption, ("end", "score", "sentence", "article", "carried by"), body)


def html_table(caption: str, names: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Texts as an HTML table."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    return (
        f"<table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>"
    )


def carried_by(data: Mapping, text: str, parts: Sequence[float], count: int = 3) -> str:
    r"""The words with the largest parts, each with its share of the sum of all sizes.

    >>> carried_by({"vocabulary": ["he", "left"]}, "he left when he could", [0.5, -0.25, 0.25])
    'he +75\xa0%, left −25\xa0%'
    """
    vocabulary, sums = set(data["vocabulary"]), Counter()
    for word, part in zip((word for word in text.split(" ") if word in vocabulary), parts, strict=False):
        sums[word] += part
    total = sum(map(abs, sums.values())) or 1.0
    largest = sorted(sums.items(), key=lambda item: -abs(item[1]))[:count]
    return ", ".join(signed(f"{word} {100 * part / total:+.0f}\N{NO-BREAK SPACE}%") for word, part in largest if part)


def signed(text: str) -> str:
    """A minus as printers set it."""
    return text.replace("-", "\N{MINUS SIGN}")


def write_explorer(path: Path = PAGE) -> None:
    """Compute and write. The same bytes on the same machine; on another one the last digit may differ."""
    report._write(path, page_data(explorer_data(explorer_study())).encode())


if __name__ == "__main__":
    write_explorer()
