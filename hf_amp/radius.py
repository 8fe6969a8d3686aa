"""The radius ε that nobody has to choose: as large as the training over-fits, and 0 while it does not."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from hf_amp.inputs import continuous_labels
from hf_amp.logs import StepMean, StoredCallback, mean_over_processes
from hf_amp.radius_rule import EVALUATIONS, LEAST_SHARE, is_steep, limit_for, radius_for, share_for
from hf_amp.third_party import is_of
from hf_amp.training_args import AMPSettings

logger = logging.get_logger(__name__)

NO_EVALUATION = (
    "`amp_epsilon` is not set, so the radius follows how far the training over-fits, and eval_strategy='no': unless a "
    "callback evaluates while it trains, every step is a plain one, as with Trainer. Pass `eval_dataset` and "
    "eval_strategy='epoch', or choose a constant radius, such as the paper's amp_epsilon=0.5."
)
LATE_EVALUATION = (
    "`amp_epsilon` is not set, so the radius follows how far the training over-fits, and the first evaluation comes "
    "with the last step: every step is a plain one, as with Trainer. Evaluate more often (eval_strategy='steps' and a "
    "smaller `eval_steps`), train for more epochs, or choose a constant radius, such as the paper's amp_epsilon=0.5."
)
NO_LOSS = (
    "`amp_epsilon` is not set, so the radius follows the held-out loss, and an evaluation gave none (`eval_loss`, of "
    "several data sets that of the first): the radius stays as it is. Evaluate data with labels, let an `evaluate` of "
    "your own hand that loss to `callback_handler.on_evaluate`, override `held_out_loss`, or choose a constant radius, "
    "such as the paper's amp_epsilon=0.5."
)
OTHER_BATCHES = (
    "`amp_epsilon` is not set, so the radius follows the held-out loss less the training loss. A loss with in-batch "
    "negatives grows with the batch, and batches have {} samples in training and {} in evaluation: make "
    "`per_device_eval_batch_size` the same, or choose a constant radius, such as amp_epsilon=0.1."
)
REGRESSION = (
    "`amp_epsilon` is not set, and the labels are continuous, as in a regression: the rule for the radius is made for "
    "classes, and a squared error gets worse by it. Every step is a plain one, as with Trainer. To perturb all the "
    "same, choose a constant radius, such as amp_epsilon=0.003; if the labels do stand for classes, say so in "
    "`model.config.problem_type`."
)
_FIRST_STEPS = 4
_TrainerBehind = Trainer if TYPE_CHECKING else object


class RadiusCallback(StoredCallback):
    """Sets the radius after each evaluation. `AMPTrainer` has one, which counts while `amp_epsilon` is None.

    The trainer tells it the losses of every step. Their means since the evaluation before are compared with the last
    held-out losses and with each other, see `hf_amp.radius_rule`. Checkpoints hold its state, so that a training that
    is resumed has the radii of one that was never stopped; a new training begins at 0.

    Attributes:
        value: the present radius ε, in [0, 0.5].
        largest: the largest radius that a step of this training had.
        trainer: which says what loss of an evaluation is followed; None before it trains.
    """

    def __init__(self) -> None:
        self.trainer: RadiusMixin | None = None
        self._begin()

    def _begin(self, **stored: Any) -> None:
        self.value, self.largest = stored.get("value", 0.0), stored.get("largest", 0.0)
        self._tried, self._slope = stored.get("tried", 0.0), stored.get("slope", 0.0)
        self._steepest = stored.get("steepest", 0.0)
        self._share, self._training_loss = stored.get("share", LEAST_SHARE), stored.get("training_loss", 0.0)
        self._held_out, self._lowest = list(stored.get("held_out", ())), stored.get("lowest", math.inf)
        self._start, self._recent, self._rise = (
            StepMean(**stored.get(name, {})) for name in ("start", "recent", "rise")
        )
        self._continuous, self._is_told, self._is_due = StepMean(), False, False
        self._step: int | None = None
        self._is_start = False

    def add(self, loss: Tensor, step: int, rise: Tensor | None = None, continuous_labels: Tensor | None = None) -> None:
        """Add what a micro-batch contributes to the loss of an optimizer step; nothing is read on the host.

        Args:
            loss: at θ, 0-dim; what is not finite counts as 0, as in the loss that `Trainer` logs.
            step: number of the optimizer step, the same for all its micro-batches.
            rise: what the loss at θ + Δ has more, 0-dim; None in a plain step.
            continuous_labels: number of labels that are continuous, 0-dim; None where labels are classes.
        """
        is_new_step, self._step = step != self._step, step
        self.largest = max(self.largest, self.value)
        self._recent.add(loss, is_new_step)
        if rise is not None:
            self._rise.add(rise, is_new_step)
        if continuous_labels is not None:
            self._continuous.add(continuous_labels, is_new_step)
        if is_new_step:
            self._is_start = self._start.steps < _FIRST_STEPS
        if self._is_start:
            self._start.add(loss, is_new_step)

    def begin(self, state: TrainerState, stored: Mapping[str, Any] | None) -> None:
        """Begin at 0, or with the radius of the checkpoint, and say what keeps it from following over-fitting."""
        self._begin(**(stored or {}))
        losses = [entry.get("erm_loss", entry["loss"]) for entry in state.log_history if "loss" in entry]
        if stored is None and losses:  # a checkpoint without a radius: its training began with what it logged first
            self._start = StepMean(losses[0] * _FIRST_STEPS, _FIRST_STEPS)
        if self.trainer is not None:
            self.trainer._warn_of_evaluations(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Set the radius for the steps to come."""
        if self.trainer is None:
            return
        loss = self.trainer.held_out_loss(metrics or {})
        self._is_due &= loss is None
        if not self._recent.steps:
            return
        if self._continuous.collect():
            self.value, self._is_due = 0.0, False
            self._say(REGRESSION)
            return
        if loss is None:
            return
        loss = mean_over_processes(float(loss), self.trainer.accelerator)  # a checkpoint holds it as JSON
        training_loss, self._recent = self._recent.collect(), StepMean()
        if self._rise.steps:
            self._measure()
        if math.isfinite(loss):
            self._share = share_for(self._share, (self._training_loss, training_loss), [*self._held_out, loss])
            self._training_loss = training_loss
            self._held_out, self._lowest = [*self._held_out, loss][-EVALUATIONS:], min(self._lowest, loss)
            start = self._start.collect()
            wanted = radius_for(training_loss, self._held_out, start)
            steep, gets_worse = is_steep(self._steepest, start), min(self._held_out) > self._lowest
            slope = self._steepest if steep else self._slope  # dropout hides the slope at a small radius
            limit = limit_for(start - training_loss, self._share, self._tried, slope, steep, gets_worse)
            self.value = min(wanted, limit)

    def _say(self, warning: str) -> None:
        """Warn once in a training."""
        if not self._is_told:
            logger.warning(warning)
        self._is_told = True

    def _measure(self) -> None:
        """Note how steeply the loss rose around the weights at the present radius."""
        rise, self._rise = self._rise.collect(), StepMean()
        if self.value:
            self._slope, self._tried = max(0.0, rise) / self.value, self.value
            self._steepest = max(self._steepest, self._slope)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Perturb no longer than four steps where these show a steep network; read once in a training."""
        if self._is_due and self.trainer and type(self.trainer).held_out_loss is RadiusMixin.held_out_loss:
            self._say(NO_LOSS)
        is_first = self.value and not self._tried and self._rise.steps == _FIRST_STEPS
        if is_first and is_steep(self._rise.collect() / self.value, self._start.collect()):
            self._measure()
            self.value = 0.0

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Bring the sums to the host before a checkpoint, which one process alone writes."""
        self._is_due |= control.should_evaluate and self._recent.steps > 0
        if control.should_save:
            for mean in (self._start, self._recent, self._rise):
                mean.collect()

    on_epoch_end = on_step_end

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        own = {"value": self.value, "largest": self.largest, "held_out": self._held_out}
        means = {"start": self._start.state(), "recent": self._recent.state(), "rise": self._rise.state()}
        own |= {"slope": self._slope, "tried": self._tried, "steepest": self._steepest}
        own |= {"share": self._share, "training_loss": self._training_loss}
        if self._held_out:
            own["lowest"] = self._lowest
        return {"args": {}, "attributes": {**own, **means}}


