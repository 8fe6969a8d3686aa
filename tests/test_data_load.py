"""Whatever the source, the same splits and columns come out; what cannot be read is refused with its remedy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Image
from datasets.exceptions import DatasetNotFoundError
from tiny_images import (
    REAL,
    as_dict,
    cifar100_split,
    image_split,
    own_cache,
    plain_label_split,
    write_folder,
    write_parquet,
)

from hf_amp.vision import load_image_dataset
from hf_amp.vision.data import places


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path / "cache")


@pytest.fixture
def hub(monkeypatch):
    """A Hub that knows one data set, and notes what was asked for."""
    found, asked = {}, []

    def load(hub_id, config=None):
        asked.append((hub_id, config))
        return found["splits"]

    monkeypatch.setattr(places, "load_dataset", load)
    return found, asked


def test_digits_come_without_network_in_fixed_stratified_splits(monkeypatch):
    monkeypatch.setattr(places, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    first, second = load_image_dataset("digits", seed=0), load_image_dataset("digits", seed=1)
    assert set(first) == {"train", "test"}
    assert len(first["train"]) + len(first["test"]) == 1797
    for name in first:
        assert first[name]["label"][:] == second[name]["label"][:]
        counts = np.bincount(first[name]["label"][:]) / len(first[name])
        assert np.abs(counts - 0.1).max() < 0.01
    image = first["train"][0]["image"]
    assert (image.size, image.mode) == ((8, 8), "L")
    assert np.asarray(image).max() == 255
    assert first["train"].features["label"].names == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("cifar10", image_split(image="img"), ("uoft-cs/cifar10", None)),
        ("uoft-cs/cifar10", image_split(image="img"), ("uoft-cs/cifar10", None)),
        ("svhn", image_split(), ("ufldl-stanford/svhn", "cropped_digits")),
        ("someone/else", image_split(image="picture", label="kind"), ("someone/else", None)),
    ],
)
def test_every_hub_data_set_has_the_same_columns_afterwards(hub, name, split, expected):
    found, asked = hub
    found["splits"] = as_dict(train=split, test=split, extra=split, unsupervised=split)
    splits = load_image_dataset(name)
    assert asked == [expected]
    assert set(splits) == {"train", "test"}
    for one in splits.values():
        assert one.column_names == ["image", "label"]
        assert isinstance(one.features["image"], Image)
        assert one.features["label"].names == ["class 0", "class 1", "class 2"]
        assert one["label"][:] == [i % 3 for i in range(12)]


def test_cifar100_is_fine_by_default_and_coarse_on_request(hub):
    hub[0]["splits"] = as_dict(train=cifar100_split(), test=cifar100_split(seed=1))
    assert load_image_dataset("cifar100")["train"].features["label"].num_classes == 6
    assert load_image_dataset("cifar100", coarse_labels=True)["train"].features["label"].num_classes == 2


def test_extra_joins_the_training_split_only_on_request(hub):
    hub[0]["splits"] = as_dict(train=image_split(), extra=image_split(seed=1), test=image_split(seed=2))
    assert len(load_image_dataset("svhn")["train"]) == 12
    splits = load_image_dataset("svhn", extra=True)
    assert set(splits) == {"train", "test"}
    assert len(splits["train"]) == 24


def test_plain_labels_are_numbered_alike_in_all_splits(hub):
    train = plain_label_split(["cat", "dog", "emu"], "string")
    hub[0]["splits"] = as_dict(train=train, test=plain_label_split(["emu", "dog"], "string"))
    splits = load_image_dataset("someone/else")
    assert splits["train"].features["label"].names == ["cat", "dog", "emu"]
    assert splits["test"]["label"][:] == [2, 1]
    hub[0]["splits"] = as_dict(train=plain_label_split([7, 3], "int64"), test=plain_label_split([7], "int64"))
    splits = load_image_dataset("someone/else")
    assert splits["train"].features["label"].names == ["3", "7"]
    assert splits["test"]["label"][:] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.remove_columns("image"), "exactly one column of images, got none among label"),
        (lambda s: s.add_column("mask", [{"bytes": None, "path": None}] * 12, feature=Image()),
         "images, got image, mask among"),
        (lambda s: s.remove_columns("label"), "exactly one column of labels, got none among image"),
        (lambda s: s.rename_column("label", "kind").add_column("other", [0] * 12, feature=ClassLabel(num_classes=2)),
         "exactly one column of labels, got kind, other"),
        (lambda s: s.remove_columns("label").add_column("label", [-1] * 12, feature=ClassLabel(num_classes=2)),
         r"labels of split 'train' of someone/else must be in \[0, 2\), got -1; remove the images without label"),
        (lambda s: s.remove_columns("label").add_column("label", [0.5] * 12), "whole numbers or words in 'label'"),
        (lambda s: s.remove_columns("label").add_column("label", ["a", None] * 6), "has missing values"),
    ],
)  # fmt: skip
def test_columns_that_are_missing_or_ambiguous_are_refused(hub, change, message):
    split = change(image_split())
    hub[0]["splits"] = as_dict(train=split, test=split)
    with pytest.raises(ValueError, match=message):
        load_image_dataset("someone/else")


def test_splits_must_have_the_same_columns(hub):
    hub[0]["splits"] = as_dict(train=image_split(), test=image_split(label="kind"))
    with pytest.raises(ValueError, match="same columns, got image, label and, in 'test', image, kind"):
        load_image_dataset("someone/else")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, r"`validation_fraction` must be in \[0, 1\), got 1.0; 0.1 holds out"),
        ({"validation_fraction": -0.1}, r"`validation_fraction` must be in \[0, 1\), got -0.1"),
        ({"validation_fraction": float("nan")}, r"`validation_fraction` must be in \[0, 1\), got nan"),
        ({"validation_fraction": 0.0001}, "of 1438 training images is 0 images; both"),
        ({"max_train_samples": 0}, "`max_train_samples` must be >= 1, got 0"),
        ({"coarse_labels": True}, "`coarse_labels` exist in cifar100 only, got data set 'digits'"),
        ({"extra": True}, "an `extra` split exists in svhn only, got data set 'digits'"),
        ({"name": ""}, "`name` must not be empty"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(**{"name": "digits", **options})


def test_missing_splits_are_refused_and_a_missing_test_split_is_said(hub, caplog):
    hub[0]["splits"] = as_dict(train=image_split())
    with pytest.raises(ValueError, match=r"one to evaluate on .test or validation., got train"):
        load_image_dataset("someone/else")
    hub[0]["splits"] = as_dict(training=image_split(), dev=image_split())
    with pytest.raises(ValueError, match=r"someone/else must have a training split .* got training, validation; name"):
        load_image_dataset("someone/else")
    hub[0]["splits"] = as_dict(train=image_split(), test=image_split())
    with pytest.raises(ValueError, match="`extra` asks for the split 'extra', and svhn has train, test here"):
        load_image_dataset("svhn", extra=True)
    hub[0]["splits"] = as_dict(train=image_split(), validation=image_split(seed=1))
    with pytest.raises(ValueError, match="no test split, so that its validation split is needed"):
        load_image_dataset("someone/else", validation_fraction=0.5)
    assert set(load_image_dataset("someone/else")) == {"train", "validation"}
    assert "do not call the result a test result" in caplog.text
    hub[0]["splits"] = as_dict(train=image_split().select([]), test=image_split())
    with pytest.raises(ValueError, match="split 'train' of someone/else has no images"):
        load_image_dataset("someone/else")


@pytest.mark.parametrize("called", ["valid", "val", "dev", "validation"])
@pytest.mark.parametrize("local", [False, True])
def test_validation_splits_have_several_names(request, tmp_path, called, local):
    splits = as_dict(**{"train": image_split(), called: image_split(3), "test": image_split(6)})
    if not local:
        request.getfixturevalue("hub")[0]["splits"] = splits
    path = write_parquet(tmp_path / "data", **splits) if local else None
    loaded = load_image_dataset("someone/else", path=path)
    assert {name: len(split) for name, split in loaded.items()} == {"train": 12, "validation": 3, "test": 6}


def test_own_validation_split_stays_unless_another_is_asked_for(hub, caplog):
    hub[0]["splits"] = as_dict(train=image_split(30), validation=image_split(3, seed=1), test=image_split(seed=2))
    assert len(load_image_dataset("someone/else")["validation"]) == 3
    assert caplog.text == ""
    splits = load_image_dataset("someone/else", validation_fraction=0.2)
    assert (len(splits["train"]), len(splits["validation"])) == (24, 6)
    assert "own validation split (3 images) is left out" in caplog.text


def test_validation_part_does_not_depend_on_max_train_samples():
    whole = load_image_dataset("digits", validation_fraction=0.1, seed=3)
    small = load_image_dataset("digits", validation_fraction=0.1, seed=3, max_train_samples=100)
    other = load_image_dataset("digits", validation_fraction=0.1, seed=4)
    pixels = [[np.asarray(one).tobytes() for one in splits["validation"]["image"]] for splits in (whole, small, other)]
    assert pixels[0] == pixels[1]
    assert pixels[0] != pixels[2]
    assert np.bincount(small["train"]["label"][:]).tolist() == [10] * 10
    kept = {np.asarray(one).tobytes() for one in small["train"]["image"]}
    assert not kept & set(pixels[0])
    assert len(load_image_dataset("digits", max_train_samples=10**6)["train"]) == 1438


def test_parquet_files_are_found_by_their_splits(tmp_path):
    folder = write_parquet(tmp_path / "data", train=image_split(image="img"), test=image_split(6, image="img", seed=1))
    splits = load_image_dataset("cifar10", path=folder)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "test": 6}
    expected = image_split(image="img")
    for row, want in zip(splits["train"], expected, strict=True):
        assert row["label"] == want["label"]
        assert (np.asarray(row["image"]) == np.asarray(want["img"])).all()


def test_copies_of_hub_repositories_are_read_from_their_own_folder(tmp_path):
    write_parquet(tmp_path / "svhn" / "cropped_digits", train=image_split(), test=image_split(6))
    write_parquet(tmp_path / "svhn" / "full_numbers", train=image_split(3), test=image_split(3))
    assert len(load_image_dataset("svhn", path=tmp_path / "svhn")["train"]) == 12
    with pytest.raises(ValueError, match="several folders, got cropped_digits, full_numbers; give one of these"):
        load_image_dataset("cifar10", path=tmp_path / "svhn")
    write_parquet(tmp_path / "cifar10" / "plain_text", train=image_split(image="img"), test=image_split(6, image="img"))
    assert len(load_image_dataset("cifar10", path=str(tmp_path / "cifar10"))["test"]) == 6


def test_folder_of_images_is_a_data_set(tmp_path):
    splits = load_image_dataset("cats-and-dogs", path=write_folder(tmp_path / "images"))
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert splits["test"]["label"][:] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("classes", [("cat", "train"), ("beaker", "test tube"), ("valid", "dev")])
def test_splits_are_the_top_folders_whatever_classes_are_called(tmp_path, classes):
    splits = load_image_dataset("mine", path=write_folder(tmp_path / "images", classes=classes))
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "test": 6}
    assert splits["train"].features["label"].names == sorted(classes)
    pixels = np.asarray(splits["train"][0]["image"])
    assert (pixels == np.asarray(splits["test"][0]["image"])).all()


def test_images_without_a_label_and_empty_classes_are_refused_by_name(tmp_path):
    folder = write_folder(tmp_path / "images")
    (folder / "test" / "cat" / "0.png").rename(folder / "test" / "stray.png")
    with pytest.raises(ValueError, match=r"split 'test' of .* has 1 images without a label \(test/stray.png, …\)"):
        load_image_dataset("mine", path=folder)
    (folder / "test" / "stray.png").unlink()
    (folder / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"class emu of split 'test' of .* has no images; fill or remove its folder"):
        load_image_dataset("mine", path=folder)


def test_a_class_that_no_training_image_has_is_refused(tmp_path):
    write_folder(tmp_path / "images")
    write_folder(tmp_path / "images", splits=("test",), classes=("zebra",))
    message = r"split 'test' of .*images has classes that no training image has: zebra \(there: cat, dog\)"
    with pytest.raises(ValueError, match=message):
        load_image_dataset("mine", path=tmp_path / "images")


def test_names_that_are_not_utf8_are_refused(tmp_path):
    folder = write_folder(tmp_path / "images")
    os.rename(folder / "train" / "cat" / "0.png", os.fsencode(folder / "train" / "cat") + b"/\xff.png")
    with pytest.raises(ValueError, match=r"the name of .*udcff.png is not UTF-8; rename it"):
        load_image_dataset("mine", path=folder)


def test_a_path_as_name_is_a_path_and_makes_no_known_data_set(tmp_path):
    folder = write_folder(tmp_path / "cifar10")
    assert len(load_image_dataset(str(folder))["train"]) == 6
    assert places.name_and_path(str(folder), None) == ("cifar10_folder", folder)
    assert places.name_and_path("cifar10", folder) == ("cifar10", folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_dataset(str(tmp_path / "nothing"))


def test_a_training_split_is_enough_where_a_part_is_held_out(tmp_path):
    folder = write_folder(tmp_path / "images", splits=("train",), per_class=5)
    with pytest.raises(ValueError, match="hold a part of the training images out with `validation_fraction`"):
        load_image_dataset("mine", path=folder)
    splits = load_image_dataset("mine", path=folder, validation_fraction=0.2)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 2}


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; give a folder with train\*.parquet and test"):
        load_image_dataset("cifar10", path=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got an empty folder; give a folder with train"):
        load_image_dataset("cifar10", path=tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(FileNotFoundError, match="a file that is not parquet"):
        load_image_dataset("cifar10", path=tmp_path / "notes.txt")
    write_parquet(tmp_path / "unnamed", all=image_split())
    with pytest.raises(FileNotFoundError, match=r"got all-00000-of-00001.parquet; give a folder"):
        load_image_dataset("cifar10", path=tmp_path / "unnamed")
    lone = write_parquet(tmp_path / "lone", train=image_split()) / "train-00000-of-00001.parquet"
    with pytest.raises(ValueError, match=r"one to evaluate on .test or validation., got train"):
        load_image_dataset("cifar10", path=lone)


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[:-50],
        lambda whole: b"",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
def test_spoiled_parquet_files_are_named(tmp_path, content):
    folder = write_parquet(tmp_path / "data", train=image_split(), test=image_split())
    spoiled = folder / "test-00000-of-00001.parquet"
    spoiled.write_bytes(content(spoiled.read_bytes()))
    with pytest.raises(ValueError, match=r"test-00000-of-00001.parquet cannot be read .*; fetch them again .*git lfs"):
        load_image_dataset("cifar10", path=folder)


def test_parquet_files_of_one_split_must_have_the_same_columns(tmp_path):
    folder = write_parquet(tmp_path / "data", train=image_split(), train2=image_split(label="kind"), test=image_split())
    with pytest.raises(
        ValueError, match=r"train2.* cannot be read as parquet files of the same columns \(Couldn't cast"
    ):
        load_image_dataset("cifar10", path=folder)


def test_coarse_labels_need_their_column(tmp_path):
    write_parquet(tmp_path / "data", train=image_split(), test=image_split())
    with pytest.raises(ValueError, match="no column 'coarse_label', got image, label; leave `coarse_labels` out"):
        load_image_dataset("cifar100", path=tmp_path / "data", coarse_labels=True)


def test_without_network_and_cache_the_error_names_the_remedy():
    code = """
