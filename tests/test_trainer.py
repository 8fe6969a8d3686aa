"""What a step of the trainer does to the weights, against plain loops and against `Trainer`."""

import pytest
import torch
from reference import amp_step
from tiny import (
    ModelThatCounts,
    Points,
    amp_trainer,
    largest_difference,
    logs_of,
    parameters_of,
    tiny_model,
)
from torch import nn
from transformers import Trainer

from hf_amp import AMPTrainer, AMPTrainerMixin
from hf_amp.passes import running_statistics

INACTIVE = [
    {"amp_epsilon": 0.0},
    {"amp_inner_iter": 0},
    {"amp_start": 1.0},
    {"amp_end": 0.0},
    {"amp_start": 0.4, "amp_end": 0.4},
    {"amp_every": 100},
]


def everything_of(trainer):
    """All that training leaves behind, as plain values."""
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "logs": [
            {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
            for entry in trainer.state.log_history
        ],
        "flos": trainer.state.total_flos,
    }


def assert_identical(left, right):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_identical(left[name], right[name])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


# --- 1. identity ---


@pytest.mark.parametrize("inactive", INACTIVE, ids=str)
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_where_amp_is_inactive_training_is_bit_identical_to_trainer(tmp_path, inactive, optim):
    def trained(cls, **overrides):
        model = tiny_model(batch_norm=True, dropout=0.3, dtype=torch.float32)
        trainer = amp_trainer(
            tmp_path,
            model,
            cls,
            data=Points(dtype=torch.float32),
            optim=optim,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            **overrides,
        )
        trainer.train()
        return everything_of(trainer)

    assert_identical(trained(AMPTrainer, **inactive), trained(Trainer))


def test_the_identity_test_can_fail(tmp_path):
    plain, amp = amp_trainer(tmp_path, cls=Trainer), amp_trainer(tmp_path, amp_epsilon=0.1)
    plain.train()
    amp.train()
    assert largest_difference(parameters_of(plain.model), parameters_of(amp.model)) > 1e-6


@pytest.mark.parametrize(
    ("schedule", "plain_until"), [({"amp_start": 0.5}, 3), ({"amp_every": 3}, 2), ({"amp_every": 6}, 5)]
)
def test_steps_before_the_first_active_one_are_those_of_trainer(tmp_path, schedule, plain_until):
    def weights_after_each_step(cls, **overrides):
        seen = []

        class Steps(cls):
            def training_step(self, *args, **kwargs):
                seen.append(parameters_of(self.model))
                return super().training_step(*args, **kwargs)

        amp_trainer(tmp_path, tiny_model(batch_norm=True, dropout=0.2), Steps, **overrides).train()
        return seen

    plain, amp = weights_after_each_step(Trainer), weights_after_each_step(AMPTrainer, **schedule)
    assert len(plain) == len(amp) == 6
    equal = [largest_difference(a, b) == 0.0 for a, b in zip(plain, amp, strict=True)]
    assert equal == [step <= plain_until for step in range(6)]


# --- 2. parity ---


def reference_run(model, data, optimizer, batch_size, order, **settings):
    losses = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        x, labels = data.x[rows], data.labels[rows]
        params = list(model.parameters())

        def loss_at(x=x, labels=labels):
            return nn.functional.cross_entropy(model(x).logits, labels)

        losses.append(amp_step(params, loss_at, optimizer, **settings))
    return losses


