"""Random numbers that are pure functions of seed, epoch, image and draw, on any device.

A generator's numbers depend on who asked before: on workers, micro-batches, processes, and on where a run was
interrupted. Here nothing is remembered. Number `draw` of image `index` in `epoch` is a hash of (seed, epoch, index,
draw), the same on a CPU and on a GPU: it is output 16 index + draw of SplitMix64, started at a hash of seed and epoch.
SplitMix64 gives any output without those before it (Steele, Lea, Flood, *Fast splittable pseudorandom number
generators*, OOPSLA 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64
DRAWS = 16  # numbers of an image in an epoch


class RandomStream:
    """The random numbers of some images in one epoch.

    Args:
        seed: of the whole training.
        epoch: counted from 0.
        indices: (batch,) int64, places of the images in their data set.
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor) -> None:
        key = _mix_int(_mix_int(seed + _GOLDEN) + epoch)
        counters = indices[:, None] * DRAWS + torch.arange(1, DRAWS + 1, device=indices.device)
        # All numbers of a batch in one go: on a GPU each operation costs the same, however small it is.
        words = _mix(counters * _signed(_GOLDEN) + _signed(key))
        self._uniform = _shift(words, 40).to(torch.float32) * 2.0**-24
        self._upper = _shift(words, 32)

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self._upper.device

    def uniform(self, draw: int) -> Tensor:
        """Return (batch,) float32 in [0, 1), in steps of 2⁻²⁴, for draw < 16."""
        return self._uniform[:, draw]

    def integers(self, draw: int, high: int) -> Tensor:
        """Return (batch,) int64 in [0, high), for draw < 16 and high <= 2³¹."""
        return (self._upper[:, draw] * high) >> 32


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shift(word, 30)) * _signed(_MULTIPLIERS[0])
    word = (word ^ _shift(word, 27)) * _signed(_MULTIPLIERS[1])
    return word ^ _shift(word, 31)


def _mix_int(word: int) -> int:
    word %= _WORD
    word = (word ^ (word >> 30)) * _MULTIPLIERS[0] % _WORD
    word = (word ^ (word >> 27)) * _MULTIPLIERS[1] % _WORD
    return word ^ (word >> 31)


def _shift(word: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; `>>` of int64 repeats the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word