class RadiusMixin(_TrainerBehind):
    """What a Trainer knows of its perturbation: the AMP fields of its arguments, and the present radius."""

    _settings: tuple[dict[str, Any], AMPSettings] | None = None

    @property
    def amp_settings(self) -> AMPSettings:
        """The AMP fields of the training arguments as they are now, checked."""
        values = AMPSettings.values(self.args)
        if self._settings is None or self._settings[0] != values:
            self._settings = values, AMPSettings(**values)
        return self._settings[1]

    @property
    def amp_epsilon(self) -> float:
        """The present radius ε: `args.amp_epsilon`, or, while that is None, as large as the training over-fits."""
        if self.amp_settings.epsilon is not None:
            return self.amp_settings.epsilon
        radius = RadiusCallback.of(self)
        return 0.0 if radius is None else radius.value

    def _begin_radius(self) -> None:
        """Add the callback that sets the radius, unless it is given; before the training makes its state."""
        if self.amp_settings.epsilon is not None or self.amp_settings.switched_off:
            return
        radius = RadiusCallback.of(self)
        if radius is None:
            self.add_callback(radius := RadiusCallback())
        radius.trainer = self

    def _warn_of_evaluations(self, state: TrainerState) -> None:
        """Say what keeps the radius from following over-fitting, as far as it is known when a training begins."""
        args, settings = self.args, self.amp_settings
        if settings.epsilon is not None or settings.switched_off:  # by a trial of a search
            return
        by_steps = args.eval_strategy == IntervalStrategy.STEPS
        first, last = (state.eval_steps, state.max_steps) if by_steps else (1, state.num_train_epochs)
        if args.eval_strategy == IntervalStrategy.NO:
            logger.warning(NO_EVALUATION)
            return
        if max(first, args.eval_delay or 0) >= last:
            logger.warning(LATE_EVALUATION)
        if is_of(self, "sentence_transformers") and args.eval_batch_size != args.train_batch_size:
            logger.warning(OTHER_BATCHES.format(args.train_batch_size, args.eval_batch_size))

    def _note_losses(self, inputs: Any, loss: Tensor, amp_loss: Tensor | None = None) -> None:
        """Tell the callback what a micro-batch contributes to the losses of its step, at θ and at θ + Δ."""
        if self.amp_settings.epsilon is not None or (radius := RadiusCallback.of(self)) is None:
            return
        radius.trainer = self  # which a callback that is restored from a checkpoint does not know
        rise = None if amp_loss is None else amp_loss - loss
        kind = getattr(getattr(self.model, "config", None), "problem_type", None)
        if kind is not None:  # models of transformers set it in their first pass
            continuous = torch.ones_like(loss) if kind == "regression" else None
        else:
            continuous = continuous_labels(inputs, (*self.label_names, "labels", "label"))  # or none is named
        radius.add(loss, self.state.global_step, rise, continuous)

    def held_out_loss(self, metrics: Mapping[str, float]) -> float | None:
        """Return the loss that the radius follows; None if this evaluation has no part in it. Override it to choose.

        By default `eval_loss`, or that of the first data set of a dictionary; let it be data like the training's.

        Args:
            metrics: of an evaluation, as `evaluate` returns them.
        """
        data = self.eval_dataset
        return metrics.get(f"eval_{next(iter(data))}_loss" if isinstance(data, Mapping) and data else "eval_loss")
