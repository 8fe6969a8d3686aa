"""Configuration of PyramidNet."""

from typing import Any

from .configuration_small_image import SmallImageConfig, check_choice, check_integer, check_number


class PyramidNetConfig(SmallImageConfig):
    """Configuration of `PyramidNetForImageClassification`; the default is PyramidNet-164-270 with bottlenecks.

        config = PyramidNetConfig(depth=20, alpha=48, block_type="basic", num_labels=100)

    Block k of N in all three stages together has the width `stem_size + alpha · k / N`, rounded.

    Args:
        depth: number of convolutions and the linear layer: 9n + 2 with bottleneck blocks and 6n + 2 with basic ones,
            where n >= 1 is the number of blocks of each of the three stages.
        alpha: how much wider the last block is than the stem, >= 0.
        stem_size: channels after the first convolution, >= 1.
        block_type: `bottleneck` (1×1, 3×3, 1×1) or `basic` (two 3×3 convolutions).
        expansion: output channels of a bottleneck block for each channel of its width, >= 1.
        **kwargs: `num_channels`, `image_size`, `dropout` and the fields of `PreTrainedConfig`.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field is of the wrong type.
    """

    model_type = "pyramidnet"

    def __init__(
        self,
        depth: int = 164,
        alpha: float = 270,
        stem_size: int = 16,
        block_type: str = "bottleneck",
        expansion: int = 4,
        **kwargs: Any,
    ) -> None:
        self.depth = depth
        self.alpha = alpha
        self.stem_size = stem_size
        self.block_type = block_type
        self.expansion = expansion
        super().__init__(**kwargs)

    def check(self) -> None:
        """Refuse fields that no PyramidNet can be made of."""
        super().check()
        check_integer("depth", self.depth)
        check_integer("stem_size", self.stem_size)
        check_integer("expansion", self.expansion)
        check_number("alpha", self.alpha)
        if self.alpha < 0:
            raise ValueError(
                f"`alpha` must be >= 0, got {self.alpha}; use 0 for blocks that are all as wide as the stem"
            )
        check_choice("block_type", self.block_type, ("basic", "bottleneck"))
        layers = self.layers_per_depth
        if self.depth < layers + 2 or (self.depth - 2) % layers:
            raise ValueError(
                f"`depth` must be {layers}n + 2 with n >= 1 for {self.block_type} blocks, got {self.depth}; choose one "
                f"of {layers + 2}, {2 * layers + 2}, {3 * layers + 2}, …, or the other `block_type`"
            )

    @property
    def layers_per_depth(self) -> int:
        """How much deeper the net is for each block that all three stages get."""
        return 9 if self.block_type == "bottleneck" else 6

    @property
    def blocks_per_stage(self) -> int:
        """Number of blocks of each of the three stages."""
        return (self.depth - 2) // self.layers_per_depth

    def block_width(self, number: int) -> int:
        """Return the width of a block.

        Args:
            number: of the block, counted from 1 through all stages.
        """
        return round(self.stem_size + self.alpha * number / (3 * self.blocks_per_stage))


__all__ = ["PyramidNetConfig"]
