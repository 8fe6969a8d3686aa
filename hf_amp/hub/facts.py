"""The facts of a training, read from its Trainer, for the model card."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, is_offline_mode
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modelcard import TASK_MAPPING

from hf_amp.hub.card import CardFacts, Evaluation
from hf_amp.hub.environment import environment
from hf_amp.hub.log_history import evaluations

if TYPE_CHECKING:
    from hf_amp.training_args import AMPSettings

CURVES_NAME = "learning_curves.png"
FIGURES = {
    CURVES_NAME: "Learning curves",
    "flatness_perturbation.png": "Loss and error against the size of perturbations of the weights",
    "flatness_surface_contour.png": "Loss surface over two random directions, as contours",
    "flatness_surface_3d.png": "Loss surface over two random directions",
    "flatness_reliability.png": "Reliability diagram",
}
PERTURBED = (
    "The weights were trained with adversarial model perturbation (AMP): each step moved them to (nearly) the worst "
    "point within a radius ε, took the gradient there, put them back and let the optimizer apply it. In this card AMP "
    "never means automatic mixed precision."
)
NOT_PERTURBED = "The weights were trained without adversarial model perturbation: it was switched off."
NO_DEFENCE = "A flat minimum is no defence against adversarial inputs."
# Places on the author's machine, secrets, and what differs from process to process.
_PRIVATE = ("output_dir", "logging_dir", "resume_from_checkpoint", "hub_token", "push_to_hub_token", "local_rank")
# `do_eval` follows from `eval_strategy`.
_DERIVED = ("do_eval",)
# Parts of `accelerator_config` that are true unless the user says otherwise.
_FULL_FORMS = {"even_batches": True, "use_seedable_sampler": True}
_SECRET_FLAGS = ("hub_token", "push_to_hub_token", "hf_token", "token")
_GENERIC_BUILDERS = ("csv", "json", "pandas", "parquet", "text", "generator", "imagefolder", "arrow")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def facts_of_trainer(trainer: Trainer, amp: "AMPSettings", repo_id: str | None = None, **card: Any) -> CardFacts:
    """Return what a Trainer knows about its model.

    Args:
        trainer: the Trainer, at any point of its life after construction.
        amp: its settings of the perturbation.
        repo_id: where the model goes on the Hub; None: nowhere yet.
        card: the arguments of `Trainer.create_model_card`, which say what the Trainer cannot know.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    base_model = card.get("finetuned_from") or _base_model(model)
    task = _first(card.get("tasks")) or _task_of(model)
    name, kind, config = _dataset_of(trainer, card)
    repo_id = repo_id or Path(str(trainer.args.output_dir)).absolute().name
    is_peft = hasattr(model, "peft_config")
    remote_code = getattr(type(model), "_auto_class", None) is not None
    made = environment(trainer.args.world_size)
    return CardFacts(
        model_name=card.get("model_name") or repo_id.split("/")[-1],
        repo_id=repo_id,
        summary=_summary(model, base_model),
        progress=_progress(trainer),
        method=NOT_PERTURBED if amp.switched_off else PERTURBED,
        usage=_usage(model, task if trainer.processing_class is not None else None, repo_id, remote_code),
        library_name="peft" if is_peft else "transformers",
        pipeline_tag=task,
        license=card.get("license") or (base_model and license_of(base_model)) or None,
        language=card.get("language"),
        base_model=base_model,
        tags=tuple(_listed(card.get("tags"))),
        datasets=tuple(one for one in _listed(card.get("dataset_tags") or kind) if _HUB_ID.fullmatch(one)),
        dataset_name=name,
        dataset_type=kind,
        dataset_config=config,
        evaluations=tuple(_evaluations(trainer)),
        figures=figures_in(str(trainer.args.output_dir)),
        remote_code=remote_code,
        perturbed=not amp.switched_off,
        amp={} if amp.switched_off else {f"amp_{name}": value for name, value in asdict(amp).items()},
        arguments=changed_arguments(trainer.args),
        training=_training(trainer),
        command=command_line(),
        versions=made["versions"],
        hardware=hardware_line(made["hardware"]),
        caveats=(NO_DEFENCE,),
    )


