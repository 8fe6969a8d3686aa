"""The data that one perturbation belongs to, and the share of it that the ascent passes see."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from hf_amp.perturbation import Perturbation


@dataclass
class Batch:
    """The micro-batches that share one Δ, each prepared (moved to its device) once for all passes.

    Args:
        micro_batches: what `Trainer._prepare_inputs` returned for each.
        perturbation: Δ, once it is found.
        erm_losses: loss at θ of each micro-batch, 0-dim, or its equal part of the loss of the samples that the ascent
            saw; None if no pass was made at θ.
    """

    micro_batches: list[Any]
    perturbation: Perturbation | None = None
    erm_losses: list[Tensor] | None = None


def first_samples(micro_batches: list[Any], fraction: float) -> tuple[list[Any], list[int]]:
    """Return the first `fraction` of the samples of a batch, rounded, at least one, in its first micro-batches.

    What is returned does not depend on how the batch is split, and takes as few passes as possible. The inputs
    themselves are not changed.

    Args:
        micro_batches: tensors of shape (micro-batch, ...) in mappings, lists and tuples, nested as models take them.
            Lists of that length are cut too; everything else, e.g. a mask of shape (1, length), stays whole, and so
            do inputs without tensors, which count as one sample.
        fraction: share in (0, 1].

    Returns:
        the inputs to use, and what the mean loss of each counts: its number of samples. For the whole batch they all
        count the same, as they do for `Trainer`.
    """
    if fraction == 1.0:
        return micro_batches, [1] * len(micro_batches)
    sizes = [find_batch_size(inputs) or 1 for inputs in micro_batches]
    left = max(1, int(fraction * sum(sizes) + 0.5))
    share, counts = [], []
    for inputs, size in zip(micro_batches, sizes, strict=True):
        if left > 0:
            counts.append(min(left, size))
            share.append(inputs if left >= size else _cut(inputs, size, left))
            left -= size
    return share, counts


def tensor_shapes(inputs: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that a mapping holds; none for inputs of another kind."""
    values = inputs.values() if isinstance(inputs, Mapping) else ()
    return [tuple(value.shape) for value in values if isinstance(value, Tensor)]


def _cut(data: Any, size: int, count: int) -> Any:
    if isinstance(data, Tensor):
        return data[:count] if data.dim() > 0 and data.shape[0] == size else data
    if isinstance(data, Mapping):
        shares = copy.copy(data)
        for key, value in data.items():
            shares[key] = _cut(value, size, count)  # type: ignore[index]
        return shares
    if isinstance(data, (list, tuple)):
        if len(data) == size:
            return data[:count]
        cut = [_cut(value, size, count) for value in data]
        return type(data)(*cut) if hasattr(data, "_fields") else type(data)(cut)
    return data
