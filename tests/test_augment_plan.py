"""Random numbers are functions of their place; crops, flips and squares are what the plan says, image by image."""

import numpy as np
import pytest
import torch

from hf_amp.vision.augment.pil import change_images
from hf_amp.vision.augment.plan import Plan, change_pixels, cutout_mask, draw_plan, mixing_weights
from hf_amp.vision.augment.stream import RandomStream
from hf_amp.vision.data.catalogue import changes_for

MANY = torch.arange(40_000)


GOLDEN = 0x9E3779B97F4A7C15


def finalise(state):
    """SplitMix64's finaliser in Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_random_numbers_are_outputs_of_split_mix_64():
    """The generator, run one output after the other from a hash of seed and epoch."""
    state, outputs = finalise((finalise((5 + GOLDEN) % 2**64) + 2) % 2**64), []
    for _ in range(16 * 60):
        state = (state + GOLDEN) % 2**64
        outputs.append(finalise(state))
    indices = [0, 7, 59]
    stream = RandomStream(seed=5, epoch=2, indices=torch.tensor(indices))
    for draw in (0, 1, 15):
        words = [outputs[16 * index + draw] for index in indices]
        assert stream.uniform(draw).tolist() == [(word >> 40) * 2.0**-24 for word in words]
        assert stream.integers(draw, 25).tolist() == [((word >> 32) * 25) >> 32 for word in words]


def test_finaliser_gives_the_published_outputs():
    """The first outputs of SplitMix64 for the state 1234567, as reference implementations print them."""
    words = [finalise((1234567 + i * GOLDEN) % 2**64) for i in (1, 2, 3)]
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_random_numbers_are_uniform_and_unrelated():
    streams = [RandomStream(0, 0, MANY), RandomStream(1, 0, MANY), RandomStream(0, 1, MANY)]
    draws = [streams[0].uniform(0), streams[0].uniform(1), streams[1].uniform(0), streams[2].uniform(0)]
    draws.append(draws[0].roll(1))
    for draw in draws:
        assert 0 <= draw.min() < draw.max() < 1
        counts = torch.histc(draw, 20, 0, 1)
        assert ((counts - 2000) ** 2 / 2000).sum() < 50  # χ² with 19 degrees of freedom; 44 is one in a thousand
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlations.abs().max() < 5 / 200
    assert torch.bincount(streams[0].integers(0, 9)).min() > 40_000 / 9 - 350


def test_an_images_numbers_do_not_depend_on_the_batch():
    whole = RandomStream(0, 4, torch.arange(10)).uniform(3)
    parts = [RandomStream(0, 4, torch.tensor(part)).uniform(3) for part in ([7, 2], [5])]
    assert torch.cat(parts).tolist() == whole[[7, 2, 5]].tolist()


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_crop_and_flip_are_pils(name, bands):
    pixels = torch.randint(0, 256, (50, bands, 32, 32), dtype=torch.uint8)
    plan = draw_plan(RandomStream(0, 0, torch.arange(50)), "vanilla", changes_for(name), (32, 32))
    assert (change_pixels(pixels, plan) == change_images(pixels, plan)).all()
    assert (change_pixels(pixels, plan) != pixels).flatten(1).any(1).sum() > 45


def test_crops_are_filled_with_128_and_mirrored_one_by_one():
    pixels = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).repeat(2, 1, 1, 1)
    plan = Plan(padding=1, crop=torch.tensor([[0, 2], [1, 1]]), flip=torch.tensor([False, True]))
    changed = change_pixels(pixels, plan)
    assert changed[0, 0].tolist() == [[128, 128, 128], [2, 3, 128], [5, 6, 128]]
    assert changed[1, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]


@pytest.mark.parametrize(
    ("name", "padding", "flip", "side"),
    [("cifar10", 4, True, 16), ("cifar100", 4, True, 8), ("svhn", 2, False, 20), ("uoft-cs/cifar100", 4, True, 8)],
)
def test_changes_are_the_papers(name, padding, flip, side):
    stream = RandomStream(0, 0, MANY)
    plan = draw_plan(stream, "cutout", changes_for(name), (32, 32))
    assert (plan.padding, plan.cutout_side) == (padding, side)
    expected = 40_000 / (2 * padding + 1)
    for axis in (0, 1):
        counts = torch.bincount(plan.crop[:, axis])
        assert len(counts) == 2 * padding + 1
        assert (counts - expected).abs().max() < 5 * expected**0.5
        assert len(torch.bincount(plan.cutout[:, axis])) == 32
    assert (plan.flip is not None) == flip
    if flip:
        assert abs(plan.flip.float().mean() - 0.5) < 0.0125
    assert plan.policy is None
    assert draw_plan(stream, "none", changes_for(name), (32, 32)) == Plan()


def test_autoaugment_replaces_the_crop_of_svhn_only():
    stream = RandomStream(0, 0, torch.arange(5))
    svhn, cifar = (draw_plan(stream, "autoaugment", changes_for(name), (32, 32)) for name in ("svhn", "cifar100"))
    assert svhn.crop is None
    assert svhn.flip is None
    assert cifar.crop is not None
    for plan in (svhn, cifar):
        assert plan.policy is not None
        assert plan.cutout is not None


def test_changes_are_scaled_to_other_sizes():
    stream = RandomStream(0, 0, torch.arange(5))
    plan = draw_plan(stream, "cutout", changes_for("other"), (64, 96))
    assert (plan.padding, plan.cutout_side) == (8, 32)
    plan = draw_plan(stream, "cutout", changes_for("digits"), (8, 8))
    assert (plan.padding, plan.cutout_side, plan.flip) == (1, 5, None)


def reference_mask(row, column, side, size):
    """Cutout's own code in numpy: True in the square."""
    mask = np.zeros(size, bool)
    rows = np.clip([row - side // 2, row + side // 2], 0, size[0])
    columns = np.clip([column - side // 2, column + side // 2], 0, size[1])
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


@pytest.mark.parametrize(("side", "size"), [(16, (32, 32)), (20, (32, 32)), (5, (8, 8)), (4, (6, 9))])
def test_squares_are_those_of_the_original_code(side, size):
    centres = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    masks = cutout_mask(centres, side, size)
    assert masks.shape == (size[0] * size[1], 1, *size)
    for (row, column), mask in zip(centres.tolist(), masks[:, 0].numpy(), strict=True):
        assert (mask == reference_mask(row, column, side, size)).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixing_weights_are_beta_distributed(alpha):
    beta = pytest.importorskip("scipy.stats").beta(alpha, alpha)
    weights = mixing_weights(RandomStream(0, 0, MANY).uniform(0), alpha)
    assert weights.min() >= 0
    assert weights.max() <= 1
    for place in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        assert abs((weights < place).double().mean() - beta.cdf(place)) < 5 * 0.5 / 200
