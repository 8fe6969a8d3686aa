"""AutoAugment's tables are the published ones, its operations PIL's, and each image draws its own sub-policy."""

import numpy as np
import pytest
import torch
from tiny_images import REAL, own_cache

from hf_amp.vision import DecodedImages, load_image_dataset
from hf_amp.vision.augment.autoaugment import draw_policy, published_policy
from hf_amp.vision.augment.operations import Kind, apply_operation
from hf_amp.vision.augment.pil import apply_operation_to_image, change_images, to_image, to_pixels
from hf_amp.vision.augment.plan import change_pixels, draw_plan
from hf_amp.vision.augment.stream import RandomStream
from hf_amp.vision.data.catalogue import changes_for

# Cubuk et al. 2019, table 7: probability and magnitude of both operations of each sub-policy; "-": it has no magnitude.
CIFAR10 = """
Invert .1 -, Contrast .2 6; Rotate .7 2, TranslateX .3 9; Sharpness .8 1, Sharpness .9 3; ShearY .5 8, TranslateY .7 9;
AutoContrast .5 -, Equalize .9 -; ShearY .2 7, Posterize .3 7; Color .4 3, Brightness .6 7;
Sharpness .3 9, Brightness .7 9; Equalize .6 -, Equalize .5 -; Contrast .6 7, Sharpness .6 5;
Color .7 7, TranslateX .5 8; Equalize .3 -, AutoContrast .4 -; TranslateY .4 3, Sharpness .2 6;
Brightness .9 6, Color .2 8; Solarize .5 2, Invert 0 -; Equalize .2 -, AutoContrast .6 -; Equalize .2 -, Equalize .6 -;
Color .9 9, Equalize .6 -; AutoContrast .8 -, Solarize .2 8; Brightness .1 3, Color .7 0;
Solarize .4 5, AutoContrast .9 -; TranslateY .9 9, TranslateY .7 9; AutoContrast .9 -, Solarize .8 3;
Equalize .8 -, Invert .1 -; TranslateY .7 9, AutoContrast .9 -"""
# Table 8
SVHN = """
ShearX .9 4, Invert .2 -; ShearY .9 8, Invert .7 -; Equalize .6 -, Solarize .6 6; Invert .9 -, Equalize .6 -;
Equalize .6 -, Rotate .9 3; ShearX .9 4, AutoContrast .8 -; ShearY .9 8, Invert .4 -; ShearY .9 5, Solarize .2 6;
Invert .9 -, AutoContrast .8 -; Equalize .6 -, Rotate .9 3; ShearX .9 4, Solarize .3 3; ShearY .8 8, Invert .7 -;
Equalize .9 -, TranslateY .6 6; Invert .9 -, Equalize .6 -; Contrast .3 3, Rotate .8 4; Invert .8 -, TranslateY 0 2;
ShearY .7 6, Solarize .4 8; Invert .6 -, Rotate .8 4; ShearY .3 7, TranslateX .9 3; ShearX .1 6, Invert .6 -;
Solarize .7 2, TranslateY .6 7; ShearY .8 4, Invert .8 -; ShearX .7 9, TranslateY .8 3; ShearY .8 5, AutoContrast .7 -;
ShearX .7 2, Invert .1 -"""

VALUES = {
    Kind.SHEAR_X: (0.1333, -0.3),
    Kind.SHEAR_Y: (0.2667, -0.3),
    Kind.TRANSLATE_X: (14.5, -3.2, 0.0),
    Kind.TRANSLATE_Y: (12.9, -3.2, 0.0),
    Kind.ROTATE: (6.6667, 10.0, 13.3333, 30.0),
    Kind.COLOR: (0.1, 0.7, 1.3, 1.9),
    Kind.CONTRAST: (0.1, 0.7, 1.3, 1.9),
    Kind.SHARPNESS: (0.1, 0.7, 1.3, 1.9),
    Kind.BRIGHTNESS: (0.1, 0.7, 1.3, 1.9),
    Kind.POSTERIZE: (4.0, 5.0, 8.0),
    Kind.SOLARIZE: (0.0, 113.8, 199.1, 256.0),
}


def parsed(table):
    names = {kind.name.replace("_", "").lower(): kind for kind in Kind}
    policies = []
    for policy in table.replace("\n", " ").split(";"):
        words = [operation.split() for operation in policy.split(",")]
        policies.append([(names[w[0].lower()], float(w[1]), 0 if w[2] == "-" else int(w[2])) for w in words])
    return policies


