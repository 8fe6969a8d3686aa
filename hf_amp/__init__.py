"""Adversarial model perturbation (AMP) for the Hugging Face Trainer."""

from hf_amp.trainer import AMPTrainer, AMPTrainerMixin
from hf_amp.training_args import AMPArguments, AMPTrainingArguments

__version__ = "0.1.0"

__all__ = ["AMPArguments", "AMPTrainer", "AMPTrainerMixin", "AMPTrainingArguments", "__version__"]
