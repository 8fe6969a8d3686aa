"""Batches of one image are refused before training where batch norm cannot take them, and only there."""

import json

import pytest
from commands import classify

DEEP = json.dumps({"stem_size": 4, "hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]})  # 8×8 digits end at 1×1
SHALLOW = json.dumps({"stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]})
FLAGS = ("--use_cpu", "--dataset", "digits", "--num_train_epochs", "1", "--eval_strategy", "no")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max_train_samples", "21", "--per_device_train_batch_size", "20"),
         "the last batch of an epoch has one image .* give --dataloader_drop_last true"),
        (("--max_train_samples", "40", "--per_device_train_batch_size", "20", "--amp_ascent_fraction", "0.06"),
         "the ascent has one image .* give a larger --amp_ascent_fraction than 0.06"),
        (("--max_train_samples", "40", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "5",
          "--amp_ascent_fraction", "0.25"), "the ascent has one image"),
    ],
)  # fmt: skip
def test_a_pass_of_one_image_is_refused_before_anything_is_written(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        classify(tmp_path / "out", *flags, base=(*FLAGS, "--model_args", DEEP))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("network", "flags"),
    [
        (SHALLOW, ("--max_train_samples", "21")),  # its last stage has 4×4 values per channel
        (DEEP, ("--max_train_samples", "21", "--dataloader_drop_last", "true")),
        (DEEP, ("--max_train_samples", "21", "--method", "erm", "--per_device_train_batch_size", "21")),
    ],
)
def test_what_can_be_trained_is(tmp_path, network, flags):
    base = (*FLAGS, "--model_args", network, "--per_device_train_batch_size", "20")
    results = classify(tmp_path, *flags, base=base)
    wrong = 359 * results["runs"][0]["test"]["last"]["error_rate"]
    assert wrong == pytest.approx(round(wrong), abs=1e-6)  # of all 359 test images
