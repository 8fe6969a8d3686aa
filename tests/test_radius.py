"""The radius that nobody has to choose: what it is after each evaluation, and that steps without one are plain."""

import json
import math

import numpy as np
import pytest
import torch
from test_trainer import assert_identical
from tiny import (
    FEATURES,
    ModelThatIgnores,
    Points,
    TinyModel,
    amp_trainer,
    largest_difference,
    logs_of,
    parameters_of,
    tiny_model,
)
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainerCallback, TrainingArguments

from hf_amp import AMPTrainer, AMPTrainingArguments
from hf_amp.radius import RadiusCallback
from hf_amp.radius_rule import FIRST, is_steep, limit_for, radius_for, share_for

# Random labels of 24 points: they can only be learnt by heart.
OVERFITS = {
    "num_train_epochs": 12,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "learning_rate": 0.03,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "amp_epsilon": None,
}


def overfitting_trainer(output_dir, cls=AMPTrainer, arguments=AMPTrainingArguments, **options):
    options = {"data": Points(24), "eval_dataset": Points(24, seed=1)} | OVERFITS | options
    if arguments is TrainingArguments:
        options = {name: value for name, value in options.items() if not name.startswith("amp_")}
    model = options.pop("model", None) or tiny_model(width=32)
    return amp_trainer(output_dir, model, cls, arguments, **options)


def radii(trainer):
    """The radius of each epoch, as it was logged at the epoch's end."""
    return [entry["amp_epsilon"] for entry in logs_of(trainer)]


@pytest.mark.parametrize(
    ("training", "held_out", "start", "radius"),
    [
        (1.0, [0.9], 2.0, 0.0),
        (1.0, [1.2], 2.0, 0.0),
        (1.0, [1.4], 2.0, 0.25),
        (1.0, [1.6], 2.0, 0.5),
        (1.0, [9.0, 1.4, 9.0], 2.0, 0.25),  # one that came out badly
        (0.1, [9.0], 2.0, 0.5),
        (0.1, [0.21], 2.0, 0.1),  # solved
        (0.1, [0.19], 2.0, 0.0),
        (0.1, [9.0, 0.19, 9.0], 2.0, 0.0),
        (0.1, [0.31], 2.0, 0.1),  # a gap that would give 0.0125
        (0.19, [0.49], 2.0, 0.125),
        (0.21, [0.5], 2.0, 0.1125),  # not solved
        (0.21, [0.43], 2.0, 0.025),
        (-1.0, [-0.9], 2.0, 0.0),  # below 0 there is no end of it
        (-1.0, [-1.5], 2.0, 0.0),
        (-1.0, [-0.6], 2.0, 0.25),
        (100.0, [140.0], 200.0, 0.25),
        (0.0, [1.0], 0.0, 0.0),
        (1.0, [1.6], -2.0, 0.0),
    ],
)
def test_the_radius_grows_with_the_gap_in_units_of_the_loss_at_the_start(training, held_out, start, radius):
    assert radius_for(training, held_out, start) == pytest.approx(radius, abs=1e-12)


@pytest.mark.parametrize(
    ("learnt", "share", "tried", "slope", "steep", "gets_worse", "limit"),
    [
        (1.0, 0.4, 0.0, 0.0, False, False, 0.03),  # nothing is known yet
        (1.0, 0.4, 0.03, 2.0, False, False, 0.2),
        (1.0, 0.4, 0.03, 20.0, False, True, 0.02),
        (1.0, 0.4, 0.03, 0.0, False, False, 0.3),  # ten times as much as was tried, at most
        (-0.1, 0.4, 0.03, 2.0, False, False, 0.0),
        (1.0, 0.4, 0.03, 6.0, True, False, 0.0),
        (1.0, 0.4, 0.03, 6.0, True, True, 0.005),
        (1.0, 0.01, 0.03, 2.0, True, True, 0.005),
    ],
)
def test_the_radius_is_limited_by_what_it_takes_back(learnt, share, tried, slope, steep, gets_worse, limit):
    assert limit_for(learnt, share, tried, slope, steep, gets_worse) == pytest.approx(limit)


