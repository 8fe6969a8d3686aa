"""Names of the published networks, and their configurations."""

import inspect
from typing import Any

from .configuration_preactresnet import PreActResNetConfig
from .configuration_pyramidnet import PyramidNetConfig
from .configuration_small_image import SmallImageConfig
from .configuration_vgg import VGGConfig
from .configuration_wideresnet import WideResNetConfig

ARCHITECTURES: dict[str, tuple[type[SmallImageConfig], dict[str, Any]]] = {
    "preactresnet18": (PreActResNetConfig, {"depths": [2, 2, 2, 2], "block_type": "basic"}),
    "preactresnet34": (PreActResNetConfig, {"depths": [3, 4, 6, 3], "block_type": "basic"}),
    "preactresnet50": (PreActResNetConfig, {"depths": [3, 4, 6, 3], "block_type": "bottleneck"}),
    "vgg11": (VGGConfig, {"depths": [1, 1, 2, 2, 2]}),
    "vgg13": (VGGConfig, {"depths": [2, 2, 2, 2, 2]}),
    "vgg16": (VGGConfig, {"depths": [2, 2, 3, 3, 3]}),
    "vgg19": (VGGConfig, {"depths": [2, 2, 4, 4, 4]}),
    "wideresnet28_10": (WideResNetConfig, {"depth": 28, "widen_factor": 10}),
    "wideresnet28_2": (WideResNetConfig, {"depth": 28, "widen_factor": 2}),
    "wideresnet16_8": (WideResNetConfig, {"depth": 16, "widen_factor": 8}),
    "pyramidnet110_48": (PyramidNetConfig, {"depth": 110, "alpha": 48, "block_type": "basic"}),
    "pyramidnet110_270": (PyramidNetConfig, {"depth": 110, "alpha": 270, "block_type": "basic"}),
    "pyramidnet164_270": (PyramidNetConfig, {"depth": 164, "alpha": 270, "block_type": "bottleneck"}),
}
"""Name of a network → configuration class and the fields that make it."""

MODEL_NAMES = tuple(ARCHITECTURES)
"""The names of the networks."""

_SHARED_FIELDS = ("num_labels", "id2label", "label2id", "dtype", "output_hidden_states", "return_dict")


def build_config(name: str, **overrides: Any) -> SmallImageConfig:
    """Return the configuration of a published network, with ten classes unless the overrides say otherwise.

    Args:
        name: key of `ARCHITECTURES`.
        **overrides: fields to change, e.g. `hidden_sizes=[16, 32, 64, 128]` or `num_labels=100`.

    Returns:
        The configuration; `AutoModelForImageClassification.from_config` makes the network.

    Raises:
        ValueError: the name or a field is not known, or a field is out of its range.
        TypeError: a field is of the wrong type.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"`name` must be one of {', '.join(MODEL_NAMES)}, got {name!r}; choose one of these")
    config_class, fields = ARCHITECTURES[name]
    known = _field_names(config_class)
    unknown = [field for field in overrides if field not in known]
    if unknown:
        raise ValueError(
            f"{name} has no config field {unknown[0]!r}; its fields are {', '.join(known)}: choose one of these"
        )
    if overrides.get("id2label") is None and overrides.get("num_labels") is None:
        overrides["num_labels"] = 10
    return config_class(**{**fields, **overrides})


def _field_names(config_class: type[SmallImageConfig]) -> tuple[str, ...]:
    signatures = (inspect.signature(each.__init__).parameters.values() for each in (config_class, SmallImageConfig))
    own = (field.name for parameters in signatures for field in parameters if field.kind is not field.VAR_KEYWORD)
    return (*(name for name in own if name != "self"), *_SHARED_FIELDS)
