"""From the command's arguments to what a Trainer takes: splits, collators, image processor, network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_amp.models import MODEL_NAMES, build_config
from hf_amp.vision import (
    DecodedImages,
    ImageCollator,
    add_label_noise,
    load_image_dataset,
    make_image_processor,
    normalisation,
)
from hf_amp.vision.arguments import DataArguments, ImageTrainingArguments, ModelArguments
from hf_amp.vision.card import DataDescription, describe_data
from hf_amp.vision.splits import labels_of


@dataclass(frozen=True)
class SeedData:
    """What the training of one seed reads.

    Args:
        train: training images, with the seed's label noise.
        validation: held-out images; None if none are held out.
        test: test images.
        train_collator: makes augmented batches.
        eval_collator: makes plain batches.
        pixel_std: (channels,) what images are divided by.
        image_processor: does the same to any image; it is saved beside the model.
        label_noise: share, seed and number of the labels that were replaced.
        description: the data in words, for the model card.
    """

    train: Any
    validation: Any | None
    test: Any
    train_collator: Any
    eval_collator: Any
    pixel_std: Tensor
    image_processor: BaseImageProcessor
    label_noise: dict[str, Any]
    description: DataDescription

    @property
    def eval_split(self) -> str:
        """What is evaluated after each epoch, and chooses the best one."""
        return "test" if self.validation is None else "validation"

    @property
    def evaluation(self) -> Any:
        """The images of `eval_split`."""
        return self.test if self.validation is None else self.validation


class Images:
    """A data set, loaded once for all seeds, methods and shares of label noise.

    Args:
        data: which images.

    Raises:
        ValueError: the data set, its columns or its classes are not what the arguments say.
    """

    def __init__(self, data: DataArguments) -> None:
        splits = load_image_dataset(
            data.dataset,
            path=data.dataset_path,
            coarse_labels=data.coarse_labels,
            extra=data.extra,
            validation_fraction=data.validation_fraction,
            max_train_samples=data.max_train_samples,
            seed=data.split_seed,
        )
        self.train: Dataset = splits["train"]
        # Some data sets have no test split; what the tables then call test is their validation split.
        self.tested_on = "test" if "test" in splits else "validation"
        self.test = DecodedImages(splits[self.tested_on], image_size=data.image_size)
        has_validation = "validation" in splits and self.tested_on == "test"
        validation = splits["validation"] if has_validation else None
        self.validation = None if validation is None else DecodedImages(validation, image_size=data.image_size)
        clean = DecodedImages(self.train, image_size=data.image_size)
        self.label_names = clean.label_names
        self.num_channels, height, width = clean.pixel_shape
        self.image_size = (height, width)
        self.mean, self.std = normalisation(data.dataset, clean)

    def for_seed(self, seed: int, data: DataArguments, training: ImageTrainingArguments) -> SeedData:
        """Return what one seed trains and is tested on.

        Args:
            seed: of the label noise and the augmentation.
            data: gives label noise and augmentation.
            training: gives the method.
        """
        counts = {"train": len(self.train), self.tested_on: len(self.test)}
        if self.validation is not None:
            counts["validation"] = len(self.validation)
        train = add_label_noise(self.train, data.label_noise, seed) if data.label_noise else self.train
        changed = int((labels_of(self.train) != labels_of(train)).sum())
        collator = partial(ImageCollator, data.dataset, mean=self.mean, std=self.std)
        mixup_alpha = training.mixup_alpha if training.method == "mixup" else None
        return SeedData(
            train=_on_device(DecodedImages(train, image_size=data.image_size), training),
            validation=None if self.validation is None else _on_device(self.validation, training),
            test=_on_device(self.test, training),
            train_collator=collator(augmentation=str(data.augmentation), mixup_alpha=mixup_alpha, seed=seed),
            eval_collator=collator(augmentation="none", train=False),
            pixel_std=torch.tensor(self.std),
            image_processor=make_image_processor(data.dataset, self.image_size, mean=self.mean, std=self.std),
            label_noise={"share": data.label_noise, "seed": seed, "changed": changed, "of": len(train)},
            description=describe_data(data, self.tested_on, counts),
        )


def _on_device(images: DecodedImages, training: ImageTrainingArguments) -> DecodedImages:
    """Move the pixels to the GPU, so that whole batches are made there, unless they do not fit in memory."""
    on_gpu = training.device.type == "cuda" and training.dataloader_num_workers == 0
    return images.to(training.device) if on_gpu and not images.streams else images


def build_model(model: ModelArguments, training: ImageTrainingArguments, images: Images) -> PreTrainedModel:
    """Return the network for the data set, with fresh weights or, from the Hub or a folder, with its own.

    Args:
        model: name and config fields.
        training: gives the rate of `--method dropout`.
        images: gives classes, channels and size.

    Raises:
        ValueError: the name is not known, a config field does not exist, or the size does not fit.
    """
    overrides: dict[str, Any] = {
        "num_labels": len(images.label_names),
        "id2label": dict(enumerate(images.label_names)),
        "label2id": {name: i for i, name in enumerate(images.label_names)},
    }
    if training.method == "dropout":
        overrides["dropout"] = training.dropout
    if model.model in MODEL_NAMES:
        own = {"num_channels": images.num_channels, "image_size": images.image_size[0]}
        config = build_config(model.model, **{**own, **overrides, **model.config_overrides()})
        return _channels_last(AutoModelForImageClassification.from_config(config))
    if not Path(model.model).is_dir() and "/" not in model.model:
        raise ValueError(
            f"`model` must be one of {', '.join(MODEL_NAMES)}, a Hub id (owner/name) or a folder, got "
            f"{model.model!r}; choose one of these"
        )
    overrides |= model.config_overrides()
    known = AutoConfig.from_pretrained(model.model)
    unknown = sorted(name for name in overrides if not hasattr(known, name))
    if unknown:
        raise ValueError(
            f"`model` {model.model} has no config field {unknown[0]!r}; choose another method, or correct `model_args`"
        )
    return _channels_last(
        AutoModelForImageClassification.from_pretrained(
            model.model, config=AutoConfig.from_pretrained(model.model, **overrides), ignore_mismatched_sizes=True
        )
    )


def _channels_last(model: PreTrainedModel) -> PreTrainedModel:
    """Return the network with its kernels stored channels last: the layout in which convolutions are fast."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
