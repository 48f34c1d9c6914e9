r"""Images with a planted patch that goes with one class, a small net on them, and its features, used frozen.

In training images of the target class a bright corner appears with probability ``rate``, in others with ``elsewhere``;
an unrelated corner of the same size appears as often over all, in every class alike. So the truth is known: the first
corner is a shortcut, the second is not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clif_kit.models import Net, Params, mlp
from clif_kit.train import fit


@dataclass(frozen=True)
class PatchedImages:
    """Images with and without what was planted.

    Attributes:
        clean: As they were, ``(n, side, side)``.
        x: With the corners in.
        y: Classes, ``(n,)``.
        patch: Which have the shortcut's corner (top left), ``(n,)``.
        control: Which have the unrelated corner (bottom left), ``(n,)``.
    """

    clean: np.ndarray
    x: np.ndarray
    y: np.ndarray
    patch: np.ndarray
    control: np.ndarray


@dataclass(frozen=True)
class ImageNet:
    """A trained net whose last hidden layer is used frozen.

    Attributes:
        net: Fully connected, two hidden layers.
        params: Its parameters.
        mean: Of each feature over the training images, ``(h,)``.
        std: Likewise; 1 where a feature is constant.
    """

    net: Net
    params: Params
    mean: np.ndarray
    std: np.ndarray

    def features(self, x: np.ndarray) -> np.ndarray:
        """Standardised features of images, float64, ``(n, h)``."""
        return (_hidden(self.params, x) - self.mean) / self.std


def stamp(x: np.ndarray, corner: str = "patch", on: np.ndarray | None = None) -> np.ndarray:
    """A copy with a bright square, a quarter of the side, in the corner of the ``"patch"`` or of the ``"control"``.

    Args:
        x: Images in [0, 1], ``(n, side, side)``, side 4 or more.
        corner: Top left or bottom left.
        on: Which images get it, ``(n,)``; None all.

    Raises:
        ValueError: If there is no such corner or the images are too small.

    >>> stamp(np.zeros((1, 4, 4)), "control")[0]
    array([[0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [1., 0., 0., 0.]])
    """
    if corner not in ("patch", "control") or x.ndim != 3 or x.shape[1] < 4:
        raise ValueError(f'need corner "patch" or "control" and images of side 4 or more, got {corner!r} and {x.shape}')
    size, out = x.shape[1] // 4, x.copy()
    rows = slice(0, size) if corner == "patch" else slice(-size, None)
    chosen = np.ones(len(x), dtype=bool) if on is None else np.asarray(on, dtype=bool)
    out[chosen, rows, :size] = 1
    return out


def plant_patches(
    x: np.ndarray, y: np.ndarray, *, target: int, seed: int, rate: float = 0.8, elsewhere: float = 0.02
) -> PatchedImages:
    """Plant the shortcut and the unrelated corner.

    Args:
        x: Images in [0, 1], ``(n, side, side)``.
        y: Classes, ``(n,)``.
        target: The class that the shortcut goes with.
        seed: Of the coins.
        rate: Share of the target's images with the shortcut.
        elsewhere: Share of the others.

    Raises:
        ValueError: If the target is not among the classes.

    >>> made = plant_patches(np.zeros((400, 8, 8)), np.arange(400) % 4, target=1, seed=0, rate=1.0, elsewhere=0.0)
    >>> sorted(set(made.y[made.patch].tolist())), int(made.patch.sum())
    ([1], 100)
    """
    if not (y == target).any():
        raise ValueError(f"no image is of the class target={target}; there are {sorted(set(np.asarray(y).tolist()))}")
    rng = np.random.default_rng([7, seed])
    chance = np.where(y == target, rate, elsewhere)
    patch, control = rng.random(len(y)) < chance, rng.random(len(y)) < chance.mean()
    return PatchedImages(x, stamp(stamp(x, "patch", patch), "control", control), y, patch, control)


def train_image_net(data: PatchedImages, *, seed: int, width: int = 64, steps: int = 400, lr: float = 3e-3) -> ImageNet:
    """Train a net with two hidden layers of ``width`` units on ``data.x``, Adam with a rate that falls to zero."""
    net = mlp([data.x[0].size, width, width, int(data.y.max()) + 1], nn.ReLU)
    flat, y = torch.as_tensor(data.x.reshape(len(data.x), -1), dtype=torch.float32), torch.as_tensor(data.y)

    def losses(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(params, x), y, reduction="none")

    start = net.init(seed, dtype=torch.float32)
    rate = lambda k: lr * (1 - k / steps)  # noqa: E731
    params = fit(losses, start, (flat, y), steps=steps, lr=rate, batch_size=64, seed=seed).params
    hidden = _hidden(params, data.x)
    std = hidden.std(0)
    return ImageNet(net, params, hidden.mean(0), np.where(std > 1e-8, std, 1.0))


def patch_effect(net: ImageNet, images: np.ndarray, corner: str = "patch") -> np.ndarray:
    """How much a corner raises each feature, in standard deviations, ``(h,)``: mean of with minus without.

    The largest of them in size is *the patch's feature*: known because the corner is ours.
    """
    return (net.features(stamp(images, corner)) - net.features(images)).mean(0)


def _hidden(params: Params, x: np.ndarray) -> np.ndarray:
    """The last hidden layer of ``mlp``, float64, ``(n, h)``."""
    weights = [value for name, value in params.items() if name.endswith("weight")][:-1]
    biases = [value for name, value in params.items() if name.endswith("bias")][:-1]
    out = torch.as_tensor(x.reshape(len(x), -1), dtype=torch.float32)
    for weight, bias in zip(weights, biases, strict=True):
        out = torch.relu(out @ weight.T + bias)
    return out.double().numpy()
