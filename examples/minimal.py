"""The smallest complete script: training with adversarial model perturbation instead of plain training.

Only the import and one word differ from a script for `Trainer`. scikit-learn's digits, a fifth of them with a wrong
label; no network is needed. The radius `amp_epsilon` in the logs follows how far the training over-fits.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import StackDataset, random_split
from transformers import TrainingArguments

from hf_amp import AMPTrainer  # was: from transformers import Trainer


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, pixels, labels):
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def datasets():
    digits = load_digits()
    labels = torch.tensor(digits.target)
    labels[::5] = (labels[::5] + 1) % 10
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    whole = StackDataset(pixels=pixels, labels=labels)
    return random_split(whole, [0.4, 0.6], torch.Generator().manual_seed(0))


def main():
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir="outputs/minimal",
        num_train_epochs=20,
        per_device_train_batch_size=64,
        learning_rate=1e-2,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
    )
    train, held_out = datasets()
    AMPTrainer(model=Classifier(), args=args, train_dataset=train, eval_dataset=held_out).train()


if __name__ == "__main__":
    main()