from hf_amp.vision import load_image_dataset
try:
    load_image_dataset("cifar10")
except ConnectionError as error:
    print(error)
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": "/nonexistent", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "data set 'uoft-cs/cifar10' is not in the cache, and the Hub cannot be reached" in run.stdout
    assert "`--dataset_path`" in run.stdout
    assert "'digits', which needs no network" in run.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("someone/nothing", r"'someone/nothing' \(there is no such folder here\)"),
        ("cifar11", r"'cifar11' \(there is no such folder here; did you mean 'cifar10'\?\)"),
        ("uoft-cs/cifar10", "'uoft-cs/cifar10'"),
    ],
)
def test_unknown_data_sets_are_refused_by_name(monkeypatch, name, told):
    def not_found(*args):
        raise DatasetNotFoundError("Dataset 'someone/nothing' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(places, "load_dataset", not_found)
    with pytest.raises(FileNotFoundError, match=rf"data set {told} was not found on the Hub.*correct the name"):
        load_image_dataset(name)


def test_data_sets_of_several_configurations_are_refused_with_a_way_out(monkeypatch):
    def ambiguous(*args):
        raise ValueError("Config name is missing.")

    monkeypatch.setattr(places, "load_dataset", ambiguous)
    with pytest.raises(
        ValueError, match=r"cannot be loaded as it is \(Config name is missing.\); choose what you need"
    ):
        load_image_dataset("someone/many")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
@pytest.mark.parametrize(
    ("name", "folder", "classes", "splits"),
    [
        ("cifar10", "cifar10-small", 10, {"train": 5000, "test": 1000}),
        ("cifar100", "cifar100-small", 100, {"train": 5000, "test": 1000}),
        ("svhn", "svhn-small", 10, {"train": 862, "validation": 221}),
    ],
)
def test_real_data_sets_load(name, folder, classes, splits):
    loaded = load_image_dataset(name, path=REAL / folder)
    assert {split: len(rows) for split, rows in loaded.items()} == splits
    assert loaded["train"].features["label"].num_classes == classes
    assert loaded["train"][0]["image"].size == (32, 32)
