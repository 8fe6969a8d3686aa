"""Every row of the table in `examples/TRAINERS.md` names what is shown here: kinds of `kinds.py`, or tests.

`SHOWN_BY` is the list; a row without a test, or a test that is gone, fails.
"""

import re
from pathlib import Path

import pytest
from kinds import KINDS, SEVERAL_PROCESSES
from test_shares import CUT

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "examples" / "TRAINERS.md"
GENERATING = "test_refused.py::test_trainers_that_make_their_data_in_a_step_are_refused"
SHOWN_BY = {
    "`Trainer`, `Seq2SeqTrainer` of transformers": ["Seq2Seq"],
    "PEFT models": ["PEFT, LoRA", "PEFT, DoRA"],
    "trl `SFTTrainer`": ["SFT", "SFT, LoRA", "SFT, packing", "SFT, padding-free"],
    "trl `DPOTrainer`": ["DPO", "DPO, LoRA", "DPO, reference computed before"],
    "trl `RewardTrainer`": ["Reward"],
    "trl `KTOTrainer`": ["KTO"],
    "trl `CPOTrainer`": ["CPO", "ORPO", "TPO"],
    "trl figures": ["test_figures.py::test_what_is_logged_with_a_tiny_epsilon_is_what_the_plain_class_logs"],
    "Samples with any": ["test_shares.py::test_rows_that_no_sample_can_be_given_leave_the_batch_whole"],
    "sentence-transformers with in-batch": ["MultipleNegativesRanking", "CachedMultipleNegativesRanking"],
    "sentence-transformers, nothing set": [
        "test_training.py::test_batches_of_another_size_in_evaluation_are_said_where_the_loss_depends_on_it"
    ],
    "sentence-transformers, loss with": [
        "SoftmaxLoss",
        "test_training.py::test_the_plain_class_does_not_save_the_parameters_of_a_loss_either",
        "test_two_processes.py::test_the_parameters_of_a_loss_are_those_of_each_process_with_amp_or_without",
    ],
    "sentence-transformers, `Batch": ["test_shares.py::test_losses_that_need_labels_in_the_batch_are_refused"],
    "sentence-transformers `CrossEncoderTrainer`": ["CrossEncoder", "CrossEncoder, lists"],
    "Several processes": ["test_two_processes.py::test_two_processes_train_the_weights_of_one", *SEVERAL_PROCESSES],
    "trl `GRPOTrainer`": [GENERATING, "test_refused.py::test_the_refusal_comes_when_the_trainer_is_made"],
    "trl `AsyncGRPOTrainer`": ["test_refused.py::test_trainers_that_take_data_from_another_process_are_refused"],
    "A Trainer with a training loop": ["../test_third_party.py::test_a_trainer_that_cannot_make_two_passes_on_a_batch"],
    "setfit": ["test_refused.py::test_setfits_trainer_is_no_trainer_of_transformers"],
    "timm": [],
}
ROWS = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if re.match(r"\| (?!Trainer \|)", line)]


def test_every_row_is_shown():
    assert len(ROWS) == len(SHOWN_BY)
    for row, start in zip(ROWS, SHOWN_BY, strict=True):
        assert row.startswith(start)


@pytest.mark.parametrize("shown_by", [name for names in SHOWN_BY.values() for name in names])
def test_what_shows_it_exists(shown_by):
    file, _, test = shown_by.partition("::")
    if test:
        assert f"def {test}" in (HERE / file).read_text()
    else:
        assert shown_by in KINDS | SEVERAL_PROCESSES | CUT
