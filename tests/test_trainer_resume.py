"""Stopping and resuming, and checkpoints that open in either trainer."""

import pytest
import torch
from test_trainer import assert_identical
from tiny import Points, amp_trainer, tiny_model
from transformers import Trainer

from hf_amp import AMPTrainer

SETTINGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 4,  # of six steps an epoch: in the middle of one
    "lr_scheduler_type": "linear",
    "amp_epsilon": 0.1,
}


def resumable_trainer(output_dir, cls=AMPTrainer, **schedule):
    model = tiny_model(batch_norm=True, dropout=0.3, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    data = Points(dtype=torch.float32)
    return amp_trainer(output_dir, model, cls, data=data, optimizers=(optimizer, None), **SETTINGS, **schedule)


def state_of(trainer):
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "sharpness": [entry.get("sharpness") for entry in trainer.state.log_history if "loss" in entry],
    }


@pytest.mark.parametrize(
    "schedule",
    [{}, {"amp_every": 5}, {"amp_start": 0.5}, {"amp_end": 0.5}, {"amp_scope": "micro_batch", "amp_inner_iter": 2}],
    ids=str,
)
@pytest.mark.parametrize("checkpoint", [4, 8])
def test_a_resumed_run_is_bit_identical_to_one_that_was_not_stopped(tmp_path, schedule, checkpoint):
    whole = resumable_trainer(tmp_path, **schedule)
    whole.train()
    resumed = resumable_trainer(tmp_path / "again", **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert whole.state.global_step == resumed.state.global_step == 12
    assert_identical(state_of(resumed), state_of(whole))


def test_optimizer_state_holds_nothing_of_amp(tmp_path):
    for cls in (AMPTrainer, Trainer):
        resumable_trainer(tmp_path / cls.__name__, cls).train()
    states = [torch.load(tmp_path / cls.__name__ / "checkpoint-4" / "optimizer.pt") for cls in (AMPTrainer, Trainer)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert [sorted(state) for state in states[0]["state"].values()] == [["momentum_buffer"]] * 8
    files = [
        sorted(p.name for p in (tmp_path / cls.__name__ / "checkpoint-4").iterdir()) for cls in (AMPTrainer, Trainer)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(("writer", "reader"), [(AMPTrainer, Trainer), (Trainer, AMPTrainer)])
def test_a_checkpoint_of_one_trainer_opens_in_the_other(tmp_path, writer, reader):
    resumable_trainer(tmp_path, writer).train()
    other = resumable_trainer(tmp_path / "other", reader)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert other.state.global_step == 12
    assert ["sharpness" in entry for entry in other.state.log_history if "loss" in entry] == (
        [writer is AMPTrainer] * 4 + [reader is AMPTrainer] * 8
    )
