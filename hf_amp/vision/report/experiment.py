"""One experiment: a network, a data set and a method, trained with several seeds, resumable, with its results."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from hf_amp.hub.access import later_command
from hf_amp.hub.environment import environment
from hf_amp.hub.facts import CURVES_NAME, command_line
from hf_amp.hub.learning_curves import save_learning_curves
from hf_amp.hub.text.invocation import plain_value
from hf_amp.support import unconnected_processes
from hf_amp.vision.report.figures import literal
from hf_amp.vision.report.results import (
    RESULTS_NAME,
    check_output_dir,
    note_settings,
    other_seeds,
    own_folder,
    read_json,
    summarise,
    write_json,
)
from hf_amp.vision.report.run import MakeTrainer, SeedRun
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.facts import describe_data
from hf_amp.vision.train.images import DataArguments, Images
from hf_amp.vision.train.methods import METHOD_FIELDS, METHODS
from hf_amp.vision.train.network import ModelArguments, build_model, check_training, folder_fingerprint

# They say where and how loudly a run works, or on which device, not what it computes.
_NEUTRAL = {
    "output_dir",
    "seed",
    "seeds",
    "report_to",
    "run_name",
    "project",
    "disable_tqdm",
    "use_cpu",
    "local_rank",
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "resume_from_checkpoint",
    "license",
    # What is in them is covered by the fingerprints of images and labels.
    "dataset_path",
    "train_labels",
    "precision",  # `bf16` and `fp16` say what was chosen
}
_NEUTRAL_PREFIXES = ("logging_", "log_", "save_", "hub_", "push_to_hub", "dataloader_", "trackio_", "do_", "ddp_")


class Experiment:
    """A network, a data set and a method, trained once per seed.

    `run` may be stopped and called again: finished seeds are kept, a half-finished one continues from its last
    whole checkpoint. `output_dir` then holds `results.json`, `learning_curves.png` and a folder per seed with the last
    model, ready for `from_pretrained`, and the best one in `best`.

    Args:
        model: which network.
        data: which images.
        training: how to train, and where the results go.
        images: the data set, if `data` is loaded already.
        command: what the user typed, for the record; None: this process's command line.
        verbose: say what will be done and print a line per epoch; else a line per seed.
        make_trainer: makes the Trainer of a seed; None: `make_image_trainer`.

    Raises:
        ValueError: settings that do not fit together, or that differ from those that `output_dir` was made with.
    """

    def __init__(
        self,
        model: ModelArguments,
        data: DataArguments,
        training: ImageTrainingArguments,
        images: Images | None = None,
        command: str | None = None,
        verbose: bool = True,
        make_trainer: MakeTrainer | None = None,
    ) -> None:
        self.verbose, self.make_trainer = verbose, make_trainer
        self.model, self.data, self.training = model, data, training
        self.command = command or command_line() or shlex.join(Path(word).name for word in sys.argv[:1])
        self.folder = Path(str(training.output_dir))
        self.is_main = training.process_index == 0
        if problem := unconnected_processes(training):
            raise ValueError(problem)
        self.fingerprints: dict[str, str] = {}
        check_output_dir(self.folder, self.settings())
        with training.main_process_first(desc="load the images"):
            self.images = Images(data) if images is None else images
        self.fingerprints = {f"{name} images": key for name, key in self.images.fingerprints.items()}
        if Path(model.model).is_dir():
            self.fingerprints["model folder"] = folder_fingerprint(Path(model.model))
        check_output_dir(self.folder, self.settings())
        # What cannot be built or trained is refused before anything is written.
        check_training(model, training, self.images)
        self.parameters = build_model(model, training, self.images).num_parameters()

    def run(self) -> dict[str, Any]:
        """Train every seed that is not done yet and return the results of all that were asked for.

        They are the content of `results.json`, which keeps other seeds that the folder holds as well.

        Raises:
            BlockingIOError: another run writes to the same folder.
        """
        with own_folder(self.folder) if self.is_main else nullcontext():
            return self._run()

    def _run(self) -> dict[str, Any]:
        if self.is_main:
            note_settings(self.folder, self.settings())
            if self.verbose:
                print(self.describe(), flush=True)
        runs = []
        for seed in self.training.all_seeds:
            finished = self._finished(seed)
            seed_run = self._prepare(seed) if finished is None else None
            runs.append(seed_run.run() if seed_run is not None else finished)
            if self.is_main:
                self._record(runs)
            if seed_run is not None:
                if self.training.push_to_hub:  # the only seed: everything is written before what can fail
                    seed_run.publish()
                seed_run.release()
        return self.report(runs)

    def settings(self) -> dict[str, Any]:
        """Return everything that changes the results of a seed, as JSON values."""
        training = {
            f.name: plain_value(getattr(self.training, f.name))
            for f in fields(self.training)
            if f.name not in _NEUTRAL | set(METHOD_FIELDS) and not f.name.startswith(_NEUTRAL_PREFIXES)
        }
        return {
            "model": self.model.model,
            "model_args": self.model.config_overrides(),
            **{name: value for name, value in asdict(self.data).items() if name not in _NEUTRAL},
            **training,
            **{name: plain_value(value) for name, value in self.training.strengths().items()},
            "processes": self.training.world_size,
            **self.fingerprints,
        }

    def describe(self) -> str:
        """Return what will be done, in a few lines."""
        args, images = self.training, self.images
        noise = f", {self.data.label_noise:.0%} of the labels replaced" if self.data.label_noise else ""
        if self.data.train_labels is not None:
            differ = images.for_seed(args.seed, self.data, args).label_noise
            noise = f" with labels of {differ['labels_of']}, {differ['changed'] / differ['of']:.1%} of which differ"
        held_out, best = "no validation", "the TEST images, as in the paper"
        if images.tested_on != "test":
            held_out, best = "no test", f"the {images.tested_on.upper()} images, which are also what is tested on"
        elif images.validation is not None:
            held_out, best = f"{len(images.validation):,} validation", "the validation images"
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        return "\n".join(
            (
                f"Method   {METHODS[args.method].label} "
                + ", ".join(f"{name}={value}" for name, value in args.changed_strengths().items()),
                f"Model    {self.model.model}, {self.parameters:,} parameters",
                f"Data     {self.data.dataset}: {len(images.train):,} training{noise}, {held_out}, "
                f"{len(images.test):,} {images.tested_on} images; augmentation {self.data.augmentation}",
                f"Training {args.length_in_words()}, batch {batch} on {args.world_size} process(es), seeds "
                + " ".join(map(str, args.all_seeds)),
                f"Passes   in {args.precision_in_words()}",
                f"Saves    {self.saves()}",
                f"Best     epoch is chosen on {best}",
                f"Test     on the {self.images.tested_on} split",
                f"Output   {self.folder}",
            )
        )

    def saves(self) -> str:
        """Return in words when checkpoints are written."""
        strategy = str(plain_value(self.training.save_strategy))
        said = [f"a checkpoint per {strategy.removesuffix('s')}"] if strategy != "no" else []
        if self.training.save_minutes:
            said.append(f"a checkpoint every {self.training.save_minutes:g} minutes")
        return " and ".join(said) + ", from which the same command continues" if said else "no checkpoints"

    def report(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the content of `results.json` for the runs that are done."""
        args = self.training
        seeds = list(dict.fromkeys([*args.all_seeds, *(run["seed"] for run in runs)]))
        return {
            "method": args.method,
            "dataset": self.data.dataset,
            "model": self.model.model,
            "seeds": seeds,
            "complete": len(runs) == len(seeds),
            "label_noise": self.data.label_noise,
            "tested_on": self.images.tested_on,
            "summary": summarise(runs),
            "runs": runs,
            "settings": self.settings(),
            "command": self.command,
            **environment(args.world_size),
        }

    def _prepare(self, seed: int) -> SeedRun:
        data = self.images.for_seed(seed, self.data, self.training)
        set_seed(seed)
        network = build_model(self.model, self.training, self.images)
        described = describe_data(self.data, self.images.tested_on, self.images.counts)
        folder = self._seed_folder(seed)
        return SeedRun(network, self.training, data, folder, seed, described, self.verbose, self.make_trainer)

    def _record(self, runs: list[dict[str, Any]]) -> None:
        """Write results and figure, and say in a line how the newest seed came out."""
        noise = f", {self.data.label_noise:.0%} label noise" if self.data.label_noise else ""
        title = literal(f"{METHODS[self.training.method].label}, {self.model.model}, {self.data.dataset}") + noise
        kept = [*runs, *other_seeds(self.folder, runs)]
        write_json(self.folder / RESULTS_NAME, self.report(kept))
        curves = [{**run, "label": f"seed {run['seed']}"} for run in kept]
        save_learning_curves(self.folder / CURVES_NAME, curves, title)
        newest = runs[-1]
        error, seconds = newest["test"]["last"]["error_rate"], newest["seconds"]
        name = f"{self.folder.name}{noise}, seed {newest['seed']}"
        print(f"{name}: {self.images.tested_on} error {error:.2%} after {seconds:.1f} s", flush=True)

    def _finished(self, seed: int) -> dict[str, Any] | None:
        """Return a seed's results if it is done; every process takes the main one's word, so that none waits."""
        found = [read_json(self._seed_folder(seed) / RESULTS_NAME) if self.is_main else None]
        if self.training.world_size > 1:
            broadcast_object_list(found)
        if found[0] is not None and self.is_main and self.verbose:
            print(f"Seed {seed} is done already", flush=True)
            if self.training.push_to_hub:
                where = self.training.hub_model_id or self.folder.name
                print(f"Push it with: {later_command(self._seed_folder(seed), where)}", flush=True)
        return found[0]

    def _seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}"
