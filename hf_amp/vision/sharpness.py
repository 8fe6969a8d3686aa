"""How sharp a trained model's minimum is, measured alike for every method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from hf_amp.passes import gradients_set_aside
from hf_amp.perturbation import Perturbation
from hf_amp.vision.methods import SAM_INNER_LR

SHARPNESS_RADIUS = 0.1


def measure_sharpness(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], radius: float = SHARPNESS_RADIUS
) -> float:
    """Return L(θ + Δ) − L(θ) for Δ = ε g/‖g‖, the first-order worst perturbation of norm ε of all parameters.

    The model is in evaluation mode meanwhile; parameters, their gradients and the mode are as before
    afterwards.
    Perturbations of one size for all methods can be compared; but networks with batch norm may be rescaled
    without
    a change of their function, so small differences say little.

    Args:
        model: takes `pixel_values` and gives `.logits`.
        batches: mappings with `pixel_values` and integer `labels`, read twice.
        radius: ε, > 0, over all parameters together.

    Returns:
        The rise of the mean cross-entropy, in nats.
    """
    batches = list(batches)
    params = [param for param in model.parameters() if param.requires_grad]
    perturbation = Perturbation(params, radius, "global")
    was_training = model.training
    model.eval()
    try:
        with gradients_set_aside(params):
            at_theta = _mean_loss(model, batches, backward=True)
            perturbation.ascend(SAM_INNER_LR)
        with perturbation.applied(), torch.no_grad():
            at_perturbed = _mean_loss(model, batches, backward=False)
    finally:
        model.train(was_training)
    return float(at_perturbed - at_theta)


def _mean_loss(model: nn.Module, batches: list[Mapping[str, Any]], backward: bool) -> Tensor:
    count = sum(len(batch["labels"]) for batch in batches)
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for batch in batches:
        logits = model(pixel_values=batch["pixel_values"].to(device)).logits.float()
        loss = F.cross_entropy(logits, batch["labels"].to(device), reduction="sum") / count
        if backward:
            loss.backward()
        total += loss.detach()
    return total
