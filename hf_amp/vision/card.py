"""What the model card of an image classifier says beside the facts of its Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.training_args import OptimizerNames

from hf_amp.files import write_whole
from hf_amp.hub.card import CardFacts, Evaluation, is_untouched, render_card
from hf_amp.hub.facts import NO_DEFENCE, figures_in, pipeline_code
from hf_amp.hub.mixin import CARD_NAME
from hf_amp.vision.arguments import DataArguments, ImageTrainingArguments
from hf_amp.vision.datasets import KNOWN_DATASETS, canonical_name
from hf_amp.vision.methods import METHODS
from hf_amp.vision.results import format_mean, read_json, write_json
from hf_amp.vision.training import sgd_settings

FACTS_NAME = "card.json"
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "digits": "scikit-learn's digits"}
_TAGS = {"sam": "sharpness-aware-minimization"}
_HOW = {
    "erm": "plain empirical risk minimisation",
    "sam": "sharpness-aware minimisation (SAM): the step Δ = ε g/‖g‖ over all parameters",
    "rmp": "random model perturbation (RMP): Δ is drawn at random from the ε-ball of each tensor",
    "adversarial": "adversarial training: images are moved by the sign of their gradient",
}


@dataclass(frozen=True)
class DataDescription:
    """The data of a training, in words for its card.

    Args:
        name: of the data set.
        type: its Hub id, or a short name.
        hub_id: its Hub id if it was loaded from there.
        config: its configuration on the Hub.
        tested_on: the split that results call test.
        facts: further facts, name → text.
        caveats: what a reader of the results must know.
    """

    name: str
    type: str
    hub_id: str | None
    config: str | None
    tested_on: str
    facts: Mapping[str, str]
    caveats: Sequence[str]


def describe_data(data: DataArguments, tested_on: str, counts: Mapping[str, int]) -> DataDescription:
    """Return the description of a data set.

    Args:
        data: what the user asked for.
        tested_on: the split that results call test.
        counts: split → number of images in it.
    """
    short = canonical_name(data.dataset)
    known = KNOWN_DATASETS.get(short)
    hub_id = None if data.dataset_path or short == "digits" else known.hub_id if known else data.dataset
    name = TITLES.get(short, data.dataset)
    caveats = []
    if data.dataset_path:
        name += " (local files)"
        caveats.append("The images came from local files: whether they are the whole data set is not known.")
    if data.max_train_samples is not None:
        caveats.append(f"It was trained on a part of the data set, {counts['train']:,} images.")
    if data.label_noise:
        caveats.append(
            f"{data.label_noise:.0%} of the training labels were replaced at random on purpose, to study wrong labels."
        )
    facts = {
        "data": ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images",
        "augmentation": str(data.augmentation),
        "label noise": f"{data.label_noise:.0%} of the training labels",
    }
    if data.coarse_labels:
        facts["labels"] = "the 20 coarse ones"
    config = known.config if hub_id and known else None
    return DataDescription(name, hub_id or short, hub_id, config, tested_on, facts, caveats)


def image_facts(
    facts: CardFacts,
    data: DataDescription,
    training: ImageTrainingArguments,
    run: Mapping[str, Any] | None,
    folder: Path,
    command: str,
) -> CardFacts:
    """Return the facts of a Trainer, completed by those of an image classification.

    Args:
        facts: what the Trainer knows.
        data: the data.
        training: gives the method.
        run: the results of the seed; None while it trains.
        folder: the model's folder.
        command: what the user typed.
    """
    evaluations = list(facts.evaluations)
    notes, caveats, said = [], [*data.caveats, NO_DEFENCE], {**facts.training, **data.facts}
    if run is not None:
        evaluations = _evaluations(run, data.tested_on)
        said |= _schedule(training)
        said["seconds of training"] = f"{run['seconds']:.1f}"
        said["sharpness"] = f"{run['sharpness']:.4f} (rise of the training loss in the worst direction, radius "
        said["sharpness"] += f"{run['sharpness_radius']:g} per tensor)"
        caveats.append("The results are those of one training with one seed.")
        if run["best_selected_on"] == "test":
            caveats.append("The best epoch was chosen on the test images themselves: its result is optimistic.")
        if data.tested_on != "test":
            caveats.append(f"The data set has no test split: what is called test is its {data.tested_on} split.")
    if (folder / "best" / "config.json").is_file():
        notes.append(
            "The weights are those of the last epoch. Those of the best one are in the folder `best`: "
            f'`AutoModelForImageClassification.from_pretrained("{facts.repo_id}", subfolder="best", '
            "trust_remote_code=True)`."
        )
    perturbed = training.method == "amp" and facts.perturbed
    return replace(
        facts,
        summary=f"{facts.summary[:-1]}, for images of {data.name}.",
        method=facts.method if training.method == "amp" else _other_method(training),
        usage=pipeline_code("image-classification", facts.repo_id, facts.remote_code),
        usage_notes=(*facts.usage_notes, *notes),
        pipeline_tag="image-classification",
        tags=(*facts.tags, *(_TAGS[one] for one in (training.method,) if one in _TAGS)),
        license=facts.license or training.license,
        datasets=facts.datasets or ((data.hub_id,) if data.hub_id else ()),
        dataset_name=data.name,
        dataset_type=data.type,
        dataset_config=data.config,
        evaluations=tuple(evaluations),
        figures=figures_in(folder),
        perturbed=perturbed,
        amp=facts.amp if perturbed else {},
        training=said,
        command=command,
        caveats=tuple(caveats),
    )


def write_image_card(folder: Path, facts: CardFacts) -> None:
    """Write a card and the facts that it was made of; a card that somebody changed is kept."""
    write_json(folder / FACTS_NAME, facts.to_json())
    card = folder / CARD_NAME
    if not card.is_file() or is_untouched(card.read_text(encoding="utf-8")):
        write_whole(card, render_card(facts).encode())


def add_comparison(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put what a model was compared with into its card.

    Args:
        folder: the model's folder; without recorded facts nothing is done.
        rows: of `comparison.json`, with the same data and labels.
    """
    recorded = read_json(folder / FACTS_NAME)
    if recorded is not None:
        compared = [
            {
                "label": str(row["label"]),
                "seeds": str(len(row["seeds"])),
                "error_rate": format_mean(row["summary"]["last"]["error_rate"], 100),
                "nll": format_mean(row["summary"]["last"]["nll"], digits=3),
                "ece": format_mean(row["summary"]["last"]["ece"], 100),
            }
            for row in rows
        ]
        write_image_card(folder, replace(CardFacts.from_json(recorded), compared=compared))


