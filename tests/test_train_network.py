"""Batches of one image are refused before training where batch norm cannot take them, and only there."""

import copy
import json

import pytest
import torch
from commands import classify
from tiny_images import image_split, own_cache, write_folder, write_parquet

from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import DataArguments, Images
from hf_amp.vision.train.network import ModelArguments, build_model

DEEP = json.dumps({"stem_size": 4, "hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]})  # 8×8 digits end at 1×1
SHALLOW = json.dumps({"stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]})
FLAGS = ("--use_cpu", "--dataset", "digits", "--num_train_epochs", "1", "--eval_strategy", "no", "--amp_epsilon", "0.5")


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


def test_a_network_of_other_classes_or_channels_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path / "cache")
    base = (*FLAGS, "--max_train_samples", "40", "--model_args")
    for args, message in (
        ({"num_labels": 3}, "`model_args` must leave the network 10 classes, as many as the images have, got 3; leave"),
        ({"id2label": {"0": "a"}}, "`model_args` must leave the network 10 classes, .* got 1; leave"),
        ({"num_channels": 3}, "takes images of 3 channel.* and these have 1; give --image_mode rgb"),
    ):
        with pytest.raises(SystemExit, match=message):
            classify(tmp_path / "out", base=(*base, json.dumps({**json.loads(SHALLOW), **args})))
    classify(tmp_path / "grey", base=(*base, SHALLOW))
    flags = ("--model", str(tmp_path / "grey" / "seed_42"), "--dataset", str(write_folder(tmp_path / "pets")))
    with pytest.raises(SystemExit, match=r"takes images of 1 channel.* and these have 3; give --image_mode grey"):
        classify(tmp_path / "out", *flags, base=FLAGS)
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


@pytest.mark.parametrize(
    ("splits", "flags"), [(("train", "validation"), ()), (("train",), ("--validation_fraction", "0.2"))]
)
def test_without_a_test_split_all_that_is_said_names_the_validation_images(
    tmp_path, monkeypatch, caplog, capsys, splits, flags
):
    own_cache(monkeypatch, tmp_path / "cache")
    folder = write_parquet(tmp_path / "data", **{name: image_split(30) for name in splits})
    base = ("--use_cpu", "--dataset", str(folder), "--num_train_epochs", "1", "--model_args", SHALLOW)
    with caplog.at_level("WARNING"):
        classify(tmp_path / "out", *flags, base=base)
    assert "so that its validation images are what is tested on: every step is a plain one" in caplog.text
    assert "Add a test split, or --amp_epsilon 0.5" in caplog.text
    assert "--validation_fraction" not in caplog.text
    said = capsys.readouterr().out
    assert f"training, no test, {30 if not flags else 6} validation images" in said
    assert "chosen on the VALIDATION images" in said
    assert "| validation, 1 seed(s) |" in said
    assert "TEST" not in said
    assert "test error" not in said


def test_channels_last_changes_neither_saved_files_nor_what_the_network_computes(tmp_path):
    data = DataArguments(dataset="digits", max_train_samples=40)
    args = ImageTrainingArguments(use_cpu=True, method="erm", precision="float32", output_dir=str(tmp_path))
    sizes = json.dumps({"stem_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]})
    network = build_model(ModelArguments(model_args=sizes), args, Images(data)).eval()
    kernels = [param for param in network.parameters() if param.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    assert any(not kernel.is_contiguous() for kernel in kernels)
    for name, model in (("last", network), ("first", plain)):
        model.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("last", "first")]
    assert files[0] == files[1]
    pixels = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels).logits, plain(pixels).logits)


def test_a_network_with_strided_kernels_of_few_channels_stays_channels_first(tmp_path):
    # Channels last, their gradients are written past their end on CPUs without AVX-512.
    data = DataArguments(dataset="digits", max_train_samples=40)
    args = ImageTrainingArguments(use_cpu=True, method="erm", precision="float32", output_dir=str(tmp_path))
    network = build_model(ModelArguments(model_args=SHALLOW), args, Images(data))
    assert all(parameter.is_contiguous() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "reason"), [(None, "Unrecognized model"), ("{", "config.json"), ('{"model_type": "no"}', "no")]
)
def test_a_folder_that_holds_no_network_is_named_with_what_would_do(tmp_path, make, reason):
    (tmp_path / "model").mkdir()
    if make is not None:
        (tmp_path / "model" / "config.json").write_text(make)
    with pytest.raises(
        SystemExit, match=rf"`model` '.*model' cannot be loaded \(.*{reason}.*\); give one of preactres"
    ):
        classify(tmp_path / "out", "--model", str(tmp_path / "model"), "--model_args", "{}")
    assert not (tmp_path / "out").exists()
