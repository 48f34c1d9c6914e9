"""A table of sentences and their scores for a page, each score split by the words that carry it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from clif_kit.word_study import Study

LONGEST = 30  # words of a sentence that are shown


@dataclass(frozen=True)
class SentenceTable:
    """What a notebook shows as a table; as text it is one line a row.

    Attributes:
        caption: Of the table.
        rows: ``(group, score, source, sentence, cause)``, the sentence as HTML.
    """

    caption: str
    rows: Sequence[tuple[str, float, str, str, str]]

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("end", "score", "sentence", "from", "cause"))
        body = "".join(
            f"<tr><td>{escape(group)}</td><td>{_number(score)}</td><td>{sentence}</td>"
            f"<td>{escape(source)}</td><td>{escape(cause)}</td></tr>"
            for group, score, source, sentence, cause in self.rows
        )
        return (
            f'<table class="sentences"><caption>{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def __repr__(self) -> str:
        return f"{self.caption} ({len(self.rows)} rows)"


def sentence_table(
    study: Study,
    scores: np.ndarray,
    cause: Callable[[int], dict[str, dict[str, float]]],
    *,
    caption: str,
    names: tuple[str, str] = ("amplifies", "mitigates"),
    k: int = 5,
    skip: Callable[[int], bool] | None = None,
) -> SentenceTable:
    """The ``k`` sentences with the lowest and the ``k`` with the highest score, by score and never by hand.

    Args:
        study: Holds the texts; offensive ones come masked.
        scores: Of every sentence, ``(n,)``.
        cause: Splits the score of a sentence, see :func:`clif_kit.word_study.causes`.
        caption: Of the table.
        names: Of the low and the high end.
        k: Rows an end.
        skip: Sentences to leave out, by number; say so in the caption.
    """
    order = [int(i) for i in np.argsort(scores, kind="stable") if skip is None or not skip(int(i))]
    low, high = order[:k], order[::-1][:k]
    rows = []
    for name, chosen in zip(names, (low, high), strict=True):
        for i in chosen:
            parts = cause(i)
            carried = {word for side in "xyab" for word in parts.get(side, {})}
            rows.append((name, float(scores[i]), study.sentences.source[i], _marked(study, i, carried), _cause(parts)))
    return SentenceTable(caption, rows)


def _marked(study: Study, i: int, carried: set[str]) -> str:
    words = study.sentences.text(i, keep=frozenset(carried)).split(" ")
    shown = [f"<strong>{escape(word)}</strong>" if word in carried else escape(word) for word in words[:LONGEST]]
    return " ".join(shown) + (" …" if len(words) > LONGEST else "")


def _cause(parts: dict[str, dict[str, float]]) -> str:
    """The four largest parts, as shares of the sum of sizes: ``Y donna 71 %, A office 20 %``."""
    flat = [(abs(part), side, word) for side, words in parts.items() for word, part in words.items() if part]
    total = sum(size for size, *_ in flat) or 1.0
    best = sorted(flat, reverse=True)[:3]
    return ", ".join(
        f"{'' if side == 'other' else side.upper() + ' '}{word} {100 * size / total:.0f} %" for size, side, word in best
    )


def _number(value: float) -> str:
    return f"{value:.2e}"
