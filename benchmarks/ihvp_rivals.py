"""Exact influence by captum and by dattri. Imported in the rivals' environment only.

Each gets the whole data in one batch, double precision and its quickest setting that is still exact.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

from captum.influence._core.influence_function import NaiveInfluenceFunction  # captum exports no public name
from dattri.algorithm.influence_function import IFAttributorExplicit
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.ihvp import L2, SIZES

Inputs = Mapping[str, Tensor]


def _module(inputs: Inputs) -> nn.Module:
    layers = [part for pair in pairwise(SIZES) for part in (nn.Linear(*pair), nn.Tanh())]
    module = nn.Sequential(*layers[:-1])
    module.load_state_dict({name: inputs[name] for name in module.state_dict()})
    return module


def loader(x: Tensor, y: Tensor) -> DataLoader:
    """Everything in one batch."""
    return DataLoader(TensorDataset(x, y), batch_size=len(x))


def captum_on(module: nn.Module, inputs: Inputs, penalty: float) -> Callable[[], Tensor]:
    """Full rank: its default keeps 50 directions, another answer. Its loss is a sum, so the penalty is n times ours."""
    n = len(inputs["x"])

    def run() -> Tensor:
        found = NaiveInfluenceFunction(
            module, loader(inputs["x"], inputs["y"]), "", checkpoints_load_func=lambda *_: 1.0,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"), sample_wise_grads_per_batch=True,
            projection_dim=sum(value.numel() for value in module.parameters()), hessian_reg=n * penalty,
            hessian_inverse_tol=0.0,
        )  # fmt: skip
        return found.influence((inputs["x_test"], inputs["y_test"]))

    return run


def dattri_on(module: nn.Module, inputs: Inputs, penalty: float) -> Callable[[], Tensor]:
    """Its Hessian is of the loss as given, here the mean over the batch; its scores come as (train, test)."""
    n = len(inputs["x"])

    def loss(params: Mapping[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(module, params, data[0]), data[1])

    def run() -> Tensor:
        task = AttributionTask(loss_func=loss, model=module, checkpoints=module.state_dict())
        train = loader(inputs["x"], inputs["y"])
        attributor = IFAttributorExplicit(task, regularization=penalty)
        attributor.cache(train)
        return attributor.attribute(train, loader(inputs["x_test"], inputs["y_test"])).T / n

    return run


RIVALS = {
    "captum": lambda inputs: captum_on(_module(inputs), inputs, L2),
    "dattri": lambda inputs: dattri_on(_module(inputs), inputs, L2),
}
