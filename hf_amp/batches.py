"""The data of one perturbation: its micro-batches, the share of them that the ascent sees, and what each counts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from hf_amp.inputs import rebuilt
from hf_amp.passes import attributes
from hf_amp.perturbation import Perturbation

# Where the number of samples is looked for first. What else has another length stays whole: masks, weights of classes.
_LABELS = ("labels", "label", "label_ids", "start_positions")
_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds", "decoder_input_ids")
# Lengths and places in flattened sequences: such a batch has no row for each sample.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "image_grid_thw", "video_grid_thw", "seq_lengths")


@dataclass(frozen=True)
class Samples:
    """How a prepared micro-batch is cut, for `amp_ascent_fraction`.

    Rows that belong together, say all chosen answers and then all rejected ones, stay together so:

        def samples_of(self, inputs):  # of a Trainer
            pairs = len(inputs["input_ids"]) // 2

            def take(count):
                rows = [*range(count), *range(pairs, pairs + count)]
                return {name: value[rows] for name, value in inputs.items()}

            return Samples(pairs, take)

    Args:
        size: number of samples, >= 1.
        take: returns the inputs of the first n samples, 1 <= n < size, and leaves the micro-batch as it is.
        least: the fewest samples that make sense by themselves, e.g. 2 where they are compared with each other.
    """

    size: int
    take: Callable[[int], Any]
    least: int = 1


@dataclass
class Batch:
    """The micro-batches that share one Δ, each prepared (moved to its device) once for all passes.

    Args:
        micro_batches: what `Trainer._prepare_inputs` returned for each.
        perturbation: their Δ, 0 until it is found.
        parameters: those whose gradients are set aside while it is looked for.
        by_itself: whether it is a micro-batch that has its Δ for itself, not the whole batch of an optimizer step.
        is_found: whether Δ is found.
        erm_losses: loss at θ of each micro-batch, 0-dim, as it counts in the loss of the optimizer step; of a share of
            the batch, equal parts; None if no pass was made at θ.
        passes: number of losses that these sum.
    """

    micro_batches: list[Any]
    perturbation: Perturbation
    parameters: list[nn.Parameter]
    by_itself: bool = False
    is_found: bool = False
    erm_losses: list[Tensor] | None = None
    passes: int = 0


@dataclass(frozen=True)
class Ascent:
    """What the ascent passes see, and what each of their losses counts.

    Args:
        micro_batches: inputs of the passes.
        divisors: what each mean loss is divided by, so that they add up to the mean over all samples.
        num_items: what a loss that is a sum is divided by; None: it is a mean.
        over_processes: whether those are the items of all processes.
        weight: of the losses in the loss of the optimizer step.
        is_share: whether a share of the batch was asked for.
        is_cut: whether samples could be told apart for it; without them it is all of the batch.
    """

    micro_batches: list[Any]
    divisors: list[float]
    num_items: Tensor | int | None
    over_processes: bool
    weight: Tensor | float
    is_share: bool
    is_cut: bool

    def parts(self, losses: list[Tensor], count: int) -> list[Tensor]:
        """Return what the losses of the passes are for each of `count` micro-batches, in the loss of the step."""
        if self.is_share:
            losses = [torch.stack(losses).sum() / count] * count
        return [loss * self.weight for loss in losses]


def first_samples(
    micro_batches: list[Any], fraction: float, samples_of: Callable[[Any], Samples] | None = None
) -> tuple[list[Any], list[int]]:
    """Return the first `fraction` of the samples of a batch, rounded, at least one, in its first micro-batches.

    What is returned does not depend on how the batch is split, and takes as few passes as possible. The inputs
    themselves are not changed.

    Args:
        micro_batches: inputs of any kind that `samples_of` knows.
        fraction: share in (0, 1].
        samples_of: how a micro-batch is cut; None: `rows_of`.

    Returns:
        the inputs to use, and what the mean loss of each counts: its number of samples. For the whole batch they all
        count the same, as they do for `Trainer`.
    """
    if fraction == 1.0:
        return micro_batches, [1] * len(micro_batches)
    all_samples = [(samples_of or rows_of)(inputs) for inputs in micro_batches]
    left = max(1, int(fraction * sum(samples.size for samples in all_samples) + 0.5))
    share, counts = [], []
    for inputs, samples in zip(micro_batches, all_samples, strict=True):
        if left > 0:
            count = min(max(left, samples.least), samples.size)
            share.append(inputs if count == samples.size else samples.take(count))
            counts.append(count)
            left -= count
    return share, counts


def rows_of(inputs: Any) -> Samples:
    """Return the samples of inputs in which every tensor, or list, that belongs to them has a row for each.

    The number of samples is that of the labels, else of the usual inputs of models, else the length that most tensors
    and lists have. Whatever has another length, such as weights of classes or a mask of shape (1, length), stays whole.
    Inputs without rows, and such as are packed into one sequence, are one sample.
    """
    size = _number_of_rows(inputs)
    return Samples(size, lambda count: _cut(inputs, size, count))


def _number_of_rows(inputs: Any) -> int:
    if not isinstance(inputs, Mapping):
        lengths = [length for length in map(_rows, _leaves(inputs)) if length]
        return _most_common(lengths)
    found = {name: _rows(value) for name, value in inputs.items()}
    if any(name in found for name in _PACKED):
        return 1
    main = [found[name] for name in _INPUTS if found.get(name)]
    if len(set(main)) > 1:  # pieces of images, say, beside sequences
        return 1
    named = [found[name] for name in _LABELS if found.get(name)] + main
    if named:
        return named[0] or 1
    return _most_common([length for length in map(_rows, _leaves(inputs)) if length])


def _most_common(lengths: list[int]) -> int:
    counted = Counter(lengths)
    return max(counted, key=lambda length: (counted[length], length)) if counted else 1


def _rows(value: Any) -> int | None:
    """Length of a tensor's first dimension or of a list of samples; None for anything else."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() > 0 else None
    return len(value) if isinstance(value, (list, tuple)) else None


