"""The 106 Wikipedia articles inside gensim's package, as sentences of lower-case words.

gensim's own tools do what they can: read the dump, strip the markup, find the words. Here is only what they leave:
tables, headings and the ends of sentences.
"""

import bz2
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gensim
from gensim.corpora import wikicorpus

from clif_kit import registry

# Not prose: table rows, settings of tables and pictures, headings, addresses, sortable cells.
_NOT_PROSE = re.compile(
    r'^\s*(?:[|!{}=]|\w+:\s*$)|=\s*"|\b(?:style|align|width|class|colspan|rowspan|bgcolor)\s*=|\b\d+px\b|\.(?:jpe?g|png|svg|gif)\b',
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\S*(?:https?://|www\.)\S*")
_TAIL = re.compile(
    r"^=+\s*(?:references|external links|further reading|see also|notes|bibliography|footnotes)[^=]*=+\s*$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^(=+).*=+\s*$")
_END = re.compile(r"""(?<=[.!?])["')\]”’]*\s+(?=["'(\[“‘]*[A-Z0-9])""")
_ABBREVIATION = re.compile(  # does not end a sentence
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Lt|Sgt|Capt|Gov|Sen|Rep|Jr|Sr|Mt|Ft|vs|cf|ca|etc|e\.g|i\.e|c|p|pp|vol|no|No|"
    r"ed|eds|trans|U\.S|a\.m|p\.m|B\.C|A\.D|approx|Inc|Co|Ltd|Jan|Feb|Aug|Sept|Oct|Nov|Dec)\.$"
)
_MIN_WORDS = 4  # shorter pieces are cells of tables and items of lists


def wikipedia_sentences() -> list[tuple[str, list[str]]]:
    """All sentences, in the order of the dump: (title of the article, words).

    Words are lower case and have 2 to 15 letters (gensim's ``wikicorpus.tokenize``); sentences have four words or more
    (shorter ones are cells of tables). Lists of references and links at the end of an article are left out. The first
    call takes some seconds and leaves a cache in the data folder; the result is the same on every machine.

    Raises:
        Missing: Without gensim's package.
        Corrupt: If the dump in it is another one.
    """
    dump = next(iter(registry.checked("wikipedia").values()))
    key = hashlib.sha256(Path(__file__).read_bytes() + gensim.__version__.encode()).hexdigest()[:12]
    cached = registry.data_dir() / "wikipedia" / f"sentences-{key}.json"
    lines = _load(cached)
    if lines is None:
        lines = [f"{title}\t{' '.join(words)}" for title, words in _sentences(dump)]
        with contextlib.suppress(OSError):  # a folder that cannot be written costs seconds, not the result
            _save(cached, lines)
    return [(title, words.split(" ")) for title, words in (line.split("\t") for line in lines)]


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Title and plain text of each article; redirects are left out."""
    with bz2.open(dump) as stream:
        for title, text, _ in wikicorpus.extract_pages(stream, ("0",)):
            if text and not text.lstrip().lower().startswith("#redirect"):
                yield title, wikicorpus.filter_wiki(text)


def split_sentences(text: str) -> list[str]:
    """Split a paragraph where a full stop, question or exclamation mark ends a sentence.

    >>> split_sentences("Dr. Smith came. He left at 5 p.m. in a U.S. ship. Why? Nobody knew.")
    ['Dr. Smith came.', 'He left at 5 p.m. in a U.S. ship.', 'Why?', 'Nobody knew.']
    """
    parts: list[str] = []
    for piece in _END.split(text):
        if parts and _ABBREVIATION.search(parts[-1][-12:]):
            parts[-1] += " " + piece
        else:
            parts.append(piece)
    return parts


def _sentences(dump: Path) -> Iterator[tuple[str, list[str]]]:
    for title, text in articles(dump):
        for line in _prose(text):
            for sentence in split_sentences(line):
                words = wikicorpus.tokenize(sentence)
                if len(words) >= _MIN_WORDS:
                    yield title, words


def _prose(text: str) -> Iterator[str]:
    """The lines that are prose, without the sections of references and links."""
    skipped = 0  # depth of the heading whose section is being left out
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading and (not skipped or len(heading[1]) <= skipped):
            skipped = len(heading[1]) if _TAIL.match(line) else 0
        if not skipped and not _NOT_PROSE.search(line):
            yield _ADDRESS.sub(" ", line).replace("''", "").replace("_", " ").strip("*#:; \t")


def _load(path: Path) -> list[str] | None:
    """The cached lines, or None when there are none or they are damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        lines = stored["lines"]
        return lines if stored["sha256"] == _digest(lines) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _save(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
        json.dump({"sha256": _digest(lines), "lines": lines}, part, ensure_ascii=False)
    os.replace(part.name, path)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
