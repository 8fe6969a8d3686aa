"""Which network: by name with fresh weights, or any image classifier of the Hub or of a folder with its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from hf_amp.models import MODEL_NAMES, build_config
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import Images


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
    overrides: dict[str, Any] = {
        "num_labels": len(images.label_names),
        "id2label": dict(enumerate(images.label_names)),
        "label2id": {name: i for i, name in enumerate(images.label_names)},
    }
    if training.method == "dropout":
        overrides["dropout"] = training.dropout
    if model.model in MODEL_NAMES:
        own = {"num_channels": images.num_channels, "image_size": images.image_size[0]}
        config = build_config(model.model, **{**own, **overrides, **model.config_overrides()})
        return _channels_last(AutoModelForImageClassification.from_config(config))
    if not Path(model.model).is_dir() and "/" not in model.model:
        raise ValueError(
            f"`model` must be one of {', '.join(MODEL_NAMES)}, a Hub id (owner/name) or a folder, got "
            f"{model.model!r}; choose one of these"
        )
    overrides |= model.config_overrides()
    known = AutoConfig.from_pretrained(model.model)
    unknown = sorted(name for name in overrides if not hasattr(known, name))
    if unknown:
        raise ValueError(
            f"`model` {model.model} has no config field {unknown[0]!r}; choose another method, or correct `model_args`"
        )
    return _channels_last(
        AutoModelForImageClassification.from_pretrained(
            model.model, config=AutoConfig.from_pretrained(model.model, **overrides), ignore_mismatched_sizes=True
        )
    )


def _channels_last(model: PreTrainedModel) -> PreTrainedModel:
    """Return the network with its kernels stored channels last: the layout in which convolutions are fast."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