def changed_arguments(args: Any) -> dict[str, Any]:
    """Return the training arguments that differ from their defaults, without the perturbation's, secrets and places.

    Those of `TrainingArguments` count, also for a class that has other ones: readers know no others.
    """
    changed, known = {}, {one.name: one for one in fields(TrainingArguments)}
    for one in (known.get(one.name, one) for one in fields(args)):
        if one.name.startswith("amp_") or one.name in (*_PRIVATE, *_DERIVED) or not one.init:
            continue
        default = one.default if one.default is not MISSING else None
        if one.default_factory is not MISSING:
            default = one.default_factory()
        value = plain_value(getattr(args, one.name))
        if isinstance(value, dict):  # brought into its full form as soon as the arguments are made
            value = {name: part for name, part in value.items() if (part or False) != _FULL_FORMS.get(name, False)}
        if value != plain_value(default) and (value or default not in (None, "", "none", "0")):
            changed[one.name] = value
    return changed


def command_line() -> str | None:
    """Return the command of this process, without tokens and folders of its machine; None where it was no script."""
    script, *words = sys.argv or [""]
    if not script.endswith(".py") and "python" not in Path(script).name and not Path(script).is_file():
        return None
    if Path(script).name in ("ipykernel_launcher.py", "colab_kernel_launcher.py") or "pytest" in script:
        return None
    kept, is_secret = [], False
    for word in words:
        name, has_value, value = word.partition("=")
        if is_secret or name.lstrip("-") in _SECRET_FLAGS:
            is_secret = not is_secret and not has_value
            continue
        place = Path(value if has_value else word)
        kept.append(word.replace(str(place), place.name) if place.is_absolute() else word)
    path = Path(script)
    if path.is_absolute():
        path = Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else Path(path.name)
    return shlex.join(["python", path.as_posix(), *kept])


def hardware_line(hardware: Mapping[str, Any]) -> str:
    """Return the hardware of `hf_amp.hub.environment.environment` in words."""
    processes = f", {hardware['processes']} processes" if hardware["processes"] > 1 else ""
    if hardware["device_count"]:
        return f"{hardware['device_count']} × {hardware['device']}{processes}"
    return (
        f"{hardware['machine']} CPU, {hardware['cpu_count']} cores, {hardware['torch_threads']} torch "
        f"threads{processes}, {hardware['system']}"
    )


