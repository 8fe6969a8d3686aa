"""The example commands, called in this process."""

import importlib.util
import json
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY_MODEL = json.dumps({"stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]})
TINY = (
    *("--use_cpu", "--precision", "float32", "--amp_epsilon", "0.5"),
    *("--dataset", "digits", "--model_args", TINY_MODEL, "--max_train_samples", "60"),
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "20"),
)


def load_example(name):
    """Import an example as the file that it is."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classify(folder, *flags, base=TINY):
    """Run `image_classification.py` and return its results."""
    return load_example("image_classification").main([*base, "--output_dir", str(folder), *flags])


def compare(folder, *flags, base=TINY):
    """Run `compare.py` and return its content."""
    return load_example("compare").main([*base, "--output_dir", str(folder), *flags])
