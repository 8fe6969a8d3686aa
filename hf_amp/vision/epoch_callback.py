"""Tell the training data, and the order it is read in, which epoch begins."""

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
