"""The labels of a split: parts that keep the shares of the classes, drawn wrong labels, labels that others gave."""

from __future__ import annotations

import csv
import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from datasets import Dataset

_NUMBER = re.compile(r"-?[0-9]+")
_HEADER = "the first line was read as the name of the column: write one, such as label, above the labels"
GIVEN = "given_label"  # column of the labels that others gave, until they take the place of the data set's own


def labels_of(split: Dataset) -> np.ndarray:
    """Return the column `label` as (images,) integers, read at once: a column of `datasets` reads row by row."""
    return split.select_columns("label").with_format("numpy")[:]["label"]


def stratified_indices(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw images so that every class has its share, to the nearest image.

    Args:
        labels: (images,) integers.
        count: how many to draw, in [0, images].
        seed: of the draw.

    Returns:
        (count,) int64, increasing.

    Raises:
        ValueError: `count` is outside its range.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"`count` must be in [0, {len(labels)}], the number of images, got {count}; choose one there")
    random = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = sizes * (count / max(1, len(labels)))
    shares = np.floor(quotas).astype(np.int64)
    # The largest remainders get what is left; which of equal ones is the seed's choice.
    order = np.lexsort((random.random(len(classes)), -np.round(quotas - shares, 9)))
    shares[order[: count - shares.sum()]] += 1
    drawn = [
        random.permutation(np.flatnonzero(labels == one))[:share] for one, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


def split_off(split: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split a stratified part off a data set.

    Args:
        split: with a column `label`.
        fraction: share to split off, in (0, 1).
        seed: of the draw.

    Returns:
        What remains, and the part.

    Raises:
        ValueError: one of the two would be empty.
    """
    labels = labels_of(split)
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        raise ValueError(
            f"`validation_fraction`={fraction} of {len(labels)} training images is {count} images; both the held-out "
            "part and the rest must have one at least: choose another fraction"
        )
    part = stratified_indices(labels, count, seed)
    rest = np.setdiff1d(np.arange(len(labels)), part)
    return split.select(rest), split.select(part)


def keep_samples(split: Dataset, count: int, seed: int) -> Dataset:
    """Return a stratified choice of `count` images, or all of them if there are no more.

    Args:
        split: with a column `label`.
        count: images to keep, >= 1.
        seed: of the draw.
    """
    if count >= len(split):
        return split
    return split.select(stratified_indices(labels_of(split), count, seed))


def add_label_noise(split: Dataset, fraction: float, seed: int) -> Dataset:
    """Replace a share of the labels by wrong ones.

    Exactly `round(fraction * images)` labels are replaced, each by one of the other K − 1 classes, all equally
    likely. (Drawing from all K classes, as some papers do, would leave about 1/K of the chosen labels right.)

    Args:
        split: with a column `label` of type `ClassLabel`; it is not changed.
        fraction: share to replace, in [0, 1).
        seed: of the draw.

    Returns:
        The same images with the new `label`, and the right ones in a further column `clean_label`: the labels that
        were replaced are those where the two differ.

    Raises:
        ValueError: `fraction` is outside its range, or there is one class only.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"`fraction` must be in [0, 1), got {fraction}; 0.2 replaces 20 % of the labels")
    feature = split.features["label"]
    if fraction and feature.num_classes < 2:
        raise ValueError(
            f"`fraction`={fraction} needs a second class to draw wrong labels from, and `label` has "
            f"{feature.num_classes}; set it to 0"
        )
    clean = labels_of(split)
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(clean))[: round(fraction * len(clean))]
    noisy = clean.copy()
    noisy[chosen] = (clean[chosen] + random.integers(1, max(2, feature.num_classes), len(chosen))) % feature.num_classes
    split = split.rename_column("label", "clean_label")
    return split.add_column("label", noisy, feature=feature)


def with_labels_of(split: Dataset, file: str) -> Dataset:
    """Return a split with the labels that somebody else gave in a further column, `GIVEN`.

    Args:
        split: with a column `label` of type `ClassLabel`.
        file: `FILE` or `FILE:COLUMN`, see `read_labels`: one label for each row, in the same order; names of the
            classes, or their numbers. Where all names are numbers, a number is always a name.

    Raises:
        ValueError: the labels are not as many as the rows, or not of these classes.
        FileNotFoundError: there is no such file.
    """
    values, names = read_labels(file), split.features["label"].names
    if len(values) != len(split):
        is_header = ".csv" in file and len(values) + 1 == len(split)
        raise ValueError(
            f"`train_labels` {Path(file).name} holds {len(values)} labels, and the training split {len(split)} images; "
            + (_HEADER if is_header else "give one label for each image, in the data set's order")
        )
    numbers = _numbers_of(values, names)
    if None in numbers:
        rule = "" if _named_by_numbers(names) else f" or numbers in [0, {len(names)})"
        raise ValueError(
            f"`train_labels` {Path(file).name} must hold names of the classes ({', '.join(names[:3])}, …){rule}, got "
            f"{reprlib.repr(values[numbers.index(None)])}; correct the file or name another column"
        )
    return split.add_column(GIVEN, np.asarray(numbers, np.int64), feature=split.features["label"])


