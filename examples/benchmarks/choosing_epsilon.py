"""Which radius ε: test error and sharpness against ε, for shares of label noise and lengths of training.

    python examples/benchmarks/choosing_epsilon.py --config examples/evidence/choosing_epsilon.yaml

All other flags are those of examples/image_classification.py. What is done is not run again. ERM, ε = 0, is the dashed
line. Writes choosing_epsilon.png, and the figures behind it as comparison.json, to output_dir.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from transformers.utils import logging

from hf_amp.learning_curves import save_png
from hf_amp.vision.command_line import expand_config, given_names, known_names, parse_command_line
from hf_amp.vision.comparison import Comparison, Variant, comparison_table

FIGURE_NAME = "choosing_epsilon.png"


def variants(epsilons, lengths, usual):
    """ERM and AMP with each radius, for each number of epochs; the usual one needs no setting of its own."""
    for epochs in lengths:
        length = {} if epochs == usual else {"num_train_epochs": f"{epochs:g}"}
        yield Variant("erm", length)
        for epsilon in epsilons:
            yield Variant("amp", {"amp_epsilon": f"{epsilon:g}", **length})


def figure_of(rows, title, usual):
    """Test error above, sharpness below, one column for each share of label noise, one colour for each length."""
    noises = list(dict.fromkeys(row["label_noise"] for row in rows))
    length_of = [row["settings"].get("num_train_epochs", f"{usual:g}") for row in rows]
    lengths = list(dict.fromkeys(length_of))
    figure = Figure(figsize=(5.5 * len(noises), 7), layout="constrained")
    grid = figure.subplots(2, len(noises), squeeze=False, sharex=True)
    for column, noise in enumerate(noises):
        for colour, epochs in enumerate(lengths):
            pairs = zip(rows, length_of, strict=True)
            chosen = [row for row, length in pairs if (row["label_noise"], length) == (noise, epochs)]
            errors = [(r, r["summary"]["last"]["error_rate"]) for r in chosen]
            draw_line(grid[0][column], errors, f"C{colour}", f"{epochs} epochs", 100)
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
    parser.add_argument("--config", help="YAML file with any of the flags; the command line overrides it.")
    parser.add_argument("--label_noise", nargs="+", type=float, default=[0.0, 0.2], help="Shares of labels to replace.")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.03, 0.1, 0.3, 1.0], help="Radii, > 0.")
    parser.add_argument("--lengths", nargs="+", type=float, help="Epochs; default: --num_train_epochs.")
    parser.add_argument("--output_dir", default="outputs/choosing_epsilon", help="Where everything goes.")
    words = expand_config(argv, known_names(vars(parser.parse_args([]))))
    options, flags = parser.parse_known_args(words)
    if taken := given_names(flags) & {"method", "amp_epsilon"}:
        parser.error(f"--{min(taken)} is what is varied here; use --epsilons")
    if min(options.epsilons) <= 0:
        parser.error(f"--epsilons must be > 0, got {min(options.epsilons):g}; ERM, which has 0, is always there")
    return options, flags


def main(argv=None):
    logging.disable_progress_bar()
    try:
        options, flags = parse(sys.argv[1:] if argv is None else argv)
        usual = parse_command_line(flags)[2].num_train_epochs
        tried = list(variants(sorted(options.epsilons), options.lengths or [usual], usual))
        comparison = Comparison(tried, options.label_noise, flags, options.output_dir)
    except (ValueError, TypeError, OSError) as error:  # what the user can mend; later errors keep their traceback
        sys.exit(f"error: {error}")
    content = comparison.run()
    figure = figure_of(content["rows"], f"{content['dataset']}: last epoch, mean ± standard error", usual)
    save_png(figure, Path(options.output_dir) / FIGURE_NAME)
    print(comparison_table(content["rows"]), f"\nTable and figure are in {options.output_dir}")
    return content


if __name__ == "__main__":
    main()
