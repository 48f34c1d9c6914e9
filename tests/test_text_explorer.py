"""Oracles: autograd of one text at a time, TF-IDF by hand, a loop over retrainings; the page, its data, its script."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from explorer_cases import script
from sklearn.feature_extraction.text import TfidfVectorizer

from clif_kit import text_explorer
from clif_kit.corpora import wikipedia
from clif_kit.deletion_study import Panel, run_panel
from clif_kit.text_study import Recipe, predict, train_text
from clif_kit.text_tasks import TOPICS

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
SMALL = Panel(
    task="topics", kind="cnn", train=60, val=8, test=4, max_length=16, width=8, methods=tuple(text_explorer.METHODS),
    recipe=Recipe(epochs=2, lr=0.02, batch_size=30, optimizer="adam"), sizes=(3,), seeds=2,
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)> [SEP] \"'&amp; <b>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explorer")


@pytest.fixture(scope="module")
def made(folder):
    return text_explorer.text_explorer_data(SMALL, folder)


@pytest.fixture(scope="module")
def study():
    return SMALL.study()


@pytest.fixture(scope="module")
def fitted(study):
    return train_text(study, 0)


def ends(data):
    """Number of the test text, method, end and list."""
    for q, question in enumerate(data["questions"]):
        for method, lists in question["lists"].items():
            for end, found in lists.items():
                yield q, method, end, found


def row_of(study, data, index):
    """Where a text that the page shows stands in the training split."""
    return study.task.train["text"].tolist().index(data["texts"][index][2])


def gradients(study, params, split, i):
    """The loss gradient of one text in the logits, the last layer and at each place, by plain autograd."""
    tokens, model = getattr(study, split).take([i]), study.model
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    embedded = model.embed(params, tokens.ids, tokens.parts).detach().requires_grad_()
    logits = model.classify(params, embedded, model.features(params, embedded, tokens.parts))
    loss = -torch.log_softmax(logits, 1)[0, int(getattr(study.task, split)["label"][i])]
    wanted = (logits, params[f"{model.head}.weight"], embedded)
    return [value.double().numpy() for value in torch.autograd.grad(loss, wanted)], tokens.words(0)


# --- scores and their parts ---


def test_tr_we_is_a_sum_over_words_of_what_autograd_says(made, study, fitted):
    for q, _, _, found in (row for row in ends(made) if row[1] == "tr_we"):
        for index, score, parts in found["rows"]:
            i, expected = row_of(study, made, index), Counter()
            for point in fitted.checkpoints:
                (_, _, places), words = gradients(study, point.params, "train", i)
                (_, _, asked), others = gradients(study, point.params, "test", q)
                word = 0  # 0: start and end; the next one begins where a piece has no "##"
                for k, piece in enumerate(words):
                    ours = sum((asked[0, j] for j, other in enumerate(others) if other == piece), np.zeros(8))
                    word += piece not in ("[CLS]", "[SEP]") and not piece.startswith("##")
                    expected[word * (piece not in ("[CLS]", "[SEP]"))] += point.lr * places[0, k] @ ours
            assert sum(expected.values()) == pytest.approx(score, rel=0.01)
            room = 0.006 * sum(map(abs, expected.values()))
            assert sum(parts) == pytest.approx(score, abs=room)
            assert len(parts) <= 1 + len(made["texts"][index][2].split(" "))
            for place in range(max(len(parts), 1 + max(expected))):
                assert ([*parts, *[0] * 99][place]) == pytest.approx(expected[place], abs=room)
            assert made["texts"][index][3] == max(expected)  # words that the model reads


def test_some_start_and_end_tokens_carry_something_and_some_text_is_cut(made):
    rows = [row for _, method, _, found in ends(made) if method == "tr_we" for row in found["rows"]]
    assert any(parts[0] for *_, parts in rows)
    assert any(read < len(text.split(" ")) for _, _, text, read in made["texts"])
    assert any(len(set(text.split(" "))) < len(text.split(" ")) for _, _, text, _ in made["texts"])


def test_tr_tfidf_is_a_sum_over_words_of_weights_by_hand(made, study, fitted):
    texts = [text.split(" ") for text in study.task.train["text"]]
    idf = {w: np.log((1 + len(texts)) / (1 + sum(w in t for t in texts))) + 1 for t in texts for w in t}

    def weights(words):
        found = {w: n * idf[w] for w, n in Counter(words).items() if w in idf}
        return {w: x / np.sqrt(sum(y * y for y in found.values())) for w, x in found.items()}

    for q, _, _, found in (row for row in ends(made) if row[1] == "tr_tfidf"):
        for index, score, parts in found["rows"]:
            i, factor = row_of(study, made, index), 0.0
            for point in fitted.checkpoints:
                one, other = (gradients(study, point.params, *which)[0][0] for which in (("train", i), ("test", q)))
                factor += point.lr * float((one * other).sum())
            a, b = weights(texts[i]), weights(study.task.test["text"][q].split(" "))
            expected = [0.0, *(factor * a[w] * b.get(w, 0) / texts[i].count(w) for w in texts[i])]
            assert sum(expected) == pytest.approx(score, rel=0.01)
            padded = [*parts, *[0] * (len(expected) - len(parts))]
            assert padded == pytest.approx(expected, rel=0.01, abs=0.002 * abs(score))


def test_tr_last_is_the_product_of_the_last_layer_s_gradients_and_has_no_parts(made, study, fitted):
    for q, _, _, found in (row for row in ends(made) if row[1] == "tr_last"):
        for index, score, parts in found["rows"]:
            sides = (("train", row_of(study, made, index)), ("test", q))
            expected = 0.0
            for point in fitted.checkpoints:
                one, other = (gradients(study, point.params, *which)[0][1] for which in sides)
                expected += point.lr * float((one * other).sum())
            assert score == pytest.approx(expected, rel=0.01)
            assert parts == []


def test_pieces_find_their_words_in_any_text():
    text = "aardvarks [SEP] <b>café</b>  end"
    (found,) = text_explorer.words_of_pieces([text])
    # aa rd var ks | [ sep ] | < b > cafe < / b > | (nothing) | end
    assert found.tolist() == [0] * 4 + [1] * 3 + [2] * 8 + [4]


def test_a_word_that_tfidf_does_not_know_has_no_part():
    vectors = TfidfVectorizer().fit(["red ship", "red sky"])
    assert text_explorer.tfidf_parts(vectors, "Red, blue ship!", "ship blue").tolist() == [0.0, 0.0, 1.0]
    assert text_explorer.tfidf_parts(vectors, "red", "blue").tolist() == [0.0]


# --- the lists, and training again without them ---


def test_the_ends_are_sorted_and_the_control_is_of_the_class(made):
    for q, method, end, found in ends(made):
        scores, sign = [score for _, score, _ in found["rows"]], 1 if end == "high" else -1
        assert len(scores) == 3
        if method == text_explorer.CONTROL:
            own = made["questions"][q]["text"][1]
            assert scores == [None] * 3
            assert all((made["texts"][i][1] == own) == (end == "high") for i, *_ in found["rows"])
        else:
            assert (np.diff(sign * np.array(scores)) <= 0).all()
            assert min(sign * np.array(scores)) > 0


def test_the_change_is_that_of_a_loop_over_retrainings(made, study):
    true = torch.tensor(study.task.test["label"].tolist())

    def p(keep, seed):
        logits = predict(study, train_text(study, seed, keep).params)
        return torch.softmax(logits.double(), 1)[torch.arange(4), true].numpy()

    before = np.array([p(np.ones(60, bool), seed) for seed in (0, 1)])
    for q, question in enumerate(made["questions"]):
        assert question["probability"] == pytest.approx(before[:, q], abs=6e-4)
    for q, _, _, found in list(ends(made))[::5]:
        keep = np.ones(60, bool)
        keep[[row_of(study, made, index) for index, *_ in found["rows"]]] = False
        assert keep.sum() == 57
        after = [p(keep, seed)[q] for seed in (0, 1)]
        assert found["trained"] == pytest.approx(after - before[:, q], abs=2e-3)
    assert len({tuple(found["trained"]) for *_, found in ends(made)}) > 4


def test_the_summary_is_the_mean_of_the_lists(made):
    check_summary(made)


def check_summary(data):
    means = {}
    for _, method, end, found in ends(data):
        means.setdefault((method, end), []).append(np.mean(found["trained"]))
    means = {key: np.mean(values) for key, values in means.items()}
    apart = {method: (means[method, "low"] - means[method, "high"]) / 2 for method in data["methods"]}
    for method, row in data["summary"].items():
        assert set(row) == {"high", "low"} | ({"gain"} if method != text_explorer.CONTROL else set())
        for what, (value, low, high) in row.items():
            expected = apart[method] - apart[text_explorer.CONTROL] if what == "gain" else means[method, what]
            assert value == pytest.approx(expected, abs=1.1e-3)
            assert low <= value <= high


def test_a_list_with_scores_of_both_signs_is_refused(folder):
    found = run_panel(SMALL, folder)
    turned = replace(found, ranks={name: ranks[::-1] for name, ranks in found.ranks.items()})
    with pytest.raises(ValueError, match="tr_we: k = 3 texts have scores of both signs: take a smaller k"):
        text_explorer._lists(turned, {})


def test_a_repeated_run_gives_the_same_bytes(made, tmp_path):
    threads = torch.get_num_threads()
    again = text_explorer.text_explorer_data(SMALL, tmp_path)
    assert text_explorer.page_data(again) == text_explorer.page_data(made)
    assert torch.get_num_threads() == threads


# --- the page ---


def hostile(data):
    """Every text of the page replaced by one that tries to end the script."""
    data = json.loads(json.dumps(data))
    for row in [*data["texts"], *(question["text"] for question in data["questions"])]:
        row[0] = row[2] = HOSTILE
    data["classes"] = [f"{HOSTILE}{k}" for k, _ in enumerate(data["classes"])]
    return data


def _data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.S)[1])


def test_a_text_cannot_end_the_script(made):
    page = text_explorer.page_data(hostile(made))
    assert page.count("</script>") == 1
    assert "<img" not in page
    assert "<b>" not in page
    assert _data_of(page) == hostile(made)


@pytest.fixture(scope="module")
def shown():
    return _data_of(text_explorer.PAGE.read_text("utf-8"))


def test_the_committed_data_are_whole(shown):
    assert text_explorer.PAGE.read_text("utf-8") == text_explorer.page_data(shown)  # nobody typed into it
    assert text_explorer.PAGE.stat().st_size < 400_000
    assert shown["methods"] == text_explorer.METHODS
    assert shown["ends"] == text_explorer.ENDS
    assert shown["classes"] == list(TOPICS)
    assert [Counter(question["text"][1] for question in shown["questions"])[k] for k in range(4)] == [2] * 4
    settings = shown["settings"]
    assert (settings["k"], settings["seeds"]) == (*text_explorer.PANEL.sizes, text_explorer.PANEL.seeds)
    check_summary(shown)
    for q, method, end, found in ends(shown):
        sign, own = 1 if end == "high" else -1, shown["questions"][q]["text"][1]
        assert (len(found["rows"]), len(found["trained"])) == (settings["k"], settings["seeds"])
        for i, score, parts in found["rows"]:
            if method == text_explorer.CONTROL:
                assert (score, parts, shown["texts"][i][1] == own) == (None, [], end == "high")
                continue
            assert sign * score > 0
            if shown["methods"][method].get("parts"):
                assert sum(parts) == pytest.approx(score, abs=0.006 * (sum(map(abs, parts)) + abs(score)))


def test_the_committed_sentences_are_those_of_the_task(shown):
    task = text_explorer.PANEL.study().task
    title = {f"wikipedia-{i}": name for i, name in enumerate(wikipedia().source)}
    for split, texts in (("train", shown["texts"]), ("test", [question["text"] for question in shown["questions"]])):
        frame = getattr(task, split)
        there = set(zip(frame["id"].map(title), frame["label"], frame["text"], strict=True))
        assert {tuple(row[:3]) for row in texts} <= there


def test_what_the_page_says_in_words_is_so(shown):
    """Whom the retrainings support, which words carry the scores, whose topic the proponents have."""
    (gain, low, _), others = shown["summary"]["tr_tfidf"]["gain"], ("tr_we", "tr_last")
    assert low > 0
    assert all(shown["summary"][name]["gain"][1] <= 0 < gain for name in others)
    assert shown["summary"]["tr_last"]["low"][2] < 0  # the whole interval is on the wrong side
    texts = [set(text.split(" ")) for text in text_explorer.PANEL.study().task.train["text"]]
    counts, common, same = Counter(word for text in texts for word in text), {}, {}
    for q, method, end, found in ends(shown):
        for i, _, parts in found["rows"]:
            _, label, text, _ = shown["texts"][i]
            if any(parts[1:]):
                word = text.split(" ")[int(np.argmax(np.abs(parts[1:])))]
                common.setdefault(method, []).append(counts[word] >= 0.1 * len(texts))
            if end == "high":
                same.setdefault(method, []).append(label == shown["questions"][q]["text"][1])
    assert np.mean(common["tr_we"]) > 0.8
    assert np.mean(common["tr_tfidf"]) < 0.5
    assert 0.6 < np.mean(same["tr_we"]) < 0.72
    assert np.mean(same["tr_last"]) == np.mean(same["tr_tfidf"]) == 1
    torn = [len(set(np.sign(found["trained"]))) > 1 for *_, found in ends(shown)]
    assert np.mean(torn) > 0.5
    assert 60 <= shown["settings"]["accuracy"] <= 70


def test_the_page_stands_after_the_first_explorer():
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    assert toc.index("file: book/explorer\n") < toc.index("file: book/text_explorer\n")


# --- the script, in Chromium ---


READ = """() => [...document.querySelectorAll("section.list")].map((list) => ({
    method: list.dataset.method, end: list.className.split(" ")[1], title: list.querySelector("h4").textContent,
    strong: list.querySelector(".together strong").textContent,
    seeds: list.querySelector(".together .note").textContent,
    rows: [...list.querySelectorAll("li")].map((item) => [".score", "a", ".topic", ".text", ".special"].map((part) =>
        item.querySelector(part) && item.querySelector(part).cloneNode(true)).map((node) => {
            if (node) node.querySelectorAll("small").forEach((number) => number.remove());
            return node && node.textContent;
        })),
    marks: [...list.querySelectorAll(".help, .harm")].map((mark) => [mark.className.split(" ")[0], mark.title,
        mark.querySelector("small").textContent])}))"""


def number(text):
    return float(text.replace("−", "-").replace("+", ""))


@pytest.fixture(scope="module")
def open_page():
    """A function that shows data in Chromium, from disk: ``open_page(folder, data) -> page``."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    code = script("text_explorer.js")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])

        def show(where, data):
            file, said = where / "page.html", []
            body = f"<main>{text_explorer.page_data(data)}</main><script>{code}</script>"
            file.write_text(f'<!DOCTYPE html><meta charset="utf-8">{body}', "utf-8")
            page = browser.new_page()
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
            page.goto(file.as_uri())
            return page, said

        yield show
        browser.close()