def test_a_network_is_steep_where_a_fifth_raises_the_loss_by_that_at_the_start():
    assert is_steep(10.1, 2.0)
    assert not is_steep(9.9, 2.0)
    assert not is_steep(0.0, 0.0)


@pytest.mark.parametrize(
    ("share", "training_losses", "held_out_losses", "next_share"),
    [
        (0.1, (2.0, 1.0), [3.0], 0.1),  # the first evaluation tells nothing
        (0.4, (2.0, 1.0), [3.0, 2.9], 0.2),  # a new lowest loss
        (0.4, (2.0, 2.1), [3.0, 2.9], 0.2),
        (0.2, (2.0, 1.0), [3.0, 2.8, 2.9], 0.6),  # learnt by heart
        (0.6, (2.0, 2.1), [2.8, 3.0, 2.9], 0.2),  # undone
        (0.12, (2.0, 1.0), [3.0, 2.9], 0.1),
        (0.9, (2.0, 1.0), [3.0, 3.0], 1.0),
    ],
)
def test_the_share_grows_while_more_is_learnt_by_heart(share, training_losses, held_out_losses, next_share):
    assert share_for(share, training_losses, held_out_losses) == pytest.approx(next_share)


@pytest.mark.parametrize("steep", [5.0, 0.3])  # the network is not steep, or is called so at once
def test_each_evaluation_sets_the_radius_of_the_steps_that_follow(tmp_path, monkeypatch, steep):
    monkeypatch.setattr("hf_amp.radius_rule.STEEP", steep)
    trainer = overfitting_trainer(tmp_path, logging_steps=1, logging_strategy="steps")
    trainer.train()
    losses, held_out, expected, start, rises, tried, slope, steepest = [], [], [0.0], [], [], 0.0, 0.0, 0.0
    share, before = 0.1, 0.0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            losses.append(entry.get("erm_loss", entry["loss"]))
            rises.append(entry.get("sharpness", 0.0))
            start = [*start, losses[-1]][:4]
            assert entry["amp_epsilon"] == pytest.approx(expected[-1], abs=1e-6)
        elif "eval_loss" in entry:
            mean, losses = sum(losses) / len(losses), []
            held_out.append(entry["eval_loss"])
            began = sum(start) / len(start)
            if expected[-1]:
                tried, slope = expected[-1], sum(rises) / len(rises) / expected[-1]
                steepest = max(steepest, slope)
            rises = []
            share, before = share_for(share, (before, mean), held_out[-4:]), mean
            gets_worse = min(held_out[-3:]) > min(held_out)
            is_one = steepest > steep * began
            limit = limit_for(began - mean, share, tried, steepest if is_one else slope, is_one, gets_worse)
            expected.append(min(radius_for(mean, held_out[-3:], began), limit))
    assert expected[1] == 0.0
    assert any(0.0 < radius < 0.5 for radius in expected)
    assert (max(expected) > 0.1) == (steep == 5.0)
    assert steepest / began > 0.3
    assert trainer.amp_epsilon == pytest.approx(expected[-1], abs=1e-6)


