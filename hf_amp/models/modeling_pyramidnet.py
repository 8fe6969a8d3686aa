"""PyramidNet: residual networks whose every block is a little wider than the one before."""

from torch import Tensor, nn
from torch.nn import functional

from .configuration_pyramidnet import PyramidNetConfig
from .modeling_small_image import PooledClassifier, SmallImageClassifier, convolution


class PyramidShortcut(nn.Module):
    """A shortcut without parameters: mean over pixels where the image is halved, zeros for the new channels.

    Args:
        new_channels: channels that go out beyond those that come in, >= 0.
        stride: 1 or 2; the mean is taken over windows of this size, which are cut at the border.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, channels + new_channels, height / stride, width / stride)."""
        return functional.pad(self.pool(hidden), (0, 0, 0, 0, 0, self.new_channels))


class PyramidBasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm before, between and after them, ReLU only between them.

    Args:
        in_channels: channels that come in.
        width: channels that go out.
        stride: of the first convolution and the shortcut.
        dropout: probability, in [0, 1), before the last convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(width, width, 3)
        self.norm3 = nn.BatchNorm2d(width)
        self.shortcut = PyramidShortcut(width - in_channels, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, width, height / stride, width / stride)."""
        residual = functional.relu(self.norm2(self.conv1(self.norm1(hidden))))
        residual = self.norm3(self.conv2(self.dropout(residual)))
        return residual + self.shortcut(hidden)


class PyramidBottleneckBlock(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution with batch norm around each, ReLU only between them.

    Args:
        in_channels: channels that come in.
        width: channels of the 3×3 convolution.
        out_channels: channels that go out.
        stride: of the 3×3 convolution and the shortcut.
        dropout: probability, in [0, 1), before the last convolution.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.norm3 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = convolution(width, out_channels, 1)
        self.norm4 = nn.BatchNorm2d(out_channels)
        self.shortcut = PyramidShortcut(out_channels - in_channels, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        residual = functional.relu(self.norm2(self.conv1(self.norm1(hidden))))
        residual = functional.relu(self.norm3(self.conv2(residual)))
        residual = self.norm4(self.conv3(self.dropout(residual)))
        return residual + self.shortcut(hidden)


class PyramidNetForImageClassification(SmallImageClassifier):
    """PyramidNet for small images: a 3×3 stem with batch norm, then three stages of which two halve the image.

    Source: Han et al., Deep Pyramidal Residual Networks (2017), with additive widening and zero-padded shortcuts,
    their code included (it rounds widths, where the paper writes floor). Departure: widths are rounded from exact
    sums and not from sums that gather rounding errors.

        config = PyramidNetConfig(depth=20, alpha=48, block_type="basic", num_labels=100)
        logits = PyramidNetForImageClassification(config)(torch.rand(2, 3, 32, 32)).logits

    Args:
        config: depth and widths.
    """

    config_class = PyramidNetConfig
    _no_split_modules = ["PyramidBasicBlock", "PyramidBottleneckBlock"]  # noqa: RUF012 (as the base class has it)

    def __init__(self, config: PyramidNetConfig) -> None:
        super().__init__(config)
        self.stem = nn.Sequential()
        self.stem.add_module("conv", convolution(config.num_channels, config.stem_size, 3))
        self.stem.add_module("norm", nn.BatchNorm2d(config.stem_size))
        self.stages = nn.ModuleList()
        channels = config.stem_size
        for index in range(3):
            stage = nn.ModuleList()
            for position in range(config.blocks_per_stage):
                stride = 2 if index > 0 and position == 0 else 1
                width = config.block_width(index * config.blocks_per_stage + position + 1)
                if config.block_type == "basic":
                    stage.append(PyramidBasicBlock(channels, width, stride, config.dropout))
                    channels = width
                else:
                    wide = width * config.expansion
                    stage.append(PyramidBottleneckBlock(channels, width, wide, stride, config.dropout))
                    channels = wide
            self.stages.append(stage)
        self.classifier = PooledClassifier(channels, self.num_labels, config.dropout)
        self.post_init()


__all__ = ["PyramidNetForImageClassification"]
