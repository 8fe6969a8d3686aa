"""A Trainer for images that knows the schemes of the paper: each method's loss, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers.training_args import OptimizerNames

from hf_amp.hub.card import CardFacts
from hf_amp.perturbation import Perturbation
from hf_amp.trainer import AMPTrainer
from hf_amp.vision.arguments import ImageTrainingArguments
from hf_amp.vision.methods import adversarial_images, flooded, smoothed_cross_entropy

MILESTONES = (0.5, 0.75)
DECAY_PER_MILESTONE = 0.1
_SGD_NUMBERS = ("momentum", "dampening")


class ImageTrainer(AMPTrainer):
    """[`AMPTrainer`] that trains an image classifier with the method that its arguments name.

    Weight decay acts on all parameters, biases and batch-norm weights too, as in the paper's code; the plain
    [`Trainer`] leaves those out.

    Args:
        eval_collator: collator of evaluation batches, without augmentation; None: the training one.
        pixel_std: (channels,) standard deviation that images were divided by, for `--method adversarial`.
        complete_facts: completes what the model card says; None: it says what any Trainer knows.
        kwargs: those of [`AMPTrainer`].
    """

    args: ImageTrainingArguments

    def __init__(
        self,
        *,
        eval_collator: Any = None,
        pixel_std: Tensor | None = None,
        complete_facts: Callable[[CardFacts], CardFacts] | None = None,
        **kwargs: Any,
    ) -> None:
        args: ImageTrainingArguments = kwargs["args"]
        if args.optim == OptimizerNames.SGD:
            # transformers 5.0 drops `optim_args` of SGD, momentum included.
            kwargs["optimizer_cls_and_kwargs"] = (torch.optim.SGD, sgd_settings(args))
        super().__init__(**kwargs)
        self.eval_collator = eval_collator
        self.pixel_std = pixel_std
        self._complete_facts = complete_facts
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
        method = self.args.method if model.training else "erm"
        if method == "flooding":
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = flooded(loss, self._strength("flood_level"))
        elif method in ("label_smoothing", "mixup", "adversarial"):
            loss, outputs = self._scheme_loss(model, method, dict(inputs))
        else:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _scheme_loss(self, model: nn.Module, method: str, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        labels = inputs.pop("labels")
        if method == "adversarial":
            inputs["pixel_values"] = self._adversarial(model, inputs["pixel_values"], labels)
        outputs = model(**inputs)
        logits = outputs["logits"].float()
        if method == "label_smoothing":
            return smoothed_cross_entropy(logits, labels, self._strength("smoothing")), outputs
        return F.cross_entropy(logits, labels), outputs

    def _adversarial(self, model: nn.Module, pixel_values: Tensor, labels: Tensor) -> Tensor:
        if self.pixel_std is None:
            raise ValueError("method 'adversarial' needs `pixel_std`; pass the std that images were divided by")
        radius = self._strength("adversarial_radius") / 255 / self.pixel_std
        # Past DistributedDataParallel: this backward must not start an exchange of gradients.
        return adversarial_images(self.accelerator.unwrap_model(model), pixel_values, labels, radius)

    def _strength(self, name: str) -> float:
        return float(getattr(self.args, name))

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
        """Return what the card says: what the Trainer knows, completed."""
        facts = super().card_facts(**card)
        return facts if self._complete_facts is None else self._complete_facts(facts)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return the evaluation loader of the [`Trainer`], with the evaluation collator."""
        if self.eval_collator is None:
            return super().get_eval_dataloader(*args, **kwargs)
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = training_collator


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
    """Return the Trainer that runs a method of `hf_amp.vision.methods.METHODS`."""
    return RMPTrainer if method == "rmp" else ImageTrainer


def step_factor(step: int, num_training_steps: int) -> float:
    """Return the factor on the learning rate after `step` of `num_training_steps`: 1, 0.1 from 50 %, 0.01 from 75 %."""
    passed = sum(step >= max(1, round(share * num_training_steps)) for share in MILESTONES)
    return DECAY_PER_MILESTONE**passed


def sgd_settings(args: ImageTrainingArguments) -> dict[str, Any]:
    """Return the arguments of [`torch.optim.SGD`]: Nesterov momentum 0.9, or what `optim_args` says.

    Raises:
        ValueError: `optim_args` is not of the form `momentum=0.9,nesterov=True`.
    """
    settings: dict[str, Any] = {"lr": args.learning_rate}
    if not args.optim_args:
        return {**settings, "momentum": 0.9, "nesterov": True}
    for part in args.optim_args.replace(" ", "").split(","):
        name, _, value = part.partition("=")
        try:
            if name == "nesterov" and value.lower() in ("true", "false"):
                settings[name] = value.lower() == "true"
            elif name in _SGD_NUMBERS:
                settings[name] = float(value)
            else:
                raise ValueError(part)
        except ValueError as error:
            raise ValueError(
                f"`optim_args` of sgd must look like momentum=0.9,dampening=0,nesterov=True, got {part!r} in "
                f"{args.optim_args!r}; correct that part"
            ) from error
    return settings
