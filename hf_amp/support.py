"""What AMP cannot train, refused before training starts, and what it trains with a caveat, warned about once."""

import os
import re
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from transformers.utils import is_sagemaker_mp_enabled, logging

from hf_amp.parameters import all_parameters, check_target_parameters, twin_parameters, warn_of_half_precision
from hf_amp.third_party import refuse_share, refuse_trainer
from hf_amp.training_args import AMPSettings

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.get_logger(__name__)

LOSS_IGNORES_NUM_ITEMS = (
    "{} takes `num_items_in_batch` but its loss ignores it, so gradients and losses grow with the number of "
    "micro-batches and processes (https://github.com/huggingface/transformers/issues/47688). Set "
    "`model.accepts_loss_kwargs = False` before you make the trainer."
)
OWN_LOSS_IGNORES_NUM_ITEMS = (
    "{}.compute_loss ignores `num_items_in_batch`, and Trainer leaves it to the loss to count micro-batches: unless it "
    "does so in another way, gradients and losses grow with their number, and the radius cannot follow the held-out "
    "loss. If it returns a mean, set `model.accepts_loss_kwargs = False` before you make the trainer."
)
NEVER_STEPS = (
    "{}.training_step does not call super().training_step(), so no step is perturbed: the training is that of a plain "
    "Trainer. Call it, or put the change into `compute_loss`."
)
BY_ITSELF = (
    "{} hands over other inputs to training_step than get_batch_samples returned, so each micro-batch is perturbed by "
    "itself, as with amp_scope='micro_batch', and not together with the rest of its batch. Change inputs in "
    "`_prepare_inputs`, in the data set or in the collator instead."
)
INPUTS_CHANGE = (
    "A pass changes its inputs in place ({}). Each pass of a step gets a copy of its tensors from now on, so that all "
    "see the same data; change a copy of the tensor in the model instead, and that memory is saved."
)
INPUTS_CHANGED = " The later passes of this one step have seen the changed tensors."
NOTHING_TO_CUT = (
    "`amp_ascent_fraction`={} has no effect on this batch, of which no part can be taken: the ascent sees all of it. "
    "Override `samples_of` to say how it is cut, or set amp_ascent_fraction=1."
)
FAILED_PASSES_STAY = (
    "FSDP2 of torch {} cannot forget a forward pass that failed: if such an error is caught and training goes on, some "
    "parameters stay gathered and are not perturbed in the next step. Use torch >= 2.13, or let the error end the run."
)
HOOK_WITH_STATE = (
    "The communication hook {!r} has a state ({}). It is called in each pass of a step, those of the ascent included: "
    "if the state moves there, let it move only while `trainer.amp_pass` is not 'ascent', or use a hook without one."
)
_OPTIMIZERS_IN_BACKWARD = re.compile(r"lomo|layerwise", re.IGNORECASE)
# Their hooks on gradients communicate, and step nothing.
_HOOKS_THAT_ONLY_AVERAGE = ("transformers.trainer", "torch.nn.parallel.distributed")
_GRADIENTS_ELSEWHERE = ("grad_sample", "main_grad")  # of Opacus; of Apex, Megatron and Transformer Engine
# Of torch.distributed.algorithms.ddp_comm_hooks.
_HOOKS_THAT_STEP = ("ddp_zero_hook", "optimizer_overlap_hooks")
_STATES_THAT_MOVE = {
    "PowerSGDState": "carries what it rounded in one pass over to the next, at another point",
    "PostLocalSGDState": "counts passes, not steps, and then averages gradients within a part of the processes only",
}


NO_TRAINER = (
    "{0} is no transformers.Trainer, whose training_step AMPTrainerMixin perturbs; put the mixin before a class that "
    "is one, e.g. class {0}(AMPTrainerMixin, Trainer). If it makes a Trainer inside, give it such a class instead."
)


def check_bases(cls: type, mixin: type) -> None:
    """Raise if a class has the AMP mixin twice, or behind its Trainer, where it would do nothing.

    Raises:
        TypeError: saying so.
    """
    from transformers import Trainer

    mixins = [base for base in cls.__mro__ if base.__name__ == mixin.__name__]
    twice = mixin in cls.__bases__ and any(issubclass(base, mixin) for base in cls.__bases__ if base is not mixin)
    if len(mixins) > 1 or twice:
        raise TypeError(f"{cls.__name__} has a second AMP mixin in its bases; remove one, a step perturbs once")
    if Trainer in cls.__mro__ and cls.__mro__.index(Trainer) < cls.__mro__.index(mixin):
        raise TypeError(
            f"{cls.__name__} must name {mixin.__name__} before its Trainer, or nothing is perturbed; write "
            f"class {cls.__name__}({mixin.__name__}, …Trainer)"
        )


def check_construction(trainer: Any) -> None:
    """Refuse, when a trainer is made, what cannot be trained; a model that is all frozen may still be evaluated."""
    settings = trainer.amp_settings
    refuse_setup(trainer)
    if trainer.model is not None:
        refuse_model(trainer, settings)
        if any(param.requires_grad for param in trainer.model.parameters()):
            check_target_parameters(trainer.model, settings.target_parameters)


def check_training(trainer: Any) -> None:
    """Refuse, when training begins, what cannot be trained."""
    refuse_setup(trainer)
    if trainer.model is not None:
        refuse_model(trainer, trainer.amp_settings)
        check_target_parameters(trainer.model, trainer.amp_settings.target_parameters, is_quiet=True)


def check_first_step(trainer: Any) -> None:
    """Refuse what came with the optimizer or a trial's own settings; say what is trained with a caveat."""
    check_training(trainer)
    check_communication(trainer.model_wrapped)
    if trainer.model is not None:
        warn_of_half_precision(trainer.model, trainer.amp_settings.target_parameters)


