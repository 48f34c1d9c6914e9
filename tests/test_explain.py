"""Oracles: autograd of the naive loss, training again without a sentence, sums of parts; the page and its corpus."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from explorer_cases import script

from clif_kit import corpora, explorer
from clif_kit.corpora import BadCorpus
from clif_kit.csv_contract import BadCSV
from clif_kit.explain import (
    METHODS,
    ask_test,
    ask_words,
    direction,
    explain,
    make_model,
    question_study,
    with_neighbours,
)
from clif_kit.sgns_train import fit, start
from clif_kit.skipgram import SkipgramLoss
from clif_kit.weat import TESTS, WordTest
from clif_kit.word_queries import query_gradient

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
SIDES = [[f"{side}{letter}" for letter in "abcd"] for side in ("he", "she", "job", "home")]
TOY = WordTest(*SIDES, name="toy")
ASKED = {"toy": {"test": TOY}, "displacement/hea": {"words": ["hea"]}, "cosine/hea/joba": {"words": ["hea", "joba"]}}
SMALL = {"size": 25, "width": 3, "l2": 0.02, "window": 2, "negatives": 2}


def sentences(n=400, seed=0):
    """Texts over 20 words, where X stands with B rather more often than with A; one word is too rare."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        x, a = (0, 2) if rng.random() < 0.5 else (1, 3)
        a = a if rng.random() < 0.25 else 5 - a
        words = [*rng.choice(SIDES[x], 2), *rng.choice(SIDES[a], 2), *rng.choice(["the", "and", "was", "of"], 3)]
        rows.append(" ".join([*rng.permutation(words), *(["rare"] if k == 3 else [])]))
    return rows


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "mine.txt"
    path.write_text("\n".join(sentences()))
    return path


@pytest.fixture(scope="module")
def model(text):
    shape = {name: SMALL[name] for name in ("size", "window", "negatives")}
    return make_model(question_study(corpora.load(text), {"toy": TOY}, ["hea", "joba"], **shape), width=3, l2=0.02)


def question(model, name):
    return ask_test(model, name) if name == "toy" else ask_words(model, *name.split("/")[1:])


# --- a reader's own text ---


@pytest.mark.parametrize("name", ASKED)
def test_scores_predict_training_again_without_the_sentence(text, model, name):
    table = explain(text, **ASKED[name], **SMALL)
    assert set(table["query"]) == {name}
    assert table["score"].is_monotonic_decreasing
    loss = question(model, name).loss
    before = float(loss(model.best.params))
    rows = [int(key.removeprefix("line ")) - 1 for key in table["id"][::25]]
    change = [
        float(loss(fit(model.objective.without([i]), model.best.x, gtol=1e-9, lbfgs_steps=0).params)) - before
        for i in rows
    ]
    scores = table["score"][::25]
    slope = np.dot(change, scores) / np.dot(scores, scores)
    assert np.corrcoef(change, scores)[0, 1] > 0.99
    assert 0.85 < slope < 1.15


@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_the_direction_times_autograd_s_gradient(text, model, method):
    h, _ = direction(model, question(model, "toy"), method)
    if method == "dot":
        pairs = sum(len(oracles.skipgram_pairs(row.removesuffix(" rare").split(), window=2)) for row in sentences())
        h = {"input": query_gradient(question(model, "toy").loss, model.best.params)["input"] / pairs}
    h = {name: h.get(name, torch.zeros(1)) for name in ("input", "context")}
    trained, published = model.study.loss, SkipgramLoss.published(model.study.loss.window)
    loss = published if method == "lissa_published" else trained
    table = explain(text, test=TOY, method=method, **SMALL).set_index("id")
    assert set(table["method"]) == {method}
    for i in (0, 3, 50, 399):
        u, v = (model.best.params[name].clone().requires_grad_() for name in ("input", "context"))
        row = model.study.corpus.sentence(i).tolist()
        value = oracles.sentence_loss(u, v, row, loss.window, loss.negatives, loss.noise, loss.mean)
        gu, gv = torch.autograd.grad(value, (u, v), allow_unused=True)
        expected = float((gu * h["input"]).sum() + (gv * h["context"]).sum())
        assert table.loc[f"line {i + 1}", "score"] == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_the_loss_of_a_test_has_the_gradient_of_the_absolute_effect_and_its_sign(model):
    found, params = question(model, "toy"), model.best.params
    signed = query_gradient(found.loss, params)["input"]
    u = params["input"].clone().requires_grad_()
    unit = u / u.norm(dim=1, keepdim=True)
    x, y, a, b = (unit[[model.study.corpus.vocabulary.row(w) for w in side]] for side in SIDES)
    s = torch.cat([x, y]) @ (a.mean(0) - b.mean(0))
    effect = (s[:4].mean() - s[4:].mean()) / s.std(correction=0)
    assert torch.allclose(signed, torch.autograd.grad(effect.abs(), u)[0], atol=1e-10)
    assert float(found.loss(params)) == pytest.approx(abs(effect.item()))
    assert effect.item() < 0  # else the sign would not be tested


