"""What the authors' published AMP optimizer does in a step, in plain code, for `step_cost.py` to compare with."""

import torch
from transformers import Trainer


@torch.no_grad()
def authors_ascent(model, epsilon=0.5, inner_lr=1.0):
    """Move the parameters as the authors' published optimizer does: norms on the host, one tensor at a time."""
    deltas = []
    for param in model.parameters():
        delta = inner_lr * param.grad.clone()
        norm = delta.norm().item()
        if norm > epsilon:
            delta.mul_(epsilon / norm)
        param.add_(delta)
        deltas.append((param, delta))
    return deltas


@torch.no_grad()
def authors_return(deltas):
    """Subtract what `authors_ascent` added."""
    for param, delta in deltas:
        param.sub_(delta)


class PlainTwoPassTrainer(Trainer):
    """What the authors' optimizer does, in the training step of a Trainer: it pays for the same loop as AMPTrainer."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        super().training_step(model, dict(inputs), num_items_in_batch)
        deltas = authors_ascent(model)
        model.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        authors_return(deltas)
        return loss
