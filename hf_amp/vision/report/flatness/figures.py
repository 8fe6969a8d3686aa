"""Figures of flatness: loss against size of perturbation, loss surfaces, reliability diagrams.

Each takes a file to write and the models of a `flatness.json`. Colours can be told apart by colour-blind readers, and
splits differ by line style, too.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hf_amp.hub.learning_curves import save_png
from hf_amp.vision.report.figures import literal

Models = Sequence[Mapping[str, Any]]

# Okabe and Ito's blue and vermilion: told apart by all readers, and in grey.
_COLOURS = ("#0072B2", "#D55E00")
_STYLES = (("-", "o"), ("--", "s"))
_SMALLEST_LOSS = 1e-6
_LEVELS = 13
_LOGARITHMIC_FROM = 10


def save_perturbation(path: str | os.PathLike[str], models: Models) -> None:
    """Draw loss and error rate against the size of random and of worst perturbations.

    Args:
        path: PNG file to write.
        models: `label`, `random` and `worst` of each.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    directions = len(models[0]["random"][_splits(models)[0]]["loss"])
    worst = models[0]["worst"]
    ball = "for each tensor" if worst["norm"] == "tensor" else "for all parameters together"
    axes[0, 0].set_title(f"Random directions: mean ± std of {directions}" if directions > 1 else "A random direction")
    axes[0, 1].set_title(f"Worst direction for the {worst['found_on']} loss (AMP)")
    axes[1, 0].set_xlabel("step, relative to the weights, filter by filter")
    axes[1, 1].set_xlabel(f"radius ε, L2 norm {ball}")
    for row, (metric, name, factor) in zip(
        axes, (("loss", "loss in nats", 1), ("error_rate", "error in %", 100)), strict=True
    ):
        for panel, kind, sizes in zip(row, ("random", "worst"), ("sizes", "epsilons"), strict=True):
            for model, colour in zip(models, _COLOURS, strict=False):
                for split, (line, marker) in zip(_splits(models), _STYLES, strict=True):
                    values = np.atleast_2d(_array(model[kind][split][metric])) * factor
                    label = literal(f"{model['label']}, {split}")
                    _curve(panel, model[kind][sizes], values, color=colour, linestyle=line, marker=marker, label=label)
            panel.set_ylabel(name)
            panel.grid(alpha=0.3)
            _scale_losses(panel) if metric == "loss" else panel.set_ylim(0, 1.05 * panel.dataLim.ymax or 1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_png(figure, path)


def save_contours(path: str | os.PathLike[str], models: Models) -> None:
    """Draw the loss over two random directions as contours, a column for each model and a row for each split."""
    figure = Figure(figsize=(2 + 4.2 * len(models), 8.6), layout="compressed")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey=True)
    low, high = _shared_range(models)
    levels, norm = np.geomspace(low, high, _LEVELS), LogNorm(low, high)
    drawn = []
    for row, split in zip(panels, _splits(models), strict=True):
        for axes, model in zip(row, models, strict=True):
            places, loss = _surface(model, split)
            filled = axes.contourf(places, places, loss, levels=levels, norm=norm, cmap="viridis", extend="both")
            drawn.append(filled)
            axes.contour(places, places, loss, levels=levels, norm=norm, colors="white", linewidths=0.5, alpha=0.6)
            axes.plot(0, 0, marker="*", color="white", markeredgecolor="black", markersize=13)
            axes.set_aspect("equal")
            axes.set(xticks=places[[0, len(places) // 2, -1]], yticks=places[[0, len(places) // 2, -1]])
            axes.set_title(f"{_name(model, split)}\n{_at_middle(model, split):.3g} nats at θ (★)")
    for axes in panels[-1]:
        axes.set_xlabel("step along direction 1,\nrelative to the weights")
    for axes in panels[:, 0]:
        axes.set_ylabel("step along direction 2,\nrelative to the weights")
    bar = figure.colorbar(drawn[0], ax=panels, format=_formatter(low, high), ticks=levels[::2])
    bar.set_label("loss in nats")
    save_png(figure, path)


def save_reliability(path: str | os.PathLike[str], models: Models) -> None:
    """Draw accuracy against confidence, and how many images have that confidence, a column for each model and split."""
    splits = _splits(models)
    columns = [(model, split, colour) for model, colour in zip(models, _COLOURS, strict=False) for split in splits]
    figure = Figure(figsize=(0.6 + 3.6 * len(columns), 5.2), layout="constrained")
    panels = figure.subplots(2, len(columns), height_ratios=(3, 1), sharex=True, sharey="row")
    for (above, below), (model, split, colour) in zip(panels.T, columns, strict=True):
        scores = model["reliability"][split]
        filled = [one for one in scores["bins"] if one["count"]]
        left, width = [one["lower"] for one in filled], scores["bins"][0]["upper"]
        accuracy, confidence = (np.array([one[key] for one in filled]) for key in ("accuracy", "confidence"))
        bars = {"width": width, "align": "edge", "edgecolor": "black", "linewidth": 0.6}
        above.bar(left, accuracy, color=colour, alpha=0.75, label="accuracy", **bars)
        above.bar(
            left, confidence - accuracy, bottom=accuracy, color="none", hatch="////", label="gap to confidence", **bars
        )
        above.plot([0, 1], [0, 1], color="black", linestyle=":", label="calibrated")
        above.set_title(f"{_name(model, split)}\nECE {scores['ece']:.1%}, accuracy {scores['accuracy']:.1%}")
        above.set_ylim(0, 1.02)
        below.bar(left, [100 * one["count"] / _count(scores) for one in filled], color=colour, alpha=0.75, **bars)
        below.set_xlim(0, 1)
        below.set_xlabel("confidence")
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("images in %")
    panels[1, 0].set_ylim(0, 100)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    save_png(figure, path)


def _splits(models: Models) -> list[str]:
    return list(models[0]["reliability"])


def _name(model: Mapping[str, Any], split: str) -> str:
    """Return the title of a panel, in lines that are no wider than the panel."""
    return textwrap.fill(literal(f"{model['label']}, {split}"), 34)


def _array(values: Any) -> np.ndarray:
    """Return numbers as an array; what was not finite, and is None in the file, is nan and is not drawn."""
    return np.array(values, dtype=float)


def _curve(axes: Axes, sizes: Sequence[float], values: np.ndarray, **style: Any) -> None:
    """Draw the mean of (directions, sizes) values and their standard deviation around it."""
    mean = values.mean(0)
    axes.plot(sizes, mean, markersize=4, **style)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        lower = np.maximum(mean - spread, values.min(0))  # a loss below 0 has no place on a logarithmic axis
        axes.fill_between(sizes, lower, mean + spread, color=style["color"], alpha=0.15, linewidth=0)


def _surface(model: Mapping[str, Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    surface = model["surface"]
    return _array(surface["coordinates"]), np.maximum(_array(surface[split]["loss"]), _SMALLEST_LOSS)


def _at_middle(model: Mapping[str, Any], split: str) -> float:
    loss = model["surface"][split]["loss"]
    return loss[len(loss) // 2][len(loss) // 2]


def _shared_range(models: Models) -> tuple[float, float]:
    """Return the smallest and the largest loss of all surfaces, so that they are drawn on one scale."""
    losses = np.stack([_surface(model, split)[1] for model in models for split in _splits(models)])
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    return low, max(high, 1.01 * low)


def _scale_losses(axes: Axes) -> None:
    """Draw losses of different orders of magnitude on a logarithmic axis."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    low, high = max(np.nanmin(values), _SMALLEST_LOSS), np.nanmax(values)
    if high > _LOGARITHMIC_FROM * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_formatter(low, high))


def _formatter(low: float, high: float) -> FuncFormatter:
    """Return what writes numbers of a range so that they differ, and without an exponent where that is possible."""
    digits = 2 + max(0, math.ceil(math.log10(high / (high - low))))
    return FuncFormatter(lambda value, _=None: f"{float(f'{value:.{digits}g}'):g}")


def _count(scores: Mapping[str, Any]) -> int:
    return sum(one["count"] for one in scores["bins"])
