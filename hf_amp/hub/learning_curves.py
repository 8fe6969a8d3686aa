"""The figure of learning curves. Needs matplotlib, so nothing imports it before it is drawn."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_amp.files import write_whole
from hf_amp.hub.log_history import is_metric

_LOSSES = ("eval_loss", "eval_nll")
_OF_STEPS = ("erm_loss", "sharpness")


def save_learning_curves(path: str | os.PathLike[str], runs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw losses, evaluation and sharpness against epochs, in one colour per run.

    Args:
        path: PNG file to write.
        runs: per run `curves`, as `log_history.curves` returns it; `label` and `eval_split` (what was evaluated)
            where known. Where `eval_error_rate` was logged it is what is drawn, else every other `eval_…` metric.
        title: above the figure.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, quality, sharpness = figure.subplots(1, 3)
    split = runs[0].get("eval_split", "evaluation") if runs else "evaluation"
    names = {name for run in runs for point in run["curves"] for name in point if is_metric(name, "eval")}
    has_error = "eval_error_rate" in names
    for i, run in enumerate(runs):
        colour, label, first = f"C{i % 10}", run.get("label"), i == 0
        _line(loss, run, "loss", colour, "-", "training objective" if first else None)
        _line(loss, run, "erm_loss", colour, ":", "training, at θ" if first else None)
        of_nll = f"{split} NLL" if "eval_nll" in names else f"{split} loss"
        _line(loss, run, "eval_nll" if "eval_nll" in names else "eval_loss", colour, "--", of_nll if first else None)
        _line(sharpness, run, "sharpness", colour, "-", label or "sharpness")
        _line(sharpness, run, "amp_epsilon", colour, ":", "radius ε" if first else None)
        if has_error:
            _line(quality, run, "eval_error_rate", colour, "-", label, factor=100)
            continue
        for j, name in enumerate(sorted(names - set(_LOSSES))):
            _line(quality, run, name, f"C{(i + j) % 10}", "-", name.removeprefix("eval_") if first else None)
    _finish(loss, "loss", "no loss was logged")
    _finish(
        quality,
        f"{split} error in %" if has_error else f"{split} metrics",
        "no metric but the loss" if names else "not evaluated",
    )
    _finish(sharpness, "sharpness: L(θ + Δ) − L(θ)", "no perturbation was logged")
    for axes in (loss, quality, sharpness):
        axes.set_xlabel("epoch")
    figure.suptitle(title)
    save_png(figure, path)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def _line(
    axes: Axes,
    run: Mapping[str, Any],
    key: str,
    colour: str,
    style: str,
    label: str | None,
    factor: float = 1.0,
) -> None:
    # Where a training step was logged without the figure, as plain steps are without sharpness, the line has a gap.
    points = [p for p in run["curves"] if p.get(key) is not None or (key in _OF_STEPS and "loss" in p)]
    values = [math.nan if p.get(key) is None else p[key] * factor for p in points]
    if all(map(math.isnan, values)):
        return
    # A point between two gaps is no line: without a marker it could not be seen.
    is_lonely = len(values) == 1 or any(map(math.isnan, values))
    epochs = [p["epoch"] for p in points]
    axes.plot(epochs, values, color=colour, linestyle=style, label=label, marker="o" if is_lonely else None)


def _finish(axes: Axes, title: str, empty: str) -> None:
    axes.set_title(title)
    if axes.lines:
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    else:
        axes.text(0.5, 0.5, empty, ha="center", va="center", transform=axes.transAxes)
