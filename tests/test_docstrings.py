"""The example in the docstring of each public class runs as it stands."""

import inspect
import re
from dataclasses import dataclass
from textwrap import dedent

import pytest
import torch
import transformers
from tiny import amp_trainer, tiny_model

import hf_amp
import hf_amp.models
import hf_amp.vision
from hf_amp.batches import Samples
from hf_amp.perturbation import Perturbation

MODULES = (hf_amp, hf_amp.models, hf_amp.vision)
PUBLIC = {name: getattr(module, name) for module in MODULES for name in module.__all__}
CLASSES = [each for each in PUBLIC.values() if inspect.isclass(each)] + [Perturbation, Samples]


def example(cls):
    """The indented lines before the list of arguments."""
    text = re.split(r"\n(?:Args|Attributes|Raises):\n", inspect.getdoc(cls))[0]
    return dedent("\n".join(line for line in text.split("\n") if not line.strip() or line.startswith("    ")))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # nobody says use_cpu
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_example_of_a_public_class_runs(cls, tmp_path, monkeypatch):
    code = example(cls)
    assert cls.__name__ in code
    monkeypatch.chdir(tmp_path)
    train = hf_amp.vision.load_image_dataset("digits", max_train_samples=20)["train"]
    images = hf_amp.vision.DecodedImages(train, cache_dir=tmp_path / "cache")
    model = tiny_model()
    names = {
        **{"torch": torch, "dataclass": dataclass, "transformers": transformers, **PUBLIC},
        **{"Seq2SeqTrainer": transformers.Seq2SeqTrainer, "Perturbation": Perturbation, "Samples": Samples},
        "Seq2SeqTrainingArguments": transformers.Seq2SeqTrainingArguments,
        **{"images": images, "model": model, "train_dataset": amp_trainer(tmp_path).train_dataset},
        "args": transformers.TrainingArguments(str(tmp_path), report_to="none"),
        "collator": hf_amp.vision.ImageCollator("digits"),
        "loss": lambda model: sum(parameter.square().sum() for parameter in model.parameters()),
    }
    exec(code, names)