def test_the_losses_of_words_are_what_numpy_says(model):
    objective, u = model.objective, model.best.params["input"].numpy()
    begun = objective.unpack(start(objective, 0))["input"].numpy()
    hea, joba = (model.study.corpus.vocabulary.row(word) for word in ("hea", "joba"))
    moved = float(question(model, "displacement/hea").loss(model.best.params))
    alike = float(question(model, "cosine/hea/joba").loss(model.best.params))
    assert moved == pytest.approx(-np.mean((u[hea] - begun[hea]) ** 2))
    assert alike == pytest.approx(-u[hea] @ u[joba] / np.linalg.norm(u[hea]) / np.linalg.norm(u[joba]))


def test_the_table_is_written_as_csv_with_one_row_a_sentence(text, tmp_path):
    out = tmp_path / "deep" / "scores.csv"
    table = explain(text, out, words=["Hea"], **SMALL)  # a capital is no other word
    rows = list(csv.DictReader(out.open(encoding="utf-8", newline="")))
    assert list(rows[0]) == ["id", "method", "query", "score", "unit", "source", "text"]
    assert [float(row["score"]) for row in rows] == table["score"].tolist()
    assert {row["unit"] for row in rows} == {"squared vector units"}
    assert sorted(row["text"] for row in rows) == sorted(sentences())
    assert b"\r" not in out.read_bytes()


def test_a_csv_keeps_its_ids(tmp_path):
    path = tmp_path / "mine.csv"
    lines = [f"r{k},{'yes' if k % 2 else 'no'},{row}" for k, row in enumerate(sentences())]
    lines[5] += ". She was here. And gone."
    path.write_text("\n".join(["id,label,text", *lines]))
    ids = explain(path, words=["hea", "joba"], **SMALL)["id"].tolist()
    assert len(ids) == len(set(ids)) == 402
    assert {"r4", "r5:1", "r5:3"} < set(ids)


def test_the_same_text_gives_the_same_numbers(text):
    first, second = (explain(text, test=TOY, **SMALL) for _ in range(2))
    assert first.equals(second)


