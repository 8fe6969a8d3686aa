"""What a Trainer logged: its learning curves and its evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

_OF_AMP = ("erm_loss", "sharpness", "amp_epsilon", "perturbation_norm", "skipped_ascents")
_TRAINING_LOGS = ("loss", *_OF_AMP, "learning_rate", "grad_norm")
# What `Trainer.evaluate` says of its own speed, not of the model.
_OF_SPEED = ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time", "model_preparation_time")


def curves(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per logged step: `epoch`, `step`, the training logs and `eval_…` metrics that it has.

    Args:
        log_history: of the `TrainerState`.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        values = {
            name: value
            for name, value in entry.items()
            if (name in _TRAINING_LOGS or is_metric(name, "eval")) and isinstance(value, Real)
        }
        if values:
            point = by_step.setdefault(entry["step"], {"epoch": entry.get("epoch"), "step": entry["step"]})
            point.update(values)
    return [by_step[step] for step in sorted(by_step)]


def is_metric(name: str, prefix: str) -> bool:
    """Whether a logged name is a measure of quality that `Trainer.evaluate` found under this prefix."""
    return name.startswith(f"{prefix}_") and name.removeprefix(f"{prefix}_") not in _OF_SPEED


def evaluations(log_history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield prefix (`"eval"`, `"test"`, …), step and metrics, without the prefix, of each evaluation in the log."""
    for entry in log_history:
        for name in entry:
            prefix = name.removesuffix("_runtime")
            if prefix == name or prefix == "train":
                continue
            metrics = {key.removeprefix(f"{prefix}_"): value for key, value in entry.items() if is_metric(key, prefix)}
            yield prefix, entry["step"], metrics
