"""An image processor for networks with one input channel; this file is saved beside the weights, so it stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images, valid_images


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
            images: one or several images: PIL's, or arrays or tensors with values 0…255.
            return_tensors: `"pt"` for a tensor, `"np"` for an array; None: a list of arrays.
            kwargs: of other image processors, without effect here.

        Raises:
            ValueError: the images are of no known type.
        """
        flat: list[Any] = list(make_flat_list_of_images(images))  # pyright: ignore[reportArgumentType] - wrongly typed
        if not valid_images(flat):
            raise ValueError("`images` must be PIL images, arrays or tensors; open image files first")
        pixel_values = [self._values(one) for one in flat]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def _values(self, image: Any) -> np.ndarray:
        if not isinstance(image, Image.Image):
            image = to_pil_image(np.asarray(image), do_rescale=False)
        grey = image.convert("L").resize((self.size["width"], self.size["height"]), Image.Resampling.BILINEAR)
        values = np.asarray(grey, dtype=np.float32)[None] / 255
        return (values - np.float32(self.image_mean[0])) / np.float32(self.image_std[0])


GreyImageProcessor.register_for_auto_class("AutoImageProcessor")