class InOrder(AMPTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("inner_iter", [1, 2, 3])
def test_fifty_steps_equal_algorithm_1(tmp_path, optim, norm, inner_iter):
    data = Points(count=80)
    settings = {"epsilon": 0.1, "inner_lr": 0.7, "inner_iter": inner_iter, "norm": norm}
    model, expected = tiny_model(), tiny_model()
    order = torch.arange(80).repeat(5)
    losses = reference_run(expected, data, OPTIMIZERS[optim](expected.parameters()), 8, order, **settings)
    optimizer = OPTIMIZERS[optim](model.parameters())
    trainer = amp_trainer(
        tmp_path,
        model,
        InOrder,
        data=data,
        num_train_epochs=5,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        **{f"amp_{name}": value for name, value in settings.items()},
    )
    trainer.train()
    assert trainer.state.global_step == 50
    assert largest_difference(parameters_of(model), parameters_of(expected)) <= 1e-12
    for entry, (erm_loss, amp_loss) in zip(logs_of(trainer), losses, strict=True):
        assert entry["loss"] == pytest.approx(amp_loss, rel=1e-6)  # Trainer sums losses in float32
        assert entry["erm_loss"] == pytest.approx(erm_loss, rel=1e-6)


def test_a_large_inner_lr_with_the_global_ball_is_sams_step(tmp_path):
    model = tiny_model()
    data = Points(count=8)
    theta = parameters_of(model)
    twin = tiny_model()
    params = list(twin.parameters())

    def loss():
        return nn.functional.cross_entropy(twin(data.x).logits, data.labels)

    grads = torch.autograd.grad(loss(), params)
    total = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param.add_(0.05 * grad / total)
    sam_grads = torch.autograd.grad(loss(), params)
    amp_trainer(tmp_path, model, data=data, amp_epsilon=0.05, amp_inner_lr=1e6, amp_norm="global").train()
    for (name, before), grad in zip(theta.items(), sam_grads, strict=True):
        torch.testing.assert_close(model.state_dict()[name], before - 0.1 * grad, rtol=1e-12, atol=1e-14)


# --- 3. only the effective batch counts ---

SPLITS = [
    {"per_device_train_batch_size": 32},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
    {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2},
]


@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("model_class", [None, ModelThatCounts])
def test_splits_of_the_batch_give_the_same_weights(tmp_path, norm, inner_iter, model_class):
    trained = []
    for split in SPLITS:  # 48 samples: the last window of each epoch holds 16
        model = tiny_model() if model_class is None else tiny_model(model_class)
        amp_trainer(
            tmp_path,
            model,
            num_train_epochs=3,
            amp_epsilon=0.1,
            amp_norm=norm,
            amp_inner_iter=inner_iter,
            **split,
        ).train()
        trained.append(parameters_of(model))
    assert largest_difference(trained[0], trained[1]) <= 1e-12
    assert largest_difference(trained[0], trained[2]) <= 1e-12


def test_micro_batches_of_unequal_size_add_up_for_models_that_use_the_number_of_items(tmp_path):
    trained = []
    for split in ({"per_device_train_batch_size": 22}, {"per_device_train_batch_size": 4}):
        model = tiny_model(ModelThatCounts)
        steps = 22 // 4 + 1 if split["per_device_train_batch_size"] == 4 else 1
        data = Points(count=22)
        amp_trainer(
            tmp_path, model, data=data, gradient_accumulation_steps=steps, num_train_epochs=4, amp_epsilon=0.1, **split
        ).train()
        trained.append(parameters_of(model))
    assert largest_difference(*trained) <= 1e-12


def test_scope_micro_batch_differs_under_accumulation_and_equals_scope_batch_without(tmp_path):
    def trained(scope, split):
        model = tiny_model()
        amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_scope=scope, **split).train()
        return parameters_of(model)

    whole, accumulated = SPLITS[0], SPLITS[1]
    assert largest_difference(trained("micro_batch", whole), trained("batch", whole)) == 0.0
    assert largest_difference(trained("micro_batch", accumulated), trained("batch", accumulated)) > 1e-5


# --- 5. accumulated gradients survive ---


