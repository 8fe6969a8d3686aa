"""What each image of a batch is changed by, drawn for whole batches; and the changes, made on whole batches.

A `Plan` holds one number per image for every change. The batched functions here, and the per-image ones of
`hf_amp.vision.augment.pil`, carry out the same plan.

Settings: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021, and its
published code. Cutout: DeVries, Taylor, arXiv:1708.04552. MixUp: Zhang et al., ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from hf_amp.vision.augment.autoaugment import PolicyPlan, apply_policy, draw_policy
from hf_amp.vision.augment.stream import RandomStream
from hf_amp.vision.data.catalogue import Changes

AUGMENTATIONS = ("vanilla", "cutout", "autoaugment", "none")
FILL = 128
_PUBLISHED_SIZE = 32
_QUANTILES = 1 << 14


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


def draw_plan(stream: RandomStream, augmentation: str, changes: Changes, size: tuple[int, int]) -> Plan:
    """Draw what is done to each image.

    Args:
        stream: of the images.
        augmentation: one of `AUGMENTATIONS`.
        changes: of the data set.
        size: height and width of the images; lengths of the changes are scaled to it, from 32 pixels.
    """
    fields: dict = {}
    if augmentation != "none" and (augmentation != "autoaugment" or changes.crop_before_policy):
        padding = scaled(changes.padding, size)
        offsets = [stream.integers(draw, 2 * padding + 1) for draw in (Draw.CROP_TOP, Draw.CROP_LEFT)]
        fields.update(padding=padding, crop=torch.stack(offsets, 1))
        if changes.flip:
            fields["flip"] = stream.uniform(Draw.FLIP) < 0.5
    if augmentation == "autoaugment":
        fields["policy"] = draw_policy(stream, Draw.POLICY, changes.policy, size)
    if augmentation in ("cutout", "autoaugment"):
        centre = [stream.integers(Draw.CUTOUT_ROW, size[0]), stream.integers(Draw.CUTOUT_COLUMN, size[1])]
        fields.update(cutout_side=scaled(changes.cutout, size), cutout=torch.stack(centre, 1))
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


def mixing_weights(uniform: Tensor, alpha: float) -> Tensor:
    """Turn uniform numbers into numbers of Beta(α, α), by the inverse of its distribution function.

    Args:
        uniform: (batch,) float32 in [0, 1).
        alpha: > 0; for 1 the numbers stay as they are.

    Returns:
        (batch,) float32 in [0, 1]; for other α interpolated between 16,385 exact quantiles.
    """
    if alpha == 1:
        return uniform
    quantiles = _quantiles(alpha, uniform.device)
    place = uniform * _QUANTILES
    below = place.long()
    return torch.lerp(quantiles[below], quantiles[below + 1], place - below)


@cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return 16,385 quantiles; copied to a GPU once."""
    from scipy.stats import beta

    quantiles = beta.ppf(np.linspace(0, 1, _QUANTILES + 1), alpha, alpha)
    return torch.tensor(quantiles, dtype=torch.float32, device=device)
