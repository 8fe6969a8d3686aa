"""Where data sets are read from: the Hub or its cache, parquet files, folders of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

_LAYOUTS = "a folder with train*.parquet and test*.parquet, one such file, or a folder <split>/<class>/<image>"
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def from_hub(hub_id: str, config: str | None, wanted: Sequence[str]) -> DatasetDict:
    """Read a data set from the Hub, or from the cache when the Hub cannot be reached.

    Args:
        hub_id: repository.
        config: configuration in it; None: the default one.
        wanted: names of the splits to keep, where they exist.

    Raises:
        FileNotFoundError: there is no such data set, or none that may be read.
        ConnectionError: the Hub cannot be reached and the data set is not in the cache.
        ValueError: `datasets` refuses it, for example since it has several configurations.
    """
    try:
        found = load_dataset(hub_id, config)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"data set {hub_id!r} was not found on the Hub, or may not be read; correct the name, log in, or pass a "
            "local copy as `path` (`--dataset_path` on the command line)"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"data set {hub_id!r} is not in the cache, and the Hub cannot be reached ({error}); connect to the "
            "network once, pass a local copy as `path` (`--dataset_path` on the command line), or use the data set "
            "'digits', which needs no network"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"data set {hub_id!r} cannot be loaded as it is ({error}); choose what you need with "
            "datasets.load_dataset, write each split with `to_parquet('train.parquet')` and so on, and pass the folder "
            "as `path` (`--dataset_path` on the command line)"
        ) from error
    return _keep(found, wanted)


def from_path(path: str | os.PathLike[str], config: str | None, wanted: Sequence[str]) -> DatasetDict:
    """Read a local copy of a data set.

    Args:
        path: folder with parquet files named after their splits, one such file, or a folder
            `<split>/<class>/<image>`. Copies of a Hub repository hold the files in a folder of their own, which is
            found, too.
        config: name of that folder, where there are several.
        wanted: names of the splits to read, where they exist.

    Raises:
        FileNotFoundError: `path` does not exist, or holds nothing that can be read.
        ValueError: parquet files lie in several folders.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"`path` {str(path)!r} does not exist; give {_LAYOUTS}")
    files = _parquet_files(folder, config)
    by_split = {name: [str(file) for file in files if file.name.startswith(name)] for name in wanted}
    by_split = {name: found for name, found in by_split.items() if found}
    if by_split:
        return DatasetDict(
            {name: load_dataset("parquet", data_files=found, split="train") for name, found in by_split.items()}
        )
    if not files and any(image.suffix.lower() in _IMAGE_ENDINGS for image in folder.glob("*/*/*")):
        return _keep(load_dataset("imagefolder", data_dir=str(folder), drop_labels=False), wanted)
    raise FileNotFoundError(
        f"`path` {str(path)!r} holds no data set that can be read, got {_contents(folder)}; give {_LAYOUTS}"
    )


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


def _keep(splits: DatasetDict, wanted: Sequence[str]) -> DatasetDict:
    return DatasetDict({name: splits[name] for name in wanted if name in splits})