@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("model_class", [None, ModelThatCounts])
def test_micro_batch_scope_with_accumulation_equals_a_loop_written_by_hand(tmp_path, inner_iter, model_class):
    data = Points(count=32)
    settings = {"epsilon": 0.1, "inner_lr": 1.0, "inner_iter": inner_iter, "norm": "tensor"}
    model = tiny_model() if model_class is None else tiny_model(model_class)
    expected = tiny_model()
    params = list(expected.parameters())
    sums = [torch.zeros_like(param) for param in params]
    for start in range(0, 32, 8):
        x, labels = data.x[start : start + 8], data.labels[start : start + 8]
        keep = torch.optim.SGD(params, lr=0.0)  # leaves the gradient at θ + Δ, and θ where it is
        amp_step(params, lambda: nn.functional.cross_entropy(expected(x).logits, labels), keep, **settings)  # noqa: B023
        for total, param in zip(sums, params, strict=True):
            total += param.grad / 4
    with torch.no_grad():
        for param, total in zip(params, sums, strict=True):
            param.sub_(0.1 * total)
    trainer = amp_trainer(
        tmp_path,
        model,
        InOrder,
        data=data,
        gradient_accumulation_steps=4,
        amp_scope="micro_batch",
        **{f"amp_{name}": value for name, value in settings.items()},
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert largest_difference(parameters_of(model), parameters_of(expected)) <= 1e-14


# --- share, targets, statistics ---


def test_ascent_fraction_takes_delta_from_the_first_samples_of_the_batch(tmp_path):
    data = Points(count=8)
    model, expected = tiny_model(), tiny_model()
    share = nn.functional.cross_entropy(expected(data.x[:2]).logits, data.labels[:2])
    grads = torch.autograd.grad(share, list(expected.parameters()))
    theta = [p.detach().clone() for p in expected.parameters()]
    with torch.no_grad():
        for param, grad in zip(expected.parameters(), grads, strict=True):
            param.add_(grad * min(1.0, 0.1 / grad.norm().item()))
    loss = nn.functional.cross_entropy(expected(data.x).logits, data.labels)
    after = [t - 0.1 * g for t, g in zip(theta, torch.autograd.grad(loss, list(expected.parameters())), strict=True)]
    amp_trainer(tmp_path, model, InOrder, data=data, amp_epsilon=0.1, amp_ascent_fraction=0.25).train()
    for got, want in zip(model.parameters(), after, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("fraction", "size", "is_said"), [(0.125, 8, False), (0.5, 8, False), (0.99, 8, False), (0.5, 1, True)]
)
def test_a_share_of_what_cannot_be_cut_is_said(tmp_path, caplog, fraction, size, is_said):
    amp_trainer(tmp_path, amp_ascent_fraction=fraction, per_device_train_batch_size=size, max_steps=2).train()
    assert ("has no effect on this batch" in caplog.text) == is_said


def test_ascent_fraction_normalises_by_the_items_it_sees(tmp_path):
    def trained(cls):
        model = tiny_model(cls)
        amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_ascent_fraction=0.5, gradient_accumulation_steps=2).train()
        return parameters_of(model)

    assert largest_difference(trained(ModelThatCounts), trained(type(tiny_model()))) <= 1e-12


