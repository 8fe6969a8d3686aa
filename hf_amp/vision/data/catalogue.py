"""The data sets that are known by name: one row each, with everything that is particular to it.

Source of mean, std and changes: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*,
CVPR 2021, and its published code. Cutout's sides: DeVries, Taylor, arXiv:1708.04552.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Changes:
    """How images of a data set are augmented, in pixels of a 32×32 image.

    Args:
        padding: on every side, before the crop to the old size.
        flip: mirror every second image.
        cutout: side of the square.
        policy: AutoAugment policy, `"cifar10"` or `"svhn"`.
        crop_before_policy: crop and flip also under AutoAugment.
    """

    padding: int
    flip: bool
    cutout: int
    policy: str
    crop_before_policy: bool = True


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Args:
        name: what the commands call it.
        title: what cards and figures call it.
        hub_id: its repository on the Hub; None: it is not there.
        config: the configuration in it; None: the only one.
        label: its label column.
        classes: number of classes.
        mean: per channel, of pixels 0…255.
        std: likewise.
        changes: how its images are augmented.
        augmentation: what is used where none is asked for.
    """

    name: str
    title: str
    hub_id: str | None
    config: str | None
    label: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    changes: Changes
    augmentation: str = "vanilla"


_CIFAR10 = Changes(padding=4, flip=True, cutout=16, policy="cifar10")
_CIFAR100 = Changes(padding=4, flip=True, cutout=8, policy="cifar10")
_SVHN = Changes(padding=2, flip=False, cutout=20, policy="svhn", crop_before_policy=False)

CATALOGUE = {
    row.name: row
    for row in (
        DataSet("cifar10", "CIFAR-10", "uoft-cs/cifar10", None, "label", 10,
                (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), _CIFAR10),
        DataSet("cifar100", "CIFAR-100", "uoft-cs/cifar100", None, "fine_label", 100,
                (129.3, 124.1, 112.4), (68.2, 65.4, 70.4), _CIFAR100),
        DataSet("svhn", "SVHN", "ufldl-stanford/svhn", "cropped_digits", "label", 10,
                (109.9, 109.7, 113.8), (50.1, 50.6, 50.8), _SVHN),
        # Mean and std: `measure` of the training split, as it is cut here.
        DataSet("digits", "scikit-learn's digits", None, None, "label", 10, (77.9,), (95.9,), _SVHN, "none"),
    )
}  # fmt: skip


def known_dataset(name: str) -> DataSet | None:
    """Return the row of a data set that is given by its short name or its Hub id, None for any other."""
    rows = CATALOGUE.values()
    return CATALOGUE.get(name) or next((row for row in rows if row.hub_id == name and name), None)


def canonical_name(name: str) -> str:
    """Return the short name of a known data set; other names as they are."""
    row = known_dataset(name)
    return name if row is None else row.name


def changes_for(name: str) -> Changes:
    """Return how images of a data set are augmented; those of an unknown one as CIFAR-10's."""
    row = known_dataset(name)
    return _CIFAR10 if row is None else row.changes
