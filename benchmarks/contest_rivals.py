"""Influence on a linear classifier by captum, dattri and kronfluence. Imported in the rivals' environment only.

The classifier is the whole image model, or the last layer of a text model at its last checkpoint. Each library
gets all data in one batch, double precision, and the damping that our score has. None gives the penalty's share of a
training gradient, so what they compute is our ``inf_last``; kronfluence's curvature is an approximation (EK-FAC).
"""

import tempfile
from collections.abc import Callable, Mapping

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.ihvp_rivals import captum_on, dattri_on

Inputs = Mapping[str, Tensor]


def _module(inputs: Inputs) -> nn.Sequential:
    classes, width = inputs["weight"].shape
    module = nn.Sequential(nn.Linear(width, classes))
    module.load_state_dict({"0.weight": inputs["weight"], "0.bias": inputs["bias"]})
    return module


def captum(inputs: Inputs) -> Callable[[], Tensor]:
    """Exact, see :func:`benchmarks.ihvp_rivals.captum_on`."""
    return captum_on(_module(inputs), inputs, float(inputs["damping"]))


def dattri(inputs: Inputs) -> Callable[[], Tensor]:
    """Exact, see :func:`benchmarks.ihvp_rivals.dattri_on`."""
    return dattri_on(_module(inputs), inputs, float(inputs["damping"]))


class _Classify(Task):
    """Cross-entropy, both for training (with labels sampled for the true Fisher) and as the measurement."""

    def compute_train_loss(self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        logits, y = model(batch[0]), batch[1]
        if sample:
            y = torch.multinomial(logits.detach().softmax(1), 1).flatten()
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def kronfluence(inputs: Inputs) -> Callable[[], Tensor]:
    """EK-FAC, its default; labels of the Fisher matrix are sampled, with a seed."""
    n, kept = len(inputs["x"]), torch.float64

    def run() -> Tensor:
        torch.manual_seed(0)
        model = prepare_model(_module(inputs), _Classify())
        train, query = (TensorDataset(inputs[x], inputs[y]) for x, y in (("x", "y"), ("x_test", "y_test")))
        factors = FactorArguments(
            strategy="ekfac", activation_covariance_dtype=kept, gradient_covariance_dtype=kept,
            per_sample_gradient_dtype=kept, lambda_dtype=kept,
        )  # fmt: skip
        scores = ScoreArguments(
            damping_factor=float(inputs["damping"]), score_dtype=kept, per_sample_gradient_dtype=kept,
            precondition_dtype=kept,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("contest", model, _Classify(), cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("f", train, per_device_batch_size=n, factor_args=factors)
            analyzer.compute_pairwise_scores(
                "s", "f", query, train, per_device_query_batch_size=len(query), per_device_train_batch_size=n,
                score_args=scores,
            )  # fmt: skip
            return analyzer.load_pairwise_scores("s")["all_modules"].clone() / n

    return run


RIVALS = {"captum": captum, "dattri": dattri, "kronfluence": kronfluence}
