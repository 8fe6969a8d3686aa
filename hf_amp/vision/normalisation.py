"""Means and standard deviations that images are normalised with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_amp.vision.datasets import canonical_name

if TYPE_CHECKING:
    from hf_amp.vision.decoded import DecodedImages

# In 1/255. CIFAR and SVHN: the paper's. Digits: computed with `measure` from the training split, as it is cut here.
_PUBLISHED = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "svhn": ((109.9, 109.7, 113.8), (50.1, 50.6, 50.8)),
    "digits": ((77.9,), (95.9,)),
}
_IMAGES_PER_SUM = 4096


def normalisation(
    dataset_name: str, images: DecodedImages | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what images are normalised with: `(pixel / 255 - mean) / std`.

    Args:
        dataset_name: for `cifar10`, `cifar100`, `svhn` and `digits` (or their Hub ids) fixed numbers are returned.
        images: the training images of any other data set, from which the numbers are computed.

    Returns:
        Mean and standard deviation per channel, for pixels in [0, 1].

    Raises:
        ValueError: the data set has no fixed numbers, and `images` is missing.
    """
    published = _PUBLISHED.get(canonical_name(dataset_name))
    if published is not None:
        mean, std = published
        return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)
    if images is None:
        raise ValueError(
            f"`dataset_name` {dataset_name!r} has no fixed mean and standard deviation (there are for "
            f"{', '.join(_PUBLISHED)}); compute them: normalisation(name, DecodedImages(splits['train']))"
        )
    return measure(images)


def measure(images: DecodedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of all pixels, in [0, 1]; a constant channel has deviation 1."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(images), _IMAGES_PER_SUM):
        pixels = images.pixels(torch.arange(start, min(start + _IMAGES_PER_SUM, len(images))))
        pixels = pixels.to(torch.float64).transpose(0, 1).flatten(1)
        count += pixels.shape[1]
        total = total + pixels.sum(1).cpu()
        squares = squares + pixels.square().sum(1).cpu()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std == 0, 255.0, std)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