@pytest.mark.parametrize("steep", [5.0, 0.3])
def test_a_steep_network_is_perturbed_in_four_steps_alone_before_its_held_out_loss_gets_worse(
    tmp_path, monkeypatch, steep
):
    monkeypatch.setattr("hf_amp.radius_rule.STEEP", steep)
    trainer = overfitting_trainer(tmp_path, data=Points(48), logging_steps=1, logging_strategy="steps")
    trainer.train()
    of_epochs = [[] for _ in range(12)]
    for entry in trainer.state.log_history:
        if "loss" in entry:
            of_epochs[math.ceil(entry["epoch"]) - 1].append(entry["amp_epsilon"])
    held_out = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    first = next(i for i, epsilons in enumerate(of_epochs) if epsilons[0])
    assert 0 < of_epochs[first][0] <= FIRST
    assert of_epochs[first] == [of_epochs[first][0]] * (6 if steep == 5.0 else 4) + [0.0] * (0 if steep == 5.0 else 2)
    for epoch in range(first + 1, 12):
        gets_worse = min(held_out[max(0, epoch - 3) : epoch]) > min(held_out[:epoch])
        assert len(set(of_epochs[epoch])) == 1
        assert (of_epochs[epoch][0] > 0) == (steep == 5.0 or gets_worse)


def test_a_training_resumed_between_the_four_first_steps_stops_perturbing_after_them(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_amp.radius_rule.STEEP", 0.3)
    options = {"data": Points(48), "logging_steps": 1, "logging_strategy": "steps", "save_steps": 1}
    whole = overfitting_trainer(tmp_path, **options, save_strategy="steps")
    whole.train()
    first = next(i for i, epsilon in enumerate(radii(whole)) if epsilon)  # of a step, from 0
    resumed = overfitting_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{first + 2}"))
    assert [epsilon > 0 for epsilon in radii(resumed)[first : first + 6]] == [True] * 4 + [False] * 2
    assert radii(resumed) == radii(whole)
    assert_identical(parameters_of(resumed.model), parameters_of(whole.model))


class SetByHand(TrainerCallback):
    """Sets the radius of each epoch in the training arguments."""

    def __init__(self, values):
        self.values = values

    def on_epoch_begin(self, args, state, control, **kwargs):
        args.amp_epsilon = self.values[round(state.epoch)]


def test_the_training_is_that_with_the_same_radii_set_by_hand(tmp_path):
    trainer = overfitting_trainer(tmp_path)
    trainer.train()
    by_hand = overfitting_trainer(tmp_path, callbacks=[SetByHand(radii(trainer))], amp_epsilon=0.0)
    by_hand.train()
    assert max(radii(trainer)) > 0.1
    assert_identical(parameters_of(trainer.model), parameters_of(by_hand.model))


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"amp_scope": "micro_batch"}], ids=str)
def test_without_overfitting_the_training_is_that_of_trainer_bit_for_bit(tmp_path, options):
    trainers = []
    for cls in (Trainer, AMPTrainer):
        model = tiny_model(batch_norm=True, dropout=0.2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = {"data": Points(48), "eval_dataset": Points(48)}  # held out, and yet the same
        arguments = AMPTrainingArguments if cls is AMPTrainer else TrainingArguments
        own = {"model": model, "optimizers": (optimizer, None), **data, **options}
        trainer = overfitting_trainer(tmp_path, cls, arguments, **own)
        trainer.train()
        trainers.append(trainer)
    plain, amp = trainers
    assert radii(amp) == [0.0] * 12
    assert not logs_of(amp, "sharpness")
    assert amp.model.passes == plain.model.passes
    assert_identical(amp.model.state_dict(), plain.model.state_dict())
    assert_identical(amp.optimizer.state_dict(), plain.optimizer.state_dict())
    for key in ("loss", "eval_loss", "grad_norm"):
        assert [entry[key] for entry in logs_of(amp, key)] == [entry[key] for entry in logs_of(plain, key)]


def test_what_is_switched_off_logs_what_trainer_logs(tmp_path):
    plain, off = overfitting_trainer(tmp_path, Trainer, TrainingArguments), overfitting_trainer(tmp_path, amp_end=0.0)
    plain.train()
    off.train()
    assert [sorted(entry) for entry in off.state.log_history] == [sorted(entry) for entry in plain.state.log_history]
    assert_identical(parameters_of(off.model), parameters_of(plain.model))


def test_plain_training_arguments_follow_overfitting(tmp_path):
    plain, own = overfitting_trainer(tmp_path, arguments=TrainingArguments), overfitting_trainer(tmp_path)
    plain.train()
    own.train()
    assert max(radii(plain)) > 0.1
    assert_identical(parameters_of(plain.model), parameters_of(own.model))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("checkpoint", [2, 7, 12, 16, 23])  # between evaluations, and at one
def test_a_resumed_training_has_the_radii_of_one_that_was_not_stopped(tmp_path, checkpoint, accumulation):
    batch = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 4, **batch}
    options |= {"num_train_epochs": 8, "logging_strategy": "steps", "logging_steps": 1}
    whole = overfitting_trainer(tmp_path, **options)
    whole.train()
    resumed = overfitting_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert max(radii(whole)) > 0.1
    assert radii(resumed) == radii(whole)
    assert_identical(resumed.model.state_dict(), whole.model.state_dict())


