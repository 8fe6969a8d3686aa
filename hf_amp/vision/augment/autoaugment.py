"""AutoAugment for whole batches: each image draws its own sub-policy, and no step waits for the device.

Policies: Cubuk et al., *AutoAugment*, CVPR 2019, tables 7 and 8. Implementations in libraries are not used: kornia's
draws one sub-policy for a whole batch, torchvision's works image by image, and both draw from a generator, so that an
image would depend on who asked before (see `RandomStream`). Magnitudes, signs and resampling are those of the AMP
paper's code, on PIL: no random sign for rotations, bicubic shears, 128 outside the image. The operations equal PIL's on
uint8 (tests/test_augment_autoaugment.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hf_amp.vision.augment.operations import Kind, apply_operation
from hf_amp.vision.augment.stream import RandomStream

SLOTS = 2  # operations in a sub-policy
# Sub-policies between semicolons; of each operation its probability and its magnitude 0…9 (0 where it has none).
_POLICIES = {
    "cifar10": """
    invert 0.1 0, contrast 0.2 6; rotate 0.7 2, translate_x 0.3 9;
    sharpness 0.8 1, sharpness 0.9 3; shear_y 0.5 8, translate_y 0.7 9;
    auto_contrast 0.5 0, equalize 0.9 0; shear_y 0.2 7, posterize 0.3 7;
    color 0.4 3, brightness 0.6 7; sharpness 0.3 9, brightness 0.7 9;
    equalize 0.6 0, equalize 0.5 0; contrast 0.6 7, sharpness 0.6 5;
    color 0.7 7, translate_x 0.5 8; equalize 0.3 0, auto_contrast 0.4 0;
    translate_y 0.4 3, sharpness 0.2 6; brightness 0.9 6, color 0.2 8;
    solarize 0.5 2, invert 0.0 0; equalize 0.2 0, auto_contrast 0.6 0;
    equalize 0.2 0, equalize 0.6 0; color 0.9 9, equalize 0.6 0;
    auto_contrast 0.8 0, solarize 0.2 8; brightness 0.1 3, color 0.7 0;
    solarize 0.4 5, auto_contrast 0.9 0; translate_y 0.9 9, translate_y 0.7 9;
    auto_contrast 0.9 0, solarize 0.8 3; equalize 0.8 0, invert 0.1 0;
    translate_y 0.7 9, auto_contrast 0.9 0
""",
    "svhn": """
    shear_x 0.9 4, invert 0.2 0; shear_y 0.9 8, invert 0.7 0;
    equalize 0.6 0, solarize 0.6 6; invert 0.9 0, equalize 0.6 0;
    equalize 0.6 0, rotate 0.9 3; shear_x 0.9 4, auto_contrast 0.8 0;
    shear_y 0.9 8, invert 0.4 0; shear_y 0.9 5, solarize 0.2 6;
    invert 0.9 0, auto_contrast 0.8 0; equalize 0.6 0, rotate 0.9 3;
    shear_x 0.9 4, solarize 0.3 3; shear_y 0.8 8, invert 0.7 0;
    equalize 0.9 0, translate_y 0.6 6; invert 0.9 0, equalize 0.6 0;
    contrast 0.3 3, rotate 0.8 4; invert 0.8 0, translate_y 0.0 2;
    shear_y 0.7 6, solarize 0.4 8; invert 0.6 0, rotate 0.8 4;
    shear_y 0.3 7, translate_x 0.9 3; shear_x 0.1 6, invert 0.6 0;
    solarize 0.7 2, translate_y 0.6 7; shear_y 0.8 4, invert 0.8 0;
    shear_x 0.7 9, translate_y 0.8 3; shear_y 0.8 5, auto_contrast 0.7 0;
    shear_x 0.7 2, invert 0.1 0
