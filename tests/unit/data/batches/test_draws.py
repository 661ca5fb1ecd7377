"""What is drawn for images, and what the host makes of it."""

import numpy as np

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.batches.draws import draw_changes
from fedgmr_hpc.data.batches.on_host import crop_and_resize, shift_and_mirror


class Fixed:
    """A stream of given draws."""

    def __init__(self, uniform=(), integers=()):
        self.uniforms, self.whole = iter(uniform), iter(integers)

    def uniform(self, *args, size=None):
        return next(self.uniforms)

    def integers(self, low, high, size):
        assert (low, high) in ((0, 9), (0, 2))
        return np.array(next(self.whole))


def test_images_are_shifted_over_zeros_and_mirrored():
    rng = Fixed(integers=[[[4, 4, 0], [4, 4, 8]], [0, 1, 0]])
    x = np.arange(1, 26, dtype=np.uint8).reshape(1, 1, 5, 5).repeat(3, axis=0)
    same, mirrored, moved = shift_and_mirror(x, draw_changes("crop_flip", 3, 5, 5, rng))[:, 0]
    assert same.tolist() == x[0, 0].tolist()
    assert mirrored[0].tolist() == [5, 4, 3, 2, 1]
    assert moved[4].tolist() == [5, 0, 0, 0, 0]
    assert moved[:4].sum() == 0


def test_a_crop_is_enlarged_and_mirrored():
    # half the edge at ratio 1, placed in the middle; the second image mirrored
    uniform = np.full((10, 2), 0.25), np.zeros((10, 2)), np.full((2, 2), 0.5)
    draws = draw_changes("resized_crop", 2, 8, 8, Fixed(uniform, [[0, 1]]))
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, :, 4:] = 200  # the middle 4x4 is half dark, half bright
    out = crop_and_resize(np.stack([image, image]), draws)
    assert out[0, 0, 3].tolist() == [0, 0, 0, 50, 150, 200, 200, 200]
    assert out[1, 0, 3].tolist() == out[0, 0, 3, ::-1].tolist()


def test_crops_have_the_areas_and_ratios_of_the_rule():
    boxes = draw_changes("resized_crop", 2000, 168, 168, make_rng(0, "augment"))
    area, ratio = boxes[:, 2] * boxes[:, 3] / 168**2, boxes[:, 3] / boxes[:, 2]
    assert 0.07 < area.min() < 0.1 and 0.95 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.36
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 168 and (boxes[:, 1] + boxes[:, 3]).max() <= 168
    assert boxes[:, :2].min() == 0
    assert set(boxes[:, 4]) == {0, 1}
