"""Files that nobody prepared: every kind of the issue's list, against what was put into them."""

import csv
import time

import numpy as np
import pandas as pd
import pytest

from clif_kit import own_texts
from clif_kit.csv_contract import BadCSV
from clif_kit.own_texts import overlap, read_texts, safe_cell

ROWS = [("a fine day", "good"), ('he said "no",\nand left', "bad"), ("Straße, naïve", "good"), ("so it goes", "bad")]


def write(path, rows, *, encoding="utf-8", end="\r\n", sign=",", header=("text", "label")):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end, delimiter=sign).writerows([header, *rows])
    return path


def texts(found):
    return list(zip(found.frame["text"], found.frame["label"], strict=True))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_marks_line_ends_and_separators_change_nothing(tmp_path, encoding, end, sign):
    found = read_texts(write(tmp_path / "a.csv", ROWS, encoding=encoding, end=end, sign=sign))
    assert texts(found) == ROWS
    assert found.classes == ("bad", "good")
    assert found.frame["row"].tolist() == [1, 2, 3, 4]


def test_each_finding_names_its_rows_and_nothing_is_guessed(tmp_path):
    rows = [
        *ROWS,
        ("", "good"),
        ("no label", " "),
        ("a fine day", "good"),
        ("so it goes", "good"),
        ("=2+3", "NA"),
        ("7", "NA"),
    ]
    found = read_texts(write(tmp_path / "a.csv", rows))
    assert found.found == {
        "rows": 10, "used": 8, "classes": 3, "empty": 1, "unlabelled": 1, "duplicates": 1, "conflicts": 1, "cut": 0,
    }  # fmt: skip
    notes = "\n".join(found.notes)
    assert "row 5: no text: left out" in notes
    assert "row 6: no label in 'label': left out" in notes
    assert "row 7: the same text and label" in notes
    assert "rows 4, 8: the same text with another label" in notes
    assert texts(found)[-2:] == [("=2+3", "NA"), ("7", "NA")]
    assert found.frame["row"].tolist() == [1, 2, 3, 4, 7, 8, 9, 10]


def test_a_text_of_two_megabytes_is_cut_with_a_note(tmp_path):
    before = csv.field_size_limit()
    found = read_texts(write(tmp_path / "a.csv", [*ROWS, ("x" * 2_000_000, "good")]))
    assert found.frame["text"].str.len().max() == own_texts.LONGEST
    assert found.found["cut"] == 1
    assert any("row 5: only the first 20,000 characters" in note for note in found.notes)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \r\n\n", "is empty"),
        (b"text,label\r\n", "a header and no rows"),
        (b"txt,label\na,b\n", "no column 'text'; did you mean 'txt'"),
        (b"Text,Label\na,b\n", "did you mean 'Text'"),
        (b"a,b\n1,2\n", "the columns are 'a', 'b'"),
        (b"text,label\na,x\nb,x\n", "all 2 rows have the label 'x'"),
        (b"text,label\na,x\nb,x,y\nc,z\nd\n", "rows 2, 4: not 2 fields"),
        (b"text,label,label\na,x,x\n", "occurs twice"),
        (b'text,label\n"a,x\nb,y\n', "left open"),
        (b"text,label\na\x00,x\n", "zero bytes"),
        ("text,label\na,x\nb,y\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("text,label\na,x\nb,y\n".encode("utf-32"), "UTF-32"),
        ("text,label\nü,x\nb,y\n".encode("latin-1"), "byte 11 is not UTF-8"),
        (b"text,label\na,\nb,\nc,x\n", "2 of 3 rows have no label"),
        (b"text,label\n" + b"".join(b"t%d,%d\n" % (k, k) for k in range(101)), "101 different values"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(BadCSV, match=says) as caught:
        read_texts(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_a_missing_file_and_one_too_large(tmp_path, monkeypatch):
    with pytest.raises(BadCSV, match="is a folder"):
        read_texts(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "none.csv")
    monkeypatch.setattr(own_texts, "MAX_BYTES", 10)
    with pytest.raises(BadCSV, match="take a sample"):
        read_texts(write(tmp_path / "a.csv", ROWS))


def test_two_hundred_thousand_rows_in_ten_seconds(tmp_path):
    rows = [(f"text number {k} of many", "ab"[k % 2]) for k in range(200_000)]
    rows[77] = rows[11]
    path = write(tmp_path / "a.csv", rows)
    began = time.process_time()
    found = read_texts(path)
    assert time.process_time() - began < 10
    assert (found.found["used"], found.found["duplicates"]) == (200_000, 1)


def test_overlap_looks_past_case_and_blanks():
    train, test = pd.DataFrame({"text": ["A  b", "c"]}), pd.DataFrame({"text": ["a B", "d", "c "]})
    np.testing.assert_array_equal(overlap(train, test), [True, False, True])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1"])
def test_a_formula_is_made_harmless_when_written(text):
    assert safe_cell(text) == f"'{text}"
