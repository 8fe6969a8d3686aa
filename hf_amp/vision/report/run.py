"""One training of an experiment: one seed, from data to test metrics, card and publication; it can be continued."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_amp.hub.access import PublishingError
from hf_amp.hub.log_history import curves
from hf_amp.logs import TrainingClock
from hf_amp.vision.report.card import FACTS_NAME
from hf_amp.vision.report.flatness.probe import SHARPNESS_RADIUS, measure_sharpness
from hf_amp.vision.report.metrics import compute_metrics, keep_logits
from hf_amp.vision.report.results import METRIC_NAMES, RESULTS_NAME, write_json
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.callbacks import BestWeights, EpochCallback, EpochLine, TimedCheckpoints
from hf_amp.vision.train.facts import DataDescription
from hf_amp.vision.train.images import SeedData
from hf_amp.vision.train.trainer import ImageTrainer, trainer_class

_SHARPNESS_IMAGES = 1000


class RefusedError(ValueError):
    """A Trainer cannot be made as it is asked for; the text says why, and nothing was trained."""


MakeTrainer = Callable[[PreTrainedModel, ImageTrainingArguments, SeedData, DataDescription], ImageTrainer]


def make_image_trainer(
    model: PreTrainedModel, args: ImageTrainingArguments, data: SeedData, described: DataDescription
) -> ImageTrainer:
    """Return the Trainer of the method that the arguments name."""
    trainer = trainer_class(args.method)(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.train_collator,
        eval_collator=data.eval_collator,
        pixel_std=data.pixel_std,
        processing_class=data.image_processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=keep_logits,
        data=described,
        callbacks=[EpochCallback()],
    )
    trainer.evaluated_split = data.eval_split
    return trainer


class SeedRun:
    """Train one network with one seed.

    Args:
        model: the network, with its initial weights.
        training: how to train; copied, so that `output_dir` and `seed` of this run stay here.
        data: the seed's data.
        folder: where checkpoints, the last model and, in `best`, the best one go.
        seed: of the batches, dropout and random perturbations.
        described: the data in words, for the model card.
        verbose: print a line per epoch.
        make_trainer: makes the Trainer; None: `make_image_trainer`.

    Raises:
        RefusedError: the Trainer cannot be made: it refuses an argument, or could not publish what it trains.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        training: ImageTrainingArguments,
        data: SeedData,
        folder: Path,
        seed: int,
        described: DataDescription,
        verbose: bool = True,
        make_trainer: MakeTrainer | None = None,
    ) -> None:
        self.seed, self.folder, self.verbose, self.described = seed, folder, verbose, described
        self.args = _arguments_of_seed(training, folder, seed)
        self.data = data
        try:
            self.trainer = (make_trainer or make_image_trainer)(model, self.args, data, described)
        except (ValueError, PublishingError) as error:
            raise RefusedError(str(error)) from error
        self.clock = TrainingClock()
        self.best_metric = f"eval_{self.args.metric_for_best_model}"
        self.best = BestWeights(self.best_metric)
        self._add_callbacks()

    def run(self) -> dict[str, Any]:
        """Train, or continue, write results, figure and card, and return the results of the seed."""
        checkpoint = last_whole_checkpoint(self.folder)
        trainer = self.trainer
        if checkpoint is not None and trainer.is_world_process_zero():
            print(f"Seed {self.seed} continues from {checkpoint}", flush=True)
        if checkpoint is not None:
            self.best.load(checkpoint)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        points, steps, epochs = curves(trainer.state.log_history), trainer.state.global_step, trainer.state.epoch
        # `save_model` would push, as soon as it may: results and card are still missing.
        trainer.save_model(str(self.folder), _internal_call=True)
        last = self._metrics(self.data.test, "test")
        validation, sharpness = self._metrics(self.data.validation, "validation"), self._sharpness()
        best_point = self._best_point(points)
        best = self._test_best(best_point)
        results = {
            "seed": self.seed,
            "eval_split": self.data.eval_split,
            "best_selected_on": self.data.eval_split if best_point else None,
            "best_epoch": best_point["epoch"] if best_point else None,
            "epochs": epochs,
            "steps": steps,
            "seconds": self.clock.seconds,
            "continued_from_step": _step_of(checkpoint),
            "label_noise": self.data.label_noise,
            "sharpness": sharpness,
            "sharpness_radius": SHARPNESS_RADIUS,
            "validation": validation,
            "test": {"last": last, "best": best},
            "curves": points,
        }
        if trainer.is_world_process_zero():
            trainer.results = results
            trainer.create_model_card()
            write_json(self.folder / FACTS_NAME, trainer.card_facts().to_json())
            write_json(self.folder / RESULTS_NAME, results)  # last: where it is, the seed is done
        return results

    def publish(self) -> None:
        """Push the last weights with results, figure and card to the Hub.

        Raises:
            PublishingError: it failed; everything is in the folder.
        """
        self.trainer.push_to_hub()

    def release(self) -> None:
        """Give memory back before the next seed."""
        accelerator = self.trainer.accelerator
        del self.trainer
        accelerator.free_memory()

    def _add_callbacks(self) -> None:
        """Keep the best weights, save by the clock, and print a line per epoch unless bars are asked for."""
        self.trainer.add_callback(self.best)
        self.trainer.add_callback(self.clock)
        if self.args.save_minutes:
            self.trainer.add_callback(TimedCheckpoints(self.args.save_minutes))
        if self.args.disable_tqdm:
            self.trainer.remove_callback(PrinterCallback)
            if self.verbose:
                split = self.described.tested_on if self.data.validation is None else "validation"
                self.trainer.add_callback(EpochLine(f"seed {self.seed}", split))

    def _metrics(self, split: Any, name: str) -> dict[str, float] | None:
        if split is None:
            return None
        metrics = self.trainer.evaluate(split, metric_key_prefix=name)
        return {metric: metrics[f"{name}_{metric}"] for metric in METRIC_NAMES}

    def _best_point(self, points: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the point of the curves with the best evaluation; of equals the first."""
        evaluated = [point for point in points if point.get(self.best_metric) is not None]
        return min(evaluated, key=lambda point: point[self.best_metric], default=None)

    def _test_best(self, point: dict[str, Any] | None) -> dict[str, float] | None:
        """Test the weights of the best epoch and save them in `best`; None if they were not kept.

        The model has its last weights again afterwards.
        """
        trainer = self.trainer
        if point is None:
            return None
        if point["step"] != self.best.step:  # from before a checkpoint that was cut off
            was_tested = self.data.eval_split == "test"
            return {name: point[f"eval_{name}"] for name in METRIC_NAMES} if was_tested else None
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        last = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.best.weights)
        metrics = self._metrics(self.data.test, "test")
        trainer.save_model(str(self.folder / "best"), _internal_call=True)
        model.load_state_dict(last)
        return metrics

    def _sharpness(self) -> float:
        """Measure the sharpness at the last weights, on training images as they are, with the labels trained on."""
        count = min(_SHARPNESS_IMAGES, len(self.data.train))
        collator, batch = self.data.eval_collator, self.args.eval_batch_size
        batches = []
        for start in range(0, count, batch):
            batches.append(collator([self.data.train[i] for i in range(start, min(start + batch, count))]))
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return measure_sharpness(model, batches)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that was written to its end, None if there is none.

    The `Trainer` writes `trainer_state.json` last, so a checkpoint that was cut off lacks it or has a
    part of it.
    """
    steps = sorted((_step_of(path) or 0, path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    for _, path in reversed(steps):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        return path
    return None


def _arguments_of_seed(training: ImageTrainingArguments, folder: Path, seed: int) -> ImageTrainingArguments:
    args = copy.copy(training)
    if args.hub_model_id is None:
        args.hub_model_id = folder.parent.name  # not "seed_0"
    args.output_dir, args.seed = str(folder), seed
    args.num_train_epochs = args.epochs
    # Without workers batches are made on the device itself; without a GPU torch warns of pinned memory.
    args.dataloader_pin_memory &= args.device.type == "cuda" and args.dataloader_num_workers > 0
    if args.run_name is not None:
        args.run_name = f"{args.run_name}-seed{seed}"
    return args


def _step_of(checkpoint: Path | None) -> int | None:
    number = "" if checkpoint is None else checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else None
