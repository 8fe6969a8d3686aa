"""Several methods on one data set and model: what is missing is run, the rest is read; one table, one figure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_amp.hub.environment import environment
from hf_amp.hub.text.invocation import plain_value
from hf_amp.vision.report.card import add_comparison
from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.figures import save_comparison
from hf_amp.vision.report.results import check_output_dir, own_folder, read_json, validation_means, write_json
from hf_amp.vision.report.variants import Selection, Variant
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.command_line import Settings, typed
from hf_amp.vision.train.images import DataArguments, Images
from hf_amp.vision.train.network import ModelArguments

logger = logging.get_logger(__name__)

COMPARISON_NAME = "comparison.json"
FIGURE_NAME = "comparison.png"


class Comparison:
    """Methods × shares of label noise × seeds on one data set and model.

    Every run has its own folder in `output_dir`, so that `run` called again does only what is missing.

    Args:
        variants: what to compare.
        label_noise: shares of the training labels to replace, in [0, 1).
        settings: of `examples/image_classification.py`, which all runs share.
        output_dir: where everything goes.
        select: settings that each variant chooses on validation images.
        select_seeds: seeds that choose; None: the first of the runs' seeds.

    Raises:
        ValueError: nothing to compare, a repeated run, a choice that no method has, or settings of some run that are
            refused.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        label_noise: Sequence[float],
        settings: Settings,
        output_dir: str | Path,
        select: Sequence[Selection] = (),
        select_seeds: Sequence[int] | None = None,
    ) -> None:
        lists = {"methods": variants, "label_noise": label_noise, "select": select, "select_seeds": select_seeds or ()}
        for name, values in lists.items():
            if not values and name in ("methods", "label_noise"):
                raise ValueError(f"`{name}` must hold at least one value, got none; add one")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"`{name}` must not repeat itself; leave the repeated ones out")
        self._images: Images | None = None
        self.variants, self.label_noise, self.select = list(variants), list(label_noise), list(select)
        self.settings, self.folder, self.select_seeds = settings, Path(output_dir), select_seeds
        self._check_select()
        self._check_arguments()
        _, self.data_arguments, self.training = self._arguments(self.variants[0], self.label_noise[0])
        self.is_main = self.training.process_index == 0

    def check(self) -> None:
        """Load the images, refuse what they or the folders rule out, and say what an earlier table loses.

        Raises:
            ValueError: no validation images to choose on, a network that cannot be trained, or a folder that holds
                other runs.
        """
        for variant in self.variants:
            for one in self._candidates(variant):
                experiment = self._experiment(one, self.label_noise[0])
                if self.select:
                    _check_validation(experiment.images)
                for noise in self.label_noise[1:]:
                    check_output_dir(self._place(one, noise), {**experiment.settings(), "label_noise": noise})
        self._say_what_is_left_out()

    def run(self) -> dict[str, Any]:
        """Run what is missing and return the content of `comparison.json`; the file grows with each row."""
        with own_folder(self.folder) if self.is_main else nullcontext():
            return self._run()

    def _run(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for noise in self.label_noise:
            for variant in self.variants:
                chosen, selections = self._choose(variant, noise)
                results = self._experiment(chosen, noise).run()
                rows.append(self._row(variant, chosen, noise, results, selections))
                if self.is_main:
                    write_json(self.folder / COMPARISON_NAME, self._content(rows))
        if self.is_main:
            for row in rows:
                rivals = [one for one in rows if one["label_noise"] == row["label_noise"]]
                for seed in row["seeds"]:
                    add_comparison(Path(row["folder"]) / f"seed_{seed}", rivals)
            title = f"{self.data_arguments.dataset}: last epoch, mean ± standard error"
            save_comparison(self.folder / FIGURE_NAME, rows, title)
        return self._content(rows)

    def _check_select(self) -> None:
        """Refuse what would choose nothing; a setting of a method that is not compared is only passed over."""
        made = [one for variant in self.variants for one in self._selections(variant)]
        for one in self.select:
            if one in made:
                continue
            if one.method is not None and all(variant.method != one.method for variant in self.variants):
                logger.warning(f"`select` {one.text} has no effect, since {one.method} is not among --methods.")
                continue
            raise ValueError(
                f"`select` {one.text} has no effect: none of {', '.join(variant.label for variant in self.variants)} "
                f"reads {one.name} without a value or a choice of its own; leave it out, or add a method that does"
            )
        if self.select_seeds and not self.select:
            raise ValueError("`select_seeds` has no effect without `select`; leave it out, or add --select")

    def _check_arguments(self) -> None:
        """Make the arguments of every run that may come, so that what they refuse is refused before the first one."""
        places: dict[Path, tuple[Variant, float]] = {}
        for noise in self.label_noise:
            for one in (one for variant in self.variants for one in self._candidates(variant)):
                _, _, training = self._arguments(one, noise)
                if training.push_to_hub:
                    raise ValueError(
                        "`push_to_hub` would publish every run of the comparison; leave it out, and publish the one "
                        "you want with python -m hf_amp.push FOLDER --repo user/name"
                    )
                other, share = places.setdefault(self._place(one, noise), (one, noise))
                if (other, share) != (one, noise):
                    raise ValueError(
                        f"{other.label} with `label_noise` {share} and {one.label} with {noise} would share the folder "
                        f"{self._place(one, noise)}; leave one of them out"
                    )

    def _say_what_is_left_out(self) -> None:
        wanted = {(variant.label, noise) for variant in self.variants for noise in self.label_noise}
        lost = []
        for row in (read_json(self.folder / COMPARISON_NAME) or {}).get("rows", []):
            kept = self.training.all_seeds if (row["label"], row["label_noise"]) in wanted else []
            if seeds := [str(seed) for seed in row["seeds"] if seed not in kept]:
                lost.append(f"{row['label']} with {row['label_noise']:.0%} label noise (seeds {' '.join(seeds)})")
        if lost and self.is_main:
            logger.warning(
                f"The new table leaves out what {self.folder / COMPARISON_NAME} holds of {', '.join(lost)}. The runs "
                "are kept: for one table of all, name them too in --methods, --label_noise and --seeds."
            )

    def _selections(self, variant: Variant) -> list[Selection]:
        """Return what a variant chooses, in order; the first of several choices of one setting counts."""
        found: dict[str, Selection] = {}
        for one in self.select:
            if one.applies_to(variant):
                found.setdefault(one.name, one)
        return list(found.values())

    def _candidates(self, variant: Variant) -> list[Variant]:
        """Return every form in which a variant may be run: itself, or with what it may choose."""
        last, found = [variant], []
        for selection in self._selections(variant):
            last = [one.with_setting(selection.name, value) for one in last for value in selection.values]
            found += last
        return found or [variant]

    def _experiment(self, variant: Variant, noise: float, seeds: Sequence[int] | None = None) -> Experiment:
        # Loaded once for all methods: only the labels' noise differs, and it belongs to a seed.
        experiment = Experiment(*self._arguments(variant, noise, seeds), self._images, verbose=False)
        self._images = experiment.images
        return experiment

    def _place(self, variant: Variant, noise: float) -> Path:
        return self.folder / f"noise{noise:g}" / variant.folder

    def _arguments(
        self, variant: Variant, noise: float, seeds: Sequence[int] | None = None
    ) -> tuple[ModelArguments, DataArguments, ImageTrainingArguments]:
        own = {"method": variant.method, "label_noise": noise, "output_dir": str(self._place(variant, noise))}
        if seeds is not None:
            own["seeds"] = list(seeds)
        return self.settings.replaced(**own, **typed(variant.settings)).arguments()

    def _choose(self, variant: Variant, noise: float) -> tuple[Variant, list[dict[str, Any]]]:
        """Return the variant with its best candidate of each selection, one after the other, and the record."""
        records = []
        for selection in self._selections(variant):
            seeds = list(self.select_seeds or self.training.all_seeds[:1])
            candidates = []
            for value in selection.values:
                results = self._experiment(variant.with_setting(selection.name, value), noise, seeds).run()
                candidates.append({"value": value, **validation_means(results)})
            best = min(candidates, key=lambda one: (one["validation_error_rate"], one["validation_nll"]))
            variant = variant.with_setting(selection.name, best["value"])
            records.append({"name": selection.name, "chosen": best["value"], "seeds": seeds, "candidates": candidates})
        return variant, records

    def _row(
        self,
        variant: Variant,
        chosen: Variant,
        noise: float,
        results: dict[str, Any],
        selections: list[dict[str, Any]],
    ) -> dict[str, Any]:
        return {
            "label": variant.label,
            "method": variant.method,
            "settings": chosen.settings,
            "label_noise": noise,
            "tested_on": results["tested_on"],
            "selections": selections,
            "folder": str(self._place(chosen, noise)),
            "seeds": results["seeds"],
            "summary": results["summary"],
            "test": {str(run["seed"]): run["test"] for run in results["runs"]},
        }

    def _content(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "dataset": self.data_arguments.dataset,
            "complete": len(rows) == len(self.variants) * len(self.label_noise),
            "settings": {name: plain_value(value) for name, value in self.settings.given.items()},
            "rows": rows,
            **environment(self.training.world_size),
        }


def _check_validation(images: Images) -> None:
    if images.validation is not None:
        return
    if images.tested_on == "test":
        remedy = "add --validation_fraction 0.2"
    else:
        remedy = (
            "the data set has no test split, so that its validation images are what is tested on; add a test split, "
            "or leave `select` out and compare the values, e.g. --methods amp:amp_epsilon=0.1 amp:amp_epsilon=0.2"
        )
    raise ValueError(f"`select` chooses on validation images, but there are none: {remedy}")
