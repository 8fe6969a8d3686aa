"""Configuration of WideResNet."""

from collections.abc import Sequence
from typing import Any

from .configuration_small_image import SmallImageConfig, check_integer, integer_list


class WideResNetConfig(SmallImageConfig):
    """Configuration of `WideResNetForImageClassification`; the default is WideResNet-28-10.

        config = WideResNetConfig(depth=16, widen_factor=2, num_labels=100)

    Args:
        depth: number of convolutions, 6n + 4 with n >= 1: two in each of the n blocks of a stage, one in the stem
            and one in the shortcut of each stage.
        widen_factor: what the widths of the stages are multiplied by, >= 1.
        stem_size: channels after the first convolution, >= 1.
        hidden_sizes: width of each of the three stages before it is widened, >= 1; the last two halve the image.
        **kwargs: `num_channels`, `image_size`, `dropout` and the fields of `PreTrainedConfig`.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field is of the wrong type.
    """

    model_type = "wideresnet"

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        stem_size: int = 16,
        hidden_sizes: Sequence[int] = (16, 32, 64),
        **kwargs: Any,
    ) -> None:
        self.depth = depth
        self.widen_factor = widen_factor
        self.stem_size = stem_size
        self.hidden_sizes = integer_list("hidden_sizes", hidden_sizes)
        super().__init__(**kwargs)

    def check(self) -> None:
        """Refuse fields that no WideResNet can be made of."""
        super().check()
        check_integer("depth", self.depth)
        check_integer("widen_factor", self.widen_factor)
        check_integer("stem_size", self.stem_size)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(
                f"`depth` must be 6n + 4 with n >= 1, got {self.depth}; choose one of 10, 16, 22, 28, 34, 40, …"
            )
        if len(integer_list("hidden_sizes", self.hidden_sizes)) != 3:
            raise ValueError(
                f"`hidden_sizes` must have three entries, got {self.hidden_sizes}; give the width of each of the three "
                "stages, before it is widened"
            )


__all__ = ["WideResNetConfig"]
