"""Where data sets are read from: the Hub or its cache, parquet files, folders of images, scikit-learn."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from PIL import Image as PILImage

from hf_amp.vision.data.catalogue import CATALOGUE, known_dataset
from hf_amp.vision.data.columns import refuse_strangers
from hf_amp.vision.data.labels import split_off

_LAYOUTS = "a folder with train*.parquet and test*.parquet, one such file, or a folder <split>/<class>/<image>"
_ALSO_CALLED = {"validation": ("valid", "val", "dev")}
_DIGITS_TEST_SHARE = 0.2
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def name_and_path(name: str, path: str | os.PathLike[str] | None) -> tuple[str, str | os.PathLike[str] | None]:
    """Return name and path of a data set; a path that is given as its name is a path, and the name its last part.

    The last part never makes it a known data set: who means CIFAR-10 says so.
    """
    looks_so = Path(name).is_absolute() or name.startswith((".", "~"))
    exists = path is None and bool(name) and name not in CATALOGUE and Path(name).exists()
    if not looks_so and not exists:
        return name, path
    last = Path(name).expanduser().resolve().name or "images"
    return (f"{last}_folder" if known_dataset(last) else last), Path(name).expanduser() if path is None else path


def from_hub(hub_id: str, config: str | None) -> DatasetDict:
    """Read a data set from the Hub, or from the cache when the Hub cannot be reached.

    Args:
        hub_id: repository.
        config: configuration in it; None: the default one.

    Returns:
        All splits; `valid`, `val` and `dev` are called `validation`.

    Raises:
        FileNotFoundError: there is no such data set, or none that may be read.
        ConnectionError: the Hub cannot be reached and the data set is not in the cache.
        ValueError: `datasets` refuses it, for example since it has several configurations, or a file is damaged.
    """
    told = _told(hub_id)
    try:
        found = load_dataset(hub_id, config)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"data set {told} was not found on the Hub, or may not be read; correct the name, log in, or pass a "
            "local copy as `path` (`--dataset_path` on the command line)"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"data set {told} is not in the cache, and the Hub cannot be reached ({error}); connect to the "
            "network once, pass a local copy as `path` (`--dataset_path` on the command line), or use the data set "
            "'digits', which needs no network"
        ) from error
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"data set {told} cannot be loaded as it is ({error.__cause__ or error}); choose what you need with "
            "datasets.load_dataset, write each split with `to_parquet('train.parquet')` and so on, and pass the folder "
            "as `path` (`--dataset_path` on the command line)"
        ) from error
    return _usual_names(found)


def _told(hub_id: str) -> str:
    """Return an id as messages show it: of one that nobody knows, that it is no folder, either."""
    if known_dataset(hub_id) is not None:
        return repr(hub_id)
    close = difflib.get_close_matches(hub_id, CATALOGUE, n=1)
    return f"{hub_id!r} (there is no such folder here{f'; did you mean {close[0]!r}?' if close else ''})"


def from_path(path: str | os.PathLike[str], config: str | None, wanted: Sequence[str]) -> DatasetDict:
    """Read a local copy of a data set.

    Args:
        path: folder with parquet files named after their splits, one such file, or a folder
            `<split>/<class>/<image>`. Copies of a Hub repository hold the files in a folder of their own, which is
            found, too.
        config: name of that folder, where there are several.
        wanted: names of the splits to read from parquet files, where they exist.

    Returns:
        The splits; `valid`, `val` and `dev` are called `validation`.

    Raises:
        FileNotFoundError: `path` does not exist, or holds nothing that can be read.
        ValueError: parquet files lie in several folders, or cannot be read.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"`path` {str(path)!r} does not exist; give {_LAYOUTS}")
    files = _parquet_files(folder, config)
    by_split = {name: [str(file) for file in files if file.name.startswith(_names_of(name))] for name in wanted}
    by_split = {name: found for name, found in by_split.items() if found}
    if by_split:
        return DatasetDict({name: _read_parquet(found) for name, found in by_split.items()})
    if not files and any(_is_image(image) for image in folder.glob("*/*/*")):
        return _from_folders(folder)
    raise FileNotFoundError(
        f"`path` {str(path)!r} holds no data set that can be read, got {_contents(folder)}; give {_LAYOUTS}"
    )


