"""The same inputs for every pass, whatever it does to its own: new containers, tensors and a count that are watched."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


class _Replayed(list):
    """What an iterator yielded, to be given to each pass as an iterator of its own."""


def held(inputs: Any) -> Any:
    """Return prepared inputs that can be given to several passes: iterators, which end with their first, are read."""
    if isinstance(inputs, Iterator):
        return _Replayed(held(value) for value in inputs)
    return rebuilt(inputs, held) if _has_iterators(inputs) else inputs


def copied(inputs: Any, clone: bool) -> Any:
    """Return inputs for one pass: containers of its own, which it may pop from, with the same tensors.

    Args:
        inputs: what `held` returned.
        clone: give it tensors of its own, too.
    """
    if isinstance(inputs, Tensor):
        return inputs.clone() if clone else inputs
    if isinstance(inputs, _Replayed):
        return iter([copied(value, clone) for value in inputs])
    return rebuilt(inputs, lambda value: copied(value, clone))


def rebuilt(data: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same kind with each of its values changed; anything else as it is."""
    if isinstance(data, MutableMapping):
        new = copy.copy(data)
        for key, value in data.items():
            new[key] = change(value)
        return new
    if isinstance(data, (list, tuple)):
        values = [change(value) for value in data]
        return type(data)(*values) if hasattr(data, "_fields") else type(data)(values)
    if is_dataclass(data) and not isinstance(data, type):
        new = copy.copy(data)
        for field in fields(data):
            object.__setattr__(new, field.name, change(getattr(data, field.name)))
        return new
    return data


def tensors_in(data: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested inputs with their names."""
    if isinstance(data, Tensor):
        yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from tensors_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            yield from tensors_in(value, f"{name}[{i}]")
    elif is_dataclass(data) and not isinstance(data, type):
        for field in fields(data):
            yield from tensors_in(getattr(data, field.name), f"{name}.{field.name}" if name else field.name)


class Watch:
    """Finds the tensors that a pass changes in place."""

    def __init__(self, inputs: Any) -> None:
        self._before = [(name, tensor, _version(tensor)) for name, tensor in tensors_in(inputs)]

    def changed(self) -> list[str]:
        """Return the names of the tensors that were changed since."""
        return [name for name, tensor, version in self._before if _version(tensor) != version]


def same_values(left: Any, right: Any) -> bool:
    """Whether two inputs are one, or mappings of the same names to the very same values."""
    if left is right:
        return True
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)) or left.keys() != right.keys():
        return False
    return all(left[name] is right[name] for name in left)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _has_iterators(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(map(_has_iterators, data.values()))
    if isinstance(data, (list, tuple)):
        return any(map(_has_iterators, data))
    return isinstance(data, Iterator)


class WatchedCount(Tensor):
    """A number of items that notes whether anything was computed with it.

    Most heads of transformers 5 take `num_items_in_batch` and ignore it (87 of 90 for sequence classification in 5.24,
    https://github.com/huggingface/transformers/issues/47688). This finds out in a pass that is made anyway.
    """

    uses: list[str]

    @classmethod
    def of(cls, count: Tensor) -> "WatchedCount":
        """Return the count, watched; `uses` lists what was computed with it."""
        watched = count.detach().as_subclass(cls)
        watched.uses = []
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the function, and compute it with the plain number."""
        name = getattr(func, "__name__", str(func))
        values = [value for arg in args for value in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        uses = next((value.uses for value in values if isinstance(value, WatchedCount)), [])
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if name in _MOVES:
                result = result.as_subclass(cls)
                result.uses = uses
        if name not in _MOVES and name not in _LOOKS:
            uses.append(name)
        return result


_MOVES = ("to", "detach", "cuda", "cpu", "clone")
_LOOKS = ("__get__", "dim", "size", "numel", "is_floating_point", "__repr__", "stride", "storage_offset")
