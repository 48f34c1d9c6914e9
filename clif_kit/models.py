r"""Small networks as functions of their parameters, and the losses that go with them.

All of them work under ``torch.func`` (``vmap``, ``grad``, ``jvp``). Activations are smooth by default, so that the
Hessian is what the theory says it is; hand in ``torch.nn.ReLU`` to see what happens otherwise. Nothing here trains.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Params = dict[str, Tensor]
Losses = Callable[..., Tensor]


@dataclass(frozen=True)
class Net:
    """A module used as a function: the parameters come from outside, always.

    Attributes:
        module: The structure. Its own weights are never used, so it may live on the meta device. Submodules that hold
            parameters need ``reset_parameters``, as those of ``torch.nn`` have.

    >>> net = logistic(2, 3)
    >>> params = net.init(seed=0)
    >>> net(params, torch.zeros(5, 2, dtype=torch.float64)).shape
    torch.Size([5, 3])
    """

    module: nn.Module

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Outputs for inputs ``x`` (first dimension: examples). ``params`` must hold every parameter, and no other.

        Raises:
            RuntimeError: From torch, if names are missing, unknown or of a wrong shape.
        """
        return functional_call(self.module, params, (x,), strict=True)

    def init(self, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Params:
        """Draw fresh parameters in module order; the same for the same seed, whatever was drawn before.

        Raises:
            TypeError: If a submodule has parameters of its own and no ``reset_parameters``.
        """
        module = copy.deepcopy(self.module).to_empty(device=device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for part in module.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
                elif list(part.parameters(recurse=False)):
                    raise TypeError(f"{type(part).__name__} has parameters, but no reset_parameters()")
        return {name: value.detach().to(dtype) for name, value in module.named_parameters()}

    @property
    def size(self) -> int:
        """Number of parameters.

        >>> clustering_net().size
        228
        """
        return sum(value.numel() for value in self.module.parameters())


def logistic(d: int, classes: int) -> Net:
    """Return multinomial logistic regression, ``(n, d) -> (n, classes)`` logits, with a bias."""
    with torch.device("meta"):
        return Net(nn.Linear(d, classes))


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh) -> Net:
    """Return a fully connected net, ``(n, sizes[0]) -> (n, sizes[-1])``, ``activation`` between the layers.

    >>> mlp([10, 32, 32, 2]).size
    1474
    """
    with torch.device("meta"):
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), activation())]
        return Net(nn.Sequential(*layers[:-1]))


def small_cnn(
    side: int, channels: Sequence[int] = (8, 16), classes: int = 10, activation: Callable[[], nn.Module] = nn.Tanh
) -> Net:
    """Return a convolutional net, grey images ``(n, side * side)`` or ``(n, side, side)`` to ``(n, classes)`` logits.

    Each entry of ``channels`` is a 3x3 convolution, ``activation`` and 2x2 *mean* pooling (the maximum has no Hessian).

    Raises:
        ValueError: If ``side`` cannot be halved ``len(channels)`` times.

    >>> net = small_cnn(8)
    >>> net(net.init(0), torch.zeros(3, 64, dtype=torch.float64)).shape
    torch.Size([3, 10])
    """
    if side % 2 ** len(channels):
        raise ValueError(f"side {side} cannot be halved {len(channels)} times")
    layers: list[nn.Module] = [_AsImage(side)]
    with torch.device("meta"):
        for inside, outside in pairwise((1, *channels)):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), activation(), nn.AvgPool2d(2)]
        last = channels[-1] * (side // 2 ** len(channels)) ** 2
        return Net(nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, classes)))


class _AsImage(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, self.side, self.side)


