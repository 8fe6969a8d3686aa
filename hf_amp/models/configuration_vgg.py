"""Configuration of VGG with batch norm."""

from collections.abc import Sequence
from typing import Any

from .configuration_small_image import SmallImageConfig, check_stages, integer_list


class VGGConfig(SmallImageConfig):
    """Configuration of `VGGForImageClassification`; the default is VGG16 with batch norm.

        config = VGGConfig(hidden_sizes=[16, 32, 64], depths=[1, 1, 1], classifier_sizes=[], num_labels=100)

    Args:
        hidden_sizes: width of each stage, >= 1; each stage ends with a pooling that halves the image.
        depths: 3×3 convolutions of each stage, >= 1.
        classifier_sizes: widths of the hidden layers of the classifier, >= 1; empty for a single linear layer.
        **kwargs: `num_channels`, `image_size`, `dropout` and the fields of `PreTrainedConfig`.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field is of the wrong type.
    """

    model_type = "vgg"

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        classifier_sizes: Sequence[int] = (4096, 4096),
        **kwargs: Any,
    ) -> None:
        self.hidden_sizes = integer_list("hidden_sizes", hidden_sizes)
        self.depths = integer_list("depths", depths)
        self.classifier_sizes = integer_list("classifier_sizes", classifier_sizes)
        super().__init__(**kwargs)

    def check(self) -> None:
        """Refuse fields that no VGG can be made of."""
        super().check()
        integer_list("hidden_sizes", self.hidden_sizes)
        integer_list("depths", self.depths)
        integer_list("classifier_sizes", self.classifier_sizes)
        check_stages("hidden_sizes", self.hidden_sizes, "depths", self.depths)


__all__ = ["VGGConfig"]
