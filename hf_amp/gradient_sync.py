"""Whether a pass averages gradients over the processes, decided inside whatever the training loop decided."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def gradient_sync(accelerator: Accelerator, model: nn.Module, enabled: bool, outer: bool) -> Iterator[None]:
    """Set synchronisation of gradients for the forward and backward passes inside, and put it back afterwards.

    The flags are set, not taken from `no_sync`: that one cannot switch synchronisation on inside another one, and for
    FSDP2 it leaves it on (`Accelerator.no_sync`).

    Args:
        accelerator: whose `sync_gradients` follows.
        model: as wrapped for training (DDP, FSDP2, compiled), or plain.
        enabled: whether gradients are averaged inside.
        outer: what the training loop has set around it; DDP's flag can be read back, FSDP2's cannot.
    """
    model = getattr(model, "_orig_mod", model)
    state = accelerator.gradient_state
    before = state.sync_gradients, getattr(model, "require_backward_grad_sync", outer)
    _set(model, enabled)
    state._set_sync_gradients(enabled)
    try:
        yield
    finally:
        _set(model, before[1])
        state._set_sync_gradients(before[0])


def _set(model: nn.Module, enabled: bool) -> None:
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = enabled
    elif isinstance(model, FSDPModule):
        distributed = getattr(getattr(model, "config", None), "distributed_config", None)
        if not enabled and getattr(distributed, "dp_replicate_size", 1) > 1:
            model.set_requires_all_reduce(False)  # the reduce-scatter inside each replica goes on
        else:
            model.set_requires_gradient_sync(enabled)
