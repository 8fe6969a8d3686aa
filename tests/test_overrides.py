"""Subclasses of `AMPTrainer` that override what people override in a `Trainer`."""

import inspect

import pytest
import torch
from tiny import Points, TinyModel, amp_trainer, largest_difference, logs_of, parameters_of, tiny_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_amp import AMPTrainer, AMPTrainerMixin, AMPTrainingArguments
from hf_amp.batches import Samples

SPLITS = [
    {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    for size, steps in ((8, 1), (4, 2), (2, 4))
]


class Seen(TinyModel):
    def forward(self, x, labels=None):
        self.largest = [*getattr(self, "largest", []), x.abs().max().item()]
        return super().forward(x, labels)


def test_inputs_are_prepared_once_by_a_subclass_too(tmp_path):
    class Normalising(AMPTrainer):
        prepared = 0

        def _prepare_inputs(self, inputs):
            self.prepared += 1
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "x": inputs["x"].sign() / 10}

    model = tiny_model(Seen)
    trainer = amp_trainer(tmp_path, model, Normalising, amp_inner_iter=2, eval_dataset=Points(8))
    trainer.train()
    assert trainer.prepared == 6
    trainer.evaluate()
    assert set(model.largest) == {0.1}
    assert "_prepare_inputs" not in vars(trainer)


def test_other_data_is_prepared_inside_a_loss(tmp_path):
    other = {"x": torch.ones(4, 6, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0])}

    class Second(AMPTrainer):
        moved = 0

        def _prepare_input(self, data):
            self.moved += data is other["x"]
            return super()._prepare_input(data)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"] + model(**self._prepare_inputs(other))["loss"]

    trainer = amp_trainer(tmp_path, tiny_model(), Second, max_steps=2)
    trainer.train()
    assert trainer.moved == 4


class Renaming(AMPTrainer):
    """Hands over new dictionaries of the very same tensors."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, dict(inputs), num_items_in_batch)


class Rewriting(AMPTrainer):
    """Changes the dictionaries themselves when they are fetched."""

    def get_batch_samples(self, *args, **kwargs):
        micro_batches, count = super().get_batch_samples(*args, **kwargs)
        for one in micro_batches:
            one["x"] = one["x"] * 1.0
        return micro_batches, count


class Replacing(AMPTrainer):
    """Puts new tensors into the very same dictionaries."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs["x"] = inputs["x"] * 1.0
        return super().training_step(model, inputs, num_items_in_batch)


class Multiplying(AMPTrainer):
    """Changes the very same tensors."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs["x"].mul_(1.0)
        return super().training_step(model, inputs, num_items_in_batch)


class Augmenting(AMPTrainer):
    """Hands over new tensors."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, {**inputs, "x": inputs["x"] * 1.0}, num_items_in_batch)


class Refetching(AMPTrainer):
    """Hands over micro-batches that it changed when they were fetched."""

    def get_batch_samples(self, *args, **kwargs):
        micro_batches, count = super().get_batch_samples(*args, **kwargs)
        return [{**one, "x": one["x"] * 1.0} for one in micro_batches], count


class Fetching(AMPTrainer):
    """Never asks the mixin for its micro-batches."""

    def get_batch_samples(self, *args, **kwargs):
        return Trainer.get_batch_samples(self, *args, **kwargs)


def first_log(tmp_path, cls, **settings):
    # No ball holds so small a rate: Δ = ζ g has the scale of the gradient.
    trainer = amp_trainer(tmp_path, tiny_model(), cls, amp_epsilon=100.0, amp_inner_lr=0.1, max_steps=1, **settings)
    trainer.train()
    return logs_of(trainer)[0], parameters_of(trainer.model)


@pytest.mark.parametrize("cls", [Renaming, Rewriting])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_new_dictionaries_of_the_same_tensors_share_the_delta_of_their_batch(tmp_path, caplog, cls, split):
    plain, weights = first_log(tmp_path, AMPTrainer, **split)
    own, own_weights = first_log(tmp_path, cls, **split)
    assert own["perturbation_norm"] == plain["perturbation_norm"]
    assert largest_difference(weights, own_weights) == 0.0
    assert "by itself" not in caplog.text


@pytest.mark.parametrize("cls", [Augmenting, Replacing, Multiplying, Refetching, Fetching])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_other_inputs_are_perturbed_by_themselves_at_the_right_scale_and_that_is_said(tmp_path, caplog, cls, split):
    accumulates = split["gradient_accumulation_steps"] > 1
    own, weights = first_log(tmp_path, cls, **split)
    assert caplog.text.count(f"{cls.__name__} hands over other inputs") == accumulates
    expected, expected_weights = first_log(tmp_path, AMPTrainer, amp_scope="micro_batch", **split)
    for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
        assert own[name] == pytest.approx(expected[name], rel=1e-12)
    assert largest_difference(weights, expected_weights) <= 1e-12


