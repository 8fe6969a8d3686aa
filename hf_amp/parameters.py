"""Which parameters a step moves, and what they are called."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

# What wrappers (DDP, torch.compile, FSDP, activation checkpointing) put in front of a parameter's name.
_WRAPPER_PREFIXES = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


def all_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a model, tied ones under each of their names: a walk over all modules, so once in a step."""
    return list(model.named_parameters(remove_duplicate=False))


def target_parameters(
    parameters: Iterable[tuple[str, nn.Parameter]], patterns: tuple[str, ...] | None
) -> Iterator[nn.Parameter]:
    """Yield the trainable ones of `all_parameters` that one of the patterns matches, each once; None: all of them.

    Names are matched as those of the unwrapped model.
    """
    seen = set()
    for name, param in parameters:
        if param.requires_grad and param not in seen and (patterns is None or _matches(name, patterns)):
            seen.add(param)
            yield param


def stepped_parameters(parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Any) -> list[nn.Parameter]:
    """Return all whose gradients belong to the optimizer's step: the model's, and others that the optimizer has.

    A loss may have parameters of its own (class centres, a temperature). They are not perturbed, and their gradient is
    that of the descent alone.
    """
    found = {id(param): param for _, param in parameters}
    for group in getattr(optimizer, "param_groups", ()):
        found.update((id(param), param) for param in group["params"])
    return list(found.values())


def twin_parameters(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return pairs of trainable parameters that are two objects over the very same memory (tied by storage).

    Raises:
        NotImplementedError: two of them share a part of their memory, or one does not hold its own values there.
    """
    by_storage: dict[Any, list[tuple[str, nn.Parameter]]] = {}
    seen = set()
    for name, param in parameters:
        if param.requires_grad and param not in seen and not isinstance(param, DTensor) and param.numel() > 0:
            seen.add(param)
            _refuse_other_memory(name, param)
            by_storage.setdefault(param.untyped_storage()._cdata, []).append((name, param))
    twins = []
    for members in by_storage.values():
        firsts: list[tuple[str, nn.Parameter]] = []
        for name, param in members:
            same = next((first for _, first in firsts if _place(first) == _place(param)), None)
            if same is not None:
                twins.append((same, param))
            else:
                firsts.append((name, param))
        _refuse_overlap(firsts)
    return twins


def fold_gradients(twins: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Give the first of each pair the gradient with respect to their memory, which is the sum of both."""
    for first, second in twins:
        if second.grad is not None:
            first.grad = second.grad if first.grad is None else first.grad + second.grad
            second.grad = None


def _place(param: nn.Parameter) -> tuple[Any, ...]:
    return param.dtype, param.storage_offset(), tuple(param.shape), param.stride()


def _refuse_other_memory(name: str, param: nn.Parameter) -> None:
    """Raise for a parameter whose values are computed from its memory, where a perturbation of them would be lost."""
    remedies = {
        "to_dense": param.layout != torch.strided,
        "resolve_conj": param.is_conj(),
        "resolve_neg": param.is_neg(),
    }
    for remedy, is_needed in remedies.items():
        if is_needed:
            raise NotImplementedError(
                f"Adversarial model perturbation does not support the parameter {name!r}, which is sparse, or a view "
                f"that conjugates or negates other memory: make it an ordinary tensor with `.{remedy}()`."
            )


def _refuse_overlap(members: list[tuple[str, nn.Parameter]]) -> None:
    """Raise if an element of memory belongs to two of the parameters, which have one storage."""
    ends = sorted(map(_span, (param for _, param in members)))
    if all(before[1] <= after[0] for before, after in pairwise(ends)):
        return  # one after the other, as views of one buffer are
    used: set[int] = set()
    for name, param in members:
        start, end = _span(param)
        size = param.element_size()
        places = torch.arange((end - start) // size).as_strided(param.shape, param.stride()) * size + start
        own = {place + byte for place in places.flatten().tolist() for byte in range(size)}
        if used & own:
            others = ", ".join(repr(other) for other, _ in members if other != name)
            raise NotImplementedError(
                f"Adversarial model perturbation does not support the parameter {name!r}, which shares a part of its "
                f"memory with one of {others}: make each a tensor of its own, e.g. with `.clone()`."
            )
        used |= own


def _span(param: nn.Parameter) -> tuple[int, int]:
    """First byte of a parameter in its storage, and the one after its last."""
    size, first = param.element_size(), int(param.storage_offset())
    last = first + sum((length - 1) * step for length, step in zip(param.shape, param.stride(), strict=True))
    return first * size, (last + 1) * size


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    name = _WRAPPER_PREFIXES.sub(r"\1", name).lstrip(".").replace("..", ".")
    return any(re.search(pattern, name) for pattern in patterns)


def check_target_parameters(model: nn.Module, patterns: tuple[str, ...] | None, is_quiet: bool = False) -> None:
    """Raise if nothing would be perturbed; warn of patterns that match nothing, unless `is_quiet`.

    Raises:
        ValueError: if no trainable parameter matches, or if the model has no trainable parameter.
    """
    parameters = all_parameters(model)
    if next(target_parameters(parameters, patterns), None) is None:
        names = [name for name, param in model.named_parameters() if param.requires_grad]
        if patterns is None:
            raise ValueError(
                "the model must have a trainable parameter to perturb, but all have requires_grad=False; unfreeze "
                "some, or switch the perturbation off with amp_epsilon=0"
            )
        raise ValueError(
            f"`amp_target_parameters` must match a trainable parameter, got {list(patterns)}; the names are "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    for pattern in () if is_quiet else patterns or ():
        if next(target_parameters(parameters, (pattern,)), None) is None:
            logger.warning(f"`amp_target_parameters`: {pattern!r} matches no trainable parameter; check its spelling.")


def warn_of_half_precision(model: nn.Module, patterns: tuple[str, ...] | None) -> None:
    """Warn if parameters to perturb are stored in half precision, where θ + Δ rounds small entries of Δ away."""
    targets = target_parameters(all_parameters(model), patterns)
    halves = {param.dtype for param in targets if param.dtype in (torch.bfloat16, torch.float16)}
    for dtype in halves:
        logger.warning(
            f"Parameters are stored in {dtype}: where an entry of the perturbation is smaller than half a rounding "
            "step of its weight, θ + Δ is θ. Load the model in torch.float32 and train with `bf16=True` or "
            "`fp16=True`, so that only the passes run in half precision."
        )
