"""Trains tiny models as a JSON file of cases says; run it alone, under `accelerate launch` or under torchrun.

Usage: train_cases.py CASES.json OUTPUT_DIR. Each case has a `name` and may have

    settings     of the training arguments
    model        "tiny", "counts", "ignores", "bad", or "llama", a language model; config, dtype: of the model
    trainer      "amp" or "plain"
    samples      number of training samples
    held_out     number of samples to evaluate on
    apart        true: each process has a held-out loss of its own; the mean over two is the true one
    count_calls  true: count the collective calls that the steps make
    shards       of a `transformers.distributed.DistributedConfig`, e.g. {"fsdp_size": 2}
    accelerate_shards   true: Accelerate shards the model, as its configuration says
    between      what is done after each optimizer step: "evaluate", "forward" (with no backward), "generate", "save" or
                 "fail" (a forward pass that raises)
    ddp          of `accelerate.DistributedDataParallelKwargs`
    hook         "bf16", "mean" or "local_sgd": a communication hook that is registered when training begins
    refused      true: the training must be refused

Rank r writes OUTPUT_DIR/NAME.r.pt: parameters and buffers, logs, numbers of calls, copies of each shard, or the words
of the refusal; a case with `accelerate_shards` also saves its model to OUTPUT_DIR/NAME-model. Where models are sharded,
OUTPUT_DIR/means.r.pt says whether this build of torch takes means over processes on a CPU.
"""

import gc
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from accelerate.state import PartialState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, DistributedType
from tiny import ModelThatCounts, ModelThatIgnores, Points, TinyModel, Tokens, amp_trainer, tiny_llama, tiny_model
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.tensor import DTensor
from torch.profiler import profile
from transformers import Trainer, TrainerCallback

from hf_amp import AMPTrainer
from hf_amp.passes import reshard, sharded_modules

RANK = int(os.environ.get("RANK", "0"))


class BadInOneProcess(TinyModel):
    """The first pass has an infinite gradient in process 1 alone."""

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        if self.passes == 1 and RANK == 1:
            output.loss.register_hook(lambda grad: grad * float("inf"))
        return output


MODELS = {"tiny": TinyModel, "counts": ModelThatCounts, "bad": BadInOneProcess, "ignores": ModelThatIgnores}


class Between(TrainerCallback):
    """Passes over the model between two steps, which must leave the training as it is."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder

    def on_step_end(self, args, state, control, model=None, **kwargs):
        rows = [self.trainer.train_dataset[i] for i in range(4)]
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if self.kind == "evaluate":
            self.trainer.evaluate(torch.utils.data.Subset(self.trainer.train_dataset, range(8)))
        elif self.kind == "forward":
            model(**inputs)  # in training mode, and with a graph that nobody uses
        elif self.kind == "generate":
            model.eval()
            model.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False, pad_token_id=0)
        elif self.kind == "save":
            self.trainer.save_model(str(self.folder))
        else:
            self.fail(model, inputs)

    def fail(self, model, inputs):
        def stop(module, args):
            raise FloatingPointError("on the way")

        handle = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        handle = handle.register_forward_pre_hook(stop)
        try:
            model(**inputs)
        except FloatingPointError:
            pass
        finally:
            handle.remove()


def mean_hook(group, bucket):
    """What DDP does without a hook, as a user writes it."""
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size(group)), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def bf16_hook(state, bucket):
    """torch's own, which torch lets nobody register by its name on a CPU."""
    return default_hooks.bf16_compress_hook(state, bucket)


HOOKS = {
    "bf16": lambda: (None, bf16_hook),
    "mean": lambda: (dist.group.WORLD, mean_hook),
    "local_sgd": lambda: (PostLocalSGDState(None, None, start_localSGD_iter=4), post_localSGD_hook),
}


class WithHook(TrainerCallback):
    """Registers a communication hook as users do: once the model is wrapped."""

    def __init__(self, hook):
        self.hook = hook

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.model_wrapped.register_comm_hook(*HOOKS[self.hook]())


class Apart(AMPTrainer):
    def held_out_loss(self, metrics):
        return super().held_out_loss(metrics) + (-1.0) ** RANK


def with_ddp(trainer_class, settings):
    """The trainer class, with options of DistributedDataParallel that no training argument has."""
    if "comm_hook" in settings:  # Accelerate ignores the mere name
        settings = settings | {"comm_hook": DDPCommunicationHookType(settings["comm_hook"])}

    class WithHandler(trainer_class):
        def _build_accelerator_args(self, **kwargs):
            arguments = super()._build_accelerator_args(**kwargs)
            handlers = arguments.get("kwargs_handlers") or []
            others = [handler for handler in handlers if not isinstance(handler, DistributedDataParallelKwargs)]
            return {**arguments, "kwargs_handlers": [*others, DistributedDataParallelKwargs(**settings)]}

    return WithHandler


