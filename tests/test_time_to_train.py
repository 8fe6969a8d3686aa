"""The benchmark of whole trainings compares what it says."""

import json

import pytest
import torch
from commands import TINY_MODEL, load_example

WORDS = ("--use_cpu", "--dataset", "digits", "--model_args", TINY_MODEL, "--max_train_samples", "40", "--rounds", "1")


@pytest.fixture
def benchmark():
    return load_example("benchmarks/time_to_train")


@pytest.mark.slow
def test_old_and_new_way_are_timed_with_both_methods(tmp_path, benchmark, capsys):
    content = benchmark.main([*WORDS, "--augmentation", "vanilla", "--output_dir", str(tmp_path)])
    rows = content["rows"]
    assert list(rows) == ["erm old", "erm new", "amp old", "amp new"]
    assert rows["erm old"]["times_as_fast"] == rows["amp old"]["times_as_fast"] == 1
    for row in rows.values():
        (one,) = row["rounds"]
        assert row["epoch_seconds"] == pytest.approx(one["seconds"] * 1438 / 40)  # of the whole training split
        assert 0 < one["passes"] < one["seconds"]
        assert row["beside_passes"] == pytest.approx(1 - one["passes"] / one["seconds"])
    assert json.loads((tmp_path / "time_to_train.json").read_text()) == json.loads(json.dumps(content))
    assert "| amp | new |" in capsys.readouterr().out


def test_the_old_way_makes_the_same_batches_one_by_one_and_channels_first(benchmark):
    from hf_amp.vision import DecodedImages, ImageCollator, load_image_dataset

    images = DecodedImages(load_image_dataset("digits", max_train_samples=30)["train"])
    images.set_epoch(0)
    new = ImageCollator("digits", augmentation="vanilla", seed=3)
    old = benchmark.OneByOne(new)
    assert old.per_image
    selections = images.__getitems__(list(range(30)))
    batches = [collator(selections)["pixel_values"] for collator in (old, new)]
    torch.testing.assert_close(*batches)
    assert batches[0].is_contiguous()
