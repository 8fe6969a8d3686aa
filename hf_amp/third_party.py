"""Trainers of other libraries: which cannot make two passes on one batch, how the batches of the others are cut.

They are known by their structure and by names, so none of these libraries is imported. Tried with trl 1.16,
sentence-transformers 6.2 and peft 0.21; `examples/TRAINERS.md` says for users what works.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from hf_amp.batches import Samples

if TYPE_CHECKING:
    from transformers import Trainer

# What a method names that makes its data with the model, or hands out parts of a batch that it keeps: trl's GRPO, RLOO,
# GKD, GOLD, OnlineDPO, XPO, NashMD, SDFT, SDPO, A2PO, IW-OPD, Distillation; the last one: its asynchronous trainers.
_MAKES_DATA = re.compile(r"_?generate|_generate_\w+|generate_on_policy\w*|unwrap_model_for_generation|_buffered\w*")
_TAKES_DATA_FROM_ELSEWHERE = re.compile(r"rollout_(queue|worker)")
# Loss functions of sentence-transformers that look for samples of one label, and of another, in the batch.
_LABELS_OF_THE_BATCH = re.compile(r"Batch(All|Hard|SemiHard)\w*Loss")
# Those whose own losses are known to be counted rightly.
LIBRARIES = ("trl", "sentence_transformers")
# Image and video tensors of which a sample has any number of rows.
_RAGGED = re.compile(r"(image|video)_(grid_thw|position_ids|sizes)|pixel_values_videos|cu_seq_lens\w*")


def refuse_trainer(trainer: "Trainer") -> None:
    """Raise for trainers whose ascent and descent would not see the same batch, or whose loop makes no passes of ours.

    Raises:
        NotImplementedError: naming the class, the method, the reason and what to do.
    """
    for base, method, names in _overrides(type(trainer), "training_step", "_prepare_inputs"):
        if found := sorted(name for name in names if _MAKES_DATA.fullmatch(name)):
            _refuse(
                base.__name__,
                f"its `{method}` generates data with the model or keeps a batch back (`{found[0]}`), so the passes of "
                "one step would see different data; generate a data set first and train on it with another trainer, "
                "such as trl's SFTTrainer or DPOTrainer, generate in a callback if it is only to look at, or train "
                "with amp_epsilon=0",
            )
    for base, _, names in _overrides(type(trainer), "get_train_dataloader"):
        if any(_TAKES_DATA_FROM_ELSEWHERE.fullmatch(name) for name in names):
            _refuse(
                base.__name__,
                "another process generates its data while it trains, and it counts a pass as a micro-batch; train "
                "with amp_epsilon=0",
            )
    for base, method, names in _overrides(type(trainer), "train", "_inner_training_loop"):
        if not names & {"super", "Trainer", "train", "_inner_training_loop", "_run_epoch", "training_step"}:
            _refuse(
                base.__name__,
                f"its `{method}` is a training loop of its own that never calls `training_step`, where AMP makes its "
                "passes; use a trainer with the loop of transformers.Trainer, or amp_epsilon=0",
            )


def refuse_share(trainer: "Trainer") -> None:
    """Raise where `amp_ascent_fraction` < 1 cannot be right, whatever the batch: known before training.

    Raises:
        NotImplementedError: naming the loss, the reason and what to do.
    """
    if not is_of(trainer, "sentence_transformers"):
        return
    losses = getattr(trainer, "loss", None)
    for loss in losses.values() if isinstance(losses, Mapping) else (losses,):
        for part in loss.modules() if isinstance(loss, nn.Module) else ():
            if _LABELS_OF_THE_BATCH.fullmatch(type(part).__name__):
                _refuse_share(
                    f"the loss {type(part).__name__}",
                    "it looks for samples with the same label in the batch, and a share of the batch may have none",
                )


def samples_of_known(trainer: "Trainer", inputs: Any) -> Samples | None:
    """How a prepared micro-batch of a known trainer is cut; None if the general cut is right for it.

    A batch of which no part can be told, say with any number of image rows for a sample, is one sample.
    """
    if not isinstance(inputs, Mapping):
        return None
    if "cu_seq_lens_q" in inputs:
        return _sequences_in_one_row(inputs)
    if is_of(trainer, "sentence_transformers"):
        # Most of its losses compare samples: other pairs of the batch are negatives, or are ranked with each other.
        return _rows(inputs, _first_length(inputs), least=2)
    tags = _tags(trainer)
    if "trl" in tags:
        sequences = next((value for key, value in inputs.items() if key.endswith("input_ids")), None)
        if isinstance(sequences, Tensor):
            branches = _branches(trainer, tags) if "input_ids" in inputs else 1
            return _rows(inputs, len(sequences) // branches, branches, least=2 if "kto" in tags else 1)
    return None


@contextmanager
def figures_held(trainer: "Trainer") -> Iterator[None]:
    """Let an ascent pass leave no trace in what trl and sentence-transformers collect in `compute_loss` and log.

    Otherwise tokens count once a pass, and accuracies and rewards are means over θ and θ + Δ. As with `loss`, those of
    the descent remain.
    """
    own = vars(trainer)
    tokens = own.get("_total_train_tokens")
    stores = [own[name] for name in ("_metrics", "_stored_metrics") if name in own and "trl" in _tags(trainer)]
    lengths = [{(mode, name): len(found) for mode, name, found in _figures(store)} for store in stores]
    parts = own.get("accum_loss_components", {}) if is_of(trainer, "sentence_transformers") else {}
    kept = {mode: {name: part.clone() for name, part in found.items()} for mode, found in parts.items()}
    try:
        yield
    finally:
        for store, known in zip(stores, lengths, strict=True):
            for mode, name, found in _figures(store):
                del found[known.get((mode, name), 0) :]
                if not found:
                    del store[mode][name]
        if tokens is not None:
            own["_total_train_tokens"] = tokens
        if parts:
            own["accum_loss_components"] = kept


def _figures(store: dict[str, dict[str, list[Any]]]) -> list[tuple[str, str, list[Any]]]:
    return [(mode, name, found) for mode, names in store.items() for name, found in names.items()]


def _branches(trainer: "Trainer", tags: set[str]) -> int:
    """How many sequences stand for one sample: all first ones, then all second ones, … in one tensor."""
    if "tpo" in tags:
        return 3 if getattr(trainer, "tpo_alpha", 1.0) else 2
    return 2 if tags & {"dpo", "reward-trainer"} else 1


def _rows(inputs: Mapping[str, Any], size: int, branches: int = 1, least: int = 1) -> Samples:
    """Samples that are rows of every tensor and items of every list; `branches` of them in longer tensors."""
    for key, value in inputs.items():
        rows = _length(value)
        fits = (size, branches * size) if isinstance(value, Tensor) else (size,)
        if rows is not None and (_RAGGED.search(key) or rows not in fits):
            return _whole(inputs)

    def take(count: int) -> dict[str, Any]:
        return {key: _first_rows(value, size, branches, count) for key, value in inputs.items()}

    return Samples(size, take, least)


def _whole(inputs: Mapping[str, Any]) -> Samples:
    return Samples(1, lambda _: inputs)


def _first_rows(value: Any, size: int, branches: int, count: int) -> Any:
    if (length := _length(value)) is None:
        return value
    if length == size:
        return value[:count]
    return value.unflatten(0, (branches, size))[:, :count].flatten(0, 1)


def _sequences_in_one_row(inputs: Mapping[str, Any]) -> Samples:
    """Sequences joined to one row of shape (1, tokens), which end where `cu_seq_lens_q` says (read on the host).

    A sequence of one token has nothing to predict: padding at the end looks so, and does not count.
    """
    bounds = inputs["cu_seq_lens_q"].flatten().tolist()
    ends = [end for start, end in pairwise(bounds) if end - start > 1]
    rows = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 1]
    if not ends or any(row.shape[1] != bounds[-1] for row in rows):
        return _whole(inputs)

    def take(count: int) -> dict[str, Any]:
        end = ends[count - 1]
        kept = [bound for bound in bounds if bound <= end]
        share = {}
        for key, value in inputs.items():
            if key.startswith("cu_seq_lens"):
                share[key] = value[: len(kept)]
            elif key.startswith("max_length"):
                longest = max(last - first for first, last in pairwise(kept))
                share[key] = torch.full_like(value, longest) if isinstance(value, Tensor) else longest
            else:
                share[key] = value[:, :end] if isinstance(value, Tensor) and value.dim() > 1 else value
        return share

    return Samples(len(ends), take)


def _first_length(inputs: Mapping[str, Any]) -> int:
    """The number of labels, or of rows of the first column: the other columns are held against it."""
    columns = [inputs.get("label"), *inputs.values()]
    return next((length for column in columns if (length := _length(column)) is not None), 1)


def _length(value: Any) -> int | None:
    """The number of items of a list, of rows of a tensor; None for what is one for all samples."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else None
    return len(value) if isinstance(value, (list, tuple)) else None


