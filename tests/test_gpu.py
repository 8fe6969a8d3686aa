"""What only a CUDA device can show. `python -m pytest -m gpu` on a machine that has one."""

import pytest
import torch
from tiny import Points, amp_trainer, largest_difference, logs_of, parameters_of, tiny_model

from hf_amp import AMPTrainer
from hf_amp.passes import running_statistics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gpu_trainer(tmp_path, model=None, cls=AMPTrainer, **overrides):
    model = tiny_model(dtype=torch.float32) if model is None else model
    data = Points(dtype=torch.float32)
    return amp_trainer(tmp_path, model, cls, data=data, use_cpu=False, amp_epsilon=0.1, **overrides)


@pytest.mark.parametrize("inner_iter", [1, 2])
def test_fp16_with_its_scaler_trains_close_to_float32(tmp_path, inner_iter):
    full, half = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    gpu_trainer(tmp_path, full, amp_inner_iter=inner_iter).train()
    trainer = gpu_trainer(tmp_path, half, fp16=True, amp_inner_iter=inner_iter)
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() > 1
    assert largest_difference(parameters_of(full), parameters_of(half)) < 5e-3
    assert logs_of(trainer)[-1]["perturbation_norm"] > 0


def test_an_overflow_under_fp16_skips_the_ascent_and_lets_the_scaler_back_off(tmp_path):
    model = tiny_model(dtype=torch.float32, batch_norm=True)
    scales = []

    class Step(AMPTrainer):
        def training_step(self, *args, **kwargs):
            if not scales:
                self.accelerator.scaler._init_scale = 2.0**40  # beyond float16: gradients overflow
            loss = super().training_step(*args, **kwargs)
            scales.append(self.accelerator.scaler.get_scale())
            return loss

    trainer = gpu_trainer(tmp_path, model, Step, fp16=True, max_steps=3)
    trainer.train()
    assert scales[1] < scales[0]
    assert logs_of(trainer)[0]["skipped_ascents"] == 1.0
    assert all(buffer.isfinite().all() for buffer in running_statistics(model))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"fp16": True}, {"amp_norm": "global", "amp_inner_iter": 2}])
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_a_step_adds_no_host_synchronisation(tmp_path, settings, scope):
    class Strict(AMPTrainer):
        def training_step(self, *args, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if self.state.global_step > 0 else "default")
            try:
                return super().training_step(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    model = tiny_model(dtype=torch.float32, batch_norm=True)
    options = {"gradient_accumulation_steps": 2, "amp_norm_stats": "descent", "amp_scope": scope}
    trainer = gpu_trainer(tmp_path, model, Strict, **options, **settings)
    trainer.train()
    assert trainer.state.global_step == 3


def test_bf16_autocast_trains_close_to_float32(tmp_path):
    full, half = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    gpu_trainer(tmp_path, full).train()
    gpu_trainer(tmp_path, half, bf16=True).train()
    assert largest_difference(parameters_of(full), parameters_of(half)) < 2e-2