@pytest.mark.parametrize(
    ("content", "asked", "error", "words"),
    [
        ("", {"words": ["hea"]}, BadCorpus, "empty corpus"),
        ("one\ntwo\n", {"words": ["one"]}, BadCorpus, "empty corpus"),
        (b"caf\xe9 au lait\n", {"words": ["lait"]}, BadCorpus, "not UTF-8"),
        ("\n".join(sentences()), {"words": ["spock"]}, BadCorpus, "'spock' occurs 0 times"),
        ("\n".join(sentences()), {"words": ["rare"]}, BadCorpus, "'rare' occurs 1 times"),
        ("\n".join(sentences()), {"test": "career"}, BadCorpus, r"career: 0 of the 8 words of X .*executive|X"),
        ("a lone pair\n", {"words": ["lone"]}, BadCorpus, "no word occurs 2 times"),
        ("\n".join(sentences()), {"test": "carer"}, ValueError, "no test is called 'carer'; there are: career"),
        ("\n".join(sentences()), {"test": TOY, "method": "exact"}, ValueError, "there are: cg_full, dot"),
        ("\n".join(sentences()), {}, ValueError, "ask one question"),
        ("\n".join(sentences()), {"test": TOY, "words": ["hea"]}, ValueError, "ask one question"),
        ("\n".join(sentences()), {"words": ["hea", "hea"]}, ValueError, "ask one question"),
        ("\n".join(sentences()), {"words": ["hea", "joba", "the"]}, ValueError, "ask one question"),
        ("\n".join(sentences()), {"words": "hea"}, ValueError, "ask one question"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, content, asked, error, words):
    path = tmp_path / "mine.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words) as caught:
        explain(path, **asked, **SMALL)
    assert "\n" not in str(caught.value)


def test_a_csv_without_its_columns_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("words\nhe went home\n")
    with pytest.raises(BadCSV, match="no column 'text'"):
        explain(path, words=["home"])


def test_a_word_without_a_neighbour_gets_no_vector_and_the_rest_loses_nothing():
    texts = corpora.Sentences(
        [["aa", "bb"], ["bb", "aa"], ["lone", "once"], ["lone", "other"]], ["s"] * 4, ["text"] * 4
    )
    study = question_study(texts, words=["aa"])
    assert study.corpus.vocabulary.words == ("aa", "bb")
    assert study.corpus.lengths.tolist() == [2, 2, 0, 0]
    with pytest.raises(BadCorpus, match=r"'lone' occurs 2 times .* next to other words"):
        question_study(texts, words=["lone"])
    assert with_neighbours(texts.words, study.corpus.vocabulary).words == ("aa", "bb")


# --- the data of the page ---


@pytest.fixture(scope="module")
def made(model):
    return explorer.explorer_data(model.study, [["hea"], ["hea", "joba"]], top=6, width=3, l2=0.02)


def ends(data):
    """Question, method, end and list, of every list."""
    for question, (method, end) in ((q, key) for q in data["questions"].values() for key in _keys(q)):
        yield question, method, end, question["lists"][method][end]


def _keys(question):
    return [(method, end) for method, lists in question["lists"].items() for end in lists]


def check(data):
    """What must hold of any page: parts add up to scores, ends are sorted, sums are sums, texts can be split."""
    vocabulary = set(data["vocabulary"])
    for _, _, end, found in ends(data):
        rows, sign = found["rows"], 1 if end == "high" else -1
        scores = np.array([score for _, score, _ in rows])
        assert (sign * scores > 0).all()
        assert (np.diff(sign * scores) <= 0).all()
        assert found["predicted"] == pytest.approx(scores.sum(), rel=0.01, abs=1e-300)
        for i, score, parts in rows:
            known = [word for word in data["sentences"][i][1].split(" ") if word in vocabulary]
            assert len(parts) <= len(known)
            room = 0.006 * (np.abs(parts).sum() + abs(score))  # three digits of each
            assert abs(sum(parts) - score) <= room


def test_parts_add_up_to_the_score_and_the_ends_are_sorted(made):
    check(made)
    assert {question["kind"] for question in made["questions"].values()} == set(explorer.KINDS)
    assert all(len(found["rows"]) <= 6 for *_, found in ends(made))


def test_the_lists_are_the_ends_of_what_explain_says(text, made):
    for method in METHODS:
        table = explain(text, test=TOY, method=method, **SMALL)
        found = made["questions"]["toy"]["lists"][method]
        for end, expected in (("high", table[:6]), ("low", table[::-1][:6])):
            rows = found[end]["rows"]
            assert [made["sentences"][i][1] for i, *_ in rows] == expected["text"].tolist()
            assert [score for _, score, _ in rows] == pytest.approx(expected["score"].tolist(), rel=0.006)


def test_trained_again_is_the_change_of_the_loss_without_the_list(model, made):
    texts = sentences()
    for name in ASKED:
        loss = question(model, name).loss
        for found in made["questions"][name]["lists"]["cg_full"].values():
            chosen = [texts.index(made["sentences"][i][1]) for i, *_ in found["rows"]]
            again = fit(model.objective.without(chosen), model.best.x, gtol=1e-9, lbfgs_steps=0)
            change = float(loss(again.params)) - float(loss(model.best.params))
            assert found["trained"] == pytest.approx(change, rel=0.06)
            assert np.sign(found["trained"]) == np.sign(found["predicted"])


def test_a_repeated_run_gives_the_same_bytes(model, made):
    again = explorer.explorer_data(model.study, [["hea"], ["hea", "joba"]], top=6, width=3, l2=0.02)
    assert explorer.page_data(again) == explorer.page_data(made)


def test_a_title_cannot_end_the_script(made):
    hostile = made | {"articles": ["</script><script>alert(1)</script>"] * len(made["articles"])}
    page = explorer.page_data(hostile)
    assert page.count("</script>") == 1
    assert "<script>alert" not in page
    assert _data_of(page) == hostile | {"kinds": _plain(made["kinds"])}


def _plain(value):
    return json.loads(json.dumps(value))


def _data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.S)[1])


# --- the page that is committed ---


@pytest.fixture(scope="module")
def study():
    return explorer.explorer_study()


@pytest.fixture(scope="module")
def shown():
    return _data_of(explorer.PAGE.read_text("utf-8"))


