"""`examples/minimal.py` with a constant radius that is searched for on held-out data (`pip install optuna`).

The radius that follows over-fitting needs no search. Where every point counts, a constant one may do better still:
try it, against 0, on held-out data whose labels are clean.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import StackDataset, random_split
from transformers import set_seed

from hf_amp import AMPTrainer, AMPTrainingArguments


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels, labels):
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def datasets():
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    whole = StackDataset(pixels=pixels, labels=torch.tensor(digits.target))
    return random_split(whole, [0.8, 0.2], torch.Generator().manual_seed(0))


def main():
    set_seed(0)
    args = AMPTrainingArguments(
        output_dir="outputs/search_radius",
        num_train_epochs=3,
        per_device_train_batch_size=64,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
    )
    train, held_out = datasets()
    trainer = AMPTrainer(model_init=lambda _: Classifier(), args=args, train_dataset=train, eval_dataset=held_out)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"amp_epsilon": trial.suggest_categorical("amp_epsilon", [0.0, 0.05, 0.1, 0.2])},
        compute_objective=lambda metrics: metrics["eval_loss"],
        backend="optuna",
        direction="minimize",
        n_trials=4,
    )
    print(f"best: amp_epsilon={best.hyperparameters['amp_epsilon']} with a held-out loss of {best.objective:.3f}")


if __name__ == "__main__":
    main()
