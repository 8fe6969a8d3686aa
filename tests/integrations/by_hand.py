"""Two passes on every batch, written out in a `training_step`. Imports nothing from `hf_amp`."""

import torch


def two_passes_by_hand(trainer_class, epsilon, share=1.0):
    """A subclass of `trainer_class` whose steps are AMP's with N = 1, ζ = 1 and one ball a tensor; one micro-batch.

    With `share` < 1 the first pass sees the first samples, collated by themselves.
    """

    class TwoPasses(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if share < 1.0:
                self.data_collator = BatchAndShare(self.data_collator, share)

        def training_step(self, model, inputs, num_items_in_batch=None):
            batch, first_samples = (inputs["batch"], inputs["share"]) if share < 1.0 else (inputs, inputs)
            everything = [param for group in self.optimizer.param_groups for param in group["params"]]
            num_items = num_items_in_batch if share == 1.0 else None
            super().training_step(model, dict(first_samples), num_items)
            params = [param for param in model.parameters() if param.grad is not None]
            theta = [param.detach().clone() for param in params]
            delta = [in_ball(param.grad, epsilon) for param in params]
            for param in everything:
                param.grad = None
            with torch.no_grad():
                for param, step in zip(params, delta, strict=True):
                    param.add_(step)
            loss = super().training_step(model, dict(batch), None if share < 1.0 else num_items_in_batch)
            with torch.no_grad():
                for param, value in zip(params, theta, strict=True):
                    param.copy_(value)
            return loss

    TwoPasses.__name__ = f"TwoPasses{trainer_class.__name__}"
    return TwoPasses


class BatchAndShare:
    """A collator that also gives the batch of the first samples."""

    def __init__(self, collate, share):
        self.collate, self.share = collate, share

    def __call__(self, rows):
        return {"batch": self.collate(copies(rows)), "share": self.collate(first(rows, self.share))}

    def __getattr__(self, name):
        return getattr(self.collate, name)


def in_ball(grad, epsilon):
    return grad * min(1.0, epsilon / max(grad.norm().item(), 1e-30))


def first(rows, share):
    return copies(rows)[: int(share * len(rows) + 0.5)]


def copies(rows):
    """Some collators take columns out of their rows."""
    return [dict(row) for row in rows]