def test_a_resumed_training_knows_how_steep_the_network_was(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_amp.radius_rule.STEEP", 1.5)  # as it is before the checkpoint, and not after it
    whole = overfitting_trainer(tmp_path, save_strategy="epoch")
    whole.train()
    resumed = overfitting_trainer(tmp_path / "again", save_strategy="epoch")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    assert max(radii(whole)[:8]) > 0.1
    assert 0 < max(radii(whole)[8:]) < 0.03
    assert radii(resumed) == radii(whole)


def test_callbacks_that_are_restored_from_a_checkpoint_go_on(tmp_path):
    options = {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}
    whole = overfitting_trainer(tmp_path, **options)
    whole.train()
    resumed = overfitting_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-21"))
    assert radii(resumed) == radii(whole)
    assert sum(isinstance(one, RadiusCallback) for one in resumed.callback_handler.callbacks) == 1


@pytest.mark.parametrize(
    "before", [(Trainer, TrainingArguments, None), (AMPTrainer, AMPTrainingArguments, 0.0), (AMPTrainer, None, 0.01)]
)
def test_a_checkpoint_without_a_radius_goes_on_with_one_and_saves_it(tmp_path, before):
    cls, arguments, epsilon = before
    plain = overfitting_trainer(
        tmp_path, cls, arguments or AMPTrainingArguments, save_strategy="epoch", amp_epsilon=epsilon
    )
    plain.train()
    resumed = overfitting_trainer(tmp_path / "again", save_strategy="epoch")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))
    saved = json.loads((tmp_path / "again" / "checkpoint-36" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["RadiusCallback"]["attributes"]["largest"] > 0
    first, ninth = logs_of(plain)[0], logs_of(resumed)[8]["loss"]
    first = first.get("erm_loss", first["loss"])
    evaluated = logs_of(resumed, "eval_loss")[8]["eval_loss"]
    wanted = min(FIRST, radius_for(ninth, [evaluated], first))
    assert logs_of(resumed)[9]["amp_epsilon"] == pytest.approx(wanted) != 0


def test_another_training_begins_without_a_radius(tmp_path):
    trainer = overfitting_trainer(tmp_path)
    trainer.train()
    assert trainer.amp_epsilon > 0.1
    trainer.model.load_state_dict(tiny_model(width=32).state_dict())
    trainer.train()
    assert radii(trainer)[0] == 0.0
    assert "sharpness" not in logs_of(trainer)[0]
    assert max(radii(trainer)) > 0.1


def test_accumulated_batches_have_the_radii_of_whole_ones(tmp_path):
    whole, split = (
        overfitting_trainer(tmp_path),
        overfitting_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4),
    )
    whole.train()
    split.train()
    assert max(radii(whole)) > 0.1
    assert radii(split) == pytest.approx(radii(whole), abs=1e-6)  # losses in float32
    assert largest_difference(parameters_of(split.model), parameters_of(whole.model)) < 1e-5


def test_share_and_period_of_steps_hold_for_a_radius_that_follows(tmp_path):
    trainer = overfitting_trainer(tmp_path, amp_end=0.5, amp_every=2, logging_steps=1, logging_strategy="steps")
    trainer.train()
    perturbed = [entry["step"] for entry in logs_of(trainer, "sharpness")]
    assert perturbed
    assert all(step <= 18 and step % 2 == 0 for step in perturbed)
    assert max(radii(trainer)[18:]) > 0.1


def test_nothing_is_read_on_the_host_in_a_step(tmp_path, monkeypatch):
    reads = []

    class Step(AMPTrainer):
        def training_step(self, *args, **kwargs):
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "is_cpu", False)  # so that the step goes as on a GPU
                for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                    original = getattr(torch.Tensor, name)
                    patch.setattr(
                        torch.Tensor, name, lambda *a, _n=name, _o=original, **k: reads.append(_n) or _o(*a, **k)
                    )
                return super().training_step(*args, **kwargs)

    trainer = overfitting_trainer(tmp_path, Step)
    trainer.train()
    assert max(radii(trainer)) > 0.1
    assert reads == []


