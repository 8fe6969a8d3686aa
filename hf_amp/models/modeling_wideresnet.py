"""WideResNet: shallow and wide residual networks with batch norm and ReLU before each convolution."""

from torch import Tensor, nn
from torch.nn import functional

from .configuration_wideresnet import WideResNetConfig
from .modeling_small_image import PooledClassifier, SmallImageClassifier, convolution


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, with dropout between them, beside a shortcut.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution and the shortcut.
        dropout: probability, in [0, 1), between the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = convolution(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        activated = functional.relu(self.norm1(hidden))
        residual = self.dropout(self.conv1(activated))
        residual = self.conv2(functional.relu(self.norm2(residual)))
        return residual + (hidden if self.shortcut is None else self.shortcut(activated))


class WideResNetForImageClassification(SmallImageClassifier):
    """WideResNet for small images: a 3×3 stem without pooling, then three stages of which two halve the image.

    Source: Zagoruyko and Komodakis, Wide Residual Networks (2016), their code included. Departures from the code of
    the AMP paper: the first convolution of a stage halves and not the second, the shortcut's convolution sees the
    activation and not the input of the block, and the last batch norm has the usual momentum of 0.1, not 0.9.
    As there, dropout is also applied before the linear layer.

        config = WideResNetConfig(depth=16, widen_factor=2, num_labels=100)
        logits = WideResNetForImageClassification(config)(torch.rand(2, 3, 32, 32)).logits

    Args:
        config: depth and widths.
    """

    config_class = WideResNetConfig
    _no_split_modules = ["WideBlock"]  # noqa: RUF012 (as the base class has it)

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        self.stem = convolution(config.num_channels, config.stem_size, 3)
        self.stages = nn.ModuleList()
        channels = config.stem_size
        for index, narrow in enumerate(config.hidden_sizes):
            width = narrow * config.widen_factor
            stage = nn.ModuleList()
            for position in range((config.depth - 4) // 6):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(WideBlock(channels, width, stride, config.dropout))
                channels = width
            self.stages.append(stage)
        self.classifier = PooledClassifier(channels, self.num_labels, config.dropout)
        self.post_init()


__all__ = ["WideResNetForImageClassification"]
