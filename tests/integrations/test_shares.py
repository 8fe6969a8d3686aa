"""Shares of real batches, for `amp_ascent_fraction` < 1: what the collator makes of the first samples.

The loss tells: that of the first n samples cut from a batch is that of the first n samples, collated by themselves.
"""

import copy
import functools

import pytest
import torch
from kinds import KINDS, embeddings, refusal, sft, tpo, triplets_of_a_batch
from sentence_transformers.sentence_transformer import losses
from test_training import difference, everything_trained, losses_of
from tiny_text import pairs
from transformers import DataCollatorWithFlattening
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_amp.third_party import refuse_share, samples_of_known

CUT = {name: kind for name, kind in KINDS.items() if not name.startswith(("PEFT", "Seq2Seq", "DPO, LoRA"))} | {
    "TPO, two answers": functools.partial(tpo, tpo_alpha=0.0),
    "SFT, padding-free": functools.partial(sft, padding_free=True, max_length=None),
}


def rows_and_batch(trainer, count=6):
    """Samples as the collator gets them, and the batch of them all, for a trainer as it is in the middle of a step."""
    trainer.model_wrapped = trainer.model
    trainer.current_gradient_accumulation_steps = 1
    loader = trainer.get_train_dataloader()
    rows = [loader.dataset[i] for i in range(count)]
    return rows, trainer._prepare_inputs(loader.collate_fn(copy.deepcopy(rows))), loader.collate_fn


def loss(trainer, inputs):
    trainer.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trainer.compute_loss(trainer.model, dict(inputs)).item()


@pytest.mark.parametrize("name", list(CUT))
def test_a_share_is_the_batch_of_the_first_samples(name, tmp_path):
    trainer = CUT[name](tmp_path, "plain")
    rows, batch, collate = rows_and_batch(trainer)
    before = copy.deepcopy(batch)
    samples = samples_of_known(trainer, batch)
    documents = [len(row["seq_lengths"]) if "seq_lengths" in row else 1 for row in rows]  # of packed rows
    assert samples.size == sum(documents)
    for count in (2, 3, 5):
        expected = loss(trainer, trainer._prepare_inputs(collate(copy.deepcopy(rows[:count]))))
        share = samples.take(sum(documents[:count]))
        assert loss(trainer, share) == pytest.approx(expected, rel=1e-5)
        assert abs(expected - loss(trainer, batch)) > 1e-4
    tensors = [(value, before[key]) for key, value in batch.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(*pair) for pair in tensors)
    assert {key: len(value) for key, value in batch.items() if isinstance(value, list)} == {
        key: len(value) for key, value in before.items() if isinstance(value, list)
    }


SHARED = ["SFT", "DPO", "Reward", "KTO", "CPO", "TPO", "MultipleNegativesRanking", "SoftmaxLoss", "CrossEncoder, lists"]


@pytest.mark.parametrize("name", SHARED)
def test_training_with_a_share_is_two_passes_by_hand(name, tmp_path):
    """The first pass sees half of the samples, collated by themselves, the second one all of them."""
    settings = {"amp_ascent_fraction": 0.5, "max_steps": 2}
    amp, by_hand = (KINDS[name](tmp_path / method, method, **settings) for method in ("amp", "by_hand"))
    for trainer in (amp, by_hand):
        trainer.train()
    assert difference(everything_trained(by_hand), everything_trained(amp)) <= 1e-5
    by_hand_with_all = KINDS[name](tmp_path / "all", "by_hand", max_steps=1)
    by_hand_with_all.train()
    assert losses_of(by_hand_with_all)[0] != pytest.approx(losses_of(amp)[0], abs=1e-4)


