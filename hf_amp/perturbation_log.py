"""What AMP steps report between two logs, summed on the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PerturbationLog:
    """Sums of the values of AMP steps since the training loss was last logged; empty while AMP is inactive."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._since = 0

    def add(self, values: dict[str, Tensor], last_logged_step: int) -> None:
        """Add the values of one micro-batch, 0-dim tensors on one device."""
        if not self._totals:
            self._since = last_logged_step
        for name, value in values.items():
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