def sample_images(bands, size=(32, 32)):
    """Noise, smooth images, images of few values, and images of one value."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (4, 3, *size))
    smooth = random.integers(20, 220, (4, 3, 1, 1)) + np.linspace(-20, 35, size[0] * size[1]).reshape(size)
    few = random.integers(100, 103, (4, 3, *size))
    plain = np.full((2, 3, *size), 77)
    images = np.concatenate([noise, smooth, few, plain]).astype(np.uint8)
    return torch.from_numpy(images[:, :bands].copy())


@pytest.mark.parametrize(("name", "table"), [("cifar10", CIFAR10), ("svhn", SVHN)])
def test_policies_are_the_published_tables(name, table):
    expected = parsed(table)
    assert len(expected) == 25
    assert published_policy(name) == expected


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("bands", "size"), [(3, (32, 32)), (1, (32, 32)), (3, (8, 11)), (1, (2, 2))])
def test_operations_are_pils_to_the_last_bit(kind, bands, size):
    pixels = sample_images(bands, size)
    for value in VALUES.get(kind, (0.0,)):
        values = torch.full((len(pixels),), value, dtype=torch.float64)
        changed = apply_operation(pixels, torch.full((len(pixels),), int(kind)), values)
        expected = torch.stack([to_pixels(apply_operation_to_image(to_image(one), kind, value)) for one in pixels])
        assert changed.dtype == torch.uint8
        assert (changed == expected).all(), (kind.name, value)


def test_the_way_of_a_gpu_gives_the_same_as_that_of_a_cpu(monkeypatch):
    """All kinds for all images, and the right ones picked: forced here by hiding that the tensors are on a CPU."""
    pixels = sample_images(3)
    kinds = torch.arange(len(pixels)) % len(Kind)
    values = torch.full((len(pixels),), 5.0, dtype=torch.float64)
    expected = apply_operation(pixels, kinds, values)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    hidden = [one.as_subclass(Elsewhere) for one in (pixels, kinds, values)]
    for name in ("arange", "zeros"):
        original = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, device=None, original=original, **kwargs: original(*args, **kwargs)
        )
    assert (apply_operation(*hidden).as_subclass(torch.Tensor) == expected).all()


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_sub_policies_signs_and_chances_are_drawn_for_each_image(name):
    count = 50_000
    plan = draw_policy(RandomStream(0, 0, torch.arange(count)), 7, name, (32, 32))
    kinds = plan.kinds.tolist()
    expected = np.zeros((len(Kind), 2))
    for operations in published_policy(name):
        for slot, (kind, chance, _) in enumerate(operations):
            expected[kind, slot] += chance / 25
            expected[Kind.IDENTITY, slot] += (1 - chance) / 25
    found = np.array([[sum(row[slot] == kind for row in kinds) for slot in (0, 1)] for kind in Kind]) / count
    assert np.abs(found - expected).max() < 5 * 0.5 / count**0.5
    for slot in (0, 1):
        shears = plan.values[:, slot][plan.kinds[:, slot] == Kind.SHEAR_Y]
        if len(shears) > 1000:
            assert abs((shears > 0).double().mean() - 0.5) < 0.1
    rotations = plan.values[plan.kinds == Kind.ROTATE]
    assert (rotations > 0).all()  # as in the paper's code
    assert plan.values[plan.kinds == Kind.COLOR].min() >= 0.1 - 1e-9 if name == "cifar10" else True


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
@pytest.mark.parametrize("bands", [1, 3])
def test_whole_policies_are_pils(name, bands):
    pixels = sample_images(bands).repeat(15, 1, 1, 1)
    plan = draw_plan(RandomStream(3, 1, torch.arange(len(pixels))), "autoaugment", changes_for(name), (32, 32))
    slow = change_images(pixels, plan)
    assert (change_pixels(pixels, plan) == slow).all()
    assert (slow != pixels).flatten(1).any(1).float().mean() > 0.5


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_whole_policies_are_pils_on_real_images(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path)
    split = load_image_dataset("cifar10", path=REAL / "cifar10-small", max_train_samples=200)["train"]
    indices = torch.arange(200)
    pixels = DecodedImages(split).pixels(indices)
    plan = draw_plan(RandomStream(0, 0, indices), "autoaugment", changes_for("cifar10"), (32, 32))
    assert (change_pixels(pixels, plan) == change_images(pixels, plan)).all()
