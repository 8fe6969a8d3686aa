"""What the model card of an image classifier says beside what any Trainer knows: method, data, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.training_args import OptimizerNames

from hf_amp.hub.card import CardFacts, Evaluation
from hf_amp.hub.facts import NO_DEFENCE, figures_in, pipeline_code
from hf_amp.vision.data.catalogue import known_dataset
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import DataArguments
from hf_amp.vision.train.methods import METHODS
from hf_amp.vision.train.recipes import sgd_settings


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
    known = known_dataset(data.dataset)
    short, name = (data.dataset, data.dataset) if known is None else (known.name, known.title)
    hub_id = None if data.dataset_path else known.hub_id if known else data.dataset
    caveats = []
    if data.dataset_path:
        name += " (local files)"
        caveats.append("The images came from local files: whether they are the whole data set is not known.")
    if data.max_train_samples is not None:
        caveats.append(f"It was trained on a part of the data set, {counts['train']:,} images.")
    if data.train_labels is not None:
        caveats.append(f"The training labels are those of {Path(data.train_labels).name}, not the data set's own.")
    if data.label_noise:
        caveats.append(
            f"{data.label_noise:.0%} of the training labels were replaced at random on purpose, to study wrong labels."
        )
    facts = {
        "data": ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images",
        "augmentation": str(data.augmentation),
    }
    if data.train_labels is None:
        facts["label noise"] = f"{data.label_noise:.0%} of the training labels"
    if data.coarse_labels:
        facts["labels"] = "the 20 coarse ones"
    config = known.config if hub_id and known else None
    return DataDescription(name, hub_id or short, hub_id, config, tested_on, facts, caveats)


def image_facts(
    facts: CardFacts,
    data: DataDescription,
    training: ImageTrainingArguments,
    results: Mapping[str, Any] | None,
) -> CardFacts:
    """Return the facts of a Trainer, completed by those of an image classification.

    Args:
        facts: what the Trainer knows.
        data: the data.
        training: gives method and folder.
        results: of the seed; None while it trains.
    """
    folder, method = Path(str(training.output_dir)), METHODS[training.method]
    notes, caveats, said = list(facts.usage_notes), [*data.caveats, NO_DEFENCE], {**facts.training, **data.facts}
    if results is not None:
        said |= _schedule(training) | _measured(results)
        caveats += _caveats_of(results, data)
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
        usage_notes=tuple(notes),
        pipeline_tag="image-classification",
        tags=(*facts.tags, *([method.tag] if method.tag else [])),
        license=facts.license or training.license,
        datasets=facts.datasets or ((data.hub_id,) if data.hub_id else ()),
        dataset_name=data.name,
        dataset_type=data.type,
        dataset_config=data.config,
        evaluations=facts.evaluations if results is None else tuple(_evaluations(results, data.tested_on)),
        figures=figures_in(folder),
        perturbed=perturbed,
        amp=facts.amp if perturbed else {},
        training=said,
        caveats=tuple(caveats),
    )


def _measured(results: Mapping[str, Any]) -> dict[str, str]:
    labels = results["label_noise"]
    given = f"{labels['changed'] / labels['of']:.1%} are not the data set's own"
    return {
        **({"training labels": given} if "labels_of" in labels else {}),
        "seconds of training": f"{results['seconds']:.1f}",
        "sharpness at the end": f"{results['sharpness']:.4f}: rise of the training loss along its gradient, to the "
        f"sphere of radius {results['sharpness_radius']:g} around all parameters together",
    }


def _caveats_of(results: Mapping[str, Any], data: DataDescription) -> list[str]:
    caveats = ["The results are those of one training with one seed."]
    if results["best_selected_on"] == "test":
        caveats.append("The best epoch was chosen on the test images themselves: its result is optimistic.")
    if data.tested_on != "test":
        caveats.append(f"The data set has no test split: what is called test is its {data.tested_on} split.")
    return caveats


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
        settings = sgd_settings(training.learning_rate, training.optim_args)
        said["optimizer"] = "SGD, " + ", ".join(f"{name} = {value}" for name, value in settings.items())
    if training.lr_schedule == "step":
        said["learning rate"] = f"{training.learning_rate:g}, divided by 10 at 50 % and at 75 % of the training"
    return said


def _other_method(training: ImageTrainingArguments) -> str:
    how = METHODS[training.method].how
    strengths = ", ".join(f"{name} = {value}" for name, value in training.changed_strengths().items())
    return f"The weights were trained without adversarial model perturbation, with {how}" + (
        f" ({strengths})." if strengths else "."
    )