def test_evaluations_of_other_data_have_no_part(tmp_path):
    class Evaluates(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.trainer.evaluate(Points(24), metric_key_prefix="train")

    callback = Evaluates()
    disturbed = overfitting_trainer(tmp_path, callbacks=[callback])
    callback.trainer = disturbed
    undisturbed = overfitting_trainer(tmp_path)
    disturbed.train()
    undisturbed.train()
    assert radii(disturbed) == radii(undisturbed)


def test_of_several_data_sets_the_first_is_followed(tmp_path):
    alone = overfitting_trainer(tmp_path)
    several = overfitting_trainer(tmp_path, eval_dataset={"held": Points(24, seed=1), "other": Points(24)})
    alone.train()
    several.train()
    assert radii(several) == radii(alone)


def test_a_trainer_can_choose_what_is_followed(tmp_path):
    class Chooses(AMPTrainer):
        def held_out_loss(self, metrics):
            return np.float64(metrics["eval_other_loss"]) if "eval_other_loss" in metrics else None

    data = {"held": Points(24), "other": Points(24, seed=1)}
    chosen = overfitting_trainer(tmp_path, Chooses, eval_dataset=data, save_strategy="epoch")
    alone = overfitting_trainer(tmp_path)
    chosen.train()
    alone.train()
    assert radii(chosen) == radii(alone)


def test_a_held_out_loss_that_is_not_finite_changes_nothing(tmp_path):
    class Breaks(AMPTrainer):
        def held_out_loss(self, metrics):
            return math.nan if self.state.epoch >= 6 else super().held_out_loss(metrics)

    trainer = overfitting_trainer(tmp_path, Breaks)
    trainer.train()
    assert radii(trainer)[6:] == [radii(trainer)[5]] * 6
    assert radii(trainer)[5] > 0


def test_a_loss_that_grows_with_the_micro_batches_does_not_hide_the_gap(tmp_path, caplog):
    found = []
    said = []
    for cls, loss in ((TinyModel, None), (ModelThatIgnores, None), (TinyModel, mean_loss)):
        caplog.clear()
        options = {"model": tiny_model(cls, width=32), "gradient_accumulation_steps": 3, "compute_loss_func": loss}
        trainer = overfitting_trainer(tmp_path, **options)
        with caplog.at_level("WARNING"):
            trainer.train()
        found.append(radii(trainer))
        said.append([name for name in ("ModelThatIgnores", "mean_loss") if f"{name} takes `num_items" in caplog.text])
    assert said == [[], ["ModelThatIgnores"], ["mean_loss"]]
    first = next(epoch for epoch, radius in enumerate(found[0]) if radius > 0)
    for others in found[1:]:
        assert others[: first + 1] == pytest.approx(found[0][: first + 1], abs=1e-3)  # plain steps until there


def mean_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels)


