"""What a step of adversarial model perturbation costs: time and memory beside a plain `Trainer`, in one run.

Side by side, in interleaved repeats: `Trainer`; `AMPTrainer` with N = 1 and N = 2; `AMPTrainer` with N = 1 and four
micro-batches a step; and a plain two-pass loop that does what the authors' published optimizer does (each tensor's
norm read on the host, Δ added and subtracted). Times are medians over steps, from `on_step_begin` to `on_step_end`.
Memory is the peak of what is allocated during a step, over that of `Trainer`, in copies of the trainable parameters.

    python examples/benchmarks/step_cost.py --models conv vit --json step_cost.json
    python examples/benchmarks/step_cost.py --models preactresnet18 wideresnet28_10 --device cuda --dtype bfloat16

With OMP_NUM_THREADS=1 in front, CPU seconds hold no waiting of one thread for another: the figure to trust on a busy
machine. On a GPU, `--sync_debug` makes any step of `AMPTrainer` fail in which the host waits for the device.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import StackDataset
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_amp import AMPTrainer, AMPTrainingArguments

CLASSES, IMAGE_SIZE, WARM_UP = 10, 32, 1


def build(name):
    """A network for 32×32 images: `conv`, `vit`, or a name of `hf_amp.models`."""
    torch.manual_seed(0)
    if name == "conv":
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "layer_type": "basic"}
        config = AutoConfig.for_model("resnet", num_labels=CLASSES, **sizes)
    elif name == "vit":
        sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
        config = AutoConfig.for_model("vit", image_size=IMAGE_SIZE, patch_size=4, num_labels=CLASSES, **sizes)
    else:
        from hf_amp.models import build_config

        config = build_config(name, num_labels=CLASSES, image_size=IMAGE_SIZE)
    model = AutoModelForImageClassification.from_config(config)
    model.accepts_loss_kwargs = False  # https://github.com/huggingface/transformers/issues/47688
    return model


def cpu():
    """Model and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def synchronised_clocks(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Clock(TrainerCallback):
    """Wall and CPU seconds of each step after the warm-up."""

    def __init__(self, device):
        self.device, self.steps = device, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = synchronised_clocks(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > WARM_UP:
            ended = synchronised_clocks(self.device)
            self.steps.append(tuple(end - start for start, end in zip(self.started, ended, strict=True)))


class Memory(TrainerCallback):
    """Peak bytes allocated in the last step, over what was allocated at its start."""

    def __init__(self, device):
        self.device, self.peak = device, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            self.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            self.stop()

    def start(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()

    def stop(self):
        if self.device == "cuda":
            self.peak = torch.cuda.max_memory_allocated() - self.before
            return
        self.profiler.stop()
        events = self.profiler.profiler.kineto_results.events()
        allocated = 0
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            allocated += event.nbytes()
            self.peak = max(self.peak, allocated)


class NeverWaits:
    """Mixin of a Trainer: a step after the warm-up raises where the host waits for the CUDA device."""

    def training_step(self, *args, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if self.state.global_step >= WARM_UP else "default")
        try:
            return super().training_step(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class NeverWaitingAMPTrainer(NeverWaits, AMPTrainer):
    pass


class TrainerRun:
    """A `Trainer` or `AMPTrainer` that takes a few steps at a time."""

    def __init__(self, model, options, output_dir, accumulation=1, **amp):
        self.device = options.device
        arguments = {
            "output_dir": output_dir,
            "per_device_train_batch_size": options.batch_size // accumulation,
            "gradient_accumulation_steps": accumulation,
            "max_steps": options.steps + WARM_UP,
            "optim": "sgd",
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "bf16": options.dtype == "bfloat16",
            "torch_compile": options.torch_compile,
            "use_cpu": options.device == "cpu",
            "dataloader_pin_memory": options.device == "cuda",
        }
        images = torch.randn(options.batch_size * 2, model.config.num_channels, IMAGE_SIZE, IMAGE_SIZE)
        data = StackDataset(pixel_values=images, labels=torch.arange(len(images)) % CLASSES)
        cls, args_cls = (AMPTrainer, AMPTrainingArguments) if amp else (Trainer, TrainingArguments)
        if amp and options.sync_debug:
            cls = NeverWaitingAMPTrainer
        self.trainer = cls(model=model, args=args_cls(**arguments, **amp), train_dataset=data)
        self.trainer.remove_callback(PrinterCallback)

    def steps(self):
        clock = Clock(self.device)
        self._train_with(clock)
        return clock.steps

    def peak(self):
        memory = Memory(self.device)
        self._train_with(memory)
        return memory.peak

    def _train_with(self, callback):
        self.trainer.add_callback(callback)
        self.trainer.train()
        self.trainer.remove_callback(callback)


class PlainLoop:
    """Two passes as in the authors' published optimizer: norms on the host, one tensor at a time, add and subtract."""

    def __init__(self, model, options):
        self.options, self.model = options, model.to(options.device).train()
        self.forward = torch.compile(model) if options.torch_compile else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        channels = model.config.num_channels
        self.images = torch.randn(options.batch_size, channels, IMAGE_SIZE, IMAGE_SIZE, device=options.device)
        self.labels = torch.arange(options.batch_size, device=options.device) % CLASSES

    def steps(self):
        clock, state = Clock(self.options.device), argparse.Namespace(global_step=0)
        for state.global_step in range(1, self.options.steps + WARM_UP + 1):
            clock.on_step_begin(None, state, None)
            self._pass()
            deltas = self._ascend(epsilon=0.5, inner_lr=1.0)
            self.optimizer.zero_grad()
            self._pass()
            with torch.no_grad():
                for param, delta in deltas:
                    param.sub_(delta)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            clock.on_step_end(None, state, None)
        return clock.steps

    @torch.no_grad()
    def _ascend(self, epsilon, inner_lr):
        deltas = []
        for param in self.model.parameters():
            delta = inner_lr * param.grad.clone()
            norm = delta.norm().item()
            if norm > epsilon:
                delta.mul_(epsilon / norm)
            param.add_(delta)
            deltas.append((param, delta))
        return deltas

    def _pass(self):
        bfloat16 = self.options.dtype == "bfloat16"
        with torch.autocast(self.options.device, torch.bfloat16, enabled=bfloat16):
            loss = self.forward(pixel_values=self.images, labels=self.labels).loss
        loss.backward()


def measure(name, options, output_dir):
    """Interleave the variants on one network; return their medians, ratios and memory."""
    size = sum(p.numel() * p.element_size() for p in build(name).parameters())
    runs = {
        "Trainer": TrainerRun(build(name), options, output_dir),
        "AMPTrainer N=1": TrainerRun(build(name), options, output_dir, amp_inner_iter=1),
        "AMPTrainer N=2": TrainerRun(build(name), options, output_dir, amp_inner_iter=2),
        "plain two-pass loop": PlainLoop(build(name), options),
    }
    steps = {label: [] for label in runs}
    for _ in tqdm(range(options.repeats), desc=name):
        for label, run in runs.items():
            steps[label] += run.steps()
    medians = {
        label: [statistics.median(clock) for clock in zip(*times, strict=True)] for label, times in steps.items()
    }
    wall, cpu = medians["Trainer"]
    rows = {
        label: {"seconds": m[0], "cpu_seconds": m[1], "ratio": m[0] / wall, "cpu_ratio": m[1] / cpu}
        for label, m in medians.items()
    }
    split = {"accumulation": 4} if options.batch_size % 4 == 0 else {"accumulation": 1}
    split_run = TrainerRun(build(name), options, output_dir, amp_inner_iter=1, **split)
    base, split_base = runs["Trainer"].peak(), TrainerRun(build(name), options, output_dir, **split).peak()
    for label in ("AMPTrainer N=1", "AMPTrainer N=2"):
        rows[label]["extra_memory_copies"] = (runs[label].peak() - base) / size
    rows["AMPTrainer N=1, 4 micro-batches"] = {"extra_memory_copies": (split_run.peak() - split_base) / size}
    return {"parameters": size // 4, "rows": rows}


def table(name, result):
    lines = [f"\n{name}: {result['parameters']:,} parameters", "| | s/step | CPU s/step | × | CPU × | extra copies |"]
    lines.append("|---|---|---|---|---|---|")
    for label, row in result["rows"].items():
        keys = (("seconds", ".4f"), ("cpu_seconds", ".4f"), ("ratio", ".3f"), ("cpu_ratio", ".3f"))
        cells = [format(row[key], form) if key in row else "" for key, form in keys]
        extra = f"{row['extra_memory_copies']:.2f}" if "extra_memory_copies" in row else ""
        lines.append(f"| {label} | {' | '.join(cells)} | {extra} |")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["conv", "vit"], help="conv, vit, or names of hf_amp.models")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each repeat")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--sync_debug", action="store_true", help="CUDA: fail where a step waits for the device")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if min(options.batch_size, options.steps, options.repeats) < 1:
        parser.error("--batch_size, --steps and --repeats must be >= 1; raise the one that is not")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none; use --device cpu")
    if options.sync_debug and options.device != "cuda":
        parser.error(f"--sync_debug needs --device cuda, got {options.device}; leave it out")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json must lie in an existing folder, got {options.json}; make {options.json.parent} first")
    return options


def main():
    options = parse()
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{cpu()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{device}; {versions}; batch {options.batch_size}, {options.dtype}")
    results = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as output_dir:
            results[name] = measure(name, options, output_dir)
        print(table(name, results[name]))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        record = {"device": device, "versions": versions, "settings": settings, "models": results}
        temporary = options.json.with_name(f".{options.json.name}.part")
        temporary.write_text(json.dumps(record, indent=2))
        os.replace(temporary, options.json)


if __name__ == "__main__":
    main()
