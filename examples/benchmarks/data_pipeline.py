"""How fast images can be prepared, against how fast a network can train on them.

Three things are timed in turn, in each of several rounds of one run:
  pil   images read and decoded from Arrow, PIL's transforms one by one, in the data loader
  fast  whole batches of decoded pixels, augmented and normalised as tensors (on the GPU if there is one)
  step  forward, backward and optimizer step on a batch that is in memory already

    python examples/benchmarks/data_pipeline.py --dataset cifar10 --dataset_path <folder>

Without `--dataset` random smooth images of CIFAR-10's size are made, so no network is needed. On a CPU the share of
a step is also given in CPU seconds, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification

from hf_amp.models import build_config
from hf_amp.vision import AUGMENTATIONS, DecodedImages, ImageCollator, load_image_dataset, normalisation


def made_split(count: int) -> datasets.Dataset:
    """Smooth random images, which PNG stores about as well as photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 6, 6, 3), np.uint8)
    images = [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in coarse]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    columns = {"image": images, "label": (np.arange(count) % 10).tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def batches(
    images: DecodedImages, collator: ImageCollator, args: argparse.Namespace, workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches on the device, epoch after epoch without end."""
    loader = DataLoader(
        images,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=args.device != "cpu" and images.device.type == "cpu",
    )
    epoch = 0
    while True:
        images.set_epoch(epoch)
        for batch in loader:
            yield {name: tensor.to(args.device, non_blocking=True) for name, tensor in batch.items()}
        epoch += 1


def training_step(args: argparse.Namespace, batch: dict[str, torch.Tensor], classes: int) -> Callable[[], None]:
    """One step of the network on always the same batch."""
    config = build_config(args.model, **{"num_labels": classes, **json.loads(args.model_args)})
    model = AutoModelForImageClassification.from_config(config).to(args.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_per_call(call: Callable[[], object], count: int, device: str) -> tuple[float, float]:
    """Mean time of `count` calls, the device's work included: by the clock, and of this process on CPUs."""

    def now() -> np.ndarray:
        if device != "cpu":
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    start = now()
    for _ in range(count):
        call()
    clock, cpu = (now() - start) / count
    return float(clock), float(cpu)


def prepare(args: argparse.Namespace) -> tuple[dict[str, Callable[[], object]], float]:
    """Return what is timed, and the size of the decoded pixels in MiB."""
    if args.dataset is None:
        split = made_split(args.images)
    else:
        loaded = load_image_dataset(args.dataset, path=args.dataset_path, max_train_samples=args.images)
        split = loaded["train"]
    name = args.dataset or "cifar10"
    if len(split) < args.batch_size:
        sys.exit(f"error: --batch_size {args.batch_size} is more than the {len(split)} training images; lower it")
    fast = DecodedImages(split)
    mean, std = normalisation(name, fast)
    settings = {"augmentation": args.augmentation, "mean": mean, "std": std}
    if args.device != "cpu":
        fast.to(args.device)
    slow = DecodedImages(split, max_bytes=0)
    fast_batches = batches(fast, ImageCollator(name, **settings), args, workers=0)
    slow_batches = batches(slow, ImageCollator(name, **settings, per_image=True), args, workers=args.workers)
    calls = {
        "pil": lambda: next(slow_batches),
        "fast": lambda: next(fast_batches),
        "step": training_step(args, next(fast_batches), len(fast.label_names)),
    }
    return calls, len(fast) * int(np.prod(fast.pixel_shape)) / 2**20


def run(args: argparse.Namespace) -> dict[str, object]:
    """Time everything in turn and return the results."""
    calls, mebibytes = prepare(args)
    for call in calls.values():
        call()  # the first one loads libraries, starts workers and chooses kernels
    counts = {"pil": args.batches, "fast": args.batches, "step": args.steps}
    times, cpu_times = {name: [] for name in calls}, {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            clock, cpu = seconds_per_call(call, counts[name], args.device)
            times[name].append(clock)
            cpu_times[name].append(cpu)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "images_per_second": {name: args.batch_size / seconds for name, seconds in median.items()},
        "milliseconds_per_batch": {name: [1000 * one for one in values] for name, values in times.items()},
        "cpu_milliseconds_per_batch": {name: [1000 * one for one in values] for name, values in cpu_times.items()},
        "fast_share_of_step": share_of_step(times, "fast"),
        "pil_share_of_step": share_of_step(times, "pil"),
        # A GPU's step has little to do on the CPU, and workers' time is not that of this process.
        "fast_cpu_share_of_step": share_of_step(cpu_times, "fast") if args.device == "cpu" else None,
        "pixels_mebibytes": mebibytes,
        "peak_memory_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "peak_gpu_memory_mebibytes": torch.cuda.max_memory_allocated() / 2**20 if args.device != "cpu" else None,
        "settings": vars(args),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "hardware": cpu_name() if args.device == "cpu" else torch.cuda.get_device_name(),
    }


def share_of_step(times: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of the time for a batch by the time for a step."""
    return statistics.median(one / step for one, step in zip(times[name], times["step"], strict=True))


def cpu_name() -> str:
    """Model and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def report(results: dict) -> str:
    """The results in a few lines."""
    lines = [f"{'':6}{'images/s':>12}   ms per batch (median, lowest … highest of the rounds)"]
    for name, rate in results["images_per_second"].items():
        times = results["milliseconds_per_batch"][name]
        lines.append(f"{name:6}{rate:12,.0f}   {statistics.median(times):.2f}, {min(times):.2f} … {max(times):.2f}")
    lines.append(f"The fast path takes {results['fast_share_of_step']:.1%} of a training step (aim: 5 % at most),")
    if results["fast_cpu_share_of_step"] is not None:
        lines.append(f"{results['fast_cpu_share_of_step']:.1%} of its CPU seconds;")
    lines.append(f"PIL's transforms take {results['pil_share_of_step']:.1%}.")
    memory = f"Memory: {results['pixels_mebibytes']:.0f} MiB of pixels; peak {results['peak_memory_mebibytes']:.0f} MiB"
    if results["peak_gpu_memory_mebibytes"] is not None:
        memory += f", on the GPU {results['peak_gpu_memory_mebibytes']:.0f} MiB"
    lines.append(f"{memory}. {results['hardware']}, {results['threads']} threads, torch {results['torch']}")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="cifar10, cifar100, svhn or a Hub id; default: made images")
    parser.add_argument("--dataset_path", help="local folder of the data set")
    parser.add_argument("--images", type=int, default=5000, help="training images to use")
    parser.add_argument("--augmentation", default="vanilla", choices=AUGMENTATIONS)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--model", default="preactresnet18", help="network of hf_amp.models")
    parser.add_argument("--model_args", default="{}", help="config fields as JSON")
    parser.add_argument("--batches", type=int, default=20, help="batches per round of pil and fast")
    parser.add_argument("--steps", type=int, default=2, help="training steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="worker processes of pil")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args(argv)
    for name in ("images", "batch_size", "batches", "steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(args, name)}; raise it")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device} needs a CUDA device, and torch finds none; use --device cpu")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        parser.error(f"--json must lie in an existing folder, got {args.json}; make the folder first")
    return args


def main(argv: list[str] | None = None) -> dict[str, object]:
    args = parse(argv)
    results = run(args)
    print(report(results))
    if args.json:
        temporary = Path(f"{args.json}.part")
        temporary.write_text(json.dumps(results, indent=2))
        os.replace(temporary, args.json)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
