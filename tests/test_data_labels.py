"""Parts keep the shares of the classes; label noise replaces exactly its share, and leaves everything else alone."""

import math
from datetime import date

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from tiny_images import image_split, own_cache, write_parquet

from hf_amp.vision import add_label_noise, load_image_dataset
from hf_amp.vision.data.labels import (
    keep_samples,
    split_off,
    stratified_indices,
    take_given_labels,
    with_labels_of,
)


@pytest.mark.parametrize("count", [0, 1, 7, 10, 33, 60])
def test_every_class_has_its_share_to_the_nearest_image(count):
    labels = np.repeat([0, 1, 4], [30, 20, 10])
    drawn = stratified_indices(labels, count, seed=0)
    assert len(drawn) == len(set(drawn.tolist())) == count
    assert (np.diff(drawn) > 0).all()
    shares = np.array([(labels[drawn] == one).sum() for one in (0, 1, 4)])
    assert np.abs(shares - count * np.array([30, 20, 10]) / 60).max() < 1


def test_draws_are_the_seeds_choice():
    labels = np.arange(60) % 3
    assert (stratified_indices(labels, 12, 0) == stratified_indices(labels, 12, 0)).all()
    assert (stratified_indices(labels, 12, 0) != stratified_indices(labels, 12, 1)).any()
    # One image more than the classes share evenly: which class gets it is drawn, too.
    extra = {tuple(np.bincount(labels[stratified_indices(labels, 4, seed)])) for seed in range(20)}
    assert extra == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


def test_more_images_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"`count` must be in \[0, 3\], the number of images, got 4"):
        stratified_indices(np.zeros(3, int), 4, 0)


def test_part_and_rest_are_the_whole():
    split = image_split(30)
    rest, part = split_off(split, 0.2, seed=0)
    names = [[image.tobytes() for image in one["image"]] for one in (split, rest, part)]
    assert (len(rest), len(part)) == (24, 6)
    assert sorted(names[0]) == sorted(names[1] + names[2])
    assert len(keep_samples(split, 9, 0)) == 9
    assert len(keep_samples(split, 99, 0)) == 30


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.35, 0.99])
def test_exactly_the_share_of_labels_is_wrong_and_recorded(fraction):
    split = image_split(40, classes=4)
    noisy = add_label_noise(split, fraction, seed=0)
    labels, clean = np.array(noisy["label"][:]), np.array(noisy["clean_label"][:])
    assert clean.tolist() == split["label"][:]
    assert (labels != clean).sum() == round(fraction * 40)
    assert noisy.features["label"] == split.features["label"]
    assert [one.tobytes() for one in noisy["image"]] == [one.tobytes() for one in split["image"]]
    assert split.column_names == ["image", "label"]


def test_wrong_labels_are_drawn_evenly_from_the_other_classes_by_the_seed():
    split = image_split(3000, classes=3, images=[image_split(1)[0]["image"]] * 3000)
    noisy = add_label_noise(split, 0.9, seed=0)
    shift = (np.array(noisy["label"][:]) - np.array(split["label"][:])) % 3
    counts = np.bincount(shift, minlength=3)
    assert counts[0] == 300
    assert abs(counts[1] - 1350) < 5 * np.sqrt(2700 / 4)
    assert add_label_noise(split, 0.9, seed=0)["label"][:] == noisy["label"][:]
    assert add_label_noise(split, 0.9, seed=1)["label"][:] != noisy["label"][:]


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_noise_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"`fraction` must be in \[0, 1\), got .*; 0.2 replaces 20 %"):
        add_label_noise(image_split(), fraction, 0)


def test_one_class_has_no_wrong_labels():
    with pytest.raises(ValueError, match="needs a second class to draw wrong labels from, and `label` has 1"):
        add_label_noise(image_split(classes=1), 0.2, 0)


def label_file(folder, ending, columns):
    """A file of labels in one of the formats."""
    path = folder / f"labels{ending}"
    if ending == ".parquet":
        Dataset.from_dict(columns).to_parquet(path)
    elif ending == ".csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    elif ending == ".npy":
        np.save(path, np.array(next(iter(columns.values()))))
    else:
        torch.save({name: np.array(values) for name, values in columns.items()}, path)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npy", ".pt"])
@pytest.mark.parametrize("values", [[1, 2, 0] * 4, ["class 1", "class 2", "class 0"] * 4])
def test_labels_of_others_take_the_place_of_the_data_sets_own(tmp_path, ending, values):
    file = label_file(tmp_path, ending, {"given": values} if ending == ".npy" else {"given": values, "x": [0] * 12})
    place = str(file) if ending == ".npy" else f"{file}:given"
    split = take_given_labels(with_labels_of(image_split(12), place))
    assert split["label"][:] == [1, 2, 0] * 4
    assert split["clean_label"][:] == [0, 1, 2] * 4
    assert split.features["label"].names == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npy", ".pt"])
