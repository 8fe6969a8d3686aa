"""Small versions of every network, by name of the family and the kind of block."""

import torch
from transformers import AutoModelForImageClassification

from hf_amp.models import PreActResNetConfig, PyramidNetConfig, VGGConfig, WideResNetConfig

SMALL_CONFIGS = {
    "preactresnet-basic": (PreActResNetConfig, {"stem_size": 4, "hidden_sizes": [4, 8], "depths": [2, 1]}),
    "preactresnet-bottleneck": (
        PreActResNetConfig,
        {"stem_size": 4, "hidden_sizes": [4, 6], "depths": [1, 2], "block_type": "bottleneck", "expansion": 2},
    ),
    "vgg": (VGGConfig, {"hidden_sizes": [4, 8], "depths": [1, 2], "classifier_sizes": [16, 12]}),
    "wideresnet": (WideResNetConfig, {"depth": 16, "widen_factor": 2, "stem_size": 4, "hidden_sizes": [2, 4, 6]}),
    "pyramidnet-basic": (PyramidNetConfig, {"depth": 14, "alpha": 11, "stem_size": 4, "block_type": "basic"}),
    "pyramidnet-bottleneck": (PyramidNetConfig, {"depth": 20, "alpha": 11, "stem_size": 4, "expansion": 2}),
}
SMALL_NAMES = tuple(SMALL_CONFIGS)


def small_config(name, **overrides):
    """Return the configuration of a small network with 5 classes."""
    config_class, fields = SMALL_CONFIGS[name]
    return config_class(**{"num_labels": 5, "image_size": 8, **fields, **overrides})


def small_network(name, seed=0, **overrides):
    """Return a small network in training mode, always with the same weights."""
    torch.manual_seed(seed)
    return AutoModelForImageClassification.from_config(small_config(name, **overrides)).train()


def images(batch=6, channels=3, size=8, seed=1, dtype=torch.float32):
    """Return random images and the classes 0, 1, 2, 3, 4, 0, …"""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch, channels, size, size, generator=generator, dtype=dtype)
    return pixel_values, torch.arange(batch) % 5
