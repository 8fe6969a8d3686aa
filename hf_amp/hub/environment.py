"""The versions and the hardware that a result was made with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hf_amp import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "datasets",
    "evaluate",
    "peft",
)


def environment(processes: int = 1) -> dict[str, Any]:
    """Return the versions and the hardware that a result was made with.

    Args:
        processes: processes that trained together.
    """
    versions = {"python": platform.python_version(), "hf-amp": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    hardware = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "device_count": torch.cuda.device_count() if cuda else 0,
    }
    return {"versions": versions, "hardware": hardware}
