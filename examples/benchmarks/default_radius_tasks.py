"""The tasks of default_radius.py: which data, network, length and wrong labels, and one training of each."""

import json
from dataclasses import dataclass, field

import torch
from default_radius_made import made_run
from transformers import ViTConfig, ViTForImageClassification, set_seed

from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.run import make_image_trainer
from hf_amp.vision.train.command_line import Settings

ASCENT = {f"ascent_{share:g}": share for share in (0.02, 0.06, 0.24)}  # 1, 3 and 12 images of 50
SECONDS = (0, 1, 2, 3, 4)  # seeds where a run takes seconds


@dataclass(frozen=True)
class Task:
    """One training: the settings of `examples/image_classification.py`, or a task of `default_radius_made.py`.

    Args:
        settings: of the image command; empty: the task is made, as the first word of its name says.
        images: folder below --data; None: none is needed.
        train: number of training images; as many more as `held_out` says are evaluated after each epoch.
        held_out: number of held-out images.
        seeds: to train with unless others are asked for.
        ascent: train also with the ascent on parts of each batch.
        start: what the weights start from: None: fresh; "vit": a small vision transformer; "trained": a network trained
            on 20,000 images of CIFAR-10.
        head_only: train nothing but the classifier.
        eval_steps: of a made task: evaluate after so many steps, not after each epoch.
        first_seed_chooses: train all constant radii with one seed, and with the others only the best.
    """

    settings: dict = field(default_factory=dict)
    images: str | None = None
    train: int = 0
    held_out: int = 0
    seeds: tuple = (0, 1, 2)
    ascent: bool = False
    start: str | None = None
    head_only: bool = False
    eval_steps: int | None = None
    first_seed_chooses: bool = False

    @property
    def needs_data(self):
        return self.images is not None


def network(width, stages):
    sizes = [round(width * size) for size in stages]
    return {"stem_size": sizes[0], "hidden_sizes": sizes, "depths": [1] * len(sizes)}


def digits(width, epochs, noise):
    settings = {
        "dataset": "digits",
        "model_args": network(width, (8, 16, 32)),
        "num_train_epochs": epochs,
        "label_noise": noise,
        "per_device_train_batch_size": 50,
        "precision": "float32",
    }
    return Task(settings, None, 600, 200, SECONDS, ascent=width == 1 and epochs == 40)