class FastGradient:
    """Trains each micro-batch twice: as it is, and with a layer moved against its gradient."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        weight = model.first.weight
        before = weight.data.clone()
        weight.data.add_(weight.grad.sign(), alpha=0.1)
        super().training_step(model, inputs, num_items_in_batch)
        weight.data.copy_(before)
        return loss


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
def test_a_pass_at_weights_that_were_changed_for_it_is_one_there(tmp_path, scope):
    weights = []
    for cls, arguments, own in (
        (type("Plain", (FastGradient, Trainer), {}), TrainingArguments, {}),
        (type("Perturbed", (FastGradient, AMPTrainer), {}), AMPTrainingArguments, {"amp_scope": scope}),
    ):
        own |= {"amp_epsilon": 1e-12} if own else {}
        trainer = amp_trainer(tmp_path, tiny_model(), cls, arguments, gradient_accumulation_steps=2, **own)
        trainer.train()
        weights.append(parameters_of(trainer.model))
    assert largest_difference(*weights) <= 1e-10


def test_a_step_that_never_calls_super_is_said_to_perturb_nothing(tmp_path, caplog):
    class Own(AMPTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = amp_trainer(tmp_path, tiny_model(), Own)
    trainer.train()
    assert caplog.text.count("Own.training_step does not call super().training_step(), so no step is perturbed") == 1
    assert "sharpness" not in logs_of(trainer)[-1]
    caplog.clear()
    amp_trainer(tmp_path, tiny_model(), Renaming).train()
    assert "does not call" not in caplog.text


def test_a_loss_of_ones_own_knows_which_pass_is_running(tmp_path):
    passes = []

    class Counting(AMPTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            passes.append(self.amp_pass)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer = amp_trainer(tmp_path, tiny_model(), Counting, max_steps=2, amp_every=2, amp_inner_iter=2)
    trainer.train()
    assert passes == [None, "ascent", "ascent", "descent"]
    trainer.evaluate(Points(8))
    assert passes[4:] == [None]
    assert trainer.amp_pass is None


class WithState(TinyModel):
    """Has what some models move in a forward pass: a queue, an average of their weights."""

    moves = None  # (self) ->

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = nn.Parameter(self.first.weight.detach().clone(), requires_grad=False)
        self.register_buffer("queue", torch.full((4,), torch.nan))
        self.register_buffer("cache", torch.zeros(()), persistent=False)
        self.own_norm = nn.BatchNorm1d(2)

    def forward(self, x, labels=None):
        self.own_norm(x[:, :2])
        if self.training:
            type(self).moves(self)
        return super().forward(x, labels)


def nothing_moves(model):
    model.cache += 1


def the_queue_moves(model):
    model.queue = model.queue.roll(1)
    model.queue[0] = 1.0


def the_queue_moves_in_the_descent(model):
    if model.trainer.amp_pass != "ascent":
        the_queue_moves(model)


def the_teacher_follows(model):
    model.teacher.data.mul_(0.999).add_(0.001 * model.first.weight.detach())


def the_teacher_is_replaced(model):
    model.teacher.data = 0.999 * model.teacher.data + 0.001 * model.first.weight.detach()


@pytest.mark.parametrize(
    ("moves", "name"),
    [
        (nothing_moves, None),
        (the_queue_moves, "queue"),
        (the_queue_moves_in_the_descent, None),
        (the_teacher_follows, "teacher"),
        (the_teacher_is_replaced, "teacher"),
    ],
)
def test_it_is_said_once_that_state_of_the_models_own_moves_in_the_ascent(tmp_path, caplog, monkeypatch, moves, name):
    monkeypatch.setattr(WithState, "moves", moves)
    model = tiny_model(WithState)
    trainer = amp_trainer(tmp_path, model, amp_epsilon=0.1)
    object.__setattr__(model, "trainer", trainer)
    trainer.train()
    assert caplog.text.count("A pass moves state") == (name is not None)
    assert name is None or f"state of the model's own ({name})" in caplog.text


@pytest.mark.parametrize("scaled", [True, False])
def test_a_loss_that_scales_itself_is_believed(tmp_path, scaled):
    """`loss_is_scaled_for_ga` says whether `compute_loss` has divided by the accumulation already."""

    class Scaling(AMPTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return loss / self.current_gradient_accumulation_steps if scaled else loss

    class Declared(Scaling):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_is_scaled_for_ga = scaled

    if "loss_is_scaled_for_ga" not in inspect.getsource(Trainer.training_step):
        Declared = AMPTrainer
    for scope in ("batch", "micro_batch"):
        settings = {"amp_scope": scope, **SPLITS[1]}
        own, weights = first_log(tmp_path, Declared, **settings)
        plain, expected = first_log(tmp_path, AMPTrainer, **settings)
        assert largest_difference(weights, expected) <= 1e-12
        for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
            assert own[name] == pytest.approx(plain[name], rel=1e-12)


# --- losses with parameters of their own ---


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits * self.scale, labels)


@pytest.mark.parametrize("settings", [{}, {"amp_inner_iter": 2}, SPLITS[1], {**SPLITS[1], "amp_scope": "micro_batch"}])
def test_a_parameter_that_only_the_optimizer_has_gets_the_gradient_of_the_descent(tmp_path, settings):
    def gradient(**own):
        model, head = tiny_model(), Head()
        seen = []

        class WithHead(AMPTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                seen.append(head.scale.item())
                return head(model(inputs["x"]).logits, inputs["labels"])

        class Look(torch.optim.SGD):
            def step(self, closure=None):
                found.append(head.scale.grad.item())

        found = []
        optimizer = Look([*model.parameters(), head.scale], lr=0.1)
        amp_trainer(tmp_path, model, WithHead, optimizers=(optimizer, None), max_steps=1, **own).train()
        assert set(seen) == {0.5}  # and it is not perturbed
        return found

    assert gradient(amp_epsilon=1e-9, **settings) == pytest.approx(gradient(amp_epsilon=0.0, **SPLITS[0]), abs=1e-8)


# --- the share of the batch ---


def test_a_trainer_says_how_its_batch_is_cut(tmp_path):
    class Pairs(AMPTrainer):
        """Rows i and i + pairs belong together."""

        def samples_of(self, inputs):
            pairs = len(inputs["x"]) // 2

            def take(count):
                rows = [*range(count), *range(pairs, pairs + count)]
                return {name: value[rows] for name, value in inputs.items()}

            return Samples(pairs, take)

    seen = []

    class Rows(TinyModel):
        def forward(self, x, labels=None):
            seen.append(x)
            return super().forward(x, labels)

    amp_trainer(tmp_path, tiny_model(Rows), Pairs, amp_ascent_fraction=0.5, max_steps=1).train()
    ascent, descent = seen
    assert torch.equal(ascent, descent[[0, 1, 4, 5]])


def test_batch_norm_sees_at_least_two_samples(tmp_path):
    sizes = []

    class Sizes(TinyModel):
        def forward(self, x, labels=None):
            sizes.append(len(x))
            return super().forward(x, labels)

    for norm in (True, False):
        amp_trainer(tmp_path, tiny_model(Sizes, batch_norm=norm), amp_ascent_fraction=0.01, max_steps=1).train()
    assert sizes == [2, 8, 1, 8]


def test_a_batch_that_cannot_be_cut_is_said_once_and_used_whole(tmp_path, caplog):
    class Packed(TinyModel):
        def forward(self, x, labels=None, cu_seq_lens_q=None):
            return super().forward(x, labels)

    def collate(rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "cu_seq_lens_q": torch.tensor([0, 3, 8])}

    model = tiny_model(Packed)
    trainer = amp_trainer(tmp_path, model, data_collator=collate, amp_ascent_fraction=0.25, remove_unused_columns=False)
    trainer.train()
    assert caplog.text.count("`amp_ascent_fraction`=0.25 has no effect on this batch") == 1
    assert logs_of(trainer)[0]["sharpness"] > 0


# --- the class itself ---


def test_editors_complete_the_arguments_of_trainer():
    names = list(inspect.signature(Trainer).parameters)
    assert list(inspect.signature(AMPTrainer).parameters) == names
    assert list(inspect.signature(AMPTrainer.train).parameters) == list(inspect.signature(Trainer.train).parameters)


def test_the_mixin_before_something_that_is_no_trainer_says_what_it_needs():
    class NoTrainer:
        pass

    with pytest.raises(TypeError, match=r"Mixed is no transformers\.Trainer.*class Mixed\(AMPTrainerMixin, Trainer\)"):
        type("Mixed", (AMPTrainerMixin, NoTrainer), {})()


def test_a_loss_logged_before_any_training_is_logged_as_trainer_logs_it(tmp_path):
    trainer = amp_trainer(tmp_path)
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["loss"] == 1.0


def test_settings_changed_while_training_count_from_the_next_step(tmp_path):
    class Raise(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.amp_epsilon = 0.05 * state.global_step

    trainer = amp_trainer(tmp_path, callbacks=[Raise()], amp_epsilon=0.05, amp_norm="global", amp_inner_lr=1e6)
    trainer.train()
    norms = [entry["perturbation_norm"] for entry in logs_of(trainer)]
    assert norms == pytest.approx([0.05, 0.05, 0.10, 0.15, 0.20, 0.25])


def test_what_cannot_be_trained_is_refused_when_it_is_switched_on_while_training(tmp_path):
    class SwitchOn(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.amp_epsilon = 0.1 if state.global_step == 2 else 0.0

    model = tiny_model()
    model.first.weight.register_post_accumulate_grad_hook(lambda param: None)
    trainer = amp_trainer(tmp_path, model, callbacks=[SwitchOn()], amp_epsilon=0.0)
    with pytest.raises(NotImplementedError, match="a hook on the gradient"):
        trainer.train()
    assert trainer.state.global_step == 2
