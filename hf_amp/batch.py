"""How a micro-batch is cut for an ascent on a share of the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """What can be taken from a micro-batch.

    Args:
        size: number of samples.
        take: returns the inputs of the first n samples, 1 ≤ n ≤ size; the inputs themselves stay as they are.
        least: the fewest samples that make sense together, e.g. 2 if each is a negative for the others.
    """

    size: int
    take: Callable[[int], Any]
    least: int = 1
