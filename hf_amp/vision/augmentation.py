"""What each image of a batch is changed by, drawn for whole batches; and the changes, made on whole batches.

A [`Plan`] holds one number per image for every change. The batched functions here, and the per-image ones of
`hf_amp.vision.pil_transforms`, carry out the same plan.

Settings: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021, and its
published code. Cutout: DeVries, Taylor, arXiv:1708.04552. MixUp: Zhang et al., ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from hf_amp.vision.autoaugment import PolicyPlan, apply_policy, draw_policy
from hf_amp.vision.datasets import canonical_name
from hf_amp.vision.random_stream import RandomStream

AUGMENTATIONS = ("vanilla", "cutout", "autoaugment", "none")
FILL = 128
_PUBLISHED_SIZE = 32


class Draw(IntEnum):
    """Places in an image's random stream, of 16; a new one goes to the end, so that the others keep their numbers."""

    CROP_TOP = 0
    CROP_LEFT = 1
    FLIP = 2
    CUTOUT_ROW = 3
    CUTOUT_COLUMN = 4
    MIXUP_PARTNER = 5
    MIXUP_WEIGHT = 6
    POLICY = 7  # and the four after it: AutoAugment's


@dataclass(frozen=True)
class Recipe:
    """How images of a data set are augmented, in pixels of a 32×32 image.

    Args:
        padding: on every side, before the crop to the old size.
        flip: mirror every second image.
        cutout: side of the square.
        policy: AutoAugment policy, `"cifar10"` or `"svhn"`.
        crop_before_policy: crop and flip also under AutoAugment.
    """

    padding: int
    flip: bool
    cutout: int
    policy: str
    crop_before_policy: bool = True


_RECIPES = {
    "cifar10": Recipe(padding=4, flip=True, cutout=16, policy="cifar10"),
    "cifar100": Recipe(padding=4, flip=True, cutout=8, policy="cifar10"),
    "svhn": Recipe(padding=2, flip=False, cutout=20, policy="svhn", crop_before_policy=False),
}
_RECIPES["digits"] = _RECIPES["svhn"]


def recipe_for(dataset_name: str) -> Recipe:
    """Return the recipe of a data set: the paper's; SVHN's for digits; CIFAR-10's for all others."""
    return _RECIPES.get(canonical_name(dataset_name), _RECIPES["cifar10"])


@dataclass(frozen=True)
class Plan:
    """What is done to each image of a batch; None: not done.

    Args:
        crop: (batch, 2) int64, top and left of the crop in the padded image, and the padding.
        flip: (batch,) bool.
        policy: AutoAugment's operations.
        cutout: (batch, 2) int64, row and column of the square's centre, and its side.
    """

    padding: int = 0
    crop: Tensor | None = None
    flip: Tensor | None = None
    policy: PolicyPlan | None = None
    cutout_side: int = 0
    cutout: Tensor | None = None


def draw_plan(stream: RandomStream, augmentation: str, recipe: Recipe, size: tuple[int, int]) -> Plan:
    """Draw what is done to each image.

    Args:
        stream: of the images.
        augmentation: one of `AUGMENTATIONS`.
        recipe: of the data set.
        size: height and width of the images; lengths of the recipe are scaled to it, from 32 pixels.
    """
    fields: dict = {}
    if augmentation != "none" and (augmentation != "autoaugment" or recipe.crop_before_policy):
        padding = scaled(recipe.padding, size)
        offsets = [stream.integers(draw, 2 * padding + 1) for draw in (Draw.CROP_TOP, Draw.CROP_LEFT)]
        fields.update(padding=padding, crop=torch.stack(offsets, 1))
        if recipe.flip:
            fields["flip"] = stream.uniform(Draw.FLIP) < 0.5
    if augmentation == "autoaugment":
        fields["policy"] = draw_policy(stream, Draw.POLICY, recipe.policy, size)
    if augmentation in ("cutout", "autoaugment"):
        centre = [stream.integers(Draw.CUTOUT_ROW, size[0]), stream.integers(Draw.CUTOUT_COLUMN, size[1])]
        fields.update(cutout_side=scaled(recipe.cutout, size), cutout=torch.stack(centre, 1))
    return Plan(**fields)


def scaled(length: int, size: tuple[int, int]) -> int:
    """Return a length of a 32×32 image for another size, 1 at least."""
    return max(1, round(length * min(size) / _PUBLISHED_SIZE))


def change_pixels(pixels: Tensor, plan: Plan) -> Tensor:
    """Carry out the part of a plan that comes before images are normalised: crop, flip, AutoAugment.

    Args:
        pixels: (batch, channels, height, width) uint8.
        plan: of these images.

    Returns:
        The same shape and type.
    """
    if plan.crop is not None:
        pixels = crop_and_flip(pixels, plan.crop, plan.padding, plan.flip)
    return pixels if plan.policy is None else apply_policy(pixels, plan.policy)


def crop_and_flip(pixels: Tensor, offsets: Tensor, padding: int, flip: Tensor | None) -> Tensor:
    """Pad with 128, crop each image to its old size at its own place, and mirror some.

    Args:
        pixels: (batch, channels, height, width) uint8.
        offsets: (batch, 2) int64 in [0, 2 padding], top and left of the crops.
        padding: on every side.
        flip: (batch,) bool; None: none.
    """
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (padding,) * 4, value=FILL)
    rows = torch.arange(height, device=pixels.device) + offsets[:, :1]
    columns = torch.arange(width, device=pixels.device).expand(len(pixels), -1)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = columns + offsets[:, 1:]
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return padded.flatten(2).gather(2, places).view_as(pixels)


def cutout_mask(centres: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Return where the squares are: (batch, 1, height, width) bool, each clipped at the border.

    Args:
        centres: (batch, 2) int64, anywhere in the image.
        side: of the squares; as in the original code they reach from centre − side // 2 to centre + side // 2 − 1.
        size: height and width.
    """
    inside = []
    for axis, length in enumerate(size):
        distance = torch.arange(length, device=centres.device) - centres[:, axis : axis + 1]
        inside.append((distance >= -(side // 2)) & (distance < side // 2))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
