"""The benchmark harness: what it stores, what it refuses, and the page that is made from it. Nothing here is timed."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import bootstrap
from benchmarks import __main__ as command
from benchmarks import harness, mog, page, peer, sgns, sgns_lissa, sgns_memory

SCHEMA = {
    "id": str, "title": str, "ratio": float, "low": float, "high": float, "goal": (int, float), "rival": str,
    "unit": str, "max_diff": (float, type(None)), "bound": (float, type(None)), "relative": bool,
    "ours": float, "theirs": float, "rivals": dict, "n": str, "repeats": int, "versions": dict, "machine": dict,
}  # fmt: skip


def check(row):
    """Raise AssertionError if a stored row breaks the schema."""
    assert row.keys() == SCHEMA.keys()
    for key, kind in SCHEMA.items():
        assert isinstance(row[key], kind), key
    assert row["id"] in harness.IDS
    assert row["unit"] in ("cpu", "wall", "bytes")
    if row["bound"] is None:
        assert row["max_diff"] is None
        assert row["id"].endswith("_floor")
    else:
        assert 0 <= row["max_diff"] <= row["bound"]
    assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
    assert row["theirs"] == min(row["rivals"].values())
    assert 0 < row["low"] <= row["high"]


def fake(answer, theirs, **options):
    """A row whose sides take 1 and 3 seconds, 3 and 3 in the next round, and so on, without spending them."""

    @contextmanager
    def case():
        seconds = iter([9.0, 1.0, 3.0, 1.0])
        sides = {name: (lambda value=value: (6.0, torch.tensor(value))) for name, value in theirs.items()}
        yield harness.Case(lambda: (next(seconds), torch.tensor(answer)), sides, {"rival": "1.0"})

    row = harness.Row(id="lasso", title="t", rival="r", n="n", goal=100, bound=0.01, case=case, repeats=3)
    return replace(row, **options)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"id": "mog_pairs"}, {"id": "glm_path"}]))
    return path


def test_stored_rows_keep_the_schema_and_the_order():
    rows = harness.read()
    for row in rows:
        check(row)
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), key=harness.IDS.index)


def test_each_row_of_the_command_is_in_the_list():
    assert set(command.ROWS) <= set(harness.IDS)
    assert len(command.ROWS) == sum(len(module.ROWS) for module in command.MODULES)
    begun = ("mog", "ihvp", "sgns", "weat", "tracin", "tuning", "glm")
    assert {name for name in harness.IDS if name.startswith(begun)} == set(command.ROWS)


def test_the_first_round_warms_up_and_medians_are_compared():
    found = harness.measure(fake([1.0, -2.0], {"a": [1.0, -2.0], "b": [1.0, -2.005]}))
    check(found)
    assert (found["ours"], found["theirs"], found["ratio"]) == (1.0, 6.0, 6.0)
    assert (found["low"], found["high"]) == (2.0, 6.0)
    assert found["max_diff"] == pytest.approx(0.005, rel=1e-4)
    assert found["versions"].keys() == {"torch", "numpy", "rival"}


def test_the_fastest_rival_counts():
    @contextmanager
    def case():
        one = torch.ones(2)
        yield harness.Case(lambda: (1.0, one), {"slow": lambda: (5.0, one), "quick": lambda: (0.5, one)})

    found = harness.measure(fake([1.0], {}, case=case))
    assert (found["ratio"], found["rivals"]) == (0.5, {"slow": 5.0, "quick": 0.5})


@pytest.mark.parametrize("theirs", [[1.0, -2.02], [1.0, float("nan")], [1.0, float("inf")], [1.0], [[1.0, -2.0]]])
def test_a_row_with_another_answer_is_refused_and_the_file_stays(results, theirs):
    before, said = results.read_bytes(), []
    assert not harness.run([fake([1.0, -2.0], {"same": [1.0, -2.0], "other": theirs})], said.append, results)
    assert results.read_bytes() == before
    assert "FAILED" in said[-1]


def test_a_relative_bound_is_relative_to_our_largest_entry():
    row = fake([1.0, -200.0], {"a": [1.0, -201.0]})
    with pytest.raises(harness.Differs, match=r"lasso: the answer of a differs by 1, allowed is 0\.01"):
        harness.measure(row)
    assert harness.measure(replace(row, relative=True))["max_diff"] == pytest.approx(0.005)


def test_a_new_row_keeps_the_others_and_a_low_ratio_is_only_said(results):
    said = []
    assert harness.run([fake([1.0], {"a": [1.0]})], said.append, results)
    assert [row["id"] for row in harness.read(results)] == ["mog_pairs", "lasso", "glm_path"]
    assert re.search(r"lasso +6 +100 +below its goal", said[-1])
    assert [path.name for path in results.parent.iterdir()] == ["results.json"]


def test_an_unknown_row_is_one_line(capsys):
    assert command.main(["mog_pairs", "mog_piars"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "no row 'mog_piars'; there are: mog_pairs, " in error


def test_the_list_names_each_row(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(command.ROWS)


def test_both_sides_of_the_small_rows_agree():
    """Closed forms and batched code against plain modules and autograd, on nine points."""
    for case, bound in ((mog.pairs_case, 1e-8), (mog.loo_case, 1e-12)):
        with case(3) as sides:
            ours, theirs = sides.ours()[1], sides.theirs["loop"]()[1]
        assert ours.abs().max() > 1e-3
        assert harness.difference(ours, theirs) <= bound


def test_a_floor_has_no_answer_to_compare():
    found = harness.measure(fake([1.0, -2.0], {"a": [7.0]}, id="sgns_floor", bound=None))
    check(found)
    assert "nothing to compare" in page.text([found])


def test_the_unit_and_the_scale_of_a_side_count(monkeypatch):
    ticks = iter([1.0, 3.0])
    monkeypatch.setitem(harness.CLOCKS, harness.WALL, lambda: next(ticks))
    assert harness.timed(lambda: 5, harness.WALL, scale=10)() == (20.0, 5)
    found = harness.measure(fake([1.0], {"a": [1.0]}, unit=harness.BYTES))
    assert found["unit"] == "bytes"
    assert "peak memory in MiB" in page.text([found])


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        (lambda: sgns.scores_case("torch", harness.CPU, 60, 300, 20), 1e-12),
        (lambda: sgns.scores_case("numba", harness.WALL, 60, 300, 20), 1e-12),
        (lambda: sgns.queries_case(60, 300, 3), 1e-12),
        (lambda: sgns_lissa.case(200, 300, 40), 1e-10),
    ],
    ids=["torch", "numba", "queries", "lissa"],
)
def test_both_sides_of_the_word_rows_agree(case, bound):
    with case() as sides:
        ours, (theirs,) = sides.ours()[1], (side()[1] for side in sides.theirs.values())
    assert ours.abs().max() > 1e-6
    assert harness.difference(ours, theirs, relative=True) <= bound


def test_the_floor_reads_every_row_of_three_matrices():
    with sgns.floor_case(60, 300) as sides:
        found = sides.theirs["gathering"]()[1]
    corpus, params = sgns.zipf(60, 300), sgns.matrices(300)
    blocks = [params["input"], params["context"], sgns.dense_queries(1, params)[0]["input"]]
    words = [int(corpus.sentence(s)[s % sgns.LENGTH]) for s in range(60)]
    expected = [sum(float(block[word, s % sgns.WIDTH]) for block in blocks) for s, word in enumerate(words)]
    assert found.tolist() == pytest.approx(expected)


def test_pieces_that_are_scored_in_another_process_keep_their_answer():
    with sgns_memory.case(harness.BYTES, 20, 30, 40) as sides:
        (small, first), (large, second) = sides.theirs["20 sentences"](), sides.ours()
    assert torch.equal(second[:20], first)
    assert 5e7 < small < large * 1.1


RIVALS = """
def double(inputs):
    print("a package that prints")
    return lambda: 2 * inputs["x"]

