"""The rows of the paper's result tables: settings of each run, and the figures that were published for it.

The one home of published settings: the command takes a row with `--recipe NAME`, and its defaults from `PROTOCOL`.

Source: Zheng, Zhang, Mao, *Regularizing Neural Networks via Adversarial Model Perturbation*, CVPR 2021,
the three result tables and the protocol of section 5.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from hf_amp.vision.train.methods import METHODS

DATASETS = ("svhn", "cifar10", "cifar100")
_SGD_NUMBERS = ("momentum", "dampening")
METHOD_ORDER = ("erm", "dropout", "label_smoothing", "flooding", "mixup", "adversarial", "rmp", "amp")

PROTOCOL: dict[str, Any] = {
    "num_train_epochs": 200,
    "per_device_train_batch_size": 50,
    "optim": "sgd",
    "optim_args": "momentum=0.9,nesterov=True",
    "learning_rate": 0.1,
    "lr_schedule": "step",
    "weight_decay": 1e-4,
    "max_grad_norm": 50.0,
}

# (ε, ζ) of AMP
_AMP_BY_AUGMENTATION = {"vanilla": (0.5, 1.0), "cutout": (0.3, 0.5), "autoaugment": (0.1, 0.1)}
_AMP_BY_MODEL = {"vgg16": (0.1, 0.2)}

# Test error in %, its standard deviation over 5 runs, negative log-likelihood; in the order of DATASETS.
_TABLES_1_AND_2 = {
    "preactresnet18": {
        "erm": ((2.95, 0.063, 0.166), (5.02, 0.212, 0.239), (24.31, 0.303, 1.056)),
        "dropout": ((2.80, 0.065, 0.156), (4.86, 0.148, 0.223), (24.48, 0.351, 1.110)),
        "label_smoothing": ((2.78, 0.087, 0.998), (4.85, 0.115, 1.038), (22.07, 0.256, 2.099)),
        "flooding": ((2.84, 0.047, 0.130), (4.97, 0.082, 0.166), (24.50, 0.234, 0.950)),
        "mixup": ((2.74, 0.044, 0.146), (4.09, 0.117, 0.198), (21.78, 0.210, 0.910)),
        "adversarial": ((2.77, 0.080, 0.151), (4.99, 0.085, 0.247), (25.23, 0.229, 1.110)),
        "rmp": ((2.93, 0.066, 0.161), (4.97, 0.167, 0.239), (24.28, 0.138, 1.059)),
        "amp": ((2.30, 0.025, 0.096), (3.97, 0.091, 0.129), (21.51, 0.308, 0.774)),
    },
    "vgg16": {
        "erm": ((3.14, 0.060, 0.140), (6.32, 0.193, 0.361), (27.84, 0.297, 1.827)),
        "dropout": ((2.96, 0.049, 0.134), (6.22, 0.147, 0.314), (27.72, 0.337, 1.605)),
        "label_smoothing": ((3.07, 0.070, 1.004), (6.29, 0.158, 1.076), (27.49, 0.179, 2.310)),
        "flooding": ((3.15, 0.085, 0.128), (6.26, 0.145, 0.234), (27.93, 0.271, 1.221)),
        "mixup": ((3.09, 0.057, 0.160), (5.48, 0.112, 0.251), (26.81, 0.254, 1.136)),
        "adversarial": ((2.94, 0.091, 0.122), (6.49, 0.130, 0.380), (29.12, 0.145, 1.535)),
        "rmp": ((3.19, 0.052, 0.134), (6.30, 0.109, 0.363), (27.81, 0.327, 1.873)),
        "amp": ((2.73, 0.015, 0.116), (5.65, 0.147, 0.207), (25.60, 0.168, 1.049)),
    },
}

# Test error in % of ERM and of AMP.
_TABLE_3 = {
    "wideresnet28_10": {
        "svhn": {"vanilla": (2.57, 2.19), "cutout": (2.27, 1.83), "autoaugment": (1.91, 1.61)},
        "cifar10": {"vanilla": (3.87, 3.00), "cutout": (3.38, 2.67), "autoaugment": (2.78, 2.32)},
        "cifar100": {"vanilla": (19.17, 17.33), "cutout": (18.12, 16.04), "autoaugment": (17.79, 14.95)},
    },
    "pyramidnet164_270": {
        "svhn": {"vanilla": (2.47, 2.11), "cutout": (2.19, 1.82), "autoaugment": (1.80, 1.35)},
        "cifar10": {"vanilla": (3.60, 2.75), "cutout": (2.83, 2.27), "autoaugment": (2.49, 1.98)},
        "cifar100": {"vanilla": (17.13, 15.09), "cutout": (16.45, 14.34), "autoaugment": (15.43, 13.36)},
    },
}


@dataclass(frozen=True)
class Published:
    """Figures of the paper: mean over 5 runs of the best test epoch.

    Args:
        error: test error in %.
        error_std: its standard deviation in %, where the paper gives one.
        nll: negative log-likelihood in nats, where the paper gives one.
    """

    error: float
    error_std: float | None = None
    nll: float | None = None

    def __str__(self) -> str:
        std = f" ± {self.error_std}" if self.error_std is not None else ""
        nll = f", negative log-likelihood {self.nll}" if self.nll is not None else ""
        return f"test error {self.error}{std} %{nll}"


@dataclass(frozen=True)
class Recipe:
    """One cell of the tables.

    Args:
        dataset: `"svhn"`, `"cifar10"` or `"cifar100"`.
        model: name of the network.
        method: name of the training scheme.
        augmentation: `"vanilla"`, `"cutout"` or `"autoaugment"`.
        published: the paper's figures.
    """

    dataset: str
    model: str
    method: str
    augmentation: str
    published: Published = field(compare=False)

    @property
    def name(self) -> str:
        """What `--recipe` calls it."""
        augmentation = () if self.augmentation == "vanilla" else (self.augmentation,)
        return "_".join((self.dataset, self.model, *augmentation, self.method))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run, the protocol's included."""
        run = {
            "dataset": self.dataset,
            "model": self.model,
            "method": self.method,
            "augmentation": self.augmentation,
        }
        return {**run, **self._method_settings(), **PROTOCOL}

    def _method_settings(self) -> dict[str, Any]:
        if self.method != "amp":
            return dict(METHODS[self.method].published)
        epsilon, inner_lr = _AMP_BY_MODEL.get(self.model, _AMP_BY_AUGMENTATION[self.augmentation])
        return {"amp_epsilon": epsilon, "amp_inner_lr": inner_lr, "amp_inner_iter": 1, "amp_norm": "tensor"}


