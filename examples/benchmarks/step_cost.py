"""What a step of adversarial model perturbation costs: time and memory beside a plain `Trainer`, in one run.

Side by side, in interleaved repeats: `Trainer`; `AMPTrainer` with N = 1 and N = 2, and with the ascent on an eighth and
a sixteenth of the batch; two passes that do what the authors' published optimizer does (each tensor's norm read on the
host, Δ added and subtracted), once in the `training_step` of a `Trainer` and once in a bare loop; and with the batch
accumulated over four micro-batches, `Trainer`, `AMPTrainer` with N = 1 and the ascent on a sixteenth. Times are medians
over the steps of a repeat, from `on_step_begin` to `on_step_end`, and each is divided by that of `Trainer` with as many
micro-batches in the same repeat; given are the median over the repeats and, in brackets, the quartiles. "Fastest" is
the shortest of all measured steps over that of `Trainer`, since what disturbs a machine can only make a step longer.
Memory is the peak of what is allocated during a step, over that of `Trainer`, in copies of the trainable parameters.
"Own work" is what a training step of `AMPTrainer`, or of the plain two passes, takes beside its passes, in trainings of
their own, interleaved too, over a step of `Trainer`.

    python examples/benchmarks/step_cost.py --models conv vit
    python examples/benchmarks/step_cost.py --models preactresnet18 wideresnet28_10 --device cuda --dtype bfloat16
    python examples/benchmarks/step_cost.py --models vit --variants "AMPTrainer N=1" "plain two-pass loop" --minutes 2

Writes step_cost.json and step_cost.png to output_dir after each network. Networks may be measured one by one: those of
former calls on the same device stay, and one that is measured again is replaced. When --minutes are over, what was
measured of the present network is kept (times come first, then memory, then own work) and those after it are left out.

With OMP_NUM_THREADS=1 in front, CPU seconds hold no waiting of one thread for another: the figure to trust on a busy
machine. On Linux, MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000 in front keeps freed memory in
the process, as the allocator of a GPU does: else each step pays for getting it from the system again. On a GPU,
`--sync_debug` makes any step of `AMPTrainer` fail in which the host waits for the device.
"""

import argparse
import itertools
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from authors_amp import PlainTwoPassTrainer, authors_ascent, authors_return
from step_figure import save_figure
from step_meters import WARM_UP, Clock, Memory, OwnWorkTrainer, PlainOwnWorkTrainer
from torch import nn
from torch.utils.data import StackDataset
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from hf_amp import AMPTrainer, AMPTrainingArguments
from hf_amp.vision.report.results import read_json, write_json

CLASSES, IMAGE_SIZE, MICRO_BATCHES = 10, 32, 4
JSON_NAME, FIGURE_NAME = "step_cost.json", "step_cost.png"
ALLOCATION = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")  # of glibc, see above


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


