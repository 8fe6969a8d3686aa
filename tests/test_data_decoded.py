"""Decoded pixels are the images; the cache is trusted only when it is whole; too much data is read batch by batch."""

import numpy as np
import pytest
import torch
from datasets import Image
from tiny_images import image_split, own_cache, random_images

from hf_amp.vision import DecodedImages, add_label_noise
from hf_amp.vision.data import pixels as pixel_cache
from hf_amp.vision.data.pixels import fingerprint


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path)
    return tmp_path / "hf_amp"


@pytest.fixture
def decodings(monkeypatch):
    """The images that were decoded, in order."""
    original, seen = pixel_cache.decode, []
    monkeypatch.setattr(pixel_cache, "decode", lambda *args: seen.append(args[3]) or original(*args))
    return seen


def everything(images):
    return images.pixels(torch.arange(len(images)))


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 0}])
def test_pixels_and_labels_are_those_of_the_images(bands, options):
    originals = random_images(5, size=(6, 9), bands=bands)
    images = DecodedImages(image_split(5, images=originals), **options)
    assert images.pixel_shape == (bands, 6, 9)
    assert images.streams == bool(options)
    assert images.labels.tolist() == [0, 1, 2, 0, 1]
    assert images.label_names == ["class 0", "class 1", "class 2"]
    expected = np.stack([np.asarray(one).reshape(6, 9, bands).transpose(2, 0, 1) for one in originals])
    assert (everything(images).numpy() == expected).all()
    assert (images.pixels(torch.tensor([3, 0, 3])).numpy() == expected[[3, 0, 3]]).all()
    assert everything(images).dtype == torch.uint8


def test_second_use_reads_the_file_and_decodes_nothing(decodings, cache):
    split = image_split(5)
    first = everything(DecodedImages(split))
    assert len(decodings) == 5
    assert (everything(DecodedImages(split)) == first).all()
    assert len(decodings) == 5
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_other_labels_share_the_pixels_and_other_pixels_do_not(decodings, cache):
    split = image_split(5)
    DecodedImages(split)
    noisy = DecodedImages(add_label_noise(split, 0.4, seed=0))
    assert len(decodings) == 5
    assert (noisy.labels != DecodedImages(split).labels).sum() == 2
    for other in (image_split(5, seed=1), split.select([1, 0, 2, 3, 4]), split.select(range(4))):
        before = len(decodings)
        assert (everything(DecodedImages(other)).numpy()[0].transpose(1, 2, 0) == np.asarray(other[0]["image"])).all()
        assert len(decodings) == before + len(other)
    DecodedImages(split, image_size=4)
    assert len(list(cache.iterdir())) == 5


def test_the_key_of_image_files_changes_with_the_file(tmp_path):
    path = tmp_path / "image.png"
    random_images(1)[0].save(path)
    split = image_split(1).remove_columns("image").add_column("image", [str(path)]).cast_column("image", Image())
    before = fingerprint(split, (1, 3, 8, 8))
    assert fingerprint(split, (1, 3, 8, 8)) == before
    random_images(1, size=(9, 9))[0].save(path)
    assert fingerprint(split, (1, 3, 8, 8)) != before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no array at all"),
        lambda path: np.save(path, np.zeros((5, 3, 8, 7), np.uint8)),
        lambda path: np.save(path, np.zeros((5, 3, 8, 8), np.int8)),
        lambda path: np.save(path, np.array([None]), allow_pickle=True),
    ],
)
def test_a_file_that_is_not_whole_is_decoded_again(spoil, cache, caplog):
    split = image_split(5)
    expected = everything(DecodedImages(split)).clone()
    (path,) = cache.iterdir()
    spoil(path)
    assert (everything(DecodedImages(split)) == expected).all()
    assert "the images are decoded again" in caplog.text
    caplog.clear()
    assert (everything(DecodedImages(split)) == expected).all()
    assert caplog.text == ""


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing_behind(step, monkeypatch, cache):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hf_amp.files.os.{step}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DecodedImages(image_split(5))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    images = DecodedImages(image_split(5), cache_dir=tmp_path / "file")
    assert everything(images).shape == (5, 3, 8, 8)
    assert "could not be kept in" in caplog.text


