"""The facts of a training, read from its Trainer, for the model card."""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, is_offline_mode
from transformers import PreTrainedModel, Trainer

from hf_amp.hub.card import CardFacts, Evaluation
from hf_amp.hub.environment import environment
from hf_amp.hub.log_history import evaluations
from hf_amp.hub.text.invocation import changed_arguments, command_line
from hf_amp.hub.text.places import without_places
from hf_amp.logs import TrainingClock

CURVES_NAME = "learning_curves.png"
FIGURES = {
    CURVES_NAME: "Learning curves",
    "flatness_perturbation.png": "Loss and error against the size of perturbations of the weights",
    "flatness_surface_contour.png": "Loss surface over two random directions, as contours",
    "flatness_surface_3d.png": "Loss surface over two random directions",
    "flatness_reliability.png": "Reliability diagram",
}
NO_DEFENCE = "A flat minimum is no defence against adversarial inputs."
_GENERIC_BUILDERS = ("csv", "json", "pandas", "parquet", "text", "generator", "imagefolder", "arrow")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The tables of models that transformers exports, MODEL_FOR_…_MAPPING, and the tasks of the Hub.
_TASKS = {
    "CAUSAL_LM": "text-generation",
    "IMAGE_CLASSIFICATION": "image-classification",
    "IMAGE_SEGMENTATION": "image-segmentation",
    "MASKED_LM": "fill-mask",
    "OBJECT_DETECTION": "object-detection",
    "QUESTION_ANSWERING": "question-answering",
    "SEQ_TO_SEQ_CAUSAL_LM": "text2text-generation",
    "SEQUENCE_CLASSIFICATION": "text-classification",
    "TABLE_QUESTION_ANSWERING": "table-question-answering",
    "TOKEN_CLASSIFICATION": "token-classification",
    "AUDIO_CLASSIFICATION": "audio-classification",
    "CTC": "automatic-speech-recognition",
    "SPEECH_SEQ_2_SEQ": "automatic-speech-recognition",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "zero-shot-image-classification",
    "IMAGE_TEXT_TO_TEXT": "image-text-to-text",
}


def facts_of_trainer(trainer: Trainer, **card: Any) -> CardFacts:
    """Return what a Trainer knows about its model; nothing of a perturbation.

    Args:
        trainer: the Trainer, at any point of its life after construction.
        card: the arguments of `Trainer.create_model_card`, which say what the Trainer cannot know.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    base_model = _base_model(model, card.get("finetuned_from"))
    task = _first(card.get("tasks")) or _task_of(model)
    name, kind, config = _dataset_of(trainer, card)
    repo_id = repo_id_of(trainer)
    remote_code = _auto_class(model) is not None
    made = environment(trainer.args.world_size)
    return CardFacts(
        model_name=card.get("model_name") or repo_id.split("/")[-1],
        repo_id=repo_id,
        summary=_summary(model, base_model),
        progress=_progress(trainer),
        usage=_usage(model, task if trainer.processing_class is not None else None, repo_id, remote_code),
        library_name="peft" if hasattr(model, "peft_config") else "transformers",
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
        arguments=changed_arguments(trainer.args),
        training=_training(trainer),
        command=command_line(),
        versions=made["versions"],
        hardware=hardware_line(made["hardware"]),
    )


def repo_id_of(trainer: Trainer) -> str:
    """Return where a Trainer's model goes on the Hub; without any word on it, the name of the output folder."""
    folder = Path(str(trainer.args.output_dir)).absolute().name
    return getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id or folder


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
        clock = TrainingClock.of(trainer)
        said["seconds of training"] = f"{seconds[-1] if clock is None else clock.seconds:.1f}"
    if args.load_best_model_at_end and state.best_global_step:
        said["published weights"] = f"those of step {state.best_global_step}, the best by {args.metric_for_best_model}"
    return {name: text for name, text in said.items() if text}


def _base_model(model: Any, said: str | None) -> str | None:
    """The Hub id of the model that training began with; a folder of this machine is none."""
    peft = next(iter(getattr(model, "peft_config", {}).values()), None)
    found = getattr(getattr(model, "config", None), "name_or_path", None) if peft is None else None
    name = said or (found if peft is None else peft.base_model_name_or_path)
    return None if not name or Path(name).exists() or without_places(name) != name else name


def _task_of(model: Any) -> str | None:
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    for table, task in _TASKS.items():
        listed = getattr(transformers, f"MODEL_FOR_{table}_MAPPING").get(type(getattr(model, "config", None)), ())
        if isinstance(model, listed):
            return task
    return "image-classification" if type(model).__name__.endswith("ForImageClassification") else None


def _auto_class(model: Any) -> str | None:
    """The Auto class that loads a model whose code is stored beside its weights."""
    return getattr(type(model), "_auto_class", None)


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
    name = _auto_class(model) or type(model).__name__
    return f'from transformers import {name}\nmodel = {name}.from_pretrained("{repo_id}"{trust})'


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _first(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else next(iter(value), None)