def watch_waits(mode):
    """Say what happens where the host waits for the CUDA device: "error" or "default"."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")  # once in a process
        torch.cuda.set_sync_debug_mode(mode)


class NeverWaits:
    """Mixin of a Trainer: a step after the warm-up raises where the host waits for the CUDA device."""

    def training_step(self, *args, **kwargs):
        watch_waits("error" if self.state.global_step >= WARM_UP else "default")
        try:
            return super().training_step(*args, **kwargs)
        finally:
            watch_waits("default")


class NeverWaitingAMPTrainer(NeverWaits, AMPTrainer):
    pass


class TrainerRun:
    """A `Trainer` or `AMPTrainer` that takes a few steps at a time."""

    def __init__(self, model, options, output_dir, accumulation=1, cls=None, **amp):
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
        default, args_cls = (AMPTrainer, AMPTrainingArguments) if amp else (Trainer, TrainingArguments)
        if amp:
            amp = {"amp_epsilon": 0.5, **amp}  # every step is perturbed
        if amp and options.sync_debug:
            default = NeverWaitingAMPTrainer
        cls = cls or default
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
    """The same two passes without a Trainer: no scheduler, no callbacks, no setting of modes."""

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
            deltas = authors_ascent(self.model)
            self.optimizer.zero_grad()
            self._pass()
            authors_return(deltas)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            clock.on_step_end(None, state, None)
        return clock.steps

    def _pass(self):
        bfloat16 = self.options.dtype == "bfloat16"
        with torch.autocast(self.options.device, torch.bfloat16, enabled=bfloat16):
            loss = self.forward(pixel_values=self.images, labels=self.labels).loss
        loss.backward()


SPLIT = f", {MICRO_BATCHES} micro-batches"
# What is measured, by its label, with settings of the Trainer; what is accumulated ends on SPLIT.
VARIANTS = {
    "Trainer": {},
    "AMPTrainer N=1": {"amp_inner_iter": 1},
    "AMPTrainer N=2": {"amp_inner_iter": 2},
    "AMPTrainer, ascent on 1/8": {"amp_ascent_fraction": 1 / 8},
    "AMPTrainer, ascent on 1/16": {"amp_ascent_fraction": 1 / 16},
    "plain two-pass Trainer": {"cls": PlainTwoPassTrainer},
    "plain two-pass loop": None,
    f"Trainer{SPLIT}": {"accumulation": MICRO_BATCHES},
    f"AMPTrainer N=1{SPLIT}": {"accumulation": MICRO_BATCHES, "amp_inner_iter": 1},
    f"AMPTrainer, ascent on 1/16{SPLIT}": {"accumulation": MICRO_BATCHES, "amp_ascent_fraction": 1 / 16},
}
MEMORY = ("AMPTrainer N=1", "AMPTrainer N=2", f"AMPTrainer N=1{SPLIT}")
OWN_WORK = {
    "AMPTrainer N=1": OwnWorkTrainer,
    "AMPTrainer N=2": OwnWorkTrainer,
    "plain two-pass Trainer": PlainOwnWorkTrainer,
}


def base_of(label):
    """The `Trainer` that a variant is held against."""
    return f"Trainer{SPLIT}" if label.endswith(SPLIT) else "Trainer"


def make_run(name, label, options, output_dir):
    settings = VARIANTS[label]
    if settings is None:
        return PlainLoop(build(name), options)
    return TrainerRun(build(name), options, output_dir, **settings)


def in_time(labels, options):
    """Each label, until the time is over."""
    return itertools.takewhile(lambda _: time.monotonic() < options.end, labels)


def measure(name, options, output_dir):
    """Interleave the variants on one network; return their medians, ratios and memory, as far as there was time."""
    size = sum(p.numel() * p.element_size() for p in build(name).parameters())
    runs = {label: make_run(name, label, options, output_dir) for label in options.variants}
    repeats, fastest = {label: [] for label in runs}, dict.fromkeys(runs, math.inf)
    for label in in_time(tqdm([*runs] * options.repeats, desc=name), options):
        wall, cpu = zip(*runs[label].steps(), strict=True)
        repeats[label].append((statistics.median(wall), statistics.median(cpu)))
        fastest[label] = min(fastest[label], *wall)
    rows = {label: times(own, repeats[base_of(label)]) for label, own in repeats.items() if own}
    for label, row in rows.items():
        row["fastest_ratio"] = fastest[label] / fastest[base_of(label)]
    for label in in_time((label for label in MEMORY if label in rows), options):
        rows[label]["extra_memory_copies"] = (runs[label].peak() - runs[base_of(label)].peak()) / size
    for label, seconds in own_work(name, options, output_dir).items():
        rows[label]["own_work"] = seconds / rows["Trainer"]["seconds"]
    return {"parameters": size // 4, "rows": rows, "repeats": len(repeats["Trainer"])}


def own_work(name, options, output_dir):
    """Median seconds of a step beside its passes, of those variants for which there was time."""
    runs = {
        label: TrainerRun(build(name), options, output_dir, **{**VARIANTS[label], "cls": cls})
        for label, cls in in_time(OWN_WORK.items(), options)
        if label in options.variants
    }
    for label in in_time([*runs] * options.repeats, options):
        runs[label].trainer.train()
    taken = {label: run.trainer.own_work for label, run in runs.items()}
    return {label: statistics.median(seconds) for label, seconds in taken.items() if seconds}


def times(repeats, of_trainer):
    """Medians of (wall, CPU) seconds, and the quartiles of their ratios to `Trainer` in the same repeat."""
    row = {}
    for i, kind in enumerate(("", "cpu_")):
        ratios = [own[i] / base[i] for own, base in zip(repeats, of_trainer, strict=False)]  # the last may lack one
        row[f"{kind}seconds"] = statistics.median(own[i] for own in repeats)
        row[f"{kind}ratio"] = statistics.median(ratios)
        row[f"{kind}ratio_quartiles"] = quartiles(ratios)
    return row


def quartiles(values):
    """Lower and upper quartile; of one value, itself."""
    if len(values) == 1:
        return [values[0], values[0]]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def table(name, result):
    settings = f"batch {result['batch_size']}, {result['repeats']} repeats of {result['steps']} steps"
    lines = [
        f"\n{name}: {result['parameters']:,} parameters, {settings}",
        "| | s/step | CPU s/step | × | CPU × | fastest × | own work | extra copies |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for label, row in result["rows"].items():
        cells = [label]
        cells += [format(row[key], ".4f") for key in ("seconds", "cpu_seconds")]
        for key in ("ratio", "cpu_ratio"):
            low, high = row[f"{key}_quartiles"]
            cells.append(f"{row[key]:.3f} ({low:.3f}–{high:.3f})")
        cells.append(f"{row['fastest_ratio']:.3f}")
        cells.append(f"{row['own_work']:.3f}" if "own_work" in row else "")
        cells.append(f"{row['extra_memory_copies']:.2f}" if "extra_memory_copies" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def base_parser(description, output_dir):
    """Return a parser of the flags that choose what is measured, how often and where, shared with plain_passes.py."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["conv", "vit"], help="conv, vit, or names of hf_amp.models")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each repeat")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir), help="where everything goes")
    return parser


