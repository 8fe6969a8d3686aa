"""Which radius ε: test error and sharpness against ε, for shares of label noise, lengths of training and model sizes.

    python examples/benchmarks/choosing_epsilon.py --config examples/evidence/choosing_epsilon.yaml
    python examples/benchmarks/choosing_epsilon.py --config examples/evidence/choosing_epsilon_width.yaml

All other flags are those of examples/image_classification.py. What is done is not run again. ERM, ε = 0, is the dashed
line. Writes choosing_epsilon.png, and the figures behind it as choosing_epsilon.json, to output_dir.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from transformers.utils import logging

from hf_amp.hub.learning_curves import save_png
from hf_amp.vision.report.comparison import Comparison, Variant
from hf_amp.vision.report.results import comparison_table, write_json
from hf_amp.vision.train.command_line import read_settings

JSON_NAME, FIGURE_NAME = "choosing_epsilon.json", "choosing_epsilon.png"
SIZES = ("stem_size", "hidden_sizes")  # config fields that a width scales


def variants(epsilons, lengths, usual):
    """ERM and AMP with each radius, for each number of epochs; the usual one needs no setting of its own."""
    for epochs in lengths:
        length = {} if epochs == usual else {"num_train_epochs": f"{epochs:g}"}
        yield Variant("erm", length)
        for epsilon in epsilons:
            yield Variant("amp", {"amp_epsilon": f"{epsilon:g}", **length})


def of_width(settings, model_args, width):
    """The settings with layers of the network so many times as wide."""
    if width == 1:
        return settings
    sizes = {name: model_args[name] for name in SIZES if name in model_args}
    if "hidden_sizes" not in sizes:
        raise ValueError(
            f"`widths` scales {' and '.join(SIZES)} of --model_args, got {model_args}; give hidden_sizes there"
        )
    wider = {
        name: [round(one * width) for one in size] if isinstance(size, list) else round(size * width)
        for name, size in sizes.items()
    }
    return settings.replaced(model_args={**model_args, **wider})


def line_of(row, usual, widths):
    """What the line of the figure is called that holds a row."""
    label = f"{row['settings'].get('num_train_epochs', f'{usual:g}')} epochs"
    return label + (f", width × {row['width']:g}" if len(widths) > 1 else "")


def figure_of(rows, title, line):
    """Test error above, sharpness below, one column for each share of label noise, one colour for each line."""
    noises = list(dict.fromkeys(row["label_noise"] for row in rows))
    figure = Figure(figsize=(5.5 * len(noises), 7), layout="constrained")
    grid = figure.subplots(2, len(noises), squeeze=False, sharex=True)
    for column, noise in enumerate(noises):
        for colour, label in enumerate(dict.fromkeys(map(line, rows))):
            chosen = [row for row in rows if (row["label_noise"], line(row)) == (noise, label)]
            errors = [(r, r["summary"]["last"]["error_rate"]) for r in chosen]
            draw_line(grid[0][column], errors, f"C{colour}", label, 100)
            draw_line(grid[1][column], [(r, r["summary"]["sharpness"]) for r in chosen], f"C{colour}", None, 1)
        grid[0][column].set(title=f"{noise:.0%} label noise", ylabel="test error in %", xscale="log")
        grid[1][column].set(xlabel="ε (each tensor's ball)", ylabel="sharpness at the end", yscale="log")
        grid[0][column].legend(title="dashed: ERM")
    figure.suptitle(title)
    return figure


def draw_line(axes, values, colour, label, factor):
    """AMP's means with standard errors against ε, and ERM's mean as a dashed line."""
    points = []
    for row, value in values:
        if value is None:  # training went out of bounds
            continue
        if row["method"] == "erm":
            axes.axhline(value["mean"] * factor, color=colour, linestyle="--")
        else:
            error = (value["standard_error"] or 0.0) * factor
            points.append((float(row["settings"]["amp_epsilon"]), value["mean"] * factor, error))
    if points:
        epsilons, means, errors = zip(*points, strict=True)
        axes.errorbar(epsilons, means, errors, color=colour, marker="o", capsize=3, label=label)


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--label_noise", nargs="+", type=float, default=[0.0, 0.2], help="Shares of labels to replace.")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.03, 0.1, 0.3, 1.0], help="Radii, > 0.")
    parser.add_argument("--lengths", nargs="+", type=float, help="Epochs; default: --num_train_epochs.")
    parser.add_argument("--widths", nargs="+", type=float, default=[1.0], help="Factors on the widths of the layers.")
    parser.add_argument("--output_dir", default="outputs/choosing_epsilon", help="Where everything goes.")
    settings, options = read_settings(argv, parser)
    if taken := settings.given.keys() & {"method", "amp_epsilon"}:
        parser.error(f"--{min(taken)} is what is varied here; use --epsilons")
    if min(options.epsilons) <= 0:
        parser.error(f"--epsilons must be > 0, got {min(options.epsilons):g}; ERM, which has 0, is always there")
    if min(options.widths) <= 0:
        parser.error(f"--widths must be > 0, got {min(options.widths):g}; 1 is the network of --model_args")
    return options, settings


def main(argv=None):
    logging.disable_progress_bar()
    try:
        options, settings = parse(sys.argv[1:] if argv is None else argv)
        model, _, training = settings.arguments()
        usual, folder = training.num_train_epochs, Path(options.output_dir)
        tried = list(variants(sorted(options.epsilons), options.lengths or [usual], usual))
        comparisons = {}
        for width in options.widths:
            wider = of_width(settings, model.config_overrides(), width)
            comparisons[width] = Comparison(tried, options.label_noise, wider, folder / f"width{width:g}")
    except (ValueError, TypeError, OSError) as error:  # what the user can correct; later errors keep their traceback
        sys.exit(f"error: {error}")
    rows, tables = [], []
    for width, comparison in comparisons.items():
        content = comparison.run()
        rows += [{**row, "width": width} for row in content["rows"]]
        tables.append(f"width × {width:g}\n\n{comparison_table(content['rows'])}\n")
    content = {**content, "rows": rows}
    write_json(folder / JSON_NAME, content)
    title = f"{content['dataset']}: last epoch, mean ± standard error"
    figure = figure_of(rows, title, lambda row: line_of(row, usual, options.widths))
    save_png(figure, folder / FIGURE_NAME)
    print(*tables, f"Figure is in {folder}", sep="\n")
    return content


if __name__ == "__main__":
    main()
