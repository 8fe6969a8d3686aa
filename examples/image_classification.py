"""Train an image classifier with ERM, AMP, SAM or a scheme that the AMP paper compares, and test it.

python examples/image_classification.py --recipe cifar10_preactresnet18_amp      # a row of the paper's tables
python examples/image_classification.py --list_recipes
python examples/image_classification.py --dataset digits --method amp --amp_epsilon 0.1 --label_noise 0.2 \\
    --model_args '{"hidden_sizes": [16, 32, 64, 64]}' --num_train_epochs 30 --seeds 0 1 2

Prints last and best test metrics; writes results.json, learning_curves.png and, per seed, the model to output_dir.
A command that was stopped continues when it is called again. Several processes: accelerate launch examples/....py
"""

import gc
import sys

import datasets
from accelerate import PartialState
from transformers.utils import logging

from hf_amp import AMPTrainer
from hf_amp.vision import EpochCallback
from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.metrics import compute_metrics, keep_logits
from hf_amp.vision.report.results import results_table
from hf_amp.vision.report.run import RefusedError
from hf_amp.vision.train.command_line import print_anywhere, read_settings
from hf_amp.vision.train.trainer import trainer_class


def make_trainer(model, args, data, described) -> AMPTrainer:
    """The one place where the perturbation comes in: an AMPTrainer, made as any Trainer is.

    `args` are AMPTrainingArguments with the radius `amp_epsilon` and so on; for ERM it is 0, which is plain training.
    The subclasses of `trainer_class` add the losses of the other schemes, the step schedule and the card.
    """
    trainer = trainer_class(args.method)(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.train_collator,  # augments whole batches as tensors
        eval_collator=data.eval_collator,
        pixel_std=data.pixel_std,
        processing_class=data.image_processor,  # saved beside the weights
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=keep_logits,
        data=described,
        callbacks=[EpochCallback()],  # augmentation is drawn anew each epoch
    )
    trainer.evaluated_split = data.eval_split
    return trainer


def main(argv: list[str] | None = None) -> dict:
    print_anywhere()
    logging.disable_progress_bar()  # a bar for every checkpoint that is written
    datasets.disable_progress_bars()  # and for every step of loading the images
    try:
        settings, _ = read_settings(sys.argv[1:] if argv is None else argv, description=__doc__)
        settings.warn_of_unused()
        experiment = Experiment(*settings.arguments(), make_trainer=make_trainer)
    except (ValueError, TypeError, OSError) as error:  # what the user can correct; later errors keep their traceback
        sys.exit(f"error: {error}")
    try:
        results = experiment.run()
    except (BlockingIOError, RefusedError) as error:  # another run has the folder, or no Trainer can be made
        sys.exit(f"error: {error}")
    if experiment.is_main:
        print(results_table(results))
        print(f"Results and figure are in {experiment.folder}")
    return results


if __name__ == "__main__":
    main()
    gc.collect()  # trainers refer to themselves, and to the process group
    PartialState().destroy_process_group()  # of several processes; gloo may abort one that ends before this
