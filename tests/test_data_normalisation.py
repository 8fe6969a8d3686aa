"""The image processor does what the collator does, is loaded by the auto class, and needs no torchvision."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_images import image_split, own_cache, random_images
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_amp.models import PreActResNetConfig, PreActResNetForImageClassification
from hf_amp.vision import DecodedImages, ImageCollator, make_image_processor

NAMES = {1: "digits", 3: "svhn"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path / "cache")


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("image_size", [None, (7, 12)])
def test_processor_and_collator_make_the_same_of_an_image(tmp_path, bands, image_size):
    originals = random_images(4, size=(6, 9), bands=bands)
    images = DecodedImages(image_split(4, images=originals), image_size=image_size)
    collator = ImageCollator(NAMES[bands], augmentation="none")
    expected = collator(images.__getitems__(range(4)))["pixel_values"]
    processor = make_image_processor(NAMES[bands], image_size or (6, 9))
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    for one in (processor, loaded):
        found = one(originals, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)


def test_grey_processor_makes_any_image_grey():
    grey = random_images(1, bands=1)[0]
    processor = make_image_processor("digits", 8)
    expected = processor(grey, return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 1, 8, 8)
    array = np.array(grey)
    for image in (grey.convert("RGB"), array, torch.from_numpy(array), [grey], array[None], array[:, :, None]):
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)
    assert processor([grey, random_images(1)[0]], return_tensors="np")["pixel_values"].shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="must be PIL images, arrays or tensors"):
        processor(3.5)


def test_colour_processor_makes_grey_images_coloured():
    grey = random_images(1, bands=1)[0]
    processor = make_image_processor("cifar10", 8)
    assert processor(grey, return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("bands", [1, 3])
def test_pipelines_see_what_the_network_was_trained_on(tmp_path, bands):
    originals = random_images(3, bands=bands)
    images = DecodedImages(image_split(3, images=originals))
    batch = ImageCollator(NAMES[bands], augmentation="none")(images.__getitems__(range(3)))
    names = dict(enumerate(images.label_names))
    config = PreActResNetConfig(hidden_sizes=[4, 8], depths=[1, 1], num_channels=bands, image_size=8, id2label=names)
    model = PreActResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    make_image_processor(NAMES[bands], 8).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), trust_remote_code=True, device="cpu")
    with torch.no_grad():
        expected = model(batch["pixel_values"]).logits.softmax(1)
    for image, probabilities in zip(originals, expected, strict=True):
        answer = {one["label"]: one["score"] for one in classify(image)}
        assert answer == pytest.approx(dict(zip(images.label_names, probabilities.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize("bands", [1, 3])
def test_saved_processor_works_where_the_package_is_not(tmp_path, bands):
    image = random_images(1, bands=bands)[0]
    image.save(tmp_path / "image.png")
    processor = make_image_processor(NAMES[bands], 8)
    processor.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["image_mean"]
    code = """
import sys
sys.modules["hf_amp"] = None
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1] + "/model", trust_remote_code=True)
print(processor(Image.open(sys.argv[1] + "/image.png"), return_tensors="pt")["pixel_values"].double().sum().item())
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False,
                         env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = processor(image, return_tensors="pt")["pixel_values"].double().sum().item()
    assert float(run.stdout) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cifar10", 0), {}, "`image_size` must be a whole number > 0 or two of them .height, width., got 0"),
        (("cifar10", 32), {"mean": [0.5] * 3}, "`mean` and `std` go together"),
        (("x/y", 32), {}, "'x/y' has no fixed mean and standard deviation"),
        (("x/y", 32), {"mean": [0.5] * 2, "std": [0.5] * 2}, "must hold 1 or 3 numbers each"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make_image_processor(*arguments, **options)
