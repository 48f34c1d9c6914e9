r"""The objective of skip-gram with negative sampling over a whole corpus, deterministic: counts instead of draws.

.. math:: F(\theta) = \frac{1}{P} \sum_{z} \ell(z; \theta)
          + \frac{\lambda}{2} \sum_w \rho_w \bigl(|u_w|^2 + |v_w|^2\bigr), \qquad \rho_w = m_w / P

P is the number of pairs, :math:`m_w` the pairs with centre w. The penalty is weighted by :math:`\rho_w`, since the loss
of a rare word is small and an even penalty would erase it; P, the noise and the penalty stay those of the whole corpus
when sentences leave, so that F depends on each sentence through its own loss only. In the variables
:math:`x = \sqrt{\rho}\, \theta` the Hessian is well conditioned.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from clif_kit.corpus import Corpus, pair_counts
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.solvers import MatVec

DENSE = 3000  # words up to which the pair counts are kept as a full matrix


class CorpusObjective:
    """F, its gradient and its Hessian in scaled variables: flat vectors ``x`` of 2 V d numbers.

    Args:
        corpus: The sentences.
        loss: Window and noise; ``mean`` is refused, since F counts pairs.
        width: d.
        l2: The strength of the penalty. Too strong and the vectors collapse to zero, too weak and flat directions stay.
        dtype: float64, or float32 where only directions of a large model are wanted.
        rows: Centres a step when the vocabulary is large.

    Raises:
        ValueError: If the loss takes means or has no negatives (then F has no minimum), or a word of the vocabulary
            has no pair.
    """

    def __init__(
        self,
        corpus: Corpus,
        loss: SkipgramLoss,
        *,
        width: int,
        l2: float,
        dtype: torch.dtype = torch.float64,
        rows: int = 1024,
    ) -> None:
        if loss.mean or not loss.negatives:
            raise ValueError(
                "a corpus objective sums over pairs and needs negatives: SkipgramLoss(mean=False, negatives > 0)"
            )
        self.corpus, self.loss, self.width, self.l2, self.dtype, self.rows = corpus, loss, width, l2, dtype, rows
        self.counts = pair_counts(corpus, loss.window)
        mass = np.asarray(self.counts.sum(1)).ravel()
        if (mass == 0).any():
            lonely = [corpus.vocabulary.words[row] for row in np.flatnonzero(mass == 0)[:5]]
            raise ValueError(
                f"{int((mass == 0).sum())} words have no pair, such as {', '.join(lonely)}: leave them out"
            )
        self.total = float(mass.sum())
        self.root = torch.as_tensor(np.sqrt(mass / self.total), dtype=dtype)[:, None]  # (V, 1)
        self._set_counts(self.counts)

    def without(self, sentences: Sequence[int]) -> "CorpusObjective":
        """The objective when these sentences are left out; P, the noise and the penalty stay, as do the numbers.

        Raises:
            ValueError: If a sentence was left out before.
        """
        counts = self.counts - pair_counts(self.corpus.select(np.unique(sentences)), self.loss.window)
        if (counts.data < 0).any():
            raise ValueError("a sentence can be left out once; begin again from the whole objective")
        other = object.__new__(CorpusObjective)
        other.__dict__.update(self.__dict__)
        other._set_counts(counts)
        return other

    def _set_counts(self, counts: csr_matrix) -> None:
        self.counts, self._state = counts, None
        self._mass = torch.as_tensor(np.asarray(counts.sum(1)).ravel() / self.total, dtype=self.dtype)
        small = counts.shape[0] <= DENSE
        self._steps = (
            [slice(0, counts.shape[0])]
            if small
            else [
                slice(start, min(start + self.rows, counts.shape[0])) for start in range(0, counts.shape[0], self.rows)
            ]
        )
        self._dense = torch.as_tensor(counts.toarray() / self.total, dtype=self.dtype) if small else None

    # ---- between parameters and flat scaled vectors

    def pack(self, params: Params) -> Tensor:
        """Parameters as a flat vector: the matrices times the root of the mass of their rows."""
        return torch.cat([(params[name].to(self.dtype) * self.root).flatten() for name in ("input", "context")])

    def unpack(self, x: Tensor) -> Params:
        """Back to ``{"input": (V, d), "context": (V, d)}``."""
        u, v = x.view(2, -1, self.width) / self.root
        return {"input": u, "context": v}

    def pack_gradient(self, gradient: Params) -> Tensor:
        """A gradient by the parameters as one by ``x``; a block that is missing is zero."""
        zero = torch.zeros(len(self.root), self.width, dtype=self.dtype)
        return torch.cat(
            [(gradient.get(name, zero).to(self.dtype) / self.root).flatten() for name in ("input", "context")]
        )

    # ---- value, gradient, curvature

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """F and its gradient by ``x``."""
        u, v = x.view(2, -1, self.width) / self.root
        value, gu, gv = 0.0, torch.empty_like(u), torch.zeros_like(v)
        for step in self._steps:
            positive, total, s = self._pairs(step, u, v)
            value += float((total * torch.nn.functional.softplus(s)).sum() - (positive * s).sum())
            residual = total * torch.sigmoid(s) - positive
            gu[step] = residual @ v
            gv += residual.T @ u[step]
        gradient = torch.cat([(gu / self.root).flatten(), (gv / self.root).flatten()])
        return value + self.l2 / 2 * float(x @ x), gradient + self.l2 * x

    def hessian_at(self, x: Tensor, *, gauss_newton: bool = False) -> MatVec:
        """``z -> H z`` at ``x``; the first and second derivatives by the inner products are made once and kept."""
        u, v = x.view(2, -1, self.width) / self.root
        states = []
        for step in self._steps:
            positive, total, s = self._pairs(step, u, v)
            p = torch.sigmoid(s)
            states.append((total * p - positive, total * p * (1 - p)))

        def times(z: Tensor) -> Tensor:
            du, dv = z.view(2, -1, self.width) / self.root
            hu, hv = torch.empty_like(u), torch.zeros_like(v)
            for step, (residual, curvature) in zip(self._steps, states, strict=True):
                t = (du[step] @ v.T).addmm_(u[step], dv.T).mul_(curvature)
                hu[step] = t @ v
                hv.addmm_(t.T, u[step])
                if not gauss_newton:
                    hu[step] += residual @ dv
                    hv.addmm_(residual.T, du[step])
            return torch.cat([(hu / self.root).flatten(), (hv / self.root).flatten()]) + self.l2 * z

        return times

    def _pairs(self, step: slice, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P, P + N and S of some centres, each ``(rows, V)``."""
        if self._dense is not None:
            positive = self._dense[step]
        else:
            positive = torch.as_tensor(self.counts[step].toarray() / self.total, dtype=self.dtype)
        negative = self.loss.negatives * self._mass[step, None] * self.loss.noise.to(self.dtype)
        return positive, positive + negative, u[step] @ v.T
