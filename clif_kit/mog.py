r"""Clusters of Gaussian points (Silva et al. 2022, section 4.1): the models and their retrainings, many at once.

The same little net is trained twice from one start: on labels (negative log-likelihood, *matched*, their Eq. 6) or by
deep embedded clustering (*cross*, Eq. 7). Both losses are a cross-entropy with a target row :math:`t_i`: the label, or
the sharpened assignment P. So one closed form serves both, and many models at once. Models are rows ``(m, p)`` of flat
parameters, in the order of :func:`clif_kit.gradients.flatten`. Everything is float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import one_hot

from clif_kit.generators import mixture_of_gaussians
from clif_kit.gradients import Params, flatten, unflatten
from clif_kit.models import Net, clustering_net, target_distribution, with_kmeans_centres

_SLOPE = {nn.Tanh: lambda h: 1 - h * h, nn.ReLU: lambda h: (h > 0).to(h)}  # derivative from the activation's value


@dataclass(frozen=True)
class Task:
    """Data, net, and the start that every training shares.

    Attributes:
        net: 2-12-12 and three centres, 228 parameters.
        x: Points, ``(n, 2)``; also the test points.
        y: True class, ``(n,)``.
        means: Class means, ``(3, 2)``.
        start: Flat parameters: a random encoder and noisy k-means centres.
    """

    net: Net
    x: Tensor
    y: Tensor
    means: Tensor
    start: Tensor

    def params(self, theta: Tensor) -> Params:
        """One flat vector as the dictionary that ``net`` takes."""
        return unflatten(theta, dict(self.net.module.named_parameters()))

    def labels(self, y: Tensor) -> Tensor:
        """Labels as target rows, ``(n, 3)``."""
        return one_hot(y, len(self.means)).to(self.x)

    def sharpened(self, theta: Tensor) -> Tensor:
        """The target P of clustering at these parameters, held fixed, ``(n, 3)``."""
        return target_distribution(log_q(self.net, theta[None], self.x)[0].exp())


def make_task(
    seed: int, *, n_per_class: int = 50, activation: Callable[[], nn.Module] = nn.ReLU, std: float = 1.25
) -> Task:
    """Draw the data and the start; both depend on ``seed`` alone.

    >>> make_task(0).start.shape
    torch.Size([228])
    """
    data = mixture_of_gaussians(seed=seed, n_per_class=n_per_class, std=std)
    x, net = torch.from_numpy(data.x), clustering_net(activation=activation)
    start = with_kmeans_centres(net, net.init(seed), x, seed=seed)
    return Task(net, x, torch.from_numpy(data.y), torch.from_numpy(data.means), flatten(start))


def aligned_labels(task: Task) -> Tensor:
    """Name each class after a cluster of the start, one to one, so that most points agree (Hungarian method)."""
    found = log_q(task.net, task.start[None], task.x)[0].argmax(1)
    agree = (task.labels(task.y).T @ task.labels(found)).numpy()  # (class, cluster)
    return torch.from_numpy(linear_sum_assignment(-agree)[1])[task.y]


def reset_labels(task: Task, theta: Tensor) -> Tensor:
    """The authors' labels: each class gets the most likely cluster at its true mean. Two classes may get the same."""
    return log_q(task.net, theta[None], task.means)[0].argmax(1)[task.y]


def log_q(net: Net, theta: Tensor, x: Tensor) -> Tensor:
    """Log assignments ``(m, n, k)`` of m models ``(m, p)``. Compare models by these, never by parameters."""
    s = _forward(net, theta, x)[3]
    return -s.log() - s.reciprocal().sum(-1, keepdim=True).log()


