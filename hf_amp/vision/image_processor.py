"""An image processor that does to any image what the training did, augmentation apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from hf_amp.vision.decoded import height_and_width
from hf_amp.vision.grey_image_processor import GreyImageProcessor
from hf_amp.vision.normalisation import normalisation


class GreyImageProcessorConfig(PreTrainedConfig):
    """The key under which transformers knows [`GreyImageProcessor`]: its table of classes has only such keys."""

    model_type = "hf-amp-grey-images"


AutoImageProcessor.register(GreyImageProcessorConfig, slow_image_processor_class=GreyImageProcessor, exist_ok=True)


def make_image_processor(
    dataset_name: str,
    image_size: int | tuple[int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> BaseImageProcessor:
    """Return an image processor that needs no torchvision and normalises as [`ImageCollator`] does.

    Saved beside a model, it is loaded by [`AutoImageProcessor`] and by pipelines: for images in colour it is the one of
    ViT, for grey ones [`GreyImageProcessor`], which is saved with its code (`trust_remote_code=True` loads it where
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
