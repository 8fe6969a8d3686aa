"""Compare training methods on one data set and model: methods x label noise x seeds, one table, one figure.

python examples/compare.py --config examples/digits.yaml
python examples/compare.py --dataset digits --methods erm amp sam --label_noise 0 0.2 --seeds 0 1 2 \\
    --validation_fraction 0.2 --select amp_epsilon=0.03,0.1,0.3

A method may have settings of its own: erm:num_train_epochs=60 amp:amp_epsilon=0.3,amp_ascent_fraction=0.1.
All other flags are those of image_classification.py. What is done is not run again. Writes comparison.json and
comparison.png to output_dir.
"""

import argparse
import gc
import sys

import datasets
from accelerate import PartialState
from transformers.utils import logging

from hf_amp.vision.report.comparison import Comparison
from hf_amp.vision.report.results import comparison_table
from hf_amp.vision.report.run import RefusedError
from hf_amp.vision.report.variants import Selection, Variant
from hf_amp.vision.train.command_line import print_anywhere, read_settings
from hf_amp.vision.train.methods import METHODS


def own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--methods", nargs="+", default=["erm", "amp"], help=f"Some of {', '.join(METHODS)}; also method:name=value,..."
    )
    parser.add_argument("--label_noise", nargs="+", type=float, default=[0.0], help="Shares of labels to replace.")
    parser.add_argument(
        "--select", nargs="+", default=[], help="[method:]name=value,value,...: chosen on validation images."
    )
    parser.add_argument("--select_seeds", nargs="+", type=int, help="Seeds that choose; default: the first one.")
    parser.add_argument("--output_dir", default="outputs/comparison", help="Where everything goes.")
    return parser


def parse(argv: list[str]) -> Comparison:
    settings, options = read_settings(argv, own_parser())
    if options.recipe:
        settings = settings.without("method")  # the recipe's; what else it says holds for all that are compared
    if "method" in settings.given:
        raise ValueError("`--method` runs one method; write --methods erm amp")
    if not options.output_dir:
        raise ValueError("`output_dir` must be the name of a folder, got ''; leave it out for outputs/comparison")
    return Comparison(
        [Variant.parse(text) for text in options.methods],
        options.label_noise,
        settings,
        options.output_dir,
        [Selection.parse(text) for text in options.select],
        options.select_seeds,
    )


def main(argv: list[str] | None = None) -> dict:
    print_anywhere()
    logging.disable_progress_bar()  # a bar for every checkpoint that is written
    datasets.disable_progress_bars()  # and for every step of loading the images
    try:
        comparison = parse(sys.argv[1:] if argv is None else argv)
        comparison.check()
    except (ValueError, TypeError, OSError) as error:  # what the user can correct; later errors keep their traceback
        sys.exit(f"error: {error}")
    try:
        content = comparison.run()
    except (BlockingIOError, RefusedError) as error:  # another run has the folder, or no Trainer can be made
        sys.exit(f"error: {error}")
    if comparison.is_main:
        for which in ("last", "best"):
            print(comparison_table(content["rows"], which), end="\n\n")
        print(f"Table and figure are in {comparison.folder}")
    return content


if __name__ == "__main__":
    main()
    gc.collect()  # trainers refer to themselves, and to the process group
    PartialState().destroy_process_group()  # of several processes; gloo may abort one that ends before this
