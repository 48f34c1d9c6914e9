"""Influence on a linear classifier by captum, dattri and kronfluence. Imported in the rivals' environment only.

The classifier is the whole image model, or the last layer of a text model at its last checkpoint. Each library
gets all data in one batch, double precision, and the damping that our score has. None gives the penalty's share of a
training gradient, so what they compute is our ``inf_last``; kronfluence's curvature is an approximation (EK-FAC).
"""

import tempfile
from collections.abc import Callable, Mapping

import torch
from captum.influence._core.influence_function import NaiveInfluenceFunction  # captum exports no public name
from dattri.algorithm.influence_function import IFAttributorExplicit
from dattri.task import AttributionTask
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

Inputs = Mapping[str, Tensor]


def _module(inputs: Inputs) -> nn.Sequential:
    classes, width = inputs["weight"].shape
    module = nn.Sequential(nn.Linear(width, classes))
    module.load_state_dict({"0.weight": inputs["weight"], "0.bias": inputs["bias"]})
    return module


def _loader(x: Tensor, y: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=len(x))


def captum(inputs: Inputs) -> Callable[[], Tensor]:
    """Full rank; its loss is a sum, so the damping is n times ours."""
    module, n = _module(inputs), len(inputs["x"])

    def run() -> Tensor:
        found = NaiveInfluenceFunction(
            module, _loader(inputs["x"], inputs["y"]), "", checkpoints_load_func=lambda *_: 1.0,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"), sample_wise_grads_per_batch=True,
            projection_dim=sum(value.numel() for value in module.parameters()),
            hessian_reg=n * float(inputs["damping"]), hessian_inverse_tol=0.0,
        )  # fmt: skip
        return found.influence((inputs["x_test"], inputs["y_test"]))

    return run


def dattri(inputs: Inputs) -> Callable[[], Tensor]:
    """Its Hessian is of the loss as given, here the mean over the batch; its scores come as (train, test)."""
    module, n = _module(inputs), len(inputs["x"])

    def loss(params: Mapping[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(module, params, data[0]), data[1])

    def run() -> Tensor:
        task = AttributionTask(loss_func=loss, model=module, checkpoints=module.state_dict())
        train = _loader(inputs["x"], inputs["y"])
        attributor = IFAttributorExplicit(task, regularization=float(inputs["damping"]))
        attributor.cache(train)
        return attributor.attribute(train, _loader(inputs["x_test"], inputs["y_test"])).T / n

    return run


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
