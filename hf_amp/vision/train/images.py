"""Which images a training reads, and what it does to them: from the command's flags to splits and collators."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from hf_amp.vision.augment.collator import ImageCollator
from hf_amp.vision.augment.plan import AUGMENTATIONS
from hf_amp.vision.data.catalogue import known_dataset
from hf_amp.vision.data.decoded import DecodedImages, check_alike
from hf_amp.vision.data.labels import add_label_noise, labels_of
from hf_amp.vision.data.load import load_image_dataset
from hf_amp.vision.data.normalisation import make_image_processor, normalisation
from hf_amp.vision.data.places import name_and_path
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.checks.claims import check_claim
from hf_amp.vision.train.checks.values import check_values, count_rule, seed_rule, share_rule

_RULES = (
    share_rule("label_noise"),
    share_rule("validation_fraction"),
    count_rule("max_train_samples", 1, "leave it out to use all images"),
    seed_rule("split_seed"),
)


@dataclass
class DataArguments:
    """Which images, and what is done to them.

    Args:
        dataset: `cifar10`, `cifar100`, `svhn`, `digits`, a Hub id or a path; None: `cifar10`, or the name of
            `dataset_path`. It is a name afterwards, never a path.
        dataset_path: local folder or parquet file, read in place of the Hub.
        coarse_labels: CIFAR-100's 20 coarse labels in place of its 100 fine ones.
        extra: add SVHN's `extra` split to the training split.
        image_size: height and width to bring all images to; None: they must have one size.
        image_mode: `grey` or `rgb` to make all images so; None: as they are, which must be alike in all splits.
        train_labels: `FILE` or `FILE:COLUMN` with labels that others gave to the training images, of which
            `validation_fraction` holds out a part.
        validation_fraction: share of the training split held out, in [0, 1); 0: none.
        max_train_samples: keep that many training images, all classes alike; None: all.
        split_seed: seed of the held-out part and of the choice of `max_train_samples`.
        label_noise: share of the labels to replace, in [0, 1), of the training images and of those that
            `validation_fraction` holds out from them; a validation split of its own and the test split stay clean.
        augmentation: `vanilla`, `cutout`, `autoaugment` or `none`; None: `vanilla` for CIFAR and SVHN,
            else `none`.
    """

    dataset: str = field(
        default="",
        metadata={"help": "cifar10, cifar100, svhn, digits, a Hub id or a path; default: cifar10."},
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "Local folder or parquet file of the data set, in place of the Hub."}
    )
    coarse_labels: bool = field(default=False, metadata={"help": "CIFAR-100: the 20 coarse labels."})
    extra: bool = field(default=False, metadata={"help": "SVHN: train on the `extra` split as well."})
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width to bring all images to; not needed if they have one size."}
    )
    image_mode: str | None = field(
        default=None, metadata={"help": "Make all images so; default: as they are.", "choices": ("grey", "rgb")}
    )
    train_labels: str | None = field(
        default=None,
        metadata={"help": "FILE[:COLUMN] (parquet, csv, npy, pt): a label for each training image, in its order."},
    )
    validation_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training split held out for validation, in [0, 1)."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Keep that many training images, all classes alike."}
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed of the validation part and of the choice of max_train_samples."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of the training labels replaced at random, in [0, 1)."}
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "vanilla, cutout, autoaugment or none; default: vanilla for CIFAR and SVHN, none for others."
        },
    )

    def __post_init__(self) -> None:
        if not self.dataset:
            self.dataset = "cifar10" if self.dataset_path is None else os.path.abspath(self.dataset_path)
            self.dataset, _ = name_and_path(self.dataset, None)
        else:
            self.dataset, path = name_and_path(self.dataset, self.dataset_path)
            self.dataset_path = None if path is None else str(path)
        if self.train_labels is not None and self.label_noise:
            raise ValueError("`train_labels` and `label_noise` exclude each other; leave one of them out")
        check_values(self, _RULES)
        if self.augmentation is None:
            known = known_dataset(self.dataset)
            self.augmentation = "none" if known is None else known.augmentation
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"`augmentation` must be one of {', '.join(AUGMENTATIONS)}, got {self.augmentation!r}; choose one"
            )

    def load(self) -> DatasetDict:
        """Return the splits, without label noise."""
        return load_image_dataset(
            self.dataset,
            path=self.dataset_path,
            coarse_labels=self.coarse_labels,
            extra=self.extra,
            validation_fraction=self.validation_fraction,
            max_train_samples=self.max_train_samples,
            seed=self.split_seed,
            train_labels=self.train_labels,
        )


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
    """

    train: Any
    validation: Any | None
    test: Any
    train_collator: Any
    eval_collator: Any
    pixel_std: Tensor
    image_processor: BaseImageProcessor
    label_noise: dict[str, Any]

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
        splits = data.load()
        self.train: Dataset = splits["train"]
        # Some data sets have no test split; what the tables then call test is their validation split.
        self.tested_on = "test" if "test" in splits else "validation"
        look = {"image_size": data.image_size, "image_mode": data.image_mode}
        clean = DecodedImages(self.train, name="train", **look)
        check_claim(data, clean)
        self.test = DecodedImages(splits[self.tested_on], name=self.tested_on, **look)
        has_validation = "validation" in splits and self.tested_on == "test"
        validation = splits["validation"] if has_validation else None
        self._held_out: Dataset | None = validation if data.validation_fraction else None
        self.validation = None if validation is None else DecodedImages(validation, name="validation", **look)
        decoded = {"train": clean, self.tested_on: self.test}
        if self.validation is not None:
            decoded["validation"] = self.validation
        check_alike(decoded)
        self.fingerprints = {name: one.fingerprint() for name, one in decoded.items()}
        self.label_names = clean.label_names
        self.num_channels, height, width = clean.pixel_shape
        self.image_size = (height, width)
        self.mean, self.std = normalisation(data.dataset, clean)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by split."""
        splits = {"train": self.train, self.tested_on: self.test, "validation": self.validation}
        return {name: len(split) for name, split in splits.items() if split is not None}

    def for_seed(self, seed: int, data: DataArguments, training: ImageTrainingArguments) -> SeedData:
        """Return what one seed trains and is tested on.

        Args:
            seed: of the label noise and the augmentation.
            data: gives label noise and augmentation.
            training: gives the method.
        """
        train, validation = self.train, self.validation
        look: dict[str, Any] = {"image_size": data.image_size, "image_mode": data.image_mode}
        if data.label_noise:
            train = add_label_noise(self.train, data.label_noise, seed)
            if self._held_out is not None:  # from the training images, whose labels are wrong like theirs
                noisy = add_label_noise(self._held_out, data.label_noise, seed)
                validation = DecodedImages(noisy, name="validation", **look)
        own = train["clean_label"][:] if "clean_label" in train.column_names else labels_of(train)
        changed = int((np.asarray(own) != labels_of(train)).sum())
        collator = partial(ImageCollator, data.dataset, mean=self.mean, std=self.std)
        mixup_alpha = training.mixup_alpha if training.method == "mixup" else None
        return SeedData(
            train=_on_device(DecodedImages(train, **look), training),
            validation=None if validation is None else _on_device(validation, training),
            test=_on_device(self.test, training),
            train_collator=collator(augmentation=str(data.augmentation), mixup_alpha=mixup_alpha, seed=seed),
            eval_collator=collator(augmentation="none", train=False),
            pixel_std=torch.tensor(self.std),
            image_processor=make_image_processor(data.dataset, self.image_size, mean=self.mean, std=self.std),
            label_noise={"share": data.label_noise, "seed": seed, "changed": changed, "of": len(train)}
            | ({} if data.train_labels is None else {"labels_of": Path(data.train_labels).name}),
        )


def _on_device(images: DecodedImages, training: ImageTrainingArguments) -> DecodedImages:
    """Move the pixels to the GPU, so that whole batches are made there, unless they do not fit in memory."""
    on_gpu = training.device.type == "cuda" and training.dataloader_num_workers == 0
    return images.to(training.device) if on_gpu and not images.streams else images
