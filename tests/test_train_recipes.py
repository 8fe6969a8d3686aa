"""Every row of the paper's tables is a recipe with its published settings."""

import pytest

from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.command_line import read_settings
from hf_amp.vision.train.recipes import RECIPES


def test_every_cell_of_the_three_tables_has_a_recipe():
    datasets = ("svhn", "cifar10", "cifar100")
    methods = ("erm", "dropout", "label_smoothing", "flooding", "mixup", "adversarial", "rmp", "amp")
    names = {f"{d}_{m}_{s}" for d in datasets for m in ("preactresnet18", "vgg16") for s in methods}
    for augmentation in ("", "_cutout", "_autoaugment"):
        for model in ("wideresnet28_10", "pyramidnet164_270"):
            names |= {f"{d}_{model}{augmentation}_{s}" for d in datasets for s in ("erm", "amp")}
    assert len(names) == 84
    assert set(RECIPES) == names


def test_recipes_are_listed_with_the_published_figures(capsys):
    with pytest.raises(SystemExit):
        read_settings(["--list_recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 84
    line = next(line for line in lines if line.startswith("cifar10_preactresnet18_amp "))
    assert line.endswith("test error 3.97 ± 0.091 %, negative log-likelihood 0.129")


def test_an_unknown_recipe_is_refused_with_a_guess():
    with pytest.raises(ValueError, match="`recipe` 'cifar10_vgg16_apm' does not exist; did you mean cifar10_vgg16_amp"):
        read_settings(["--recipe", "cifar10_vgg16_apm"])
    with pytest.raises(ValueError, match="`recipe` 'x' does not exist; --list_recipes lists all"):
        read_settings(["--recipe", "x"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_read_with_the_published_settings(name):
    model, data, args = read_settings(["--recipe", name, "--use_cpu"])[0].arguments()
    recipe = RECIPES[name]
    assert (model.model, data.dataset, args.method) == (recipe.model, recipe.dataset, recipe.method)
    assert data.augmentation == recipe.augmentation
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.max_grad_norm) == (200, 50, 50)
    assert (args.learning_rate, args.weight_decay, args.lr_schedule) == (0.1, 1e-4, "step")
    for field, value in recipe.settings.items():
        if field not in ("model", "dataset", "augmentation"):
            assert getattr(args, field) == value, field


def test_flags_override_a_file_and_a_file_overrides_the_recipe_that_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: svhn_vgg16_amp\nlearning_rate: 0.05\namp_epsilon: 0.2\n")
    settings, options = read_settings(["--config", str(path), "--amp_epsilon", "0.3"])
    assert options.recipe == "svhn_vgg16_amp"
    given = {name: settings.given[name] for name in ("dataset", "amp_inner_lr", "learning_rate", "amp_epsilon")}
    assert given == {"dataset": "svhn", "amp_inner_lr": 0.2, "learning_rate": 0.05, "amp_epsilon": 0.3}


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
