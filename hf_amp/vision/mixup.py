"""Weights of MixUp.

Source: Zhang et al., *mixup: Beyond empirical risk minimization*, ICLR 2018.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_QUANTILES = 1 << 14


def mixing_weights(uniform: Tensor, alpha: float) -> Tensor:
    """Turn uniform numbers into numbers of Beta(α, α), by the inverse of its distribution function.

    Args:
        uniform: (batch,) float32 in [0, 1).
        alpha: > 0; for 1 the numbers stay as they are.

    Returns:
        (batch,) float32 in [0, 1]; for other α interpolated between 16,385 exact quantiles.
    """
    if alpha == 1:
        return uniform
    quantiles = _quantiles(alpha, uniform.device)
    place = uniform * _QUANTILES
    below = place.long()
    return torch.lerp(quantiles[below], quantiles[below + 1], place - below)


@cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return 16,385 quantiles; copied to a GPU once."""
    from scipy.stats import beta

    quantiles = beta.ppf(np.linspace(0, 1, _QUANTILES + 1), alpha, alpha)
    return torch.tensor(quantiles, dtype=torch.float32, device=device)