def test_the_script_shows_what_the_data_hold(shown, tmp_path, open_page):
    page, said = open_page(tmp_path, shown)
    assert page.locator("caption").count() == 1  # the plain list makes room; the summary stays
    page.select_option("#explorer-count", "20")
    for q, question in enumerate(shown["questions"]):
        page.select_option("#explorer-question", str(q))
        assert page.locator(".about .text").text_content() == question["text"][2]
        found = {(one["method"], one["end"]): one for one in page.evaluate(READ)}
        assert len(found) == 8
        for method, lists in question["lists"].items():
            for end, expected in lists.items():
                check_list(shown, method, expected, found[method, end])
    page.select_option("#explorer-count", "3")
    assert {len(one["rows"]) for one in page.evaluate(READ)} == {3}
    assert not said


def check_list(data, method, expected, found):
    """One list in the browser against the data."""
    about, classes = data["methods"][method], data["classes"]
    assert found["title"] == about["title"]
    assert number(found["strong"]) == pytest.approx(np.mean(expected["trained"]), abs=6e-4)
    seeds = re.search(r"Each seed: ([^a-z]*)\.", found["seeds"])[1].split(", ")
    assert [number(one) for one in seeds] == expected["trained"]
    assert len(found["rows"]) == len(expected["rows"])
    marks = []
    for (i, score, parts), (head, link, topic, text, special) in zip(expected["rows"], found["rows"], strict=True):
        article, label, words, _ = data["texts"][i]
        assert (link, topic, text) == (article, classes[label], words)
        assert (head is None) == (score is None)
        assert score is None or number(head) == score
        total = sum(map(abs, parts)) or 1
        assert (special is not None) == (about.get("parts") == "tokens")
        if special is not None:
            share = re.fullmatch(r"\[CLS\]\+\[SEP\]: ([+−]?\d+)\u00a0% \((.*)\)", special)
            assert number(share[1]) == pytest.approx(100 * (parts or [0])[0] / total, abs=0.51)
            assert number(share[2]) == (parts or [0])[0]
        shares = [100 * part / total for part in parts[1:]]
        marks += [share for share in shares if abs(share) >= 0.5]
    assert len(found["marks"]) == len(marks)
    for (kind, title, share), expected_share in zip(found["marks"], marks, strict=True):
        assert kind == ("help" if expected_share > 0 else "harm")
        assert number(share) == pytest.approx(expected_share, abs=0.51)
        assert np.sign(number(title.rsplit(": ", 1)[1])) == np.sign(expected_share)


def test_hostile_texts_stay_texts(made, tmp_path, open_page):
    page, said = open_page(tmp_path, hostile(made))
    assert page.locator("img").count() == 0
    assert page.locator(".about .text").text_content() == HOSTILE
    assert set(page.locator("li a").all_text_contents()) == {HOSTILE}
    assert not said


def test_controls_have_labels_and_tables_have_headers(made, tmp_path, open_page):
    page, _ = open_page(tmp_path, made)
    for menu in ("#explorer-question", "#explorer-count"):
        assert page.locator(f"label[for={menu[1:]}]").text_content()
    assert page.locator("table.overall th[scope=col]").count() == 3
    assert page.locator("table.overall th[scope=row]").count() == 4
    assert page.locator("select optgroup").count() == 4
