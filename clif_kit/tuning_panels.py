"""The runs of the chapters on influence tuning: methods with their settings, and the grids these were chosen from.

Settings were chosen on the twins ("wikipedia" for TextLen, "grammar" for MSGS), on development texts that have the
shortcut as often as the training texts do, with a seed that is not reported, three settings a method.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from clif_kit.finetune import Schedule
from clif_kit.tuning_run import Published, Tuning
from clif_kit.tuning_study import Method

SCHEDULES = {"textlen": Schedule(epochs=5, lr=2e-4), "msgs": Schedule(epochs=2, lr=2e-4)}
ROUNDS = {
    "textlen": Tuning(interval=30, epochs=1, probes=34, k=5, batch=8, lr=3e-4),
    "msgs": Tuning(interval=40, epochs=1, probes=34, k=3, batch=8, lr=3e-4),
}  # three rounds each: 102 gradients of J
STEPS = (1e-4, 3e-4, 1e-3)  # of the second optimizer
TWINS = {"textlen": "wikipedia", "msgs": "grammar"}
LIKE = {name: like for like, twin in TWINS.items() for name in (like, twin)}  # whose settings a task takes
TWIN_SIZES = {
    "textlen": {"train": 1500, "dev": 1000, "test": 500},
    "msgs": {"train": 5000, "dev": 4000, "test": 600, "rate": 0.997},
}
# The setting of each method with the best mean over the four groups of development texts (the rate of fine-tuning is
# everybody's).
CHOSEN = {
    "textlen": {"adversarial": 0.3, "influence": 1e-3, "embedding": 1e-3},
    "msgs": {"adversarial": 0.3, "influence": 3e-4, "embedding": 3e-4},
}
NAMES = (
    "finetune", "finetune_no_dropout", "adversarial", "influence_tuning", "embedding_tuning", "no_spurious",
    "influence_tuning_published",
)  # fmt: skip

# Who should beat whom: the paper's claims, and the controls that it lacks.
CLAIMS = (
    ("adversarial", "finetune"), ("influence_tuning", "finetune"), ("embedding_tuning", "finetune"),
    ("influence_tuning", "adversarial"), ("embedding_tuning", "adversarial"),
    ("embedding_tuning", "influence_tuning"), ("influence_tuning", "embedding_tuning"),
    ("no_spurious", "finetune"), ("no_spurious", "adversarial"), ("no_spurious", "influence_tuning"),
    ("no_spurious", "embedding_tuning"), ("finetune_no_dropout", "finetune"),
    ("influence_tuning", "finetune_no_dropout"), ("embedding_tuning", "finetune_no_dropout"),
    ("influence_tuning_published", "influence_tuning"),
)  # fmt: skip


def claims(names: Iterable[str]) -> list[tuple[str, str]]:
    """Those of ``CLAIMS`` that speak of these methods only."""
    known = set(names)
    return [pair for pair in CLAIMS if known.issuperset(pair)]


def grid(like: str) -> dict[str, dict[str, Method]]:
    """The settings that were tried: by method, by what is varied.

    Args:
        like: "textlen" or "msgs".
    """
    schedule, rounds = SCHEDULES[like], ROUNDS[like]
    tuned = {f"rate of J {lr:g}": replace(rounds, lr=lr) for lr in STEPS}
    found = {
        "fine": {f"rate {lr:g}": Method(schedule=replace(schedule, lr=lr)) for lr in (1e-4, 2e-4, 4e-4)},
        "adversarial": {
            f"lambda {lam:g}": Method(kind="adversarial", schedule=schedule, lam=lam) for lam in (0.3, 1.0, 3.0)
        },
    }
    for kind in ("influence", "embedding"):
        found[kind] = {name: Method(kind=kind, schedule=schedule, tuning=one) for name, one in tuned.items()}
    return found


def methods(
    like: str, names: Iterable[str] = NAMES, *, access: float = 1.0, schedule: Mapping[str, float] | None = None,
    tuning: Mapping[str, float] | None = None,
) -> dict[str, Method]:  # fmt: skip
    """The methods of the book, by the names of its tables.

    Args:
        like: "textlen" or "msgs".
        names: Which, of ``NAMES``: fine-tuning with and without dropout, the baseline, influence and embedding tuning,
            the control without the shortcut, influence tuning with the faults of the authors' code.
        access: Share of the training texts whose shortcut is known, for influence and embedding tuning. Below 1, five
            texts of each group are among them, as in the authors' code; k + 1 where that is more, since a probe is
            left out of its own group.
        schedule: Changes of the label steps, such as ``{"epochs": 2}``.
        tuning: Changes of the rounds, such as ``{"probes": 4}``.

    Raises:
        ValueError: If there is no such method.
    """
    chosen = CHOSEN[like]
    schedule, rounds = replace(SCHEDULES[like], **(schedule or {})), replace(ROUNDS[like], **(tuning or {}))
    at_least = max(5, rounds.k + 1) if access < 1 else 5  # of all texts nothing is added: a constant keeps their store
    tuned = {
        kind: Method(
            kind=kind, schedule=schedule, tuning=replace(rounds, **({"lr": chosen[kind]} | (tuning or {}))),
            access=access, at_least=at_least,
        )
        for kind in ("influence", "embedding")
    }  # fmt: skip
    known = {
        "finetune": Method(schedule=schedule),
        "finetune_no_dropout": Method(schedule=replace(schedule, dropout=False)),
        "adversarial": Method(kind="adversarial", schedule=schedule, lam=chosen["adversarial"]),
        "influence_tuning": tuned["influence"],
        "embedding_tuning": tuned["embedding"],
        "no_spurious": Method(schedule=schedule, plain=True),
        "influence_tuning_published": published(tuned["influence"]),
    }
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"no method {wrong[0]!r}: choose from {', '.join(known)}")
    return {name: known[name] for name in names}


def published(method: Method) -> Method:
    """The same as the authors' code does it, faults and all."""
    tuning = replace(method.tuning, published=Published.everything())
    return replace(method, schedule=replace(method.schedule, floor_steps=True), tuning=tuning)


def settings(found: Mapping[str, Method], data: str, n: int) -> dict[str, float]:
    """The settings of some methods on n training texts, as ``n/<setting>/<method>/<data>``."""
    fine, out = found["finetune"].schedule, {}
    names = {"epochs": fine.epochs, "learning_rate": fine.lr, "batch": fine.batch_size, "label_steps": fine.steps(n)}
    out |= {f"n/{key}/finetune/{data}": value for key, value in names.items()}
    if one := found.get("adversarial"):
        names = {"learning_rate": one.schedule.lr, "epochs": one.schedule.epochs, "lambda": one.lam}
        out |= {f"n/{key}/adversarial/{data}": value for key, value in names.items()}
    for name in ("influence_tuning", "embedding_tuning"):
        if name in found:
            one = found[name].tuning
            names = {
                "interval": one.interval, "inner_epochs": one.epochs, "tuning_batch": one.batch, "tuning_rate": one.lr,
                "probes": one.probes, "group_a": one.k, "group_b": one.k,
            }  # fmt: skip
            out |= {f"n/{key}/{name}/{data}": value for key, value in names.items()}
    return out


def group_mean(run: Mapping[str, np.ndarray], split: str = "dev") -> float:
    """Mean of the accuracies by label and spurious attribute, per cent: what a balanced set would show."""
    return float(np.mean(run[f"groups/{split}"]))
