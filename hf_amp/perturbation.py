"""The perturbation Δ: ascend, project, apply, restore. Tensors only; no losses, batches or Trainer in here.

Symbols follow the paper (Zheng, Zhang, Mao, CVPR 2021, Algorithm 1): parameters θ, perturbation Δ, radius ε, inner
learning rate ζ. Nothing in this module reads a tensor of a device on the host, so no step waits for the device.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@contextmanager
def gradients_set_aside(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Start from empty gradients inside, and put the accumulated ones back at the end, whatever happens."""
    params = list(params)
    accumulated = [param.grad for param in params]
    for param in params:
        param.grad = None
    try:
        yield
    finally:
        for param, grad in zip(params, accumulated, strict=True):
            param.grad = grad


class Perturbation:
    """Δ for some parameters, inside one or many ε-balls; 0 until the first `ascend`.

    The parameters themselves are only changed inside `applied`, in which they are θ + Δ. Beside them there is one copy
    of them at a time, and one more tensor: of θ inside, of θ + Δ between two times; Δ is then their difference.
    Parameters that never receive a gradient keep Δ = 0. Sharded parameters (`DTensor`) are handled on their local
    shards, with one all-reduce of the vector of squared norms per `ascend`; all processes of the mesh must call
    `ascend` then.

    Args:
        params: parameters to perturb, each once.
        epsilon: radius ε > 0.
        norm: `"tensor"`, ‖Δ_i‖₂ ≤ ε for each parameter tensor i (the authors' code), or `"global"`, one ball around
            all of them (Algorithm 1 as printed).
    """

    def __init__(self, params: Iterable[nn.Parameter], epsilon: float, norm: str) -> None:
        self.params = list(params)
        self.epsilon = epsilon
        self.per_tensor = norm == "tensor"
        # Each tensor by the place of its parameter. Δ is in one of three: not yet added to θ; in the parameters, of
        # which `_theta` tells it; in `_perturbed`, kept for the next `applied`.
        self._delta: dict[int, Tensor] = {}  # what `_factors`, one for each tensor or ball, scale to Δ
        self._factors = torch.zeros(1)
        self._theta: dict[int, Tensor] = {}  # copies of θ
        self._perturbed: dict[int, Tensor] = {}  # copies of θ + Δ
        self._finite: Tensor | None = None
        self._norm: Tensor | None = None

    def ascend(self, inner_lr: float, grad_scale: Tensor | float = 1.0) -> None:
        """Δ ← project(Δ + ζ g / grad_scale), where g are the gradients that the parameters hold.

        Inside `applied` the parameters are θ again from here on, and their copy is left to the next `applied`: nothing
        may change θ until then. After `applied` it does the same, with a few passes more over the memory.

        If any gradient is inf or nan, Δ becomes 0 and stays 0: the step is then a plain one. A very large ζ gives
        Δ = ε g / ‖g‖ for N = 1, the ascent of SAM.

        The gradients' memory may become that of Δ: nothing may write to it before `applied` has begun.

        Args:
            inner_lr: ζ > 0.
            grad_scale: factor that the gradients carry, e.g. the loss scale, a number or a 0-dim tensor.
        """
        grads = {
            i: _local(param.grad.to_dense() if param.grad.is_sparse else param.grad)
            for i, param in enumerate(self.params)
            if param.grad is not None
        }
        if not grads:
            return
        rate = inner_lr / grad_scale
        self._add_delta_to(grads, 1 / rate)
        # Scaled by min(ζ, ε / ‖g‖) at once, not by ζ and then into the ball: one pass less over the memory, and no
        # overflow for a ζ so large that only the ball counts.
        norms = self._norms(grads)
        factors = torch.where(norms > 0, (self.epsilon / norms).clamp(max=rate), 0.0)
        finite = norms.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        factors = torch.where(self._finite, factors, 0.0)
        self._norm = torch.where(self._finite, torch.linalg.vector_norm(norms * factors), 0.0)
        self._delta, self._factors = grads, factors

    def randomize(self, generator: torch.Generator | None = None) -> None:
        """Draw Δ uniformly from the ε-ball(s): random model perturbation (RMP), which the paper compares with.

        Args:
            generator: random numbers to use, on the device of the parameters; None: torch's own.
        """
        shards = [_local(param) for param in self.params]
        noise = {
            i: torch.randn(shard.shape, dtype=shard.dtype, device=shard.device, generator=generator)
            for i, shard in enumerate(shards)
        }
        norms = self._norms(noise)
        sizes = torch.stack([norms.new_full((), param.numel()) for param in self.params])
        dims = sizes if self.per_tensor else sizes.sum().reshape(1)
        device = shards[0].device
        uniform = torch.rand(dims.shape, dtype=norms.dtype, device=device, generator=generator).to(norms.device)
        factors = self.epsilon * uniform ** (1 / dims) / norms
        self._finite = norms.isfinite().all()
        self._norm = torch.linalg.vector_norm(norms * factors)
        self._move_to_theta()
        self._delta, self._factors, self._perturbed = noise, factors, {}

    @contextmanager
    def applied(self, keep_delta: bool = True) -> Iterator[None]:
        """Move the parameters to θ + Δ inside; afterwards they are θ again, bit for bit, whatever happens.

        Args:
            keep_delta: False saves a copy where Δ is not needed again: it is 0 afterwards, as after an error inside.
        """
        try:
            self._move_to_perturbed()
            yield
            if keep_delta and self._is_applied:
                self._keep_perturbed()
        finally:
            self._move_to_theta()

    @property
    def norm(self) -> Tensor:
        """‖Δ‖₂ over all parameters, a 0-dim tensor on the device."""
        return torch.zeros(()) if self._norm is None else self._norm

    @property
    def skipped(self) -> Tensor:
        """1.0 if an inf or nan made Δ = 0, else 0.0; a 0-dim tensor on the device."""
        return torch.zeros(()) if self._finite is None else (~self._finite).to(self.norm.dtype)

    @property
    def _is_applied(self) -> bool:
        """Whether the parameters may be anything but θ; after an `ascend` inside `applied` they are θ."""
        return bool(self._theta) and not self._delta

    @torch.no_grad()
    def _add_delta_to(self, grads: dict[int, Tensor], inverse_rate: Tensor | float) -> None:
        """g ← g + Δ / rate, in place: what the rate scales to Δ + rate · g. The factors of Δ are at most the rate."""
        delta, factors = self._delta, self._factors
        if self._is_applied:
            delta, factors = self._shards(self._theta), factors.new_ones(1)
            torch._foreach_sub_(list(delta.values()), list(self._theta.values()))
        elif self._perturbed:
            delta, factors = self._perturbed, factors.new_ones(1)
            torch._foreach_sub_(list(delta.values()), list(self._shards(delta).values()))
        if not delta:
            return
        for i, tensor, factor in _scaled(delta, factors * inverse_rate):
            if i in grads:
                grads[i].addcmul_(tensor, factor)
            else:  # it had its last gradient at a former inner iteration
                grads[i] = tensor * factor
        if self._is_applied:
            _copy(list(delta.values()), list(self._theta.values()))
        self._perturbed = {}

    @torch.no_grad()
    def _norms(self, tensors: dict[int, Tensor]) -> Tensor:
        """Norm of each ball's tensors, over all shards: shape (len(tensors),), or (1,) for one global ball."""
        norms = _tensor_norms(list(tensors.values()), [self.params[i] for i in tensors])
        return norms if self.per_tensor else torch.linalg.vector_norm(norms).reshape(1)

    @torch.no_grad()
    def _move_to_perturbed(self) -> None:
        """θ ← θ + Δ, with copies of θ at hand before it changes."""
        perturbed, self._perturbed = self._perturbed, {}
        for i, shard in self._shards(perturbed).items():  # one by one, so that there is one copy and not two
            self._theta[i] = shard.clone()
            shard.copy_(perturbed.pop(i))
        delta, self._delta = self._delta, {}
        shards = self._shards(delta)
        unsaved = [i for i in delta if i not in self._theta]
        saved = {i: torch.empty_like(shards[i]) for i in unsaved}
        _copy(list(saved.values()), [shards[i] for i in unsaved])
        self._theta |= saved
        # The factor 0 of gradients that are not finite would leave nan where they were inf or nan. In the host's memory
        # it can be asked whether they are, which saves a pass over them.
        known_finite = self._finite is not None and self._finite.is_cpu and bool(self._finite)
        for i, tensor, factor in _scaled(delta, self._factors):
            shards[i].addcmul_(tensor if known_finite else tensor.nan_to_num_(nan=0.0), factor)

    @torch.no_grad()
    def _keep_perturbed(self) -> None:
        """θ again, as `_move_to_theta` does, with copies of θ + Δ in the place of those of θ."""
        for i, shard in self._shards(self._theta).items():
            self._perturbed[i] = shard.clone()
            shard.copy_(self._theta[i])
            del self._theta[i]

    @torch.no_grad()
    def _move_to_theta(self) -> None:
        if self._is_applied:
            _copy(list(self._shards(self._theta).values()), list(self._theta.values()))
            self._theta, self._perturbed = {}, {}

    def _shards(self, places: Iterable[int]) -> dict[int, Tensor]:
        return {i: _local(self.params[i]) for i in places}


