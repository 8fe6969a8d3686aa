"""AutoAugment's operations on batches in which each image has its own; results are PIL's, to the last bit or nearly.

Nearly all operations on single pixels are tables of 256 values, made per image and channel. On a GPU all kinds are
computed for all images and the right ones picked, since asking it which are needed would make it wait; on a CPU each
kind is computed for its images only.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

FILL = 128
_FIXED = 1 << 16  # PIL's nearest-neighbour transforms count in 1/65536 of a pixel


class Kind(IntEnum):
    """What is done to an image."""

    IDENTITY = 0
    INVERT = 1
    SOLARIZE = 2
    POSTERIZE = 3
    BRIGHTNESS = 4
    CONTRAST = 5
    AUTO_CONTRAST = 6
    EQUALIZE = 7
    COLOR = 8
    SHARPNESS = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13
    ROTATE = 14


def apply_operation(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        pixels: (batch, channels, height, width) uint8.
        kinds: (batch,) int64, `Kind`.
        values: (batch,) float64: shear; pixels to translate by; degrees against the clock; factor of an enhancement;
            bits to keep; threshold from which solarize inverts. Ignored by the other kinds.

    Returns:
        The same shape and type.
    """

    result = pixels.clone()
    for some, change in _CHANGES.items():
        mask = torch.stack([kinds == kind for kind in some]).any(0)
        if pixels.device.type == "cpu":
            rows = mask.nonzero()[:, 0]
            if len(rows):
                result[rows] = change(pixels[rows], kinds[rows], values[rows])
        else:
            result = torch.where(mask[:, None, None, None], change(pixels, kinds, values), result)
    return result


def _grey(pixels: Tensor) -> Tensor:
    """Return (batch, 1, height, width) uint8, the luma of ITU-R 601-2."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.to(torch.int32).split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """Return start + factor (end − start), cut to [0, 255] and rounded down."""
    start = start.to(torch.float32)
    return (start + factor * (end.to(torch.float32) - start)).clamp(0, 255).to(torch.uint8)


def _smooth(pixels: Tensor) -> Tensor:
    """Return PIL's SMOOTH filter: 3×3 with weight 5 in the middle; pixels at the border stay."""
    wide = pixels.to(torch.int32)
    height, width = pixels.shape[2:]
    if min(height, width) < 3:
        return pixels
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = torch.div(2 * around + 13, 26, rounding_mode="floor").to(torch.uint8)
    return smooth


