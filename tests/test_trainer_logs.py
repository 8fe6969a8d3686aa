"""What is logged beside the loss."""

import math

import pytest
import torch
from test_trainer import InOrder
from tiny import Points, TinyModel, amp_trainer, largest_difference, logs_of, parameters_of, tiny_model
from torch import nn

from hf_amp import AMPTrainer

FIGURES = ("erm_loss", "sharpness", "perturbation_norm", "skipped_ascents")


def test_figures_stand_beside_every_training_loss_and_nowhere_else(tmp_path):
    trainer = amp_trainer(tmp_path, eval_dataset=Points(8), eval_strategy="steps", eval_steps=2)
    trainer.train()
    for entry in trainer.state.log_history:
        assert all((figure in entry) == ("loss" in entry) for figure in FIGURES)
    assert len(logs_of(trainer)) == 6


@pytest.mark.parametrize("off", [{"amp_epsilon": 0.0}, {"amp_inner_iter": 0}, {"amp_end": 0.0}])
def test_figures_are_absent_while_amp_is_inactive(tmp_path, off):
    trainer = amp_trainer(tmp_path, **off)
    trainer.train()
    assert not any(figure in entry for entry in trainer.state.log_history for figure in FIGURES)


def test_figures_are_absent_in_plain_steps_of_a_schedule(tmp_path):
    trainer = amp_trainer(tmp_path, amp_every=2)
    trainer.train()
    assert ["sharpness" in entry for entry in logs_of(trainer)] == [False, True] * 3


def test_figures_are_those_of_the_losses_at_theta_and_at_theta_plus_delta(tmp_path):
    data, model = Points(8), tiny_model()
    erm_loss = nn.functional.cross_entropy(model(data.x).logits, data.labels)
    grads = torch.autograd.grad(erm_loss, list(model.parameters()))
    theta = parameters_of(model)
    with torch.no_grad():
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.add_(0.1 * grad / max(0.1, grad.norm().item()))
        amp_loss = nn.functional.cross_entropy(model(data.x).logits, data.labels)
        norm = torch.cat([(p - t).flatten() for p, t in zip(model.parameters(), theta.values(), strict=True)]).norm()
    model.load_state_dict(theta)
    trainer = amp_trainer(tmp_path, model, data=data, amp_epsilon=0.1)
    trainer.train()
    (entry,) = logs_of(trainer)
    assert entry["loss"] == pytest.approx(amp_loss.item(), rel=1e-6)
    assert entry["erm_loss"] == pytest.approx(erm_loss.item(), rel=1e-6)
    assert entry["sharpness"] == pytest.approx((amp_loss - erm_loss).item(), rel=1e-6)
    assert entry["perturbation_norm"] == pytest.approx(norm.item(), rel=1e-6)
    assert entry["skipped_ascents"] == 0.0


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}])
def test_a_window_of_steps_is_averaged_as_the_loss_is(tmp_path, scope, split):
    def logged(steps):
        trainer = amp_trainer(tmp_path, logging_steps=steps, amp_epsilon=0.1, amp_scope=scope, **split)
        trainer.train()
        return logs_of(trainer)

    single, triple = logged(1), logged(3)
    for start, entry in zip((0, 3), triple, strict=True):
        for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
            mean = sum(one[name] for one in single[start : start + 3]) / 3
            assert entry[name] == pytest.approx(mean, rel=1e-5)


def test_plain_steps_in_a_window_count_with_a_delta_of_zero(tmp_path):
    def logged(steps):
        trainer = amp_trainer(tmp_path, logging_steps=steps, amp_epsilon=0.1, amp_every=2)
        trainer.train()
        return logs_of(trainer)

    single, triple = logged(1), logged(3)
    for start, entry in zip((0, 3), triple, strict=True):
        window = single[start : start + 3]
        assert entry["sharpness"] == pytest.approx(sum(one.get("sharpness", 0.0) for one in window) / 3, rel=1e-5)
        assert entry["erm_loss"] == pytest.approx(sum(one.get("erm_loss", one["loss"]) for one in window) / 3)
        assert entry["sharpness"] == pytest.approx(entry["loss"] - entry["erm_loss"])


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_micro_batches_are_averaged_into_the_loss_of_their_batch(tmp_path, scope):
    def logged(**split):
        trainer = amp_trainer(
            tmp_path, tiny_model(), InOrder, data=Points(32), amp_epsilon=1e-9, amp_scope=scope, **split
        )
        trainer.train()
        return logs_of(trainer)[0]

    whole = logged(per_device_train_batch_size=32)
    split = logged(per_device_train_batch_size=4, gradient_accumulation_steps=8)
    assert split["erm_loss"] == pytest.approx(whole["erm_loss"], rel=1e-6)
    assert split["perturbation_norm"] == pytest.approx(whole["perturbation_norm"], rel=1e-3)


@pytest.mark.parametrize("filtered", [True, False])
def test_a_loss_that_is_not_finite_is_filtered_as_trainer_filters_it(tmp_path, filtered):
    class BadLoss(TinyModel):
        def forward(self, x, labels=None):
            output = super().forward(x, labels)
            if self.passes == 4:  # the descent pass of the second step
                output.loss = output.loss * math.nan
            return output

    trainer = amp_trainer(
        tmp_path, tiny_model(BadLoss), logging_steps=2, logging_nan_inf_filter=filtered, max_steps=2, amp_epsilon=0.1
    )
    trainer.train()
    (entry,) = logs_of(trainer)
    assert math.isfinite(entry["loss"]) == filtered
    assert math.isfinite(entry["sharpness"]) == filtered


def test_a_loss_that_user_code_logs_is_left_alone(tmp_path):
    class Chatty(AMPTrainer):
        def compute_loss(self, *args, **kwargs):
            self.log({"loss": 7.0})
            return super().compute_loss(*args, **kwargs)

    trainer = amp_trainer(tmp_path, cls=Chatty)
    trainer.train()
    for entry in logs_of(trainer):
        assert ("sharpness" in entry) == (entry["loss"] != 7.0)


def test_another_kind_of_perturbation_can_take_the_place_of_the_worst_one(tmp_path):
    class RandomPerturbationTrainer(AMPTrainer):
        def find_perturbation(self, perturbation, ascent_pass):
            perturbation.randomize(torch.Generator().manual_seed(self.state.global_step))

    model = tiny_model()
    trainer = amp_trainer(tmp_path, model, RandomPerturbationTrainer, amp_epsilon=0.1)
    trainer.train()
    assert model.passes == 6  # one pass a step
    entry = logs_of(trainer)[-1]
    assert "sharpness" not in entry
    assert "erm_loss" not in entry
    assert 0 < entry["perturbation_norm"] <= 0.1 * math.sqrt(6) * 1.001


def test_repeated_trainings_start_with_fresh_figures(tmp_path):
    model = tiny_model()
    theta = parameters_of(model)
    trainer = amp_trainer(tmp_path, model, logging_steps=4, amp_epsilon=0.1)  # two steps stay unlogged
    trainer.train()
    first = logs_of(trainer)[0]
    model.load_state_dict(theta)
    trainer.optimizer, trainer.lr_scheduler = None, None
    trainer.train()
    assert logs_of(trainer)[0]["sharpness"] == pytest.approx(first["sharpness"], rel=1e-6)
    assert largest_difference(theta, parameters_of(model)) > 0
