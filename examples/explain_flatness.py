"""Draw how flat the minimum of a trained image classifier is, beside that of a second one to compare.

python examples/explain_flatness.py outputs/erm/seed_0 outputs/amp/seed_0 --labels ERM AMP --dataset digits
python examples/explain_flatness.py user/model --dataset cifar10 --max_samples 1000 --output_dir flatness

For training and test images it draws the loss and the error against the size of perturbations, along random
filter-normalised directions and in the worst (AMP) direction of an epsilon-ball; the loss surface over two random
directions; and reliability diagrams with the expected calibration error. Give the data flags of the training
(--label_noise, --max_train_samples, --validation_fraction, ...), so that the training images are those it saw.
Writes flatness_*.png and flatness.json to --output_dir (default: the first model's folder). A command that was stopped
continues when it is called again; figures of other settings are replaced only with --overwrite.
"""

import sys

import datasets
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_amp.vision.report.flatness.arguments import FlatnessArguments
from hf_amp.vision.report.flatness.report import FIGURES, FlatnessReport
from hf_amp.vision.train.command_line import HelpFormatter, print_anywhere


def main(argv: list[str] | None = None) -> dict:
    print_anywhere()
    logging.disable_progress_bar()  # a bar for every model that is loaded
    datasets.disable_progress_bars()  # and for every step of loading the images
    options = {"formatter_class": HelpFormatter, "allow_abbrev": False}
    parser = HfArgumentParser(FlatnessArguments, description=__doc__, **options)
    parser.add_argument("models", nargs="+", help="Folder or Hub id of a trained model, and of a second one.")
    try:
        args, positional = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        report = FlatnessReport(positional.models, args)
    except (ValueError, TypeError, OSError) as error:  # what the user can correct; later errors keep their traceback
        sys.exit(f"error: {error}")
    content = report.run()
    for model in content["models"]:
        for split, scores in model["reliability"].items():
            print(
                f"{model['label']}, {split}: error {scores['error_rate']:.2%}, NLL {scores['nll']:.4f}, "
                f"ECE {scores['ece']:.2%}; loss at the worst of radius {model['worst']['epsilons'][-1]:g}: "
                f"{model['worst'][split]['loss'][-1]:.4f}"
            )
    print(f"{', '.join(FIGURES)} and flatness.json are in {report.folder}")
    return content


if __name__ == "__main__":
    main()
