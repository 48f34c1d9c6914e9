"""Fine-tuning: AdamW with a linear warm-up and a linear decay to zero, dropout on or off; a hook after every step.

This is the schedule of the influence-tuning paper, from torch's AdamW and the schedule of ``transformers``. Everything
that is compared there (influence tuning, adversarial training, the controls) takes its label steps here, with the same
start, order of texts and dropout for the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from clif_kit.text_models import Losses, Params, TextModel, check, text_losses
from clif_kit.text_tokens import Tokens

Hook = Callable[[int, torch.optim.Optimizer, Params], dict[str, float] | None]  # (steps done, optimizer, leaves)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to fine-tune; the paper's values for TextLen.

    Attributes:
        epochs: Passes over the training texts.
        lr: The largest learning rate.
        batch_size: Texts a step.
        warmup: Share of the steps in which the rate rises from 0; it falls to 0 over the others.
        weight_decay: Of all parameters but biases and layer norms (those with fewer than two dimensions).
        dropout: Whether it is at work. Off is the control that the paper lacks.
        floor_steps: Plan the rate for ``int(n / batch_size) * epochs`` steps as the authors' code does, though it takes
            more: the last ones then have the rate 0.
    """

    epochs: int = 10
    lr: float = 2e-5
    batch_size: int = 64
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: bool = True
    floor_steps: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.warmup < 1 or not self.lr > 0:
            raise ValueError(f"epochs and batch_size from 1, warmup in [0, 1), lr above 0: got {self}")

    def steps(self, n: int) -> int:
        """Steps that are taken."""
        return self.epochs * -(-n // self.batch_size)

    def planned(self, n: int) -> int:
        """Steps that the rate is planned for."""
        return max(1, self.epochs * (n // self.batch_size)) if self.floor_steps else self.steps(n)


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning made.

    Attributes:
        params: The parameters at the end, detached.
        loss: Mean loss of the batch before each step, ``(steps,)``.
        lr: Learning rate of each step, ``(steps,)``.
    """

    params: Params = field(repr=False)
    loss: Tensor = field(repr=False)
    lr: Tensor = field(repr=False)


def fine_tune(
    model: TextModel,
    params: Params,
    tokens: Tokens,
    y: Tensor,
    schedule: Schedule,
    *,
    seed: int = 0,
    after: Hook | None = None,
    progress: bool = False,
) -> FineTuned:
    """Fine-tune a text classifier on its cross-entropy: the plain method, and without dropout the control.

    Args:
        model: The classifier, made with some dropout (``transformer(..., dropout=0.1)``).
        params: Where to start; left as they are.
        tokens: n texts.
        y: Labels, ``(n,)``.
        schedule: How.
        seed: Decides order and dropout. The global stream is left alone.
        after: Called after every step as ``after(steps, optimizer, leaves)``; what it returns is shown in the bar.
        progress: Draw a bar on the error stream.

    Raises:
        FloatingPointError: If the loss is not finite at some step.
        ValueError: If model, texts and labels do not fit together, or dropout is asked for and the model has none.
    """
    check(model, params, tokens.ids, tokens.parts, y)
    losses = by_length(text_losses(with_dropout(model, schedule.dropout), trim=True))
    return minimise(losses, params, (tokens.ids, tokens.parts, y), schedule, seed=seed, after=after, progress=progress)


def minimise(
    losses: Losses,
    params: Params,
    batch: tuple[Tensor, ...],
    schedule: Schedule,
    *,
    seed: int = 0,
    after: Hook | None = None,
    progress: bool = False,
) -> FineTuned:
    """The loop of :func:`fine_tune` for any loss an example, ``losses(params, *batch) -> (n,)``.

    >>> found = minimise(lambda params, x: (params["w"] - x) ** 2, {"w": torch.tensor(9.0)}, (torch.ones(4),),
    ...                  Schedule(epochs=8, lr=0.5, batch_size=2, warmup=0.25))
    >>> found.lr[:6]
    tensor([0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.4583])
    """
    from transformers import get_linear_schedule_with_warmup  # two seconds to import

    n, draw = len(batch[0]), torch.Generator().manual_seed(seed)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    machine, planned = adamw(leaves, schedule.lr, schedule.weight_decay), schedule.planned(n)
    rate = get_linear_schedule_with_warmup(machine, int(schedule.warmup * planned), planned)
    history, rates = [], []
    with torch.random.fork_rng(), tqdm(total=schedule.steps(n), disable=not progress) as bar:
        torch.manual_seed(seed)
        for _ in range(schedule.epochs):
            for rows in torch.randperm(n, generator=draw).split(schedule.batch_size):
                machine.zero_grad()
                objective = losses(leaves, *(value[rows] for value in batch)).mean()
                if not torch.isfinite(objective):
                    raise FloatingPointError(f"the loss is {objective.item()} at step {len(history)}: lower lr")
                objective.backward()
                history.append(objective.item())
                rates.append(rate.get_last_lr()[0])
                machine.step()
                rate.step()
                shown = (after(len(history), machine, leaves) if after else None) or {}
                bar.set_postfix(loss=f"{history[-1]:.3f}", **{k: f"{v:.2g}" for k, v in shown.items()}, refresh=False)
                bar.update()
    frozen = {name: value.detach().clone() for name, value in leaves.items()}
    return FineTuned(frozen, torch.tensor(history), torch.tensor(rates))


def by_length(losses: Losses) -> Losses:
    """The same losses of texts in two passes, the shorter half of a batch and the longer: a fifth less padding.

    >>> def first(params, ids, parts):
    ...     return ids[:, 0] + 10 * ids.shape[0]
    >>> by_length(first)({}, torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]]))
    tensor([15, 17])
    """

    def halves(params: Params, ids: Tensor, parts: Tensor, *rest: Tensor) -> Tensor:
        order = (parts > 0).sum(1).argsort(stable=True)
        found = [losses(params, ids[half], parts[half], *(value[half] for value in rest)) for half in order.chunk(2)]
        return torch.cat(found)[order.argsort()]

    return halves


def adamw(leaves: Params, lr: float, weight_decay: float, *, decay_all: bool = False) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and layer norms, or with it on everything (``decay_all``)."""
    groups = [[value for value in leaves.values() if (decay_all or value.ndim > 1) == decay] for decay in (True, False)]
    decays = (weight_decay, 0.0)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)], lr=lr
    )


def with_dropout(model: TextModel, dropout: bool) -> TextModel:
    """The model to train: with its dropout at work, or as it is.

    Raises:
        ValueError: If dropout is asked for and the model has none.
    """
    if dropout and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.module.modules()):
        raise ValueError("the model has no dropout: make it with transformer(..., dropout=0.1), or say dropout=False")
    return model.training() if dropout else model


def logits(model: TextModel, params: Params, tokens: Tokens, *, chunk: int = 128) -> Tensor:
    """Outputs ``(n, classes)``, without dropout."""
    with torch.no_grad():
        parts = [tokens.take(slice(k, k + chunk)) for k in range(0, len(tokens), chunk)]
        return torch.cat([model.logits(params, part.ids, part.parts) for part in parts])