def _recipes() -> list[Recipe]:
    found = []
    for model, rows in _TABLES_1_AND_2.items():
        for method in METHOD_ORDER:
            for dataset, figures in zip(DATASETS, rows[method], strict=True):
                found.append(Recipe(dataset, model, method, "vanilla", Published(*figures)))
    for model, by_dataset in _TABLE_3.items():
        for dataset, by_augmentation in by_dataset.items():
            for augmentation, errors in by_augmentation.items():
                for method, error in zip(("erm", "amp"), errors, strict=True):
                    found.append(Recipe(dataset, model, method, augmentation, Published(error)))
    return found


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _recipes()}


def recipe_settings(name: str) -> dict[str, Any]:
    """Return the settings of a recipe.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3)
        raise ValueError(
            f"`recipe` {name!r} does not exist; "
            + (f"did you mean {' or '.join(close)}?" if close else "--list_recipes lists all")
        )
    return RECIPES[name].settings


def recipe_list() -> str:
    """Return one line per recipe: its name and the figures that were published for it."""
    width = max(map(len, RECIPES))
    return "\n".join(f"{name:{width}}  {recipe.published}" for name, recipe in RECIPES.items())


def sgd_settings(learning_rate: float, optim_args: str | None) -> dict[str, Any]:
    """Return the arguments of `torch.optim.SGD`: what `optim_args` says, or Nesterov momentum 0.9.

    Raises:
        ValueError: `optim_args` is not of the form `momentum=0.9,nesterov=True`.
    """
    settings: dict[str, Any] = {"lr": learning_rate}
    for part in (optim_args or PROTOCOL["optim_args"]).replace(" ", "").split(","):
        name, _, value = part.partition("=")
        try:
            if name == "nesterov" and value.lower() in ("true", "false"):
                settings[name] = value.lower() == "true"
            elif name in _SGD_NUMBERS and math.isfinite(float(value)):
                settings[name] = float(value)
            else:
                raise ValueError(part)
        except ValueError as error:
            raise ValueError(
                f"`optim_args` of sgd must look like momentum=0.9,dampening=0,nesterov=True, got {part!r} in "
                f"{optim_args!r}; correct that part"
            ) from error
    return settings
