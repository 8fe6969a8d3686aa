"""Configuration of PreActResNet."""

from collections.abc import Sequence
from typing import Any

from .configuration_small_image import SmallImageConfig, check_choice, check_integer, check_stages, integer_list


class PreActResNetConfig(SmallImageConfig):
    """Configuration of `PreActResNetForImageClassification`; the default is PreActResNet18.

        config = PreActResNetConfig(hidden_sizes=[16, 32, 64], depths=[1, 1, 1], num_labels=100)

    Args:
        stem_size: channels after the first convolution, >= 1.
        hidden_sizes: width of each stage, >= 1; all stages but the first halve the image.
        depths: residual blocks of each stage, >= 1.
        block_type: `basic` (two 3×3 convolutions) or `bottleneck` (1×1, 3×3, 1×1).
        expansion: output channels of a bottleneck block for each channel of `hidden_sizes`, >= 1.
        **kwargs: `num_channels`, `image_size`, `dropout` and the fields of `PreTrainedConfig`.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field is of the wrong type.
    """

    model_type = "preactresnet"

    def __init__(
        self,
        stem_size: int = 64,
        hidden_sizes: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        block_type: str = "basic",
        expansion: int = 4,
        **kwargs: Any,
    ) -> None:
        self.stem_size = stem_size
        self.hidden_sizes = integer_list("hidden_sizes", hidden_sizes)
        self.depths = integer_list("depths", depths)
        self.block_type = block_type
        self.expansion = expansion
        super().__init__(**kwargs)

    def check(self) -> None:
        """Refuse fields that no PreActResNet can be made of."""
        super().check()
        check_integer("stem_size", self.stem_size)
        check_integer("expansion", self.expansion)
        check_choice("block_type", self.block_type, ("basic", "bottleneck"))
        integer_list("hidden_sizes", self.hidden_sizes)
        integer_list("depths", self.depths)
        check_stages("hidden_sizes", self.hidden_sizes, "depths", self.depths)


__all__ = ["PreActResNetConfig"]
