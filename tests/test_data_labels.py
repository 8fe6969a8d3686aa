"""Parts keep the shares of the classes; label noise replaces exactly its share, and leaves everything else alone."""

import numpy as np
import pytest
from tiny_images import image_split

from hf_amp.vision import add_label_noise
from hf_amp.vision.data.labels import keep_samples, split_off, stratified_indices


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
