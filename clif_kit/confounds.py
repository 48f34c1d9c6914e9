"""Texts with a label and a confound: the groups A and B of a probe, what may be known of them, tuples to tune with.

A: training examples with the probe's label and its confound, but the probe itself. B: with its label and another
confound (Han & Tsvetkov, "Influence tuning", 2021, section 4).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clif_kit.example_vectors import Batch
from clif_kit.text_tokens import Tokens


@dataclass(frozen=True)
class Confounded:
    """Texts, their labels and their confounds.

    Attributes:
        tokens: n texts.
        y: Labels, ``(n,)``, from 0.
        confound: The spurious attribute of each, ``(n,)``, from 0. Any number of values.
        known: Which confounds may be looked at, bool, ``(n,)``. None: all.
    """

    tokens: Tokens = field(repr=False)
    y: Tensor = field(repr=False)
    confound: Tensor = field(repr=False)
    known: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("label", self.y), ("confound", self.confound), ("known", self.known)):
            if value is None and name == "known":
                continue
            if value is None or len(value) != len(self.tokens):
                found = "none" if value is None else len(value)
                raise ValueError(f"there are {len(self.tokens)} texts and {found} for {name!r}: give one a text")
            bad = torch.nonzero(value < 0 if not value.is_floating_point() else ~(value >= 0))
            if name != "known" and (len(bad) or value.is_floating_point()):
                what = f"text {int(bad[0])} has no {name}" if len(bad) else f"every {name} must be an integer"
                raise ValueError(f"{what}: code them as integers from 0")

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: Tensor | slice = slice(None)) -> Batch:
        """``(ids, parts, y)`` of some texts, padded no further than they need."""
        part = self.tokens.take(index)
        return part.ids, part.parts, self.y[index]

    def pool(self) -> Tensor:
        """The texts whose confound is known, ascending."""
        return torch.arange(len(self)) if self.known is None else torch.nonzero(self.known).squeeze(1)

    def groups(self, i: int, *, published: bool = False) -> tuple[Tensor, Tensor]:
        """A and B of example i among those whose confound is known; ``published`` leaves i itself in A.

        >>> tokens = Tokens(torch.ones(5, 1, dtype=torch.long), torch.ones(5, 1, dtype=torch.long), (), ("a", "b"))
        >>> made = Confounded(tokens, torch.tensor([0, 0, 0, 1, 0]), torch.tensor([1, 1, 0, 1, 2]))
        >>> made.groups(0)
        (tensor([1]), tensor([2, 4]))
        """
        pool = self.pool()
        pool = pool[self.y[pool] == self.y[i]]
        same = self.confound[pool] == self.confound[i]
        return pool[same & (published | (pool != i))], pool[~same]


def accessible(y: Tensor, confound: Tensor, share: float, *, at_least: int = 0, seed: int = 0) -> Tensor:
    """Whose confound may be known: a random share of the examples, ``(n,)`` bool, for :attr:`Confounded.known`.

    Args:
        y: Labels, ``(n,)``.
        confound: Their confounds, ``(n,)``.
        share: Between 0 and 1; rounded to whole examples.
        at_least: Examples of each combination of label and confound, added at random where the share has fewer. The
            authors' code puts in 5 of each minority by hand, so that their 5 % always has both groups B.
        seed: Of the draw.

    >>> accessible(torch.zeros(4), torch.tensor([0, 0, 0, 1]), share=0.25, at_least=1).sum()
    tensor(2)
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    known = torch.zeros(len(y), dtype=torch.bool)
    known[order[: round(share * len(y))]] = True
    for pair in torch.stack([y, confound]).unique(dim=1).T:
        members = order[(y[order] == pair[0]) & (confound[order] == pair[1])]
        known[members[~known[members]][: max(0, at_least - int(known[members].sum()))]] = True
    return known


def check_groups(examples: Confounded, k: int, *, published: bool = False) -> None:
    """Refuse groups from which k examples of A and of B cannot be drawn for every possible probe.

    Raises:
        ValueError: If a group B is empty, or a group smaller than k.
    """
    pool = examples.pool()
    if not len(pool):
        raise ValueError("no confound is known: give the confounds of some texts")
    for label, confound in torch.stack([examples.y[pool], examples.confound[pool]]).unique(dim=1).T.tolist():
        probe = int(pool[(examples.y[pool] == label) & (examples.confound[pool] == confound)][0])
        same, other = examples.groups(probe, published=published)
        who = f"for probes of class {label} with confound {confound}"
        if not len(other):
            raise ValueError(f"group B is empty {who}: add texts of this class with another confound")
        for name, group in (("A", same), ("B", other)):
            if len(group) < k:
                raise ValueError(f"k={k}, but group {name} has {len(group)} texts {who}: lower k or add such texts")


def draw_tuple(
    examples: Confounded, probe: int, k: int, rng: np.random.Generator, *, published: bool = False
) -> Tensor:
    """Draw a tuple: the probe, k of its group A, k of its group B, without replacement: ``(1 + 2 k,)``."""
    groups = examples.groups(probe, published=published)
    drawn = [group[torch.from_numpy(rng.permutation(len(group))[:k])] for group in groups]
    return torch.cat([torch.tensor([probe]), *drawn])
