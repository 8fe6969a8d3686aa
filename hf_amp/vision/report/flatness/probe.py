"""How a classifier's loss changes around its weights: random directions, the worst one, and its calibration.

Everything here leaves the model as it found it, bit for bit, and evaluates it in evaluation mode, so batch norm uses
its running statistics. Splits are mappings from a name to batches, which are mappings with `pixel_values` and integer
`labels`; results are mappings from that name to `loss`, the mean cross-entropy in nats, and `error_rate` in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from hf_amp.passes import gradients_set_aside
from hf_amp.perturbation import Perturbation, forget_copies
from hf_amp.vision.report.metrics import classification_metrics, reliability_bins

Batches = Sequence[Mapping[str, Tensor]]
Splits = Mapping[str, Batches]
Direction = Mapping[str, Tensor]
Point = dict[str, dict[str, float]]

# An ascent of this many radii, of which the ball keeps one: Δ then lies on the sphere, in the gradient's direction.
_RADII_PER_ASCENT = 1e6
SHARPNESS_RADIUS = 0.1


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def movable_weights(model: nn.Module) -> Iterator[Callable[[Sequence[float], Sequence[Direction]], None]]:
    """Give a function that sets the weights to θ + Σ size · direction; afterwards they are θ, whatever happens.

    Args:
        model: its parameters are moved, each time from a copy of θ, so that no rounding adds up.
    """
    params = dict(model.named_parameters())
    theta = {name: param.detach().clone() for name, param in params.items()}

    @torch.no_grad()
    def move(sizes: Sequence[float], directions: Sequence[Direction]) -> None:
        for name, param in params.items():
            param.copy_(theta[name])
            for size, direction in zip(sizes, directions, strict=True):
                param.add_(direction[name], alpha=size)
        forget_copies()

    try:
        yield move
    finally:
        move((), ())


@torch.no_grad()
def filter_normalised_direction(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a random direction in which every filter is as long as the model's own.

    d_f ← d_f ‖w_f‖ / ‖d_f‖ for normal d_f, where a filter f is what makes one output channel of a convolution, or a
    row of a matrix. Biases and parameters of normalisation layers (every parameter with fewer than two dimensions)
    get 0, as usual. So a step of size 1 is as large as the weights themselves, and networks that batch norm makes
    equal up to the scale of their filters can be compared.
    Source: Li, Xu, Taylor, Studer, Goldstein, *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4.

    Args:
        model: gives names, shapes and norms.
        generator: of the CPU, so that the direction does not depend on the model's device.

    Returns:
        One tensor per parameter, by name.
    """
    direction = {}
    for name, param in model.named_parameters():
        if param.dim() < 2:
            direction[name] = torch.zeros_like(param)
            continue
        noise = torch.randn(param.shape, generator=generator).to(param)
        lengths, wanted = (torch.linalg.vector_norm(one.flatten(1), dim=1) for one in (noise, param))
        factors = wanted / lengths
        direction[name] = noise * factors.reshape(-1, *[1] * (param.dim() - 1))
    return direction


@torch.no_grad()
def evaluate(model: nn.Module, splits: Splits) -> Point:
    """Return loss and error rate of a model, as it is, on each split.

    Args:
        model: takes `pixel_values` and gives `.logits`; its mode is the caller's business.
        splits: images by name of the split.
    """
    return {name: _evaluate(model, batches, backward=False) for name, batches in splits.items()}


def losses_at(
    model: nn.Module,
    directions: Sequence[Direction],
    coordinates: Sequence[Sequence[float]],
    splits: Splits,
    on_point: Callable[[], object] = lambda: None,
) -> list[Point]:
    """Return losses and errors at θ + Σ_i x_i d_i for each place x: along a ray, or on a plane.

    Args:
        model: takes `pixel_values` and gives `.logits`.
        directions: d_1, d_2, …, e.g. of `filter_normalised_direction`.
        coordinates: places x, with one number for each direction.
        splits: images by name of the split.
        on_point: is called after each place.
    """
    points = []
    with evaluation_mode(model), movable_weights(model) as move:
        for sizes in coordinates:
            move(sizes, directions)
            points.append(evaluate(model, splits))
            on_point()
    return points