@pytest.mark.parametrize("names", [["0", "1", "10", "2"], ["1", "2", "3", "4"], ["07", "08", "09", "10"]])
def test_a_number_is_the_class_of_that_name_in_a_file_of_any_kind(tmp_path, ending, names):
    split = image_split(12, classes=4)
    split = split.cast_column("label", ClassLabel(names=names))
    file = label_file(tmp_path, ending, {"given": [int(names[i % 4]) for i in range(12)]})
    assert with_labels_of(split, str(file))["given_label"][:] == split["label"][:]
    with pytest.raises(ValueError, match=r"must hold names of the classes \(\w+, \w+, \w+, …\), got '?99"):
        with_labels_of(split, str(label_file(tmp_path, ending, {"given": [99] * 12})))


def test_held_out_images_have_the_given_labels_and_the_choice_of_images_stays(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path / "cache")
    folder = write_parquet(tmp_path / "data", train=image_split(60), test=image_split(6, seed=1))
    file = label_file(tmp_path, ".csv", {"label": [(i + 1) % 3 for i in range(60)]})
    options = {"path": folder, "validation_fraction": 0.2, "max_train_samples": 30}
    own, given = load_image_dataset("mine", **options), load_image_dataset("mine", train_labels=str(file), **options)
    for name in ("train", "validation", "test"):
        pixels = [[image.tobytes() for image in splits[name]["image"]] for splits in (own, given)]
        assert pixels[0] == pixels[1]
        shift = 0 if name == "test" else 1
        assert given[name]["label"][:] == [(label + shift) % 3 for label in own[name]["label"][:]]
    assert given["train"]["clean_label"][:] == own["train"]["label"][:]
    assert given["validation"]["clean_label"][:] == own["validation"]["label"][:]


def test_held_out_images_that_are_tested_on_keep_their_own_labels(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path / "cache")
    folder = write_parquet(tmp_path / "data", train=image_split(60))
    file = label_file(tmp_path, ".csv", {"label": [(i + 1) % 3 for i in range(60)]})
    options = {"path": folder, "validation_fraction": 0.2}
    own, given = load_image_dataset("mine", **options), load_image_dataset("mine", train_labels=str(file), **options)
    assert given["validation"]["label"][:] == own["validation"]["label"][:]
    assert given["validation"].column_names == ["image", "label"]


class Harmful:
    def __reduce__(self):
        return (print, ("code in the file was run",))


def test_files_of_labels_that_do_not_fit_are_refused(tmp_path, capsys):
    split = image_split(12)
    for columns, place, message in (
        ({"a": [0] * 11}, ":a", "holds 11 labels, and the training split 12 images; give one label for each image"),
        ({"a": [0] * 11 + [3]}, ":a", r"or numbers in \[0, 3\), got 3; correct the file or name another column"),
        ({"a": ["class 9"] * 12}, ":a", r"must hold names of the classes .* got 'class 9'"),
        ({"a": [0] * 12, "b": [0] * 12}, "", r"has the columns a, b, got None; name one: labels.parquet:a"),
        ({"a": [0] * 12, "b": [0] * 12}, ":c", r"has the columns a, b, got 'c'"),
        ({"a": [0] * 11 + [None]}, ":a", "got None"),
        ({"a": [0] * 11 + [math.inf]}, ":a", r"`train_labels` labels.parquet:a must hold names .* got inf; correct"),
        ({"a": [b"cat"] * 12}, ":a", "must hold names .* got b'cat'"),
        ({"a": [date(2026, 1, 1)] * 12}, ":a", r"must hold names .* got datetime.date\(2026"),
        ({"a": [[1, 2]] * 12}, ":a", r"must hold names .* got \[1, 2\]"),
    ):
        file = label_file(tmp_path, ".parquet", columns)
        with pytest.raises(ValueError, match=message):
            with_labels_of(split, f"{file}{place}")
    with pytest.raises(FileNotFoundError, match=r"`train_labels` nothing.csv is not there; give FILE or FILE:COLUMN"):
        with_labels_of(split, "nothing.csv")
    for name, content, message in (
        ("empty.pt", "", r"`train_labels` empty.pt cannot be read \(.+\); write the file anew"),
        ("empty.csv", "", "`train_labels` empty.csv holds no labels; give one label for each training image"),
        ("header.csv", "label\n", "`train_labels` header.csv holds no labels"),
        ("short.csv", "a,b\n1,2\n3\n", r"short.csv cannot be read \(a line has more or fewer values"),
        ("words.csv", "class 0\n" * 12, "holds 11 labels, .* 12 images; the first line was read as the name of the"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            with_labels_of(split, str(tmp_path / name))
    np.save(tmp_path / "complex.npy", np.ones(12, complex))
    with pytest.raises(ValueError, match=r"`train_labels` complex.npy must hold names .* got \(1\+0j\)"):
        with_labels_of(split, str(tmp_path / "complex.npy"))
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must be a file of .parquet, .csv, .npy, .pt, got labels.json"):
        with_labels_of(split, str(tmp_path / "labels.json"))
    torch.save({"a": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match=r"`train_labels` harmful.pt cannot be read \(Weights only load failed"):
        with_labels_of(split, f"{tmp_path / 'harmful.pt'}:a")
    assert "was run" not in capsys.readouterr().out