def parse():
    parser = base_parser(__doc__, "outputs/step_cost")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="beside Trainer; all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, with what is measured")
    parser.add_argument("--sync_debug", action="store_true", help="CUDA: fail where a step waits for the device")
    options = parser.parse_args()
    if options.batch_size < MICRO_BATCHES or options.batch_size % MICRO_BATCHES:
        parser.error(
            f"--batch_size must be a multiple of {MICRO_BATCHES}, which it is also split into, "
            f"got {options.batch_size}; use e.g. 32"
        )
    if options.sync_debug and options.device != "cuda":
        parser.error(f"--sync_debug needs --device cuda, got {options.device}; leave it out")
    if not options.minutes > 0:
        parser.error(f"--minutes must be > 0, got {options.minutes}; raise it, or leave it out for no limit")
    options.end = time.monotonic() + 60 * options.minutes
    chosen = {*options.variants, *map(base_of, options.variants), "Trainer"}
    options.variants = [label for label in VARIANTS if label in chosen]
    add_record(options, parser, JSON_NAME)
    return options


def add_record(options, parser, name):
    """Give options the conditions of this call and the record in output_dir; refuse what does not fit."""
    for flag in ("batch_size", "steps", "repeats"):
        if getattr(options, flag) < 1:
            parser.error(f"--{flag} must be >= 1, got {getattr(options, flag)}; raise it")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none; use --device cpu")
    options.conditions = conditions(options)
    options.record = read_json(options.output_dir / name) or {**options.conditions, "models": {}}
    for condition, value in options.conditions.items():
        if options.record[condition] != value:
            parser.error(
                f"--output_dir {options.output_dir} holds figures with another {condition}, "
                f"{options.record[condition]}, not {value}; use another --output_dir"
            )


def conditions(options):
    """What must be the same for figures that stand side by side."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{cpu()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    own = {name: os.environ[name] for name in ALLOCATION if name in os.environ}
    return {
        "device": device,
        "versions": versions,
        "dtype": options.dtype,
        "torch_compile": options.torch_compile,
        "allocation": " ".join(f"{name}={value}" for name, value in own.items()) or "usual",
    }


def main():
    options = parse()
    print("; ".join(f"{name} {value}" for name, value in options.conditions.items()))
    for name in options.models:
        with tempfile.TemporaryDirectory() as output_dir:
            result = measure(name, options, output_dir)
        if not result["rows"]:
            print(f"\n{name}: no time left")
            continue
        result |= {key: getattr(options, key) for key in ("batch_size", "steps")}
        print(table(name, result))
        options.record["models"][name] = result
        write_json(options.output_dir / JSON_NAME, options.record)
        save_figure(options.output_dir / FIGURE_NAME, options.record)
    print(f"Figures are in {options.output_dir}")


if __name__ == "__main__":
    main()
