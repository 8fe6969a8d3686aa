"""Bring any image-classification data set to the columns `image` and `label`."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

_PLAIN_LABEL_NAMES = ("label", "labels")


def uniform_columns(splits: DatasetDict, label: str | None, source: str) -> DatasetDict:
    """Return the splits with the columns `image` and `label` only; label names are kept.

    Args:
        splits: all with the same columns.
        label: name of the label column; None: find it by its type.
        source: what error messages call the data set.

    Raises:
        ValueError: there is no image or label column, there are several, or labels are missing or out of range.
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
    if not isinstance(features[label], ClassLabel):
        splits = _encode_labels(splits, source)
    for name, split in splits.items():
        _check_labels(split, str(name), source)
    return splits


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
        found = [name for name in _PLAIN_LABEL_NAMES if _is_plain_label(features.get(name))]
    if len(found) != 1:
        raise ValueError(
            f"{source} must have exactly one column of labels, got {', '.join(found) or 'none'} among "
            f"{', '.join(features)}; keep one, of type datasets.ClassLabel, or whole numbers or words in 'label'"
        )
    return found[0]


def _is_plain_label(feature: object) -> bool:
    return isinstance(feature, Value) and (feature.dtype == "string" or "int" in feature.dtype)


def _encode_labels(splits: DatasetDict, source: str) -> DatasetDict:
    """Number the labels of all splits in one order, so that a class that one split lacks shifts nothing."""
    values = {value for split in splits.values() for value in split.unique("label")}
    if None in values:
        raise ValueError(f"column 'label' of {source} has missing values; fill them or remove those images")
    order = {value: number for number, value in enumerate(sorted(values))}
    feature = ClassLabel(names=[str(value) for value in order])
    encoded = {}
    for name, split in splits.items():
        numbers = [order[value] for value in split["label"][:]]
        encoded[name] = split.remove_columns("label").add_column("label", numbers, feature=feature)
    return DatasetDict(encoded)


def _check_labels(split: Dataset, name: str, source: str) -> None:
    classes = split.features["label"].num_classes
    wrong = [value for value in split.unique("label") if value is None or not 0 <= value < classes]
    if wrong:
        raise ValueError(
            f"labels of split {name!r} of {source} must be in [0, {classes}), got {wrong[0]}; remove the images "
            "without label (test splits on the Hub often hide theirs)"
        )