@pytest.mark.parametrize("options", [{}, {"amp_scope": "micro_batch"}, {"amp_ascent_fraction": 0.5}], ids=str)
def test_nor_does_it_in_perturbed_steps(tmp_path, monkeypatch, options):
    """The losses of the first step, at a given radius, beside those of a model whose losses are right."""
    monkeypatch.setattr(AMPTrainer, "amp_epsilon", 0.05)
    found = []
    for model in (tiny_model(width=32), tiny_model(ModelThatIgnores, width=32)):
        noted = []
        monkeypatch.setattr(RadiusCallback, "add", lambda self, *losses, _n=noted: _n.append(losses))
        split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
        overfitting_trainer(tmp_path, model=model, amp_inner_lr=1e6, **split, **options).train()
        found.append([sum(float(losses[i]) for losses in noted) for i in (0, 2)])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[0][1] > 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_strategy": "no"}, True),
        ({"num_train_epochs": 1}, True),
        ({"eval_delay": 12}, True),
        ({"eval_strategy": "steps", "eval_steps": 36}, True),
        ({"eval_strategy": "steps", "eval_steps": 35}, False),
        ({}, False),
        ({"eval_strategy": "no", "amp_epsilon": 0.1}, False),
        ({"eval_strategy": "no", "amp_epsilon": 0.0}, False),
        ({"eval_strategy": "no", "amp_inner_iter": 0}, False),
    ],
    ids=str,
)
def test_it_is_said_that_nothing_is_evaluated(tmp_path, caplog, options, said):
    trainer = overfitting_trainer(tmp_path, **options)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert caplog.text.count("`amp_epsilon` is not set") == said
    if said:
        assert "eval_strategy='" in caplog.text
        assert not logs_of(trainer, "sharpness")


def test_a_search_whose_trials_set_the_radius_is_told_nothing(tmp_path, caplog):
    given = {"model_init": lambda: tiny_model(width=32), "data": Points(24), "eval_dataset": Points(24, seed=1)}
    trainer = amp_trainer(tmp_path, **OVERFITS | given | {"eval_strategy": "no", "num_train_epochs": 1})
    with caplog.at_level("WARNING"):
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"amp_epsilon": trial.suggest_categorical("amp_epsilon", [0.125])},
            backend="optuna",
            n_trials=2,
            direction="minimize",
            compute_objective=lambda metrics: metrics["eval_loss"],
        )
    assert trainer.amp_epsilon == 0.125
    assert "`amp_epsilon` is not set" not in caplog.text


def test_batches_that_are_no_mapping_train_without_a_radius_too(tmp_path):
    class Pairs(AMPTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(*inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def collate(points):
        return [torch.stack([point[name] for point in points]) for name in ("x", "labels")]

    pairs = overfitting_trainer(tmp_path, Pairs, data_collator=collate)
    mappings = overfitting_trainer(tmp_path)
    for trainer in (pairs, mappings):
        trainer.train()
    assert radii(pairs) == radii(mappings)
    assert max(radii(pairs)) > 0.02


class NoLabels(Points):
    def __getitem__(self, index):
        return {"x": self.x[index]}


class TellsNobody(AMPTrainer):
    def evaluate(self, *args, **kwargs):
        return {"eval_loss": 9.0}


class TellsNothing(AMPTrainer):
    def evaluate(self, *args, **kwargs):
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, None)
        return {}


class TellsScores(AMPTrainer):
    def evaluate(self, *args, **kwargs):
        metrics = {"eval_f1": 0.5}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class ChoosesNone(AMPTrainer):
    def held_out_loss(self, metrics):
        return None


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (AMPTrainer, {"eval_dataset": NoLabels(24)}, 1),
        (AMPTrainer, {"eval_dataset": {"without": NoLabels(24), "with": Points(24)}}, 1),
        (TellsNobody, {}, 1),
        (TellsNothing, {}, 1),
        (TellsScores, {"eval_strategy": "steps", "eval_steps": 5}, 1),
        (ChoosesNone, {}, 0),
        (TellsNobody, {"amp_epsilon": 0.0}, 0),
    ],
)
def test_it_is_said_once_that_evaluations_give_no_loss(tmp_path, caplog, cls, options, said):
    trainer = overfitting_trainer(tmp_path, cls, **options)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert caplog.text.count("an evaluation gave none (`eval_loss`") == said
    assert not logs_of(trainer, "sharpness")