""",
}
_LEVELS = 10
# What each of the ten magnitudes means; translations are shares of the image's side.
_MAGNITUDES = {
    Kind.SHEAR_X: np.linspace(0, 0.3, _LEVELS),
    Kind.SHEAR_Y: np.linspace(0, 0.3, _LEVELS),
    Kind.TRANSLATE_X: np.linspace(0, 150 / 331, _LEVELS),
    Kind.TRANSLATE_Y: np.linspace(0, 150 / 331, _LEVELS),
    Kind.ROTATE: np.linspace(0, 30, _LEVELS),
    Kind.COLOR: np.linspace(0, 0.9, _LEVELS),
    Kind.CONTRAST: np.linspace(0, 0.9, _LEVELS),
    Kind.SHARPNESS: np.linspace(0, 0.9, _LEVELS),
    Kind.BRIGHTNESS: np.linspace(0, 0.9, _LEVELS),
    Kind.POSTERIZE: np.round(np.linspace(8, 4, _LEVELS)),
    Kind.SOLARIZE: np.linspace(256, 0, _LEVELS),
}
_ENHANCEMENTS = (Kind.COLOR, Kind.CONTRAST, Kind.SHARPNESS, Kind.BRIGHTNESS)
_SIGNED = (Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y, *_ENHANCEMENTS)


@dataclass(frozen=True)
class PolicyPlan:
    """The operations that are applied to each image, one after the other.

    Args:
        kinds: (batch, 2) int64, `Kind` of each; IDENTITY where it was not drawn.
        values: (batch, 2) float64, what the kind takes: a shear, pixels, degrees, a factor, bits or a threshold.
    """

    kinds: Tensor
    values: Tensor


def draw_policy(stream: RandomStream, first_draw: int, policy: str, size: tuple[int, int]) -> PolicyPlan:
    """Draw a sub-policy for each image, which of its operations are applied, and their signs.

    Args:
        stream: of the images.
        first_draw: place of the first of the five numbers that are used.
        policy: `"cifar10"` or `"svhn"`.
        size: height and width of the images.
    """
    table = _policy_table(policy, size, stream.device)
    chosen = stream.integers(first_draw, len(table))
    kinds, values = [], []
    for slot in range(SLOTS):
        applied = stream.uniform(first_draw + 1 + slot)
        sign = stream.integers(first_draw + 1 + SLOTS + slot, 2)
        kind, probability, value = table[chosen, slot, sign].unbind(1)
        kinds.append(torch.where(applied < probability, kind, Kind.IDENTITY).long())
        values.append(value)
    return PolicyPlan(torch.stack(kinds, 1), torch.stack(values, 1))


def apply_policy(pixels: Tensor, plan: PolicyPlan) -> Tensor:
    """Apply each image's operations.

    Args:
        pixels: (batch, channels, height, width) uint8.
        plan: of these images.

    Returns:
        The same shape and type.
    """
    for slot in range(SLOTS):
        pixels = apply_operation(pixels, plan.kinds[:, slot], plan.values[:, slot])
    return pixels


def published_policy(policy: str) -> list[list[tuple[Kind, float, int]]]:
    """Return the 25 sub-policies: two operations each, with probability and magnitude 0…9 (0 where it has none)."""
    words = [[operation.split() for operation in one.split(",")] for one in _POLICIES[policy].split(";")]
    return [[(Kind[name.upper()], float(chance), int(level)) for name, chance, level in one] for one in words]


@cache
def _policy_table(policy: str, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return (sub-policies, operations, signs, 3) float64: kind, probability, value; copied to a GPU once."""
    rows = [
        [[(kind, chance, _value(kind, level, sign, size)) for sign in (-1, 1)] for kind, chance, level in one]
        for one in published_policy(policy)
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _value(kind: Kind, level: int, sign: int, size: tuple[int, int]) -> float:
    """Return what an operation takes, for a magnitude of the table and a sign."""
    if kind not in _MAGNITUDES:
        return 0.0
    value = float(_MAGNITUDES[kind][level])
    if kind in _SIGNED:
        value *= sign
    if kind in _ENHANCEMENTS:
        return 1 + value
    if kind == Kind.TRANSLATE_X:
        return value * size[1]
    return value * size[0] if kind == Kind.TRANSLATE_Y else value
