"""Clean weights whenever user code can see them, whatever goes wrong; mixed precision; bad gradients."""

import math

import pytest
import torch
from test_trainer import InOrder
from tiny import (
    Points,
    Recorder,
    TinyModel,
    amp_trainer,
    largest_difference,
    logs_of,
    parameters_of,
    tiny_model,
)
from torch import nn
from torch.nn.utils import parametrize
from transformers import Trainer, TrainerCallback

from hf_amp import AMPTrainer
from hf_amp.passes import running_statistics


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
@pytest.mark.parametrize("inner_iter", [1, 2])
def test_every_callback_evaluation_and_save_sees_theta(tmp_path, scope, inner_iter):
    recorder = Recorder(parameters_of)
    trainer = amp_trainer(
        tmp_path,
        eval_dataset=Points(8),
        callbacks=[recorder],
        gradient_accumulation_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        amp_scope=scope,
        amp_inner_iter=inner_iter,
    )
    trainer.train()
    # θ changes in the optimizer's step alone: between two of them every look must see the same bits.
    distinct = {}
    for _, weights in recorder.seen:
        distinct.setdefault(tuple(w.numpy().tobytes() for w in weights.values()), None)
    assert len(distinct) == trainer.state.global_step + 1 == 3
    events_before_the_first_step = [w for step, w in recorder.seen[:5]]
    assert all(largest_difference(events_before_the_first_step[0], w) == 0.0 for w in events_before_the_first_step)


def failing_model(error, fail_at, where):
    class Failing(TinyModel):
        def forward(self, x, labels=None):
            output = super().forward(x, labels)
            if self.passes == fail_at:
                if where == "forward":
                    raise error
                output.loss.register_hook(self._raise)
            return output

        def _raise(self, grad):
            raise error

    return tiny_model(Failing, batch_norm=True)


