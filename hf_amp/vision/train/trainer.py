"""A Trainer for images that knows the schemes of the paper: each method's loss, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers.training_args import OptimizerNames

from hf_amp.hub.card import CardFacts
from hf_amp.perturbation import Perturbation
from hf_amp.trainer import AMPTrainer
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.facts import DataDescription, image_facts
from hf_amp.vision.train.methods import METHODS
from hf_amp.vision.train.recipes import sgd_settings

MILESTONES = (0.5, 0.75)
DECAY_PER_MILESTONE = 0.1
_COMPILED_STEPS = 2


class ImageTrainer(AMPTrainer):
    """`AMPTrainer` that trains an image classifier with the method that its arguments name.

    Weight decay acts on all parameters, biases and batch-norm weights too, as in the paper's code; the plain
    `Trainer` leaves those out.

    Args:
        eval_collator: collator of evaluation batches, without augmentation; None: the training one.
        pixel_std: (channels,) standard deviation that images were divided by, for `--method adversarial`.
        data: the data in words, for the model card; None: the card says what any Trainer knows.
        kwargs: those of `AMPTrainer`.

    Attributes:
        results: what a finished training came to, for the model card; None while it trains.
    """

    args: ImageTrainingArguments
    results: Mapping[str, Any] | None = None

    def __init__(
        self,
        *,
        eval_collator: Any = None,
        pixel_std: Tensor | None = None,
        data: DataDescription | None = None,
        **kwargs: Any,
    ) -> None:
        args: ImageTrainingArguments = kwargs["args"]
        if args.optim == OptimizerNames.SGD:
            # transformers 5.0 drops `optim_args` of SGD, momentum included.
            kwargs["optimizer_cls_and_kwargs"] = (torch.optim.SGD, sgd_settings(args.learning_rate, args.optim_args))
        super().__init__(**kwargs)
        self.eval_collator = eval_collator
        self.pixel_std = pixel_std
        self.data = data
        self._first_step: int | None = None
        # Image classifiers on the Hub take `num_items_in_batch` and ignore it, so that their loss would grow with
        # accumulation: https://github.com/huggingface/transformers/issues/47688
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the method's loss while training, the model's own in evaluation."""
        with torch.compiler.set_stance(self._stance()):
            return self._method_loss(model, inputs, return_outputs, num_items_in_batch)

    def _stance(self) -> Literal["default", "eager_on_recompile"]:
        """Return how a compiled network takes a batch of a new size.

        The first two steps see every size that is common; after them comes only the last batch of an epoch, for which
        a compilation, minutes on a CPU, would never pay.
        """
        if self._first_step is None:
            self._first_step = self.state.global_step
        return "default" if self.state.global_step - self._first_step < _COMPILED_STEPS else "eager_on_recompile"

    def _method_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        method = METHODS[self.args.method]
        if method.loss is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        strength = float(getattr(self.args, method.fields[0]))
        if method.images is not None:
            # Past DistributedDataParallel: this backward must not start an exchange of gradients.
            plain = self.accelerator.unwrap_model(model)
            radius = self._in_normalised_units(strength)
            inputs["pixel_values"] = method.images(plain, inputs["pixel_values"], labels, radius)
        outputs = model(**inputs)
        loss = method.loss(outputs["logits"].float(), labels, strength)
        return (loss, outputs) if return_outputs else loss

    def _in_normalised_units(self, radius: float) -> Tensor:
        """Return a radius in 1/255 of a pixel's range per channel, as the network sees pixels."""
        if self.pixel_std is None:
            raise ValueError(f"method {self.args.method!r} needs `pixel_std`; pass the std that images were divided by")
        return radius / 255 / self.pixel_std

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of all parameters: the paper's code decays every one."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Divide the learning rate by 10 at 50 % and 75 % of the training, unless `lr_schedule` is "trainer"."""
        if self.lr_scheduler is None and self.args.lr_schedule == "step":
            chosen = cast(Optimizer, self.optimizer if optimizer is None else optimizer)
            # Not MultiStepLR: it would begin a second `train` with the rate that the first one ended with.
            self.lr_scheduler = LambdaLR(chosen, partial(step_factor, num_training_steps=num_training_steps))
            self._created_lr_scheduler = True  # another `train` makes a new one
        return super().create_scheduler(num_training_steps, optimizer)

    def card_facts(self, **card: Any) -> CardFacts:
        """Return what the card says: what any Trainer knows, and what this one knows of method, data and results."""
        facts = super().card_facts(**card)
        return facts if self.data is None else image_facts(facts, self.data, self.args, self.results)

    def held_out_loss(self, metrics: Mapping[str, float]) -> float | None:
        """Return the loss that the radius follows; None where the test images are evaluated after each epoch."""
        return None if self.evaluated_split == "test" else super().held_out_loss(metrics)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return the evaluation loader of the `Trainer`, with the evaluation collator, and of all images."""
        training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator = self.eval_collator or self.data_collator
        self.args.dataloader_drop_last = False  # it is meant for training; images that are tested on must not be lost
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = training


class RMPTrainer(ImageTrainer):
    """Random model perturbation: Δ is drawn uniformly from the ball of radius `amp_epsilon` around each tensor.

    Departure: the paper's code draws each entry from ±√(ε / entries), whose norm grows as √ε; here ‖Δ‖₂ ≤ ε.
    """

    def find_perturbation(self, perturbation: Perturbation, ascent_pass: Any) -> None:  # noqa: ARG002 - no pass
        """Draw Δ for an optimizer step; the same on every process, and again after a resume."""
        # One stream per step: a resumed run need not replay the earlier draws.
        generator = torch.Generator(perturbation.params[0].device)
        perturbation.randomize(generator.manual_seed(self.args.seed * 1_000_003 + self.state.global_step))


def trainer_class(method: str) -> type[ImageTrainer]:
    """Return the Trainer that runs a method of `METHODS`."""
    return RMPTrainer if method == "rmp" else ImageTrainer


def step_factor(step: int, num_training_steps: int) -> float:
    """Return the factor on the learning rate after `step` of `num_training_steps`: 1, 0.1 from 50 %, 0.01 from 75 %."""
    passed = sum(step >= max(1, round(share * num_training_steps)) for share in MILESTONES)
    return DECAY_PER_MILESTONE**passed