def refuse_setup(trainer: "Trainer") -> None:
    """Raise for kinds of parallelism in which the gradient at θ + Δ cannot be had; known before the model is.

    Raises:
        NotImplementedError: naming what was found and what to use instead.
    """
    refuse_trainer(trainer)
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        _refuse("DeepSpeed", "its engine owns parameters and gradients; use DDP or FSDP2")
    if is_sagemaker_mp_enabled():
        _refuse("SageMaker model parallelism", "use DDP or FSDP2")
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        _refuse("Megatron-LM", "use DDP or FSDP2")
    if trainer.get_cp_size() > 1 or trainer.get_sp_size() > 1:
        _refuse("context or sequence parallelism", "set `cp_size` and `sp_size` of the parallelism config to 1")
    if getattr(trainer, "is_fsdp_xla_enabled", False):
        _refuse("FSDP on XLA", "use DDP or FSDP2")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2:
        _refuse("FSDP version 1", 'it flattens parameters; use FSDP2: `fsdp_config={"fsdp_version": 2}`')
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if _OPTIMIZERS_IN_BACKWARD.search(name):
        _refuse(f"the optimizer {name!r}", "it steps inside backward, at θ + Δ; choose another `optim`")


def refuse_model(trainer: "Trainer", settings: AMPSettings) -> None:
    """Raise for models and optimizers that AMP cannot train, or would train wrongly; asked when training begins.

    Raises:
        NotImplementedError: naming what was found and what to use instead.
    """
    model: Any = trainer.model
    distributed = getattr(getattr(model, "config", None), "distributed_config", None)
    if max(getattr(distributed, "pp_size", 1) or 1, getattr(distributed, "ep_size", 1) or 1) > 1:
        _refuse("pipeline or expert parallelism", "set `pp_size` and `ep_size` of the distributed config to 1")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if _OPTIMIZERS_IN_BACKWARD.search(type(optimizer).__name__):
        _refuse(
            f"the optimizer {type(optimizer).__name__!r}",
            "it steps inside backward, at θ + Δ; choose another `optim`",
        )
    if settings.ascent_fraction < 1.0:
        refuse_share(trainer)
    if settings.scope == "micro_batch":
        if trainer.is_fsdp_enabled or any(isinstance(param, DTensor) for param in model.parameters()):
            _refuse(
                '`amp_scope="micro_batch"` with sharded parameters',
                'their gradients exist only after all processes have added theirs; use amp_scope="batch"',
            )
        handler = getattr(trainer.accelerator, "ddp_handler", None)
        if getattr(trainer.args, "ddp_static_graph", False) or getattr(handler, "static_graph", False):
            _refuse(
                '`amp_scope="micro_batch"` with `ddp_static_graph`',
                "a pass without an exchange of gradients makes another graph; leave ddp_static_graph out",
            )
    for name, param in model.named_parameters():
        _refuse_stepping_hooks(name, param)
        for attribute in _GRADIENTS_ELSEWHERE:
            if param.requires_grad and hasattr(param, attribute):
                where = f"gradients that a library keeps in `{attribute}` of {name!r}"
                _refuse(where, "they would sum those of all passes of a step; train without that library")
    twin_parameters(all_parameters(model))


def _refuse_stepping_hooks(name: str, param: nn.Parameter) -> None:
    for hook in (getattr(param, "_post_accumulate_grad_hooks", None) or {}).values():
        if getattr(hook, "__module__", "") not in _HOOKS_THAT_ONLY_AVERAGE:
            _refuse(
                f"a hook on the gradient of {name!r} ({getattr(hook, '__qualname__', hook)!r})",
                "what it does to the parameter after backward, such as an optimizer's step, would happen at θ + Δ and "
                "in every pass; step in the optimizer instead",
            )


def check_communication(model: Any) -> None:
    """Refuse communication hooks of DDP that are wrong in several passes a step; warn of a state that is not known.

    Hooks without a state, such as those that send fp16 or bf16, are right: they see one backward pass at a time.

    Raises:
        NotImplementedError: naming the hook and what to use instead.
    """
    for hook, state in getattr(getattr(model, "_orig_mod", model), "_comm_hooks", ()):
        name, kind = getattr(hook, "__qualname__", type(hook).__name__), type(state).__name__
        if getattr(hook, "__module__", "").rpartition(".")[2] in _HOOKS_THAT_STEP:
            _refuse(f"the communication hook {name!r}", "it steps inside backward, at θ + Δ; step in the optimizer")
        if kind in _STATES_THAT_MOVE:
            _refuse(
                f"the communication hook {name!r} with {kind}", f"it {_STATES_THAT_MOVE[kind]}; use fp16, bf16 or none"
            )
        if state is not None and not isinstance(state, ProcessGroup):
            logger.warning(HOOK_WITH_STATE.format(name, kind))


def _refuse(what: str, remedy: str) -> None:
    raise NotImplementedError(f"Adversarial model perturbation does not support {what}: {remedy}.")


def refuse_other_inputs(trainer: Any) -> None:
    """Raise where a micro-batch cannot be perturbed by itself: its gradient exists only with those of its batch."""
    if trainer.is_fsdp_enabled or any(isinstance(param, DTensor) for param in trainer.model.parameters()):
        _refuse(
            f"other inputs in {type(trainer).__name__}.training_step than get_batch_samples returned, accumulated with "
            "sharded parameters",
            "change inputs in `_prepare_inputs`, in the data set or in the collator",
        )


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


def warn_about_processes(args: "TrainingArguments") -> None:
    """Warn of processes that a launcher started apart."""
    if problem := unconnected_processes(args):
        logger.warning(problem)
