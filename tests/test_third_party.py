"""Trainers of other libraries, told by structure alone; the real ones are in `tests/integrations`."""

import functools

import pytest
import torch
from transformers import Trainer

from hf_amp.third_party import refuse_share, refuse_trainer, samples_of_known


def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Generates(Trainer):
    @timed
    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs["input_ids"] = model.generate(**inputs)
        return super().training_step(model, inputs, num_items_in_batch)


class KeepsItsBatch(Trainer):
    def _prepare_inputs(self, inputs):
        if self.state.global_step % 4 == 0:
            self._buffered_inputs = list(inputs)
        return self._buffered_inputs[self.state.global_step % 4]


class ReadsAQueue(Trainer):
    def get_train_dataloader(self):
        return self.rollout_queue


class OwnLoop(Trainer):
    def train(self, *args, **kwargs):
        for batch in self.get_train_dataloader():
            self.compute_loss(self.model, batch).backward()


class OwnLoopOfSteps(Trainer):
    def _inner_training_loop(self, *args, **kwargs):
        for batch in self.get_train_dataloader():
            self.training_step(self.model, batch)


class OwnLoopOfEpochs(Trainer):
    def _inner_training_loop(self, *args, **kwargs):  # as that of transformers 5.24
        for epoch in range(3):
            self._run_epoch(epoch)


class GeneratesInAFunction(Trainer):
    def _prepare_inputs(self, inputs):
        def completed(text):
            return self.model.generate(text)

        return {key: completed(text) for key, text in inputs.items()}


class OwnTrain(Trainer):
    def train(self, *args, **kwargs):
        self.started = True
        return super().train(*args, **kwargs)


class OwnPreparation(Trainer):
    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs({**inputs, "more": 1})

    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)

    def generate_samples(self):  # for its evaluation
        return self.model.generate()


class AsTrlsDPO(Trainer):
    _tag_names = ("trl", "dpo")


class AsTrlsTPO(Trainer):
    _tag_names = ("trl", "tpo")
    tpo_alpha = 1.0


def instance(cls):
    return object.__new__(cls)


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Generates, r"support Generates: its `training_step` generates data .* \(`generate`\)"),
        (GeneratesInAFunction, r"support GeneratesInAFunction: its `_prepare_inputs` generates"),
        (KeepsItsBatch, r"support KeepsItsBatch: its `_prepare_inputs` .* \(`_buffered_inputs`\)"),
        (ReadsAQueue, r"support ReadsAQueue: another process generates its data"),
        (OwnLoop, r"support OwnLoop: its `train` is a training loop of its own that never calls `training_step`"),
    ],
)
def test_a_trainer_that_cannot_make_two_passes_on_a_batch_is_refused(cls, text):
    for found in (cls, type("Mine", (cls,), {})):
        with pytest.raises(NotImplementedError, match=text):
            refuse_trainer(instance(found))


@pytest.mark.parametrize("cls", [Trainer, OwnTrain, OwnPreparation, OwnLoopOfSteps, OwnLoopOfEpochs])
def test_other_overrides_are_not_refused(cls):
    assert refuse_trainer(instance(cls)) is refuse_share(instance(cls)) is None


def test_pairs_stay_together():
    """trl's batches are [all chosen, all rejected]; a share has the chosen and the rejected of its samples."""
    inputs = {"input_ids": torch.arange(8).view(8, 1), "margin": torch.arange(4), "scale": 2.0, "none": None}
    samples = samples_of_known(instance(AsTrlsDPO), inputs)
    assert samples.size == 4
    share = samples.take(2)
    assert share["input_ids"].flatten().tolist() == [0, 1, 4, 5]
    assert share["margin"].tolist() == [0, 1]
    assert share["scale"] == 2.0
    assert share["none"] is None
    assert samples.take(4)["input_ids"].flatten().tolist() == list(range(8))


def test_three_answers_stay_together():
    samples = samples_of_known(instance(AsTrlsTPO), {"input_ids": torch.arange(6).view(6, 1)})
    assert samples.take(1)["input_ids"].flatten().tolist() == [0, 2, 4]


def test_a_batch_that_is_not_pairs_is_one_sample():
    inputs = {"input_ids": torch.zeros(7, 2)}
    samples = samples_of_known(instance(AsTrlsDPO), inputs)
    assert samples.size == 1
    assert samples.take(1) is inputs


@pytest.mark.parametrize("inputs", [torch.zeros(4), ["a", "b"], {"x": torch.zeros(4, 2)}])
def test_other_batches_have_the_general_cut(inputs):
    assert samples_of_known(instance(Trainer), inputs) is None