def cifar(train, epochs, noise=0.0, augmentation="none", stages=(8, 16, 32, 64), **more):
    """Some settings of a task on CIFAR-10 that are no settings of the command belong to the `Task`."""
    fields = ("seeds", "ascent", "start", "head_only", "images", "held_out", "first_seed_chooses")
    own = {name: more.pop(name) for name in fields if name in more}
    settings = {
        "dataset": "cifar10",
        "model_args": network(1, stages),
        "num_train_epochs": epochs,
        "label_noise": noise,
        "augmentation": augmentation,
        **more,
    }
    return Task(settings, **{"images": "cifar10", "train": train, "held_out": max(500, train // 10), **own})


def fine_tuned(name, epochs, noise, **own):
    settings = {"dataset": name, "num_train_epochs": epochs, "label_noise": noise, "learning_rate": 0.01}
    train = 3000 if name == "cifar100" else 690
    return Task({**settings, "augmentation": "none"}, f"{name}-small", train, train // 5, start="trained", **own)


LONG = {"first_seed_chooses": True}
ONE_CYCLE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.2, "learning_rate": 0.2, "weight_decay": 5e-4}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.05, "lr_scheduler_type": "linear"}
WIDER = (16, 32, 64, 128)

TASKS = {
    f"digits_width{width:g}_{epochs}epochs_noise{noise:g}": digits(width, epochs, noise)
    for epochs in (10, 40)
    for width in (1, 0.5, 3)
    for noise in (0.0, 0.2, 0.4)
}
TASKS |= {
    "text_20epochs_noise0.2": Task(seeds=SECONDS),
    "text_20epochs_noise0": Task(seeds=SECONDS),
    "regression_60epochs_noise0.3": Task(seeds=SECONDS),
    "regression_60epochs_noise0": Task(seeds=SECONDS),
}
TASKS |= {
    f"cifar10_1500_{epochs}epochs_noise{noise:g}_{augmentation}": cifar(
        1500, epochs, noise, augmentation, ascent=epochs == 40 and augmentation == "none"
    )
    for epochs in (15, 40)
    for augmentation in ("none", "vanilla")
    for noise in (0.0, 0.4)
}
TASKS |= {
    "svhn_from_cifar10_20epochs_noise0": fine_tuned("svhn", 20, 0.0),
    "svhn_from_cifar10_20epochs_noise0.4": fine_tuned("svhn", 20, 0.4),
    "cifar100_from_cifar10_20epochs_noise0": fine_tuned("cifar100", 20, 0.0, **LONG),
    "cifar100_from_cifar10_20epochs_head": fine_tuned("cifar100", 20, 0.0, head_only=True, **LONG),
    "cifar10_1500_40epochs_noise0.4_adamw": cifar(1500, 40, 0.4, **ADAM, **LONG),
    "cifar10_1500_40epochs_noise0_vit": cifar(1500, 40, 0.0, start="vit", **ADAM, **LONG),
}
TASKS |= {
    f"cifar10_5000_{epochs}epochs_noise{noise:g}_{augmentation}": cifar(5000, epochs, noise, augmentation, **LONG)
    for epochs in (15, 40)
    for augmentation in ("none", "vanilla")
    for noise in (0.0, 0.4)
}
TASKS |= {
    f"cifar10n_{labels}_18000_{epochs}epochs": cifar(
        18000, epochs, augmentation="vanilla", stages=WIDER, train_labels=labels, **ONE_CYCLE, **LONG
    )
    for epochs in (8, 30)
    for labels in ("worst", "aggregate")
}
TASKS |= {  # tried once, when the rule stood
    f"{kind}_noise{noise:g}": Task(seeds=SECONDS, first_seed_chooses=kind in ("vit_40epochs", "gpt2_80epochs"))
    for kind, wrong in {
        "mlp_30epochs": (0.0, 0.3),
        "lenet_30epochs": (0.0, 0.3),
        "tabular_50epochs": (0.0, 0.2),
        "vit_40epochs": (0.0, 0.3),
        "gru_20epochs": (0.0, 0.2),
        "bert_20epochs": (0.0, 0.2),
        "gpt2_80epochs": (0.0,),
    }.items()
    for noise in wrong
}
TASKS |= {  # tried once, like those before, from scratch on images that the rule had met in fine-tuning alone
    f"cifar100_3000_{epochs}epochs_noise{noise:g}_{augmentation}": cifar(
        3000, epochs, noise, augmentation, images="cifar100-small", dataset="cifar100", coarse_labels=True, **LONG
    )
    for epochs, noise, augmentation in ((15, 0.0, "none"), (15, 0.4, "none"), (60, 0.4, "vanilla"))
}
TASKS |= {
    f"svhn_690_15epochs_noise{noise:g}_none": cifar(690, 15, noise, images="svhn-small", dataset="svhn", held_out=172)
    for noise in (0.0, 0.4)
}
TASKS |= {  # evaluated four or five times an epoch, or every fourth or fifth epoch
    f"{kind}_every{steps}steps_noise{noise:g}": Task(seeds=SECONDS, eval_steps=steps)
    for kind, wrong in {"mlp_30epochs": (0.0, 0.3), "gru_20epochs": (0.0, 0.2)}.items()
    for noise in wrong
    for steps in (5, 100)
}
_images = {}
_OF_IMAGES = ("dataset", "coarse_labels", "train_labels", "max_", "validation")
_SIZES = {"digits": 1438, "cifar10": 50_000, "cifar100": 5000, "svhn": 862}


def run_task(name, way, seed, output_dir, data):
    """Train once; return test errors in %, seconds and the largest radius.

    Args:
        name: of the task.
        way: "erm", "together", "default", one of `ASCENT` or a constant radius.
        seed: of everything.
        output_dir: where runs go.
        data: folder of the images.
    """
    task = TASKS[name]
    if not task.settings:
        noise = float(name.partition("_noise")[2])
        return made_run(name.partition("_")[0], way, seed, noise, output_dir, task.eval_steps)
    settings = image_settings(task, way, seed, output_dir / "runs" / name / way, data)
    if task.start is not None:
        settings["model"] = str(start_of(task.start, output_dir, data, settings.pop("model_args", None)))
    model, images, training = Settings(settings).arguments()
    key = repr({k: v for k, v in settings.items() if k.startswith(_OF_IMAGES)})
    make = frozen_but_for_the_head if task.head_only else None
    experiment = Experiment(model, images, training, _images.get(key), verbose=False, make_trainer=make)
    if key not in _images:
        _images.clear()
        _images[key] = experiment.images
    run = next(one for one in experiment.run()["runs"] if one["seed"] == seed)
    return result_of(run)


def image_settings(task, way, seed, folder, data):
    method = {"erm": {"method": "erm"}, "together": {"method": "erm"}}.get(way, {"method": "amp"})
    if way in ASCENT:
        method |= {"amp_ascent_fraction": ASCENT[way], "amp_norm_stats": "descent"}
    elif way not in ("default", "erm", "together"):
        method |= {"amp_epsilon": float(way)}
    together = way == "together"
    name = task.settings["dataset"]
    own = {
        "model": "preactresnet18",
        "max_train_samples": task.train + (task.held_out if together else 0),
        "validation_fraction": 0.0 if together else task.held_out / _SIZES[name],
        "eval_strategy": "no" if together else "epoch",  # nothing is held out
        "metric_for_best_model": "loss",
        "seeds": [seed],
        "save_minutes": 0.0,
        "use_cpu": not torch.cuda.is_available(),
        "output_dir": str(folder / f"seed{seed}"),
    }
    if task.images is not None:
        own["dataset_path"] = str(images_of(data / task.images, folder.parent / "images"))
    settings = {**own, **task.settings, **method}
    if "train_labels" in settings:
        settings["train_labels"] = f"{data / 'cifar10n' / 'labels.parquet'}:{settings['train_labels']}"
    settings["model_args"] = json.dumps(settings["model_args"]) if "model_args" in settings else "{}"
    return settings


def images_of(folder, links):
    """The folder of a task's images. `svhn-small` has no test split: links call its validation images so."""
    if any(folder.glob("test*")):
        return folder
    links.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.parquet"):
        link = links / file.name.replace("validation", "test")
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    return links


def result_of(run):
    best = run["test"]["best"]
    return {
        "error": 100 * run["test"]["last"]["error_rate"],
        "best_error": None if best is None else 100 * best["error_rate"],
        "seconds": run["seconds"],
        "largest_radius": max(point.get("amp_epsilon", 0.0) for point in run["curves"]),
    }


def start_of(kind, output_dir, data, model_args):
    """The folder of the network that a task starts from, made when it is first asked for."""
    folder = output_dir / "starts" / kind
    if kind == "vit":
        if not (folder / "config.json").is_file():
            set_seed(0)
            sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
            ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=4)).save_pretrained(folder)
        return folder
    task = cifar(20_000, 12, augmentation="vanilla", stages=WIDER, **ONE_CYCLE)
    settings = image_settings(task, "together", 0, folder, data)
    Experiment(*Settings(settings).arguments(), verbose=False).run()
    return folder / "seed0" / "seed_0"


def frozen_but_for_the_head(model, args, data, described):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier")
    return make_image_trainer(model, args, data, described)
