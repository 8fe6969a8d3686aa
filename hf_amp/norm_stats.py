"""Keep the running statistics of normalisation layers as they are during a forward-backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_norm_stats(model: nn.Module) -> Iterator[None]:
    """Run passes in training mode that leave the running statistics of `model` untouched.

    The layers still normalise with the statistics of their batch. The buffers are saved and put back rather than
    switched off (`momentum = 0` would go on counting batches, `track_running_stats = False` would not stop the
    update), so this also holds under gradient checkpointing, which runs a forward pass twice, for subclasses with a
    forward of their own, and for compiled models, whose guards see no changed attribute.

    Args:
        model: any module; every buffer named `running_mean`, `running_var` or `num_batches_tracked` is kept.
    """
    buffers = running_statistics(model)
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers of `model` that hold running statistics of normalisation layers."""
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS]
