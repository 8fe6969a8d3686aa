"""Every row of the paper's tables is a recipe, and the files are what the table gives."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from hf_amp.vision.arguments import ImageTrainingArguments
from hf_amp.vision.command_line import known_names, parse_command_line
from hf_amp.vision.recipes import RECIPES

FOLDER = Path(__file__).parent.parent / "examples" / "recipes"


def test_every_cell_of_the_three_tables_has_a_recipe():
    datasets = ("svhn", "cifar10", "cifar100")
    methods = ("erm", "dropout", "label_smoothing", "flooding", "mixup", "adversarial", "rmp", "amp")
    names = {f"{d}_{m}_{s}" for d in datasets for m in ("preactresnet18", "vgg16") for s in methods}
    for augmentation in ("", "_cutout", "_autoaugment"):
        for model in ("wideresnet28_10", "pyramidnet164_270"):
            names |= {f"{d}_{model}{augmentation}_{s}" for d in datasets for s in ("erm", "amp")}
    assert len(names) == 84
    assert set(RECIPES) == names


def test_generating_again_gives_the_committed_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--folder", str(tmp_path)])
    runpy.run_path(str(FOLDER / "generate.py"), run_name="__main__")
    assert "84 recipes" in capsys.readouterr().out
    fresh = {path.name: path.read_text() for path in tmp_path.glob("*.yaml")}
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.yaml")}
    assert fresh == committed


def test_generator_lists_the_published_figures(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--list"])
    runpy.run_path(str(FOLDER / "generate.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 84
    line = next(line for line in lines if line.startswith("cifar10_preactresnet18_amp "))
    assert line.endswith("test error 3.97 ± 0.091 %, negative log-likelihood 0.129")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_read_with_the_published_settings(name):
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(settings) <= known_names()
    model, data, args = parse_command_line(["--config", str(FOLDER / f"{name}.yaml"), "--use_cpu"])
    recipe = RECIPES[name]
    assert (model.model, data.dataset, args.method) == (recipe.model, recipe.dataset, recipe.method)
    assert data.augmentation == recipe.augmentation
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.max_grad_norm) == (200, 50, 50)
    assert (args.learning_rate, args.weight_decay, args.lr_schedule) == (0.1, 1e-4, "step")
    for field, value in settings.items():
        if field not in ("model", "dataset", "augmentation"):
            assert getattr(args, field) == value, field


@pytest.mark.parametrize(
    ("name", "epsilon", "inner_lr"),
    [
        ("cifar10_preactresnet18_amp", 0.5, 1.0),
        ("cifar100_wideresnet28_10_amp", 0.5, 1.0),
        ("svhn_pyramidnet164_270_cutout_amp", 0.3, 0.5),
        ("cifar10_pyramidnet164_270_autoaugment_amp", 0.1, 0.1),
        ("svhn_vgg16_amp", 0.1, 0.2),
    ],
)
def test_published_radius_and_inner_learning_rate(name, epsilon, inner_lr):
    settings = RECIPES[name].settings
    assert (settings["amp_epsilon"], settings["amp_inner_lr"], settings["amp_inner_iter"]) == (epsilon, inner_lr, 1)


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        ("dropout", "dropout", 0.1),
        ("label_smoothing", "smoothing", 0.2),
        ("flooding", "flood_level", 0.02),
        ("mixup", "mixup_alpha", 1.0),
        ("adversarial", "adversarial_radius", 1.0),
        ("rmp", "amp_epsilon", 0.1),
    ],
)
def test_published_strength_of_the_other_schemes_is_also_the_default(method, field, value):
    assert RECIPES[f"cifar100_vgg16_{method}"].settings[field] == value
    assert getattr(ImageTrainingArguments(method=method, use_cpu=True), field) == value


def test_published_figures_of_a_row_from_each_table():
    assert str(RECIPES["svhn_vgg16_mixup"].published) == "test error 3.09 ± 0.057 %, negative log-likelihood 0.16"
    assert str(RECIPES["cifar100_pyramidnet164_270_autoaugment_amp"].published) == "test error 13.36 %"
