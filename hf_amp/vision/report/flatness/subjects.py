"""The models whose flatness is drawn, and the images as each of them sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hf_amp.models  # noqa: F401 - registers them with the auto classes
from hf_amp.vision.data.labels import add_label_noise, keep_samples
from hf_amp.vision.report.flatness.arguments import FlatnessArguments
from hf_amp.vision.report.flatness.probe import Batches

_CONFIG = "config.json"


@dataclass(frozen=True)
class Subject:
    """A model and the images on which it is looked at.

    Args:
        name: folder or Hub id.
        label: its name in figures.
        model: in float32, on its device.
        splits: batches by name of the split, as its own image processor makes them.
        fingerprint: of the weights and of the batches.
    """

    name: str
    label: str
    model: PreTrainedModel
    splits: Mapping[str, Batches]
    fingerprint: dict[str, str]


def load_splits(args: FlatnessArguments) -> dict[str, Dataset]:
    """Return the training images, with the labels that were trained on, and those that are tested on, shortened.

    A data set without a test split is tested on its validation split, as in the training command.
    """
    loaded = args.load()
    if args.label_noise:
        loaded["train"] = add_label_noise(loaded["train"], args.label_noise, args.label_noise_seed)
    names = ("train", "test" if "test" in loaded else "validation")
    return {name: keep_samples(loaded[name], args.max_samples, args.seed) for name in names}


def load_subject(name: str, label: str, splits: Mapping[str, Dataset], args: FlatnessArguments) -> Subject:
    """Load a model with its image processor, and make its batches.

    Args:
        name: local folder or Hub id.
        label: its name in figures.
        splits: with `image` and `label`.
        args: device, batch size, and whether a model's own code may run.

    Raises:
        ValueError: it is no whole model folder, or its classes are not those of the data.
        OSError: it is neither a folder nor on the Hub.
    """
    if Path(name).is_dir() and not (Path(name) / _CONFIG).is_file():
        raise ValueError(
            f"`model` {name} holds no {_CONFIG}; give the folder of a trained model, for the training command "
            "<output_dir>/seed_0"
        )
    # In float32: in half precision small steps would be lost when they are added to the weights.
    model = AutoModelForImageClassification.from_pretrained(
        name, dtype=torch.float32, trust_remote_code=args.trust_remote_code
    )
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"`model` {name} has no image processor, so how its images were normalised is not known; save one beside "
            "the weights with processor.save_pretrained(folder)"
        ) from error
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    batches = {
        split: _batches(images, model, processor, args.per_device_eval_batch_size, name)
        for split, images in splits.items()
    }
    fingerprint = {"weights": _fingerprint(model.state_dict().values())}
    for split, many in batches.items():  # one after the other, so that the size of the batches does not matter
        fingerprint[split] = _fingerprint(batch[key] for key in ("pixel_values", "labels") for batch in many)
    return Subject(name, label, model.to(device).eval(), batches, fingerprint)


def default_labels(names: Sequence[str]) -> list[str]:
    """Return the last two parts of each path or Hub id."""
    return ["/".join(Path(name).parts[-2:]) for name in names]


def _batches(
    images: Dataset, model: PreTrainedModel, processor: BaseImageProcessor, size: int, name: str
) -> list[dict[str, Tensor]]:
    """Return all batches: each image becomes RGB first, as in transformers' pipelines."""
    classes = _class_of_label(images.features["label"].names, model, name)
    batches = []
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        pixel_values: Any = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")
        labels = torch.tensor([classes[label] for label in rows["label"]])
        batches.append({"pixel_values": pixel_values["pixel_values"], "labels": labels})
    return batches


def _class_of_label(label_names: list[str], model: PreTrainedModel, name: str) -> list[int]:
    """Return the model's class for each label: by name if the names are the same, else by number."""
    own = [str(label) for _, label in sorted((model.config.id2label or {}).items())]
    if len(own) != len(label_names):
        raise ValueError(
            f"`model` {name} has {len(own)} classes, the data set {len(label_names)}; give the --dataset that it was "
            "trained on"
        )
    if len(set(own)) == len(own) and set(own) == set(label_names):
        return [own.index(one) for one in label_names]
    return list(range(len(own)))


def _fingerprint(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