def show_figures(folder: Path) -> None:
    """Put figures that were drawn after training into the card of a model.

    Args:
        folder: the model's folder; without recorded facts nothing is done.
    """
    recorded = read_json(folder / FACTS_NAME)
    if recorded is not None:
        write_image_card(folder, replace(CardFacts.from_json(recorded), figures=figures_in(folder)))


def _evaluations(run: Mapping[str, Any], tested_on: str) -> list[Evaluation]:
    chosen = run["best_selected_on"]
    found = [("last epoch", tested_on, run["test"]["last"])]
    if chosen is not None:
        epoch = f"epoch {run['best_epoch']:g}, the best on the {chosen} images"
        found.append((epoch, tested_on, run["test"]["best"]))
    found.append(("last epoch", "validation", run["validation"]))
    return [Evaluation(weights, split, metrics) for weights, split, metrics in found if metrics]


def _schedule(training: ImageTrainingArguments) -> dict[str, str]:
    said = {}
    if training.optim == OptimizerNames.SGD:
        settings = sgd_settings(training)
        said["optimizer"] = "SGD, " + ", ".join(f"{name} = {value}" for name, value in settings.items())
    if training.lr_schedule == "step":
        said["learning rate"] = f"{training.learning_rate:g}, divided by 10 at 50 % and at 75 % of the training"
    return said


def _other_method(training: ImageTrainingArguments) -> str:
    method = training.method
    how = _HOW.get(method, METHODS[method].label.lower())
    strengths = ", ".join(f"{name} = {value}" for name, value in training.changed_strengths().items())
    return f"The weights were trained without adversarial model perturbation, with {how}" + (
        f" ({strengths})." if strengths else "."
    )
