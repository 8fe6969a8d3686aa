"""Image-classification data sets with uniform splits and columns, from the Hub, a local folder or scikit-learn."""

from __future__ import annotations

import os

from datasets import DatasetDict, concatenate_datasets
from transformers.utils import logging

from hf_amp.vision.data.catalogue import CATALOGUE, canonical_name
from hf_amp.vision.data.columns import say_missing_classes, uniform_columns
from hf_amp.vision.data.labels import GIVEN, keep_samples, split_off, take_given_labels, with_labels_of
from hf_amp.vision.data.places import from_hub, from_path, from_scikit_learn, name_and_path

logger = logging.get_logger(__name__)


def load_image_dataset(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    coarse_labels: bool = False,
    extra: bool = False,
    validation_fraction: float = 0.0,
    max_train_samples: int | None = None,
    seed: int = 0,
    train_labels: str | None = None,
) -> DatasetDict:
    """Load a data set for image classification.

    Args:
        name: `cifar10`, `cifar100`, `svhn`, `digits` (scikit-learn's 8×8 digits, which need no network), a Hub id,
            or a path, as in `path`.
        path: local copy, read in place of the Hub: a folder with `train*.parquet`, `test*.parquet` and, optionally,
            `validation*.parquet`; one such file; or a folder `<split>/<class>/<image>`.
        coarse_labels: CIFAR-100's 20 coarse labels in place of its 100 fine ones.
        extra: add SVHN's `extra` split to the training split.
        validation_fraction: share of the training split to hold out as `validation`, in [0, 1), stratified; 0: keep
            the data set's own validation split, if it has one.
        max_train_samples: keep that many training images, >= 1, stratified, after `validation` is held out; None, or
            more than there are: all.
        seed: of the held-out part and of the choice of `max_train_samples`.
        train_labels: `FILE` or `FILE:COLUMN` with labels that others gave to the training images, one for each in the
            data set's order (see `hf_amp.vision.data.labels.read_labels`). They take the place of the data set's own,
            which are then in `clean_label`. So do those of `validation`, unless there is no test split.

    Returns:
        `train`, `test` and, if there is one, `validation`, with columns `image` (`datasets.Image`) and `label`
        (`datasets.ClassLabel` with the label names). A data set without test split comes without `test`, with a
        warning: its `validation` is then what can be evaluated on.

    Raises:
        ValueError: an argument is outside its range or does not fit the data set; columns or splits are missing or
            ambiguous.
        FileNotFoundError: `path` or the data set does not exist.
        ConnectionError: the Hub cannot be reached, and the data set is not in the cache.
    """
    name, path = name_and_path(name, path)
    name = canonical_name(name)
    _check_arguments(name, coarse_labels, extra, validation_fraction, max_train_samples)
    splits = _read(name, path, coarse_labels, extra, validation_fraction)
    splits = _join_extra(splits, extra, name)
    _check_splits(splits, validation_fraction, source=str(path or name))
    say_missing_classes(splits, source=str(path or name))
    if train_labels is not None:
        splits["train"] = with_labels_of(splits["train"], train_labels)
    return _cut(splits, validation_fraction, max_train_samples, seed)


def _read(
    name: str, path: str | os.PathLike[str] | None, coarse_labels: bool, extra: bool, validation_fraction: float
) -> DatasetDict:
    """The splits as they lie on the Hub or at `path`, with columns `image` and `label`."""
    if name == "digits" and path is None:
        return from_scikit_learn()
    known = CATALOGUE.get(name)
    wanted = ("train", "validation", "test") + (("extra",) if extra else ())
    if path is None:
        hub_id, config = (known.hub_id or name, known.config) if known else (name, None)
        raw = from_hub(hub_id, config)
    else:
        raw = from_path(path, known.config if known else None, wanted)
    _check_names(raw, validation_fraction, source=str(path or name))
    raw = DatasetDict({split: raw[split] for split in wanted if split in raw})
    label = "coarse_label" if coarse_labels else (known.label if known else None)
    return uniform_columns(raw, label, source=str(path or name))


def _check_arguments(
    name: str, coarse_labels: bool, extra: bool, validation_fraction: float, max_train_samples: int | None
) -> None:
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"`validation_fraction` must be in [0, 1), got {validation_fraction}; 0.1 holds out a tenth of the "
            "training images"
        )
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(
            f"`max_train_samples` must be >= 1, got {max_train_samples}; leave it out to use all training images"
        )
    if coarse_labels and name != "cifar100":
        raise ValueError(f"`coarse_labels` exist in cifar100 only, got data set {name!r}; leave it out")
    if extra and name != "svhn":
        raise ValueError(f"an `extra` split exists in svhn only, got data set {name!r}; leave it out")
    if not name:
        raise ValueError(f"`name` must not be empty; give {', '.join(CATALOGUE)} or a Hub id")


def _join_extra(splits: DatasetDict, extra: bool, name: str) -> DatasetDict:
    if not extra:
        return splits
    if "extra" not in splits:
        raise ValueError(
            f"`extra` asks for the split 'extra', and {name} has {', '.join(map(str, splits))} here; add "
            "extra*.parquet to the folder, or leave it out"
        )
    return DatasetDict({**splits, "train": concatenate_datasets([splits["train"], splits.pop("extra")])})


def _check_names(splits: DatasetDict, validation_fraction: float, source: str) -> None:
    if "train" not in splits or not ("test" in splits or "validation" in splits or validation_fraction):
        raise ValueError(
            f"{source} must have a training split and one to evaluate on (test or validation), got "
            f"{', '.join(map(str, splits)) or 'none'}; name the files or folders train…, test… and validation…, or "
            "hold a part of the training images out with `validation_fraction`"
        )


def _check_splits(splits: DatasetDict, validation_fraction: float, source: str) -> None:
    for name, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"split {name!r} of {source} has no images; fill or remove it")
    if "test" in splits:
        return
    if validation_fraction and "validation" in splits:
        raise ValueError(
            f"`validation_fraction`={validation_fraction}, but {source} has no test split, so that its validation "
            "split is needed to evaluate on; set the fraction to 0, or add a test split"
        )
    logger.warning(
        f"{source} has no test split: evaluate on its validation split, and do not call the result a test result."
    )


def _cut(splits: DatasetDict, validation_fraction: float, max_train_samples: int | None, seed: int) -> DatasetDict:
    """Hold out the validation part, then shorten the training split, so that the former ignores the latter."""
    train = splits["train"]
    if validation_fraction:
        if "validation" in splits:
            logger.warning(
                f"The data set's own validation split ({len(splits['validation'])} images) is left out: "
                f"`validation_fraction`={validation_fraction} of the training split takes its place."
            )
        train, splits["validation"] = split_off(train, validation_fraction, seed)
    if max_train_samples is not None:
        train = keep_samples(train, max_train_samples, seed)
    splits["train"] = train
    if GIVEN in train.column_names:
        splits["train"] = take_given_labels(train)
        if validation_fraction:  # what is tested on keeps its own
            held_out = splits["validation"]
            splits["validation"] = take_given_labels(held_out) if "test" in splits else held_out.remove_columns(GIVEN)
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test") if name in splits})
