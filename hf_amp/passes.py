"""The contexts around one pass: gradients set aside, who averages them, statistics, inputs, and shards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def gradients_set_aside(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Start from empty gradients inside, and put the accumulated ones back at the end, whatever happens."""
    params = list(params)
    accumulated = [param.grad for param in params]
    clear_gradients(params)
    try:
        yield
    finally:
        for param, grad in zip(params, accumulated, strict=True):
            param.grad = grad


def clear_gradients(params: Iterable[nn.Parameter]) -> None:
    """Let go of the gradients of some parameters."""
    for param in params:
        param.grad = None


def enter_training_mode(model: nn.Module, optimizer: Any) -> None:
    """Do as the Trainer's own step does, but before any change of weights.

    A schedule-free optimizer changes them itself when it enters its training mode.
    """
    if not model.training:  # each pass sets it again; a walk over all modules shows in the time of a step
        model.train()
    if callable(enter := getattr(optimizer, "train", None)):
        enter()


def loss_scale(accelerator: Accelerator) -> Tensor | float:
    """Return the factor that the gradients carry under fp16, read on the device; 1 without a scaler."""
    scaler = accelerator.scaler
    return 1.0 if scaler is None else scaler.scale(torch.ones((), device=accelerator.device))


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
    _set_sync(model, enabled)
    state._set_sync_gradients(enabled)
    try:
        yield
    finally:
        _set_sync(model, before[1])
        state._set_sync_gradients(before[0])


def _set_sync(model: nn.Module, enabled: bool) -> None:
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = enabled
    elif isinstance(model, FSDPModule):
        distributed = getattr(getattr(model, "config", None), "distributed_config", None)
        if not enabled and getattr(distributed, "dp_replicate_size", 1) > 1:
            model.set_requires_all_reduce(False)  # the reduce-scatter inside each replica goes on
        else:
            model.set_requires_gradient_sync(enabled)


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules of `model` that FSDP2 shards, the outermost first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(modules: Iterable[Any], is_new_step: bool) -> None:
    """Give FSDP2 modules their sharded parameters back, whatever the last pass over them left.

    After a forward pass without a backward one (evaluation, generation, an error) the outermost module keeps its
    gathered parameters: they would be taken for the model's own, and used in place of θ + Δ.

    Args:
        modules: what `sharded_modules` returned.
        is_new_step: no gradient is accumulated inside the modules, so that a pass that failed can be forgotten, too;
            torch < 2.13 has no public way to do that.
    """
    for i, module in enumerate(modules):
        if i == 0 and is_new_step and hasattr(module, "reset_iter_state"):  # since torch 2.13
            with suppress(AttributeError):  # of a module that no pass went through yet
                module.reset_iter_state()
        module.reshard()


@contextmanager
def frozen_norm_stats(model: nn.Module) -> Iterator[None]:
    """Run passes in training mode that leave the running statistics of `model` untouched.

    The layers still normalise with the statistics of their batch. The buffers are saved and put back rather than
    switched off (`momentum = 0` would go on counting batches, `track_running_stats = False` would not stop the
    update), so this also holds under gradient checkpointing, which runs a forward pass twice, for subclasses with a
    forward of their own, and for compiled models, whose guards see no changed attribute.

    Args:
        model: any module; every buffer named `running_mean`, `running_var` or `num_batches_tracked` is kept.
    """
    buffers = running_statistics(model)
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers of `model` that hold running statistics of normalisation layers."""
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS]


@contextmanager
def moved_state(model: nn.Module) -> Iterator[list[str]]:
    """Give a list for the names of what moves inside beside trained parameters and statistics of normalisation layers.

    Looked at are frozen parameters, by a sum over their bytes, and copies of the buffers that checkpoints hold (others
    are caches). It reads on the host.
    """
    names: list[str] = []
    before = dict(_own_state(model))
    yield names
    names.extend(name for name, value in _own_state(model) if name in before and not torch.equal(value, before[name]))


def _own_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    statistics = set(map(id, running_statistics(model)))
    for name, value in model.state_dict(keep_vars=True).items():
        is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        has_bytes = is_plain and not (value.is_meta or value.is_quantized)
        if has_bytes and not value.requires_grad and id(value) not in statistics:
            content = value.detach().resolve_conj().resolve_neg().flatten().view(torch.uint8)  # nan is equal to nan
            yield name, content.sum() if isinstance(value, nn.Parameter) else content.clone()


def is_compiled(trainer: Any) -> bool:
    """Return whether `torch.compile` has a part in the passes of a Trainer, as far as one can see; walks its model."""
    if trainer.args.torch_compile or trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return True
    functions = (getattr(trainer.model, "loss_function", None), trainer.compute_loss_func)
    if any(hasattr(function, "_torchdynamo_orig_callable") for function in functions):
        return True
    modules = trainer.model.modules()
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)


@contextmanager
def attributes(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object inside, and put back what the object itself had before."""
    own = vars(target)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                own[name] = before[name]
            else:
                own.pop(name, None)


def prepared(trainer: Any, inputs: Any) -> Any:
    """Return a `_prepare_inputs` for one pass: these inputs are prepared already, any other data is not.

    It is set on the trainer itself, in front of every class, so that it does not matter which class overrides it.
    """
    prepare = trainer._prepare_inputs

    def prepare_others(data: Any) -> Any:
        return data if data is inputs else prepare(data)

    return prepare_others
