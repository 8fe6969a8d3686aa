"""Pushes that run while training goes on."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy

# Of a checkpoint, what others need to load the model. `Trainer` copies the same but the code, and pickles the training
# arguments anew.
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "adapter_model.*",
    "training_args.bin",
    "*.py",
)


class BackgroundPushes:
    """The pushes of one Trainer, one after the other.

    Args:
        report: is called with each upload that has ended, in the thread of the upload.
    """

    def __init__(self, report: Callable[[Future], None]) -> None:
        self._hub = HfApi()  # its uploads queue up; those of two instances would run side by side and clash
        self._report, self._jobs = report, []

    def is_running(self) -> bool:
        """Whether an upload has not ended yet."""
        return not all(job.done() for job in self._jobs)

    def wait(self) -> None:
        """Wait until every upload has ended, well or not."""
        wait(self._jobs)

    def push(self, checkpoint: Path, repo_id: str, args: TrainingArguments, state: TrainerState) -> None:
        """Push the output folder and, where `hub_strategy` says so, the checkpoint, with the `Trainer`'s messages.

        Args:
            checkpoint: its model is in the output folder, see `copy_model`.
            repo_id: where to.
            args: of the Trainer.
            state: of the Trainer.
        """
        by_steps = args.save_strategy == SaveStrategy.STEPS
        when = f"step {state.global_step}" if by_steps else f"epoch {int(state.epoch or 0)}"
        message = f"Training in progress, {when}"
        to: dict[str, Any] = {"repo_id": repo_id, "token": args.hub_token, "revision": args.hub_revision}
        self._jobs = [job for job in self._jobs if not job.done()]
        self._start(
            folder_path=args.output_dir,
            commit_message=message,
            ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
            **to,
        )
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            self._start(
                folder_path=checkpoint,
                path_in_repo="last-checkpoint" if is_last else checkpoint.name,
                commit_message=f"{message}, checkpoint",
                **to,
            )

    def _start(self, **upload: Any) -> None:
        job = self._hub.upload_folder(run_as_future=True, **upload)
        job.add_done_callback(self._report)
        self._jobs.append(job)


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy weights, configuration and modelling code of a checkpoint, without the state of its training."""
    for pattern in _MODEL_FILES:
        for path in checkpoint.glob(pattern):
            shutil.copy(path, folder / path.name)
