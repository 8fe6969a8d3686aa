"""The labels of a split: parts that keep the shares of the classes, and wrong labels, both drawn from a seed."""

from __future__ import annotations

import numpy as np
from datasets import Dataset


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
    labels = labels_of(split)
    return split.select(stratified_indices(labels, count, seed))


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
