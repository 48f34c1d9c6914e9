"""The planted task: what was planted is where it says, checked on the pixels by loops."""

import numpy as np
import pytest
import torch

from clif_kit import datasets
from clif_kit.planted_images import near_duplicate, planted


@pytest.fixture(scope="module")
def task():
    return planted("digits", 120, 40, 8, seed=3)


def test_every_image_is_a_digit_drawn_in_one_of_the_two_ways(task):
    """Oracle: a dictionary of all digits and their transposes; near-duplicates are in neither."""
    images = datasets.digits()
    known = {(x.tobytes(), bool(way)): y for x, y in zip(images.x, images.y, strict=True) for way in (0,)}
    known |= {(np.ascontiguousarray(x.T).tobytes(), True): y for x, y in zip(images.x, images.y, strict=True)}
    leaked = set(task.twin.tolist()) - {-1}
    rows = [(task.x[i], task.y[i], task.lying[i]) for i in range(120) if i not in leaked]
    rows += list(zip(task.x_test, task.y_test, task.lying_test, strict=True))
    for x, y, way in rows:
        assert known[(x.numpy().tobytes(), bool(way))] == y
    assert 40 < int(task.lying.sum()) < 80


def test_a_twin_is_the_test_image_shifted_by_half_a_pixel(task):
    for t, i in enumerate(task.twin.tolist()):
        if i < 0:
            continue
        image = task.x_test[t].view(8, 8)
        shifts = [(image + image.roll(step, axis)) / 2 for step in (-1, 1) for axis in (0, 1)]
        off = min(float((task.x[i].view(8, 8) - shifted).abs().mean()) for shifted in shifts)
        assert off < 0.06  # mean size of the noise, some of it cut off at 0 and 1
        assert task.y[i] == task.y_test[t]
        assert task.lying[i] == task.lying_test[t]
    assert int((task.twin >= 0).sum()) == 8
    assert len(set(task.twin[task.twin >= 0].tolist())) == 8
    assert (task.twin[task.clean] == -1).all()


def test_no_test_image_is_a_training_image(task):
    assert float(torch.cdist(task.x_test, task.x).min()) > 0


def test_without_noise_the_brightness_is_kept():
    image = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    moved = near_duplicate(image, 0.0, np.random.default_rng(1))
    assert np.isclose(moved.sum(), image.sum())
    assert not np.allclose(moved, image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cats", 10, 10, 1), "no images 'cats'; there are digits, mnist"),
        (("digits", 1700, 200, 1), "digits has 1797 images, and 1899 are asked for"),
        (("digits", 10, 10, 11), "11 leaks need as many"),
    ],
)
def test_bad_tasks_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        planted(*arguments)