@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("model_class", [None, ModelThatCounts])
@pytest.mark.parametrize("fraction", [0.06, 0.3, 0.99])
def test_splits_of_the_batch_take_the_same_share_of_it(tmp_path, fraction, model_class, inner_iter):
    trained, logs = [], []
    for split in SPLITS:  # 48 samples: the last window of each epoch holds 16
        model = tiny_model() if model_class is None else tiny_model(model_class)
        trainer = amp_trainer(
            tmp_path,
            model,
            num_train_epochs=3,
            amp_epsilon=0.1,
            amp_inner_iter=inner_iter,
            amp_ascent_fraction=fraction,
            **split,
        )
        trainer.train()
        trained.append(parameters_of(model))
        logs.append([{name: entry[name] for name in ("loss", "erm_loss", "sharpness")} for entry in logs_of(trainer)])
    assert largest_difference(trained[0], trained[1]) <= 1e-12
    assert largest_difference(trained[0], trained[2]) <= 1e-12
    for own in logs[1:]:
        for entry, expected in zip(own, logs[0], strict=True):
            assert entry == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("scope", "fraction", "seen_sizes"),
    [
        ("batch", 0.06, [2, *[8] * 4]),
        ("batch", 0.25, [8, *[8] * 4]),
        ("batch", 0.3, [8, 2, *[8] * 4]),
        ("batch", 1.0, [8] * 8),
        ("micro_batch", 0.25, [2, 8] * 4),  # each micro-batch has its own Δ, from its own share
    ],
)
def test_an_ascent_on_a_share_of_accumulated_micro_batches_makes_the_fewest_passes(
    tmp_path, scope, fraction, seen_sizes
):
    seen = []

    class Look(AMPTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["labels"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    data = Points(count=32)
    share = {"amp_ascent_fraction": fraction, "amp_scope": scope}
    amp_trainer(tmp_path, cls=Look, data=data, gradient_accumulation_steps=4, **share).train()
    assert seen == seen_sizes


def perturbed_names(tmp_path, **overrides):
    """Names of the parameters that are not θ during the descent pass."""
    model = tiny_model(**overrides.pop("config", {}))
    theta = parameters_of(model)
    moved = set()

    class Look(AMPTrainer):
        def compute_loss(self, model, *args, **kwargs):
            moved.update(n for n, p in self.model.named_parameters() if not torch.equal(p.detach(), theta[n]))
            return super().compute_loss(model, *args, **kwargs)

    amp_trainer(tmp_path, model, Look, max_steps=1, **overrides).train()
    return moved


def test_only_target_parameters_are_perturbed(tmp_path):
    assert perturbed_names(tmp_path, amp_target_parameters=["^classifier", "first.bias"]) == {
        "classifier.weight",
        "classifier.bias",
        "first.bias",
    }
    assert len(perturbed_names(tmp_path)) == 6


def test_frozen_and_unused_parameters_stay(tmp_path):
    model = tiny_model(unused=True)
    model.first.requires_grad_(False)
    before = parameters_of(model)
    amp_trainer(tmp_path, model, weight_decay=0.0).train()
    after = parameters_of(model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"first.weight", "first.bias", "unused.weight", "unused.bias"}


@pytest.mark.parametrize("inner_iter", [1, 2])
def test_tied_weights_move_once(tmp_path, inner_iter):
    data = Points(count=8)
    model, expected = tiny_model(tied=True), tiny_model(tied=True)
    settings = {"epsilon": 0.1, "inner_lr": 1.0, "inner_iter": inner_iter, "norm": "tensor"}
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    reference_run(expected, data, optimizer, 8, torch.arange(8), **settings)
    amp_trainer(tmp_path, model, InOrder, data=data, amp_epsilon=0.1, amp_inner_iter=inner_iter).train()
    assert model.middle_again.weight is model.middle.weight
    assert largest_difference(parameters_of(model), parameters_of(expected)) <= 1e-14
    aliased = perturbed_names(tmp_path, config={"tied": True}, amp_target_parameters=["middle_again"])
    assert aliased == {"middle.weight", "middle.bias"}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize(("mode", "updates"), [("every_pass", None), ("clean", 1), ("descent", 1)])
def test_norm_stats_are_updated_in_the_passes_that_are_named(tmp_path, mode, updates, inner_iter, accumulation):
    model = tiny_model(batch_norm=True)
    amp_trainer(
        tmp_path,
        model,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        amp_norm_stats=mode,
        amp_inner_iter=inner_iter,
    ).train()
    per_micro_batch = inner_iter + 1 if updates is None else updates
    assert model.norm.num_batches_tracked.item() == 2 * accumulation * per_micro_batch


def test_clean_statistics_are_those_at_theta_and_descent_ones_those_at_theta_plus_delta(tmp_path):
    data = Points(count=8)

    def after_one_step(cls=AMPTrainer, **overrides):
        model = tiny_model(batch_norm=True)
        amp_trainer(tmp_path, model, cls, data=data, max_steps=1, **overrides).train()
        return model.norm.running_mean.clone()

    plain = after_one_step(Trainer)
    torch.testing.assert_close(after_one_step(amp_norm_stats="clean"), plain, rtol=0, atol=0)
    assert not torch.equal(after_one_step(amp_norm_stats="descent"), plain)
    modes = [after_one_step(amp_norm_stats=mode) for mode in ("every_pass", "clean", "descent")]
    assert not torch.equal(modes[0], modes[1])
    assert not torch.equal(modes[0], modes[2])


# --- 9. inputs ---


class Counting(Points):
    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_data_are_read_collated_and_prepared_once_per_batch(tmp_path, scope):
    collated, prepared = [], []

    def collate(rows):
        collated.append(len(rows))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    class Prepares(AMPTrainer):
        pass

    class Base(Trainer):
        def _prepare_inputs(self, inputs):
            prepared.append(1)
            return super()._prepare_inputs(inputs)

    class Mixed(AMPTrainerMixin, Base):
        pass

    Counting.reads = 0
    trainer = amp_trainer(
        tmp_path,
        cls=Mixed,
        data=Counting(),
        data_collator=collate,
        gradient_accumulation_steps=2,
        amp_inner_iter=2,
        amp_scope=scope,
    )
    trainer.train()
    assert (Counting.reads, len(collated), len(prepared)) == (48, 6, 6)
    assert trainer.model.passes == 18


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_label_smoothing_works_in_every_pass(tmp_path, scope):
    data = Points(count=16)
    seen = []

    class Look(InOrder):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(sorted(inputs))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = amp_trainer(
        tmp_path,
        cls=Look,
        data=data,
        label_smoothing_factor=0.1,
        amp_inner_iter=2,
        amp_scope=scope,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert seen == [["labels", "x"]] * 6


def test_number_of_items_is_the_same_in_every_pass(tmp_path):
    seen = []

    def loss_func(outputs, labels, num_items_in_batch=None):
        seen.append(int(num_items_in_batch))
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    model, split = tiny_model(), tiny_model()
    amp_trainer(tmp_path, model, per_device_train_batch_size=32, compute_loss_func=loss_func, amp_epsilon=0.1).train()
    assert seen == [32, 32, 16, 16]
    amp_trainer(tmp_path, split, gradient_accumulation_steps=4, compute_loss_func=loss_func, amp_epsilon=0.1).train()
    assert seen[4:] == [32] * 8 + [16] * 4
    assert largest_difference(parameters_of(model), parameters_of(split)) <= 1e-12


def test_a_step_called_by_hand_perturbs_its_own_inputs(tmp_path):
    trainer = amp_trainer(tmp_path, amp_epsilon=0.1)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    row = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    before = parameters_of(trainer.model)
    trainer.training_step(trainer.model, row)
    assert largest_difference(before, parameters_of(trainer.model)) == 0.0
    assert trainer.model.first.weight.grad.norm() > 0
    assert trainer.model.passes == 2


# --- the mixin ---


def test_total_flos_counts_every_pass(tmp_path):
    def flos(**overrides):
        class Costly(AMPTrainer):
            def floating_point_ops(self, inputs):
                return len(inputs["labels"])

        trainer = amp_trainer(tmp_path, cls=Costly, gradient_accumulation_steps=2, **overrides)
        trainer.train()
        return trainer.state.total_flos

    assert flos(amp_epsilon=0.0) == 48
    assert flos() == 96
    assert flos(amp_inner_iter=2) == 144
    assert flos(amp_ascent_fraction=0.25) == 60
    assert flos(amp_every=2) == 48 + 16
    assert flos(amp_scope="micro_batch", per_device_train_batch_size=3) == 96  # the last micro-batch is a smaller one


def test_running_statistics_of_the_whole_run_are_finite_and_used(tmp_path):
    model = tiny_model(batch_norm=True)
    amp_trainer(tmp_path, model).train()
    assert all(buffer.isfinite().all() for buffer in running_statistics(model))
