"""Images decoded once into one tensor, from which whole batches are taken; too many for memory: read batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from hf_amp.vision.data.labels import labels_of
from hf_amp.vision.data.pixels import bands_of, decode, decoded_pixels, fingerprint, height_and_width, read_images

logger = logging.get_logger(__name__)

_SHARE_OF_MEMORY = 0.5
_UNKNOWN_EPOCH = -1
_IMAGES_PER_DIGEST = 4096
_BANDS = {"grey": 1, "rgb": 3}


@dataclass(frozen=True)
class ImageSelection:
    """Some images of a data set on their way to `ImageCollator`: not the pixels, but where they are.

    No mapping, so `remove_unused_columns` of the `Trainer` leaves it alone; it stays in the process that reads it.

        ImageSelection(images, torch.tensor([0, 5]))  # of some DecodedImages, which makes them itself

    Args:
        source: the data set.
        indices: (batch,) int64, places in it.
    """

    source: DecodedImages
    indices: Tensor


class DecodedImages(Dataset[ImageSelection]):
    """A map-style data set over one uint8 tensor of pixels.

    Images are decoded at the first use and kept on disk (see `decoded_pixels`), so the next run only maps a file.
    Too many for memory: images are read and decoded batch by batch, and a warning says so.

    `to("cuda")`: batches are made on the GPU, with `dataloader_num_workers=0` and `dataloader_pin_memory=False`.

        images = DecodedImages(load_image_dataset("digits")["train"], image_size=16)

    Args:
        split: with columns `image` and `label`, as `load_image_dataset` returns it.
        cache_dir: folder for the decoded pixels; None: `hf_amp` in the cache folder of `datasets`.
        image_size: height and width to bring all images to, bilinearly; one number for squares; None: all images
            must have one size.
        max_bytes: most bytes of pixels to hold, >= 0; None: half of the memory that is free; 0: read batch by batch.
        image_mode: `"grey"` or `"rgb"` to make all images so; None: as they are, which must be alike.
        name: what error messages call the split.

    Attributes:
        pixel_shape: (channels, height, width).
        labels: (images,) int64.
        label_names: names of the classes.
        streams: whether images are read batch by batch.

    Raises:
        ValueError: the split lacks a column or is empty; images differ in size or kind, or cannot be read; an argument
            is outside its range.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        cache_dir: str | os.PathLike[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        max_bytes: int | None = None,
        image_mode: str | None = None,
        name: str | None = None,
    ) -> None:
        _check_split(split)
        if image_mode not in (None, *_BANDS):
            raise ValueError(
                f"`image_mode` must be {' or '.join(_BANDS)}, got {image_mode!r}; None keeps what they are"
            )
        self._of = "" if name is None else f" of split {name!r}"
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"`max_bytes` must be >= 0, got {max_bytes}; 0 reads images batch by batch")
        self._split = split.with_format(None).select_columns(["image", "label"])
        (first,) = read_images(self._split, [0], self._of)
        self._size: tuple[int, int] = (first.height, first.width)
        if image_size is not None:
            self._size = height_and_width(image_size)
        self._resize = image_size is not None
        height, width = self._size
        bands = bands_of(first, f"image 0{self._of}")
        self._convert = image_mode is not None
        self.pixel_shape = (bands if image_mode is None else _BANDS[image_mode], height, width)
        self.labels = torch.from_numpy(labels_of(self._split).astype(np.int64))
        self.label_names: list[str] = list(split.features["label"].names)
        # In shared memory, so that workers that live longer than an epoch learn of the next one.
        self._epoch = torch.tensor(_UNKNOWN_EPOCH).share_memory_()
        self._pixels: Tensor | None = None
        if not self._too_large(max_bytes):
            look = (self.pixel_shape[0], self._size, self._resize)
            pixels = decoded_pixels(self._split, *look, cache_dir, self._convert, self._of)
            self._pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageSelection:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[ImageSelection]:
        """Return one selection of many images: the loader of torch asks for whole batches."""
        return [ImageSelection(self, torch.tensor(indices, dtype=torch.int64))]

    @property
    def streams(self) -> bool:
        """Whether images are read batch by batch."""
        return self._pixels is None

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self.labels.device

    @property
    def epoch(self) -> int | None:
        """The epoch that batches are made for, None before `set_epoch`."""
        epoch = int(self._epoch)
        return None if epoch == _UNKNOWN_EPOCH else epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next batches belong to, >= 0: it decides their augmentation."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be >= 0, got {epoch}; count epochs from 0")
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Return a key of images, their order and their labels, wherever they lie: what was trained or tested on.

        Of images that are not in memory the key is that of their files: place, size and time.
        """
        digest = hashlib.blake2b(str(self.pixel_shape).encode(), digest_size=16)
        if self._pixels is None:
            digest.update(fingerprint(self._split, self.pixel_shape).encode())
        else:
            for start in range(0, len(self), _IMAGES_PER_DIGEST):
                digest.update(self._pixels[start : start + _IMAGES_PER_DIGEST].cpu().numpy().tobytes())
        digest.update("\n".join(self.label_names).encode())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> DecodedImages:
        """Move pixels and labels to a device, and return the data set.

        Raises:
            ValueError: images are read batch by batch, so there is nothing to move.
        """
        if self._pixels is None:
            raise ValueError(
                f"`to({str(device)!r})`: the images are not in memory; keep them on the CPU, or raise `max_bytes`"
            )
        self._pixels, self.labels = self._pixels.to(device), self.labels.to(device)
        return self

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at some places.

        Args:
            indices: (batch,) int64.

        Returns:
            (batch, channels, height, width) uint8.
        """
        if self._pixels is not None:
            return self._pixels[indices]
        rows = indices.tolist()
        decoded = [
            decode(image, self.pixel_shape[0], self._size, f"image {i}{self._of}", self._resize, self._convert)
            for i, image in zip(rows, read_images(self._split, rows, self._of), strict=True)
        ]
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()

    def place(self, indices: Tensor) -> Tensor:
        """Return indices on the device of the data, without waiting for it.

        Raises:
            RuntimeError: the data is on a GPU, and this is a worker process, which cannot use it.
        """
        if self.device.type == "cpu":
            return indices
        if get_worker_info() is not None:
            raise RuntimeError(
                f"the images are on {self.device}, which worker processes cannot use; set dataloader_num_workers=0 "
                "and dataloader_pin_memory=False, or leave the images on the CPU"
            )
        pinned = indices.pin_memory() if self.device.type == "cuda" else indices
        return pinned.to(self.device, non_blocking=True)

    def _too_large(self, max_bytes: int | None) -> bool:
        needed = len(self) * int(np.prod(self.pixel_shape))
        limit = int(psutil.virtual_memory().available * _SHARE_OF_MEMORY) if max_bytes is None else max_bytes
        if needed <= limit:
            return False
        logger.warning(
            f"{len(self)} images of {self.pixel_shape} take {needed / 2**20:.0f} MiB, more than the "
            f"{limit / 2**20:.0f} MiB that may be used: they are read and decoded batch by batch, which is slower."
        )
        return True


