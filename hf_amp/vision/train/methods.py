"""The training schemes that the paper compares, and SAM: one row each, with settings, loss and words.

Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021,
section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy to labels that keep 1 − `smoothing` and spread the rest over the others.

    The smoothed mass goes to the other K − 1 classes, as in the paper's code;
    `torch.nn.functional.cross_entropy` spreads it over all K.

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


@dataclass(frozen=True)
class Method:
    """One training scheme.

    Args:
        label: how tables call it.
        how: how a card says that weights were trained with it.
        fields: the training arguments that it reads; a scheme with a loss of its own reads one, its strength.
        fixed: the values that it forces on training arguments; by default no perturbation.
        published: the values of its own fields that are None: the paper's, but for SAM (0.05: Foret et al., ICLR 2021).
        rule: what its strength must be, in words and as a test.
        tag: of its model cards.
        loss: (logits, labels, strength) → mean loss; None: the model's own loss.
        images: (model, images, labels, radius) → the images that it trains on; None: those of the batch.
    """

    label: str
    how: str
    fields: tuple[str, ...] = ()
    fixed: Mapping[str, float | str] = field(default_factory=lambda: {"amp_epsilon": 0.0})
    published: Mapping[str, float] = field(default_factory=dict)
    rule: tuple[str, Callable[[float], bool]] = ("", lambda _: True)
    tag: str | None = None
    loss: Callable[[Tensor, Tensor, float], Tensor] | None = None
    images: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None


def _cross_entropy(logits: Tensor, labels: Tensor, _: float) -> Tensor:
    return F.cross_entropy(logits, labels)


_SHARE = ("in [0, 1)", lambda value: 0 <= value < 1)
_POSITIVE = ("finite and > 0", lambda value: 0 < value < math.inf)

METHODS: dict[str, Method] = {
    "erm": Method("ERM", "plain empirical risk minimisation"),
    "amp": Method(
        "AMP",
        "adversarial model perturbation (AMP)",
        fields=_AMP_FIELDS + _SCHEDULE_FIELDS,
        fixed={},
    ),
    "sam": Method(
        "SAM",
        "sharpness-aware minimisation (SAM): the step Δ = ε g/‖g‖ over all parameters",
        fields=("amp_epsilon", *_SCHEDULE_FIELDS),
        fixed={"amp_norm": "global", "amp_inner_lr": SAM_INNER_LR, "amp_inner_iter": 1},
        published={"amp_epsilon": 0.05},
        tag="sharpness-aware-minimization",
    ),
    "rmp": Method(
        "RMP",
        "random model perturbation (RMP): Δ is drawn at random from the ε-ball of each tensor",
        fields=("amp_epsilon", "amp_start", "amp_end", "amp_every", "amp_target_parameters"),
        # Its only pass is the one at θ + Δ, which must then update the running statistics.
        fixed={"amp_norm": "tensor", "amp_inner_iter": 1, "amp_scope": "batch", "amp_norm_stats": "descent"},
        published={"amp_epsilon": 0.1},
    ),
    "dropout": Method("Dropout", "dropout", fields=("dropout",), published={"dropout": 0.1}, rule=_SHARE),
    "label_smoothing": Method(
        "Label smoothing",
        "label smoothing",
        fields=("smoothing",),
        published={"smoothing": 0.2},
        rule=_SHARE,
        loss=smoothed_cross_entropy,
    ),
    "flooding": Method(
        "Flooding",
        "flooding",
        fields=("flood_level",),
        published={"flood_level": 0.02},
        rule=("finite and >= 0", lambda value: 0 <= value < math.inf),
        loss=lambda logits, labels, level: flooded(F.cross_entropy(logits, labels), level),
    ),
    "mixup": Method(
        "MixUp",
        "MixUp",
        fields=("mixup_alpha",),
        published={"mixup_alpha": 1.0},
        rule=_POSITIVE,
        loss=_cross_entropy,
    ),
    "adversarial": Method(
        "Adv. training",
        "adversarial training: images are moved by the sign of their gradient",
        fields=("adversarial_radius",),
        published={"adversarial_radius": 1.0},
        rule=_POSITIVE,
        loss=_cross_entropy,
        images=adversarial_images,
    ),
}

METHOD_FIELDS = tuple(sorted({name for method in METHODS.values() for name in method.fields}))
