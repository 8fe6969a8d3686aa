"""The same inputs for every pass: new containers, objects that are put back, tensors that are watched; their labels."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

_HOLD_NO_DATA = (Tensor, nn.Module, Trainer, type, ModuleType, FunctionType)
_CONTAINERS = (dict, list, tuple, deque, set)
_DEEPEST = 5  # of what objects hold is looked at


class _Replayed(list):
    """What an iterator yielded, to be given to each pass as an iterator of its own."""


class _Slots(MutableMapping):
    """The attributes that an object has in `__slots__`, as a mapping, like the `__dict__` of others."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._members = {
            name: member
            for kind in reversed(type(owner).__mro__)
            if "__slots__" in vars(kind)
            for name, member in vars(kind).items()
            if isinstance(member, MemberDescriptorType)
        }

    def __getitem__(self, name: str) -> Any:
        return self._members[name].__get__(self._owner)

    def __setitem__(self, name: str, value: Any) -> None:
        self._members[name].__set__(self._owner, value)

    def __delitem__(self, name: str) -> None:
        self._members[name].__delete__(self._owner)

    def __iter__(self) -> Iterator[str]:
        return (name for name, member in self._members.items() if _is_set(member, self._owner))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_set(member: MemberDescriptorType, owner: Any) -> bool:
    try:
        member.__get__(owner)
    except AttributeError:
        return False
    return True


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


def values_in(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested inputs hold, tensors and all that is no container, with their names."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from values_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            yield from values_in(value, f"{name}[{i}]")
    elif is_dataclass(data) and not isinstance(data, type):
        for field in fields(data):
            yield from values_in(getattr(data, field.name), f"{name}.{field.name}" if name else field.name)
    else:
        yield name, data


def tensors_in(data: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested inputs with their names."""
    return ((name, value) for name, value in values_in(data) if isinstance(value, Tensor))


@contextmanager
def insides_put_back(inputs: Any, clone: bool) -> Iterator[None]:
    """Let a pass change what objects in its inputs hold (attributes, arrays, queues), and put it back afterwards.

    Objects are not copied, as containers are: they may be meant to keep what a step, its descent, puts into them.

    Args:
        inputs: of the pass.
        clone: give it tensors of its own in there, too.
    """
    before = [(inside, _values(inside)) for _, inside in _insides(inputs) if _can_change(inside)]
    for inside, _ in before if clone else ():
        for key, value in list(_items(inside)):
            if isinstance(value, (Tensor, tuple)):
                inside[key] = copied(value, clone)
    try:
        yield
    finally:
        for inside, values in before:
            if _is_array(inside):
                inside[...] = values
            else:
                inside.clear()
                (inside.extend if isinstance(inside, (list, deque)) else inside.update)(values)


def _insides(inputs: Any) -> list[tuple[str, Any]]:
    """What objects in inputs hold and a pass may change: attributes, the containers in these, arrays; with names."""
    found: dict[int, list[tuple[str, Any]]] = {}

    def look_into(name: str, value: Any, depth: int) -> None:
        if isinstance(value, _HOLD_NO_DATA) or id(value) in found or depth > _DEEPEST or not (parts := _parts(value)):
            return
        found[id(value)] = [(name, part) for part in parts]
        for part in parts:
            for key, inner in _items(part):
                look_into(f"{name}.{key}", inner, depth + 1)

    for name, value in values_in(inputs):
        look_into(name, value, 0)
    return [inside for insides in found.values() for inside in insides]


def _parts(value: Any) -> list[Any]:
    """The container that a value is, or those that hold its attributes."""
    if isinstance(value, _CONTAINERS) or _is_array(value):
        return [value]
    attributes = getattr(value, "__dict__", None)
    parts: list[Any] = [attributes] if isinstance(attributes, dict) else []
    return [*parts, _Slots(value)] if hasattr(type(value), "__slots__") else parts


def _values(inside: Any) -> Any:
    return dict(inside) if isinstance(inside, _Slots) else copy.copy(inside)


def _is_array(value: Any) -> bool:
    """Whether it is an array of numpy, which need not be imported for that."""
    return any((base.__module__, base.__name__) == ("numpy", "ndarray") for base in type(value).__mro__)


def _can_change(inside: Any) -> bool:
    return inside.flags.writeable if _is_array(inside) else not isinstance(inside, tuple)


def _items(inside: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(inside, (dict, _Slots)):
        return inside.items()
    return enumerate(inside) if isinstance(inside, (list, tuple, deque)) else ()


class Watch:
    """Finds what is changed in inputs: tensors in place, or values that take the place of others."""

    def __init__(self, inputs: Any) -> None:
        self._before = {name: (value, _version(value)) for name, value in values_in(inputs)}
        self._inside = [
            (f"{name}.{key}", value, _version(value))
            for name, inside in _insides(inputs)
            for key, value in _items(inside)
            if isinstance(value, Tensor)
        ]

    def changed(self) -> list[str]:
        """Return the names of the tensors that were changed in place since."""
        watched = [(name, *value) for name, value in self._before.items()] + self._inside
        return [name for name, value, version in watched if _version(value) != version]

    def sees(self, inputs: Any) -> bool:
        """Whether inputs hold the very same values as those that are watched, and none was changed in place."""
        now = dict(values_in(inputs))
        is_same = now.keys() == self._before.keys() and all(now[name] is self._before[name][0] for name in now)
        return is_same and not self.changed()


def continuous_labels(inputs: Any, names: Iterable[str]) -> Tensor | None:
    """Count the labels of a batch that are continuous, 0-dim; None where they are classes, as far as one can see.

    Floating-point labels, one for each sample, are those of a regression, unless all of them are 0 or 1. Several for
    each sample may be probabilities of classes while they are in [0, 1], or -100, which losses leave out.

    Args:
        inputs: of any kind; labels are looked for in mappings.
        names: that labels may have; the first that is floating-point counts.
    """
    for labels in map(inputs.get, names) if isinstance(inputs, Mapping) else ():
        if isinstance(labels, Tensor) and labels.is_floating_point():
            one_each = labels.shape[1:].numel() == 1
            classes = (labels == 0) | (labels == 1) if one_each else (labels >= 0) & (labels <= 1)
            return (~classes & (labels != -100)).sum()
    return None


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _has_iterators(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(map(_has_iterators, data.values()))
    if isinstance(data, (list, tuple)):
        return any(map(_has_iterators, data))
    return isinstance(data, Iterator)