class Clustering(nn.Module):
    r"""Encoder and centres of deep embedded clustering; outputs logits whose softmax is the soft assignment.

    .. math:: q_{ij} \propto (1 + |z_i - \mu_j|^2)^{-1}, \qquad \text{logit}_{ij} = -\log(1 + |z_i - \mu_j|^2)

    with encodings :math:`z_i` and centres :math:`\mu_j`: Student's t kernel of Xie et al. (2016), as in Silva et al.
    (2022).
    """

    def __init__(self, d: int, hidden: int, clusters: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d, hidden), activation(), nn.Linear(hidden, hidden))
        self.centres = nn.Parameter(torch.empty(clusters, hidden))

    def reset_parameters(self) -> None:
        """Draw the centres; the encoder's layers draw for themselves."""
        nn.init.normal_(self.centres, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, d)`` to logits ``(n, clusters)``."""
        z = self.encoder(x)  # (n, hidden)
        # |z|^2 - 2 z.mu + |mu|^2 makes no (n, clusters, hidden) tensor: many models at once stay in the cache
        distance = z.square().sum(-1, keepdim=True) - 2 * z @ self.centres.T + self.centres.square().sum(-1)
        return -torch.log1p(distance.clamp(min=0))


def clustering_net(
    d: int = 2, hidden: int = 12, clusters: int = 3, activation: Callable[[], nn.Module] = nn.Tanh
) -> Net:
    """Return the clustering net of Silva et al. (2022), section 4.1; they use ``torch.nn.ReLU``.

    Its loss has directions without any curvature (turn encodings and centres together and no output changes): solve
    with a pseudo-inverse, and compare outputs, never parameters.
    """
    with torch.device("meta"):
        return Net(Clustering(d, hidden, clusters, activation))


def encode(params: Params, x: Tensor, net: Net) -> Tensor:
    """Return the encodings ``(n, hidden)`` of a clustering net."""
    inner = {name.removeprefix("encoder."): value for name, value in params.items() if name.startswith("encoder.")}
    return functional_call(net.module.encoder, inner, (x,))


def with_kmeans_centres(net: Net, params: Params, x: Tensor, *, seed: int, noise: float = 0.5) -> Params:
    """Return ``params`` with the centres of k-means on the encodings, plus normal noise (``noise`` is its deviation).

    The authors' start: three k-means restarts, noise 0.5.
    """
    from sklearn.cluster import KMeans  # half a second to import, and only this function needs it

    clusters, hidden = params["centres"].shape
    encodings = encode(params, x, net).detach().cpu().numpy()
    found = KMeans(clusters, n_init=3, random_state=seed).fit(encodings).cluster_centers_
    draw = torch.randn(clusters, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {**params, "centres": (torch.from_numpy(found) + noise * draw).to(params["centres"])}


def target_distribution(q: Tensor) -> Tensor:
    r"""Sharpen soft assignments: the target P of deep embedded clustering.

    .. math:: p_{ij} = \frac{q_{ij}^2 / f_j}{\sum_{j'} q_{ij'}^2 / f_{j'}}, \qquad f_j = \sum_i q_{ij}

    Args:
        q: Soft assignments ``(n, clusters)``, rows summing to 1.

    Returns:
        Same shape, rows summing to 1, detached.

    >>> target_distribution(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    tensor([[0.9000, 0.1000],
            [0.1000, 0.9000]])
    """
    weight = q.detach().square() / q.detach().sum(0)
    return weight / weight.sum(1, keepdim=True)


def cross_entropy(net: Net) -> Losses:
    """Return ``losses(params, x, y) -> (n,)``: minus the log probability of the class ``y`` in nats, no L2."""

    def losses(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(params, x), y, reduction="none")

    return losses


def clustering_loss(net: Net) -> Losses:
    r"""Return ``losses(params, x, p) -> (n,)``: :math:`KL(p_i \,\|\, q_i)` in nats of a target held fixed, no L2."""

    def losses(params: Params, x: Tensor, p: Tensor) -> Tensor:
        log_q = functional.log_softmax(net(params, x), dim=-1)
        return (torch.xlogy(p, p) - p * log_q).sum(-1)

    return losses


def negative_margin(net: Net) -> Losses:
    r"""Return ``losses(params, x, y) -> (n,)``: minus the margin, :math:`\log\sum_{c \ne y} e^{o_c} - o_y` of logits o.

    The quantity of datamodels (Ilyas et al., 2022) and TRAK, negated so that lower is better, as with every query here.

    >>> negative_margin(logistic(1, 2))({"weight": torch.tensor([[1.0], [3.0]]), "bias": torch.zeros(2)},
    ...                                 torch.tensor([[1.0]]), torch.tensor([1]))
    tensor([-2.])
    """

    def losses(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = net(params, x)
        right = functional.one_hot(y, logits.shape[-1]).bool()
        return logits.masked_fill(right, -torch.inf).logsumexp(-1) - logits.masked_fill(~right, 0).sum(-1)

    return losses
