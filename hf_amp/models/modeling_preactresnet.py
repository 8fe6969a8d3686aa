"""PreActResNet: residual networks with batch norm and ReLU before each convolution."""

from torch import Tensor, nn
from torch.nn import functional

from .configuration_preactresnet import PreActResNetConfig
from .modeling_small_image import PooledClassifier, SmallImageClassifier, convolution


class PreActBasicBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, beside a shortcut.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution and the shortcut.
        dropout: probability, in [0, 1), before the last convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(out_channels, out_channels, 3)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = convolution(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        activated = functional.relu(self.norm1(hidden))
        residual = functional.relu(self.norm2(self.conv1(activated)))
        residual = self.conv2(self.dropout(residual))
        return residual + (hidden if self.shortcut is None else self.shortcut(activated))


class PreActBottleneckBlock(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution, each after batch norm and ReLU, beside a shortcut.

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
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = convolution(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        activated = functional.relu(self.norm1(hidden))
        residual = functional.relu(self.norm2(self.conv1(activated)))
        residual = functional.relu(self.norm3(self.conv2(residual)))
        residual = self.conv3(self.dropout(residual))
        return residual + (hidden if self.shortcut is None else self.shortcut(activated))


class PreActResNetForImageClassification(SmallImageClassifier):
    """PreActResNet for small images: a 3×3 stem without pooling, then stages that halve the image.

    Source: He et al., Identity Mappings in Deep Residual Networks (2016). Departures from the code of the AMP
    paper: no convolution has a bias (theirs have, inside the blocks), a shortcut without convolution carries the
    input of the block and not its activation, both as He et al. have it, and the bottleneck halves in its 3×3
    convolution.

        config = PreActResNetConfig(hidden_sizes=[16, 32, 64], depths=[1, 1, 1], num_labels=100)
        logits = PreActResNetForImageClassification(config)(torch.rand(2, 3, 32, 32)).logits

    Args:
        config: widths and depths.
    """

    config_class = PreActResNetConfig
    _no_split_modules = ["PreActBasicBlock", "PreActBottleneckBlock"]  # noqa: RUF012 (as the base class has it)

    def __init__(self, config: PreActResNetConfig) -> None:
        super().__init__(config)
        self.stem = convolution(config.num_channels, config.stem_size, 3)
        self.stages = nn.ModuleList()
        channels = config.stem_size
        for index, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            stage = nn.ModuleList()
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                if config.block_type == "basic":
                    stage.append(PreActBasicBlock(channels, width, stride, config.dropout))
                    channels = width
                else:
                    wide = width * config.expansion
                    stage.append(PreActBottleneckBlock(channels, width, wide, stride, config.dropout))
                    channels = wide
            self.stages.append(stage)
        self.classifier = PooledClassifier(channels, self.num_labels, config.dropout)
        self.post_init()


__all__ = ["PreActResNetForImageClassification"]
