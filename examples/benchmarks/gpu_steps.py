"""A step of `Trainer`, `AMPTrainer` and plain two passes on one GPU, for a few minutes: see gpu_minutes.sh.

A row of JSON as soon as it is known, appended to --out: what is stopped keeps what it had. The cases come in the order
of their worth; in each, the variants are trained in turn, `--rounds` times. `watched_ms` is the median over steps with
a wait for the device around each; `ms` is a whole training without a wait, over its steps, so that the host's work may
hide behind the device's: the figure that users see.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from authors_amp import PlainTwoPassTrainer
from step_cost import CLASSES, IMAGE_SIZE, WARM_UP, PlainLoop, TrainerRun, build
from transformers import TrainerCallback

CASES = [  # network, dtype, compiled, channels last
    ("preactresnet18", "bfloat16", True, True),
    ("preactresnet18", "bfloat16", False, True),
    ("wideresnet28_10", "bfloat16", False, True),
    ("preactresnet18", "float32", False, True),
    ("wideresnet28_10", "bfloat16", True, True),
    ("preactresnet18", "float32", True, True),
    ("preactresnet18", "bfloat16", False, False),
]
# Two groups, each with a Trainer of its own: a second size of batch makes torch.compile try dynamic shapes for both.
GROUPS = [
    {
        "Trainer": {},
        "AMPTrainer N=1": {"amp_inner_iter": 1},
        "plain two passes": {"cls": PlainTwoPassTrainer},
        "plain loop": {},
    },
    {"Trainer": {}, "AMPTrainer, ascent on 6 %": {"amp_ascent_fraction": 0.06, "amp_norm_stats": "descent"}},
]


class Whole(TrainerCallback):
    """Seconds a step of a training after its first steps, with one wait at each end."""

    def __init__(self, device, skipped):
        self.device, self.skipped = device, skipped

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.skipped:
            self.started = self._now()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = (self._now() - self.started) / (state.global_step - self.skipped)

    def _now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def network(name, channels_last, tiny):
    """The network of a case, or with `tiny` one of a few thousand parameters."""
    if tiny:
        from transformers import AutoModelForImageClassification

        from hf_amp.models import build_config

        sizes = {"stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
        config = build_config("preactresnet18", num_labels=CLASSES, image_size=IMAGE_SIZE, **sizes)
        model = AutoModelForImageClassification.from_config(config)
        model.accepts_loss_kwargs = False
    else:
        model = build(name)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def put(path, **row):
    """Append a row to the file and print it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(json.dumps(row), flush=True)


def measure(case, group, options, end):
    """Write the rows of one case and group of variants, until the time is over."""
    name, options.dtype, options.torch_compile, channels_last = CASES[case]
    label = {"model": name, "dtype": options.dtype, "compiled": options.torch_compile, "channels_last": channels_last}
    label["group"] = group
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for variant, settings in GROUPS[group].items():
            began = time.monotonic()
            try:
                model = network(name, channels_last, options.tiny)
                if variant == "plain loop":
                    runs[variant] = PlainLoop(model, options)
                else:
                    runs[variant] = TrainerRun(model, options, folder, **settings)
                runs[variant].steps()  # compiles, and chooses kernels
            except Exception as error:  # one variant that fails must not take the others with it
                put(options.out, **label, variant=variant, error=f"{type(error).__name__}: {error}"[:500])
                runs.pop(variant, None)
                continue
            put(options.out, **label, variant=variant, first_training_seconds=round(time.monotonic() - began, 2))
            if time.monotonic() > end:
                return
        for round_ in range(options.rounds):
            for variant, run in runs.items():
                if time.monotonic() > end:
                    return
                steps = run.steps()
                row = {"watched_ms": 1e3 * statistics.median(wall for wall, _ in steps)}
                if isinstance(run, TrainerRun):
                    whole = Whole(options.device, WARM_UP + 1)
                    run._train_with(whole)
                    row["ms"] = 1e3 * whole.seconds
                put(options.out, **label, variant=variant, round=round_, **row)
        for variant, run in runs.items():
            if isinstance(run, TrainerRun) and time.monotonic() < end:
                put(options.out, **label, variant=variant, peak_mib=run.peak() / 2**20)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--seconds", type=float, default=150, help="stop after this time")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--cases",
        type=int,
        nargs="+",
        choices=range(len(CASES)),
        default=range(len(CASES)),
        help="which, in this order",
    )
    parser.add_argument("--tiny", action="store_true", help="a network of a few thousand parameters, for a rehearsal")
    options = parser.parse_args()
    options.sync_debug = options.device == "cuda"
    end = time.monotonic() + options.seconds
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    put(options.out, device=device, torch=torch.__version__, batch_size=options.batch_size, steps=options.steps)
    for case in options.cases:
        for group in range(len(GROUPS)):
            if time.monotonic() < end:
                measure(case, group, options, end)
                gc.collect()


if __name__ == "__main__":
    main()
