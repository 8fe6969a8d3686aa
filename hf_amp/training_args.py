"""The fields that adversarial model perturbation (AMP) adds to any `TrainingArguments`, and their rules."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

NORMS = ("tensor", "global")
SCOPES = ("batch", "micro_batch")
NORM_STATS = ("every_pass", "clean", "descent")


@dataclass
class AMPArguments:
    """Mixin of the AMP fields; put it before a dataclass of training arguments.

        @dataclass
        class Config(AMPArguments, Seq2SeqTrainingArguments): ...

        args = Config("out", amp_inner_iter=2)

    Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021.

    Args:
        amp_epsilon: perturbation radius ε, finite, >= 0; 0 switches the perturbation off. None: it follows how far the
            training over-fits, from 0 (plain steps) to 0.5, see `hf_amp.radius_rule`; needs evaluations while training,
            and is 0 throughout where labels are continuous (a regression).
        amp_inner_lr: inner learning rate ζ of the ascent, finite, > 0.
        amp_inner_iter: inner iterations N, an integer >= 0; 0 switches the perturbation off. A step costs
            N + 1 forward-backward passes.
        amp_norm: what one ε-ball covers: `"tensor"`, each parameter tensor by itself (the authors' code), or
            `"global"`, all parameters together (Algorithm 1 of the paper).
        amp_scope: the data that the perturbation comes from: `"batch"`, all micro-batches and processes of the
            optimizer step, or `"micro_batch"`, each process and micro-batch by itself.
        amp_norm_stats: the passes that update running statistics of normalisation layers: `"every_pass"` (the
            authors' code), `"clean"` (the first pass, at θ) or `"descent"` (the last pass, at θ + Δ).
        amp_start: share of `max_steps`, in [0, 1], after which AMP becomes active.
        amp_end: share of `max_steps`, in [amp_start, 1], after which AMP is inactive again.
        amp_every: AMP on the optimizer steps k, 2k, 3k, … counted from 1, plain steps between; integer >= 1.
        amp_ascent_fraction: share, in (0, 1], of the data of Δ that the ascent passes use: of what each process holds
            of the batch of the optimizer step, however it is split into micro-batches (the first samples, at least
            one), or with `amp_scope="micro_batch"` of each micro-batch.
        amp_target_parameters: regular expressions searched in parameter names (`re.search`); only trainable
            parameters that one of them matches are perturbed. None: all trainable parameters.

    Raises:
        ValueError: if a number is outside its range or a choice is unknown.
        TypeError: if a field has the wrong type.
    """

    amp_epsilon: float | None = field(
        default=None,
        metadata={
            "help": "AMP: perturbation radius epsilon, finite, >= 0; 0 switches the perturbation off; default: as "
            "large as the training over-fits, seen in its evaluations."
        },
    )
    amp_inner_lr: float = field(
        default=1.0, metadata={"help": "AMP: inner learning rate zeta of the ascent, finite, > 0."}
    )
    amp_inner_iter: int = field(
        default=1, metadata={"help": "AMP: inner iterations N, >= 0; 0 switches the perturbation off."}
    )
    amp_norm: str = field(
        default="tensor",
        metadata={
            "help": "AMP: what one epsilon-ball covers: each parameter tensor, or all of them together.",
            "choices": NORMS,
        },
    )
    amp_scope: str = field(
        default="batch",
        metadata={
            "help": "AMP: data the perturbation comes from: the whole batch of the optimizer step, or each "
            "process and micro-batch by itself.",
            "choices": SCOPES,
        },
    )
    amp_norm_stats: str = field(
        default="every_pass",
        metadata={
            "help": "AMP: passes that update running statistics of normalisation layers: every pass, only the "
            "first one (clean weights), or only the last one (descent).",
            "choices": NORM_STATS,
        },
    )
    amp_start: float = field(
        default=0.0, metadata={"help": "AMP: share of max_steps in [0, 1] after which it becomes active."}
    )
    amp_end: float = field(
        default=1.0,
        metadata={"help": "AMP: share of max_steps in [amp_start, 1] after which it is inactive."},
    )
    amp_every: int = field(
        default=1, metadata={"help": "AMP: perturb on every k-th optimizer step, counted from 1; >= 1."}
    )
    amp_ascent_fraction: float = field(
        default=1.0,
        metadata={"help": "AMP: share of (each process's part of) the batch used in the ascent passes, in (0, 1]."},
    )
    amp_target_parameters: list[str] | None = field(
        default=None,
        metadata={"help": "AMP: regular expressions on parameter names: perturb only the parameters they match."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.amp_target_parameters, str):
            self.amp_target_parameters = [self.amp_target_parameters]
        AMPSettings.from_args(self)
        parent_post_init = getattr(super(), "__post_init__", None)
        if parent_post_init is not None:
            parent_post_init()


@dataclass(frozen=True)
class AMPSettings:
    """The AMP fields of some training arguments, checked; `amp_` is dropped from the names.

    Raises:
        ValueError: if a number is outside its range or a choice is unknown.
        TypeError: if a field has the wrong type.
    """

    epsilon: float | None
    inner_lr: float
    inner_iter: int
    norm: str
    scope: str
    norm_stats: str
    start: float
    end: float
    every: int
    ascent_fraction: float
    target_parameters: tuple[str, ...] | None

    @classmethod
    def from_args(cls, args: Any) -> "AMPSettings":
        """Read the `amp_*` fields of `args`; a missing one has the default of `AMPArguments`."""
        return cls(**cls.values(args))

    @classmethod
    def values(cls, args: Any) -> dict[str, Any]:
        """Return what `from_args` reads, not checked: it may change while a training runs."""
        values = {name: getattr(args, f"amp_{name}", default) for name, default in _DEFAULTS}
        patterns = values["target_parameters"]
        if isinstance(patterns, str):
            patterns = [patterns]
        if isinstance(patterns, Sequence):
            values["target_parameters"] = tuple(patterns)
        return values

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            remedy = "use 0 to switch the perturbation off, leave it out (None) for a radius that follows over-fitting"
            _check_number("amp_epsilon", self.epsilon, ">= 0", remedy)
        _check_number("amp_inner_lr", self.inner_lr, "> 0", "use amp_epsilon=0 to switch the perturbation off")
        _check_integer("amp_inner_iter", self.inner_iter, 0, "use 0 to switch the perturbation off")
        _check_choice("amp_norm", self.norm, NORMS)
        _check_choice("amp_scope", self.scope, SCOPES)
        _check_choice("amp_norm_stats", self.norm_stats, NORM_STATS)
        _check_number("amp_start", self.start, "in [0, 1]", "give a share of max_steps, e.g. 0.5 for half-time")
        _check_number("amp_end", self.end, "in [0, 1]", "give a share of max_steps, e.g. 0.5 for half-time")
        if self.start > self.end:
            raise ValueError(
                f"`amp_start` must be <= `amp_end`, got {self.start} > {self.end}; swap them, or make them equal "
                "to never perturb"
            )
        _check_integer("amp_every", self.every, 1, "use 1 to perturb on every step")
        _check_number("amp_ascent_fraction", self.ascent_fraction, "in (0, 1]", "use 1 for the whole batch")
        _check_patterns(self.target_parameters)

    @property
    def switched_off(self) -> bool:
        """Whether no step of any training can perturb."""
        return self.epsilon == 0 or self.inner_iter == 0 or self.start == self.end

    def active_at(self, global_step: int, max_steps: int) -> bool:
        """Whether the optimizer step after `global_step` finished ones, of `max_steps` in all, perturbs."""
        if self.switched_off:
            return False
        # Divided, not multiplied: 57 / 100 is the very float that a user writes as 0.57.
        progress = global_step / max_steps if max_steps > 0 else 0.0
        return self.start <= progress < self.end and (global_step + 1) % self.every == 0


_DEFAULTS = [(f.name.removeprefix("amp_"), f.default) for f in fields(AMPArguments) if f.name.startswith("amp_")]
_RULES = {
    ">= 0": lambda value: value >= 0,
    "> 0": lambda value: value > 0,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
}


def _check_number(name: str, value: Any, rule: str, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number {rule}, got {value!r} ({type(value).__name__}); {remedy}")
    if not (math.isfinite(value) and _RULES[rule](value)):
        raise ValueError(f"`{name}` must be finite and {rule}, got {value}; {remedy}")


def _check_integer(name: str, value: Any, least: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer >= {least}, got {value!r} ({type(value).__name__}); {remedy}")
    if value < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value}; {remedy}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}; choose one of these")


def _check_patterns(patterns: Any) -> None:
    remedy = "give regular expressions such as 'classifier' or '\\.weight$', or None for all parameters"
    if patterns is None:
        return
    if not isinstance(patterns, tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"`amp_target_parameters` must be a string or a list of strings, got {patterns!r}; {remedy}")
    if not patterns:
        raise ValueError(f"`amp_target_parameters` must not be empty, got []; {remedy}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"`amp_target_parameters` must hold regular expressions, got {pattern!r} ({error}); {remedy}"
            ) from error
