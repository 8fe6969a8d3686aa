"""Trainers that AMP cannot train are refused by name before training, with the reason and what to do."""

import importlib
import inspect
import pkgutil

import pytest
import setfit
import trl
from datasets import Dataset
from kinds import COMMON, TRL, amp_arguments_class, amp_class, refusal
from sentence_transformers import (
    CrossEncoderTrainer,
    MultiVectorEncoderTrainer,
    SentenceTransformerTrainer,
    SparseEncoderTrainer,
)
from tiny_text import Sentences, texts, tiny_llama, tokenizer
from transformers import Seq2SeqTrainer, Trainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from hf_amp import AMPTrainerMixin
from hf_amp.third_party import refuse_trainer

# The trainers of trl by what AMP does with them: a new release that has others fails here, and they are looked at.
TRAINED = {"SFT", "DPO", "_DPO", "Reward", "KTO", "_KTO", "CPO", "ORPO", "TPO", "_Base"}
GENERATE = {
    "GRPO",
    "GMPO",
    "RLOO",
    "GKD",
    "GOLD",
    "OnlineDPO",
    "A2PO",
    "SDFT",
    "SDPO",
    "IWOPD",
    "Distillation",
    "_Distillation",
    "ServerDistillation",
}
ASYNCHRONOUS = {"AsyncGRPO", "AsyncDistillation"}


def trainers_of_trl():
    found = {}
    for module in pkgutil.walk_packages(trl.__path__, "trl."):
        if not module.name.startswith(("trl.trainer.", "trl.experimental.")):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ModuleNotFoundError:  # parts that need vLLM and the like
            continue
        for name, cls in names.items():
            if inspect.isclass(cls) and issubclass(cls, Trainer) and cls.__module__.startswith("trl."):
                found[name.removesuffix("Trainer")] = cls
    return found


TRL_TRAINERS = trainers_of_trl()


def instance(cls):
    """Without the models, servers and data that it would need: what is refused is told by its class."""
    return object.__new__(type(cls.__name__, (cls,), {"__abstractmethods__": frozenset()}))


def test_every_trainer_of_trl_is_known():
    assert set(TRL_TRAINERS) == TRAINED | GENERATE | ASYNCHRONOUS


@pytest.mark.parametrize("name", sorted(GENERATE))
def test_trainers_that_make_their_data_in_a_step_are_refused(name):
    text = r"support \w+Trainer: its `(training_step|_prepare_inputs)` generates data.*or train with amp_epsilon=0"
    with pytest.raises(NotImplementedError, match=text):
        refuse_trainer(instance(TRL_TRAINERS[name]))


@pytest.mark.parametrize("name", sorted(ASYNCHRONOUS))
def test_trainers_that_take_data_from_another_process_are_refused(name):
    with pytest.raises(NotImplementedError, match=r"does not support Async\w+Trainer: another process generates"):
        refuse_trainer(instance(TRL_TRAINERS[name]))


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_trainers_that_read_their_data_are_not_refused(name):
    assert refusal(refuse_trainer, instance(TRL_TRAINERS[name])) is None


@pytest.mark.parametrize(
    "cls",
    [
        Trainer,
        Seq2SeqTrainer,
        SentenceTransformerTrainer,
        CrossEncoderTrainer,
        SparseEncoderTrainer,
        MultiVectorEncoderTrainer,
    ],
)
def test_nor_are_those_of_other_libraries(cls):
    assert refusal(refuse_trainer, instance(cls)) is None


def test_the_refusal_comes_when_the_trainer_is_made(tmp_path):
    arguments = amp_arguments_class(trl.GRPOConfig)
    with pytest.raises(NotImplementedError, match=r"does not support GRPOTrainer: its `_prepare_inputs` generates"):
        amp_class(trl.GRPOTrainer)(
            model=tiny_llama(),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=arguments(**COMMON | TRL | {"output_dir": str(tmp_path)}),
            train_dataset=Sentences(32).table("prompt"),
            processing_class=tokenizer(),
        )


def test_it_trains_with_epsilon_0(tmp_path):
    """What is refused is the perturbation, not the class: a comparison without it stays one word away."""
    arguments = amp_arguments_class(GKDConfig)
    settings = COMMON | TRL | {"max_steps": 1, "amp_epsilon": 0.0, "max_new_tokens": 2, "output_dir": str(tmp_path)}
    messages = [
        [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": text}] for text in texts(16)["text"]
    ]
    words = tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    trainer = amp_class(GKDTrainer)(
        model=tiny_llama(),
        teacher_model=tiny_llama(seed=1),
        args=arguments(**settings),
        train_dataset=Dataset.from_dict({"messages": messages}),
        processing_class=words,
    )
    trainer.train()
    assert trainer.state.global_step == 1


def test_setfits_trainer_is_no_trainer_of_transformers():
    with pytest.raises(
        TypeError,
        match=r"AMPSetFitTrainer is no transformers\.Trainer.*If it makes a Trainer inside, give it such a class",
    ):

        class AMPSetFitTrainer(AMPTrainerMixin, setfit.Trainer):
            pass

        AMPSetFitTrainer(model=None, train_dataset=Sentences(8).table("text", label=[0, 1] * 4))