def _check_split(split: datasets.Dataset) -> None:
    for name, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        if not isinstance(split.features.get(name), kind):
            raise ValueError(
                f"`split` must have a column {name!r} of type datasets.{kind.__name__}, got {split.features}; load it "
                "with load_image_dataset"
            )
    if len(split) == 0:
        raise ValueError("`split` must have images, got none; choose another part of the data set")


def check_alike(splits: Mapping[str, DecodedImages]) -> None:
    """Check that the images of all splits have one size and one number of channels.

    Raises:
        ValueError: they have not, so that a network for the first split could not take the others.
    """
    (first, images), *others = splits.items()
    for name, other in others:
        if other.pixel_shape == images.pixel_shape:
            continue
        kinds = " and ".join(f"{_described(one)} in {split!r}" for split, one in ((first, images), (name, other)))
        remedy = "image_size" if other.pixel_shape[0] == images.pixel_shape[0] else "image_mode"
        raise ValueError(
            f"images must be alike in all splits, got {kinds}; give `{remedy}` (`--{remedy} "
            f"{'rgb' if remedy == 'image_mode' else images.pixel_shape[1]}` on the command line) to make them so"
        )


def _described(images: DecodedImages) -> str:
    channels, height, width = images.pixel_shape
    return f"{height}×{width} pixels {'in grey' if channels == 1 else 'in colour'}"
