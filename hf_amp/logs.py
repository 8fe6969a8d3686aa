"""What steps report between two logs, and between two evaluations, summed on the device, and what is kept of it."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_amp.perturbation import Perturbation

if TYPE_CHECKING:
    from transformers import Trainer

_Stored = TypeVar("_Stored", bound="StoredCallback")


class PerturbationLog:
    """Sums of the values of AMP steps since the training loss was last logged; empty while AMP is inactive."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._since = 0

    def add(
        self, perturbation: Perturbation, share: float, sharpness: Tensor | None, device: torch.device, since: int
    ) -> None:
        """Add the values of one micro-batch.

        Args:
            perturbation: its Δ.
            share: of the micro-batch in its optimizer step.
            sharpness: loss at θ + Δ less that at θ, as they count in the step, 0-dim; None: the latter is not known.
            device: of the sums.
            since: the optimizer step after which the loss was last logged.
        """
        values = {"perturbation_norm": perturbation.norm * share, "skipped_ascents": perturbation.skipped * share}
        if sharpness is not None:
            values["sharpness"] = sharpness
        if not self._totals:
            self._since = since
        for name, value in values.items():
            value = value.to(device)
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def drain_into(self, logs: dict[str, float], global_step: int, gather: Callable[[Tensor], Any]) -> None:
        """Write the means over steps and processes into `logs`, which hold `loss`, and start anew.

        `skipped_ascents` is a count and stays a sum over the steps. All processes must call this together, with a
        `gather` that concatenates their vectors.
        """
        steps = global_step - self._since
        if not self._totals or steps <= 0:
            return
        totals = torch.stack(list(self._totals.values()))
        means = gather(totals).reshape(-1, len(totals)).mean(dim=0).tolist()
        values = dict(zip(self._totals, means, strict=True))
        self._totals = {}
        if "sharpness" in values:
            sharpness = values.pop("sharpness") / steps
            logs["erm_loss"] = logs["loss"] - sharpness
            logs["sharpness"] = sharpness
        logs["perturbation_norm"] = values["perturbation_norm"] / steps
        logs["skipped_ascents"] = values["skipped_ascents"]


class StepMean:
    """Mean of a loss over optimizer steps and processes, summed on the device."""

    def __init__(self, total: float = 0.0, steps: int = 0) -> None:
        self.total, self.steps = total, steps
        self._pending: Tensor | None = None

    def add(self, loss: Tensor, is_new_step: bool) -> None:
        """Add what a micro-batch contributes to the loss of its step, in float32 at least.

        What is not finite counts as 0, as in the loss that `Trainer` logs.
        """
        self.steps += is_new_step
        wide = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        finite = torch.nan_to_num(wide, posinf=0.0, neginf=0.0)
        self._pending = finite if self._pending is None else self._pending + finite

    def collect(self) -> float:
        """Bring the sum to the host and return the mean; all processes together."""
        if self._pending is not None:
            mean: Any = reduce(self._pending, reduction="mean")
            self.total += mean.item()
            self._pending = None
        return self.total / max(1, self.steps)

    def state(self) -> dict[str, Any]:
        """Return what makes the mean again."""
        pending = 0.0 if self._pending is None else self._pending.item()
        return {"total": self.total + pending, "steps": self.steps}


def mean_over_processes(value: float, accelerator: Accelerator) -> float:
    """Return the mean of a number that each process may have come to by itself; all processes together."""
    if accelerator.num_processes == 1:
        return value
    mean: Any = accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device), "mean")
    return mean.item()


class StoredCallback(TrainerCallback, ExportableState):
    """A callback of which a Trainer has one, and whose state its checkpoints hold."""

    @classmethod
    def of(cls: type[_Stored], trainer: "Trainer") -> _Stored | None:
        """Return the one of a trainer; None if it has none."""
        return next((one for one in trainer.callback_handler.callbacks if isinstance(one, cls)), None)

    def begin(self, state: TrainerState, stored: Mapping[str, Any] | None) -> None:
        """Begin a training.

        Args:
            state: of the training.
            stored: attributes in the checkpoint that is resumed from; None where there are none.
        """
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin anew, or with what the checkpoint holds that is resumed from."""
        states: Any = state.stateful_callbacks
        stored = states.get(type(self).__name__) if state.global_step else None
        self.begin(state, None if stored is None else stored["attributes"])
        states.setdefault(type(self).__name__, self.state())  # where `Trainer` looks for it when it saves


class TrainingClock(StoredCallback):
    """Counts the seconds of a training, those before a resume included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the start of the training to its end, or to now, without what was lost by a stop."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def begin(self, state: TrainerState, stored: Mapping[str, Any] | None) -> None:  # noqa: ARG002
        """Begin at 0, or with the seconds of the checkpoint."""
        self._before, self._start = 0.0 if stored is None else stored["before"], time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop."""
        self._before, self._start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"args": {}, "attributes": {"before": self.seconds}}
