"""How images are normalised, and an image processor that does the same to any image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

# Not from `transformers` itself: versions 5.5 to 5.17 offer it there only where torchvision is installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_amp.vision.data.catalogue import CATALOGUE, known_dataset
from hf_amp.vision.data.grey_image_processor import GreyImageProcessor
from hf_amp.vision.data.pixels import height_and_width

if TYPE_CHECKING:
    from hf_amp.vision.data.decoded import DecodedImages

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
    known = known_dataset(dataset_name)
    if known is not None:
        return tuple(value / 255 for value in known.mean), tuple(value / 255 for value in known.std)
    if images is None:
        raise ValueError(
            f"`dataset_name` {dataset_name!r} has no fixed mean and standard deviation (there are for "
            f"{', '.join(CATALOGUE)}); compute them: normalisation(name, DecodedImages(splits['train']))"
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


class GreyImageProcessorConfig(PreTrainedConfig):
    """The key under which transformers knows `GreyImageProcessor`: its table of classes has only such keys."""

    model_type = "hf-amp-grey-images"


AutoImageProcessor.register(GreyImageProcessorConfig, slow_image_processor_class=GreyImageProcessor, exist_ok=True)


def make_image_processor(
    dataset_name: str,
    image_size: int | tuple[int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> BaseImageProcessor:
    """Return an image processor that needs no torchvision and normalises as `ImageCollator` does.

    Saved beside a model, it is loaded by `AutoImageProcessor` and by pipelines: for images in colour it is the one of
    ViT, for grey ones `GreyImageProcessor`, which is saved with its code (`trust_remote_code=True` loads it where
    `hf_amp` is not imported).

    Args:
        dataset_name: its normalisation is used where `mean` and `std` are not given.
        image_size: height and width that images are brought to, bilinearly; one number for squares.
        mean: per channel (1 or 3), for pixels in [0, 1].
        std: likewise, > 0.

    Raises:
        ValueError: an argument is outside its range, or `mean` and `std` are missing for a data set without fixed ones.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"`mean` and `std` go together, got {mean} and {std}; give both or none")
    if mean is None or std is None:
        mean, std = normalisation(dataset_name)
    if len(mean) not in (1, 3) or len(std) != len(mean):
        raise ValueError(
            f"`mean` and `std` must hold 1 or 3 numbers each, got {list(mean)} and {list(std)}; one per channel"
        )
    height, width = height_and_width(image_size)
    settings: dict[str, Any] = {
        "size": {"height": height, "width": width},
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if len(mean) == 1:
        return GreyImageProcessor(**settings)
    return _vit_processor()(do_convert_rgb=True, **settings)


def _vit_processor() -> type[BaseImageProcessor]:
    """Return ViT's processor on PIL, which transformers 5.0 has under the plain name."""
    try:
        return transformers.ViTImageProcessorPil
    except AttributeError:
        return transformers.ViTImageProcessor
