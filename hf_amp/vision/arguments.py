"""What the image-classification command can be told: model, data, training, beside `AMPTrainingArguments`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from hf_amp.hub.arguments import AMPTrainingArguments
from hf_amp.vision.methods import METHODS

AUGMENTATIONS = ("vanilla", "cutout", "autoaugment", "none")


@dataclass
class ModelArguments:
    """Which network.

    Args:
        model: name in the table of `hf_amp.models`, a Hub id or a local folder.
        model_args: JSON object of config fields, e.g. `'{"hidden_sizes": [16, 32, 64, 128]}'`.
    """

    model: str = field(
        default="preactresnet18",
        metadata={
            "help": "preactresnet18|34|50, vgg11|13|16|19, wideresnet28_10, pyramidnet164_270, ...; or "
            "a Hub id or folder of an image classifier."
        },
    )
    model_args: str = field(
        default="{}",
        metadata={"help": "Config fields as JSON, e.g. '{\"hidden_sizes\": [16, 32, 64, 128]}'."},
    )

    def __post_init__(self) -> None:
        self.config_overrides()

    def config_overrides(self) -> dict[str, Any]:
        """Return `model_args` as a dictionary.

        Raises:
            ValueError: if it is not a JSON object.
        """
        if isinstance(self.model_args, dict):  # a mapping in a YAML recipe
            return dict(self.model_args)
        try:
            overrides = json.loads(self.model_args)
        except json.JSONDecodeError as error:
            overrides = error
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`model_args` must be a JSON object, got {self.model_args!r}; write it as "
                "'{\"hidden_sizes\": [16, 32, 64, 128]}', with double quotes inside"
            )
        return overrides


@dataclass
class DataArguments:
    """Which images, and what is done to them.

    Args:
        dataset: `cifar10`, `cifar100`, `svhn`, `digits` or a Hub id.
        dataset_path: local folder or parquet file with a data set of the same columns, read in place of
            the Hub.
        coarse_labels: CIFAR-100's 20 coarse labels in place of its 100 fine ones.
        extra: add SVHN's `extra` split to the training split.
        image_size: height and width to bring all images to; None: they must have one size.
        validation_fraction: share of the training split held out, in [0, 1); 0: none.
        max_train_samples: keep that many training images, all classes alike; None: all.
        split_seed: seed of the held-out part and of the choice of `max_train_samples`.
        label_noise: share of the training labels to replace, in [0, 1); validation and test stay clean.
        augmentation: `vanilla`, `cutout`, `autoaugment` or `none`; None: `vanilla` for CIFAR and SVHN,
            else `none`.
    """

    dataset: str = field(default="cifar10", metadata={"help": "cifar10, cifar100, svhn, digits or a Hub id."})
    dataset_path: str | None = field(
        default=None, metadata={"help": "Local folder or parquet file of the data set, in place of the Hub."}
    )
    coarse_labels: bool = field(default=False, metadata={"help": "CIFAR-100: the 20 coarse labels."})
    extra: bool = field(default=False, metadata={"help": "SVHN: train on the `extra` split as well."})
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width to bring all images to; not needed if they have one size."}
    )
    validation_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training split held out for validation, in [0, 1)."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Keep that many training images, all classes alike."}
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed of the validation part and of the choice of max_train_samples."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of the training labels replaced at random, in [0, 1)."}
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "vanilla, cutout, autoaugment or none; default: vanilla for CIFAR and SVHN, none for others."
        },
    )

    def __post_init__(self) -> None:
        for name, value in (
            ("label_noise", self.label_noise),
            ("validation_fraction", self.validation_fraction),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {value}; give a share, e.g. 0.2 for 20 %")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(
                f"`max_train_samples` must be >= 1, got {self.max_train_samples}; leave it out to use all images"
            )
        if self.augmentation is None:
            self.augmentation = "vanilla" if self.dataset in ("cifar10", "cifar100", "svhn") else "none"
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"`augmentation` must be one of {', '.join(AUGMENTATIONS)}, got {self.augmentation!r}; choose one"
            )


@dataclass
class ImageTrainingArguments(AMPTrainingArguments):
    """`AMPTrainingArguments` with the paper's protocol as defaults and the schemes that it compares.

    Args:
        method: training scheme, a key of `METHODS`. It decides the AMP fields that it fixes: `erm`
            switches the perturbation off, `sam` takes one normalised global step.
        amp_epsilon: radius of `amp` (None: 0.5), `sam` (None: 0.05) and `rmp` (None: 0.1).
        dropout: rate for `dropout`, in [0, 1).
        smoothing: mass that `label_smoothing` spreads over the other classes, in [0, 1).
        flood_level: level b of `flooding`, >= 0.
        mixup_alpha: parameter of the Beta distribution of `mixup`, > 0.
        adversarial_radius: L∞ radius of `adversarial` in 1/255 of the range of a pixel, > 0.
        lr_schedule: `"step"`, learning rate divided by 10 at 50 % and 75 % of the training, or
            `"trainer"`, what `lr_scheduler_type` says.
        scale: factor on `num_train_epochs`, > 0, to shorten a recipe for a trial.
        seeds: seeds to train with, one run each; None: only `seed`.
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
        metadata={"help": "Perturbation radius epsilon >= 0; default: 0.5 for amp, 0.05 for sam, 0.1 for rmp."},
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
        default="step",
        metadata={
            "help": "step: divide the learning rate by 10 at 50 % and 75 % of the training; trainer: use "
            "--lr_scheduler_type.".replace("%", "%%"),
            "choices": ("step", "trainer"),
        },
    )
    scale: float = field(default=1.0, metadata={"help": "Factor on num_train_epochs, to shorten a recipe."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds to train with; default: --seed."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model card."})

    num_train_epochs: float = field(default=200, metadata={"help": "Epochs, before --scale."})
    per_device_train_batch_size: int = field(default=50, metadata={"help": "Training batch per process."})
    per_device_eval_batch_size: int = field(default=500, metadata={"help": "Evaluation batch per process."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer."})
    optim_args: str | None = field(
        default=None,
        metadata={"help": "Optimizer arguments; for sgd momentum=0.9,nesterov=True if not given."},
    )
    learning_rate: float = field(default=0.1, metadata={"help": "Learning rate at the start."})
    weight_decay: float = field(
        default=1e-4, metadata={"help": "Weight decay, on all parameters, as in the paper's code."}
    )
    max_grad_norm: float = field(default=50.0, metadata={"help": "Gradient norm to clip at."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch (or no)."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    # The newest, to resume from, and the best
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
        for name, value in method.defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, value in method.fixed.items():
            setattr(self, name, value)
        if self.output_dir is None:
            self.output_dir = "outputs"
        _check_strengths(self)
        _check_combinations(self)
        super().__post_init__()

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


_STRENGTHS = {
    "dropout": ("in [0, 1)", lambda value: 0 <= value < 1),
    "smoothing": ("in [0, 1)", lambda value: 0 <= value < 1),
    "flood_level": (">= 0", lambda value: value >= 0),
    "mixup_alpha": ("> 0", lambda value: value > 0),
    "adversarial_radius": ("> 0", lambda value: value > 0),
}


def _check_strengths(args: ImageTrainingArguments) -> None:
    for name, (rule, holds) in _STRENGTHS.items():
        value = getattr(args, name)
        if value is not None and not holds(value):
            raise ValueError(f"`{name}` must be {rule}, got {value}; leave it out for the paper's value")


def _check_combinations(args: ImageTrainingArguments) -> None:
    """Refuse what would be ignored or would fail only after work was done."""
    if not args.scale > 0:
        raise ValueError(f"`scale` must be > 0, got {args.scale}; 0.1 trains a tenth of the epochs")
    if args.scale != 1 and args.max_steps > 0:
        raise ValueError(
            f"`scale` shortens num_train_epochs, but `max_steps`={args.max_steps} decides the length; give only one"
        )
    if args.seeds is not None and len(set(args.seeds)) != len(args.seeds):
        raise ValueError(f"`seeds` must differ from each other, got {args.seeds}; leave the repeated ones out")
    if args.lr_schedule == "step" and args.warmup_steps:
        raise ValueError(
            f"`warmup_steps`={args.warmup_steps} has no part in the step schedule; add --lr_schedule trainer"
        )
    if args.label_smoothing_factor and args.method in ("label_smoothing", "mixup", "flooding", "adversarial"):
        raise ValueError(
            f"`label_smoothing_factor`={args.label_smoothing_factor} cannot be combined with method "
            f"{args.method!r}, which has its own loss; leave it out"
        )
    if args.load_best_model_at_end:
        raise ValueError(
            "`load_best_model_at_end` would lose the last weights; leave it out: last and best are both reported"
        )
    if args.push_to_hub and len(args.seeds or [0]) > 1:
        raise ValueError(f"`push_to_hub` publishes one model, got seeds {args.seeds}; give one seed")


def field_names(*classes: type) -> set[str]:
    """Return the names of all fields of some dataclasses."""
    return {f.name for cls in classes for f in fields(cls)}
