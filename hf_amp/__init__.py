"""Adversarial model perturbation (AMP) for the Hugging Face Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_amp.hub.arguments import AMPTrainingArguments, PublishingArguments
    from hf_amp.hub.mixin import PublishingMixin
    from hf_amp.trainer import AMPTrainer, AMPTrainerMixin
    from hf_amp.training_args import AMPArguments

__version__ = "0.2.0"

__all__ = [
    "AMPArguments",
    "AMPTrainer",
    "AMPTrainerMixin",
    "AMPTrainingArguments",
    "PublishingArguments",
    "PublishingMixin",
    "__version__",
]

# Imported when first asked for: commands that train nothing, such as `python -m hf_amp.push`, do not wait for torch.
_MODULES = {
    "AMPArguments": "hf_amp.training_args",
    "AMPTrainer": "hf_amp.trainer",
    "AMPTrainerMixin": "hf_amp.trainer",
    "AMPTrainingArguments": "hf_amp.hub.arguments",
    "PublishingArguments": "hf_amp.hub.arguments",
    "PublishingMixin": "hf_amp.hub.mixin",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
