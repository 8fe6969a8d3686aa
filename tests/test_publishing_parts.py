"""AMP and publishing are two mixins: each works without the other, and together in any Trainer."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from test_card_facts import OwnTrainer, Seq2SeqConfig, card_of, make
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_amp import AMPArguments, AMPTrainer, AMPTrainerMixin, AMPTrainingArguments, PublishingArguments, PublishingMixin
from hf_amp.hub.card import is_untouched
from hf_amp.hub.section import CardSectionMixin

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
AMP_TAG = "adversarial-model-perturbation"


@dataclass
class PublishingConfig(PublishingArguments, TrainingArguments):
    pass


class OnlyAMP(AMPTrainerMixin, Trainer):
    pass


class OnlyPublishing(PublishingMixin, Trainer):
    pass


class PublishingOwn(PublishingMixin, OwnTrainer):
    pass


class Both(AMPTrainerMixin, PublishingMixin, Seq2SeqTrainer):
    pass


class OtherWayRound(PublishingMixin, AMPTrainerMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize("name", ["init_hf_repo", "push_to_hub", "save_model", "_push_from_checkpoint"])
def test_the_mixin_of_amp_leaves_publishing_to_the_trainer_behind_it(name):
    assert getattr(OnlyAMP, name) is getattr(Trainer, name)
    assert getattr(AMPTrainer, name) is not getattr(Trainer, name)


def test_the_trainers_own_card_gets_a_section_once(tmp_path):
    trainer = make(tmp_path, OnlyAMP, amp_epsilon=0.25)
    for _ in range(2):
        trainer.create_model_card(license="mit", tags="mine")
        card = card_of(trainer)
        assert "generated automatically according to the information the Trainer had" in card
        assert not is_untouched(card)
        assert "`amp_epsilon` | `0.25`" in card
        assert card.count("## How it was trained") == card.count("@inproceedings{zheng2021") == 1
        data = ModelCard(card).data
        assert sorted(data.tags) == sorted([AMP_TAG, "generated_from_trainer", "hf_amp", "mine"])
        assert data.license == "mit"


def test_other_processes_write_no_section(tmp_path, monkeypatch):
    trainer = make(tmp_path / "out", OnlyAMP)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / "out" / "README.md").exists()


def test_publishing_alone_claims_no_perturbation(tmp_path):
    trainer = make(tmp_path, OnlyPublishing, arguments=TrainingArguments, learning_rate=0.1)
    trainer.create_model_card()
    card = card_of(trainer)
    assert is_untouched(card)
    assert "`learning_rate` | `0.1`" in card
    assert ModelCard(card).data.tags == ["hf_amp"]
    for word in ("perturb", "amp_epsilon", "zheng2021", "flat minimum"):
        assert word not in card.replace("hf_amp", "")
    own = make(tmp_path / "own", PublishingOwn, arguments=TrainingArguments)
    own.create_model_card("Mine", dataset_name="Theirs")
    card = card_of(own)
    assert "# Mine on Theirs\n\nOwn words." in card
    assert "zheng2021" not in card


@pytest.mark.parametrize("trainer_class", [Both, OtherWayRound])
def test_both_together_write_the_card_of_recorded_facts(tmp_path, trainer_class):
    trainer = make(tmp_path, trainer_class, arguments=Seq2SeqConfig, amp_epsilon=0.25)
    trainer.create_model_card()
    card = card_of(trainer)
    assert is_untouched(card)
    assert "`amp_epsilon` | `0.25`" in card
    assert ModelCard(card).data.tags == [AMP_TAG, "hf_amp"]


def test_a_card_that_the_trainer_drafted_is_replaced(tmp_path):
    make(tmp_path, OnlyAMP).create_model_card()
    trainer = make(tmp_path)
    trainer.create_model_card()
    assert is_untouched(card_of(trainer))


def test_publishing_behind_its_trainer_is_refused():
    with pytest.raises(TypeError, match=r"Late must name PublishingMixin before its Trainer.*class Late\(Publishing"):
        type("Late", (Trainer, PublishingMixin), {})
    with pytest.raises(TypeError, match="Late must name PublishingMixin before its Trainer"):
        type("Late", (AMPTrainerMixin, Trainer, PublishingMixin), {})
    assert issubclass(AMPTrainer, CardSectionMixin)


def test_the_field_of_publishing_is_none_of_amps(tmp_path):
    assert "hub_check" not in AMPArguments.__dataclass_fields__
    assert AMPTrainingArguments(output_dir=str(tmp_path)).hub_check is True
    assert PublishingConfig(output_dir=str(tmp_path), hub_check=False).hub_check is False


def test_the_token_is_never_saved_and_stays_in_the_arguments(tmp_path):
    trainer = make(tmp_path, hub_token="hf_secret", save_steps=1)
    trainer.train()
    trainer.save_model()
    saved = [tmp_path / "training_args.bin", tmp_path / "checkpoint-2" / "training_args.bin"]
    for path in saved:
        assert b"hf_secret" not in path.read_bytes()
        assert torch.load(path, weights_only=False).hub_token is None
    assert trainer.args.hub_token == "hf_secret"


def test_the_token_stays_after_a_save_that_failed(tmp_path, monkeypatch):
    trainer = make(tmp_path, hub_token="hf_secret")
    monkeypatch.setattr(Trainer, "save_model", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.save_model()
    assert trainer.args.hub_token == "hf_secret"


def test_a_card_that_is_no_utf8_is_named_and_left_as_it_is(tmp_path):
    path = Path(tmp_path, "README.md")
    path.write_bytes("# Grüße\n".encode("latin-1"))
    trainer = make(tmp_path)
    trainer.save_model()
    with pytest.raises(RuntimeError, match=r"README.md must be UTF-8 text, and its byte 4 \(0xfc\) is not; save it"):
        trainer.create_model_card()
    assert path.read_bytes() == "# Grüße\n".encode("latin-1")
