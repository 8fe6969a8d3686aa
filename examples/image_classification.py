"""Train an image classifier with ERM, AMP, SAM or a scheme that the AMP paper compares, and test it.

python examples/image_classification.py --config examples/recipes/cifar10_preactresnet18_amp.yaml
python examples/image_classification.py --dataset digits --method amp --amp_epsilon 0.1 --label_noise 0.2 \\
    --model_args '{"hidden_sizes": [16, 32, 64, 64]}' --num_train_epochs 30 --seeds 0 1 2

Prints last and best test metrics; writes results.json, learning_curves.png and, per seed, the model to
output_dir.
The same command goes on where a stopped one ended. Several processes: accelerate launch examples/....py
"""

import gc
import sys

from accelerate import PartialState
from transformers.utils import logging

from hf_amp.vision.command_line import parse_command_line, warn_of_unused_flags
from hf_amp.vision.experiment import Experiment
from hf_amp.vision.results import results_table


def main(argv: list[str] | None = None) -> dict:
    logging.disable_progress_bar()  # a bar for every checkpoint that is written
    words = sys.argv[1:] if argv is None else argv
    try:
        model, data, training = parse_command_line(words, description=__doc__)
        warn_of_unused_flags(words, training)
        experiment = Experiment(model, data, training)
    except (ValueError, TypeError, OSError) as error:  # what the user can mend; later errors keep their traceback
        sys.exit(f"error: {error}")
    results = experiment.run()
    if experiment.is_main:
        print(results_table(results))
        print(f"Results and figure are in {experiment.folder}")
    return results


if __name__ == "__main__":
    main()
    gc.collect()  # trainers refer to themselves, and to the process group
    PartialState().destroy_process_group()  # of several processes; gloo may abort one that ends before this