def _scaled(tensors: dict[int, Tensor], factors: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each tensor with its factor, 0-dim, on its device; `factors` has as many, or one for all."""
    for (i, tensor), factor in zip(tensors.items(), cycle(factors.unbind()), strict=False):
        yield i, tensor, factor.to(tensor.device)


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lives in this process, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _tensor_norms(tensors: list[Tensor], params: Sequence[nn.Parameter]) -> Tensor:
    """L2 norm of each parameter's tensor, shape (len(tensors),); shards are completed over their processes.

    In float32 at least, since a sum of squares overflows in half precision. Each mesh dimension that shards
    parameters costs one all-reduce of the vector of their squared norms.
    """
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    norms = [norm.to(tensors[0].device) for norm in torch._foreach_norm(tensors, 2, dtype=dtype)]
    members: dict[dist.ProcessGroup, list[int]] = {}
    for i, param in enumerate(params):
        if isinstance(param, DTensor):
            for dim, placement in enumerate(param.placements):
                if placement.is_shard():
                    members.setdefault(param.device_mesh.get_group(dim), []).append(i)
    for group, indices in members.items():
        squares = torch.stack([norms[i] for i in indices]).square()
        dist.all_reduce(squares, group=group)
        for i, norm in zip(indices, squares.sqrt().unbind(), strict=True):
            norms[i] = norm
    return torch.stack(norms)


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
