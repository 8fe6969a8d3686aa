"""`examples/minimal.py` with one thing changed: sharpness-aware minimisation (SAM), a special case of AMP.

For one ball around all parameters and an inner learning rate ζ so large that Δ always reaches its edge, N = 1 gives
Δ = ε g / ‖g‖, which is SAM's step (Foret et al., 2021) with ρ = ε.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import StackDataset, random_split

from hf_amp import AMPTrainer, AMPTrainingArguments


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
    args = AMPTrainingArguments(
        output_dir="outputs/sam",
        amp_epsilon=0.05,
        amp_norm="global",
        amp_inner_lr=1e6,
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
