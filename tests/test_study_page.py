"""The study of a class: what is asked, the page, and files of answers from many hands; shares by hand."""

import csv
import io
import json
import re

import numpy as np
import pytest

from clif_kit import study_page
from clif_kit.ledger import ROOT
from clif_kit.study_answers import FORMAT, LARGEST, class_statistic, read_answers, read_study

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shown():
    return read_study(study_page.PAGE)


def answers_of(data, choose):
    """What the page makes of a student who answers ``choose(question)``."""
    rows = [{"id": q["id"], "answer": choose(q), "seconds": 1.5} for q in data["questions"]]
    return {"format": FORMAT, "study": data["study"], "answers": rows}


def right(question):
    return question["right"]


def wrong(question):
    (other,) = {*study_page.KINDS[question["kind"]]["answers"]} - {question["right"]}
    return other


def save(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


# --- the questions ---


def test_a_real_panel_holds_the_best_and_the_pair_one_of_the_next_best():
    rng, items, values = np.random.default_rng(0), [f"i{k}" for k in range(30)], np.arange(30.0)[::-1]
    for _ in range(20):
        question = study_page._question("pair", "words", True, items, values, rng)
        assert set(question["panel"]) == set(items[:6])
        belongs, other = (
            question["choices"]["ab".index(question["right"])],
            question["choices"]["ba".index(question["right"])],
        )
        assert belongs in items[6:10]
        assert other in items[15:]
    assert study_page._question("pattern", "words", True, items, values, rng)["right"] == "yes"
    assert study_page._question("pattern", "words", False, items, values, rng)["right"] == "no"


def test_the_committed_study_is_balanced(shown):
    questions = shown["questions"]
    for what, count in study_page.SIZES.items():
        for kind in study_page.KINDS:
            for real in (True, False):
                assert sum((q["what"], q["kind"], q["real"]) == (what, kind, real) for q in questions) == count
    assert [q["id"] for q in questions] == [f"q{i + 1:02d}" for i in range(len(questions))]
    for q in questions:
        assert len(set(q["panel"])) >= 5  # two digits may look alike to the pixel
        assert q["right"] in shown["kinds"][q["kind"]]["answers"]
        assert len(q["choices"]) == 2 * (q["kind"] == "pair")
        assert all(item.startswith("data:image/png;base64,") == (q["what"] == "images") for item in q["panel"])


def test_real_panels_of_pictures_are_more_alike_than_shuffled_ones(shown):
    import base64

    from PIL import Image

    def spread(question):
        files = [io.BytesIO(base64.b64decode(uri.split(",")[1])) for uri in question["panel"]]
        return np.stack([np.asarray(Image.open(file), float) for file in files]).std(0).mean()

    found = {
        real: [spread(q) for q in shown["questions"] if q["what"] == "images" and q["real"] == real]
        for real in (True, False)
    }
    assert np.mean(found[True]) < 0.9 * np.mean(found[False])


def test_a_png_holds_the_picture():
    import base64

    from PIL import Image

    image = np.arange(64.0).reshape(8, 8) / 4
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(study_page.png(image).split(",")[1]))))
    assert np.abs((255.0 - found) / 255 * 16 - image).max() < 16 / 255


# --- the page ---


def test_a_text_cannot_end_the_script(shown):
    data = json.loads(json.dumps(shown))
    for q in data["questions"]:
        if q["what"] == "words":
            q["panel"] = [HOSTILE] * 6
    for page, scripts in ((study_page.page_data(data), 1), (study_page.alone(data), 2)):
        assert page.count("</script>") == scripts
        assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def test_the_page_to_hand_out_needs_nothing_else(shown, tmp_path):
    page = study_page.alone(shown)
    assert not re.search(r'(src|href)="(?!data:)', page.replace('"href"', ""))
    assert "http" not in page
    assert 'name="viewport"' in page
    path = tmp_path / "study.html"
    path.write_text(page, "utf-8")
    assert read_study(path) == shown
    with pytest.raises(ValueError, match=r"other\.html holds no study"):
        read_study(save(tmp_path, "other.html", b"<p>hello</p>"))


def test_the_committed_page_is_what_the_module_writes_of_its_data(shown):
    assert study_page.page_data(shown) == study_page.PAGE.read_text("utf-8")
    assert study_page.PAGE.stat().st_size < 200_000
    assert "file: book/study\n" in (ROOT / "_toc.yml").read_text("utf-8")


def test_the_script_and_the_reader_agree_on_the_format():
    code = (study_page.STATIC / "study.js").read_text("utf-8")
    assert f'format: "{FORMAT}"' in code
    assert '"format,study,id,answer,seconds"' in code
    assert "innerHTML" not in code
    assert "fetch" not in code


