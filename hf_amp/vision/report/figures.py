"""The figure of a comparison of several methods."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hf_amp.hub.learning_curves import save_png


def literal(text: str) -> str:
    """Return a text that figures show as it is: matplotlib takes what stands between two $ for a formula."""
    return text.replace("$", r"\$")


def save_comparison(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw test error, NLL and calibration error of several methods as bars with standard errors.

    Args:
        path: PNG file to write.
        rows: `label`, `label_noise` and `summary`, as `hf_amp.vision.report.results.summarise` returns it.
        title: above the figure.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    tested_on = rows[0].get("tested_on", "test")
    panels = (
        ("error_rate", f"{tested_on} error in %", 100.0),
        ("nll", f"{tested_on} NLL", 1.0),
        ("ece", f"{tested_on} ECE in %", 100.0),
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
        places = [i + middle for i in range(len(labels))]
        axes.set_xticks(places, [literal(label) for label in labels], rotation=30, ha="right")
        axes.set_title(name)
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))  # inside it would hide bars
    figure.suptitle(literal(title))
    save_png(figure, path)
