r"""Many LASSOs on one Gram matrix, all at once: targets are rows, and one product with the matrix moves them all.

.. math:: \min_{w, b}\; \frac{1}{2m} |y - X w - b|^2 + \lambda |w|_1 \qquad \text{for each column y of the outputs}

with masks X (m, n), 0 or 1. Whatever depends on the m rows is summed once: the Gram matrix of the centred masks and its
slopes. First come proximal gradient steps with Barzilai and Borwein's step lengths (Wright, Nowak and Figueiredo 2009),
which end soon where the matrix is well conditioned; targets that are left go on with the accelerated ones (Beck and
Teboulle 2009, restarted), which need no luck.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

LONG_STEPS = 30  # before the accelerated ones
ROWS = 4096  # masks that are turned into numbers at a time


@dataclass(frozen=True)
class GramLasso:
    """Means, Gram matrix and slopes of centred masks and outputs, divided by m.

    Attributes:
        gram: ``(n, n)``.
        slope: ``(t, n)``, for each target minus the gradient at w = 0.
        mask_means: ``(n,)``.
        output_means: ``(t,)``.
        top: Not below the largest eigenvalue of the Gram matrix.
    """

    gram: Tensor
    slope: Tensor
    mask_means: Tensor
    output_means: Tensor
    top: float

    @classmethod
    def of(cls, masks: Tensor, outputs: Tensor) -> "GramLasso":
        """The sums over masks ``(m, n)`` bool and outputs ``(m, t)``, in the outputs' dtype."""
        m, centre = len(masks), outputs.mean(0)
        centre = centre + (outputs - centre).mean(0)  # what is left of a large mean would look like a slope
        gram = sums(masks, dtype=outputs.dtype).div_(m)
        means = gram.diagonal().clone()  # a number that is 0 or 1 is its own square
        gram.addr_(means, means, alpha=-1)
        return cls(gram, sums(masks, outputs - centre).div_(m), means, centre, _largest_eigenvalue(gram))

    def of_targets(self, chosen: Tensor) -> "GramLasso":
        """Only some targets, by their places."""
        return GramLasso(self.gram, self.slope[chosen], self.mask_means, self.output_means[chosen], self.top)

    @property
    def lam_max(self) -> Tensor:
        """The smallest penalty that leaves no weight, ``(t,)``."""
        return self.slope.abs().amax(1)

    def bias(self, w: Tensor) -> Tensor:
        """The free constant that goes with weights ``(t, n)``: ``(t,)``."""
        return self.output_means - w @ self.mask_means

    def solve(self, lam: Tensor, w: Tensor, tol: float, max_iter: int) -> Tensor:
        """Weights ``(t, n)`` at penalties ``(t,)``, starting from ``w``.

        Args:
            lam: Penalties, 0 or more.
            w: Start, ``(t, n)``.
            tol: Largest violation of the optimality conditions, divided by ``lam_max``.
            max_iter: Steps of a target, each a product with the Gram matrix.

        Raises:
            RuntimeError: If the iterations do not suffice.

        >>> masks = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]]).bool()
        >>> problem = GramLasso.of(masks, 2.0 * masks[:, :1])
        >>> problem.solve(torch.tensor([0.1]), torch.zeros(1, 2), 1e-5, 100)
        tensor([[1.6000, 0.0000]])
        """
        if not self.top:  # no example ever varies
            return torch.zeros_like(w)
        limit = tol * self.lam_max
        w, left = self._long_steps(lam, w, limit, min(LONG_STEPS, max_iter))
        if len(left):
            part = self.of_targets(left)
            w[left], more = part._accelerated(lam[left], w[left], limit[left], max_iter - LONG_STEPS)
            if len(more):
                raise RuntimeError(
                    f"{len(more)} of {len(w)} LASSOs did not converge in {max_iter} iterations: raise tol or max_iter, "
                    "or train on more subsets"
                )
        return w

    def _long_steps(self, lam: Tensor, w: Tensor, limit: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Weights after so many steps at most, and the places of the targets that are not done.

        After a step of curvature a, (change of the gradient) - a (step) is a subgradient of the objective where it
        led: 0 at the optimum, so its largest entry bounds the violation. The next curvature is that along this step.
        """
        found, at, lam = w.clone(), torch.arange(len(w)), lam[:, None]
        slope, gradient = self.slope, _product(w, self.gram) - self.slope if w.any() else -self.slope
        curve = self.gram.diagonal().max().expand(len(w), 1)
        for _ in range(steps):
            new = w - gradient / curve
            new -= new.clamp(-lam / curve, lam / curve)  # soft threshold
            after = _product(new, self.gram) - slope
            step, change = new - w, after - gradient
            found[at] = new
            left = ~(torch.addcmul(change, step, curve, value=-1).abs().amax(1) <= limit)  # NaN is not done
            if not left.all():
                at, lam, limit, slope = at[left], lam[left], limit[left], slope[left]
                new, after, step, change = new[left], after[left], step[left], change[left]
                if not len(at):
                    break
            curve = (step * change).sum(1, keepdim=True) / step.square().sum(1, keepdim=True)  # squares may underflow
            w, gradient, curve = new, after, curve.nan_to_num(self.top).clamp(1e-3 * self.top, self.top)
        return found, at

    def _accelerated(self, lam: Tensor, w: Tensor, limit: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """As :meth:`_long_steps`, with momentum, and steps that never overshoot.

        Here (top - Gram matrix) times what a step takes back is a subgradient.
        """
        found, at, rate = torch.empty_like(w), torch.arange(len(w)), 1 / self.top
        norm = (self.top * torch.eye(len(self.gram), dtype=w.dtype) - self.gram).abs().sum(1).max()
        slope, bound, limit = self.slope * rate, lam[:, None] * rate, limit / norm
        push, age = w, torch.zeros(len(w), 1)
        for _ in range(steps):
            step = push - _product(push, self.gram).mul_(rate).sub_(slope)
            new = step - step.clamp(-bound, bound)
            back, move = push - new, new - w
            age = torch.where((back * move).sum(1, keepdim=True) > 0, 0, age + 1)  # it points uphill: start it again
            push, w = torch.addcmul(new, move, (age / (age + 3)).to(w.dtype)), new
            left = ~(back.abs().amax(1) <= limit)
            if not left.all():
                found[at] = w
                at, age, bound, limit = at[left], age[left], bound[left], limit[left]
                slope, w, push = slope[left], w[left], push[left]
                if not len(at):
                    break
        return found, at


def sums(masks: Tensor, values: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """``values.T @ masks``, ``(k, n)``, of ``(m, n)`` bool and ``(m, k)`` (None: the masks in ``dtype``).

    >>> sums(torch.tensor([[True, False], [True, True]]), dtype=torch.float32)
    tensor([[2., 1.],
            [1., 1.]])
    """
    total = torch.zeros((masks if values is None else values).shape[1], masks.shape[1], dtype=dtype or values.dtype)
    for start in range(0, len(masks), ROWS):
        some = masks[start : start + ROWS].to(total.dtype)
        rows = some if values is None else values[start : start + ROWS]  # one array twice: numpy does half of the work
        total += _product(rows.T, some)
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` by numpy's BLAS, which on some processors is half again as fast as torch's."""
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def _largest_eigenvalue(gram: Tensor) -> float:
    """A little more than it, so that a step of its inverse never overshoots."""
    if not gram.any():
        return 0.0
    if len(gram) <= 256:
        return torch.linalg.eigvalsh(gram.double())[-1].item() * (1 + 1e-4)
    start = torch.linspace(1, 2, len(gram)).cos().numpy()
    return float(eigsh(gram.numpy(), k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)[0]) * 1.01
