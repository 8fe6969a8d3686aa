"""What all networks for small images have in common: stages of blocks, head, loss, hidden states, checkpointing."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_small_image import SmallImageConfig, check_integer


class SmallImageClassifier(PreTrainedModel):
    """A classifier of small images: `stem`, `stages` of blocks, `classifier`; a subclass makes these three.

    Convolutions are drawn He-normal by fan-out, linear layers as PyTorch draws them but with zero bias, and batch
    norms start as the identity, as in the authors' code of the AMP paper. Departure: biases of convolutions, which
    VGG has and the batch norm after them takes out again, start at zero and not as PyTorch draws them.

    Args:
        config: widths, depths and classes.

    Raises:
        ValueError: a field of the configuration is out of its range.
        TypeError: a field of the configuration is of the wrong type.
    """

    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # The loss is the mean over the micro-batch; so the Trainer must divide by the number of micro-batches.
    accepts_loss_kwargs = False
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    config: SmallImageConfig
    stem: nn.Module
    stages: nn.ModuleList
    classifier: nn.Module

    def __init__(self, config: SmallImageConfig) -> None:
        super().__init__(config)
        config.check()  # again, since fields can be changed after the configuration was made
        self.num_labels = check_integer("num_labels", config.num_labels)

    def post_init(self) -> None:
        """Draw the weights, and name the blocks of this network only."""
        # A class names the blocks of all its variants; FSDP's wrapping refuses a name that a network has no block of.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in self._no_split_modules or () if name in present]
        super().post_init()

    def get_input_embeddings(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return None: images have no token embeddings, and Accelerate asks for them before it shards a model."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
        else:
            super()._init_weights(module)
            return
        if module.bias is not None:
            init.zeros_(module.bias)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """Classify images.

        Args:
            pixel_values: (batch, channels, height, width) float, normalised.
            labels: (batch,) integer classes, or (batch, num_labels) float probabilities, as MixUp makes them.
            output_hidden_states: return what comes out of the stem (where there is one) and of each stage, as
                (batch, channels, height, width); default `config.output_hidden_states`.
            return_dict: return an output object and not a tuple; default `config.return_dict`.

        Returns:
            `loss`, the mean cross entropy over the batch, if there are labels; `logits`: (batch, num_labels);
            `hidden_states` if asked for.

        Raises:
            ValueError: wrong shape.
            TypeError: wrong dtype.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = self._hidden_states(pixel_values.to(self._weight_dtype()))
        logits = self.classifier(states[-1])
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        output = ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=states if wants_states else None
        )
        wants_object = self.config.return_dict if return_dict is None else return_dict
        return output if wants_object else output.to_tuple()

    def _weight_dtype(self) -> torch.dtype:
        """Return the dtype of the first convolution; `self.dtype` finds no parameters in a replica of DataParallel."""
        return next(module.weight.dtype for module in self.modules() if isinstance(module, nn.Conv2d))

    def _hidden_states(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return what comes out of the stem, where there is one, and of each stage."""
        hidden = self.stem(pixel_values)
        states = () if isinstance(self.stem, nn.Identity) else (hidden,)
        for stage in self.stages:
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues] (a module list)
                hidden = self._run_block(block, hidden)
            states = (*states, hidden)
        return states

    def _run_block(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block, and under gradient checkpointing keep nothing of it but its input."""
        # Reentrant checkpointing would lose the gradient of a block whose input needs none, as VGG's first.
        if not (self.gradient_checkpointing and self.training and hidden.requires_grad):
            return block(hidden)
        # The compiler decides by itself what to run again, and updates running statistics once.
        run = block if torch.compiler.is_compiling() else CheckpointedBlock(block)
        return self._gradient_checkpointing_func(run, hidden)


class CheckpointedBlock:
    """One run of a block, whose batch norms see the batch once although checkpointing runs the block again.

    Without this the running statistics would move twice per batch, and evaluation would differ from a training
    without checkpointing.

    Args:
        block: maps (batch, channels, height, width) to the same with other sizes.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.has_run = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block; from the second call on, keep its running statistics as they are."""
        if not self.has_run:
            self.has_run = True
            return self.block(hidden)
        kept = [
            (norm, norm.momentum, count, count.clone())
            for norm in self.block.modules()
            if isinstance(norm, _BatchNorm) and (count := norm.num_batches_tracked) is not None
        ]
        try:
            for norm, *_ in kept:
                norm.momentum = 0.0  # running statistics stay; writing them back would spoil the backward pass
            return self.block(hidden)
        finally:  # checkpointing leaves a block by an exception once it has all that it needs
            for norm, momentum, count, value in kept:
                norm.momentum = momentum
                count.copy_(value)


class PooledClassifier(nn.Module):
    """Head of the residual networks: batch norm, ReLU, mean over the image, dropout, linear layer.

    Args:
        in_channels: channels of the last stage.
        num_labels: classes.
        dropout: probability, in [0, 1).
    """

    def __init__(self, in_channels: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to logits, (batch, num_labels)."""
        return self.linear(self.dropout(functional.relu(self.norm(hidden)).mean((2, 3))))


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, which divides height and width by the stride and rounds up."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def check_pixel_values(pixel_values: Tensor, num_channels: int) -> None:
    """Raise unless the images are a float tensor of shape (batch, num_channels, height, width) with pixels."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` must have shape (batch, {num_channels}, height, width), got {shape}; put the channels "
            f"second, or make the model with another `num_channels`"
        )
    if 0 in shape[2:]:
        raise ValueError(
            f"`pixel_values` must have height and width >= 1, got {shape}; look at how the images "
            "were resized or cropped"
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"`pixel_values` must be floating point, got {pixel_values.dtype}; scale and normalise the images first"
        )


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the batch of the cross entropy, at least in single precision.

    Args:
        logits: (batch, num_labels) float.
        labels: (batch,) integer classes, or (batch, num_labels) float probabilities.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: wrong shape.
        TypeError: labels are neither integers nor floating point.
    """
    batch, num_labels = logits.shape
    if labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"`labels` must be integer classes or float probabilities, got {labels.dtype}; convert them")
    soft = labels.is_floating_point()
    expected, kind = ((batch, num_labels), "float probabilities") if soft else ((batch,), "integer classes")
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"`labels` that are {kind} must have shape {expected}, got {tuple(labels.shape)}; give integers of shape "
            f"({batch},) or floats of shape ({batch}, {num_labels})"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, labels.to(logits.dtype if soft else torch.long))