def _forward(net: Net, theta: Tensor, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Parameters by name, hidden layer, encodings (m, n, 12), and one plus the squared distances (m, n, k)."""
    part = unflatten(theta, dict(net.module.named_parameters()))
    h = net.module.encoder[1](x @ part["encoder.0.weight"].mT + part["encoder.0.bias"].unsqueeze(1))
    z = h @ part["encoder.2.weight"].mT + part["encoder.2.bias"].unsqueeze(1)
    mu = part["centres"]
    far = z.square().sum(-1, keepdim=True) - 2 * z @ mu.mT + mu.square().sum(-1).unsqueeze(1)
    return part, h, z, 1 + far.clamp(min=0)


def stacked_gradients(
    net: Net, theta: Tensor, x: Tensor, target: Tensor | None, weights: Tensor, l2: float = 0.0
) -> Tensor:
    r"""The objective's gradient for many models, written out: no graph, and small enough for the cache.

    .. math:: \nabla_\theta \Bigl[\frac{1}{\sum_i w_i} \sum_i w_i \bigl(-\sum_j t_{ij} \log q_{ij}\bigr)
              + \tfrac{\lambda}{2} \lVert\theta\rVert^2\Bigr], \qquad
              \frac{\partial}{\partial d_{ij}} = \frac{w_i}{\sum w} \, \frac{t_{ij} - q_{ij}}{1 + d_{ij}}

    with :math:`d_{ij}` the squared distance of encoding i from centre j; the rest is the chain rule.

    Args:
        net: From :func:`clif_kit.models.clustering_net`, with tanh or ReLU.
        theta: Models, ``(m, p)``.
        x: Points, ``(n, d)``.
        target: Rows t that sum to one, ``(n, k)``. None: P of each model's own q over the points that it keeps, as
            clustering has it. The gradient holds it fixed all the same; a *derivative* of this function does not.
        weights: ``(m, n)``, 0 for a point that is left out.
        l2: :math:`\lambda`.

    Returns:
        ``(m, p)``, in nats per unit of the parameter.

    Raises:
        KeyError: For another activation.
    """
    part, h, z, s = _forward(net, theta, x)
    mu, q = part["centres"], 1 / s
    q = q / q.sum(-1, keepdim=True)
    if target is None:
        share = q.square() / (weights.unsqueeze(-1) * q).sum(1, keepdim=True)
        target = share / share.sum(-1, keepdim=True)
    pull = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1) * (target - q) / s  # (m, n, k)
    dz = 2 * (pull.sum(-1, keepdim=True) * z - pull @ mu)  # (m, n, 12)
    da = dz @ part["encoder.2.weight"] * _SLOPE[type(net.module.encoder[1])](h)
    found = {
        "encoder.0.weight": da.mT @ x,
        "encoder.0.bias": da.sum(1),
        "encoder.2.weight": dz.mT @ h,
        "encoder.2.bias": dz.sum(1),
        "centres": 2 * (pull.sum(1).unsqueeze(-1) * mu - pull.mT @ z),
    }
    return flatten({name: found[name] for name in part}, leading=1) + l2 * theta


class _Adam:
    """Adam with torch's defaults on one tensor; its moments outlive a training if nobody makes a new one."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t, self.mean, self.square = lr, 0, 0.0, 0.0

    def step(self, theta: Tensor, slope: Tensor) -> Tensor:
        self.t += 1
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope * slope
        root = (self.square / (1 - 0.999**self.t)).sqrt() + 1e-8
        return theta - (self.lr / (1 - 0.9**self.t)) * self.mean / root


def train(
    task: Task,
    target: Tensor | None,
    keep: Tensor | None = None,
    *,
    steps: int = 2,
    lr: float = 1e-3,
    l2: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Full-batch Adam from the start, a fresh optimiser for every model, ``chunk`` models at a time.

    The models do not depend on ``chunk``, only the time does.

    Args:
        task: Data and start.
        target: As for :func:`stacked_gradients`.
        keep: ``(m, n)``, 0 where a point is left out. None trains one model on everything.
        steps: Two in the public code.
        lr: As there.
        l2: As for :func:`stacked_gradients`.
        chunk: Models at a time. None: as many as stay in the cache, 36 with 150 points and 12 with 450.

    Returns:
        ``(m, p)``, or ``(p,)`` without ``keep``.
    """
    weights = torch.ones(1, len(task.x)).to(task.x) if keep is None else keep
    done = []
    for part in weights.split(chunk or _models_in_cache(task)):
        theta, adam = task.start.expand(len(part), -1), _Adam(lr)
        for _ in range(steps):
            theta = adam.step(theta, stacked_gradients(task.net, theta, task.x, target, part, l2))
        done.append(theta)
    return torch.cat(done) if keep is not None else done[0][0]


def _models_in_cache(task: Task) -> int:
    """How many models fit when a hidden layer of all of them takes half a megabyte; a gradient keeps about four."""
    width = task.net.module.centres.shape[1]
    return max(1, 2**19 // (len(task.x) * width * task.x.element_size()))


def carried_retrainings(
    task: Task, target: Tensor, *, sweeps: int, steps: int = 2, lr: float = 1e-3, order: Tensor | None = None
) -> Iterator[Tensor]:
    """The authors' leave-one-out loop: every model from the start, all with ONE Adam whose moments are never reset.

    One sweep retrains without point 0, 1, ..., n - 1; their code does one sweep for each test point. What a sweep finds
    depends on the sweeps before it, less and less (the slower moment forgets a factor 0.999 a step), and what a
    retraining finds depends on the few before it (the faster one: 0.9), so on the order of the points.

    Args:
        task: Data and start.
        target: As for :func:`stacked_gradients`, but not None.
        sweeps: How many to make.
        steps: Adam steps of each retraining.
        lr: Of these.
        order: In which the points are left out, a permutation. None: as they are, class by class.

    Yields:
        The models of one sweep, ``(n, p)``; row i is without point i, whatever the order.
    """
    keep = 1 - torch.eye(len(task.x)).to(task.x)
    first = stacked_gradients(task.net, task.start.expand(len(keep), -1), task.x, target, keep)  # always the same
    turns = range(len(keep)) if order is None else order.tolist()
    adam, models = _Adam(lr), torch.empty_like(first)
    for _ in range(sweeps):
        for i in turns:
            theta = adam.step(task.start, first[i])
            for _ in range(steps - 1):
                slope = stacked_gradients(task.net, theta[None], task.x, target, keep[i : i + 1])[0]
                theta = adam.step(theta, slope)
            models[i] = theta
        yield models.clone()


def query_losses(task: Task, theta: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of every test point under m models ``(m, p)``: ``(n, m)``, nats."""
    return -log_q(task.net, theta, task.x)[:, torch.arange(len(y)), y].T


def query_changes(task: Task, theta: Tensor, models: Tensor, y: Tensor) -> Tensor:
    """Query losses of the retrained models minus that of the full one, ``(n, m)``; positive = the point had helped."""
    return query_losses(task, models, y) - query_losses(task, theta[None], y)


def elsewhere(task: Task, models: Tensor, others: Tensor, most: float = 0.1) -> Tensor:
    """Which models lie in another basin: the assignment of some point differs by more than ``most``; ``(m,)``, bool."""
    return (log_q(task.net, models, task.x).exp() - log_q(task.net, others, task.x).exp()).abs().amax((1, 2)) > most