def test_cache_dir_is_the_users_choice(tmp_path, cache):
    DecodedImages(image_split(5), cache_dir=tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert not cache.exists()


def test_data_too_large_for_memory_is_read_batch_by_batch_and_said(caplog, decodings, cache):
    images = DecodedImages(image_split(5), max_bytes=5 * 3 * 8 * 8 - 1)
    assert images.streams
    assert "5 images of (3, 8, 8) take 0 MiB, more than" in caplog.text
    assert decodings == []
    assert not cache.exists()
    assert not DecodedImages(image_split(5), max_bytes=5 * 3 * 8 * 8).streams
    with pytest.raises(ValueError, match=r"`to\('cuda'\)`: the images are not in memory; keep them on the CPU"):
        images.to("cuda")


def test_the_memory_that_is_free_is_the_measure(monkeypatch):
    memory = type("Memory", (), {"available": 2 * 5 * 3 * 8 * 8 - 2})()
    monkeypatch.setattr("hf_amp.vision.data.decoded.psutil.virtual_memory", lambda: memory)
    assert DecodedImages(image_split(5)).streams


@pytest.mark.parametrize("options", [{}, {"max_bytes": 0}])
def test_images_of_several_sizes_need_image_size(options):
    split = image_split(3, images=random_images(2) + random_images(1, size=(5, 7)))
    with pytest.raises(ValueError, match="image 2 is 5×7 and the first image 8×8 pixels; give `image_size`"):
        everything(DecodedImages(split, **options))
    images = DecodedImages(split, image_size=(4, 6), **options)
    expected = split[2]["image"].resize((6, 4), resample=2)
    assert (images.pixels(torch.tensor([2]))[0].numpy().transpose(1, 2, 0) == np.asarray(expected)).all()


def test_grey_images_become_coloured_and_colours_are_not_lost():
    grey, colour = random_images(1, bands=1), random_images(1)
    pixels = everything(DecodedImages(image_split(2, images=colour + grey)))
    assert (pixels[1].numpy() == np.asarray(grey[0])[None]).all()
    with pytest.raises(ValueError, match=r"image 1 is in colour \(mode RGB\).*give `image_mode`"):
        DecodedImages(image_split(2, images=grey + colour))
    split = image_split(2, images=grey + colour).cast_column("image", Image(mode="RGB"))
    assert DecodedImages(split).pixel_shape == (3, 8, 8)


def test_palettes_and_transparency_become_colours_and_deep_pixels_are_refused():
    rgb = random_images(1)[0]
    rgba = rgb.copy()
    rgba.putalpha(7)
    pixels = everything(DecodedImages(image_split(3, images=[rgba, rgb, rgb.quantize(256)])))
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[2].int() - pixels[1].int()).abs().float().mean() < 3
    deep = random_images(1, bands=1)[0].convert("I;16")
    with pytest.raises(ValueError, match="image 0 has mode I;16, more than 8 bits a channel"):
        DecodedImages(image_split(1, images=[deep]))


@pytest.mark.parametrize("options", [{}, {"max_bytes": 0}])
@pytest.mark.parametrize(
    "spoiled",
    [
        lambda row: {**row, "bytes": row["bytes"][:60]},
        lambda row: {**row, "bytes": b"no image"},
        lambda row: {"bytes": None, "path": "nowhere.png"},
    ],
)
@pytest.mark.parametrize("number", [0, 3])
def test_images_that_cannot_be_read_are_named(cache, options, spoiled, number):
    rows = image_split(5).cast_column("image", Image(decode=False))["image"][:]
    rows[number] = spoiled(rows[number])
    split = image_split(5).remove_columns("image").add_column("image", rows, feature=Image())
    with pytest.raises(
        ValueError,
        match=rf"image {number}( \(nowhere.png\))? cannot be read \(.+\); fetch the data set again, or remove",
    ):
        everything(DecodedImages(split, **options))
    assert not cache.exists()


@pytest.mark.parametrize("options", [{}, {"max_bytes": 0}])
@pytest.mark.parametrize("number", [0, 3])
def test_missing_images_are_named(options, number):
    rows = image_split(5).cast_column("image", Image(decode=False))["image"][:]
    rows[number] = None
    split = image_split(5).remove_columns("image").add_column("image", rows, feature=Image())
    with pytest.raises(ValueError, match=f"image {number} is missing; remove the rows without image"):
        everything(DecodedImages(split, **options))


@pytest.mark.parametrize("size", [0, -3, (4, 0), (1, 2, 3), 3.5])
def test_impossible_image_sizes_are_refused(size):
    with pytest.raises(ValueError, match="`image_size` must be a whole number > 0"):
        DecodedImages(image_split(), image_size=size)


def test_splits_without_the_columns_are_refused():
    with pytest.raises(
        ValueError, match=r"must have a column 'image' of type datasets.Image, got .*load_image_dataset"
    ):
        DecodedImages(image_split(image="img"))
    with pytest.raises(ValueError, match=r"must have a column 'label' of type datasets.ClassLabel"):
        DecodedImages(image_split(label="kind"))
    with pytest.raises(ValueError, match="`split` must have images, got none"):
        DecodedImages(image_split().select([]))
    with pytest.raises(ValueError, match="`max_bytes` must be >= 0, got -1"):
        DecodedImages(image_split(), max_bytes=-1)


def test_epochs_are_counted_from_0():
    images = DecodedImages(image_split())
    assert images.epoch is None
    images.set_epoch(3)
    assert images.epoch == 3
    with pytest.raises(ValueError, match="`epoch` must be >= 0, got -1"):
        images.set_epoch(-1)


def test_formats_of_the_split_do_not_matter():
    expected = everything(DecodedImages(image_split()))
    assert (everything(DecodedImages(image_split().with_format("torch"), max_bytes=0)) == expected).all()