@pytest.mark.parametrize("name", ["SFT", "DPO", "CrossEncoder"])
def test_the_share_does_not_depend_on_the_accumulation(name, tmp_path):
    whole = KINDS[name](tmp_path / "whole", "amp", amp_ascent_fraction=0.25)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "amp_ascent_fraction": 0.25}
    accumulated = KINDS[name](tmp_path / "accumulated", "amp", **split)
    for trainer in (whole, accumulated):
        trainer.train()
    assert difference(everything_trained(whole), everything_trained(accumulated)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "least"), [("DPO", 1), ("SFT", 1), ("KTO", 2), ("MultipleNegativesRanking", 2), ("CrossEncoder, lists", 2)]
)
def test_the_fewest_samples_that_make_sense_together(name, least, tmp_path):
    trainer = KINDS[name](tmp_path, "plain")
    assert samples_of_known(trainer, rows_and_batch(trainer)[1]).least == least


def test_packed_sequences_are_cut_between_documents(tmp_path):
    trainer = sft(tmp_path, "plain")
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8)
    batch = collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": [5, 5, 5, 5]}])
    samples = samples_of_known(trainer, batch)
    assert samples.size == 3  # and not the padding
    share = samples.take(2)
    assert share["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert share["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert share["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert share["max_length_k"] == 3
    assert share["seq_idx"].tolist() == [[0, 0, 0, 1, 1]]


def test_sequences_in_one_row_need_their_lengths(tmp_path):
    """Otherwise the row is one sample, of which nothing can be cut: the Trainer says so."""
    trainer = KINDS["Seq2Seq"](tmp_path, "plain")
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    assert samples_of_known(trainer, DataCollatorWithFlattening()(rows)) is None
    known = samples_of_known(trainer, DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows))
    assert known.size == 2
    assert known.take(1)["input_ids"].tolist() == [[5, 6, 7]]


def test_other_trainers_have_the_general_cut(tmp_path):
    trainer = KINDS["Seq2Seq"](tmp_path, "plain")
    assert samples_of_known(trainer, rows_and_batch(trainer)[1]) is None


@pytest.mark.parametrize(("name", "rows"), [("pixel_values", 7), ("image_grid_thw", 12), ("cu_seq_lens", 4)])
def test_rows_that_no_sample_can_be_given_leave_the_batch_whole(name, rows, tmp_path):
    for kind in ("DPO", "MultipleNegativesRanking"):
        trainer = KINDS[kind](tmp_path / kind, "plain")
        _, batch, _ = rows_and_batch(trainer)
        assert samples_of_known(trainer, batch).size == 6
        batch = {**batch, name: torch.zeros(rows, 3)}
        samples = samples_of_known(trainer, batch)
        assert samples.size == 1
        assert samples.take(1) is batch


def test_a_share_of_nothing_is_said(tmp_path, caplog):
    trainer = KINDS["DPO"](tmp_path, "amp", amp_ascent_fraction=0.5, max_steps=1)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {**collate(rows), "cu_seq_lens": torch.zeros(3)}
    trainer.train()
    assert "`amp_ascent_fraction`=0.5 has no effect on this batch" in caplog.text


@pytest.mark.parametrize("nested", [False, True])
def test_losses_that_need_labels_in_the_batch_are_refused(nested, tmp_path):
    if nested:
        trainer = embeddings(
            tmp_path,
            "plain",
            lambda model: losses.MatryoshkaLoss(model, losses.BatchHardTripletLoss(model), matryoshka_dims=[16, 8]),
            pairs(),
        )
    else:
        trainer = triplets_of_a_batch(tmp_path, "plain")
    with pytest.raises(
        NotImplementedError, match=r"`amp_ascent_fraction` < 1 with the loss Batch(All|Hard)TripletLoss"
    ):
        refuse_share(trainer)


@pytest.mark.parametrize("name", ["MultipleNegativesRanking", "DPO", "CrossEncoder", "Seq2Seq"])
def test_the_share_of_others_is_not_refused(name, tmp_path):
    assert refusal(refuse_share, KINDS[name](tmp_path, "plain")) is None
