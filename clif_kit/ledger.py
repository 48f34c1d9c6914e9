"""What the papers printed, what a metric is, and the verdict when the two meet.

``book/paper_values.yml`` holds one row for each published number, figure, table and claim. A claim is judged by one
metric, usually a paired difference, and one comparison::

    kind: claim
    text: "influence ranks removals better than the gradient dot product"
    key: pearson_gain/influence_minus_dot/random    # a metric with low and high
    holds_if: "> 0"                                 # or "< 0", "> 0.5", ...

Its whole interval on the named side: *holds*; wholly on the other: *does not hold*; else *undecided*; no such metric
in the run: *not run here*.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(os.environ.get("CLIF_ROOT") or Path(__file__).parents[1]).resolve()

_PART = r"[a-z0-9_.+-]+"
_KEY = re.compile(rf"{_PART}(/{_PART}){{1,3}}")
_BARE_KEY = re.compile(rf"(p|n|cost)(/{_PART}){{1,4}}")
_HOLDS_IF = re.compile(r"([<>]) *(-?[0-9.]+(?:e-?[0-9]+)?)")
_FIELDS = {"value", "low", "high", "n", "over", "unit"}
_ROW_NEEDS = {"id", "paper", "source", "kind", "notebook"}
_KIND_NEEDS = {"number": {"value", "tolerance", "key"}, "claim": {"text"}, "figure": set(), "table": set()}
_ROW_MAY = {
    "text", "value", "tolerance", "unit", "comparable", "key", "holds_if", "not_run", "shows", "figure", "note",
}  # fmt: skip


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, dict]:
    """The metrics as plain dictionaries, after the checks of the results schema.

    Keys are ``quantity/method[/what[/data]]`` in ``a-z 0-9 _ . + -``. Each value has ``value``, ``low``, ``high``
    (95 %), ``n``, ``over`` (what was resampled) and ``unit``, and may have ``values``: an
    :class:`clif_kit.evaluate.Interval` or such a dictionary. Keys that begin with ``p/``, ``n/`` or ``cost/`` may be
    plain numbers; they become ``{"value": number}``.

    Raises:
        ValueError: Naming the key, if a field is missing, unknown or not finite, or if ``low <= value <= high`` is
            broken by more than rounding.

    >>> check_metrics({"n/removed": 40})
    {'n/removed': {'value': 40}}
    """
    return {key: _check_metric(key, metric) for key, metric in metrics.items()}


def _check_metric(key: str, metric: Any) -> dict:
    bare = bool(_BARE_KEY.fullmatch(key))
    if not (bare or _KEY.fullmatch(key)):
        raise ValueError(f"metric key {key!r} is not quantity/method[/what[/data]] in lower case")
    metric = metric.as_dict() if hasattr(metric, "as_dict") else metric
    if not isinstance(metric, Mapping):
        if not bare:
            raise ValueError(f"{key}: a plain number; only p/, n/ and cost/ keys need no interval")
        metric = {"value": metric}
    metric = {name: _plain(value) for name, value in metric.items()}
    if missing := sorted(({"value"} if bare else _FIELDS) - metric.keys()):
        raise ValueError(f"{key}: no {', '.join(missing)}")
    if unknown := sorted(metric.keys() - _FIELDS - {"values"}):
        raise ValueError(f"{key}: unknown field {', '.join(unknown)}")
    for name in ("value", "low", "high", "n", "values"):
        for number in np.ravel(metric.get(name, [])):
            if not (isinstance(number, np.number) and np.isfinite(number)):
                raise ValueError(f"{key}: {name} has {number}, not a finite number")
    if {"low", "high"} <= metric.keys():
        slack = 1e-9 * max(1.0, abs(metric["value"]))
        if not metric["low"] - slack <= metric["value"] <= metric["high"] + slack:
            raise ValueError(f"{key}: {metric['value']} lies outside [{metric['low']}, {metric['high']}]")
    return metric


def _plain(value: Any) -> Any:
    """The value without numpy or torch around it, so that JSON can hold it."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def rows(path: Path | None = None) -> list[dict]:
    """The rows of ``book/paper_values.yml``; the head of that file explains the fields.

    Raises:
        ValueError: Naming the row, if a field is missing, unknown or wrong, or two rows have one id.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster
    found = yaml.load((path or ROOT / "book" / "paper_values.yml").read_text("utf-8"), Loader=loader) or []
    seen: set[str] = set()
    for row in found:
        _check_row(row)
        if row["id"] in seen:
            raise ValueError(f"ledger: two rows are called {row['id']}")
        seen.add(row["id"])
    return found


def _check_row(row: dict) -> None:
    name, kind, key = row.get("id"), row.get("kind"), row.get("key")
    if kind not in _KIND_NEEDS:
        raise ValueError(f"ledger {name}: kind is {kind!r}, not one of {', '.join(_KIND_NEEDS)}")
    if missing := sorted((_ROW_NEEDS | _KIND_NEEDS[kind]) - row.keys()):
        raise ValueError(f"ledger {name}: no {', '.join(missing)}")
    if unknown := sorted(row.keys() - _ROW_NEEDS - _ROW_MAY):
        raise ValueError(f"ledger {name}: unknown field {', '.join(unknown)}")
    if key and not (_KEY.fullmatch(key) or _BARE_KEY.fullmatch(key)):
        raise ValueError(f"ledger {name}: {key!r} is not a metric key")
    if row.get("comparable", True) is not True and not str(row["comparable"]).startswith("no: "):
        raise ValueError(f"ledger {name}: comparable is true or 'no: reason'")
    if kind == "claim" and key and (_BARE_KEY.fullmatch(key) or not _HOLDS_IF.fullmatch(str(row.get("holds_if")))):
        raise ValueError(f"ledger {name}: a claim needs a key with an interval and holds_if such as '> 0'")


def verdict(row: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """The verdict on one row, given the metric that its ``key`` names (None if there is none).

    Numbers: *within* (comparable and ``|here - paper| <= tolerance``), *differs*, *not comparable*, *not run here*.
    Claims: *holds*, *does not hold*, *undecided*, *not run here*, comparable or not.

    Raises:
        ValueError: For a figure or a table: they are shown, not judged.

    >>> verdict({"kind": "number", "value": 0.48, "tolerance": 0.1}, {"value": 0.55})
    'within'
    >>> verdict({"kind": "claim", "holds_if": "> 0"}, {"value": 0.2, "low": -0.1, "high": 0.4})
    'undecided'
    """
    if row["kind"] not in ("number", "claim"):
        raise ValueError(f"a {row['kind']} is shown, not judged")
    if result is None:
        return "not run here"
    if row["kind"] == "number":
        if row.get("comparable", True) is not True:
            return "not comparable"
        slack = 1e-9 * max(1.0, abs(row["value"]))  # 0.55 - 0.45 is a little more than 0.10
        return "within" if abs(result["value"] - row["value"]) <= row["tolerance"] + slack else "differs"
    side, bound = _HOLDS_IF.fullmatch(row["holds_if"]).groups()
    low, high = result["low"] - float(bound), result["high"] - float(bound)
    if side == "<":
        low, high = -high, -low
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