def broken(inputs):
    def run():
        raise ValueError("no such thing")
    return run

RIVALS = {"torch": double, "numpy": broken}
"""


def test_a_rival_in_another_process_takes_turns_and_its_death_is_said(tmp_path, monkeypatch):
    (tmp_path / "some_rivals.py").write_text(RIVALS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(peer, "PYTHON", bootstrap.PY if bootstrap.PY.exists() else peer.Path(peer.sys.executable))
    x = torch.arange(3.0).double()
    with peer.rivals("some_rivals", {"x": x}, ("torch", "numpy")) as (sides, versions):
        assert versions["torch"].startswith("2.")
        for _ in range(2):
            seconds, answer = sides["torch"]()
            assert torch.equal(answer, 2 * x)
            assert seconds >= 0
        with pytest.raises(harness.Unavailable, match="numpy failed: ValueError: no such thing"):
            sides["numpy"]()


def test_without_the_rivals_environment_there_is_a_line_that_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "PYTHON", tmp_path / "python")
    with pytest.raises(harness.Unavailable, match="make bench"), peer.rivals("x", {}, ()):
        pass


def test_each_rival_is_locked_with_a_hash():
    wanted = re.findall(r"(?m)^([a-z0-9-]+==\S+)", (harness.ROOT / "requirements-peers.in").read_text())
    lock = (harness.ROOT / bootstrap.PEERS_LOCK).read_text()
    assert wanted == bootstrap.pins(bootstrap.PEERS_LOCK)
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", lock))


def test_page_and_figure_are_those_of_the_results():
    assert page.PAGE.read_text("utf-8") == page.text(harness.read()), "python -m benchmarks.page"
    assert page.FIGURE.read_bytes() == page.figure(harness.read()), "python -m benchmarks.page"


def test_the_page_says_what_is_not_measured():
    row = harness.measure(fake([1.0], {"a": [1.0]}))
    said = page.text([row])
    assert "goal 100" in said
    assert "below its goal" in said
    assert "`mog_pairs`" in said.splitlines()[-1]
    assert "`lasso`" not in said.splitlines()[-1]