def _enhance_colour(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    return _blend(_grey(pixels), pixels, _factor(values))


def _sharpen(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:  # noqa: ARG001
    return _blend(_smooth(pixels), pixels, _factor(values))


def _factor(values: Tensor) -> Tensor:
    return values.to(torch.float32)[:, None, None, None]


def _look_up(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
    """Replace values one by one; kinds that need no table leave the image as it is."""
    return _tables(pixels, kinds, values).gather(2, pixels.flatten(2).long()).view_as(pixels)


def _tables(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
    """Return (batch, channels, 256) uint8: what each value of a channel becomes."""
    levels = torch.arange(256, device=pixels.device)
    histogram = _histogram(pixels)
    value = values[:, None, None]
    # Rounded to the nearest, halves up
    mean = torch.floor(_grey(pixels).flatten(1).to(torch.float64).mean(1) + 0.5)[:, None, None]
    keep = 256 - torch.pow(2.0, 8 - value).long().clamp(1, 256)
    factor, plain = value.to(torch.float32), levels.to(torch.float32)
    start = mean.to(torch.float32)
    by_kind = {
        Kind.INVERT: 255 - levels,
        Kind.SOLARIZE: torch.where(levels < value, levels, 255 - levels),
        Kind.POSTERIZE: levels & keep,
        Kind.BRIGHTNESS: factor * plain,
        Kind.CONTRAST: start + factor * (plain - start),
        Kind.AUTO_CONTRAST: _auto_contrast(histogram),
        Kind.EQUALIZE: _equalize(histogram),
    }
    tables = levels.to(torch.uint8).expand(*pixels.shape[:2], 256)
    for kind, table in by_kind.items():
        tables = torch.where((kinds == kind)[:, None, None], table.clamp(0, 255).to(torch.uint8), tables)
    return tables


def _histogram(pixels: Tensor) -> Tensor:
    """Return (batch, channels, 256) int64."""
    flat = pixels.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    return counts.scatter_add_(2, flat, torch.ones_like(flat))


def _auto_contrast(histogram: Tensor) -> Tensor:
    """Stretch each channel from its darkest and lightest value to 0 and 255."""
    levels = torch.arange(256, device=histogram.device, dtype=torch.float64)
    there = histogram > 0
    low = torch.where(there, levels, 255.0).amin(2, keepdim=True)
    high = torch.where(there, levels, 0.0).amax(2, keepdim=True)
    # Not 255 / (...): torch multiplies by the reciprocal, which rounds differently.
    scale = torch.div(torch.full_like(high, 255.0), (high - low).clamp(min=1))
    return torch.where(high > low, levels * scale - low * scale, levels)


def _equalize(histogram: Tensor) -> Tensor:
    """Spread each channel's values so that all are about equally frequent."""
    levels = torch.arange(256, device=histogram.device)
    last = torch.where(histogram > 0, levels, 0).amax(2, keepdim=True)
    step = torch.div(histogram.sum(2, keepdim=True) - histogram.gather(2, last), 255, rounding_mode="floor")
    below = histogram.cumsum(2) - histogram
    spread = torch.div(below + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, spread, levels)


def _coordinates(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (height, 1) and columns (1, width), int64."""
    height, width = pixels.shape[2:]
    rows = torch.arange(height, device=pixels.device)[:, None]
    return rows, torch.arange(width, device=pixels.device)[None, :]


def _take(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at (batch, height, width) places, those outside taken from the nearest border."""
    height, width = pixels.shape[2:]
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return pixels.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)


def _inside(rows: Tensor, columns: Tensor, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[2:]
    return ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))[:, None]


def _move(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
    """Translate or rotate, taking the nearest pixel, in whole steps of 1/65536 pixel as PIL does."""
    height, width = pixels.shape[2:]
    zero = torch.zeros_like(values)
    angle = torch.where(kinds == Kind.ROTATE, -torch.deg2rad(values), zero)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x_shift = torch.where(kinds == Kind.TRANSLATE_X, values, zero)
    y_shift = torch.where(kinds == Kind.TRANSLATE_Y, values, zero)
    # About the centre; the half brings from a pixel's corner to its middle.
    x_start = width / 2 - cos * width / 2 - sin * height / 2 + x_shift + (cos + sin) / 2
    y_start = height / 2 + sin * width / 2 - cos * height / 2 + y_shift + (cos - sin) / 2
    x_start, y_start, cos, sin, minus_sin = (
        torch.floor(one * _FIXED + 0.5).long()[:, None, None] for one in (x_start, y_start, cos, sin, -sin)
    )
    row, column = _coordinates(pixels)
    columns = (x_start + cos * column + sin * row) >> 16
    rows = (y_start + minus_sin * column + cos * row) >> 16
    return torch.where(_inside(rows, columns, pixels), _take(pixels, rows, columns), FILL)


def _shear(pixels: Tensor, kinds: Tensor, values: Tensor) -> Tensor:
    """Shear along one axis with cubic interpolation (PIL's, which has a = −1)."""
    row, column = _coordinates(pixels)
    along_x, shear = (kinds == Kind.SHEAR_X)[:, None, None], values[:, None, None]
    here, across = torch.where(along_x, column, row), torch.where(along_x, row, column)
    place = here + 0.5 + shear * (across + 0.5)
    length = torch.where(along_x, pixels.shape[3], pixels.shape[2])
    first = torch.floor(place - 0.5)
    part = (place - 0.5 - first)[:, None]
    taps = []
    for offset in (-1, 0, 1, 2):
        tap = (first + offset).long()
        taps.append(_take(pixels, torch.where(along_x, row, tap), torch.where(along_x, tap, column)).double())
    before, start, end, after = taps
    linear, square = end - before, 2 * (before - start) + end - after
    mixed = start + part * (linear + part * (square + part * (start - before + after - end)))
    inside = ((place >= 0) & (place < length))[:, None]
    return torch.where(inside, mixed.clamp(0, 255).to(torch.uint8), FILL)


_CHANGES: dict[tuple[Kind, ...], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    (
        Kind.INVERT,
        Kind.SOLARIZE,
        Kind.POSTERIZE,
        Kind.BRIGHTNESS,
        Kind.CONTRAST,
        Kind.AUTO_CONTRAST,
        Kind.EQUALIZE,
    ): _look_up,
    (Kind.COLOR,): _enhance_colour,
    (Kind.SHARPNESS,): _sharpen,
    (Kind.SHEAR_X, Kind.SHEAR_Y): _shear,
    (Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.ROTATE): _move,
}
