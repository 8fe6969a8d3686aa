"""One numbering of the classes in all splits, or a refusal that names the split."""

import pytest
from datasets import ClassLabel
from tiny_images import as_dict, image_split, plain_label_split

from hf_amp.vision.data.columns import say_missing_classes, uniform_columns


def named(labels, names):
    split = image_split(len(labels), classes=len(names))
    return split.remove_columns("label").add_column("label", labels, feature=ClassLabel(names=names))


def test_a_split_that_numbers_the_same_classes_otherwise_is_numbered_by_name():
    splits = as_dict(train=named([0, 1, 2], ["cat", "dog", "emu"]), test=named([0, 1, 1], ["emu", "cat"]))
    found = uniform_columns(splits, None, "mine")
    assert found["test"].features["label"].names == ["cat", "dog", "emu"]
    assert found["test"]["label"][:] == [2, 0, 0]
    assert found["train"]["label"][:] == [0, 1, 2]


def test_words_take_the_numbers_of_class_labels():
    test = plain_label_split(["dog", "cat"], "large_string").rename_column("picture", "image")
    found = uniform_columns(as_dict(train=named([0, 1], ["cat", "dog"]), test=test), "label", "mine")
    assert found["test"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("dtype", "train", "test", "names", "numbers"),
    [
        ("large_string", ["cat", "dog"], ["dog"], ["cat", "dog"], [1]),
        ("bool", [True, False], [True], ["False", "True"], [1]),
        ("int64", [7, 100, 3], [100], ["3", "7", "100"], [2]),
        ("float64", [7.0, 3.0], [7.0], ["3", "7"], [1]),
        ("int8", [-1, 1], [1, -1], ["-1", "1"], [1, 0]),  # two classes, and not a hidden label
    ],
)
def test_labels_of_any_plain_type(dtype, train, test, names, numbers):
    splits = as_dict(train=plain_label_split(train, dtype), test=plain_label_split(test, dtype))
    found = uniform_columns(splits, None, "mine")
    assert found["train"].features["label"].names == names
    assert found["test"]["label"][:] == numbers


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (named([0, 1], ["cat", "dog"]), named([0], ["emu"]),
         "split 'test' of mine has classes that the training split does not name: emu"),
        (plain_label_split([0, 1], "int64"), plain_label_split(["0"], "string"),
         "must be of one kind in all splits, got numbers in 'train', words in 'test'"),
        (plain_label_split([0, 1], "int64"), plain_label_split([-1, -1], "int64"),
         "labels of split 'test' of mine hold -1, which stands for a hidden label"),
        (plain_label_split([0, 1], "int64"), plain_label_split([0, -1], "int64"), "'test' of mine hold -1"),
        (named([0, 1], ["cat", "dog"]), named([-1], ["dog", "cat"]), r"'test' of mine must be in \[0, 2\), got -1"),
        (plain_label_split(["cat", "dog"], "string"), plain_label_split(["emu"], "string"),
         r"split 'test' of mine has classes that no training image has: emu \(there: cat, dog\); use the same names"),
        (plain_label_split([1, 2], "int64"), plain_label_split([2, 3], "int64"), "that no training image has: 3"),
        (plain_label_split([0.0, float("nan")], "float64"), plain_label_split([0.0], "float64"), "has missing values"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_each_other_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        uniform_columns(as_dict(train=train, test=test), None, "mine")


def test_classes_without_an_image_are_named(caplog):
    splits = uniform_columns(
        as_dict(train=named([0, 1], ["cat", "dog", "emu"]), test=named([0], ["cat", "dog", "emu"])), None, "mine"
    )
    say_missing_classes(splits, "mine")
    assert "Split 'train' of mine has no image of 1 of the 3 classes: emu" in caplog.text
    assert "Split 'test' of mine has no image of 2 of the 3 classes: dog, emu" in caplog.text