def counted(trainer_class, calls):
    """The trainer class, counting the collective calls that its steps make."""

    class Counted(trainer_class):
        def training_step(self, *args, **kwargs):
            with profile() as profiler:
                loss = super().training_step(*args, **kwargs)
            calls.update(e.name for e in profiler.events() if e.name.startswith(("gloo:", "c10d::", "_c10d")))
            return loss

    return Counted


def whole(tensor):
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def run(case, output):
    dtype = getattr(torch, case.get("dtype", "float64"))
    if case.get("model") == "llama":
        model, data = tiny_llama().to(dtype), Tokens(case.get("samples", 48))
    else:
        model = tiny_model(MODELS[case.get("model", "tiny")], dtype=dtype, **case.get("config", {}))
        data = Points(case.get("samples", 48), dtype=dtype)
    if case.get("accelerate_shards"):  # asks for the embeddings, to see whether they are tied
        model.get_input_embeddings = model.get_output_embeddings = lambda: None
    evaluation = {"eval_dataset": Points(case["held_out"], seed=1, dtype=dtype)} if "held_out" in case else {}
    folder = output / f"{case['name']}-model"
    if "shards" in case:
        model = sharded(model, folder, case["shards"], dtype)
    calls = Counter()
    trainer_class = {"amp": AMPTrainer, "plain": Trainer}[case.get("trainer", "amp")]
    if case.get("apart"):
        trainer_class = Apart
    if case.get("count_calls"):
        trainer_class = counted(trainer_class, calls)
    if "ddp" in case:
        trainer_class = with_ddp(trainer_class, case["ddp"])
    trainer = amp_trainer(output / case["name"], model, trainer_class, data=data, **evaluation, **case["settings"])
    callbacks = [Between(case["between"], output / f"{case['name']}-between")] if "between" in case else []
    callbacks += [WithHook(case["hook"])] if "hook" in case else []
    for callback in callbacks:
        callback.trainer = trainer
        trainer.add_callback(callback)
    trainer.train()
    if "shards" in case or case.get("accelerate_shards"):
        # A forward pass without a backward one leaves some gathered.
        reshard(sharded_modules(trainer.model), is_new_step=True)
        assert all(isinstance(param, DTensor) for param in trainer.model.parameters())
    if case.get("accelerate_shards"):
        trainer.save_model(str(folder))
    state = {name: whole(tensor) for name, tensor in trainer.model.state_dict().items()}
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {"state": state, "logs": logs, "calls": dict(calls), "replicas": replicas(trainer.model)}
    torch.save(result, output / f"{case['name']}.{RANK}.pt")


def replicas(model):
    """How many copies there are of the shards of a model; of one that is not sharded, 0."""
    param = next(model.parameters())
    if not isinstance(param, DTensor):
        return 0
    placed = zip(param.placements, param.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in placed if placement.is_replicate())


def refuse(case, output):
    try:
        run(case, output)
    except NotImplementedError as error:
        torch.save(str(error), output / f"{case['name']}.{RANK}.pt")


def takes_means():
    """FSDP2 asks for the mean; gloo of older versions of torch gives the sum, without a word."""
    mean = torch.zeros(1)
    dist.reduce_scatter_tensor(mean, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return mean.item() == 1


def sharded(model, folder, settings, dtype):
    from transformers.distributed import DistributedConfig

    if RANK == 0:
        model.save_pretrained(folder)
    dist.barrier()
    return type(model).from_pretrained(folder, distributed_config=DistributedConfig(**settings), dtype=dtype)


def let_accelerate_shard_on_cpu():
    """Accelerate shards on accelerators only, and silently replicates elsewhere; tell it that these processes are."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    gc.freeze()  # every training ends with a search for garbage, which need not go over all modules
    by_accelerate = any(case.get("accelerate_shards") for case in cases)
    if by_accelerate:
        let_accelerate_shard_on_cpu()
    if by_accelerate or any("shards" in case for case in cases):
        dist.init_process_group("gloo")
    if dist.is_initialized():
        torch.save(takes_means(), output / f"means.{RANK}.pt")
    for case in cases:
        if case.get("refused"):
            refuse(case, output)
        else:
            run(case, output)
    if dist.is_initialized():  # gloo's threads may abort a process that ends before its groups are destroyed
        dist.barrier()  # or while the others still use them
        gc.collect()  # trainers refer to themselves, and to groups
        dist.destroy_process_group()
