"""Models against numpy, finite differences and torch.nn modules called the ordinary way."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jvp, vmap

from clif_kit import models
from clif_kit.models import Net, clustering_net, cross_entropy, logistic, mlp, small_cnn

F64 = torch.float64


def data(n=6, d=2, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw, dtype=F64), torch.randint(classes, (n,), generator=draw)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


NETS = {
    "logistic": (logistic(4, 3), 4),
    "mlp": (mlp([4, 5, 3]), 4),
    "cnn": (small_cnn(4, channels=(2, 3), classes=3), 16),
    "clustering": (clustering_net(d=4, hidden=3), 4),
}


@pytest.fixture(params=NETS, name="case")
def _case(request):
    net, d = NETS[request.param]
    x, y = data(d=d)
    return cross_entropy(net), net.init(seed=1), x, y


def test_second_derivatives_are_those_of_finite_differences(case):
    """Oracle: central differences of the gradient, which is itself checked against differences of the loss."""
    losses, params, x, y = case
    names = list(params)
    flat = torch.cat([v.reshape(-1) for v in params.values()])

    def objective(vector):
        pieces = vector.split([params[k].numel() for k in names])
        return losses({k: v.reshape(params[k].shape) for k, v in zip(names, pieces, strict=True)}, x, y).mean()

    v = torch.randn(len(flat), generator=torch.Generator().manual_seed(3), dtype=F64)
    h = 1e-5
    slope = (objective(flat + h * v) - objective(flat - h * v)) / (2 * h)
    bend = (grad(objective)(flat + h * v) - grad(objective)(flat - h * v)) / (2 * h)
    torch.testing.assert_close(jvp(objective, (flat,), (v,))[1], slope, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(jvp(grad(objective), (flat,), (v,))[1], bend, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(hessian(objective)(flat) @ v, bend, rtol=1e-6, atol=1e-8)


def test_a_stack_of_models_under_vmap_equals_a_loop(case):
    losses, params, x, y = case
    stack = {k: torch.stack([v, 2 * v, -v]) for k, v in params.items()}
    together = vmap(losses, (0, None, None))(stack, x, y)
    loop = torch.stack([losses({k: v[m] for k, v in stack.items()}, x, y) for m in range(3)])
    torch.testing.assert_close(together, loop, rtol=1e-12, atol=1e-14)


def test_cross_entropy_and_margin_of_a_linear_model_by_numpy():
    x, y = data(d=4)
    net = logistic(4, 3)
    params = net.init(0)
    logits = x.numpy() @ params["weight"].numpy().T + params["bias"].numpy()
    rows = np.arange(len(y))
    np.testing.assert_allclose(
        cross_entropy(net)(params, x, y).numpy(), -np.log(softmax(logits)[rows, y.numpy()]), rtol=1e-12
    )
    p = softmax(logits)[rows, y.numpy()]
    np.testing.assert_allclose(models.negative_margin(net)(params, x, y).numpy(), np.log((1 - p) / p), rtol=1e-10)


def test_mlp_and_cnn_compute_what_the_plain_modules_compute():
    x, _ = data(d=16)
    net = mlp([16, 5, 3], activation=nn.ReLU)
    plain = nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    params = {k: v.detach() for k, v in plain.named_parameters()}
    torch.testing.assert_close(net(params, x), plain(x).detach())

    net = small_cnn(4, channels=(2,), classes=3)
    params = net.init(0)
    image = np.pad(x.numpy().reshape(-1, 4, 4), ((0, 0), (1, 1), (1, 1)))
    kernel, bias = params["1.weight"].numpy(), params["1.bias"].numpy()
    mapped = np.empty((len(x), 2, 4, 4))
    for i in range(4):
        for j in range(4):
            patch = image[:, i : i + 3, j : j + 3]
            mapped[:, :, i, j] = np.einsum("nij,cij->nc", patch, kernel[:, 0]) + bias
    pooled = np.tanh(mapped).reshape(-1, 2, 2, 2, 2, 2).mean((3, 5)).reshape(len(x), -1)
    expected = pooled @ params["5.weight"].numpy().T + params["5.bias"].numpy()
    np.testing.assert_allclose(net(params, x).numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(net(params, x.reshape(-1, 4, 4)), net(params, x))


def test_soft_assignment_target_and_kl_by_the_formulas_of_the_paper():
    net, (x, _) = clustering_net(activation=nn.ReLU), data(n=9)
    params = models.with_kmeans_centres(net, net.init(0), x, seed=0)
    w = {k: v.numpy() for k, v in params.items()}
    z = np.maximum(x.numpy() @ w["encoder.0.weight"].T + w["encoder.0.bias"], 0) @ w["encoder.2.weight"].T
    z += w["encoder.2.bias"]
    q, p = np.empty((9, 3)), np.empty((9, 3))
    for i in range(9):
        kernel = [1 / (1 + ((z[i] - w["centres"][j]) ** 2).sum()) for j in range(3)]
        q[i] = np.array(kernel) / sum(kernel)
    for i in range(9):
        sharp = [q[i, j] ** 2 / q[:, j].sum() for j in range(3)]
        p[i] = np.array(sharp) / sum(sharp)
    kl = (p * np.log(p / q)).sum(1)

    logits = net(params, x)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), q, rtol=1e-10)
    np.testing.assert_allclose(models.target_distribution(logits.softmax(-1)).numpy(), p, rtol=1e-10)
    target = torch.from_numpy(p)
    np.testing.assert_allclose(models.clustering_loss(net)(params, x, target).numpy(), kl, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(models.encode(params, x, net).numpy(), z, rtol=1e-12)


def test_kmeans_centres_without_noise_are_the_means_of_their_members():
    net = clustering_net()
    params = net.init(2)
    x = torch.cat([data(n=20, seed=s)[0] + shift for s, shift in enumerate((0.0, 8.0, -8.0))])
    z = models.encode(params, x, net).numpy()
    centres = models.with_kmeans_centres(net, params, x, seed=0, noise=0.0)["centres"].numpy()
    nearest = ((z[:, None] - centres) ** 2).sum(-1).argmin(1)
    for j in range(3):
        np.testing.assert_allclose(centres[j], z[nearest == j].mean(0), rtol=1e-9)

    def at(seed, noise):
        return models.with_kmeans_centres(net, params, x, seed=seed, noise=noise)["centres"].numpy()

    noisy = [at(seed, 0.5) - at(seed, 0.0) for seed in range(30)]
    assert 0.45 < np.std(noisy) < 0.55


def test_init_depends_on_the_seed_alone_and_leaves_the_global_stream_alone():
    net = mlp([3, 4, 2])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = net.init(seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = net.init(seed=0), net.init(seed=1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert list(first) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.manual_seed(0)  # the same numbers as an ordinary module's
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.testing.assert_close(first, {k: v.detach().double() for k, v in plain.named_parameters()})
    assert net.init(0, dtype=torch.float32)["0.weight"].dtype == torch.float32


def test_mistakes_are_refused():
    net = logistic(2, 3)
    with pytest.raises(RuntimeError, match="bias"):
        net({"weight": torch.zeros(3, 2)}, torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="extra"):
        net({**net.init(0), "extra": torch.zeros(1)}, torch.zeros(1, 2, dtype=F64))
    with pytest.raises(ValueError, match="side 6 cannot be halved 2 times"):
        small_cnn(6)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

    with pytest.raises(TypeError, match="Bare has parameters"):
        Net(Bare()).init(0)
