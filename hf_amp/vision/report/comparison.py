"""Several methods on one data set and model: what is missing is run, the rest is read; one table, one figure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_amp.hub.environment import environment
from hf_amp.hub.text.invocation import plain_value
from hf_amp.vision.report.card import add_comparison
from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.figures import save_comparison
from hf_amp.vision.report.results import own_folder, validation_means, write_json
from hf_amp.vision.train.command_line import Settings, typed
from hf_amp.vision.train.images import Images
from hf_amp.vision.train.methods import METHODS

COMPARISON_NAME = "comparison.json"
FIGURE_NAME = "comparison.png"


@dataclass(frozen=True)
class Variant:
    """A method with its own settings, written `method` or `method:name=value,name=value`.

    Args:
        method: a key of `METHODS`.
        settings: what only this variant has, as it is written, e.g. `{"num_train_epochs": "80"}`.
    """

    method: str
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read `method` or `method:name=value,…`.

        Raises:
            ValueError: the method is unknown or a setting is not `name=value`.
        """
        method, _, rest = text.partition(":")
        if method not in METHODS:
            raise ValueError(f"`methods` must name some of {', '.join(METHODS)}, got {method!r}; choose one of these")
        settings = {}
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not (name and equals and value):
                raise ValueError(
                    f"`methods` must look like amp:amp_epsilon=0.1,amp_every=2, got {text!r}; add name=value"
                )
            settings[name] = value
        return cls(method, settings)

    @property
    def label(self) -> str:
        """How the table calls it."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return METHODS[self.method].label + (f" ({settings})" if settings else "")

    @property
    def folder(self) -> str:
        """How its folder is called."""
        return "_".join((self.method, *(f"{name}={value}" for name, value in self.settings.items()))).replace("/", "-")

    def with_setting(self, name: str, value: str) -> Variant:
        """Return the variant with one more setting."""
        return Variant(self.method, {**self.settings, name: value})


@dataclass(frozen=True)
class Selection:
    """A setting that each variant chooses on the validation images, written `[method:]name=value,value,…`.

    Args:
        name: a field that some method reads.
        values: the candidates.
        method: whose variants alone choose; None: all that read the field.
    """

    name: str
    values: tuple[str, ...]
    method: str | None = None

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read `name=value,value,…` or `method:name=value,value,…`.

        Raises:
            ValueError: it does not look like that, or no such method, or none at all, reads such a field.
        """
        name, _, rest = text.partition("=")
        method, colon, after = name.partition(":")
        name = after if colon else name
        values = tuple(filter(None, rest.split(",")))
        if colon and method not in METHODS:
            raise ValueError(f"`select` must name a method before ':', one of {', '.join(METHODS)}, got {method!r}")
        readable = sorted({name for one in ([method] if colon else METHODS) for name in METHODS[one].fields})
        if name not in readable:
            raise ValueError(f"`select` must name one of {', '.join(readable)}, got {name!r}; choose one of these")
        if len(values) < 2:
            raise ValueError(f"`select` must give at least two values to choose from, got {text!r}; add some")
        return cls(name, values, method if colon else None)

    def applies_to(self, variant: Variant) -> bool:
        """Whether the variant chooses it: its method reads the field, and it does not give it itself."""
        fields = METHODS[variant.method].fields if self.method in (None, variant.method) else ()
        return self.name in fields and self.name not in variant.settings


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
        ValueError: nothing to compare, a repeated run, or a choice without validation images.
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
        for name, values in (("methods", variants), ("label_noise", label_noise)):
            if not values:
                raise ValueError(f"`{name}` must hold at least one value, got none; add one")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"`{name}` must not repeat itself; leave the repeated ones out")
        self._images: dict[str, Images] = {}
        self.variants, self.label_noise, self.select = list(variants), list(label_noise), list(select)
        self.settings, self.folder, self.select_seeds = settings, Path(output_dir), select_seeds
        _, data, training = self._arguments(self.variants[0], self.label_noise[0])
        self.data_arguments, self.training = data, training
        self.is_main = training.process_index == 0
        for variant in self.variants:  # every combination is checked before the first one trains
            self._arguments(variant, self.label_noise[0])
        if training.push_to_hub:
            raise ValueError(
                "`push_to_hub` would publish every run of the comparison; leave it out, and publish the one you want "
                "with python -m hf_amp.push FOLDER --repo user/name"
            )
        if self.select and data.validation_fraction == 0:
            raise ValueError(
                "`select` chooses on validation images, but there are none (`validation_fraction`=0); add "
                "--validation_fraction 0.2"
            )

    def check(self) -> None:
        """Load the images, and refuse what they rule out before the first method trains."""
        for variant in self.variants:
            chosen = {one.name: one.values[0] for one in self.select if one.applies_to(variant)}
            self._experiment(Variant(variant.method, {**variant.settings, **chosen}), self.label_noise[0])

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

    def _experiment(self, variant: Variant, noise: float, seeds: Sequence[int] | None = None) -> Experiment:
        model, data, training = self._arguments(variant, noise, seeds)
        # Loaded once for all methods: only the labels' noise differs, and it belongs to a seed.
        key = repr(replace(data, label_noise=0.0))
        experiment = Experiment(model, data, training, self._images.get(key), verbose=False)
        self._images[key] = experiment.images
        return experiment

    def _arguments(self, variant: Variant, noise: float, seeds: Sequence[int] | None = None) -> Any:
        folder = self.folder / f"noise{noise:g}" / variant.folder
        own = {"method": variant.method, "label_noise": noise, "output_dir": str(folder), **typed(variant.settings)}
        if seeds is not None:
            own["seeds"] = list(seeds)
        return self.settings.replaced(**own).arguments()

    def _choose(self, variant: Variant, noise: float) -> tuple[Variant, list[dict[str, Any]]]:
        """Return the variant with its best candidate of each selection, one after the other, and the record."""
        records = []
        for selection in self.select:
            if not selection.applies_to(variant):
                continue
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
            "selections": selections,
            "folder": str(self.folder / f"noise{noise:g}" / chosen.folder),
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