class Regresses(nn.Module):
    """A squared error, or the loss of two classes for each of its outputs."""

    def __init__(self, outputs=1, problem_type=None):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, outputs)).double()
        if problem_type is not None:
            self.config = PretrainedConfig(problem_type=problem_type)

    def forward(self, x, labels):
        logits = self.layer(x)
        if logits.shape[1] == 1:
            return {"loss": (logits[:, 0] - labels.reshape(-1)).pow(2).mean(), "logits": logits}
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


def regression(output_dir, shape=(), problem_type=None, scale=1.0, one=None, **options):
    sets = [Points(24), Points(24, seed=1)]
    for points in sets:
        points.labels = scale * (points.labels.double().reshape(-1, *(1 for _ in shape)).expand(-1, *shape) % 2)
    if one is not None:
        sets[0].labels[5] = one
    model = Regresses(shape[0] if shape else 1, problem_type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    own = {"model": model, "optimizers": (optimizer, None), "data": sets[0], "eval_dataset": sets[1]}
    return overfitting_trainer(output_dir, **own, num_train_epochs=30, **options)


@pytest.mark.parametrize(
    ("options", "is_regression"),
    [
        ({"scale": 0.9}, True),
        ({"scale": 0.9, "gradient_accumulation_steps": 3}, True),
        ({"scale": 0.9, "shape": (1,)}, True),
        ({"one": 2.0, "per_device_train_batch_size": 1}, True),  # in one batch of 24
        ({"shape": (2,), "problem_type": "regression"}, True),
        ({"scale": 3.0, "shape": (2,)}, True),
        ({}, False),  # two classes
        ({"shape": (1,)}, False),
        ({"scale": 0.9, "shape": (2,)}, False),
        ({"scale": 0.9, "problem_type": "multi_label_classification"}, False),
        ({"scale": 0.9, "amp_epsilon": 0.01}, False),
    ],
    ids=str,
)
def test_a_regression_is_trained_as_by_trainer_and_this_is_said_once(tmp_path, caplog, options, is_regression):
    trainer = regression(tmp_path, **options)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert caplog.text.count("the labels are continuous") == is_regression
    assert bool(logs_of(trainer, "sharpness")) != is_regression


def test_a_continuous_label_that_another_process_sees_counts_too(tmp_path, monkeypatch):
    trainer = regression(tmp_path)
    monkeypatch.setattr("hf_amp.logs.reduce", lambda mean, reduction: mean + 0.5)
    trainer.train()
    assert radii(trainer) == [0.0] * 30


def test_a_regression_that_is_resumed_stays_plain(tmp_path):
    options = {"save_strategy": "epoch", "shape": (1,), "scale": 0.9}
    regression(tmp_path, **options).train()
    resumed = regression(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    assert radii(resumed) == [0.0] * 30


def test_a_random_perturbation_follows_overfitting_too(tmp_path):
    class Random(AMPTrainer):
        def find_perturbation(self, perturbation, ascent_pass):
            perturbation.randomize(torch.Generator().manual_seed(self.state.global_step))

    trainer = overfitting_trainer(tmp_path, Random)
    trainer.train()
    norms = [entry.get("perturbation_norm", 0.0) for entry in logs_of(trainer)]
    assert max(norms) > 0
    assert max(radii(trainer)) > 0.1
