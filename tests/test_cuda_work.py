"""What AMP does on a CUDA device beside its passes, on fake tensors, which need none."""

import pytest
import torch
from fake_cuda import CUDA, Recorder, fake_cuda
from tiny import ModelThatCounts, Points, TinyModel, amp_trainer, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import Trainer

from hf_amp import AMPTrainerMixin
from hf_amp.perturbation import Perturbation


@pytest.fixture
def fake():
    with fake_cuda():
        yield


def parameters(count=3):
    return [nn.Parameter(torch.zeros(4, 2, device=CUDA)) for _ in range(count)]


def fill_gradients(params):
    for param in params:
        param.grad = torch.ones_like(param)


def work_of(params, norm="tensor", grad_scale=1.0):
    """Two ascents, and Δ applied twice for two micro-batches."""
    perturbation = Perturbation(params, 0.5, norm)
    with Recorder() as recorder:
        for _ in range(2):
            with perturbation.applied():
                fill_gradients(params)
                perturbation.ascend(1.0, grad_scale)
        with perturbation.applied():
            pass
        with perturbation.applied(keep_delta=False):
            pass
        perturbation.norm + perturbation.skipped
    return recorder.kernels


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_the_perturbation_stays_on_the_device(fake, norm, scaled):
    scale = torch.ones((), device=CUDA) if scaled else 1.0
    assert work_of(parameters(), norm, scale)


@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_norms_and_copies_are_grouped_kernels(fake, norm):
    """Each further parameter costs the two kernels that scale it by its own factor, read on the device."""

    def kernels(count):
        params = parameters(count)
        perturbation = Perturbation(params, 0.5, norm)
        with Recorder() as recorder, perturbation.applied(keep_delta=False):
            fill_gradients(params)
            recorder.kernels.clear()
            perturbation.ascend(1.0)
        return recorder.kernels

    few, many = kernels(3), kernels(10)
    assert sorted(set(few)) == sorted(set(many))
    assert len(many) - len(few) == 2 * 7


def test_a_random_perturbation_stays_on_the_device(fake):
    perturbation = Perturbation(parameters(), 0.5, "tensor")
    with Recorder() as recorder:
        perturbation.randomize()
        with perturbation.applied():
            pass
    assert recorder.kernels


def test_a_read_on_the_host_is_noticed(fake):
    with pytest.raises(DataDependentOutputException):
        torch.ones((), device=CUDA).item()
    with Recorder(), pytest.raises(AssertionError, match="moves data"):
        torch.ones((), device=CUDA).to("cpu")
    with Recorder(), pytest.raises(AssertionError, match="moves data"):
        torch.ones(()).to(CUDA)


class GivenGradients(Trainer):
    """Passes that leave gradients and a loss on the device; autograd needs a real one."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        fill_gradients(model.parameters())
        return torch.ones((), device=CUDA)


class OnTheDevice(AMPTrainerMixin, GivenGradients):
    pass


class Scaler:
    """As `GradScaler`: what it scales stays on the device."""

    def scale(self, outputs):
        return outputs * torch.ones((), device=CUDA)


def move(trainer, monkeypatch):
    """Put the model of a trainer on the fake device, and let the trainer take it for its own."""
    for module in trainer.model.modules():
        for name, param in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros(param.shape, device=CUDA)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=CUDA))
    trainer._loss_is_checked = True  # once a training, by passes of its own
    monkeypatch.setitem(trainer.args.__dict__, "_setup_devices", CUDA)
    monkeypatch.setattr(trainer.accelerator.state, "device", CUDA)


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amp_inner_iter": 2},
        {"amp_norm": "global"},
        {"amp_norm_stats": "descent"},
        {"amp_ascent_fraction": 0.25},
        {"amp_scope": "micro_batch"},
        {"logging_nan_inf_filter": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_class", [TinyModel, ModelThatCounts])
def test_a_step_adds_no_wait_for_the_device(tmp_path, monkeypatch, settings, scaled, model_class):
    model = tiny_model(model_class, torch.float32, batch_norm=True)
    data = Points(dtype=torch.float32)
    trainer = amp_trainer(tmp_path, model, OnTheDevice, data=data, gradient_accumulation_steps=2, **settings)
    trainer.create_optimizer_and_scheduler(3)
    if scaled:
        monkeypatch.setattr(trainer.accelerator, "scaler", Scaler())
    with fake_cuda():
        move(trainer, monkeypatch)
        samples = {"x": torch.zeros(8, 6, device=CUDA), "labels": torch.zeros(8, dtype=torch.long, device=CUDA)}
        window, num_items = trainer.get_batch_samples(iter([samples, dict(samples)]), 2, CUDA)
        with Recorder() as recorder:
            for inputs in window:
                assert trainer.training_step(trainer.model, inputs, num_items).device == CUDA
    assert recorder.kernels
