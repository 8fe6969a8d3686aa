"""The figure of `step_cost.py`: what a step costs beside that of `Trainer`."""

from matplotlib.figure import Figure

from hf_amp.hub.learning_curves import save_png

AIMS = {"AMPTrainer N=1": 2 * 1.02, "AMPTrainer N=2": 3 * 1.02}  # (N + 1) × 1.02


def save_figure(path, record):
    """Draw the ratios of all networks, medians with quartiles, one panel each, three in a row, and the aims.

    Args:
        path: PNG file to write.
        record: content of step_cost.json.
    """
    models = record["models"]
    columns, lines = min(3, len(models)), -(-len(models) // 3)
    figure = Figure(figsize=(3 + 3.2 * columns, 4.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(models) :]:
        axes.remove()
    for panel, (axes, (name, result)) in enumerate(zip(panels.flat, models.items(), strict=False)):
        rows = {label: row for label, row in result["rows"].items() if not label.startswith("Trainer")}
        places = range(len(rows))
        colours = ["C0" if label.startswith("AMPTrainer") else "C7" for label in rows]
        ratios = [row["ratio"] for row in rows.values()]
        axes.barh(places, ratios, color=colours)
        for place, row in zip(places, rows.values(), strict=True):
            axes.plot(row["ratio_quartiles"], (place, place), color="black", marker="|")
            axes.annotate(f"{row['ratio']:.2f}", (0.05, place), va="center", color="white")
        for place, label in zip(places, rows, strict=True):
            if label in AIMS:
                axes.plot((AIMS[label],) * 2, (place - 0.4, place + 0.4), color="C3", linestyle="--")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(f"{name}\n{result['parameters'] / 1e6:.1f}M parameters, batch {result['batch_size']}")
        axes.set_xlabel("× the step of Trainer")
        axes.set_yticks(places, list(rows) if panel % columns == 0 else [])
        axes.invert_yaxis()
    figure.suptitle(f"{record['device']}, {record['dtype']}; red: aim of (N + 1) × 1.02", fontsize=9)
    save_png(figure, path)
