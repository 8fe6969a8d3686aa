"""An image processor that does to any image what the training did, augmentation apart."""

from __future__ import annotations

from collections.abc import Sequence

import transformers
from transformers.image_processing_utils import BaseImageProcessor

from hf_amp.vision.decoded import height_and_width
from hf_amp.vision.normalisation import normalisation


def make_image_processor(
    dataset_name: str,
    image_size: int | tuple[int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> BaseImageProcessor:
    """Return an image processor that needs no torchvision."""
    if mean is None or std is None:
        mean, std = normalisation(dataset_name)
    height, width = height_and_width(image_size)
    # transformers 5.0 has its PIL processor under the plain name.
    cls = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return cls(size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std))
