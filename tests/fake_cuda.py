"""A CUDA device made of fake tensors: they know shapes and devices, and hold no values.

An operation on tensors of two devices raises, as on a real one, and so does reading a value on the host.
"""

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")


class Recorder(TorchDispatchMode):
    """Counts the kernels on the device; refuses copies between host and device, for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:  # asked by Python's own `tensor.device`
            return out
        read, written = ({t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)} for x in (args, out))
        if "cpu" in read ^ written and "cuda" in read | written and read:
            raise AssertionError(f"{func} moves data from {read} to {written}")
        if "cuda" in read and func.name().split("::")[1].split(".")[0] not in ("detach", "empty_like", "unbind"):
            self.kernels.append(func.name())
        return out


def _copy(target, source):
    torch._foreach_copy_([target], [source])
    return target


def _item(tensor, index):
    """As Python's own, for whole numbers, slices, None, ... and tensors beside each other."""
    index = index if isinstance(index, tuple) else (index,)
    axis, places = 0, {}
    for i, part in enumerate(index):
        if part is ...:
            axis = tensor.dim() - sum(one is not None for one in index[i + 1 :])
            continue
        if isinstance(part, int):
            tensor = tensor.select(axis, part)
            continue
        if part is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice(tensor, axis, *part.indices(tensor.shape[axis]))
        else:
            places[axis] = part
        axis += 1
    return torch.ops.aten.index(tensor, [places.get(i) for i in range(max(places) + 1)]) if places else tensor


def _set_item(tensor, index, value):
    _copy(_item(tensor, index), value)


_EQUALS = {
    torch.Tensor.copy_: _copy,
    torch.Tensor.__getitem__: _item,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.__invert__: torch.logical_not,
    torch.Tensor.contiguous: lambda tensor: tensor.clone(memory_format=torch.contiguous_format),
}


class _WithoutDeviceGuards(TorchFunctionMode):
    """Methods of tensors that ask for a CUDA build even where tensors are fake, as operations that do not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _EQUALS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def fake_cuda():
    """Make all tensors inside fake ones."""
    with FakeTensorMode(), _WithoutDeviceGuards():
        yield