def worst_losses(
    model: nn.Module,
    splits: Splits,
    epsilon: float,
    norm: str,
    ascents: int = 5,
    start: Point | None = None,
    on_pass: Callable[[], object] = lambda: None,
) -> Point:
    """Return losses and errors at θ + Δ, where Δ is the worst found in the ε-ball for the first of the splits.

    L_AMP(θ) = max over ‖Δ‖ ≤ ε of L(θ + Δ). Each ascent is that of AMP, with ζ so large that Δ reaches the sphere,
    along the gradient at θ + Δ of the whole split. The other splits are evaluated at the Δ of the first. What is
    found is a lower bound of the maximum.

    Args:
        model: takes `pixel_values` and gives `.logits`; all its trainable parameters are perturbed.
        splits: images by name of the split; Δ is sought on the first one.
        epsilon: radius ε > 0.
        norm: `"tensor"`, one ball for each parameter tensor, or `"global"`, one around all.
        ascents: N >= 1.
        start: what was found in a smaller ball, which lies in this one: the result is never below it.
        on_pass: is called after each pass over the first split, `ascents` + 1 times.

    Raises:
        ValueError: `ascents` is below 1.
    """
    if ascents < 1:
        raise ValueError(f"`ascents` must be >= 1, got {ascents}; 5 is a good start")
    first, *others = splits
    params = [param for param in model.parameters() if param.requires_grad]
    perturbation = Perturbation(params, epsilon, norm)
    best = dict(start or {})
    for i in range(ascents + 1):
        with evaluation_mode(model), gradients_set_aside(params):
            with perturbation.applied():
                found = _evaluate(model, splits[first], backward=i < ascents)
                if not best or (math.isfinite(found["loss"]) and found["loss"] > best[first]["loss"]):
                    best = {first: found, **evaluate(model, {name: splits[name] for name in others})}
            if i < ascents:
                _ascend(perturbation)
        on_pass()
    return best


def measure_sharpness(model: nn.Module, batches: Batches, radius: float = SHARPNESS_RADIUS) -> float:
    """Return how much the loss rises to θ + Δ, Δ = ε g/‖g‖: along its gradient, to the sphere around all parameters.

    Small differences say little: networks with batch norm may be rescaled without a change of their function.

    Returns:
        The rise of the mean cross-entropy in nats, 0 at least.
    """
    splits = {"images": batches}
    with evaluation_mode(model):
        start = evaluate(model, splits)
    worst = worst_losses(model, splits, radius, "global", ascents=1, start=start)
    return worst["images"]["loss"] - start["images"]["loss"]


def _ascend(perturbation: Perturbation) -> None:
    """Take Δ to the sphere along the gradient, or anywhere in the ball where that is 0 and gives no direction."""
    norms = [torch.linalg.vector_norm(p.grad) for p in perturbation.params if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if not norm.item():
        perturbation.randomize(torch.Generator(norm.device).manual_seed(0))
    else:
        perturbation.ascend(_RADII_PER_ASCENT * perturbation.epsilon, grad_scale=norm)


def _evaluate(model: nn.Module, batches: Batches, backward: bool) -> dict[str, float]:
    """Return mean loss and error rate, and add the gradient of the mean loss to that of the parameters if asked."""
    device = next(model.parameters()).device
    count = sum(len(batch["labels"]) for batch in batches)
    losses, wrong = [], []
    with torch.set_grad_enabled(backward):
        for batch in batches:
            labels = batch["labels"].to(device)
            logits = _logits(model, batch["pixel_values"].to(device))
            loss = F.cross_entropy(logits, labels, reduction="sum")
            if backward:
                (loss / count).backward()
            losses.append(loss.detach())
            wrong.append((logits.argmax(1) != labels).sum())
    # In double precision, since the mean of many hides small differences; on the CPU, since not all devices have it.
    mean = torch.stack(losses).cpu().double().sum() / count
    return {"loss": float(mean), "error_rate": int(torch.stack(wrong).sum()) / count}


def _logits(model: nn.Module, pixel_values: Tensor) -> Tensor:
    logits: Tensor = model(pixel_values=pixel_values).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def reliability(model: nn.Module, splits: Splits) -> dict[str, dict[str, Any]]:
    """Return the metrics of each split and its bins of confidence.

    Args:
        model: takes `pixel_values` and gives `.logits`.
        splits: images by name of the split.

    Returns:
        Per split `accuracy`, `error_rate`, `nll`, `ece` and `bins`, as `reliability_bins` makes them.
    """
    device = next(model.parameters()).device
    result = {}
    with evaluation_mode(model):
        for name, batches in splits.items():
            logits = torch.cat([_logits(model, batch["pixel_values"].to(device)).cpu() for batch in batches]).numpy()
            labels = torch.cat([batch["labels"].cpu() for batch in batches]).numpy()
            result[name] = {**classification_metrics(logits, labels), "bins": reliability_bins(logits, labels)}
    return result
