"""The training schemes that the paper compares, and SAM: their settings and their losses.

Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021,
section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

# Δ = ζ g is projected to ε g/‖g‖, SAM's perturbation, whenever ζ‖g‖ >= ε: here for ‖g‖ >= 1e-6 ε.
SAM_INNER_LR = 1e6

_AMP_FIELDS = ("amp_epsilon", "amp_inner_lr", "amp_inner_iter", "amp_norm")
_SCHEDULE_FIELDS = (
    "amp_scope",
    "amp_norm_stats",
    "amp_start",
    "amp_end",
    "amp_every",
    "amp_ascent_fraction",
    "amp_target_parameters",
)
_OFF: Mapping[str, float] = {"amp_epsilon": 0.0}


@dataclass(frozen=True)
class Method:
    """One training scheme.

    Args:
        label: how tables call it.
        fields: the training arguments that it reads.
        fixed: the values that it forces on training arguments.
        defaults: the values of its own fields that are None; the paper's ones, but for SAM (0.05 there: Foret
            et al., ICLR 2021).
    """

    label: str
    fields: tuple[str, ...] = ()
    fixed: Mapping[str, float | str] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "erm": Method("ERM", fixed=_OFF),
    "amp": Method("AMP", fields=_AMP_FIELDS + _SCHEDULE_FIELDS, defaults={"amp_epsilon": 0.5}),
    "sam": Method(
        "SAM",
        fields=("amp_epsilon", *_SCHEDULE_FIELDS),
        fixed={"amp_norm": "global", "amp_inner_lr": SAM_INNER_LR, "amp_inner_iter": 1},
        defaults={"amp_epsilon": 0.05},
    ),
    "rmp": Method(
        "RMP",
        fields=("amp_epsilon", "amp_start", "amp_end", "amp_every", "amp_target_parameters"),
        # Its only pass is the one at θ + Δ, which must then update the running statistics.
        fixed={"amp_norm": "tensor", "amp_inner_iter": 1, "amp_scope": "batch", "amp_norm_stats": "descent"},
        defaults={"amp_epsilon": 0.1},
    ),
    "dropout": Method("Dropout", fields=("dropout",), fixed=_OFF, defaults={"dropout": 0.1}),
    "label_smoothing": Method("Label smoothing", fields=("smoothing",), fixed=_OFF, defaults={"smoothing": 0.2}),
    "flooding": Method("Flooding", fields=("flood_level",), fixed=_OFF, defaults={"flood_level": 0.02}),
    "mixup": Method("MixUp", fields=("mixup_alpha",), fixed=_OFF, defaults={"mixup_alpha": 1.0}),
    "adversarial": Method(
        "Adv. training", fields=("adversarial_radius",), fixed=_OFF, defaults={"adversarial_radius": 1.0}
    ),
}

METHOD_FIELDS = tuple(sorted({name for method in METHODS.values() for name in method.fields}))


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy to labels that keep 1 − `smoothing` and spread the rest over the others.

    The smoothed mass goes to the other K − 1 classes, as in the paper's code;
    [`torch.nn.functional.cross_entropy`] spreads it over all K.

    Args:
        logits: (batch, classes) float.
        labels: (batch,) integer labels.
        smoothing: mass taken from the label, in [0, 1).

    Returns:
        A scalar.
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    at_label = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    share = smoothing / (logits.shape[1] - 1)
    others = log_probabilities.sum(dim=1) - at_label
    return -((1 - smoothing) * at_label + share * others).mean()


def flooded(loss: Tensor, flood_level: float) -> Tensor:
    """Return |loss − b| + b: below the level b the gradient climbs (Ishida et al., ICML 2020).

    Args:
        loss: the mean loss of a batch, a scalar.
        flood_level: b, >= 0.
    """
    return (loss - flood_level).abs() + flood_level


def adversarial_images(model: nn.Module, pixel_values: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
    """Return images moved by `radius` along the sign of the loss gradient (fast gradient sign method).

    The gradient is taken in evaluation mode, so that running statistics of batch norm see no extra pass; the
    model's mode and the gradients of its parameters are as before.

    Args:
        model: gives `.logits` for `pixel_values`.
        pixel_values: (batch, channels, height, width) float, normalised.
        labels: (batch,) integer labels.
        radius: (channels,) L∞ radius in normalised units: the radius in pixel values divided by the std.

    Returns:
        The moved images, shaped as `pixel_values`, without a graph.
    """
    was_training = model.training
    images = pixel_values.detach().requires_grad_()
    model.eval()
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(model(pixel_values=images).logits.float(), labels)
            (gradient,) = torch.autograd.grad(loss, images)
    finally:
        model.train(was_training)
    return images.detach() + radius.to(images).view(1, -1, 1, 1) * gradient.sign()