def _from_folders(folder: Path) -> DatasetDict:
    """Read `<split>/<class>/<image>`: splits are the top folders and nothing else, whatever classes are called.

    Not by the `imagefolder` of `datasets`, which looks for the names of splits in whole paths.
    """
    splits = {}
    for name in ("train", "validation", "test", "extra"):
        places = [folder / one for one in _names_of(name) if (folder / one).is_dir()]
        if places:
            splits[name] = places[0]
    classes = {name: _classes(place) for name, place in splits.items()}
    names = sorted({one for found in classes.values() for one in found})
    trained = {one for name in ("train", "extra") for one in classes.get(name, ())}
    for name, found in classes.items() if "train" in classes else ():
        refuse_strangers(name, found.keys() - trained, trained, _shown(folder))
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    made = {}
    for name, found in classes.items():
        rows = [(str(path), names.index(label)) for label, paths in found.items() for path in paths]
        columns = {"image": [path for path, _ in rows], "label": [number for _, number in rows]}
        made[name] = Dataset.from_dict(columns, features=features)
    return DatasetDict(made)


def _classes(place: Path) -> dict[str, list[Path]]:
    """Return the images of each class of a split."""
    stray = sorted(path for path in place.iterdir() if _is_image(path))
    if stray:
        raise ValueError(
            f"split {place.name!r} of {_shown(place.parent)} has {len(stray)} images without a label "
            f"({_shown(stray[0].relative_to(place.parent))}, …); move each into a folder of its class, or remove them"
        )
    found = {}
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found[folder.name] = sorted(path for path in folder.rglob("*") if _is_image(path))
        if not found[folder.name]:
            raise ValueError(
                f"class {_shown(folder.name)} of split {place.name!r} of {_shown(place.parent)} has no images; fill or "
                "remove its folder"
            )
        for path in (folder, *found[folder.name]):
            if path.name.encode("utf-8", "surrogateescape") != path.name.encode("utf-8", "replace"):
                raise ValueError(f"the name of {_shown(path)} is not UTF-8; rename it")
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()


def _shown(path: Path | str) -> str:
    """Return a name that can be printed, whatever its bytes are."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def from_scikit_learn() -> DatasetDict:
    """Return scikit-learn's digits, 0…16 stretched to 0…255; every fifth image of each class, drawn once, is test."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = np.round(bunch["images"] * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in bunch["target_names"]])})
    columns = {"image": [PILImage.fromarray(one) for one in pixels], "label": bunch["target"].tolist()}
    train, test = split_off(Dataset.from_dict(columns, features=features), _DIGITS_TEST_SHARE, seed=0)
    return DatasetDict({"train": train, "test": test})


def _parquet_files(folder: Path, config: str | None) -> list[Path]:
    """Return the parquet files of a folder; without any, those of its only folder that has some."""
    if folder.is_file():
        return [folder] if folder.suffix == ".parquet" else []
    files = sorted(folder.glob("*.parquet"))
    if files:
        return files
    groups = {sub.name: sorted(sub.glob("*.parquet")) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    groups = {name: found for name, found in groups.items() if found}
    if config in groups:
        return groups[config]
    if len(groups) > 1:
        raise ValueError(
            f"`path` {str(folder)!r} has parquet files in several folders, got {', '.join(groups)}; give one of these"
        )
    return next(iter(groups.values()), [])


def _contents(folder: Path) -> str:
    if folder.is_file():
        return "a file that is not parquet"
    names = sorted(one.name for one in folder.iterdir())
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "an empty folder"


def _read_parquet(files: list[str]) -> Dataset:
    try:
        return load_dataset("parquet", data_files=files, split="train")
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"{', '.join(files)} cannot be read as parquet files of the same columns ({error.__cause__ or error}); "
            "fetch them again (small text files in their place come from a copy without `git lfs pull`)"
        ) from error


def _names_of(split: str) -> tuple[str, ...]:
    return (split, *_ALSO_CALLED.get(split, ()))


def _usual_names(splits: DatasetDict) -> DatasetDict:
    usual = {other: name for name in _ALSO_CALLED for other in _names_of(name)[1:] if name not in splits}
    return DatasetDict({usual.get(str(name), name): split for name, split in splits.items()})
