"""Figures of results: learning curves of one experiment, and the comparison of several."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_amp.vision.results import write_whole


def save_learning_curves(path: str | os.PathLike[str], runs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss, error rate and sharpness against epochs, one line per seed.

    Args:
        path: PNG file to write.
        runs: per seed `seed` and `curves`, a list of one mapping per epoch with `epoch` and any of `loss`,
            `erm_loss`, `eval_nll`, `eval_error_rate`, `sharpness`; `eval_split` names what was evaluated.
        title: above the figure.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, error, sharpness = figure.subplots(1, 3)
    for i, run in enumerate(runs):
        colour, label = f"C{i % 10}", f"seed {run['seed']}"
        split = run.get("eval_split", "evaluation")
        first = i == 0
        _line(loss, run, "loss", colour, "-", "training objective" if first else None)
        _line(loss, run, "erm_loss", colour, ":", "training, at θ" if first else None)
        _line(loss, run, "eval_nll", colour, "--", f"{split} NLL" if first else None)
        _line(error, run, "eval_error_rate", colour, "-", label, factor=100)
        _line(sharpness, run, "sharpness", colour, "-", label)
    _finish(loss, "loss", "no loss was logged")
    _finish(error, f"{runs[0].get('eval_split', 'evaluation') if runs else ''} error in %", "not evaluated")
    _finish(sharpness, "sharpness: L(θ + Δ) − L(θ)", "no perturbation in this method")
    for axes in (loss, error, sharpness):
        axes.set_xlabel("epoch")
    figure.suptitle(title)
    _save(figure, path)


def save_comparison(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw test error, NLL and calibration error of several methods as bars with standard errors.

    Args:
        path: PNG file to write.
        rows: `label`, `label_noise` and `summary`, as `hf_amp.vision.results.summarise` returns it.
        title: above the figure.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = (
        ("error_rate", "test error in %", 100.0),
        ("nll", "test NLL", 1.0),
        ("ece", "test ECE in %", 100.0),
    )
    noises = sorted({row["label_noise"] for row in rows})
    labels = list(dict.fromkeys(row["label"] for row in rows))
    width = 0.8 / max(len(noises), 1)
    for axes, (metric, name, factor) in zip(figure.subplots(1, 3), panels, strict=True):
        for i, noise in enumerate(noises):
            chosen = [row for row in rows if row["label_noise"] == noise and row["summary"]["last"][metric]]
            values = [row["summary"]["last"][metric] for row in chosen]
            axes.bar(
                [labels.index(row["label"]) + i * width for row in chosen],
                [value["mean"] * factor for value in values],
                width,
                yerr=[(value["standard_error"] or 0.0) * factor for value in values],
                capsize=3,
                label=f"{noise:.0%} label noise",
            )
        middle = 0.4 - width / 2
        axes.set_xticks([i + middle for i in range(len(labels))], labels, rotation=30, ha="right")
        axes.set_title(name)
        axes.legend()
    figure.suptitle(title)
    _save(figure, path)


def _line(
    axes: Axes,
    run: Mapping[str, Any],
    key: str,
    colour: str,
    style: str,
    label: str | None,
    factor: float = 1.0,
) -> None:
    points = [(p["epoch"], p[key] * factor) for p in run["curves"] if p.get(key) is not None]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=colour, linestyle=style, label=label)


def _finish(axes: Axes, title: str, empty: str) -> None:
    axes.set_title(title)
    if axes.lines:
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    else:
        axes.text(0.5, 0.5, empty, ha="center", va="center", transform=axes.transAxes)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())
