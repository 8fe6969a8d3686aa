"""How long an epoch takes through the command, against the way the authors' code trains.

    python examples/benchmarks/time_to_train.py --dataset cifar10 --dataset_path DATA --max_train_samples 2000
    python examples/benchmarks/time_to_train.py --recipe cifar10_preactresnet18_amp --dataset_path DATA

Two ways, each with ERM and AMP, in turn in each of several rounds of one run:
  old   float32, channels first, PIL's transforms image by image in the loader's worker processes
  new   what examples/image_classification.py does unasked: batches augmented as tensors, channels last, bf16 where the
        device computes with it; all its other flags work here, too (--torch_compile counts its compilation)
Reports seconds of an epoch of the whole training split (scaled up where --max_train_samples cuts it), images per
second, and the share of the time that is neither forward nor backward. Writes time_to_train.json to output_dir.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_amp.hub.environment import environment
from hf_amp.hub.text.invocation import plain_value
from hf_amp.vision import ImageCollator
from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.results import write_json
from hf_amp.vision.report.run import make_image_trainer
from hf_amp.vision.train.command_line import read_settings
from hf_amp.vision.train.images import Images

WAYS = [(way, method) for method in ("erm", "amp") for way in ("old", "new")]


class Stopwatch:
    """Seconds spent in forward and backward passes of a Trainer."""

    def __init__(self):
        self.seconds = 0.0

    def watch(self, function, trainer):
        def watched(*args, **kwargs):
            if not trainer.model.training:  # an evaluation
                return function(*args, **kwargs)
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.now() - start

        return watched

    def on(self, trainer):
        trainer.compute_loss = self.watch(trainer.compute_loss, trainer)
        trainer.accelerator.backward = self.watch(trainer.accelerator.backward, trainer)
        return trainer

    @staticmethod
    def now():
        if torch.cuda.is_available():  # passes of a GPU are only begun when their call returns
            torch.cuda.synchronize()
        return time.perf_counter()


class OneByOne(ImageCollator):
    """PIL's transforms for each image, and batches in the layout that torch has by default."""

    def __init__(self, like):
        super().__init__(
            "", augmentation=like.augmentation, mean=like.mean, std=like.std, seed=like.seed, per_image=True
        )
        self.changes = like.changes

    def __call__(self, selections):
        batch = super().__call__(selections)
        return {name: tensor.contiguous() for name, tensor in batch.items()}


def old_trainer(model, args, data, described):
    trainer = make_image_trainer(model.to(memory_format=torch.contiguous_format), args, data, described)
    trainer.data_collator = OneByOne(data.train_collator)
    return trainer


def epoch(settings, way, method, images):
    """Train an epoch; return its seconds, those of its passes, and the images by then."""
    watch = Stopwatch()
    make = old_trainer if way == "old" else make_image_trainer
    own = {"precision": "float32", "bf16": False, "torch_compile": False} if way == "old" else {}
    own |= {"amp_epsilon": settings.given.get("amp_epsilon", 0.5)} if method == "amp" else {}  # every step is perturbed
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        short = settings.replaced(method=method, output_dir=folder, eval_strategy="no", save_minutes=0.0, **own)
        model, data, training = short.arguments()
        if way == "old":  # said before images are loaded: on a GPU worker processes could not read them
            training.dataloader_num_workers = 2

        def make_trainer(*parts):
            return watch.on(make(*parts))

        experiment = Experiment(model, data, training, images, verbose=False, make_trainer=make_trainer)
        run = experiment.run()["runs"][0]
    return {"seconds": run["seconds"], "passes": watch.seconds, "steps": run["steps"]}


def figures(rounds, count, trained):
    """Median figures of each way: seconds of an epoch of `count` images, of which `trained` were trained on."""
    rows = {}
    for way, method in WAYS:
        own = [one[f"{method} {way}"] for one in rounds]
        seconds = statistics.median(one["seconds"] for one in own)
        rows[f"{method} {way}"] = {
            "epoch_seconds": seconds * count / trained,
            "images_per_second": trained / seconds,
            "beside_passes": statistics.median(1 - one["passes"] / one["seconds"] for one in own),
            "rounds": own,
        }
    for way, method in WAYS:
        row = rows[f"{method} {way}"]
        row["times_as_fast"] = rows[f"{method} old"]["epoch_seconds"] / row["epoch_seconds"]
    return rows


def table(rows):
    lines = [
        "| method | way | seconds of an epoch | images per second | beside the passes | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = (f"{row['epoch_seconds']:.1f}", f"{row['images_per_second']:.0f}", f"{row['beside_passes']:.0%}")
        lines.append(f"| {' | '.join((*name.split(), *cells, format(row['times_as_fast'], '.2f')))} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=3, help="Epochs of each way.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/time_to_train"), help="Where figures go.")
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        settings, options = read_settings(sys.argv[1:] if argv is None else argv, parser)
        if options.rounds < 1:
            parser.error(f"--rounds must be >= 1, got {options.rounds}; raise it")
        settings = settings.replaced(num_train_epochs=1.0, save_strategy="no").without("method", "seeds")
        model, data, training = settings.arguments()
        images = Images(data)
        whole = len(Images(settings.without("max_train_samples").arguments()[1]).train)
    except (ValueError, TypeError, OSError) as error:  # what the user can correct
        sys.exit(f"error: {error}")
    for way, method in WAYS:  # libraries are loaded, kernels chosen, networks compiled
        epoch(settings.replaced(max_steps=3), way, method, images)
    rounds = []
    for _ in tqdm(range(options.rounds), desc="rounds"):
        rounds.append({f"{method} {way}": epoch(settings, way, method, images) for way, method in WAYS})
    rows = figures(rounds, whole, len(images.train))
    given = {name: plain_value(value) for name, value in settings.given.items() if name != "dataset_path"}
    content = {"rows": rows, "new_way": training.precision_in_words(), "settings": given, **environment(1)}
    write_json(options.output_dir / "time_to_train.json", content)
    print(f"{model.model}, {data.dataset}, batches of {training.per_device_train_batch_size}, new way in "
          f"{training.precision_in_words()}\n{table(rows)}")  # fmt: skip
    return content


if __name__ == "__main__":
    main()
