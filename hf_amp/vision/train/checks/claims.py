"""Whether images are what the arguments say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_amp.vision.data.catalogue import known_dataset
from hf_amp.vision.data.decoded import DecodedImages

if TYPE_CHECKING:
    from hf_amp.vision.train.images import DataArguments

_KINDS = {1: "grey", 3: "rgb"}


def check_claim(data: DataArguments, images: DecodedImages) -> None:
    """Refuse other data under the name of a known data set: it would be normalised, and called, as what it is not.

    Raises:
        ValueError: classes or channels are not those of the data set that is named, or there is one class only.
    """
    known, classes, channels = known_dataset(data.dataset), len(images.label_names), images.pixel_shape[0]
    if classes < 2:
        raise ValueError(
            f"`dataset` {data.dataset!r} has one class, {images.label_names[0]!r}, and there must be two at least; add "
            "images of another class"
        )
    if known is not None and not data.coarse_labels and classes != known.classes:
        raise ValueError(
            f"`dataset` {data.dataset!r} has {known.classes} classes, and these images have {classes}; give another "
            "name with --dataset, or leave it out"
        )
    if known is not None and channels != len(known.mean):
        right = _KINDS[len(known.mean)]
        raise ValueError(
            f"`dataset` {data.dataset!r} has {right} images, and these are {_KINDS[channels]}; give --image_mode "
            f"{right}, or another name with --dataset"
        )