def _leaves(data: Any) -> Iterator[Any]:
    """The tensors and the lists of other things in nested inputs."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _leaves(value)
    elif isinstance(data, (list, tuple)):
        if any(isinstance(value, (Tensor, Mapping, list, tuple)) for value in data):
            for value in data:
                yield from _leaves(value)
        else:
            yield data


def _cut(data: Any, size: int, count: int) -> Any:
    if isinstance(data, Tensor):
        return data[:count] if data.dim() > 0 and data.shape[0] == size else data
    if isinstance(data, (list, tuple)) and len(data) == size:
        return data[:count]
    return rebuilt(data, lambda value: _cut(value, size, count))


def ascent_of(trainer: Any, batch: Batch, num_items: Tensor | int | None) -> Ascent:
    """Return what the ascent of a batch sees, counted so that its loss is the mean over it: AMP is not free of scale.

    Args:
        trainer: an AMP trainer.
        batch: its micro-batches.
        num_items: the number of items of the optimizer step, as `training_step` was given it.
    """
    amp, steps = trainer.amp_settings, getattr(trainer, "current_gradient_accumulation_steps", 1)
    micro_batches, counts = first_samples(batch.micro_batches, amp.ascent_fraction, trainer.samples_of)
    # `Trainer` divides each mean loss by the number of micro-batches; a share of them counts by its samples.
    whole = sum(counts) / (1 if batch.by_itself else len(batch.micro_batches) / steps)
    divisors = [whole / count for count in counts]
    in_one_process = amp.scope == "micro_batch"
    over_processes = trainer.args.average_tokens_across_devices and not in_one_process
    items = num_items
    if num_items is not None and (batch.by_itself or amp.ascent_fraction < 1.0):
        with attributes(trainer.args, average_tokens_across_devices=over_processes):
            items = trainer._get_num_items_in_batch(micro_batches, trainer.args.device)
    weight = _weight(trainer, items, num_items, steps, in_one_process) if batch.by_itself else 1.0
    is_share = amp.ascent_fraction < 1.0
    is_less = any(share is not whole for share, whole in zip_longest(micro_batches, batch.micro_batches))
    is_cut = is_less or sum(counts) > len(counts)  # rounded up, it may be all of the samples
    return Ascent(micro_batches, divisors, items, over_processes, weight, is_share, is_cut)


def _weight(trainer: Any, items: Any, num_items: Any, steps: float, in_one_process: bool) -> Tensor | float:
    """What the mean loss of a micro-batch counts in the loss of its optimizer step."""
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if is_scaled is None:
        is_scaled = (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func
        if is_scaled and num_items is None:
            return 1.0  # `compute_loss_func` alone scales it, and was told no number
    if is_scaled and items is not None and num_items is not None:
        divided_by_all = in_one_process and trainer.args.average_tokens_across_devices
        replicas = trainer.accelerator.num_processes if divided_by_all else 1
        return torch.as_tensor(items * replicas / num_items).flatten()[0]  # nn.DataParallel: once for each device
    return 1 / steps


def tensor_shapes(inputs: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that a mapping holds; none for inputs of another kind."""
    values = inputs.values() if isinstance(inputs, Mapping) else ()
    return [tuple(value.shape) for value in values if isinstance(value, Tensor)]
