"""A reader's own texts by TracIn on word embeddings: a small CNN that learns everything, its words, and the check.

Slower than :mod:`clif_kit.own_study` and for at most ``MAX_ROWS`` training texts: each check trains the CNN again. In
return the encoder is part of what is explained. Sign: positive = helpful.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clif_kit.evaluate import interval, paired_difference
from clif_kit.own_report import csv_bytes, html_explained, html_list, html_page, html_table, html_text, write_folder
from clif_kit.own_run import WARNING, read_both, with_interval
from clif_kit.own_scores import carried, ends, shared_words
from clif_kit.text_scores import text_scores, trace
from clif_kit.text_study import Recipe, TextStudy, make_text_study, predict, retrain_text, train_text
from clif_kit.text_tasks import TextTask
from clif_kit.tracin import word_parts
from clif_kit.train import Fitted

MAX_ROWS = 5000
RECIPE = Recipe(epochs=6, lr=0.004, batch_size=32, optimizer="adam")


def tracin_study(
    train: pd.DataFrame, test: pd.DataFrame, classes: Sequence[str], *, max_length: int = 48, width: int = 32
) -> TextStudy:
    """The CNN for these texts, see :func:`clif_kit.text_study.make_text_study`.

    Raises:
        ValueError: If there are more than ``MAX_ROWS`` training texts.
    """
    if len(train) > MAX_ROWS:
        raise ValueError(
            f"{len(train):,} training texts are too many for tracin_we, {MAX_ROWS:,} at most: use influence"
        )
    code = {name: k for k, name in enumerate(classes)}
    sides = [side.assign(pair="", label=side["label"].map(code).astype(int)) for side in (train, test)]
    task = TextTask("own", tuple(classes), sides[0], sides[1], sides[1], False, ())
    return make_text_study(task, "cnn", RECIPE, max_length=max_length, width=width)


def tracin_ranked(study: TextStudy, fitted: Fitted, train: pd.DataFrame, test: pd.DataFrame, k: int) -> pd.DataFrame:
    """The k most helpful and most harmful training texts of each test text by TR-WE, in the form of ``ranked``."""
    scores = text_scores(study, fitted, ["tr_we", "bm25"])
    sides, shared, found = trace(study, fitted), shared_words(), []
    says = predict(study, fitted.params).argmax(1).tolist()
    for q, (_, asked) in enumerate(test.iterrows()):
        head = {"test_row": asked["row"], "test_text": asked["text"], "test_label": asked["label"]}
        for side, order in ends(scores["tr_we"][q], k):
            for rank, i in enumerate(order.tolist(), 1):
                text, parts = train.iloc[i], word_parts(*sides, i, q)
                found.append(head | {
                    "predicted": study.task.classes[says[q]], "method": "tracin_we", "side": side, "rank": rank,
                    "score": scores["tr_we"][q, i], "bm25": scores["bm25"][q, i], "train_row": text["row"],
                    "train_id": text["id"], "train_label": text["label"], "train_text": text["text"],
                    "words": carried(list(zip(parts.names, parts.parts.tolist(), strict=True))),
                    "shared": shared(asked["text"], text["text"]),
                })  # fmt: skip
    return pd.DataFrame(found)


def tracin_check(
    study: TextStudy, fitted: Fitted, *, checks: int, share: float, draws: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Change of the loss when proponents leave and the CNN is trained again from the same start, ``(checks,)``.

    Returns:
        ``tracin_we``, ``bm25``, ``same_class_random`` (mean of ``draws`` sets) and ``removed``.
    """
    scores, rng, again = text_scores(study, fitted, ["tr_we", "bm25"]), np.random.default_rng(seed), retrain_text(study)
    y, asked, n = study.labels("train").numpy(), study.labels("test").numpy(), len(study.train)
    before = again(np.ones(n, dtype=bool), seed)["loss"]
    found = {name: np.zeros(checks) for name in ("tracin_we", "bm25", "same_class_random", "removed")}
    for q in range(checks):
        same = np.flatnonzero(y == asked[q])
        m = max(1, min(round(share * n), len(same) // 2))
        sets = {
            name: [np.argsort(-scores[key][q], kind="stable")[:m]]
            for name, key in (("tracin_we", "tr_we"), ("bm25", "bm25"))
        }
        sets["same_class_random"] = [rng.choice(same, m, replace=False) for _ in range(draws)]
        for name, gone in sets.items():
            keeps = [~np.isin(np.arange(n), rows) for rows in gone]
            found[name][q] = np.mean([again(keep, seed)["loss"][q] for keep in keeps]) - before[q]
        found["removed"][q] = m
    return found


def explain_tracin(
    path: str | Path, out: str | Path, *, text: str = "text", label: str = "label", test: str | Path | None = None,
    k: int = 10, tests: int = 20, checks: int = 4, share: float = 0.05, seed: int = 0,
    say: Callable[[str], None] = print, go_on: Callable[[], bool] = lambda: True,
) -> list[Path] | None:  # fmt: skip
    """As :func:`clif_kit.own_run.explain_texts`, by TracIn on word embeddings.

    Raises:
        BadCSV, FileNotFoundError, ValueError: With one line, before anything is written.
    """
    texts, train, asked, notes = read_both(path, test, text, label, tests, seed)
    study = tracin_study(train, asked, texts.classes)
    for line in notes:
        say(line)
    say(f"the CNN is trained {1 + min(checks, len(asked)) * 4} times")
    if not go_on():
        return None
    fitted = train_text(study, seed)
    table = tracin_ranked(study, fitted, train, asked, k)
    found = tracin_check(study, fitted, checks=min(checks, len(asked)), share=share, seed=seed)
    means = {name: interval(np.mean, found[name], over="test texts") for name in found if name != "removed"}
    lines = [
        f"check: without {int(found['removed'][0])} texts by {name}, loss {with_interval(one)}"
        for name, one in means.items()
    ]
    gain = paired_difference(found["tracin_we"], found["same_class_random"], "test texts")
    lines.append(f"check: tracin_we minus random {with_interval(gain)}")
    for line in lines:
        say(line)
    check = pd.DataFrame({"test_row": asked["row"][: len(found["removed"])]} | found)
    names = {name: name.replace("_", " ") for name in check}
    parts = [html_text(WARNING), html_list([*notes, *lines]), *html_explained(table, "tracin_we")]
    page = html_page(f"{Path(path).name}: TracIn", [*parts, html_table("Change of the loss in nats", check, names)])
    files = {"influences.csv": csv_bytes(table), "deletion_check.csv": csv_bytes(check), "report.html": page}
    return write_folder(out, files)
