"""Adversarial model perturbation (AMP) as a Hugging Face Trainer: the order of the passes, and nothing of norms."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Trainer

from hf_amp import passes, support
from hf_amp.batches import Ascent, Batch, Samples, ascent_of, rows_of
from hf_amp.hub.mixin import PublishingMixin
from hf_amp.hub.section import AMPCardMixin
from hf_amp.inputs import Watch, copied, insides_put_back
from hf_amp.parameters import fold_gradients
from hf_amp.perturbation import Perturbation, forget_copies
from hf_amp.radius import RadiusMixin
from hf_amp.third_party import figures_held, samples_of_known
from hf_amp.training_run import TrainingRun


class AMPTrainerMixin(RadiusMixin, AMPCardMixin):
    """Makes any `transformers.Trainer` subclass train with adversarial model perturbation.

        class AMPSeq2SeqTrainer(AMPTrainerMixin, Seq2SeqTrainer): ...

    A pass is the training step of the class behind the mixin, so losses, label smoothing, autocast and loss scaling are
    that class's own. The settings are the `amp_*` fields of the training arguments (`AMPArguments`), or their defaults.

    Between calls of `training_step` the parameters are θ, bit for bit, also after an exception in a pass. Perturbed are
    trainable parameters of `model`; those that the optimizer has beside them (of a loss with parameters of its own) are
    not, and their gradient is that of the descent alone. Every pass sees the same inputs.

    Beside `loss`, the AMP loss at θ + Δ, are logged: `erm_loss`, at θ (on the samples of the ascent), `sharpness`,
    their difference, `perturbation_norm`, ‖Δ‖₂ over all parameters, each averaged as `loss` is (a plain step counts
    with Δ = 0), and `skipped_ascents`, the number of steps whose Δ was 0 because of an inf or nan gradient.

    The model card that the class behind it writes gets a section on the training. For checks before a push, and a card
    of what was recorded, write `class X(AMPTrainerMixin, PublishingMixin, …Trainer)`.

    State that moves in every forward pass (queues, running means other than those of normalisation layers) moves in
    the ascent, too, and so do figures that `compute_loss` collects (not those of trl and sentence-transformers).
    `amp_pass` tells which pass is running: there, `model.update_queue = self.amp_pass != "ascent"` holds a queue still.

    Attributes:
        amp_pass: `"ascent"` or `"descent"` while such a pass of a perturbed step runs; None at any other time.

    Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021,
    Algorithm 1. Departures: weights are put back from a copy, not by subtraction; gradients are clipped once, for the
    optimizer, not in the ascent.

    Raises:
        NotImplementedError: for set-ups that AMP cannot train, see `hf_amp.support`.
        TypeError: if the mixin stands behind the Trainer, or twice, in a class's bases, or before no Trainer.
        ValueError: if an AMP field has a bad value, or no parameter matches `amp_target_parameters`.
    """

    amp_pass: str | None = None
    _run: TrainingRun | None = None

    # --- Algorithm 1 ---

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Leave the gradient at θ + Δ in the parameters, which are θ before and after; return the AMP loss, 0-dim."""
        run = self._running()
        run.has_stepped = True
        if not (self.amp_epsilon and self.amp_settings.active_at(self.state.global_step, self.state.max_steps)):
            return self._plain_step(model, inputs, num_items_in_batch)
        try:
            passes.enter_training_mode(model, self.optimizer)
            batch, i = run.batch_of(self, model, inputs)
            is_last = i == len(batch.micro_batches) - 1
            with batch.perturbation.applied(keep_delta=not is_last):
                if not batch.is_found:
                    self._ascend(model, batch, num_items_in_batch)
                amp_loss = self._pass("descent", model, batch.micro_batches[i], num_items_in_batch)
        except BaseException:
            run.batch = None
            raise
        erm_loss = run.record(self, batch, i, amp_loss)
        self._note_losses(inputs, erm_loss / run.times_counted(self), amp_loss / run.times_counted(self))
        if is_last:
            run.batch = None
        return amp_loss

    def _plain_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """A micro-batch as `Trainer` trains it."""
        run = self._running()
        if self.amp_settings.epsilon is None:
            num_items_in_batch = run.watched(self, inputs, num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        run.note_items(self, num_items_in_batch)
        self._note_losses(inputs, loss / run.times_counted(self))
        return loss

    def find_perturbation(self, perturbation: Perturbation, ascent_pass: Callable[[], Tensor | float]) -> None:
        """Find Δ: N times Δ ← project(Δ + ζ ∇L(θ + Δ)). Override it for another kind of Δ.

        A random one is `perturbation.randomize(generator)`, without a pass. `amp_settings` and `state` tell the rest.

        Args:
            perturbation: applied, with Δ = 0: the parameters are θ + Δ, and its `ascend` and `randomize` move them.
            ascent_pass: leaves the gradient of the ascent's data at θ + Δ in the parameters, averaged over processes,
                and returns the factor that it carries (the loss scale under fp16, else 1).
        """
        for _ in range(self.amp_settings.inner_iter):
            grad_scale = ascent_pass()
            perturbation.ascend(self.amp_settings.inner_lr, grad_scale)

    def _ascend(self, model: nn.Module, batch: Batch, num_items_in_batch: Tensor | int | None) -> None:
        """Find the Δ of a batch, with the gradients that are accumulated set aside."""
        ascent = ascent_of(self, batch, num_items_in_batch)
        run = self._running()
        if ascent.is_share and not ascent.is_cut:
            run.say(support.NOTHING_TO_CUT.format(self.amp_settings.ascent_fraction))

        def ascent_pass() -> Tensor | float:
            passes.clear_gradients(batch.parameters)
            is_clean = batch.erm_losses is None
            losses = self._ascent_passes(model, ascent, is_clean)
            fold_gradients(run.twins)
            if is_clean:
                batch.erm_losses, batch.passes = ascent.parts(losses, len(batch.micro_batches)), len(losses)
            return passes.loss_scale(self.accelerator)

        with passes.gradients_set_aside(batch.parameters):
            self.find_perturbation(batch.perturbation, ascent_pass)
        batch.is_found = True

    def _ascent_passes(self, model: nn.Module, ascent: Ascent, is_clean: bool) -> list[Tensor]:
        """Sum the gradients of all micro-batches, and, in scope "batch", average them over the processes."""
        run, state = self._running(), self.accelerator.gradient_state
        each = state.plugin_kwargs.get("sync_each_batch", False)
        outer = each or state.sync_gradients or len(run.window) <= 1
        losses = []
        for i, (inputs, divisor) in enumerate(zip(ascent.micro_batches, ascent.divisors, strict=True)):
            enabled = self.amp_settings.scope == "batch" and (each or i == len(ascent.micro_batches) - 1)
            num_items = run.watched(self, inputs, ascent.num_items)
            with (
                passes.attributes(self, current_gradient_accumulation_steps=divisor),
                passes.attributes(self.args, average_tokens_across_devices=ascent.over_processes),
                passes.gradient_sync(self.accelerator, model, enabled, outer),
                figures_held(self),
            ):
                losses.append(self._pass("ascent", model, inputs, num_items, is_clean))
            run.note_items(self, num_items)
            self.current_flos += run.flos_of(self, inputs)
        return losses

    # --- one pass ---

    def _pass(self, kind: str, model: nn.Module, inputs: Any, num_items: Any, is_clean: bool = False) -> Tensor:
        """One forward-backward pass at the present weights, as the Trainer class behind this mixin makes it."""
        run, stats = self._running(), self.amp_settings.norm_stats
        own = copied(inputs, clone=run.clone_inputs)
        forget_copies()
        with ExitStack() as stack:
            if stats not in ("every_pass", "clean" if is_clean else kind):
                stack.enter_context(passes.frozen_norm_stats(model))
            if kind == "ascent":
                stack.enter_context(insides_put_back(own, clone=run.clone_inputs))
                stack.enter_context(run.state_watched(self.model))
            stack.enter_context(passes.attributes(self, amp_pass=kind, _prepare_inputs=passes.prepared(self, own)))
            watch = Watch(own)
            loss = super().training_step(model, own, num_items)
            run.note_inputs(kind, watch.changed())
        return loss

    # --- batches ---

    def samples_of(self, inputs: Any) -> Samples:
        """Say how a prepared micro-batch is cut for `amp_ascent_fraction` < 1. Override it for batches of another kind.

        By default every tensor, or list, that belongs to the samples has a row for each (`hf_amp.batches.rows_of`), and
        at least two are taken where batch norm needs them. `hf_amp.batches.Samples` has an example of another way.

        Args:
            inputs: what `_prepare_inputs` returned.
        """
        samples = samples_of_known(self, inputs) or rows_of(inputs)
        needed = 2 if self._running().has_batch_norm(self.model) else 1
        return replace(samples, least=max(needed, samples.least))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step, as `Trainer` does, and keep them for the ascent."""
        run = self._running()
        if run.window and not run.has_stepped and not self.amp_settings.switched_off:
            run.say(support.NEVER_STEPS.format(type(self).__name__))
        micro_batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        run.begin_step(micro_batches)
        return micro_batches, num_items_in_batch

    # --- start of training, logs ---

    def _running(self) -> TrainingRun:
        """What is kept of the present training, which begins with the first call."""
        if self._run is None or self._run.state is not self.state:
            self._run = TrainingRun(self.state)
        self._run.check(self)
        return self._run

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, with the figures of AMP beside the training loss."""
        # Only the Trainer's own report has just moved `_globalstep_last_logged`; a `loss` that user code logs in the
        # middle of a step, perhaps in one process alone, must not start a collective call.
        if self._run is not None and "loss" in logs and self._globalstep_last_logged == self.state.global_step:
            self._run.log.drain_into(logs, self.state.global_step, self.accelerator.gather)
            if self.amp_settings.epsilon is None and not self.amp_settings.switched_off:
                logs["amp_epsilon"] = self.amp_epsilon
        super().log(logs, *args, **kwargs)

    # --- construction ---

    if not TYPE_CHECKING:  # editors complete the arguments of the Trainer behind

        @wraps(Trainer.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not isinstance(self, Trainer):
                raise TypeError(support.NO_TRAINER.format(type(self).__name__))
            super().__init__(*args, **kwargs)
            if not self.amp_settings.switched_off:
                support.check_construction(self)

        @wraps(Trainer.train)
        def train(self, *args: Any, **kwargs: Any) -> Any:
            """Train as `Trainer` does, after a look at what cannot be trained."""
            support.warn_about_processes(self.args)
            if not self.amp_settings.switched_off:
                support.check_training(self)
            self._begin_radius()
            return super().train(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        support.check_bases(cls, AMPTrainerMixin)


class AMPTrainer(AMPTrainerMixin, PublishingMixin, Trainer):
    """`transformers.Trainer` with adversarial model perturbation; see `AMPTrainerMixin` and `AMPArguments`.

    Takes what `Trainer` takes; with plain `TrainingArguments` the AMP fields have their defaults.

        args = AMPTrainingArguments("out", num_train_epochs=1)
        trainer = AMPTrainer(model=model, args=args, train_dataset=train_dataset)
        trainer.train()
    """
