"""What AMP cannot train, refused before training starts, and what it trains with a caveat, warned about."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import is_sagemaker_mp_enabled, logging

from hf_amp.training_args import AMPSettings

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.get_logger(__name__)

# What wrappers (DDP, torch.compile, FSDP, activation checkpointing) put in front of a parameter's name.
_WRAPPER_PREFIXES = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
LOSS_IGNORES_NUM_ITEMS = (
    "{} takes `num_items_in_batch` but its loss ignores it, so gradients and losses grow with the number of "
    "micro-batches and processes (https://github.com/huggingface/transformers/issues/47688). Set "
    "`model.accepts_loss_kwargs = False` before you make the trainer."
)
_OPTIMIZERS_IN_BACKWARD = re.compile(r"lomo|layerwise", re.IGNORECASE)


def refuse_unsupported(trainer: "Trainer", settings: AMPSettings) -> None:
    """Raise for set-ups in which the gradient at θ + Δ cannot be had, or not be held back from the optimizer.

    Raises:
        NotImplementedError: naming what was found and what to use instead.
    """
    accelerator, args = trainer.accelerator, trainer.args
    if trainer.is_deepspeed_enabled:
        _refuse("DeepSpeed", "its engine owns parameters and gradients; use DDP or FSDP2")
    if is_sagemaker_mp_enabled():
        _refuse("SageMaker model parallelism", "use DDP or FSDP2")
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        _refuse("Megatron-LM", "use DDP or FSDP2")
    if trainer.get_cp_size() > 1 or trainer.get_sp_size() > 1:
        _refuse("context or sequence parallelism", "set `cp_size` and `sp_size` of the parallelism config to 1")
    if trainer.is_fsdp_xla_enabled:
        _refuse("FSDP on XLA", "use DDP or FSDP2")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2:
        _refuse("FSDP version 1", 'it flattens parameters; use FSDP2: `fsdp_config={"fsdp_version": 2}`')
    distributed = getattr(getattr(trainer.model, "config", None), "distributed_config", None)
    if max(getattr(distributed, "pp_size", 1) or 1, getattr(distributed, "ep_size", 1) or 1) > 1:
        _refuse("pipeline or expert parallelism", "set `pp_size` and `ep_size` of the distributed config to 1")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    for name in (str(getattr(args.optim, "value", args.optim)), type(optimizer).__name__):
        if _OPTIMIZERS_IN_BACKWARD.search(name):
            _refuse(f"the optimizer {name!r}", "it steps inside backward, at θ + Δ; choose another `optim`")
    sharded = trainer.model is not None and any(isinstance(p, DTensor) for p in trainer.model.parameters())
    if settings.scope == "micro_batch" and (trainer.is_fsdp_enabled or sharded):
        _refuse(
            '`amp_scope="micro_batch"` with sharded parameters',
            'their gradients exist only after all processes have added theirs; use amp_scope="batch"',
        )


def _refuse(what: str, remedy: str) -> None:
    raise NotImplementedError(f"Adversarial model perturbation does not support {what}: {remedy}.")


def unconnected_processes(args: "TrainingArguments") -> str | None:
    """Say so if a launcher started several processes and each would train by itself; None if all is well.

    `accelerate launch` with `use_cpu: true` in its file does, on a machine without a GPU, unless the training arguments
    say `use_cpu=True`, too.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == 1 or args.world_size > 1:
        return None
    return (
        f"The launcher started WORLD_SIZE={launched} processes, but the training arguments see one: each process would "
        "train by itself and write the same files. On a CPU, pass `use_cpu=True` (`--use_cpu`)."
    )


def all_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a model, tied ones under each of their names: a walk over all modules, so once in a step."""
    return list(model.named_parameters(remove_duplicate=False))


def target_parameters(
    parameters: Iterable[tuple[str, nn.Parameter]], patterns: tuple[str, ...] | None
) -> Iterator[nn.Parameter]:
    """Yield the trainable ones of `all_parameters` that one of the patterns matches, each once; None: all of them.

    Names are matched as those of the unwrapped model.
    """
    seen = set()
    for name, param in parameters:
        if param.requires_grad and param not in seen and (patterns is None or _matches(name, patterns)):
            seen.add(param)
            yield param


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    name = _WRAPPER_PREFIXES.sub(r"\1", name).lstrip(".").replace("..", ".")
    return any(re.search(pattern, name) for pattern in patterns)


def check_target_parameters(model: nn.Module, patterns: tuple[str, ...] | None) -> None:
    """Raise if nothing would be perturbed; warn of patterns that match nothing.

    Raises:
        ValueError: if no trainable parameter matches, or if the model has no trainable parameter.
    """
    parameters = all_parameters(model)
    if next(target_parameters(parameters, patterns), None) is None:
        names = [name for name, param in model.named_parameters() if param.requires_grad]
        if patterns is None:
            raise ValueError(
                "the model must have a trainable parameter to perturb, but all have requires_grad=False; unfreeze "
                "some, or switch the perturbation off with amp_epsilon=0"
            )
        raise ValueError(
            f"`amp_target_parameters` must match a trainable parameter, got {list(patterns)}; the names are "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    for pattern in patterns or ():
        if next(target_parameters(parameters, (pattern,)), None) is None:
            logger.warning(f"`amp_target_parameters`: {pattern!r} matches no trainable parameter; check its spelling.")


def warn_of_half_precision(model: nn.Module, patterns: tuple[str, ...] | None) -> None:
    """Warn if parameters to perturb are stored in half precision, where θ + Δ rounds small entries of Δ away."""
    targets = target_parameters(all_parameters(model), patterns)
    halves = {param.dtype for param in targets if param.dtype in (torch.bfloat16, torch.float16)}
    for dtype in halves:
        logger.warning(
            f"Parameters are stored in {dtype}: where an entry of the perturbation is smaller than half a rounding "
            "step of its weight, θ + Δ is θ. Load the model in torch.float32 and train with `bf16=True` or "
            "`fp16=True`, so that only the passes run in half precision."
        )


@torch.no_grad()
def loss_ignores_num_items(model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | int) -> bool:
    """Whether the model takes `num_items_in_batch` and returns the same loss whatever it is.

    About 30 heads of transformers 5 do (https://github.com/huggingface/transformers/issues/47688). Costs two forward
    passes in evaluation mode; random state and the mode of the model are put back.
    """
    was_training = model.training
    model.eval()
    try:
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            outputs = [model(**inputs, num_items_in_batch=items) for items in (num_items, 2 * num_items)]
    finally:
        model.train(was_training)
    losses = [output["loss"] if isinstance(output, dict) else output[0] for output in outputs]
    return bool(torch.equal(losses[0], losses[1]))
