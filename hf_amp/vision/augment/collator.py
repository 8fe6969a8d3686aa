"""Turn images of `DecodedImages` into the batch that a model takes: augmented, normalised, perhaps mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from hf_amp.vision.augment.pil import change_images
from hf_amp.vision.augment.plan import AUGMENTATIONS, Draw, change_pixels, cutout_mask, draw_plan, mixing_weights
from hf_amp.vision.augment.stream import RandomStream
from hf_amp.vision.data.catalogue import changes_for
from hf_amp.vision.data.decoded import DecodedImages, ImageSelection
from hf_amp.vision.data.normalisation import normalisation


class ImageCollator:
    """Make a batch: augment and normalise whole batches as tensors, on the device where the data is.

    All random numbers are functions of (seed, epoch, image), so an image of an epoch looks the same whatever the
    number of workers or processes, however the batch is split into micro-batches, and after a resume.

        images = DecodedImages(load_image_dataset("digits")["train"])
        images.set_epoch(0)  # in a Trainer, EpochCallback does it
        batch = ImageCollator("digits", augmentation="cutout", seed=1)([images[0], images[1]])

    Args:
        dataset_name: chooses the changes (`changes_for`) and, without `mean` and `std`, the normalisation.
        augmentation: `"vanilla"` (crop and flip), `"cutout"` (vanilla, then Cutout), `"autoaugment"` (vanilla,
            AutoAugment, Cutout) or `"none"`.
        mean: per channel, for pixels in [0, 1].
        std: likewise, > 0.
        mixup_alpha: MixUp with weights from Beta(α, α), α > 0; None or 0: none. The partner of an image is any image
            of the same data set, so that it depends neither on the batch nor on its parts.
        train: False: neither augment nor mix.
        seed: of all random numbers.
        per_image: use PIL's transforms, image by image, in place of the batched ones; same random numbers.

    Raises:
        ValueError: an argument is outside its range, or `mean` and `std` are missing for a data set without fixed ones.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        augmentation: str = "vanilla",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mixup_alpha: float | None = None,
        train: bool = True,
        seed: int = 0,
        per_image: bool = False,
    ) -> None:
        if augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"`augmentation` must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}; choose one"
            )
        if mixup_alpha is not None and mixup_alpha < 0:
            raise ValueError(f"`mixup_alpha` must be >= 0, got {mixup_alpha}; 0 switches MixUp off")
        if (mean is None) != (std is None):
            raise ValueError(f"`mean` and `std` go together, got {mean} and {std}; give both or none")
        if mean is None or std is None:
            mean, std = normalisation(dataset_name)
        self.mean, self.std = _per_channel("mean", mean), _per_channel("std", std)
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"`std` must hold as many numbers > 0 as `mean`, got {list(std)} and {list(mean)}")
        self.changes = changes_for(dataset_name)
        self.augmentation = augmentation if train else "none"
        self.mixup_alpha = (mixup_alpha or 0.0) if train else 0.0
        self.seed, self.per_image = seed, per_image

    def __call__(self, selections: Sequence[ImageSelection]) -> dict[str, Tensor]:
        """Return the batch of some images.

        Args:
            selections: items of one `DecodedImages`.

        Returns:
            `pixel_values` (batch, channels, height, width) float32, normalised, and `labels`, (batch,) int64, or
            (batch, classes) float32 under MixUp.

        Raises:
            ValueError: the images are of several data sets, have another number of channels than `mean`, or must be
                augmented for an unknown epoch.
        """
        source, indices = _join(selections)
        if source.pixel_shape[0] != len(self.mean):
            raise ValueError(
                f"images have {source.pixel_shape[0]} channels and `mean` {len(self.mean)}; give `mean` and `std` of "
                "these images"
            )
        stream = self._stream(source, indices)
        pixel_values, labels = self._images(source, indices, stream), source.labels[indices]
        if not self.mixup_alpha or stream is None:
            return {"pixel_values": pixel_values, "labels": labels}
        partners = stream.integers(Draw.MIXUP_PARTNER, len(source))
        others = self._images(source, partners, self._stream(source, partners))
        weights = mixing_weights(stream.uniform(Draw.MIXUP_WEIGHT), self.mixup_alpha)
        classes = torch.arange(len(source.label_names), device=labels.device)
        # Not one_hot: it may look at the values, for which a GPU would have to wait.
        first, second = (one[:, None] == classes for one in (labels, source.labels[partners]))
        soft = torch.lerp(second.float(), first.float(), weights[:, None])
        return {"pixel_values": torch.lerp(others, pixel_values, weights[:, None, None, None]), "labels": soft}

    def _stream(self, source: DecodedImages, indices: Tensor) -> RandomStream | None:
        if self.augmentation == "none" and not self.mixup_alpha:
            return None
        if source.epoch is None:
            raise ValueError(
                "the images do not know their epoch, so that every epoch would be augmented alike; add "
                "hf_amp.vision.EpochCallback() to the Trainer's callbacks, or call dataset.set_epoch in your own loop"
            )
        return RandomStream(self.seed, source.epoch, indices)

    def _images(self, source: DecodedImages, indices: Tensor, stream: RandomStream | None) -> Tensor:
        pixels = source.pixels(indices)
        size = source.pixel_shape[1:]
        plan = None if stream is None else draw_plan(stream, self.augmentation, self.changes, size)
        if plan is not None:
            pixels = change_images(pixels, plan) if self.per_image else change_pixels(pixels, plan)
        # One multiplication and one addition per pixel
        scale, shift = _scale_and_shift(self.mean, self.std, pixels.device)
        values = torch.addcmul(shift, pixels.float(), scale)
        if plan is not None and plan.cutout is not None:
            # 0 before normalisation
            values = torch.where(cutout_mask(plan.cutout, plan.cutout_side, size), shift, values)
        return values.contiguous()  # the layout is the network's choice: see `build_model`


def _per_channel(name: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"`{name}` must hold one finite number per channel, got {values}; e.g. [0.5, 0.5, 0.5]")
    return numbers


@cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what uint8 pixels are multiplied by and what is added, (channels, 1, 1); copied to a GPU once."""
    both = torch.tensor([[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]])
    scale, shift = both.to(device)[:, :, None, None]
    return scale, shift


def _join(selections: Sequence[ImageSelection]) -> tuple[DecodedImages, Tensor]:
    if not all(isinstance(one, ImageSelection) for one in selections) or not selections:
        kinds = ", ".join(sorted({type(one).__name__ for one in selections})) or "nothing"
        raise TypeError(
            f"ImageCollator takes items of DecodedImages, got {kinds}; pass DecodedImages(split) to the Trainer"
        )
    source = selections[0].source
    if any(one.source is not source for one in selections):
        raise ValueError(
            "a batch must come from one DecodedImages; join splits with datasets.concatenate_datasets first"
        )
    return source, source.place(torch.cat([one.indices for one in selections]))
