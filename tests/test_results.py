"""The schema of ``book/results/*.json``: what a run may claim, and how surely."""

import json
import re
from pathlib import Path

import pytest

from clif_kit.ledger import check_metrics
from clif_kit.notebooks import find, parameters

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "book" / "results").glob("*.json"))
KEYS = {
    "notebook": str, "profile": str, "commit": str, "seconds": (int, float), "peak_rss_mb": (int, float),
    "machine": dict, "versions": dict, "parameters": dict, "data": dict, "metrics": dict,
}  # fmt: skip
MAY = {"cpu_seconds", "state"}  # what else a run may say about itself
TIERS = {"embedded", "real", "paper", "generated"}


def check(result, name):
    """Raise AssertionError or ValueError if one result breaks the schema."""
    assert result.keys() >= KEYS.keys(), f"missing: {KEYS.keys() - result.keys()}"
    assert result.keys() <= KEYS.keys() | MAY, f"unknown: {result.keys() - KEYS.keys() - MAY}"
    for key, kind in KEYS.items():
        assert isinstance(result[key], kind), f"{key} is {type(result[key]).__name__}"
    assert name == f"{result['notebook']}.{result['profile']}"
    assert result["profile"] in {"quick", "book"}, "only these two are published"
    assert (ROOT / "notebooks" / f"{result['notebook']}.ipynb").exists(), "a result without its notebook"
    assert result["seconds"] > 0
    assert result["peak_rss_mb"] > 0
    for data, source in result["data"].items():
        assert source.keys() >= {"tier", "sha256"}, data
        assert source["tier"] in TIERS, data
        assert re.fullmatch(r"[0-9a-f]{64}|", source["sha256"]), data
        assert source["sha256"] or source["tier"] == "generated", f"{data}: no checksum"
    if result["profile"] == "quick":
        assert {source["tier"] for source in result["data"].values()} <= {"embedded", "generated"}
    assert result["metrics"], "no metric"
    assert check_metrics(result["metrics"]) == result["metrics"]


def example():
    """A result that keeps the schema."""
    metric = {"value": 0.97, "low": 0.95, "high": 0.98, "n": 20, "unit": "r", "over": "seeds"}
    return {
        "notebook": "00_what_a_score_means", "profile": "quick", "commit": "abc", "seconds": 4.0, "peak_rss_mb": 400,
        "machine": {}, "versions": {}, "parameters": {"seed": 0}, "metrics": {"pearson_loo/influence/ridge": metric},
        "data": {"digits": {"tier": "embedded", "sha256": "0" * 64}},
    }  # fmt: skip


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_each_published_result_keeps_the_schema(path):
    check(json.loads(path.read_text("utf8")), path.stem)


def test_each_published_result_has_the_parameters_of_its_notebook():
    for path in RESULTS:
        result = json.loads(path.read_text("utf8"))
        known = parameters(find(result["notebook"]))
        assert result["parameters"].keys() <= known.keys(), f"{path.stem}: run again and publish"


@pytest.mark.skipif(not (ROOT / "notebooks" / "00_what_a_score_means.ipynb").exists(), reason="no chapter yet")
def test_the_example_keeps_the_schema():
    check(example(), "00_what_a_score_means.quick")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("commit"),
        lambda r: r.update(extra=1),
        lambda r: r.update(seconds="4 s"),
        lambda r: r.update(notebook="01_gradients_and_hvp"),
        lambda r: r.update(profile="custom"),
        lambda r: r["data"]["digits"].update(tier="cloud"),
        lambda r: r["data"]["digits"].update(sha256=""),
        lambda r: r["data"]["digits"].update(tier="real"),
        lambda r: r["metrics"].clear(),
        lambda r: r["metrics"]["pearson_loo/influence/ridge"].pop("low"),
        lambda r: r["metrics"]["pearson_loo/influence/ridge"].update(low=0.99),
        lambda r: r["metrics"]["pearson_loo/influence/ridge"].update(value=float("nan")),
        lambda r: r["metrics"].update({"Pearson": r["metrics"]["pearson_loo/influence/ridge"]}),
        lambda r: r["metrics"].update({"pearson/influence": 0.5}),
    ],
)
def test_a_result_that_breaks_the_schema_is_caught(spoil):
    result = example()
    spoil(result)
    with pytest.raises((AssertionError, ValueError)):
        check(result, "00_what_a_score_means.quick")
