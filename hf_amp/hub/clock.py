"""How long a training took, all its parts together."""

import time
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class TrainingClock(TrainerCallback, ExportableState):
    """Counts the seconds of a training. Checkpoints hold them, so that one that is resumed counts on from there.

    trainer.add_callback(TrainingClock())
    """

    @classmethod
    def of(cls, trainer: Trainer) -> "TrainingClock | None":
        """Return the one of a trainer; None if it has none."""
        return next((one for one in trainer.callback_handler.callbacks if isinstance(one, cls)), None)

    def __init__(self) -> None:
        self._before = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the start of the training to its end, or to now, without what was lost by a stop."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin at 0, or with what the checkpoint holds that is resumed from."""
        states: Any = state.stateful_callbacks
        stored = states.get(type(self).__name__) if state.global_step else None
        self._before = 0.0 if stored is None else stored["attributes"]["before"]
        self._start = time.monotonic()
        states.setdefault(type(self).__name__, self.state())  # where `Trainer` looks for it when it saves

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop."""
        self._before, self._start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"args": {}, "attributes": {"before": self.seconds}}
