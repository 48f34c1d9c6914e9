"""Scores of captum, dattri and kronfluence on the contest's image and text tasks, stored for chapter 43.

``python -m benchmarks.contest_peers [quick book]`` runs them in the rivals' environment (``make bench`` sets it up) and
writes ``book/results/peers/43_head_to_head.json``: by digest of data and settings, by library, version, CPU seconds and
scores ``(tests, n)``. The chapter takes those whose digest fits and lets them compete.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import ROOT
from benchmarks.peer import rivals
from clif_kit import notebooks
from clif_kit.contest_images import image_model
from clif_kit.contest_texts import DAMPING, score_run, text_digest, text_study
from clif_kit.text_scores import trace
from clif_kit.tracin_layers import last_layer

NOTEBOOK = "43_head_to_head"
PATH = ROOT / "book" / "results" / "peers" / f"{NOTEBOOK}.json"
NAMES = ("captum", "dattri", "kronfluence")
DIGITS = 5  # of a score


def image_inputs(values: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """The image task's model as a linear layer, and its digest."""
    keys = {"n_train": "n_images", "n_test": "n_image_tests", "l2": "l2", "shrink": "shrink"}
    model = image_model(values["images"], **{name: values[key] for name, key in keys.items()})
    parts = {name: getattr(model, name) for name in ("x", "y", "x_test", "y_test")}
    return model.digest, parts | dict(model.theta) | {"damping": torch.tensor(model.l2, dtype=torch.float64)}


def text_inputs(values: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """The text model's last layer at its last checkpoint, and the digest of the task."""
    study = text_study(
        values["texts"], n_train=values["n_texts"], n_test=values["n_text_tests"], epochs=values["epochs"]
    )
    fitted = score_run(study)
    train, query = (last_layer(side, len(side.checkpoints) - 1).features for side in trace(study, fitted))
    head = {name: fitted.params[f"{study.model.head}.{name}"].double() for name in ("weight", "bias")}
    features = {"x": torch.tensor(train).double(), "x_test": torch.tensor(query).double()}
    labels = {"y": study.labels("train"), "y_test": study.labels("test")}
    return text_digest(study), features | labels | head | {"damping": torch.tensor(DAMPING, dtype=torch.float64)}


def ask(inputs: Mapping[str, Tensor]) -> dict[str, dict]:
    """Version, CPU seconds and scores of every library that answers."""
    found = {}
    with rivals("benchmarks.contest_rivals", inputs, NAMES) as (sides, versions):
        for name, side in sides.items():
            seconds, scores = side()
            rounded = [[float(f"{value:.{DIGITS - 1}e}") for value in row] for row in scores.double().tolist()]
            found[name] = {"version": versions[name], "seconds": round(seconds, 3), "scores": rounded}
            print(f"  {name} {versions[name]}: {seconds:.2f} s", flush=True)
    return found


def main(profiles: list[str], path: Path = PATH) -> None:
    """Ask for each profile's two tasks; digests that are stored already are asked anew."""
    source, kept = notebooks.find(NOTEBOOK), json.loads(path.read_text("utf-8")) if path.exists() else {"tasks": {}}
    torch.set_num_threads(1)
    for profile in profiles:
        values = {name: one.default for name, one in notebooks.parameters(source).items()}
        values |= notebooks.profile_values(NOTEBOOK, profile)
        for make in (image_inputs, text_inputs):
            digest, inputs = make(values)
            print(f"{profile}, {make.__name__}, {digest}", flush=True)
            kept["tasks"][digest] = ask(inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, sort_keys=True).replace("}, ", "},\n") + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or ["quick", "book"])
