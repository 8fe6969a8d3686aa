"""The values that a setting may have: one row each, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hf_amp.vision.train.methods import METHODS
from hf_amp.vision.train.recipes import sgd_settings

if TYPE_CHECKING:
    from hf_amp.vision.train.arguments import ImageTrainingArguments

_LOWEST_IS_BEST = ("error_rate", "loss", "nll", "ece")

_BACKENDS = [backend.value.lower() for backend in DynamoBackend if backend != DynamoBackend.NO]


class Rule(NamedTuple):
    """What a setting must be, unless it is None.

    Args:
        name: of the field; of a list each value is meant.
        words: what it must be.
        holds: the same as a test.
        remedy: what to do otherwise.
    """

    name: str
    words: str
    holds: Callable[[Any], bool]
    remedy: str


def check_values(settings: Any, rules: Sequence[Rule]) -> None:
    """Check fields of a dataclass.

    Raises:
        ValueError: a value breaks its rule; the text names both, and the remedy.
    """
    for name, words, holds, remedy in rules:
        value = getattr(settings, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not holds(one):
                raise ValueError(f"`{name}` must be {words}, got {one!r}; {remedy}")


def seed_rule(name: str) -> Rule:
    """Return the rule for a field that is a seed: numpy takes no others."""
    return Rule(name, "in [0, 2**32)", lambda value: 0 <= value < 2**32, "choose another seed")


def share_rule(name: str) -> Rule:
    """Return the rule for a field that is a share of some images."""
    return Rule(name, "in [0, 1)", lambda value: 0 <= value < 1, "give a share, e.g. 0.2 for 20 %")


def count_rule(name: str, least: int, remedy: str) -> Rule:
    """Return the rule for a field that is a number of things."""
    return Rule(name, f">= {least}", lambda value: value >= least, remedy)


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def _can_compile(mode: str) -> bool:
    from torch._inductor import list_mode_options  # slow to import

    return mode in list_mode_options()


_TRAINING = (
    Rule("output_dir", "the name of a folder", lambda value: bool(str(value)), "leave it out for one below outputs"),
    seed_rule("seed"),
    seed_rule("seeds"),
    Rule("scale", "finite and > 0", _is_positive, "0.1 trains a tenth of the epochs"),
    Rule("num_train_epochs", "finite and > 0", _is_positive, "leave it out for the paper's"),
    Rule("learning_rate", "finite and >= 0", _is_not_negative, "leave it out for the paper's"),
    Rule("weight_decay", "finite and >= 0", _is_not_negative, "0 switches it off"),
    Rule("max_grad_norm", ">= 0", lambda value: value >= 0, "0 or inf clips nothing"),
    Rule("max_steps", ">= 1, or -1", lambda value: value >= 1 or value == -1, "-1 trains for num_train_epochs"),
    share_rule("label_smoothing_factor"),
    count_rule("per_device_train_batch_size", 1, "give the number of images in a batch"),
    count_rule("per_device_eval_batch_size", 1, "give the number of images in a batch"),
    count_rule("gradient_accumulation_steps", 1, "1 takes a step after each batch"),
    count_rule("dataloader_num_workers", 0, "0 makes batches in the training process"),
    Rule("save_minutes", ">= 0", lambda value: value >= 0, "0 writes no checkpoints by the clock"),
    Rule(
        "metric_for_best_model",
        f"one of {', '.join(_LOWEST_IS_BEST)}, whose lowest value is best",
        lambda value: value in _LOWEST_IS_BEST,
        "choose one",
    ),
    Rule("torch_compile_mode", "a mode that torch.compile knows", _can_compile, "leave it out for the default one"),
    Rule("torch_compile_backend", f"one of {', '.join(_BACKENDS)}", lambda value: value in _BACKENDS, "choose one"),
    *(
        Rule(method.fields[0], *method.rule, "leave it out for the paper's value")
        for method in METHODS.values()
        if method.rule[0]
    ),
)


def check_training_arguments(args: ImageTrainingArguments) -> None:
    """Refuse values outside their range, and what would be ignored or would fail only after work was done.

    Raises:
        ValueError: a value is outside its range, or values exclude each other.
    """
    check_values(args, _TRAINING)
    _check_optimizer(args)
    _check_schedule(args)
    if args.seeds is not None and len(set(args.seeds)) != len(args.seeds):
        raise ValueError(f"`seeds` must differ from each other, got {args.seeds}; leave the repeated ones out")
    if args.resume_from_checkpoint is not None:
        raise ValueError(
            "`resume_from_checkpoint` has no part here: the same command continues from the last checkpoint in its "
            "output_dir by itself; leave it out"
        )
    if args.label_smoothing_factor and METHODS[args.method].loss is not None:
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


def _check_optimizer(args: ImageTrainingArguments) -> None:
    if args.optim != OptimizerNames.SGD:
        return
    settings = sgd_settings(args.learning_rate, args.optim_args)
    try:
        torch.optim.SGD([torch.zeros(1)], **settings)
    except ValueError as error:
        raise ValueError(f"`optim_args` {args.optim_args!r} are refused by sgd ({error}); correct them") from error


def _check_schedule(args: ImageTrainingArguments) -> None:
    if args.scale != 1 and args.max_steps > 0:
        raise ValueError(
            f"`scale` shortens num_train_epochs, but `max_steps`={args.max_steps} decides the length; give only one"
        )
    if args.lr_schedule == "step" and args.warmup_steps:
        raise ValueError(
            f"`warmup_steps`={args.warmup_steps} has no part in the step schedule; add --lr_schedule trainer"
        )
    if args.lr_schedule == "step" and (args.lr_scheduler_type != SchedulerType.LINEAR or args.lr_scheduler_kwargs):
        raise ValueError(
            f"`lr_scheduler_type`={SchedulerType(args.lr_scheduler_type).value!r} has no part in the step schedule; "
            "add --lr_schedule trainer"
        )
