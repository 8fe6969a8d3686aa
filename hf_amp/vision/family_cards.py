"""The cards of the recipe families, a network on a data set each: what was measured, and what was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForImageClassification

from hf_amp.files import write_whole
from hf_amp.hub.card import AMP_TAG, LABELS, LIBRARY_TAG, template
from hf_amp.hub.facts import hardware_line
from hf_amp.models import build_config
from hf_amp.vision.card import TITLES
from hf_amp.vision.datasets import KNOWN_DATASETS
from hf_amp.vision.methods import METHODS
from hf_amp.vision.recipes import RECIPES, Recipe
from hf_amp.vision.results import METRIC_NAMES, RESULTS_NAME, format_mean, read_json

NOT_MEASURED = "not measured yet"
_NETWORKS = {
    "preactresnet18": "PreActResNet-18",
    "vgg16": "VGG-16 with batch norm",
    "wideresnet28_10": "WideResNet-28-10",
    "pyramidnet164_270": "PyramidNet-164-270",
}
_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}
# What makes a run another one than its recipe; where it differs the card says so.
_MUST_BE_PLAIN = {"label_noise": 0.0, "max_train_samples": None, "validation_fraction": 0.0, "scale": 1.0}
_ALSO_SAID = ("bf16", "fp16", "max_steps", "coarse_labels", "extra", "dataset_path", "model_args")


@dataclass(frozen=True)
class Family:
    """A network on a data set.

    Args:
        model: name in `hf_amp.models`.
        dataset: short name of the data set.
    """

    model: str
    dataset: str

    @property
    def name(self) -> str:
        """The card's file name without `.md`."""
        return f"{self.dataset}_{self.model}"

    @property
    def network(self) -> str:
        """The network's name in words."""
        return _NETWORKS[self.model]

    @property
    def dataset_title(self) -> str:
        """The data set's name in words."""
        return TITLES[self.dataset]

    @property
    def title(self) -> str:
        """The card's title."""
        return f"{self.network} on {self.dataset_title}"

    @property
    def parameters(self) -> int:
        """Number of parameters, counted."""
        with torch.device("meta"):
            config = build_config(self.model, num_labels=_CLASSES[self.dataset])
            return AutoModelForImageClassification.from_config(config).num_parameters()

    @property
    def recipes(self) -> list[Recipe]:
        """Its recipes, in the order of the paper's tables."""
        return [one for one in RECIPES.values() if (one.model, one.dataset) == (self.model, self.dataset)]

    @property
    def example(self) -> str:
        """The name of its recipe with AMP."""
        return next(one.name for one in self.recipes if one.method == "amp")


FAMILIES = [Family(model, dataset) for model in _NETWORKS for dataset in _CLASSES]


def find_results(places: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return the complete results of whole experiments in some files and folders.

    Raises:
        ValueError: a place does not exist or is no result of `examples/image_classification.py`.
    """
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(f"`results` must name files or folders, got {place}, which is not there; correct it")
        for path in sorted(place.rglob(RESULTS_NAME)) if place.is_dir() else [place]:
            content = read_json(path)
            if isinstance(content, dict) and {"summary", "settings", "runs"} <= content.keys():
                found.append(content)
            elif not place.is_dir():
                raise ValueError(f"{path} is no result of examples/image_classification.py; give its {RESULTS_NAME}")
    return [content for content in found if content["complete"]]


def write_family_cards(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write one card per family and return their paths.

    Args:
        folder: where they go.
        results: contents of `results.json` files; those of other data or networks are not used.
    """
    written = []
    for family in FAMILIES:
        path = folder / f"{family.name}.md"
        write_whole(path, family_card(family, results).encode())
        written.append(path)
    return written


def family_card(family: Family, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the card of a family, metadata and text."""
    rows, notes, measured = [], [], []
    for recipe in family.recipes:
        own = [one for one in results if _belongs_to(one, recipe)]
        if not own:
            rows.append(_row(recipe, NOT_MEASURED, "–", dict.fromkeys(METRIC_NAMES, "–")))
        for result in own:
            departures = _departures(result, recipe)
            for weights, summary in _measured(result):
                said = f"{weights}; departs from the recipe: {departures}" if departures else weights
                cells = {
                    name: format_mean(summary[name], 1 if name == "nll" else 100, 3 if name == "nll" else 2)
                    for name in METRIC_NAMES
                }
                rows.append(_row(recipe, said, str(len(result["runs"])), cells))
                measured += _eval_results(family, recipe, said, summary)
            notes.append(_note(result, recipe))
    known = KNOWN_DATASETS[family.dataset]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[AMP_TAG, LIBRARY_TAG],
        datasets=[known.hub_id],
        model_name=family.name if measured else None,
        eval_results=measured or None,
    )
    text = template("family_card.md").render(family=family, rows=rows, notes=notes).strip()
    card = f"---\n{data.to_yaml().strip()}\n---\n\n{text}\n"
    ModelCard(card)  # strict: reads the metadata back
    return card


def _belongs_to(result: Mapping[str, Any], recipe: Recipe) -> bool:
    names = ("dataset", "model", "method")
    same = all(result[name] == getattr(recipe, name) for name in names)
    return same and result["settings"]["augmentation"] == recipe.augmentation


def _departures(result: Mapping[str, Any], recipe: Recipe) -> str:
    settings = result["settings"]
    wanted = {**recipe.settings, **_MUST_BE_PLAIN}
    differing = {name: settings.get(name) for name, value in wanted.items() if settings.get(name, value) != value}
    unusual = {name: settings[name] for name in _ALSO_SAID if settings.get(name) not in (None, False, {}, -1, "{}")}
    if "dataset_path" in unusual:
        unusual["dataset_path"] = "local files"
    return ", ".join(f"{name} = {value}" for name, value in {**differing, **unusual}.items())


def _measured(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    chosen = sorted({run["best_selected_on"] for run in result["runs"]} - {None})
    for which, words in (("last", "last epoch"), ("best", f"best epoch on {'/'.join(chosen)}")):
        summary = result["summary"][which]
        if summary["error_rate"] is not None:
            yield words, summary


def _row(recipe: Recipe, weights: str, seeds: str, cells: Mapping[str, str]) -> dict[str, str]:
    method = METHODS[recipe.method].label
    return {
        "recipe": f"`{recipe.name}`",
        "method": method,
        "augmentation": recipe.augmentation,
        "weights": weights,
        "seeds": seeds,
        **cells,
    }


def _eval_results(family: Family, recipe: Recipe, weights: str, summary: Mapping[str, Any]) -> list[EvalResult]:
    known = KNOWN_DATASETS[family.dataset]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=known.hub_id,
            dataset_name=family.dataset_title,
            dataset_config=known.config,
            dataset_split="test",
            metric_type=name,
            metric_name=f"{LABELS[name]}, {recipe.name}, {weights}",
            metric_value=float(summary[name]["mean"]),
        )
        for name in METRIC_NAMES
        if summary[name] is not None
    ]


def _note(result: Mapping[str, Any], recipe: Recipe) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    seeds = " ".join(map(str, result["seeds"]))
    return f"`{recipe.name}`: `{result['command']}`; seeds {seeds}; {hardware_line(result['hardware'])}; {versions}."
