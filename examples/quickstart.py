"""Train a small convolutional net on scikit-learn's digits with `Trainer` and with `AMPTrainer`, side by side.

Clean, and with 20 % of the training labels replaced at random; a few seeds each. No network is needed. Prints test
error, negative log-likelihood and sharpness (mean ± standard error) and writes them, with a figure, to `--output_dir`.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.utils.data import StackDataset
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from hf_amp import AMPTrainer, AMPTrainingArguments

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAIN, CLASSES, NOISE = 600, 10, 0.2
METHODS = {"Trainer": Trainer, "AMPTrainer": AMPTrainer}
FIGURES = ("error_rate", "nll", "sharpness")


class SmallConvNet(nn.Module):
    """Two convolutions with batch norm and a linear layer, for 8×8 grey images: 21,482 parameters."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(256, CLASSES)

    def forward(self, pixel_values, labels):
        logits = self.classifier(self.features(pixel_values))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def digits(noise, seed):
    """Training and test images, (n, 1, 8, 8) in [-1, 1], with labels; a share of the training labels is replaced."""
    bundled = load_digits()
    images = torch.tensor(bundled.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(bundled.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the same for all seeds
    train, test = order[:TRAIN], order[TRAIN:]
    train_labels = labels[train].clone()
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(TRAIN, generator=generator)[: round(noise * TRAIN)]
    train_labels[wrong] = torch.randint(CLASSES, (len(wrong),), generator=generator)
    return (images[train], train_labels), (images[test], labels[test])


def train(method, epsilon, epochs, noise, seed, output_dir):
    """One training; returns the figures of the last weights."""
    (images, labels), (test_images, test_labels) = digits(noise, seed)
    amp = {"amp_epsilon": epsilon} if method == "AMPTrainer" else {}
    set_seed(seed)
    trainer = METHODS[method](
        model=SmallConvNet(),
        args=(AMPTrainingArguments if amp else TrainingArguments)(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            weight_decay=1e-4,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
            **amp,
        ),
        train_dataset=StackDataset(pixel_values=images, labels=labels),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(test_images, test_labels)["logits"]
    return {
        "error_rate": (logits.argmax(-1) != test_labels).double().mean().item(),
        "nll": F.cross_entropy(logits, test_labels).item(),
        "sharpness": sharpness(model, images, labels),
    }


def sharpness(model, images, labels, radius=0.5):
    """Rise of the training loss when all weights together move by `radius` along its gradient; the same for both."""
    params = dict(model.named_parameters())
    loss = model(images, labels)["loss"]
    grads = torch.autograd.grad(loss, list(params.values()))
    step = radius / torch.cat([grad.flatten() for grad in grads]).norm()
    moved = {name: param + step * grad for (name, param), grad in zip(params.items(), grads, strict=True)}
    with torch.no_grad():
        return (functional_call(model, moved, (images, labels))["loss"] - loss).item()


def mean_and_error(values):
    """Mean and standard error of the mean; the error of a single value is nan."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def table(results):
    lines = [f"{'labels':<13} {'method':<12} {'test error %':>14} {'test NLL':>16} {'sharpness':>16}"]
    for name, runs in results.items():
        labels, method = name.split(" / ")
        cells = []
        for figure, factor, digits_ in zip(FIGURES, (100, 1, 1), (2, 3, 3), strict=True):
            mean, error = mean_and_error([factor * run[figure] for run in runs])
            cells.append(f"{mean:.{digits_}f} ± {error:.{digits_}f}")
        lines.append(f"{labels:<13} {method:<12} {cells[0]:>14} {cells[1]:>16} {cells[2]:>16}")
    return "\n".join(lines)


def draw(results, path):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    titles = ("test error (%)", "test negative log-likelihood (nats)", "sharpness (nats)")
    for axis, name, title in zip(axes, FIGURES, titles, strict=True):
        for i, (label, runs) in enumerate(results.items()):
            mean, error = mean_and_error([run[name] * (100 if name == "error_rate" else 1) for run in runs])
            colour = "#0072B2" if "AMPTrainer" in label else "#D55E00"
            axis.bar(i, mean, yerr=error if len(runs) > 1 else None, color=colour, capsize=4)
        axis.set_xticks(range(len(results)), [label.replace(" / ", "\n") for label in results], fontsize=8)
        axis.set_title(title, fontsize=9)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def write_whole(path, write):
    """Write to a temporary file first, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="table and figure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training each")
    parser.add_argument("--epochs", type=int, default=30, help="of each training")
    parser.add_argument("--amp_epsilon", type=float, default=0.3, help="radius ε of each tensor's ball")
    options = parser.parse_args()
    try:
        AMPTrainingArguments(output_dir=str(options.output_dir), amp_epsilon=options.amp_epsilon, use_cpu=True)
    except ValueError as error:
        parser.error(str(error))
    if options.epochs < 1:
        parser.error(f"--epochs must be >= 1, got {options.epochs}; use the default of 30")
    if len(set(options.seeds)) < len(options.seeds) or not 0 <= min(options.seeds) <= max(options.seeds) < 2**32:
        parser.error(f"--seeds must be in [0, 2**32) and differ, got {options.seeds}; name each once")
    options.settings = {"amp_epsilon": options.amp_epsilon, "epochs": options.epochs, "seeds": options.seeds}
    options.results = options.output_dir / "quickstart.json"
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        there = json.loads(options.results.read_text()) if options.results.exists() else {"settings": options.settings}
    except (OSError, ValueError) as error:
        parser.error(f"--output_dir {options.output_dir} cannot be used ({error}); give another one")
    if not isinstance(there, dict) or there.get("settings") != options.settings:
        parser.error(f"{options.results} was made with other settings and is kept; give another --output_dir")
    return options


def main():
    options = parse()
    torch.set_num_threads(1)  # the net is too small to gain from more
    started = time.perf_counter()
    cases = [(noise, method) for noise in (0.0, NOISE) for method in METHODS]
    results = {}
    with tqdm(total=len(cases) * len(options.seeds), desc="trainings") as progress:
        for noise, method in cases:
            name = f"{f'{noise:.0%} replaced' if noise else 'clean'} / {method}"
            for seed in options.seeds:
                run = train(method, options.amp_epsilon, options.epochs, noise, seed, options.output_dir)
                results.setdefault(name, []).append({"seed": seed, **run})
                progress.update()
    print(table(results))
    record = {"settings": options.settings, "seconds": time.perf_counter() - started, "runs": results}
    write_whole(options.results, lambda path: path.write_text(json.dumps(record, indent=2)))
    draw(results, options.output_dir / "quickstart.png")
    print(f"{record['seconds']:.0f} s; figures and numbers are in {options.output_dir}")


if __name__ == "__main__":
    main()
