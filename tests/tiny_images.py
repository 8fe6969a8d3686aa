"""Tiny image data sets of the schemas that the package reads, in memory or as files."""

from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

REAL = Path(__file__).parent.parent.parent / "shared" / "data"


def random_images(count, size=(8, 8), bands=3, seed=0):
    """Random images of mode RGB or L."""
    shape = (count, *size, 3) if bands == 3 else (count, *size)
    return [PILImage.fromarray(one) for one in np.random.default_rng(seed).integers(0, 256, shape, np.uint8)]


def image_split(count=12, classes=3, image="image", label="label", images=None, **options):
    """A split with balanced labels 0, 1, 2, 0, …"""
    features = Features({image: Image(), label: ClassLabel(names=[f"class {i}" for i in range(classes)])})
    columns = {image: images or random_images(count, **options), label: [i % classes for i in range(count)]}
    return Dataset.from_dict(columns, features=features)


def cifar100_split(count=12, seed=0):
    """A split with fine and coarse labels."""
    features = Features(
        {"img": Image(), "fine_label": ClassLabel(num_classes=6), "coarse_label": ClassLabel(num_classes=2)}
    )
    columns = {
        "img": random_images(count, seed=seed),
        "fine_label": [i % 6 for i in range(count)],
        "coarse_label": [i % 2 for i in range(count)],
    }
    return Dataset.from_dict(columns, features=features)


def plain_label_split(labels, dtype):
    """A split whose labels are numbers or words, not class labels."""
    features = Features({"picture": Image(), "label": Value(dtype)})
    return Dataset.from_dict({"picture": random_images(len(labels)), "label": labels}, features=features)


def write_parquet(folder, **splits):
    """Write one parquet file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def write_folder(folder, splits=("train", "test"), classes=("cat", "dog"), per_class=3):
    """Write <split>/<class>/<image>.png."""
    for split in splits:
        for i, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for j, image in enumerate(random_images(per_class, seed=i)):
                image.save(place / f"{j}.png")
    return folder


def own_cache(monkeypatch, folder):
    """Keep the caches of `datasets` and of decoded pixels in a folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def as_dict(**splits):
    return DatasetDict(splits)
