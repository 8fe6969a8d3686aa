"""What is told while a training runs: the epoch to the data, a line per epoch to the reader."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EpochCallback(TrainerCallback):
    """Call `set_epoch` of the training data set and of its loader at the start of each epoch.

    The [`Trainer`] hands the epoch to Accelerate's loader, which passes it on to *either* the sampler *or* the data
    set: with several processes, and after a resume inside an epoch, the data set hears nothing, and with several
    processes after such a resume the sampler hears nothing (`DataLoaderShard.set_epoch` in Accelerate 1.12 to 1.15).
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - signature of the hook
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        train_dataloader: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Pass the epoch on."""
        epoch = int(state.epoch or 0)
        listeners: list[Any] = [train_dataloader, getattr(train_dataloader, "dataset", None)]
        for listener in listeners:
            if hasattr(listener, "set_epoch"):
                listener.set_epoch(epoch)


class EpochLine(TrainerCallback):
    """Print what an epoch came to when it has been evaluated: loss, sharpness, error and NLL.

    Args:
        name: in front of each line.
        split: what is evaluated.
    """

    def __init__(self, name: str, split: str) -> None:
        self.name, self.split = name, split
        self._training: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - signature of the hook
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Keep the training loss for the line."""
        if logs and "loss" in logs:
            self._training = logs

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        metrics: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Print the line, on the main process."""
        if not state.is_world_process_zero or not metrics or "eval_error_rate" not in metrics:
            return
        parts = [f"{name} {self._training[name]:.4f}" for name in ("loss", "sharpness") if name in self._training]
        parts.append(f"{self.split} error {metrics['eval_error_rate']:.2%}")
        parts.append(f"NLL {metrics['eval_nll']:.4f}")
        share = state.global_step / state.max_steps if state.max_steps else 1.0
        print(f"{self.name}, epoch {state.epoch:g} ({share:.0%}): {', '.join(parts)}", flush=True)
