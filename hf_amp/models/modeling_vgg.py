"""VGG with batch norm: plain stacks of 3×3 convolutions, and a classifier with hidden layers."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from .configuration_vgg import VGGConfig
from .modeling_small_image import SmallImageClassifier


class VGGConvolution(nn.Module):
    """A 3×3 convolution with bias, batch norm, ReLU and dropout.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        dropout: probability, in [0, 1).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height, width)."""
        return self.dropout(functional.relu(self.norm(self.conv(hidden))))


class VGGClassifier(nn.Module):
    """Mean over what is left of the image, hidden layers with ReLU and dropout, linear layer.

    Args:
        in_features: channels of the last stage.
        hidden_sizes: widths of the hidden layers.
        num_labels: classes.
        dropout: probability, in [0, 1), after each hidden layer.
    """

    def __init__(self, in_features: int, hidden_sizes: list[int], num_labels: int, dropout: float) -> None:
        super().__init__()
        sizes = [in_features, *hidden_sizes]
        self.hidden_layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(sizes[-1], num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to logits, (batch, num_labels)."""
        features = hidden.mean((2, 3))
        for layer in self.hidden_layers:
            features = self.dropout(functional.relu(layer(features)))
        return self.linear(features)


class VGGForImageClassification(SmallImageClassifier):
    """VGG with batch norm for small images.

    With five stages an image of 32 pixels ends as one pixel; of a larger one the mean is taken, and the pooling
    leaves a single pixel as it is, so that smaller images work as well.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks (2015), with batch norm after each convolution,
    biased convolutions, and dropout after each ReLU, as in the code of the AMP paper.

        config = VGGConfig(hidden_sizes=[16, 32, 64], depths=[1, 1, 1], classifier_sizes=[], num_labels=100)
        logits = VGGForImageClassification(config)(torch.rand(2, 3, 32, 32)).logits

    Args:
        config: widths and depths.
    """

    config_class = VGGConfig
    _no_split_modules = ["VGGConvolution"]  # noqa: RUF012 (as the base class has it)

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config)
        self.stem = nn.Identity()
        self.stages = nn.ModuleList()
        channels = config.num_channels
        for width, depth in zip(config.hidden_sizes, config.depths, strict=True):
            stage = nn.ModuleList()
            for _ in range(depth):
                stage.append(VGGConvolution(channels, width, config.dropout))
                channels = width
            stage.append(nn.MaxPool2d(2, ceil_mode=True))
            self.stages.append(stage)
        self.classifier = VGGClassifier(channels, config.classifier_sizes, self.num_labels, config.dropout)
        self.post_init()


__all__ = ["VGGForImageClassification"]
