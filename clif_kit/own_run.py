"""The whole way in one call: from a file to ranked, explained training texts, the check, and the files that say so.

What is wrong with the input is said before anything is computed or written; features that are computed are kept, so
that a run that was stopped goes on where it was.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from clif_kit.evaluate import Interval
from clif_kit.own_check import check_intervals, deletion_check
from clif_kit.own_encoder import read_encoder
from clif_kit.own_report import csv_bytes, html_explained, html_list, html_page, html_table, html_text, write_folder
from clif_kit.own_scores import ranked, suspicious
from clif_kit.own_study import OwnStudy, hold_out, layer_seconds, make_own_study
from clif_kit.own_texts import OwnTexts, overlap, read_texts, some_rows
from clif_kit.own_vectors import read_vectors
from clif_kit.own_words import WordBias, read_lists, word_bias

WARNING = "Positive = helpful: without the training text the loss of the test text is predicted to rise."


def explain_texts(
    path: str | Path, out: str | Path, *, text: str = "text", label: str = "label", test: str | Path | None = None,
    model: str | None = None, k: int = 10, tests: int = 20, checks: int = 10, share: float = 0.02,
    max_length: int = 128, seed: int = 0, say: Callable[[str], None] = print,
    go_on: Callable[[float], bool] = lambda _: True, progress: bool = False,
) -> list[Path] | None:  # fmt: skip
    """Read, validate, estimate, score, explain, check, write.

    Args:
        path: CSV of the training texts.
        out: Folder for ``influences.csv``, ``suspicious.csv``, ``deletion_check.csv`` and ``report.html``.
        text: Column of the texts.
        label: Column of the labels.
        test: CSV of the texts to explain. None: some are held out.
        model: See :func:`clif_kit.own_encoder.read_encoder`.
        k: Training texts shown at either end.
        tests: Test texts that are explained, at most.
        checks: Test texts of the deletion check, 2 or more.
        share: Of the training texts that leave in it.
        max_length: Tokens of a text that are read.
        seed: Of all draws.
        say: Is told what was found, a line each.
        go_on: Is told the seconds that are left; False stops.
        progress: Draw bars.

    Returns:
        The files, or None when ``go_on`` stopped.

    Raises:
        BadCSV, BadModel, FileNotFoundError, ValueError: With one line, before anything is written.
    """
    if not (k >= 1 and tests >= 2 and 2 <= checks <= 1000 and 0 < share < 1):
        raise ValueError("need k >= 1, tests >= 2, checks >= 2 and a share between 0 and 1")
    texts, train, asked, notes = read_both(path, test, text, label, tests, seed)
    for line in notes:
        say(line)
    encoder = read_encoder(model, max_length=max_length)

    def estimate(seconds: float, there: int) -> bool:
        rest = layer_seconds(len(train), 384, len(texts.classes), min(checks, len(asked)), 3)
        done = f" ({there} chunks of an earlier run are there)" if there else ""
        say(f"features: about {_time(seconds)}{done}; last layer, scores and check: about {_time(rest)}")
        return go_on(seconds + rest)

    study = make_own_study(
        train, asked, texts.classes, encoder, folder=Path(out) / "features", seed=seed, say=estimate, progress=progress
    )
    if study is None:
        return None
    some = range(min(checks, len(asked)))
    found = deletion_check(study, some, share=share, seed=seed, progress=progress)
    tables = ranked(study, range(len(asked)), k, progress=progress), suspicious(study, 50), _check_table(study, found)
    lines = _summary(study, found)
    for line in lines:
        say(line)
    return write_folder(out, _files(Path(path).name, [*notes, *lines], tables))


def explain_words(
    corpus: str | Path, lists: str | Path, out: str | Path, *, vectors: str | Path | None = None, k: int = 10,
    share: float = 0.05, seed: int = 0, say: Callable[[str], None] = print,
) -> list[Path]:  # fmt: skip
    """The second door: which sentences of a corpus carry the bias of its word vectors?

    Args:
        corpus: A ``.txt`` with a sentence a line, or a ``.csv``.
        lists: YAML with the lists ``x``, ``y``, ``a``, ``b``.
        out: Folder for ``sentences.csv`` and ``report.html``.
        vectors: Word vectors whose effect is measured too.
        k: Sentences shown at either end.
        share: Of the sentences about the words that leave in the check.
        seed: Of the start and the draws.
        say: Is told what was found.

    Raises:
        BadVectors, BadCorpus, FileNotFoundError: With one line, before anything is written.
    """
    test = read_lists(lists)
    known = (
        None
        if vectors is None
        else read_vectors(vectors, {w for side in (test.x, test.y, test.a, test.b) for w in side})
    )
    found = word_bias(corpus, test, known, share=share, k=k, seed=seed)
    lines = _word_summary(found)
    for line in lines:
        say(line)
    names = {"score": "score", "id": "where", "text": "sentence", "words": "words that carry it"}
    parts = [
        html_text("Positive = mitigating: without the sentence the bias grows. Negative = amplifying."),
        html_list(lines),
    ]
    for caption, rows in (("Most amplifying", found.table[::-1][:k]), ("Most mitigating", found.table[:k])):
        parts.append(html_table(caption, rows, names))
    page = html_page(f"{Path(corpus).name}: what carries {test.name}", parts)
    return write_folder(out, {"sentences.csv": csv_bytes(found.table), "report.html": page})


def read_both(
    path: str | Path, test: str | Path | None, text: str, label: str, tests: int, seed: int
) -> tuple[OwnTexts, pd.DataFrame, pd.DataFrame, list[str]]:
    """Everything that can be wrong with the files, in order; training texts, texts to explain, what was found."""
    texts = read_texts(path, text=text, label=label)
    notes = list(texts.notes)
    if test is None:
        train, asked = hold_out(texts, tests, seed)
        notes.append(f"{len(asked)} texts are held out to be explained; {len(train):,} are for training")
        return texts, train, asked, notes
    other = read_texts(test, text=text, label=label, classes=1)
    notes += other.notes
    if unknown := sorted(set(other.classes) - set(texts.classes)):
        raise ValueError(f"{test}: the label {unknown[0]!r} does not occur in {path}")
    known = overlap(texts.frame, other.frame)
    if known.any():
        rows = some_rows(other.frame["row"][known])
        notes.append(
            f"{Path(test).name}: {known.sum():,} texts stand in the training file too ({rows}): look at them first"
        )
    if len(other.frame) < 2:
        raise ValueError(f"{test}: need two test texts or more")
    notes.append(f"the first {min(tests, len(other.frame))} of {len(other.frame):,} test texts are explained")
    return texts, texts.frame, other.frame[:tests].reset_index(drop=True), notes


def _summary(study: OwnStudy, found: dict[str, np.ndarray]) -> list[str]:
    right = np.array(study.predicted()) == study.test["label"].to_numpy()
    lines = [f"model: penalty {study.layer.l2:g}; right on {right.sum()} of {len(right)} explained texts"]
    check, m = check_intervals(found), int(found["removed"].max())
    for name, words in (
        ("influence", "most helpful by influence"),
        ("bm25", "best by BM25"),
        ("same_class_random", "random of the class"),
    ):
        lines.append(f"check: without the {m} text{'s' * (m > 1)} {words}, loss {with_interval(check[name])}")
    gain = check["influence minus random"]
    verdict = "confirmed" if gain.low > 0 else "refuted" if gain.high < 0 else "not decided"
    return [*lines, f"check: influence minus random {with_interval(gain)}: {verdict}"]


def _word_summary(found: WordBias) -> list[str]:
    lines = [f"{found.test.name}: effect {found.effect:+.2f} in vectors trained on {len(found.table):,} sentences"]
    if found.given is not None:
        same = (
            "the same sign"
            if found.given * found.effect > 0
            else "ANOTHER SIGN: the sentences explain the trained ones alone"
        )
        lines.append(f"effect {found.given:+.2f} in the given vectors: {same}")
    lines.append(
        f"check: without the {found.removed} most amplifying sentences |effect| {found.check['amplifying']:+.3f}"
    )
    return [*lines, f"check: without as many random ones |effect| {with_interval(found.check['random'])}"]


def _check_table(study: OwnStudy, found: dict[str, np.ndarray]) -> pd.DataFrame:
    test = study.test.iloc[: len(found["removed"])]
    return pd.DataFrame(
        {"test_row": test["row"], "test_label": test["label"], "loss": study.test_losses()[: len(test)]} | found
    )


def _files(name: str, lines: list[str], tables: tuple[pd.DataFrame, ...]) -> dict[str, bytes]:
    table, doubtful, check = tables
    names = {
        "train_row": "row",
        "label": "label",
        "model_says": "the model says",
        "self_influence": "self-influence",
        "text": "text",
    }
    parts = [html_text(WARNING), html_list(lines), "<h2>What was explained</h2>", *html_explained(table)]
    parts += ["<h2>Labels to look at first</h2>", html_table("Largest self-influence", doubtful[:20], names)]
    shown = {
        "test_row": "test row",
        "test_label": "label",
        "loss": "loss before",
        "influence": "influence",
        "bm25": "BM25",
    }
    parts += [
        "<h2>Check by removal</h2>",
        html_table("Change of the loss in nats", check, shown | {"same_class_random": "random"}),
    ]
    return {
        "influences.csv": csv_bytes(table),
        "suspicious.csv": csv_bytes(doubtful),
        "deletion_check.csv": csv_bytes(check),
        "report.html": html_page(f"{name}: training texts behind the answers", parts),
    }


def with_interval(found: Interval) -> str:
    """A number with sign and interval, as a phrase: ``+0.1 [+0.05, +0.2], 8 test texts``."""
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}], {found.n} {found.over}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
