"""Which network: by name with fresh weights, or any image classifier of the Hub or of a folder with its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from hf_amp.models import MODEL_NAMES, build_config
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import Images
from hf_amp.vision.train.methods import METHODS

logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """Which network.

    Args:
        model: name in the table of `hf_amp.models`, a Hub id or a local folder.
        model_args: JSON object of config fields, e.g. `'{"hidden_sizes": [16, 32, 64, 128]}'`.
    """

    model: str = field(
        default="preactresnet18",
        metadata={
            "help": "preactresnet18|34|50, vgg11|13|16|19, wideresnet28_10, pyramidnet164_270, ...; or "
            "a Hub id or folder of an image classifier."
        },
    )
    model_args: str = field(
        default="{}",
        metadata={"help": "Config fields as JSON, e.g. '{\"hidden_sizes\": [16, 32, 64, 128]}'."},
    )

    def __post_init__(self) -> None:
        self.config_overrides()

    def config_overrides(self) -> dict[str, Any]:
        """Return `model_args` as a dictionary.

        Raises:
            ValueError: if it is not a JSON object.
        """
        if isinstance(self.model_args, dict):  # a mapping in a YAML recipe
            return dict(self.model_args)
        try:
            overrides = json.loads(self.model_args)
        except json.JSONDecodeError as error:
            overrides = error
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`model_args` must be a JSON object, got {self.model_args!r}; write it as "
                "'{\"hidden_sizes\": [16, 32, 64, 128]}', with double quotes inside"
            )
        return overrides


def build_model(model: ModelArguments, training: ImageTrainingArguments, images: Images) -> PreTrainedModel:
    """Return the network for the data set, with fresh weights or, from the Hub or a folder, with its own.

    Args:
        model: name and config fields.
        training: gives the rate of `--method dropout`.
        images: gives classes, channels and size.

    Raises:
        ValueError: the name is not known, a config field does not exist, or the size does not fit.
    """
    config = _config(model, training, images)
    _check_config(model, config, images)
    if model.model in MODEL_NAMES:
        return _channels_last(AutoModelForImageClassification.from_config(config))
    loaded = AutoModelForImageClassification.from_pretrained(model.model, config=config, ignore_mismatched_sizes=True)
    return _channels_last(loaded)


def _config(model: ModelArguments, training: ImageTrainingArguments, images: Images) -> PreTrainedConfig:
    overrides: dict[str, Any] = {
        "num_labels": len(images.label_names),
        "id2label": dict(enumerate(images.label_names)),
        "label2id": {name: i for i, name in enumerate(images.label_names)},
    }
    if training.method == "dropout":
        overrides["dropout"] = training.dropout
    if model.model in MODEL_NAMES:
        own = {"num_channels": images.num_channels, "image_size": images.image_size[0]}
        return build_config(model.model, **{**own, **overrides, **model.config_overrides()})
    if not Path(model.model).is_dir() and "/" not in model.model:
        raise ValueError(
            f"`model` must be one of {', '.join(MODEL_NAMES)}, a Hub id (owner/name) or a folder, got "
            f"{model.model!r}; choose one of these"
        )
    overrides |= model.config_overrides()
    try:
        known = AutoConfig.from_pretrained(model.model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`model` {model.model!r} cannot be loaded ({str(error).splitlines()[0]}); give one of "
            f"{', '.join(MODEL_NAMES)}, a folder that a training wrote, or the Hub id (owner/name) of a classifier"
        ) from error
    unknown = sorted(name for name in overrides if not hasattr(known, name))
    if unknown:
        raise ValueError(
            f"`model` {model.model} has no config field {unknown[0]!r}; choose another method, or correct `model_args`"
        )
    return AutoConfig.from_pretrained(model.model, **overrides)


def _check_config(model: ModelArguments, config: PreTrainedConfig, images: Images) -> None:
    """Refuse a network that is not one for these images."""
    channels = getattr(config, "num_channels", images.num_channels)
    if channels != images.num_channels:
        mode = {1: "; give --image_mode grey", 3: "; give --image_mode rgb"}.get(channels, "; choose another network")
        raise ValueError(
            f"`model` {model.model} takes images of {channels} channel(s), and these have {images.num_channels}{mode}"
        )
    classes, given = len(images.label_names), model.config_overrides()
    counts = [given.get("num_labels", classes), len(given.get("id2label", images.label_names)), config.num_labels]
    wrong = [count for count in counts if count != classes]
    if wrong:
        raise ValueError(
            f"`model_args` must leave the network {classes} classes, as many as the images have, got {wrong[0]}; leave "
            "num_labels and id2label out"
        )


def _channels_last(model: PreTrainedModel) -> PreTrainedModel:
    """Return the network with its kernels stored channels last: the layout in which convolutions are fast.

    Not so a network with a convolution for which that layout destroys memory: on CPUs without AVX-512, the gradient of
    a 1 × 1 kernel with a stride and fewer than 8 input channels is written past its end
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    if any(_needs_channels_first(module) for module in model.modules()):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _needs_channels_first(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return set(module.kernel_size) == {1} and max(module.stride) > 1 and module.in_channels // module.groups < 8


def check_training(model: ModelArguments, training: ImageTrainingArguments, images: Images) -> None:
    """Refuse a training in which batch norm would meet a batch of one value per channel; say what has no effect.

    Raises:
        ValueError: a pass has one image, and the network cannot train on one.
    """
    _say_what_the_radius_follows(training, images)
    parts = [name for name, size in _smallest_passes(training, len(images.train)).items() if size == 1]
    if not parts or _trains_on_one_image(model, training, images):
        return
    remedies = {
        "the last batch of an epoch": "--dataloader_drop_last true, or another --per_device_train_batch_size",
        "the ascent": f"a larger --amp_ascent_fraction than {training.amp_ascent_fraction}",
    }
    raise ValueError(
        f"{parts[0]} has one image (`per_device_train_batch_size`={training.per_device_train_batch_size}, "
        f"{len(images.train)} training images), and batch norm needs more than one value per channel; give "
        f"{remedies[parts[0]]}"
    )


def _say_what_the_radius_follows(training: ImageTrainingArguments, images: Images) -> None:
    # Without evaluations the Trainer says so itself.
    if training.amp_epsilon is None and images.validation is None and training.eval_strategy != IntervalStrategy.NO:
        why, remedy = "none are held out", "--validation_fraction 0.1"
        if images.tested_on != "test":
            why = f"the data set has no test split, so that its {images.tested_on} images are what is tested on"
            remedy = "a test split"
        logger.warning(
            f"`amp_epsilon` is not given, so the radius follows the loss on held-out images, and {why}: every step is "
            f"a plain one, as with --method erm. Add {remedy}, or --amp_epsilon 0.5 for the paper's constant radius."
        )


def _smallest_passes(training: ImageTrainingArguments, count: int) -> dict[str, int]:
    """Return the number of images in the smallest micro-batch of each kind of pass, on one process."""
    own, size = -(-count // training.world_size), training.train_batch_size
    rest = 0 if training.dataloader_drop_last else own % size
    smallest = {"the last batch of an epoch": rest or min(size, own)}
    fraction = training.amp_ascent_fraction
    perturbs = training.amp_epsilon != 0 and training.amp_inner_iter > 0 and training.method != "rmp"
    if perturbs and fraction < 1 and "amp_ascent_fraction" in METHODS[training.method].fields:
        whole = size * (1 if training.amp_scope == "micro_batch" else training.gradient_accumulation_steps)
        last = own % whole if own % whole and not training.dataloader_drop_last else min(whole, own)
        taken = [max(1, int(fraction * images + 0.5)) for images in (min(whole, own), last)]
        smallest["the ascent"] = min(images % size or size for images in taken)
    return smallest


def _trains_on_one_image(model: ModelArguments, training: ImageTrainingArguments, images: Images) -> bool:
    """Try it without numbers: on the device `meta` layers only check shapes."""
    with torch.device("meta"):
        network = AutoModelForImageClassification.from_config(_config(model, training, images)).train()
        pixels = torch.empty(1, images.num_channels, *images.image_size)
    try:
        with torch.no_grad():
            network(pixel_values=pixels)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    except Exception:  # networks of the Hub may do what this device cannot: then the training will tell
        return True
    return True


def folder_fingerprint(folder: Path) -> str:
    """Return a key of the weights and the configuration in a model's folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("config.json"))):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