def _named_by_numbers(names: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(name) for name in names) and len({int(name) for name in names}) == len(names)


def _numbers_of(values: Sequence[Any], names: Sequence[str]) -> list[int | None]:
    """Return each label's place among the classes, or None; a number is a name where all names are numbers."""
    by_name = {name: place for place, name in enumerate(names)}
    named = _named_by_numbers(names)
    by_number: dict[Any, int] = {int(name) if named else place: place for name, place in by_name.items()}
    if any(isinstance(value, str) and value not in by_name for value in values):
        values = [int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value for value in values]
    return [
        by_name.get(value) if isinstance(value, str) else by_number.get(value) if isinstance(value, Real) else None
        for value in values
    ]


def take_given_labels(split: Dataset) -> Dataset:
    """Put the labels of `GIVEN` in place of `label`, and the data set's own in `clean_label`."""
    return split.rename_columns({"label": "clean_label", GIVEN: "label"})


def read_labels(file: str) -> list[Any]:
    """Return the labels of a file: `FILE.parquet`, `.csv`, `.npy` or `.pt`, or `FILE:COLUMN` where it has several.

    No code in a file is run: of `.npy` plain arrays are read, of `.pt` tensors, arrays, lists and their dictionaries.

    Raises:
        ValueError: it cannot be read, or the column is not there, or not named among several.
        FileNotFoundError: there is no such file.
    """
    path, column = Path(file), None
    if not path.is_file() and ":" in file:
        name, _, column = file.rpartition(":")
        path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"`train_labels` {file} is not there; give FILE or FILE:COLUMN")
    if path.suffix not in _READERS:
        raise ValueError(f"`train_labels` must be a file of {', '.join(_READERS)}, got {path.name}; convert it")
    try:
        columns = _READERS[path.suffix](path)
    except Exception as error:  # of four libraries, for any file that a user may give
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"`train_labels` {path.name} cannot be read ({reason}); write the file anew") from error
    if not any(len(values) for values in columns.values()):
        raise ValueError(f"`train_labels` {path.name} holds no labels; give one label for each training image")
    if column is None and len(columns) == 1:
        column = next(iter(columns))
    if column not in columns:
        raise ValueError(
            f"`train_labels` {path.name} has the columns {', '.join(columns)}, got {column!r}; name one: "
            f"{path.name}:{next(iter(columns), 'COLUMN')}"
        )
    return list(columns[column])


def _read_parquet(path: Path) -> dict[str, Sequence[Any]]:
    return parquet.read_table(path).to_pydict()


def _read_csv(path: Path) -> dict[str, Sequence[Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    header, *rest = rows or [[]]
    if any(len(row) != len(header) for row in rest):
        raise ValueError("a line has more or fewer values than the header")
    if len(header) == 1 and header[0].lstrip("-").isdecimal():  # plain numbers, one a line
        header, rest = ["label"], rows
    return {name: [row[i] for row in rest] for i, name in enumerate(header)}


def _read_npy(path: Path) -> dict[str, Sequence[Any]]:
    array = np.load(path, allow_pickle=False)
    if array.dtype.names:
        return {name: array[name].tolist() for name in array.dtype.names}
    return {"label": array.reshape(-1).tolist()}


def _read_pt(path: Path) -> dict[str, Sequence[Any]]:
    # What arrays of numpy are stored with, as in the files of CIFAR-N; none of it runs code of the file.
    numbers = [type(np.dtype(kind)) for kind in ("int64", "int32", "uint8", "float64", "bool", "U1")]
    rebuild: Any = np.zeros(1).__reduce__()[0]  # where numpy keeps it differs between its versions
    older = "numpy.core.multiarray._reconstruct"
    with torch.serialization.safe_globals([rebuild, (rebuild, older), np.ndarray, np.dtype, *numbers]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    columns = content if isinstance(content, Mapping) else {"label": content}
    return {str(name): np.asarray(values).reshape(-1).tolist() for name, values in columns.items()}


_READERS = {".parquet": _read_parquet, ".csv": _read_csv, ".npy": _read_npy, ".pt": _read_pt}
