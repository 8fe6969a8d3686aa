"""What an AMP trainer keeps between the steps of one training, and how it learns whether a loss counts its items."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from hf_amp import support
from hf_amp.batches import Batch, tensor_shapes
from hf_amp.inputs import Watch, held
from hf_amp.logs import PerturbationLog
from hf_amp.parameters import all_parameters, stepped_parameters, target_parameters, twin_parameters
from hf_amp.passes import is_compiled, moved_state, reshard, sharded_modules
from hf_amp.perturbation import Perturbation
from hf_amp.third_party import LIBRARIES, loss_of

logger = logging.get_logger(__name__)

STATE_MOVES = (
    "A pass moves state of the model's own ({}). It moves in the ascent, too, so more often than with Trainer, and in "
    "the descent at θ + Δ: hold it still while `trainer.amp_pass` is 'ascent', or move it in a callback "
    "(`on_step_end`), which sees θ."
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class TrainingRun:
    """The memory of one training.

    Args:
        state: the `TrainerState` of the training, by which it is recognised.
        twins: parameters over the same memory, see `twin_parameters`.
        window: the micro-batches of the present optimizer step, as `get_batch_samples` returned them.
        batch: those that share the present Δ; None between optimizer steps.
        clone_inputs: give each pass tensors of its own, since passes change theirs; True until that is known.
        has_stepped: whether `training_step` of the mixin was called.
        is_checked: whether it was asked that AMP can train this; not while it is switched off.
        log: figures since the last log.
        said: warnings that were given.
    """

    state: Any
    twins: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)
    window: list[Any] = field(default_factory=list)
    batch: Batch | None = None
    clone_inputs: bool = True
    has_stepped: bool = False
    is_checked: bool = False
    log: PerturbationLog = field(default_factory=PerturbationLog)
    said: set[str] = field(default_factory=set)
    _known: list[Watch] = field(default_factory=list)
    _is_begun: bool = False
    _changes_inputs: bool = False
    _flos: tuple[Any, float] | None = None
    _sharded: list[Any] | None = None
    _batch_norm: bool | None = None
    _has_watched: bool = False
    _has_watched_state: bool = False
    _ignores_items: bool = False

    def check(self, trainer: Any) -> None:
        """Refuse what AMP cannot train, once: before the first step that it may perturb, and never while it is off."""
        if not self.is_checked and not trainer.amp_settings.switched_off:
            support.check_first_step(trainer)
            self.twins = twin_parameters(all_parameters(trainer.model))
            self.is_checked = True

    def begin_step(self, micro_batches: list[Any]) -> None:
        """Keep the micro-batches of an optimizer step."""
        self.window, self.batch, self._is_begun = micro_batches, None, False
        self._known = [Watch(one) for one in micro_batches]

    def place_of(self, inputs: Any) -> int | None:
        """The place of a micro-batch in its optimizer step; None if it is no part of it, or was changed since."""
        if not self._is_begun and not any(map(Watch.sees, self._known, self.window)):
            self._known = [Watch(one) for one in self.window]  # an override of get_batch_samples has changed them all
        self._is_begun = True
        return next((i for i, known in enumerate(self._known) if known.sees(inputs)), None)

    def batch_of(self, trainer: Any, model: nn.Module, inputs: Any) -> tuple[Batch, int]:
        """Return the batch that shares its Δ with a micro-batch, and the place of the micro-batch in it."""
        amp, place = trainer.amp_settings, self.place_of(inputs)
        self._reshard(model, is_new_step=self.batch is None and place in (None, 0))
        if self.batch is not None and place is not None:
            return self.batch, place
        is_split = max(len(self.window), getattr(trainer, "current_gradient_accumulation_steps", 1)) > 1
        if place is None and is_split and amp.scope == "batch":
            support.refuse_other_inputs(trainer)
            self.say(support.BY_ITSELF.format(type(trainer).__name__))
        by_itself = amp.scope == "micro_batch" or (place is None and is_split)
        together = [inputs] if by_itself or place is None else self.window
        micro_batches = [held(trainer._prepare_inputs(one)) for one in together]
        parameters = all_parameters(model)
        perturbation = Perturbation(target_parameters(parameters, amp.target_parameters), trainer.amp_epsilon, amp.norm)
        batch = Batch(micro_batches, perturbation, stepped_parameters(parameters, trainer.optimizer), by_itself)
        if by_itself or place is None:
            return batch, 0
        self.batch = batch
        return batch, place

    def record(self, trainer: Any, batch: Batch, place: int, amp_loss: Tensor) -> Tensor:
        """Keep the figures of a micro-batch for the next log; return the loss at θ, or at θ + Δ if no pass had that.

        It counts as the loss at θ + Δ does.
        """
        sharpness, erm_loss = None, amp_loss
        if batch.erm_losses is not None:
            erm_loss = batch.erm_losses[place] * (self.times_counted(trainer) / self.times_counted(trainer, batch))
            sharpness = amp_loss - erm_loss
            if trainer.args.logging_nan_inf_filter:  # which keeps such values out of `loss`, too
                sharpness = torch.where(sharpness.isfinite(), sharpness, 0.0)
        share = 1 / getattr(trainer, "current_gradient_accumulation_steps", 1)
        since = getattr(trainer, "_globalstep_last_logged", 0)
        self.log.add(batch.perturbation, share, sharpness, amp_loss.device, since)
        return erm_loss

    def say(self, warning: str, more: str = "") -> None:
        """Warn once in a training."""
        if warning not in self.said:
            self.said.add(warning)
            logger.warning(warning + more)

    def has_batch_norm(self, model: nn.Module | None) -> bool:
        """Whether a pass in training mode normalises with the statistics of its batch; a walk, so once a training."""
        if self._batch_norm is None:
            modules = [] if model is None else model.modules()
            self._batch_norm = any(isinstance(module, _BATCH_NORMS) for module in modules)
        return self._batch_norm

    def _reshard(self, model: nn.Module, is_new_step: bool) -> None:
        """See `passes.reshard`; a walk over all modules, so once a training."""
        if self._sharded is None:
            self._sharded = sharded_modules(model)
            if self._sharded and not hasattr(self._sharded[0], "reset_iter_state"):
                self.say(support.FAILED_PASSES_STAY.format(torch.__version__))
        reshard(self._sharded, is_new_step)

    def note_inputs(self, kind: str, changed: list[str]) -> None:
        """Learn from a pass which of its inputs it changed in place; the first whole step tells."""
        if changed:
            if not self._changes_inputs:
                more = "" if self.clone_inputs else support.INPUTS_CHANGED
                self.say(support.INPUTS_CHANGE.format(", ".join(changed)), more)
            self._changes_inputs = True
            self._known = [Watch(one) for one in self.window]
        if kind == "descent" or changed:
            self.clone_inputs = self._changes_inputs

    @contextmanager
    def state_watched(self, model: Any) -> Iterator[None]:
        """Say so if the first ascent pass moves a queue, an average of the weights, or the like."""
        if self._has_watched_state or model is None:
            yield
            return
        self._has_watched_state = True
        with moved_state(model) as names:
            yield
        if names:
            self.say(STATE_MOVES.format(", ".join(names[:3]) + (", …" if len(names) > 3 else "")))

    def flos_of(self, trainer: Trainer, inputs: Any) -> float:
        """Floating-point operations of a pass; asked for when shapes change: a model walks over its modules for it."""
        shapes = tensor_shapes(inputs)
        if not shapes or self._flos is None or self._flos[0] != shapes:
            self._flos = shapes, float(trainer.floating_point_ops(inputs))
        return self._flos[1]

    def watched(self, trainer: Trainer, inputs: Any, num_items: Any) -> Any:
        """The number of items, watched in the first pass where it matters whether the loss uses it."""
        is_split = len(self.window) > 1 or trainer.args.world_size > 1
        if self._has_watched or type(num_items) is not Tensor or not isinstance(inputs, Mapping) or not is_split:
            return num_items
        self._has_watched = True
        has_said = getattr(trainer, "loss_is_scaled_for_ga", None) is not None
        counts = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        if has_said or not counts or is_compiled(trainer) or loss_of(trainer) in LIBRARIES:
            return num_items
        return WatchedCount.of(num_items)

    def note_items(self, trainer: Trainer, num_items: Any) -> None:
        """Learn from a pass whether the loss uses the number of items; say so if it does not."""
        if not isinstance(num_items, WatchedCount) or num_items.uses:
            return
        if type(trainer).compute_loss is not Trainer.compute_loss:  # which may count in a way of its own
            self.say(support.OWN_LOSS_IGNORES_NUM_ITEMS.format(type(trainer).__name__))
            return
        self._ignores_items = True
        function = trainer.compute_loss_func
        name = type(trainer.model).__name__ if function is None else getattr(function, "__name__", repr(function))
        self.say(support.LOSS_IGNORES_NUM_ITEMS.format(name))

    def times_counted(self, trainer: Any, batch: Batch | None = None) -> float:
        """How many times too large a step's loss is beside that of an evaluation; of a batch: its loss at θ.

        1, unless the model's loss ignores the number of items: then each pass counts in full.
        """
        if not self._ignores_items:
            return 1
        if batch is None or batch.erm_losses is None:
            return max(1, len(self.window))
        if not batch.by_itself:
            return batch.passes
        # Its weight is right; what `Trainer` multiplies by the number of processes is not, with a Δ for each.
        is_apart = trainer.amp_settings.scope == "micro_batch" and trainer.args.average_tokens_across_devices
        return 1 / trainer.accelerator.num_processes if is_apart else 1


class WatchedCount(Tensor):
    """A number of items that notes whether anything was computed with it.

    Most heads of transformers 5 take `num_items_in_batch` and ignore it (87 of 90 for sequence classification in 5.24,
    https://github.com/huggingface/transformers/issues/47688). This finds out in a pass that is made anyway.
    """

    uses: list[str]

    @classmethod
    def of(cls, count: Tensor) -> "WatchedCount":
        """Return the count, watched; `uses` lists what was computed with it."""
        watched = count.detach().as_subclass(cls)
        watched.uses = []
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the function, and compute it with the plain number."""
        name = getattr(func, "__name__", str(func))
        values = [value for arg in args for value in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        uses = next((value.uses for value in values if isinstance(value, WatchedCount)), [])
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if name in _MOVES:
                result = result.as_subclass(cls)
                result.uses = uses
        if name not in _MOVES and name not in _LOOKS:
            uses.append(name)
        return result


_MOVES = ("to", "detach", "cuda", "cpu", "clone")
_LOOKS = ("__get__", "dim", "size", "numel", "is_floating_point", "__repr__", "stride", "storage_offset")
