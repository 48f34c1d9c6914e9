r"""The confound influence difference (CID): how much more helpful a model takes examples to be that share the confound.

.. math:: \text{CID}(z_{prb}) = \frac1{|A|}\sum_{a \in A} I(z_a, z_{prb}) - \frac1{|B|}\sum_{b \in B} I(z_b, z_{prb})

A: all training examples with the probe's label and confound, but the probe itself; B: with its label and another
confound. Positive: those that share the confound are the more helpful. Between -2 and 2 for cosines (Han & Tsvetkov,
"Influence tuning", 2021, section 6.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clif_kit.confounds import Confounded
from clif_kit.example_vectors import Batch, Vectors, pieces
from clif_kit.gradients import Params


@dataclass(frozen=True)
class Difference:
    """The confound influence difference (CID) of some probes.

    Attributes:
        each: mean over A minus mean over B, one a probe, ``(q,)``.
    """

    each: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """The CID of the paper: differences of unlike sign cancel."""
        return self.each.mean().item()

    @property
    def size(self) -> float:
        """The mean of its absolute value."""
        return self.each.abs().mean().item()


def confound_difference(
    vectors: Vectors,
    params: Params,
    train: Confounded,
    probes: Sequence[int] | Confounded,
    *,
    members: Sequence[int] | None = None,
    cosine: bool = True,
    published: bool = False,
    chunk: int = 16,
) -> Difference:
    """The confound influence difference (CID) of each probe over all training examples of its label.

    A mean of influences is the influence of a mean vector, so one pass over the training examples adds their (unit)
    vectors up by group, and a probe costs one product with the sums; no matrix of influences is needed.

    Args:
        vectors: See :mod:`clif_kit.text_vectors`.
        params: Where to look.
        train: The examples of the groups.
        probes: Numbers of training examples, or other examples (held out), which are in no group.
        members: Which training examples the groups are made of. None: all whose confound is known.
        cosine: False for the gradient product.
        published: Leave a probe in its own group A, as the authors' code does, which adds about 1 / size of A.
        chunk: Examples whose vectors are held at a time; changes nothing but speed and memory.

    Raises:
        FloatingPointError: If a difference is not a number: an example whose vector is zero has no cosine.
        ValueError: If a probe's group A or B is empty.
    """
    inside = not isinstance(probes, Confounded)
    rows = torch.as_tensor(list(probes), dtype=torch.long) if inside else torch.arange(len(probes))
    asked = train if inside else probes
    members = train.pool() if members is None else torch.as_tensor(members, dtype=torch.long)
    codes, group = torch.stack([train.y[members], train.confound[members]]).unique(dim=1, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(group, codes.shape[1]).T  # (g, members)
    counts = one_hot.sum(1).double()
    with torch.no_grad():
        sums = _group_sums(vectors, params, train.batch(members), one_hot, cosine, chunk)
        scores, own = _scores(vectors, params, asked.batch(rows), sums, cosine, chunk)  # (q, g), (q,)
    label = codes[0] == asked.y[rows][:, None]  # (q, g)
    same = label & (codes[1] == asked.confound[rows][:, None])
    out = torch.isin(rows, members) if inside and not published else torch.zeros(len(rows), dtype=torch.bool)
    size_a, size_b = (same * counts).sum(1) - out.double(), ((label & ~same) * counts).sum(1)
    for name, size in (("A", size_a), ("B", size_b)):
        if (size < 1).any():
            raise ValueError(f"group {name} of probe {int(rows[size < 1][0])} is empty: choose other probes or members")
    mean_a = ((same * scores).sum(1) - out * own) / size_a
    return Difference(_numbers(mean_a - ((label & ~same) * scores).sum(1) / size_b, rows))


class Watch:
    """Takes the confound influence difference (CID) as training runs; a hook for every method, ``after=watch``.

    Args:
        vectors: Which influence, see :mod:`clif_kit.text_vectors`.
        train: The examples of the groups.
        probes: Numbers of training examples, or others that are held out.
        every: Label steps between two looks. None: only before and after rounds.
        members: Which training examples the groups are made of: fewer cost less. None: all whose confound is known.
        published: Leave a probe in its own group A.
        chunk: Examples whose vectors are held at a time.

    Attributes:
        points: What was seen, in order: label steps done, "label", "before" or "after" (a round), and the differences.
    """

    def __init__(
        self, vectors: Vectors, train: Confounded, probes: Sequence[int] | Confounded, *, every: int | None = None,
        members: Sequence[int] | None = None, published: bool = False, chunk: int = 16,
    ) -> None:  # fmt: skip
        self.every, self.points = every, []
        options = {"members": members, "published": published, "chunk": chunk}
        self._take = lambda params: confound_difference(vectors, params, train, probes, **options)

    def __call__(self, step: int, _: torch.optim.Optimizer, params: Params) -> dict[str, float]:
        """The hook."""
        return self.look(step, "label", params) if self.every and step % self.every == 0 else self.last()

    def look(self, step: int, when: str, params: Params) -> dict[str, float]:
        """Take it now."""
        self.points.append((step, when, self._take(params)))
        return self.last()

    def last(self) -> dict[str, float]:
        """The latest one, for the progress bar."""
        found: list[Difference] = [point[2] for point in self.points[-1:]]
        return {"CID": found[0].mean} if found else {}


def _group_sums(vectors: Vectors, params: Params, batch: Batch, one_hot: Tensor, cosine: bool, chunk: int) -> Params:
    sums, at = {}, 0
    for part in pieces(vectors, params, batch, chunk):
        sums = sums or part.zeros(len(one_hot), params)
        scale = part.scales(cosine)
        part.add_to(sums, one_hot[:, at : at + len(part)].to(scale) * scale)
        at += len(part)
    return sums


def _scores(
    vectors: Vectors, params: Params, batch: Batch, sums: Params, cosine: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """Summed influence of each group on each probe, ``(q, g)``, and of each probe on itself, ``(q,)``."""
    scores, own = [], []
    for part in pieces(vectors, params, batch, chunk):
        scale = part.scales(cosine)
        scores.append(part.dot(sums).double().cpu() * scale.double().cpu()[:, None])
        own.append(part.squares().double().cpu() * scale.double().cpu().square())
    return torch.cat(scores), torch.cat(own)


def _numbers(each: Tensor, rows: Tensor) -> Tensor:
    bad = torch.nonzero(~torch.isfinite(each))
    if len(bad):
        raise FloatingPointError(
            f"the CID of probe {int(rows[bad[0]])} is not a number: some vector is zero or infinite"
        )
    return each
