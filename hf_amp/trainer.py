"""Adversarial model perturbation (AMP) as a Hugging Face Trainer: the order of the passes, and nothing of norms."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from hf_amp.batches import Batch, first_samples, tensor_shapes
from hf_amp.compatibility import (
    LOSS_IGNORES_NUM_ITEMS,
    all_parameters,
    check_target_parameters,
    loss_ignores_num_items,
    refuse_unsupported,
    target_parameters,
    unconnected_processes,
    warn_of_half_precision,
)
from hf_amp.gradient_sync import gradient_sync
from hf_amp.hub.mixin import PublishingMixin
from hf_amp.hub.section import AMPCardMixin
from hf_amp.norm_stats import frozen_norm_stats
from hf_amp.perturbation import Perturbation, gradients_set_aside
from hf_amp.perturbation_log import PerturbationLog
from hf_amp.training_args import AMPSettings

logger = logging.get_logger(__name__)


class AMPTrainerMixin(AMPCardMixin):
    """Makes any `transformers.Trainer` subclass train with adversarial model perturbation.

    `class AMPSeq2SeqTrainer(AMPTrainerMixin, Seq2SeqTrainer): ...`; the mixin comes first. A pass is the training
    step of the class behind it, so losses, label smoothing, autocast and loss scaling are that class's own. The
    settings are the `amp_*` fields of the training arguments (see `AMPArguments`), or their defaults.

    Between calls of `training_step` the parameters are θ, bit for bit, also after an exception in a pass.

    Beside `loss`, the AMP loss at θ + Δ, are logged: `erm_loss`, at θ (on the samples of the ascent), `sharpness`,
    their difference, `perturbation_norm`, ‖Δ‖₂ over all parameters, each averaged as `loss` is (a plain step counts
    with Δ = 0), and `skipped_ascents`, the number of steps whose Δ was 0 because of an inf or nan gradient.

    The model card that the class behind it writes gets a section on the training. For checks before a push, and a card
    of what was recorded, write `class X(AMPTrainerMixin, PublishingMixin, …Trainer)`.

    Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021,
    Algorithm 1. Departures: weights are put back from a copy, not by subtraction; gradients are clipped once, for the
    optimizer, not in the ascent.

    Raises:
        NotImplementedError: for set-ups that AMP cannot train, see `hf_amp.compatibility`.
        TypeError: if the mixin stands behind the Trainer, or twice, in a class's bases.
        ValueError: if an AMP field has a bad value, or no parameter matches `amp_target_parameters`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mixins = [base for base in cls.__mro__ if base.__name__ == AMPTrainerMixin.__name__]
        twice = AMPTrainerMixin in cls.__bases__ and any(
            issubclass(base, AMPTrainerMixin) for base in cls.__bases__ if base is not AMPTrainerMixin
        )
        if len(mixins) > 1 or twice:
            raise TypeError(f"{cls.__name__} has a second AMP mixin in its bases; remove one, a step perturbs once")
        if Trainer in cls.__mro__ and cls.__mro__.index(Trainer) < cls.__mro__.index(AMPTrainerMixin):
            raise TypeError(
                f"{cls.__name__} must name AMPTrainerMixin before its Trainer, or nothing is perturbed; write "
                f"class {cls.__name__}(AMPTrainerMixin, …Trainer)"
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inside_pass = False
        super().__init__(*args, **kwargs)
        self._begin_amp()

    # --- Algorithm 1 ---

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Leave the gradient at θ + Δ in the parameters, which are θ before and after; return the AMP loss, 0-dim."""
        if not self._amp.active_at(self.state.global_step, self.state.max_steps):
            return super().training_step(model, inputs, num_items_in_batch)
        batch, position = self._batch_of(model, inputs)
        self._warn_if_loss_ignores_num_items(batch.micro_batches[position], num_items_in_batch)
        is_last = position == len(batch.micro_batches) - 1
        try:
            perturbation = batch.perturbation or self.find_perturbation(model, batch, num_items_in_batch)
            batch.perturbation = perturbation
            with (
                perturbation.applied(keep_delta=not is_last),
                self._norm_stats_updated(model, self._amp.norm_stats != "clean"),
            ):
                amp_loss = self._pass(model, batch.micro_batches[position], num_items_in_batch)
        except BaseException:
            self._batch = None
            raise
        self._record(perturbation, amp_loss, batch.erm_losses[position] if batch.erm_losses else None)
        if is_last:
            self._batch = None
        return amp_loss

    def find_perturbation(
        self, model: nn.Module, batch: Batch, num_items_in_batch: Tensor | int | None
    ) -> Perturbation:
        """Return the Δ of a batch: N times Δ ← project(Δ + ζ ∇L(θ + Δ)). Override it for another kind of Δ.

        Args:
            model: the model as wrapped for training, with parameters θ.
            batch: all micro-batches that share Δ; its `erm_losses` are filled in.
            num_items_in_batch: what `training_step` was given.
        """
        amp = self._amp
        parameters = all_parameters(model)
        perturbation = Perturbation(target_parameters(parameters, amp.target_parameters), amp.epsilon, amp.norm)
        whole = len(batch.micro_batches)
        micro_batches, samples = first_samples(batch.micro_batches, amp.ascent_fraction)
        with self._ascent_normalisation(micro_batches, num_items_in_batch) as num_items:
            steps = getattr(self, "current_gradient_accumulation_steps", 1)
            # `Trainer` divides each mean loss by the number of micro-batches; a share of them counts by its samples.
            divisors = [steps * sum(samples) / (whole * count) for count in samples]
            for iteration in range(amp.inner_iter):
                updates = amp.norm_stats == "every_pass" or (amp.norm_stats == "clean" and iteration == 0)
                with gradients_set_aside(param for _, param in parameters), perturbation.applied():
                    with self._norm_stats_updated(model, updates):
                        losses = self._ascent_passes(model, micro_batches, divisors, num_items)
                    perturbation.ascend(amp.inner_lr, self._loss_scale())
                if iteration == 0:
                    batch.erm_losses = losses
                    if amp.ascent_fraction < 1.0:
                        batch.erm_losses = [torch.stack(losses).sum() / whole] * whole
        if amp.scope == "micro_batch":
            weight = self._weight_in_step(batch.micro_batches, num_items_in_batch)
            batch.erm_losses = [loss * weight for loss in batch.erm_losses or ()]
        return perturbation

    def _ascent_passes(
        self,
        model: nn.Module,
        micro_batches: list[Any],
        divisors: list[float],
        num_items_in_batch: Tensor | int | None,
    ) -> list[Tensor]:
        """Sum the gradients of all micro-batches, and, in scope "batch", average them over the processes."""
        state = self.accelerator.gradient_state
        each = state.plugin_kwargs.get("sync_each_batch", False)
        outer = each or state.sync_gradients or len(self._window) <= 1
        losses = []
        for i, inputs in enumerate(micro_batches):
            enabled = self._amp.scope == "batch" and (each or i == len(micro_batches) - 1)
            self.current_gradient_accumulation_steps = divisors[i]
            with gradient_sync(self.accelerator, model, enabled, outer):
                losses.append(self._pass(model, inputs, num_items_in_batch))
            self.current_flos += self._flos_of(inputs)
        return losses

    def _flos_of(self, inputs: Any) -> float:
        """Floating-point operations of a pass; asked for when shapes change: a model walks over its modules for it."""
        shapes = tensor_shapes(inputs)
        if not shapes or self._flos is None or self._flos[0] != shapes:
            self._flos = shapes, float(self.floating_point_ops(inputs))
        return self._flos[1]

    # --- one pass ---

    def _pass(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None) -> Tensor:
        """One forward-backward pass at the present weights, as the Trainer class behind this mixin makes it.

        It gets a shallow copy of the inputs: `compute_loss` pops `labels` under label smoothing.
        """
        self._inside_pass = True
        try:
            return super().training_step(model, copy.copy(inputs), num_items_in_batch)
        finally:
            self._inside_pass = False

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs if self._inside_pass else super()._prepare_inputs(inputs)

    def _norm_stats_updated(self, model: nn.Module, update: bool) -> Any:
        return nullcontext() if update else frozen_norm_stats(model)

    def _loss_scale(self) -> Tensor | float:
        """The factor that the gradients carry under fp16, read on the device; 1 without a scaler."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.accelerator.device))

    # --- batches ---

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step, as `Trainer` does, and keep them for the ascent."""
        micro_batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        self._window, self._batch = micro_batches, None
        return micro_batches, num_items_in_batch

    def _batch_of(self, model: nn.Module, inputs: Any) -> tuple[Batch, int]:
        """The batch that shares its Δ with this micro-batch, and the place of the micro-batch in it."""
        # As the Trainer's own step does before it prepares inputs. It must come before any change of weights: a
        # schedule-free optimizer changes them itself when it enters its training mode.
        if not model.training:  # each pass sets it again; a walk over all modules shows in the time of a step
            model.train()
        if callable(enter_training_mode := getattr(self.optimizer, "train", None)):
            enter_training_mode()
        position = next((i for i, one in enumerate(self._window) if one is inputs), None)
        if self._amp.scope == "micro_batch" or position is None:
            return Batch([self._prepare_inputs(inputs)]), 0
        if self._batch is None:
            self._batch = Batch([self._prepare_inputs(one) for one in self._window])
        return self._batch, position

    @contextmanager
    def _ascent_normalisation(
        self, micro_batches: list[Any], num_items_in_batch: Tensor | int | None
    ) -> Iterator[Tensor | int | None]:
        """Make the ascent loss the mean over the data it sees: AMP is not free of the scale of the gradient."""
        args, steps = self.args, getattr(self, "current_gradient_accumulation_steps", 1)
        over_processes = args.average_tokens_across_devices
        if self._amp.scope == "micro_batch":
            args.average_tokens_across_devices = False
            self.current_gradient_accumulation_steps = 1
        try:
            if num_items_in_batch is not None and (self._amp.scope == "micro_batch" or self._amp.ascent_fraction < 1.0):
                num_items_in_batch = self._get_num_items_in_batch(micro_batches, args.device)
            yield num_items_in_batch
        finally:
            args.average_tokens_across_devices = over_processes
            self.current_gradient_accumulation_steps = steps

    def _weight_in_step(self, micro_batches: list[Any], num_items_in_batch: Tensor | int | None) -> Tensor | float:
        """What the mean loss of a micro-batch counts in the loss of its optimizer step."""
        replicas = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        with self._ascent_normalisation(micro_batches, num_items_in_batch) as own_items:
            if own_items is not None and num_items_in_batch is not None:
                weight = torch.as_tensor(own_items * replicas / num_items_in_batch)
                return weight.flatten()[0]  # nn.DataParallel has the same number once for each of its devices
        return 1 / self.current_gradient_accumulation_steps

    # --- start of training, logs ---

    def _begin_amp(self) -> None:
        """Read the settings (hyperparameter search changes them between runs), forget what a former run left."""
        self._amp = AMPSettings.from_args(self.args)
        self._window, self._batch, self._log = [], None, PerturbationLog()
        self._loss_is_checked, self._flos = False, None
        if not self._amp.switched_off:
            refuse_unsupported(self, self._amp)
            if self.model is not None:
                check_target_parameters(self.model, self._amp.target_parameters)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_amp()
        if problem := unconnected_processes(self.args):
            logger.warning(problem)
        if not self._amp.switched_off and self.model is not None:
            warn_of_half_precision(self.model, self._amp.target_parameters)
        return super()._inner_training_loop(*args, **kwargs)

    def _warn_if_loss_ignores_num_items(self, inputs: Any, num_items_in_batch: Tensor | int | None) -> None:
        """Once a training, where it matters and Trainer's own `compute_loss` is at work, so that it is sure."""
        split = len(self._window) > 1 or self.args.world_size > 1
        plain_loss = type(self).compute_loss is Trainer.compute_loss and self.label_smoother is None
        if self._loss_is_checked or not split or not plain_loss or self.compute_loss_func is not None:
            return
        self._loss_is_checked = True
        if num_items_in_batch is None or not isinstance(inputs, Mapping) or not self.model_accepts_loss_kwargs:
            return
        if self.model is not None and loss_ignores_num_items(self.model, inputs, num_items_in_batch):
            logger.warning(LOSS_IGNORES_NUM_ITEMS.format(type(self.model).__name__))

    def _record(self, perturbation: Perturbation, amp_loss: Tensor, erm_loss: Tensor | None) -> None:
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        values = {
            "perturbation_norm": perturbation.norm * share,
            "skipped_ascents": perturbation.skipped * share,
        }
        if erm_loss is not None:
            sharpness = amp_loss - erm_loss
            if self.args.logging_nan_inf_filter:  # which keeps such values out of `loss`, too
                sharpness = torch.where(sharpness.isfinite(), sharpness, 0.0)
            values["sharpness"] = sharpness
        last_logged = getattr(self, "_globalstep_last_logged", 0)
        self._log.add({name: value.to(amp_loss.device) for name, value in values.items()}, last_logged)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, with the figures of AMP beside the training loss."""
        # Only the Trainer's own report has just moved `_globalstep_last_logged`; a `loss` that user code logs in the
        # middle of a step, perhaps in one process alone, must not start a collective call.
        if "loss" in logs and self._globalstep_last_logged == self.state.global_step:
            self._log.drain_into(logs, self.state.global_step, self.accelerator.gather)
        super().log(logs, *args, **kwargs)


class AMPTrainer(AMPTrainerMixin, PublishingMixin, Trainer):
    """`transformers.Trainer` with adversarial model perturbation; see `AMPTrainerMixin` and `AMPArguments`.

    Takes what `Trainer` takes. Plain `TrainingArguments` work too; the AMP fields then have their defaults. Publishing
    is described in `PublishingMixin`.
    """