@pytest.mark.parametrize("error", [ValueError("bug"), torch.OutOfMemoryError("out"), KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_weights_and_accumulated_gradients_are_clean_after_an_error_in_any_pass(tmp_path, error, where, fail_at, scope):
    # Two micro-batches and N = 2 make six passes in the one optimizer step.
    model = failing_model(error, fail_at, where)
    theta = parameters_of(model)
    trainer = amp_trainer(
        tmp_path, model, gradient_accumulation_steps=2, max_steps=1, amp_inner_iter=2, amp_scope=scope
    )
    with pytest.raises(type(error)):
        trainer.train()
    assert model.passes == fail_at
    assert largest_difference(theta, parameters_of(model)) == 0.0
    assert trainer._run.batch is None  # Δ is freed


def test_running_statistics_come_back_after_an_error_in_a_frozen_pass(tmp_path):
    model = failing_model(ValueError("bug"), 1, "backward")
    before = [b.clone() for b in running_statistics(model)]
    with pytest.raises(ValueError, match="bug"):
        amp_trainer(tmp_path, model, amp_norm_stats="descent").train()
    assert all(torch.equal(a, b) for a, b in zip(before, running_statistics(model), strict=True))


@pytest.mark.parametrize("fail_at", [2, 5])
def test_training_can_go_on_after_an_error(tmp_path, fail_at):
    model = failing_model(ValueError("bug"), fail_at, "backward")
    trainer = amp_trainer(tmp_path, model, gradient_accumulation_steps=2, amp_inner_iter=2, amp_epsilon=0.1)
    with pytest.raises(ValueError, match="bug"):
        trainer.train()
    trainer.train()
    assert trainer.state.global_step == 3


def test_auto_find_batch_size_retries_from_clean_weights(tmp_path):
    seen = []

    class Hungry(TinyModel):
        def forward(self, x, labels=None):
            if len(x) == 8:
                seen.append(parameters_of(self))
                if self.passes == 3:  # in a pass at θ + Δ of the second step
                    self.passes += 1
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x, labels)

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            starts.append(parameters_of(model))

    starts = []
    model = tiny_model(Hungry)
    trainer = amp_trainer(tmp_path, model, auto_find_batch_size=True, amp_epsilon=0.5, callbacks=[Watch()])
    trainer.train()
    assert trainer._train_batch_size < 8
    assert len(starts) == 2
    # The retry starts at θ after the first step, which is also what the second step's pass at θ saw.
    assert largest_difference(starts[1], seen[2]) == 0.0
    assert largest_difference(starts[1], seen[3]) > 1e-3


def test_stopping_in_the_middle_of_a_window_leaves_clean_weights_and_the_next_training_starts_anew(tmp_path):
    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = self.armed

    stop = Stop()
    stop.armed = True
    model = tiny_model()
    theta = parameters_of(model)
    trainer = amp_trainer(tmp_path, model, gradient_accumulation_steps=3, amp_epsilon=0.1, callbacks=[stop])
    trainer.train()
    assert largest_difference(theta, parameters_of(model)) == 0.0
    stop.armed = False
    trainer.train()
    fresh = tiny_model()
    amp_trainer(tmp_path, fresh, gradient_accumulation_steps=3, amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(fresh), parameters_of(model)) == 0.0


# --- gradients that are not finite ---


class BadGradient(TinyModel):
    """Gives an inf or nan gradient in the passes that `bad_passes` names, counted from 1."""

    bad, bad_passes = math.inf, ()

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        if self.passes in self.bad_passes and output.loss.requires_grad:
            output.logits.register_hook(lambda grad: grad * self.bad)
        return output


def bad_model(*passes, bad=math.inf):
    model = tiny_model(BadGradient, batch_norm=True)
    model.bad, model.bad_passes = bad, passes
    return model


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize(("inner_iter", "bad_pass"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_a_bad_ascent_gradient_gives_a_plain_step(tmp_path, bad, inner_iter, bad_pass, scope):
    data = Points(8)
    model, plain = bad_model(bad_pass, bad=bad), bad_model()
    trainer = amp_trainer(
        tmp_path, model, InOrder, data=data, amp_inner_iter=inner_iter, amp_scope=scope, amp_norm_stats="clean"
    )
    trainer.train()

    class Ordered(Trainer):
        _get_train_sampler = InOrder._get_train_sampler

    amp_trainer(tmp_path, plain, Ordered, data=data).train()
    assert largest_difference(parameters_of(model), parameters_of(plain)) == 0.0
    (entry,) = logs_of(trainer)
    assert (entry["skipped_ascents"], entry["perturbation_norm"], entry["sharpness"]) == (1.0, 0.0, 0.0)
    assert all(buffer.isfinite().all() for buffer in running_statistics(model))


def test_skipped_ascents_are_counted_over_the_logging_window(tmp_path):
    model = bad_model(1, 5)  # first and third of six steps
    trainer = amp_trainer(tmp_path, model, logging_steps=3)
    trainer.train()
    assert [entry["skipped_ascents"] for entry in logs_of(trainer)] == [2.0, 0.0]


# --- mixed precision ---


class Scaled(InOrder):
    """Trains with a gradient scaler on the CPU, as fp16 does on a GPU."""

    initial_scale = 65536.0

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.initial_scale, growth_interval=10000)


def scaled_run(tmp_path, model, scale, cls=Scaled, **overrides):
    trainer_cls = type("ScaledBy", (cls,), {"initial_scale": scale})
    trainer = amp_trainer(tmp_path, model, trainer_cls, amp_epsilon=0.1, **overrides)
    trainer.train()
    return trainer


@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_the_perturbation_is_the_same_for_any_loss_scale(tmp_path, inner_iter, norm, accumulation, scope):
    trained = []
    for scale in (1.0, 65536.0, None):
        model = tiny_model()
        settings = {"amp_inner_iter": inner_iter, "amp_norm": norm, "amp_scope": scope}
        settings |= {"amp_inner_lr": 0.5, "gradient_accumulation_steps": accumulation}
        if scale is None:
            amp_trainer(tmp_path, model, InOrder, amp_epsilon=0.1, **settings).train()
        else:
            scaled_run(tmp_path, model, scale, **settings)
        trained.append(parameters_of(model))
    assert largest_difference(trained[0], trained[1]) == 0.0
    assert largest_difference(trained[0], trained[2]) <= 1e-15


def test_the_scaler_still_backs_off(tmp_path):
    model = bad_model(1, 2)  # both passes of the first step overflow, as they do when the scale is too high
    theta = parameters_of(model)
    trainer = scaled_run(tmp_path, model, 1024.0, data=Points(8), num_train_epochs=1)
    assert trainer.accelerator.scaler.get_scale() == 512.0
    assert largest_difference(theta, parameters_of(model)) == 0.0  # the scaler held the optimizer's step back
    assert logs_of(trainer)[0]["skipped_ascents"] == 1.0
    assert all(buffer.isfinite().all() for buffer in running_statistics(model))


def test_a_bad_ascent_alone_does_not_cost_the_step_under_the_scaler(tmp_path):
    model = bad_model(1)
    theta = parameters_of(model)
    trainer = scaled_run(tmp_path, model, 1024.0, data=Points(8), num_train_epochs=1)
    assert trainer.accelerator.scaler.get_scale() == 1024.0
    assert largest_difference(theta, parameters_of(model)) > 1e-6


def test_bf16_autocast_trains_float32_weights(tmp_path):
    model = tiny_model(dtype=torch.float32)
    theta = parameters_of(model)
    dtypes = set()
    model.first.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    trainer = amp_trainer(tmp_path, model, data=Points(dtype=torch.float32), bf16=True, amp_epsilon=0.1)
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert all(param.dtype == torch.float32 for param in model.parameters())
    assert largest_difference(theta, parameters_of(model)) > 1e-4
    assert logs_of(trainer)[-1]["perturbation_norm"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amp_inner_iter": 2},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "amp_scope": "micro_batch"},
    ],
)
def test_an_autocast_around_all_passes_of_a_step_keeps_no_weights_of_the_pass_before(tmp_path, settings):
    class Around(AMPTrainer):
        def training_step(self, model, inputs, *args):
            with torch.autocast("cpu", torch.bfloat16):
                super().training_step(model, inputs, *args)
                return self.compute_loss(model, inputs).detach()  # at θ, not at θ + Δ

    class Apart(AMPTrainer):
        def training_step(self, model, inputs, *args):
            super().training_step(model, inputs, *args)
            with torch.autocast("cpu", torch.bfloat16):
                return self.compute_loss(model, inputs).detach()

    around, apart = (tiny_model(dtype=torch.float32) for _ in range(2))
    for model, kind, bf16 in ((around, Around, False), (apart, Apart, True)):
        options = {
            "data": Points(dtype=torch.float32),
            "amp_epsilon": 0.1,
            "bf16": bf16,
            "logging_steps": 1,
            **settings,
        }
        trainer = amp_trainer(tmp_path, model, cls=kind, **options)
        trainer.train()
        model.logs = [(log["loss"], log["sharpness"]) for log in logs_of(trainer)]
    assert largest_difference(parameters_of(around), parameters_of(apart)) == 0.0
    assert around.logs == apart.logs
    assert any(sharpness != 0 for _, sharpness in around.logs)


class Symmetric(nn.Module):
    """Saves no tensor for its backward pass, so that a second one through the same weights is not noticed."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


@pytest.mark.parametrize("settings", [{}, {"amp_inner_iter": 2}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("parametrization", [Symmetric, nn.Tanh])
def test_parametrized_weights_that_are_cached_around_a_step_are_those_of_each_pass(tmp_path, settings, parametrization):
    class Around(AMPTrainer):
        def training_step(self, *args):
            with parametrize.cached():
                return super().training_step(*args)

    around, apart = tiny_model(), tiny_model()
    for model, kind in ((around, Around), (apart, AMPTrainer)):
        parametrize.register_parametrization(model.middle, "weight", parametrization())
        trainer = amp_trainer(tmp_path, model, cls=kind, amp_epsilon=0.1, **settings)
        trainer.train()
    assert largest_difference(parameters_of(around), parameters_of(apart)) == 0.0
    assert logs_of(trainer)[-1]["sharpness"] != 0


def test_pure_bf16_models_train_and_the_loss_of_small_deltas_is_not_silent(tmp_path, caplog):
    model = tiny_model(dtype=torch.bfloat16)
    theta = parameters_of(model)
    trainer = amp_trainer(tmp_path, model, data=Points(dtype=torch.bfloat16), amp_epsilon=0.1)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "Parameters are stored in torch.bfloat16" in caplog.text
    assert "Load the model in torch.float32 and train with `bf16=True`" in caplog.text
    assert all(param.dtype == torch.bfloat16 and param.isfinite().all() for param in model.parameters())
    assert largest_difference(theta, parameters_of(model)) > 0


def test_float32_models_are_not_warned_about(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        amp_trainer(tmp_path).train()
    assert "Parameters are stored in" not in caplog.text


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_a_step_reads_no_tensor_on_the_host(tmp_path, monkeypatch, scope, norm):
    """No `.item()`, `bool(tensor)` or the like inside a step: each would make the host wait for a GPU."""
    reads = []

    class Step(Scaled):
        def training_step(self, *args, **kwargs):
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "is_cpu", False)  # so that the step goes as on a GPU
                for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
                    original = getattr(torch.Tensor, name)
                    patch.setattr(
                        torch.Tensor, name, lambda *a, _n=name, _o=original, **k: reads.append(_n) or _o(*a, **k)
                    )
                return super().training_step(*args, **kwargs)

    options = {"amp_scope": scope, "amp_norm": norm, "amp_inner_iter": 2, "gradient_accumulation_steps": 2}
    trainer = amp_trainer(tmp_path, tiny_model(batch_norm=True), Step, amp_norm_stats="descent", **options)
    trainer.train()
    assert trainer.state.global_step == 3
    assert reads == []
