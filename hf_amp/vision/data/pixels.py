"""Decode the images of a split once, and keep the pixels in a file that is whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets.config
import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_amp.files import whole_file

logger = logging.get_logger(__name__)

_ROWS_PER_READ = 1000
_FORMAT = 1  # raise it when the decoding changes, so that files of older versions are not read
_BANDS = {"L": 1, "RGB": 3}


def read_images(split: Dataset, indices: Sequence[int], of: str = "") -> list[PILImage.Image]:
    """Return some images of a split.

    Args:
        split: with a column `image`.
        indices: places in it.
        of: what error messages put behind the number of an image, e.g. `" of split 'train'"`.

    Raises:
        ValueError: one is missing, or is no image that can be read.
    """
    try:
        images = split[indices]["image"]
    except (OSError, ValueError, SyntaxError) as error:  # PIL's, which do not say which image is meant
        if len(indices) > 1:
            return [read_images(split, [i], of)[0] for i in indices]
        raise ValueError(
            f"image {indices[0]}{of}{_path_of(split, indices[0])} cannot be read ({error}); fetch the data set again, "
            "or remove the image"
        ) from error
    if None in images:
        raise ValueError(f"image {indices[images.index(None)]}{of} is missing; remove the rows without image")
    return images


def _path_of(split: Dataset, index: int) -> str:
    path = split.cast_column("image", Image(decode=False))[index]["image"]["path"]
    return "" if path is None else f" ({path})"


def decode(
    image: PILImage.Image, bands: int, size: tuple[int, int], where: str, resize: bool, convert: bool = False
) -> np.ndarray:
    """Return the pixels of an image, (height, width, channels) uint8.

    Args:
        image: of any mode with 8 bits a channel; transparency is dropped, palettes become colours.
        bands: 1 for grey, 3 for colour; grey images become coloured ones where needed.
        size: height and width.
        where: what an error message calls the image.
        resize: bring images of other sizes to `size`, bilinearly.
        convert: make images in colour grey where `bands` is 1.

    Raises:
        ValueError: the image has another size or kind than it must have.
    """
    if bands_of(image, where) > bands and not convert:
        raise ValueError(
            f"{where} is in colour (mode {image.mode}) and the first image is grey; give `image_mode` "
            "(`--image_mode rgb` or `grey` on the command line) to make all alike"
        )
    image = image.convert("RGB" if bands == 3 else "L")
    if (image.height, image.width) != size:
        if not resize:
            raise ValueError(
                f"{where} is {image.height}×{image.width} and the first image {size[0]}×{size[1]} pixels; give "
                "`image_size` (`--image_size` on the command line) to bring all images to one size"
            )
        image = image.resize((size[1], size[0]), PILImage.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(*size, bands)


def bands_of(image: PILImage.Image, where: str) -> int:
    """Return 1 for a grey image, 3 for one with colours.

    Raises:
        ValueError: its pixels have more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{where} has mode {image.mode}, more than 8 bits a channel; convert the images to 8 bits (L or RGB) first"
        )
    return 1 if image.mode in ("1", "L", "LA") else 3


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the height and the width that `image_size` means.

    Raises:
        ValueError: they are not positive whole numbers.
    """
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f"`image_size` must be a whole number > 0 or two of them (height, width), got {image_size}; e.g. 32"
        )
    return size[0], size[1]


def decoded_pixels(
    split: Dataset,
    bands: int,
    size: tuple[int, int],
    resize: bool,
    cache_dir: str | os.PathLike[str] | None,
    convert: bool = False,
    of: str = "",
) -> np.ndarray:
    """Return all images of a split, from the cache if they are there, else decoded and put there.

    Args:
        split: with a column `image`.
        bands: 1 or 3.
        size: height and width of all images.
        resize: bring images of other sizes to `size`.
        cache_dir: folder of the cache; None: `hf_amp` in the cache folder of `datasets`.
        convert: make images in colour grey where `bands` is 1.
        of: what error messages put behind the number of an image.

    Returns:
        (images, channels, height, width) uint8, mapped from the file; in memory if it could not be written.

    Raises:
        ValueError: an image has another size or kind than the first one, or cannot be read.
    """
    shape = (len(split), bands, *size)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_amp" if cache_dir is None else Path(cache_dir)
    path = folder / f"pixels-{fingerprint(split, shape)}{'-converted' if convert else ''}.npy"
    cached = _read(path, shape)
    if cached is not None:
        return cached
    pixels = np.empty(shape, np.uint8)
    images = split.select_columns("image")
    parts = range(0, len(split), _ROWS_PER_READ)
    for start in tqdm(parts, desc="Decoding images", unit="thousand", delay=5, leave=False):
        rows = range(start, min(start + _ROWS_PER_READ, len(split)))
        for i, image in zip(rows, read_images(images, rows, of), strict=True):
            pixels[i] = decode(image, bands, size, f"image {i}{of}", resize, convert).transpose(2, 0, 1)
    try:
        with whole_file(path) as file:
            np.save(file, pixels)
    except OSError as error:
        logger.warning(
            f"The decoded images could not be kept in {path} ({error}); they will be decoded again next time."
        )
        return pixels
    mapped = _read(path, shape)
    return pixels if mapped is None else mapped


def fingerprint(split: Dataset, shape: tuple[int, ...]) -> str:
    """Return a key of the encoded images, in their order, and of the shape that they are decoded to.

    Not the fingerprint that `datasets.Dataset` keeps: that one changes with the labels as well (label noise would
    decode and store everything anew for each seed), and is random for data made in memory.
    """
    digest = hashlib.blake2b(f"{_FORMAT}{shape}{split.features['image']}".encode(), digest_size=16)
    encoded = split.select_columns("image").with_format("arrow")
    for start in range(0, len(split), _ROWS_PER_READ):
        table: Any = encoded[start : start + _ROWS_PER_READ]
        table = table.flatten()
        contents, paths = table["image.bytes"].to_pylist(), table["image.path"].to_pylist()
        for content, path in zip(contents, paths, strict=True):
            _add_image(digest, content, path)
    return digest.hexdigest()


def _add_image(digest: Any, content: bytes | None, path: str | None) -> None:
    if content is not None:
        digest.update(b"%d:" % len(content))
        digest.update(content)
        return
    digest.update(str(path).encode())
    if os.path.exists(path or ""):
        state = os.stat(path or "")
        digest.update(f"{state.st_size}:{state.st_mtime_ns}".encode())


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels of a file, None if it is missing or not what it must be."""
    if not path.exists():
        return None
    try:
        # "c": torch wants an array that can be written to; writes would stay in this process's memory.
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
        offset = pixels.offset if isinstance(pixels, np.memmap) else 0
        if pixels.shape == shape and pixels.dtype == np.uint8 and path.stat().st_size == offset + pixels.nbytes:
            return pixels
        found = f"{pixels.dtype} {pixels.shape}, {path.stat().st_size} bytes"
    except (ValueError, OSError, EOFError) as error:
        found = str(error)
    logger.warning(f"{path} is not a whole file of {shape} bytes ({found}); the images are decoded again.")
    return None
