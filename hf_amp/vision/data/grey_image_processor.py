"""An image processor for networks with one input channel; this file is saved beside the weights, so it stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image


class GreyImageProcessor(BaseImageProcessor):
    """Make any image grey, bring it to one size and normalise it: `(pixel / 255 - mean) / std`.

    The processors of transformers keep three channels, and its pipelines turn every image into RGB.

    Args:
        size: `{"height": …, "width": …}` in pixels.
        image_mean: one number, for pixels in [0, 1].
        image_std: one number > 0.
        kwargs: what other image processors keep.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as in every image processor

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = (
            {"height": 8, "width": 8} if size is None else {name: int(size[name]) for name in ("height", "width")}
        )
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:  # noqa: ARG002
        """Return `pixel_values` (batch, 1, height, width) float32.

        Args:
            images: one or several images: PIL's, or arrays or tensors with values 0…255, grey ones also
                without a dimension of channels.
            return_tensors: `"pt"` for a tensor, `"np"` for an array; None: a list of arrays.
            kwargs: of other image processors, without effect here.

        Raises:
            ValueError: the images are of no known type.
        """
        pixel_values = [self._values(one) for one in _flat(images)]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def _values(self, image: Image.Image) -> np.ndarray:
        grey = image.convert("L").resize((self.size["width"], self.size["height"]), Image.Resampling.BILINEAR)
        values = np.asarray(grey, dtype=np.float32)[None] / 255
        return (values - np.float32(self.image_mean[0])) / np.float32(self.image_std[0])


def _flat(images: Any) -> list[Image.Image]:
    """Return one or several images as a list of PIL's; transformers' own way refuses arrays of two dimensions."""
    if isinstance(images, (list, tuple)):
        return [one for some in images for one in _flat(some)]
    if isinstance(images, Image.Image):
        return [images]
    array = np.asarray(images)
    if array.ndim == 4:
        return [one for some in array for one in _flat(some)]
    if array.ndim == 2:
        return [Image.fromarray(array.astype(np.uint8))]
    if array.ndim != 3:
        raise ValueError(
            f"`images` must be PIL images, arrays or tensors, got {type(images).__name__}; open files first"
        )
    return [to_pil_image(array.astype(np.uint8), do_rescale=False)]


GreyImageProcessor.register_for_auto_class("AutoImageProcessor")
