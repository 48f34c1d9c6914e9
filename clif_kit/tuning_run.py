r"""Influence tuning and embedding tuning: label steps, and now and then a round of steps on the confound loss J.

A round (Han & Tsvetkov, "Influence tuning", 2021, section 4 and appendix A): in each of its epochs probes are drawn
among the texts whose confound is known, and for each a tuple with k texts of A and of B; the gradients of J of
``batch`` tuples make one step of a second optimizer, whose rate is constant. Influence is taken without dropout, which
is back at work afterwards. The authors' code departs from that in ways that :class:`Published` names.
"""

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clif_kit.cid import Watch
from clif_kit.confounds import Confounded, check_groups, draw_tuple
from clif_kit.finetune import FineTuned, Schedule, adamw, by_length, minimise, with_dropout
from clif_kit.text_models import Params, TextModel, check, text_losses
from clif_kit.text_vectors import text_gradients, text_states
from clif_kit.tuning import confound_gradient, confound_gradient_grouped


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the authors' code does and the paper does not say, each off by default.

    One more is :attr:`clif_kit.finetune.Schedule.floor_steps`.

    Attributes:
        dropout_off: Dropout stays off for the label steps after a round whose last group of tuples is incomplete.
        fixed_probes: The probes are drawn once a round, not in each of its epochs.
        own_group: A probe may be drawn for its own group A.
        zero_moments: After a round the moments of both optimizers are set to zero (their counts of steps are not).
        stale_gradients: An incomplete last group takes no step: its gradients wait, and join the next round's.
        decay_everything: The second optimizer decays biases and layer norms too.
    """

    dropout_off: bool = False
    fixed_probes: bool = False
    own_group: bool = False
    zero_moments: bool = False
    stale_gradients: bool = False
    decay_everything: bool = False

    @classmethod
    def everything(cls) -> "Published":
        """The authors' code: all at once."""
        return cls(**{option.name: True for option in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How to tune; the paper's values for TextLen. For MSGS: 50, 3, 100, 3, 16 (embedding tuning: 25, batch 4, 1e-5).

    Attributes:
        interval: Label steps between two rounds; none in the last half interval.
        epochs: Of a round.
        probes: In each epoch, drawn without replacement.
        k: Texts of A, and of B, in a tuple.
        batch: Tuples a step.
        lr: Of the second optimizer, constant.
        weight_decay: Of the second optimizer, not on biases and layer norms.
        cosine: False for the gradient product.
        names: The parameters in which the influence of influence tuning is taken. None: all.
        low_memory: One graph at a time, see :func:`clif_kit.tuning.confound_gradient_grouped`.
        published: Which departures of the authors' code to take over.
    """

    interval: int = 50
    epochs: int = 5
    probes: int = 75
    k: int = 5
    batch: int = 64
    lr: float = 3e-5
    weight_decay: float = 0.01
    cosine: bool = True
    names: tuple[str, ...] | None = None
    low_memory: bool = False
    published: Published = field(default_factory=Published)

    def __post_init__(self) -> None:
        small = [name for name in ("interval", "epochs", "probes", "k", "batch") if getattr(self, name) < 1]
        if small:
            raise ValueError(f"{small[0]} must be 1 or more, got {getattr(self, small[0])}")


@dataclass(frozen=True)
class Round:
    """One round of steps on J.

    Attributes:
        step: Label steps before it.
        probes: Probe of each tuple, in order, ``(tuples,)``.
        loss: J of each tuple, at the parameters of its turn, ``(tuples,)``.
        gap: mean over A minus mean over B of the influences, ``(tuples,)``.
        steps: Steps that the second optimizer took.
    """

    step: int
    probes: Tensor = field(repr=False)
    loss: Tensor = field(repr=False)
    gap: Tensor = field(repr=False)
    steps: int


@dataclass(frozen=True)
class Tuned(FineTuned):
    """What tuning made: :class:`clif_kit.finetune.FineTuned`, and the rounds."""

    rounds: tuple[Round, ...]


def influence_tune(
    model: TextModel, params: Params, train: Confounded, schedule: Schedule, tuning: Tuning, *, seed: int = 0,
    watch: Watch | None = None, progress: bool = False,
) -> Tuned:  # fmt: skip
    """Fine-tune, with rounds that make the influence of A and of B on the same probe alike.

    Label steps are those of :func:`clif_kit.finetune.fine_tune` with the same seed: rounds draw from a stream of their
    own, so start, order and dropout do not change with them.

    Args:
        model: The classifier; its dropout is at work in label steps if ``schedule`` says so.
        params: Where to start; left as they are.
        train: Texts, labels and confounds; rounds use those that are known.
        schedule: Of the label steps.
        tuning: Of the rounds.
        seed: Decides order, dropout and what rounds draw; same seed, same result.
        watch: Takes the CID, before and after every round besides.
        progress: Draw a bar with loss, J and CID on the error stream.

    Raises:
        FloatingPointError: If the loss or J is not finite at some step.
        ValueError: If model, texts and labels do not fit together, a group B is empty, k is larger than a group, there
            are fewer texts than probes, or dropout is asked for and the model has none.
    """
    vectors = text_gradients(model, tuning.names)
    return _tune(model, params, train, schedule, tuning, vectors, tuple(params), seed, watch, progress)


def embedding_tune(
    model: TextModel, params: Params, train: Confounded, schedule: Schedule, tuning: Tuning, *, state: str = "cls",
    seed: int = 0, watch: Watch | None = None, progress: bool = False,
) -> Tuned:  # fmt: skip
    """The same with the cosine of hidden states for influence; rounds move everything but the classifier.

    Args:
        model: See :func:`influence_tune`, as for what is not named here.
        params: Where to start.
        train: Texts, labels and confounds.
        schedule: Of the label steps.
        tuning: Of the rounds; ``names`` has no meaning.
        state: "cls" as the paper derives it, or "pooled" as the authors' code has it.
        seed: Decides order, dropout and what rounds draw.
        watch: Takes the CID.
        progress: Draw a bar.

    Raises:
        FloatingPointError: As there.
        ValueError: As there; or if there is no such state.
    """
    if tuning.names is not None:
        raise ValueError("embedding tuning has no parameter subset: leave Tuning.names at None")
    moved = tuple(name for name in params if not name.startswith(f"{model.head}."))
    vectors = text_states(model, state)
    return _tune(model, params, train, schedule, tuning, vectors, moved, seed, watch, progress)


def _tune(model, params, train, schedule, tuning, vectors, moved, seed, watch, progress) -> Tuned:
    check(model, params, train.tokens.ids, train.tokens.parts, train.y)
    check_groups(train, tuning.k, published=tuning.published.own_group)
    if len(train.pool()) < tuning.probes:
        raise ValueError(
            f"{tuning.probes} probes, but the confound of {len(train.pool())} texts is known: lower probes"
        )
    rounds = _Rounds(train, tuning, vectors, moved, schedule.planned(len(train)), seed, watch, progress)
    noisy = by_length(text_losses(with_dropout(model, schedule.dropout), trim=True))
    quiet = by_length(text_losses(model, trim=True))

    def losses(theta: Params, *batch: Tensor) -> Tensor:
        return (noisy if rounds.dropout else quiet)(theta, *batch)

    found = minimise(losses, params, train.batch(), schedule, seed=seed, after=rounds, progress=progress)
    return Tuned(found.params, found.loss, found.lr, tuple(rounds.done))


class _Rounds:
    """The hook that takes a round when one is due: holds the second optimizer, gradients that wait, and the draws."""

    def __init__(self, train, tuning, vectors, moved, planned, seed, watch, progress) -> None:
        self.train, self.tuning, self.vectors, self.moved, self.watch = train, tuning, vectors, moved, watch
        self.planned, self.rng = planned, np.random.default_rng([seed, 1])  # not the stream of the order of texts
        self.progress, self.dropout, self.waiting, self.sums, self.machine, self.done = progress, True, 0, {}, None, []

    def __call__(self, step: int, machine: torch.optim.Optimizer, leaves: Params) -> dict[str, float]:
        interval = self.tuning.interval
        if step % interval == 0 and self.planned - step > interval / 2:
            if self.watch is not None:
                self.watch.look(step, "before", leaves)
            self._round(step, leaves)
            if self.tuning.published.zero_moments:
                _zero_moments(machine, self.machine)
            if self.watch is not None:
                self.watch.look(step, "after", leaves)
        elif self.watch is not None:
            self.watch(step, machine, leaves)
        last = {"J": self.done[-1].loss.mean().item()} if self.done else {}
        return {**last, **({} if self.watch is None else self.watch.last())}

    def _round(self, step: int, leaves: Params) -> None:
        free = {name: leaves[name] for name in self.moved}
        fault, tuning, pool = self.tuning.published, self.tuning, self.train.pool()
        if self.machine is None:
            self.machine = adamw(free, tuning.lr, tuning.weight_decay, decay_all=fault.decay_everything)
        seen, steps, probes = [], 0, None
        for _ in range(tuning.epochs):
            if probes is None or not fault.fixed_probes:
                probes = pool[torch.from_numpy(self.rng.permutation(len(pool))[: tuning.probes])].tolist()
            for probe in tqdm(probes, f"round after step {step}", leave=False, disable=not self.progress):
                seen.append((probe, *self._tuple(step, probe, leaves)))
                if self.waiting == tuning.batch:
                    steps += self._step(free)
        self.dropout = not (fault.dropout_off and self.waiting)
        if self.waiting and not fault.stale_gradients:
            steps += self._step(free)
        chosen, losses, gaps = (torch.tensor(values) for values in zip(*seen, strict=True))
        self.done.append(Round(step, chosen, losses, gaps, steps))

    def _tuple(self, step: int, probe: int, leaves: Params) -> tuple[float, float]:
        """Draw a tuple and add the gradient of its J to those that wait."""
        rows = draw_tuple(self.train, probe, self.tuning.k, self.rng, published=self.tuning.published.own_group)
        way = confound_gradient_grouped if self.tuning.low_memory else confound_gradient
        try:
            found = way(self.vectors, leaves, self.train.batch(rows), self.tuning.k, cosine=self.tuning.cosine)
        except FloatingPointError as error:
            raise FloatingPointError(f"in the round after step {step}, probe {probe}: {error}") from error
        for name in self.moved:
            old = self.sums.get(name)
            self.sums[name] = found.gradient[name] if old is None else old.add_(found.gradient[name])
        self.waiting += 1
        return found.loss, found.gap

    def _step(self, free: Params) -> int:
        """One step along the mean of the gradients that wait."""
        for name, leaf in free.items():
            leaf.grad = self.sums[name] / self.waiting
        self.machine.step()
        self.machine.zero_grad()
        self.waiting, self.sums = 0, {}
        return 1


def _zero_moments(*machines: torch.optim.Optimizer) -> None:
    for machine in machines:
        for state in machine.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