# --- the answers of a class ---


def test_shares_of_a_class_are_those_by_hand(shown, tmp_path):
    """One student is always right, one always wrong, one sees a pattern in every panel and always takes a."""
    third = {"pattern": "yes", "pair": "a"}
    chosen = (right, wrong, lambda q: third[q["kind"]])
    files = [save(tmp_path, f"{k}.json", answers_of(shown, choose)) for k, choose in enumerate(chosen)]
    found = class_statistic(files, shown)
    assert set(found) == {
        *(
            f"correct/{kind}/{what}"
            for kind in study_page.KINDS
            for what in ("real", "shuffled", "real_minus_shuffled")
        ),
        "yes/real_minus_shuffled",
    }
    for what, last in (("real", 1), ("shuffled", 0)):
        share = found[f"correct/pattern/{what}"]
        assert share.value == pytest.approx((1 + 0 + last) / 3)
        assert share.low <= share.value <= share.high
        assert (share.n, share.over) == (3, "students")
    assert found["yes/real_minus_shuffled"].value == pytest.approx((1 - 1 + 0) / 3)
    for real, what in ((True, "real"), (False, "shuffled")):
        asked = [q for q in shown["questions"] if q["kind"] == "pair" and q["real"] == real]
        last = np.mean([q["right"] == "a" for q in asked])
        assert found[f"correct/pair/{what}"].value == pytest.approx((1 + last) / 3)


def test_csv_says_the_same_as_json(shown, tmp_path):
    content, out = answers_of(shown, wrong), io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["format", "study", "id", "answer", "seconds"])
    writer.writerows([FORMAT, content["study"], *row.values()] for row in content["answers"])
    made = save(tmp_path, "a.csv", b"\xef\xbb\xbf" + out.getvalue().encode())  # a spreadsheet adds the mark
    assert read_answers(made, shown) == read_answers(save(tmp_path, "a.json", content), shown)


def test_what_a_file_says_of_being_correct_is_not_believed(shown, tmp_path):
    content = answers_of(shown, wrong)
    for row in content["answers"]:
        row["correct"] = row["real"] = True
    files = [save(tmp_path, "a.json", content), save(tmp_path, "b.json", {**content, "x": 1})]
    assert class_statistic(files, shown)["correct/pair/real"].value == 0


def broken(data, **change):
    content = answers_of(data, right)
    content["answers"][0] |= change
    return content


def test_bad_files_are_refused_by_name(shown, tmp_path):
    cases = {
        "larger than": b" " * (LARGEST + 1),
        "not a file of answers": b"\xff\xfe\x00",
        "not a file of answers (JSONDecodeError": b"{",
        "a list `answers` is wanted": {"answers": 3},
        "must be a list of objects": {"answers": [1]},
        "answers to another study": {**answers_of(shown, right), "study": "x"},
        "is not in the study": broken(shown, id="<b>q99</b>"),
        "or stands there twice": broken(shown, id="q02", answer=right(shown["questions"][1])),
        "is none that the page offers": broken(shown, answer="=1+1"),
        "answer '[1]'": broken(shown, answer=[1]),
        "question '{}'": broken(shown, id={}),
        "RecursionError": b"[" * 100_000,
    }
    for match, content in cases.items():
        with pytest.raises(ValueError, match=re.escape(match)) as caught:
            read_answers(save(tmp_path, "student.json", content), shown)
        assert str(caught.value).startswith("student.json: ")
        assert "\n" not in str(caught.value)
    unfinished = answers_of(shown, right)
    del unfinished["answers"][3:]
    with pytest.raises(ValueError, match=f"3 of {len(shown['questions'])} questions are answered"):
        read_answers(save(tmp_path, "student.json", unfinished), shown)
    for content, match in (
        (b"id,answer\nq01,a\n", "the first line must be"),
        (b"format,study,id,answer,seconds\n1\n", "too few"),
        (b'format,study,id,answer,seconds\n"a', "not a file of answers"),
    ):
        with pytest.raises(ValueError, match=match):
            read_answers(save(tmp_path, "student.csv", content), shown)
    with pytest.raises(ValueError, match="no such file"):
        read_answers(tmp_path / "gone.json", shown)


def test_a_class_has_two_students_and_nobody_twice(shown, tmp_path):
    one = save(tmp_path, "a.json", answers_of(shown, right))
    with pytest.raises(ValueError, match="a class is two students or more, got 1 file"):
        class_statistic([one], shown)
    with pytest.raises(ValueError, match=r"b\.json is the same file as a\.json"):
        class_statistic([one, save(tmp_path, "b.json", one.read_bytes())], shown)
