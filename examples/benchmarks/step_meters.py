"""What measures the steps of a Trainer: seconds, seconds beside the passes, and the peak of what is allocated."""

import time

import torch
from authors_amp import PlainTwoPassTrainer
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

from hf_amp import AMPTrainerMixin

WARM_UP = 1  # steps at the start of a training that are not measured


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


class PassClock(Trainer):
    """Adds up the wall seconds of its training steps, which are the passes of a class before it."""

    pass_seconds = 0.0

    def training_step(self, *args, **kwargs):
        started, _ = synchronised_clocks(self.args.device.type)
        loss = super().training_step(*args, **kwargs)
        self.pass_seconds += synchronised_clocks(self.args.device.type)[0] - started
        return loss


class OwnWorkClock:
    """Mixin before a trainer that makes its passes with `PassClock`: wall seconds that a step takes beside them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_work = []

    def training_step(self, *args, **kwargs):
        self.pass_seconds = 0.0
        started, _ = synchronised_clocks(self.args.device.type)
        loss = super().training_step(*args, **kwargs)
        ended, _ = synchronised_clocks(self.args.device.type)
        if self.state.global_step >= WARM_UP:
            self.own_work.append(ended - started - self.pass_seconds)
        return loss


class OwnWorkTrainer(OwnWorkClock, AMPTrainerMixin, PassClock):
    """An `AMPTrainer` that notes its own work."""


class PlainOwnWorkTrainer(OwnWorkClock, PlainTwoPassTrainer, PassClock):
    """The plain two passes, whose own work is what the authors' optimizer does."""


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
