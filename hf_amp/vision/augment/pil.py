"""The same changes as the batched ones, image by image with PIL, as the paper's code makes them: slow, and the judge.

They carry out the same `Plan`, so both paths give the same images but for roundings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from hf_amp.vision.augment.operations import FILL, Kind
from hf_amp.vision.augment.plan import Plan

_ENHANCERS = {
    Kind.BRIGHTNESS: ImageEnhance.Brightness,
    Kind.CONTRAST: ImageEnhance.Contrast,
    Kind.COLOR: ImageEnhance.Color,
    Kind.SHARPNESS: ImageEnhance.Sharpness,
}
_PLAIN: dict[Kind, Callable[[Image.Image], Image.Image]] = {
    Kind.INVERT: ImageOps.invert,
    Kind.AUTO_CONTRAST: ImageOps.autocontrast,
    Kind.EQUALIZE: ImageOps.equalize,
}


def change_images(pixels: Tensor, plan: Plan) -> Tensor:
    """Carry out the part of a plan that comes before images are normalised, image by image.

    Args:
        pixels: (batch, channels, height, width) uint8, on the CPU.
        plan: of these images.

    Returns:
        The same shape and type.
    """
    changed = [_change(to_image(one), plan, i) for i, one in enumerate(pixels)]
    return torch.stack([to_pixels(one) for one in changed]) if changed else pixels


def to_image(pixels: Tensor) -> Image.Image:
    """Return a (channels, height, width) uint8 tensor as an image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def to_pixels(image: Image.Image) -> Tensor:
    """Return an image as a (channels, height, width) uint8 tensor."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def apply_operation_to_image(image: Image.Image, kind: Kind, value: float) -> Image.Image:
    """Apply one of AutoAugment's operations.

    Args:
        image: mode L or RGB.
        kind: the operation.
        value: as in `hf_amp.vision.augment.operations.apply_operation`.
    """
    if kind == Kind.IDENTITY:
        return image
    if kind in _PLAIN:
        return _PLAIN[kind](image)
    if kind in _ENHANCERS:
        return _ENHANCERS[kind](image).enhance(value)
    if kind == Kind.SOLARIZE:
        return ImageOps.solarize(image, value)  # pyright: ignore[reportArgumentType] - thresholds may be broken numbers
    if kind == Kind.POSTERIZE:
        return ImageOps.posterize(image, int(value))
    fill = (FILL,) * len(image.getbands())
    if kind == Kind.ROTATE:
        return image.rotate(value, fillcolor=fill)
    matrix = {
        Kind.SHEAR_X: (1, value, 0, 0, 1, 0),
        Kind.SHEAR_Y: (1, 0, 0, value, 1, 0),
        Kind.TRANSLATE_X: (1, 0, value, 0, 1, 0),
        Kind.TRANSLATE_Y: (1, 0, 0, 0, 1, value),
    }[kind]
    resample = Image.Resampling.NEAREST
    if kind in (Kind.SHEAR_X, Kind.SHEAR_Y):
        resample = Image.Resampling.BICUBIC
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def _change(image: Image.Image, plan: Plan, i: int) -> Image.Image:
    width, height = image.size
    if plan.crop is not None:
        top, left = plan.crop[i].tolist()
        padded = ImageOps.expand(image, plan.padding, fill=(FILL,) * len(image.getbands()))
        image = padded.crop((left, top, left + width, top + height))
    if plan.flip is not None and plan.flip[i]:
        image = ImageOps.mirror(image)
    if plan.policy is not None:
        for kind, value in zip(plan.policy.kinds[i].tolist(), plan.policy.values[i].tolist(), strict=True):
            image = apply_operation_to_image(image, Kind(kind), value)
    return image
