"""From the shell to the files: what is said, written and refused; what neither a browser nor a table may run."""

import csv
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from clif_kit import cli, own_report, own_run

NASTY = '<script>alert("x")</script> & =HYPERLINK("http://x")'


def rows(n=120, seed=0):
    rng, found = np.random.default_rng(seed), []
    for k in range(n):
        words = "goal match team ball win" if k % 2 else "bread soup salt oven taste"
        found.append((" ".join(rng.choice(words.split(), 5)) + f" n{k}", "sport" if k % 2 else "food"))
    return [*found, ("=1+1 goal match", "sport"), (NASTY, "food"), (NASTY + " soup", "food")]


def write(path, content, header=("text", "label")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *content])
    return path


def clif(monkeypatch, capsys, *arguments):
    """Exit code and both streams of the command."""
    monkeypatch.setattr(sys, "argv", ["clif", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_csv_becomes_tables_and_a_page_in_which_nothing_runs(tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path / "mine.csv", rows()), tmp_path / "out"
    ask = write(tmp_path / "ask.csv", [(NASTY, "food"), ("a goal", "sport"), ("=1+1 soup", "food")])
    code, said, _ = clif(monkeypatch, capsys, "explain", path, "--model", "words", "--test", ask, "--out", out, "-k", 4)
    assert code == 0, said
    assert "123 rows" in said
    assert "ask.csv: 1 texts stand in the training file too (row 1)" in said
    assert re.search(r"features: about .* s; last layer", said)
    assert "check: influence minus random" in said
    assert sorted(p.name for p in out.iterdir()) == [
        "deletion_check.csv", "features", "influences.csv", "report.html", "suspicious.csv",
    ]  # fmt: skip
    table = list(csv.DictReader(io.StringIO((out / "influences.csv").read_text("utf-8-sig"), newline="")))
    assert {row["method"] for row in table} == {"influence", "bm25"}
    assert "'=1+1 soup" in {row["test_text"] for row in table}
    for row in table:
        assert all(not cell.startswith(("=", "+", "@")) for cell in row.values())
    page = (out / "report.html").read_text("utf-8")
    seen = Tags()
    seen.feed(page)
    assert not seen.tags & {"script", "img", "a", "iframe", "link"}
    assert not any(name.startswith("on") or name in ("src", "href") for name in seen.attributes)
    assert "&lt;script&gt;" in page


def test_a_second_run_finds_the_features_and_says_the_same(tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path / "mine.csv", rows()), tmp_path / "out"
    first = clif(monkeypatch, capsys, "explain", path, "--model", "words", "--out", out)
    content = {p.name: p.read_bytes() for p in out.glob("*.*")}
    second = clif(monkeypatch, capsys, "explain", path, "--model", "words", "--out", out)
    assert first[0] == second[0] == 0
    assert "2 chunks of an earlier run are there" in second[1]
    assert content == {p.name: p.read_bytes() for p in out.glob("*.*")}


def test_dry_says_what_was_found_and_how_long_and_writes_no_answer(tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path / "mine.csv", rows()), tmp_path / "out"
    code, said, _ = clif(monkeypatch, capsys, "explain", path, "--model", "words", "--out", out, "--dry")
    assert code == 0
    assert "features: about" in said
    assert "minus random" not in said
    assert not list(out.glob("*.csv"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.csv"], "none.csv: No such file"),
        (["mine.csv", "--text", "txt"], "did you mean 'text'"),
        (["mine.csv", "--test", "other.csv", "--model", "words"], "the label 'opera' does not occur"),
        (["mine.csv", "--model", "no/such/folder"], "MiniLM needs no network"),
        (["mine.csv", "--model", "words", "-k", "0"], "need k >= 1"),
        (["mine.csv", "--model", "words", "--out", "c.txt"], "is a file; name another folder with --out"),
        (["mine.csv", "--method", "tracin_we", "--out", "c.txt/a/b"], "is a file; name another folder with --out"),
        ([], "give a CSV file, or --corpus with --words"),
        (["--words", "lists.yml"], "give a CSV file, or --corpus with --words"),
        (["--corpus", "c.txt", "--words", "lists.yml"], "holds x; need x, y"),
    ],
)
def test_bad_input_is_one_line_exit_two_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "mine.csv", rows(40))
    write(tmp_path / "other.csv", [("an aria", "opera"), ("b", "opera")])
    (tmp_path / "lists.yml").write_text("x: [a, b, c, d]")
    (tmp_path / "c.txt").write_text("a b\n")
    code, _, err = clif(monkeypatch, capsys, "explain", *arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "explained").exists()


def test_the_second_door_writes_sentences_and_a_page(tmp_path, monkeypatch, capsys):
    sides = {
        side: [f"{name}{letter}" for letter in "abcd"]
        for side, name in zip("xyab", ("he", "she", "job", "home"), strict=True)
    }
    rng, lines = np.random.default_rng(0), []
    for k in range(60):
        pair = ("x", "a") if k % 2 else ("y", "b")
        lines.append(" ".join([*rng.choice(sides[pair[0]], 2), "and", *rng.choice(sides[pair[1 if k % 5 else 0]], 2)]))
    (tmp_path / "c.txt").write_text("\n".join(lines))
    (tmp_path / "toy.yml").write_text("\n".join(f"{side}: [{', '.join(words)}]" for side, words in sides.items()))
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=3)))}" for side in sides.values() for word in side]
    (tmp_path / "v.txt").write_text("\n".join(vectors))
    options = ["--corpus", tmp_path / "c.txt", "--words", tmp_path / "toy.yml", "--vectors", tmp_path / "v.txt"]
    code, said, err = clif(monkeypatch, capsys, "explain", *options, "--out", tmp_path / "out")
    assert code == 0, err
    assert "in the given vectors" in said
    assert "most amplifying sentences" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "sentences.csv"]


def test_a_failure_while_writing_leaves_no_half_file(tmp_path):
    own_report.write_folder(tmp_path, {"a.csv": b"old", "b.csv": b"old"})
    with pytest.raises(TypeError):
        own_report.write_folder(tmp_path, {"a.csv": b"new", "b.csv": object()})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.csv": b"old", "b.csv": b"old"}


def test_the_interval_words_are_those_of_the_numbers(tmp_path):
    said = []
    own_run.explain_texts(write(tmp_path / "a.csv", rows()), tmp_path / "o", model="words", say=said.append, share=0.2)
    line = next(line for line in said if "minus random" in line)
    low = float(re.search(r"\[([-+.e\d]+),", line)[1])
    assert line.endswith("confirmed") == (low > 0)


def test_a_folder_without_leave_to_write_is_refused_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(own_report.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="may not be written to; name another folder with --out"):
        own_report.check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