def figures_in(folder: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """Return caption and name of the figures that are in a model's folder."""
    return tuple((caption, name) for name, caption in FIGURES.items() if (Path(folder) / name).is_file())


def pipeline_code(task: str, repo_id: str, remote_code: bool) -> str:
    """Return two lines of Python that load a model as a pipeline."""
    trust = ", trust_remote_code=True" if remote_code else ""
    return f'from transformers import pipeline\nmodel = pipeline("{task}", model="{repo_id}"{trust})'


@lru_cache(maxsize=16)
def license_of(base_model: str) -> str | None:
    """Return the licence of a model on the Hub; None if it has none or the Hub cannot be asked."""
    if is_offline_mode():
        return None
    try:
        tags = HfApi().model_info(base_model, timeout=10).tags or []
    except Exception:  # whatever the HTTP library raises: a card without a licence is better than none
        return None
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def plain_value(value: Any) -> Any:
    """Return a training argument as a JSON value."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_value(one) for one in value]
    if callable(getattr(value, "to_dict", None)):
        return plain_value(value.to_dict())
    return str(value)


def _summary(model: Any, base_model: str | None) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    text = f"`{type(model).__name__}` with {count:,} parameters"
    if base_model is None:
        return f"{text}."
    link = f"[{base_model}](https://huggingface.co/{base_model})" if _HUB_ID.fullmatch(base_model) else base_model
    return f"{text}, trained further from {link}."


def _progress(trainer: Trainer) -> str | None:
    state = trainer.state
    if state.global_step == 0:
        return "**Not trained yet** when this card was written."
    if state.global_step < state.max_steps:
        return f"**Training was going on** when this card was written: step {state.global_step} of {state.max_steps}."
    return None


def _evaluations(trainer: Trainer) -> list[Evaluation]:
    state = trainer.state
    evaluated = getattr(trainer, "evaluated_split", "evaluation")
    last: dict[str, tuple[int, dict[str, Any]]] = {}
    best = None
    for prefix, step, metrics in evaluations(state.log_history):
        last[prefix] = (step, metrics)
        if prefix == "eval" and trainer.args.metric_for_best_model and step == state.best_global_step:
            best = Evaluation(f"best, by {trainer.args.metric_for_best_model}: step {step}", evaluated, metrics)
    found = [
        Evaluation(f"last: step {step}", evaluated if prefix == "eval" else prefix, metrics)
        for prefix, (step, metrics) in last.items()
    ]
    return [one for one in (*found, best) if one is not None and one.metrics]


def _training(trainer: Trainer) -> dict[str, str]:
    args, state = trainer.args, trainer.state
    if state.global_step == 0:
        return {}
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    said = {
        "optimizer steps": f"{state.global_step:,}",
        "epochs": f"{state.epoch:g}" if state.epoch is not None else "",
        "batch of a step": f"{batch} = {args.train_batch_size} in a micro-batch × {args.world_size} process(es) × "
        f"{args.gradient_accumulation_steps} micro-batch(es)",
        "seed": str(args.seed),
    }
    seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    if seconds:
        said["seconds of training"] = f"{seconds[-1]:.1f}"
    if args.load_best_model_at_end and state.best_global_step:
        said["published weights"] = f"those of step {state.best_global_step}, the best by {args.metric_for_best_model}"
    return {name: text for name, text in said.items() if text}


def _base_model(model: Any) -> str | None:
    for config in getattr(model, "peft_config", {}).values():
        return config.base_model_name_or_path or None
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if name and not Path(name).exists() and not Path(name).is_absolute() else None


def _task_of(model: Any) -> str | None:
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    name = type(model).__name__
    for task, classes in TASK_MAPPING.items():
        listed = [one for entry in classes.values() for one in (entry if isinstance(entry, tuple) else (entry,))]
        if name in listed:
            return task
    return "image-classification" if name.endswith("ForImageClassification") else None


def _dataset_of(trainer: Trainer, card: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Name, type and configuration of the evaluation data, as the user or a `datasets.Dataset` says."""
    name, kind = _first(card.get("dataset")), _first(card.get("dataset_tags"))
    data = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    builder = getattr(data, "builder_name", None)
    if kind is None and name is None and isinstance(builder, str) and builder not in _GENERIC_BUILDERS:
        return builder, builder, getattr(data, "config_name", None)
    return name or kind, kind or name, _first(card.get("dataset_args"))


def _usage(model: Any, task: str | None, repo_id: str, remote_code: bool) -> str:
    trust = ", trust_remote_code=True" if remote_code else ""
    if hasattr(model, "peft_config"):
        return f'from peft import AutoPeftModel\nmodel = AutoPeftModel.from_pretrained("{repo_id}")'
    if not isinstance(model, PreTrainedModel):
        return (
            "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n"
            f'weights = load_file(hf_hub_download("{repo_id}", "model.safetensors"))'
        )
    if task is not None:
        return pipeline_code(task, repo_id, remote_code)
    name = getattr(type(model), "_auto_class", None) or type(model).__name__
    return f'from transformers import {name}\nmodel = {name}.from_pretrained("{repo_id}"{trust})'


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _first(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else next(iter(value), None)
