"""How the image-classification commands train: `AMPTrainingArguments` with the paper's protocol and its schemes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers.utils import is_torch_xla_available

from hf_amp.hub.arguments import AMPTrainingArguments
from hf_amp.vision.train.checks.precision import choose_precision
from hf_amp.vision.train.checks.values import check_training_arguments
from hf_amp.vision.train.methods import METHODS
from hf_amp.vision.train.recipes import PROTOCOL


@dataclass
class ImageTrainingArguments(AMPTrainingArguments):
    """`AMPTrainingArguments` with the paper's protocol as defaults and the schemes that it compares.

    Args:
        method: training scheme, a row of `METHODS`. It decides the AMP fields that it fixes: `erm`
            switches the perturbation off, `sam` takes one normalised global step.
        amp_epsilon: radius of `amp` (None: follows over-fitting), `sam` (None: 0.05) and `rmp` (None: 0.1).
        dropout: rate for `dropout`, in [0, 1).
        smoothing: mass that `label_smoothing` spreads over the other classes, in [0, 1).
        flood_level: level b of `flooding`, >= 0.
        mixup_alpha: parameter of the Beta distribution of `mixup`, > 0.
        adversarial_radius: L∞ radius of `adversarial` in 1/255 of the range of a pixel, > 0.
        lr_schedule: `"step"`, learning rate divided by 10 at 50 % and 75 % of the training, or
            `"trainer"`, what `lr_scheduler_type` says.
        scale: factor on `num_train_epochs`, > 0, to shorten a recipe for a trial.
        seeds: seeds to train with, one run each; None: only `seed`.
        precision: `"float32"`, `"bf16"` or `"fp16"` for the passes (weights stay in float32), or `"auto"`: bf16 on GPUs
            and CPUs that compute with it, else float32. `bf16` and `fp16` of the `Trainer` say the same.
        save_minutes: write a checkpoint to continue from when so many minutes have passed since the last one; 0: none.
            `save_strategy` adds others.
        license: licence of the weights, for the model card, e.g. `"apache-2.0"`.

    Raises:
        ValueError: a value is outside its range, or values exclude each other.
    """

    output_dir: str | None = field(  # pyright: ignore[reportIncompatibleVariableOverride] - filled in later
        default=None, metadata={"help": "Where results go; default: outputs/<dataset>_<model>_<method>."}
    )
    method: str = field(default="amp", metadata={"help": "Training scheme.", "choices": tuple(METHODS)})
    # None until __post_init__ knows the method
    amp_epsilon: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={
            "help": "Perturbation radius epsilon >= 0; default: as large as the training over-fits for amp, 0.05 for "
            "sam, 0.1 for rmp."
        },
    )
    dropout: float | None = field(default=None, metadata={"help": "Rate for --method dropout (0.1)."})
    smoothing: float | None = field(
        default=None,
        metadata={"help": "Mass spread over the other classes by --method label_smoothing (0.2)."},
    )
    flood_level: float | None = field(default=None, metadata={"help": "Level for --method flooding (0.02)."})
    mixup_alpha: float | None = field(
        default=None, metadata={"help": "Parameter of the Beta distribution for --method mixup (1)."}
    )
    adversarial_radius: float | None = field(
        default=None, metadata={"help": "L-infinity radius in 1/255 of a pixel for --method adversarial (1)."}
    )
    lr_schedule: str = field(
        default=PROTOCOL["lr_schedule"],
        metadata={
            "help": "step: divide the learning rate by 10 at 50 % and 75 % of the training; trainer: use "
            "--lr_scheduler_type.".replace("%", "%%"),
            "choices": ("step", "trainer"),
        },
    )
    scale: float = field(default=1.0, metadata={"help": "Factor on num_train_epochs, to shorten a recipe."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds to train with; default: --seed."})
    precision: str = field(
        default="auto",
        metadata={"help": "Of the passes; auto: bf16 where it pays.", "choices": ("auto", "float32", "bf16", "fp16")},
    )
    save_minutes: float = field(
        default=10.0, metadata={"help": "Minutes between checkpoints to continue from; 0: none of these."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model card."})

    num_train_epochs: float = field(default=PROTOCOL["num_train_epochs"], metadata={"help": "Epochs, before --scale."})
    per_device_train_batch_size: int = field(
        default=PROTOCOL["per_device_train_batch_size"], metadata={"help": "Training batch per process."}
    )
    per_device_eval_batch_size: int = field(default=500, metadata={"help": "Evaluation batch per process."})
    optim: str = field(default=PROTOCOL["optim"], metadata={"help": "Optimizer."})
    optim_args: str | None = field(
        default=None,
        metadata={"help": f"Optimizer arguments; for sgd {PROTOCOL['optim_args']} if not given."},
    )
    learning_rate: float = field(default=PROTOCOL["learning_rate"], metadata={"help": "Learning rate at the start."})
    weight_decay: float = field(
        default=PROTOCOL["weight_decay"], metadata={"help": "Weight decay, on all parameters, as in the paper's code."}
    )
    max_grad_norm: float = field(default=PROTOCOL["max_grad_norm"], metadata={"help": "Gradient norm to clip at."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch (or no)."})
    save_strategy: str = field(default="no", metadata={"help": "When to save further checkpoints, e.g. epoch."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave out losses that are not finite; it waits for the device at every step."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    # Logits leave the device batch by batch.
    eval_accumulation_steps: int | None = field(default=1, metadata={"help": "Evaluation batches kept on the device."})
    metric_for_best_model: str | None = field(default="error_rate", metadata={"help": "Metric of the best epoch."})
    greater_is_better: bool | None = field(default=False, metadata={"help": "Whether that metric should be high."})
    disable_tqdm: bool | None = field(
        default=True, metadata={"help": "A line per epoch (true) or progress bars (false)."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without gradient under DistributedDataParallel."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs every column."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {self.method!r}; choose one")
        method = METHODS[self.method]
        for name, value in method.published.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, value in method.fixed.items():
            setattr(self, name, value)
        if self.output_dir is None:
            self.output_dir = "outputs"
        check_training_arguments(self)
        self.bf16, self.fp16, self.precision_note = choose_precision(self)
        if self.bf16 and not (torch.accelerator.is_available() or is_torch_xla_available()):
            self.use_cpu = True  # what is true already: without the word, `TrainingArguments` refuses bf16
        super().__post_init__()

    def precision_in_words(self) -> str:
        """Return what the passes compute in, and why."""
        name = "bf16" if self.bf16 else "fp16" if self.fp16 else "float32"
        return f"{name} ({self.precision_note})"

    def length_in_words(self) -> str:
        """Return how long is trained."""
        return f"{self.max_steps} steps" if self.max_steps > 0 else f"{self.epochs:g} epochs"

    @property
    def all_seeds(self) -> list[int]:
        """The seeds to train with, in order."""
        return list(self.seeds) if self.seeds else [self.seed]

    @property
    def epochs(self) -> float:
        """Epochs to train: `num_train_epochs` times `scale`, rounded to whole ones if `scale` is not 1."""
        if self.scale == 1:
            return self.num_train_epochs
        return max(1, round(self.num_train_epochs * self.scale))

    def strengths(self) -> dict[str, Any]:
        """Return the values of the fields that the method reads."""
        return {name: getattr(self, name) for name in METHODS[self.method].fields}

    def changed_strengths(self) -> dict[str, Any]:
        """Return those of `strengths` that differ from the fields' own defaults."""
        own = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in self.strengths().items() if value != own[name]}
