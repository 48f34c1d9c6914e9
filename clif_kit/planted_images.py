r"""A small image task in which the truth is known: who leaks into the test set, and who is drawn in which way.

Chapter 40 asks whether datamodel weights find two things, so both are planted. **Leaks**: some training images are
near-duplicates of test images, shifted by half a pixel and with noise. **Two ways of drawing**: of every class about
half the images are drawn lying, rows and columns exchanged; the label does not say which. All else is a random sample.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clif_kit.datasets import Images, digits, mnist_test

SETS = {"digits": ("digits", digits), "mnist": ("mnist_t10k", mnist_test)}  # ours: (in the registry, reader)


@dataclass(frozen=True)
class Planted:
    """Images as rows, their classes, and what was planted.

    Attributes:
        name: Of the data.
        side: Pixels a side, so d = side * side.
        x: Training images, float32 in [0, 1], shape ``(n, d)``.
        y: Their classes, ``(n,)``.
        lying: Whether they are drawn lying, bool ``(n,)``.
        x_test: Test images, ``(t, d)``.
        y_test: Their classes, ``(t,)``.
        lying_test: Whether they are drawn lying, ``(t,)``.
        twin: The training image that is a near-duplicate, or -1, ``(t,)``.
    """

    name: str
    side: int
    x: Tensor
    y: Tensor
    lying: Tensor
    x_test: Tensor
    y_test: Tensor
    lying_test: Tensor
    twin: Tensor

    @property
    def source(self) -> str:
        """Name of the data in the registry."""
        return SETS[self.name][0]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    @property
    def clean(self) -> Tensor:
        """The test points without a near-duplicate, indices."""
        return (self.twin < 0).nonzero()[:, 0]


def planted(name: str, n_train: int, n_test: int, leaks: int, *, seed: int = 0, noise: float = 0.05) -> Planted:
    """Draw a task; the same for the same seed.

    Args:
        name: ``digits`` (8 x 8) or ``mnist`` (the published test images, cropped to 24 x 24 and averaged to 12 x 12).
        n_train: Training images, the near-duplicates among them.
        n_test: Test images.
        leaks: How many test images have a near-duplicate among the training images.
        seed: Of the sample, of the ways of drawing, and of the noise.
        noise: Standard deviation of the noise on near-duplicates, in units of the brightness.

    Raises:
        ValueError: If the name is unknown, there are too few images, or more leaks than test or training images.

    >>> task = planted("digits", 100, 30, 5)
    >>> task.x.shape, int((task.twin >= 0).sum()), len(task.clean)
    (torch.Size([100, 64]), 5, 25)
    """
    if name not in SETS:
        raise ValueError(f"no images {name!r}; there are {', '.join(SETS)}")
    images = SETS[name][1]()
    if not 0 <= leaks <= min(n_train, n_test):
        raise ValueError(f"{leaks} leaks need as many training ({n_train}) and test images ({n_test})")
    if (have := len(images.y)) < (need := n_train - leaks + n_test):
        raise ValueError(f"{name} has {have} images, and {need} are asked for: lower n_train or n_test")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(have)[:need]
    x, y = _small(name, images).x[rows], images.y[rows]
    lying = rng.random(need) < 0.5
    x = np.where(lying[:, None, None], x.transpose(0, 2, 1), x)
    leaked = rng.choice(n_test, leaks, replace=False)  # the first n_test rows are the test images
    copies = np.stack([near_duplicate(x[i], noise, rng) for i in leaked]) if leaks else x[:0]
    order = rng.permutation(n_train)  # near-duplicates stand anywhere among the training images
    place = np.argsort(order)[:leaks]
    twin = np.full(n_test, -1)
    twin[leaked] = place

    def train(test_and_rest: np.ndarray, leaking: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([leaking, test_and_rest[n_test:]])[order])

    flat = x.reshape(need, -1)
    return Planted(
        name=name,
        side=x.shape[1],
        x=train(flat, copies.reshape(leaks, -1)),
        y=train(y, y[leaked]),
        lying=train(lying, lying[leaked]),
        x_test=torch.from_numpy(flat[:n_test].copy()),
        y_test=torch.from_numpy(y[:n_test].copy()),
        lying_test=torch.from_numpy(lying[:n_test].copy()),
        twin=torch.from_numpy(twin),
    )


def near_duplicate(image: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The image shifted by half a pixel up, down, left or right, plus normal noise, within [0, 1].

    >>> near_duplicate(np.full((2, 2), 0.5, dtype=np.float32), 0.0, np.random.default_rng(0)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    shifted = (image + np.roll(image, rng.choice([-1, 1]), axis=rng.integers(2))) / 2
    return np.clip(shifted + rng.normal(0, noise, image.shape), 0, 1).astype(np.float32)


def _small(name: str, images: Images) -> Images:
    if name != "mnist":
        return images
    middle = images.x[:, 2:26, 2:26]
    return Images(middle.reshape(-1, 12, 2, 12, 2).mean((2, 4)), images.y)
