"""One training of an experiment: one seed, from data to test metrics, card and publication; it can be continued."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_amp.hub.card import CardFacts
from hf_amp.hub.log_history import curves
from hf_amp.vision.arguments import ImageTrainingArguments
from hf_amp.vision.card import FACTS_NAME, image_facts
from hf_amp.vision.epoch_callback import EpochCallback
from hf_amp.vision.metrics import compute_metrics, keep_logits
from hf_amp.vision.progress import EpochLine
from hf_amp.vision.results import METRIC_NAMES, RESULTS_NAME, write_json
from hf_amp.vision.sharpness import SHARPNESS_RADIUS, measure_sharpness
from hf_amp.vision.sources import SeedData
from hf_amp.vision.training import ImageTrainer, trainer_class

_SHARPNESS_IMAGES = 1000


class SeedRun:
    """Train one network with one seed.

    Args:
        model: the network, with its initial weights.
        training: how to train; copied, so that `output_dir` and `seed` of this run stay here.
        data: the seed's data.
        folder: where checkpoints, the last model and, in `best`, the best one go.
        seed: of the batches, dropout and random perturbations.
        command: what the user typed, for the model card.
        verbose: print a line per epoch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        training: ImageTrainingArguments,
        data: SeedData,
        folder: Path,
        seed: int,
        command: str,
        verbose: bool = True,
    ) -> None:
        self.seed, self.folder, self.verbose, self.command = seed, folder, verbose, command
        self.results: dict[str, Any] | None = None
        self.args = _arguments_of_seed(training, folder, seed)
        self.data = data
        self.trainer = self._make_trainer(model)

    def run(self) -> dict[str, Any]:
        """Train, or continue, write results, figure and card, and return the results of the seed."""
        checkpoint = last_whole_checkpoint(self.folder)
        trainer = self.trainer
        if checkpoint is not None and trainer.is_world_process_zero():
            print(f"Seed {self.seed} continues from {checkpoint}", flush=True)
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        points, steps, epochs = curves(trainer.state.log_history), trainer.state.global_step, trainer.state.epoch
        # `save_model` would push, as soon as it may: results and card are still missing.
        trainer.save_model(str(self.folder), _internal_call=True)
        last = self._metrics(self.data.test, "test")
        validation, sharpness = self._metrics(self.data.validation, "validation"), self._sharpness()
        best_point = self._best_point(points)
        best = self._test_best(best_point)
        self.results = {
            "seed": self.seed,
            "eval_split": self.data.eval_split,
            "best_selected_on": self.data.eval_split if best_point else None,
            "best_epoch": best_point["epoch"] if best_point else None,
            "epochs": epochs,
            "steps": steps,
            "seconds": output.metrics["train_runtime"],
            "continued_from_step": _step_of(checkpoint),
            "label_noise": self.data.label_noise,
            "sharpness": sharpness,
            "sharpness_radius": SHARPNESS_RADIUS,
            "validation": validation,
            "test": {"last": last, "best": best},
            "curves": points,
        }
        if trainer.is_world_process_zero():
            write_json(self.folder / RESULTS_NAME, self.results)
            trainer.create_model_card()
            write_json(self.folder / FACTS_NAME, trainer.card_facts().to_json())
        return self.results

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

    def _complete_facts(self, facts: CardFacts) -> CardFacts:
        data = self.data
        return image_facts(facts, data.description, self.args, self.results, self.folder, self.command)

    def _make_trainer(self, model: PreTrainedModel) -> ImageTrainer:
        data = self.data
        trainer = trainer_class(self.args.method)(
            model=model,
            args=self.args,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            data_collator=data.train_collator,
            eval_collator=data.eval_collator,
            pixel_std=data.pixel_std,
            processing_class=data.image_processor,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=keep_logits,
            complete_facts=self._complete_facts,
            callbacks=[EpochCallback()],
        )
        trainer.evaluated_split = data.eval_split
        if self.args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
            if self.verbose:
                trainer.add_callback(EpochLine(f"seed {self.seed}", data.eval_split))
        return trainer

    def _metrics(self, split: Any, name: str) -> dict[str, float] | None:
        if split is None:
            return None
        metrics = self.trainer.evaluate(split, metric_key_prefix=name)
        return {metric: metrics[f"{name}_{metric}"] for metric in METRIC_NAMES}

    def _best_point(self, points: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the point of the curves with the best evaluation, by the [`Trainer`]'s word if it has one."""
        evaluated = [point for point in points if point.get("eval_error_rate") is not None]
        best_step = self.trainer.state.best_global_step
        if best_step:
            evaluated = [point for point in evaluated if point["step"] == best_step]
        return min(evaluated, key=lambda point: point["eval_error_rate"], default=None)

    def _test_best(self, point: dict[str, Any] | None) -> dict[str, float] | None:
        """Test the weights of the best epoch and save them in `best`; None if they were not kept.

        The model has its last weights again afterwards.
        """
        trainer = self.trainer
        if point is None:
            return None
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        last = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if point["step"] != trainer.state.global_step:
            checkpoint = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{point['step']}"
            if not checkpoint.is_dir():
                was_tested = self.data.eval_split == "test"
                return {name: point[f"eval_{name}"] for name in METRIC_NAMES} if was_tested else None
            model.load_state_dict(type(model).from_pretrained(str(checkpoint)).state_dict())
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

    The [`Trainer`] writes `trainer_state.json` last, so a checkpoint that was cut off lacks it or has a
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
