"""What is told while a training runs: the epoch to the data, a line per epoch to the reader."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_amp.files import write_whole

_BEST_NAME = "best.safetensors"


class EpochCallback(TrainerCallback):
    """Call `set_epoch` of the training data set and of its loader at the start of each epoch.

    The `Trainer` hands the epoch to Accelerate's loader, which passes it on to *either* the sampler *or* the data
    set: with several processes, and after a resume inside an epoch, the data set hears nothing, and with several
    processes after such a resume the sampler hears nothing (`DataLoaderShard.set_epoch` in Accelerate 1.12 to 1.15).

        trainer = AMPTrainer(model, args, collator, train_dataset=images, callbacks=[EpochCallback()])
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
        parts = [
            f"{name} {self._training[name]:.4f}"
            for name in ("loss", "sharpness", "amp_epsilon")
            if name in self._training
        ]
        parts.append(f"{self.split} error {metrics['eval_error_rate']:.2%}")
        parts.append(f"NLL {metrics['eval_nll']:.4f}")
        share = state.global_step / state.max_steps if state.max_steps else 1.0
        print(f"{self.name}, epoch {state.epoch:g} ({share:.0%}): {', '.join(parts)}", flush=True)


class TimedCheckpoints(TrainerCallback):
    """Have a checkpoint written when some minutes have passed since the last one, so that short trainings write none.

    One process looks at its clock after each step; several agree on the main one's at the end of each epoch.

    Args:
        minutes: between checkpoints, > 0.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin to count."""
        self._last = time.monotonic()

    def on_save(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Count from here."""
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint when it is time."""
        if args.world_size == 1 and time.monotonic() - self._last >= self.seconds:
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint when it is time, on all processes or on none."""
        if args.world_size > 1:
            due = [time.monotonic() - self._last >= self.seconds]
            control.should_save |= bool(broadcast_object_list(due)[0])


class BestWeights(TrainerCallback):
    """Keep the weights of the best evaluation in memory, and beside each checkpoint.

    Args:
        metric: of the evaluation; the lowest is best, of equals the first.

    Attributes:
        step: after which they were evaluated; None: nothing was.
        weights: state dict of the model.
    """

    def __init__(self, metric: str = "eval_error_rate") -> None:
        self.metric, self.value = metric, float("inf")
        self.step: int | None = None
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self,
        args: Any,  # noqa: ARG002
        state: TrainerState,
        control: Any,  # noqa: ARG002
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Take a copy where it is the best so far."""
        if metrics is None or not metrics.get(self.metric, float("inf")) < self.value:
            return
        self.value, self.step = metrics[self.metric], state.global_step
        plain = getattr(model, "_orig_mod", model)  # of torch.compile
        self.weights = {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write the copy into the checkpoint."""
        if self.step is None or not args.should_save:
            return
        place = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _BEST_NAME
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.weights.items()}
        write_whole(place, save(tensors, {"step": str(self.step), "value": repr(self.value)}))

    def load(self, checkpoint: Path) -> None:
        """Take up the copy that a checkpoint holds, if it holds one."""
        if (checkpoint / _BEST_NAME).is_file():
            with safe_open(checkpoint / _BEST_NAME, "pt") as file:
                self.weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                said = file.metadata()
            self.step, self.value = int(said["step"]), float(said["value"])