def test_the_committed_data_are_whole(shown):
    check(shown)
    assert explorer.PAGE.read_text("utf-8") == explorer.page_data(shown)  # nobody typed into it
    assert explorer.PAGE.stat().st_size < 400_000
    assert {name for name, q in shown["questions"].items() if q["kind"] == "test"} == set(explorer.TITLES)
    assert len(shown["questions"]) == len(explorer.TITLES) + len(explorer.WORDS)
    assert set(shown["methods"]) == set(METHODS)
    lengths = [len(found["rows"]) for *_, found in ends(shown)]
    assert max(lengths) == 20
    assert min(lengths) > 0


def test_the_committed_sentences_are_those_of_the_embedded_articles(shown, study):
    assert shown["vocabulary"] == sorted(study.corpus.vocabulary.words)
    assert shown["settings"]["sentences"] == len(study.corpus)
    there = set(zip(study.sentences.source, map(" ".join, study.sentences.words), strict=True))
    assert {(shown["articles"][article], text) for article, text in shown["sentences"]} <= there
    for name, test in study.tests.items():
        assert shown["questions"][name]["words"] == {side: list(getattr(test.words, side)) for side in "xyab"}
        assert all(
            set(words) <= set(getattr(TESTS[name], side)) for side, words in shown["questions"][name]["words"].items()
        )


def test_what_the_page_says_in_words_is_so(shown, study):
    """The published recursion likes short sentences; gradient dot a common word, the inverse a rare one."""
    counts, length, carrier = study.sentences.counts(), {}, {}
    for question, method, _, found in ends(shown):
        for i, _, parts in found["rows"]:
            text = shown["sentences"][i][1]
            length.setdefault(method, []).append(len(text.split()))
            if question is shown["questions"]["career"]:
                carrier.setdefault(method, []).append(explorer.carried_by(shown, text, parts, count=1).split(" ")[0])
    assert np.mean(length["lissa_published"]) < np.mean(length["cg_full"]) / 2
    assert max(carrier["dot"], key=carrier["dot"].count) == "john"
    assert {"ann", "steve"} < set(carrier["cg_full"])
    often = {method: np.median([counts[word] for word in words]) for method, words in carrier.items()}
    assert often["cg_full"] < often["dot"] / 3


@pytest.mark.parametrize("one", ["explorer", "text_explorer"])
def test_the_page_includes_what_it_needs(one):
    page = (ROOT / "book" / f"{one}.md").read_text("utf-8")
    assert f":file: {one}_data.html" in page
    assert page.index("../_static/explorer_parts.js") < page.index(f"../_static/{one}.js")
    for name in ("explorer.css", "explorer_parts.js", f"{one}.js"):
        assert f"../_static/{name}" in page
        assert (ROOT / "book" / "_static" / name).exists()
    assert "CC BY-SA" in page
    forbidden = r"fetch\(|XMLHttpRequest|import\s*\(|innerHTML|outerHTML|insertAdjacent"
    assert not re.search(forbidden, script(f"{one}.js"))


def test_the_script_shows_what_the_data_hold(shown, tmp_path):
    """In Chromium, from disk: every question and estimator, both ends; the script's words against Python's."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    code = script("explorer.js")
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!DOCTYPE html><main>{explorer.page_data(shown)}</main><script>{code}</script>", "utf-8")
    read = """() => ["high", "low"].map((end) => [...document.querySelectorAll(`.${end} li`)].map((item) => [
        ".score", "a", ".text", ".note"].map((part) => item.querySelector(part).textContent)))"""
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, said = browser.new_page(), []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri())
        assert page.locator("table").count() == 0  # the plain list makes room
        page.select_option("#explorer-count", "20")
        for name, asked in shown["questions"].items():
            page.select_option("#explorer-question", name)
            for method, lists in asked["lists"].items():
                page.check(f"input[value={method}]")
                for (end, found), items in zip(lists.items(), page.evaluate(read), strict=True):
                    assert len(items) == len(found["rows"])
                    for (i, score, parts), (head, article, text, note) in zip(found["rows"], items, strict=True):
                        assert text == shown["sentences"][i][1]
                        assert article == shown["articles"][shown["sentences"][i][0]]
                        assert float(head.replace("−", "-")) == score
                        assert note == f"Carried by {explorer.carried_by(shown, text, parts)}"
                    marks = page.locator(f".{end} .help, .{end} .harm").evaluate_all("all => all.map((m) => m.title)")
                    assert marks
                    assert all(re.fullmatch(r"\S+: [+−][\d.e−]+", mark) for mark in marks)
        browser.close()
    assert not said
