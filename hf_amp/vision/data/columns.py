"""Bring any image-classification data set to the columns `image` and `label`, with one numbering of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from transformers.utils import logging

logger = logging.get_logger(__name__)

_PLAIN_LABEL_NAMES = ("label", "labels")
_HIDDEN = -1


def uniform_columns(splits: DatasetDict, label: str | None, source: str) -> DatasetDict:
    """Return the splits with the columns `image` and `label` only; label names are kept.

    Classes are numbered as in the training split, or, where labels are no class labels, in the order of their values;
    a split that numbers the same names otherwise is numbered anew, by name.

    Args:
        splits: all with the same columns.
        label: name of the label column; None: find it by its type.
        source: what error messages call the data set.

    Raises:
        ValueError: there is no image or label column, there are several, or labels are missing, hidden, out of range,
            of another kind or of other classes than in the training split.
    """
    features = next(iter(splits.values())).features
    for name, split in splits.items():
        if set(split.features) != set(features):
            raise ValueError(
                f"the splits of {source} must have the same columns, got {', '.join(features)} and, in {name!r}, "
                f"{', '.join(split.features)}; make them equal"
            )
    image = _image_column(features, source)
    label = _label_column(features, label, source)
    splits = splits.select_columns([image, label])
    splits = splits.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    splits = _one_numbering(splits, source)
    for name, split in splits.items():
        _check_labels(split, str(name), source)
    return splits


def say_missing_classes(splits: DatasetDict, source: str) -> None:
    """Warn of classes that a split has no image of.

    Args:
        splits: with class labels of the same names.
        source: what the warning calls the data set.
    """
    for split_name, split in splits.items():
        names = split.features["label"].names
        there = set(split.unique("label"))
        missing = [name for number, name in enumerate(names) if number not in there]
        if missing:
            listed = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            logger.warning(
                f"Split {split_name!r} of {source} has no image of {len(missing)} of the {len(names)} classes: {listed}"
            )


def refuse_strangers(split: str, strangers: Iterable[str], trained: Iterable[str], source: str) -> None:
    """Refuse classes that the training split has no image of and no data set declares.

    Args:
        split: where they are.
        strangers: the classes; without any nothing is refused.
        trained: those of the training split.
        source: what the message calls the data set.

    Raises:
        ValueError: there are some.
    """
    listed, there = sorted(strangers), sorted(trained)
    if listed:
        raise ValueError(
            f"split {split!r} of {source} has classes that no training image has: {', '.join(listed[:5])} (there: "
            f"{', '.join(there[:5])}{', …' if len(there) > 5 else ''}); use the same names in all splits, or remove "
            "these images"
        )


def _image_column(features: Features, source: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(found) != 1:
        raise ValueError(
            f"{source} must have exactly one column of images, got {', '.join(found) or 'none'} among "
            f"{', '.join(features)}; keep one, of type datasets.Image"
        )
    return found[0]


def _label_column(features: Features, expected: str | None, source: str) -> str:
    if expected is not None and expected in features:
        return expected
    if expected == "coarse_label":
        raise ValueError(f"{source} has no column 'coarse_label', got {', '.join(features)}; leave `coarse_labels` out")
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not found:
        found = [name for name in _PLAIN_LABEL_NAMES if isinstance(features.get(name), Value)]
    if len(found) != 1:
        raise ValueError(
            f"{source} must have exactly one column of labels, got {', '.join(found) or 'none'} among "
            f"{', '.join(features)}; keep one, of type datasets.ClassLabel, or whole numbers or words in 'label'"
        )
    return found[0]


def _one_numbering(splits: DatasetDict, source: str) -> DatasetDict:
    kinds = {name: _kind(split.features["label"], str(name), source) for name, split in splits.items()}
    first_name, first = next(iter(splits.items()))
    if len(set(kinds.values())) > 1 and not set(kinds.values()) <= {"classes", "words"}:
        listed = ", ".join(f"{kind} in {name!r}" for name, kind in kinds.items())
        raise ValueError(f"labels of {source} must be of one kind in all splits, got {listed}; make them equal")
    if "classes" not in kinds.values():
        return _encode(splits, _values(splits, source))
    if kinds[first_name] != "classes":
        raise ValueError(
            f"labels of {source} are words in {first_name!r} and class labels elsewhere; make them equal, for example "
            "with split.cast_column('label', datasets.ClassLabel(names=[…]))"
        )
    names = first.features["label"].names
    return DatasetDict({name: _by_name(split, names, str(name), source) for name, split in splits.items()})


def _kind(feature: Any, name: str, source: str) -> str:
    if isinstance(feature, ClassLabel):
        return "classes"
    dtype = getattr(feature, "dtype", "")
    for kind, marks in (("words", ("string",)), ("true or false", ("bool",)), ("numbers", ("int", "float"))):
        if any(mark in dtype for mark in marks):
            return kind
    raise ValueError(
        f"labels of split {name!r} of {source} are of type {dtype or feature}; they must be whole numbers or words in "
        "'label': convert them"
    )


def _values(splits: DatasetDict, source: str) -> list[Any]:
    """Return the labels of all splits in order, so that a class that one split lacks shifts nothing."""
    by_split = {str(name): set(split.unique("label")) for name, split in splits.items()}
    values = set().union(*by_split.values())
    if any(value is None or value != value for value in values):  # nan, as pandas writes what is missing
        raise ValueError(f"column 'label' of {source} has missing values; fill them or remove those images")
    broken = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if broken:
        raise ValueError(f"labels of {source} must be whole numbers or words in 'label', got {broken[0]}; convert them")
    train = by_split.get("train", values)
    for name, found in by_split.items():
        if _HIDDEN in found and (found == {_HIDDEN} or _HIDDEN not in train):
            raise ValueError(
                f"labels of split {name!r} of {source} hold {_HIDDEN}, which stands for a hidden label; remove the "
                "images without label, or that split"
            )
        refuse_strangers(name, map(str, found - set(train)), map(str, train), source)
    return sorted(values)


def _encode(splits: DatasetDict, values: list[Any]) -> DatasetDict:
    order = {value: number for number, value in enumerate(values)}
    names = [str(int(value)) if isinstance(value, float) else str(value) for value in values]
    return DatasetDict({name: _renumbered(split, order, names) for name, split in splits.items()})


def _by_name(split: Dataset, names: list[str], split_name: str, source: str) -> Dataset:
    feature = split.features["label"]
    if isinstance(feature, ClassLabel) and feature.names == names:
        return split
    own: dict[Any, str] = {name: name for name in split.unique("label")}
    if isinstance(feature, ClassLabel):
        own = dict(enumerate(feature.names))
    unknown = sorted({name for name in own.values() if name is not None} - set(names))
    if unknown:
        raise ValueError(
            f"split {split_name!r} of {source} has classes that the training split does not name: "
            f"{', '.join(unknown[:5])} (there: {', '.join(names[:5])}, …); use the same names in all splits"
        )
    order: dict[Any, Any] = {value: names.index(name) for value, name in own.items() if name is not None}
    return _renumbered(split, {**order, None: None, _HIDDEN: _HIDDEN}, names)


def _renumbered(split: Dataset, order: Mapping[Any, Any], names: list[str]) -> Dataset:
    numbers = [order[value] for value in split["label"][:]]
    if None not in numbers:
        numbers = np.asarray(numbers, np.int64)
    return split.remove_columns("label").add_column("label", numbers, feature=ClassLabel(names=names))


def _check_labels(split: Dataset, name: str, source: str) -> None:
    classes = split.features["label"].num_classes
    wrong = [value for value in split.unique("label") if value is None or not 0 <= value < classes]
    if wrong:
        raise ValueError(
            f"labels of split {name!r} of {source} must be in [0, {classes}), got {wrong[0]}; remove the images "
            "without label (test splits on the Hub often hide theirs)"
        )