def _tags(trainer: "Trainer") -> set[str]:
    """trl's tags for model cards, of every class: they name its trainers in copies of its code, too."""
    return {str(tag) for base in type(trainer).__mro__ for tag in vars(base).get("_tag_names") or ()}


def loss_of(trainer: "Trainer") -> str:
    """The library whose `compute_loss` a Trainer has, by the name of its package."""
    owner = next(base for base in type(trainer).__mro__ if "compute_loss" in vars(base))
    return owner.__module__.partition(".")[0]


def is_of(trainer: "Trainer", library: str) -> bool:
    """Whether the Trainer, or a class that it is made of, is one of a library."""
    return any(base.__module__.partition(".")[0] == library for base in type(trainer).__mro__)


def _overrides(cls: type, *methods: str) -> Iterator[tuple[type, str, set[str]]]:
    """The methods of that name outside transformers and this package, with every name that their code uses."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("transformers", "hf_amp", "builtins"):
            continue
        for method in methods:
            function: Any = vars(base).get(method)
            code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
            if isinstance(code, CodeType) and code.co_name == method:  # a bare decorator hides the code
                yield base, method, _names(code)


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _refuse(what: str, why: str) -> NoReturn:
    raise NotImplementedError(f"Adversarial model perturbation does not support {what}: {why}.")


def _refuse_share(what: str, why: str) -> NoReturn:
    _refuse(f"`amp_ascent_fraction` < 1 with {what}", f"{why}; or use amp_ascent_fraction=1.0")
