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


class Perturbation:
    """Δ for some parameters, inside one or many ε-balls; 0 until the first `ascend`.

    Inside `applied` the parameters are θ + Δ, and `ascend` moves them on; outside they are θ, bit for bit. Beside each
    parameter that has moved there is one spare tensor: of θ inside, of Δ between two times that are `applied`, so that
    Δ is added to what the parameters are by then.
    Parameters that never receive a gradient keep Δ = 0. Sharded parameters (`DTensor`) are handled on their local
    shards, with one all-reduce of the vector of squared norms per `ascend`; all processes of the mesh must call
    `ascend` then. Complex parameters count as pairs of real numbers.

        perturbation = Perturbation(model.parameters(), epsilon=0.5, norm="tensor")
        with perturbation.applied(keep_delta=False):
            loss(model).backward()
            perturbation.ascend(inner_lr=1.0)
            model.zero_grad()
            loss(model).backward()  # the gradient at θ + Δ

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
        # The spare tensors by the place of their parameter: a parameter is θ + Δ while its θ is kept here, …
        self._theta: dict[int, Tensor] = {}
        # … and θ while its Δ is kept here. Never both, but while one takes the place of the other.
        self._delta: dict[int, Tensor] = {}
        self._is_applied = False
        self._finite: Tensor | None = None
        self._norm: Tensor | None = None

    @contextmanager
    def applied(self, keep_delta: bool = True) -> Iterator[None]:
        """Move the parameters to θ + Δ inside; afterwards they are θ again, bit for bit, whatever happens.

        Args:
            keep_delta: False saves a copy where Δ is not needed again: it is 0 afterwards, as after an error inside.
        """
        self._is_applied, is_kept = True, False
        try:
            self._move_to_perturbed()
            forget_copies()
            yield
            if keep_delta:
                self._keep_delta()
                is_kept = True
        finally:
            if not is_kept:
                self._move_to_theta()
            forget_copies()
            self._is_applied = False

    def ascend(self, inner_lr: float, grad_scale: Tensor | float = 1.0) -> None:
        """Δ ← project(Δ + ζ g / grad_scale), where g are the gradients that the parameters hold.

        Inside `applied` the parameters move from θ + Δ straight to the new θ + Δ; outside they stay θ. The gradients
        are used up: their memory holds something else afterwards.

        If any gradient is inf or nan, Δ becomes 0 and stays 0: the step is then a plain one. A very large ζ gives
        Δ = ε g / ‖g‖ for N = 1, the ascent of SAM.

        Args:
            inner_lr: ζ > 0.
            grad_scale: factor that the gradients carry, e.g. the loss scale, a number or a 0-dim tensor.
        """
        if not self._is_applied:
            with self.applied():
                self.ascend(inner_lr, grad_scale)
            return
        grads = {i: _gradient(param, param.grad) for i, param in enumerate(self.params) if param.grad is not None}
        if not grads:
            return
        rate = inner_lr / grad_scale
        self._add_delta_to(grads, 1 / rate)
        # Scaled by min(ζ, ε / ‖g‖) at once, not by ζ and then into the ball: one pass less over the memory, and no
        # overflow for a ζ so large that only the ball counts.
        norms = self._norms(grads)
        factors = torch.where(norms > 0, (self.epsilon / norms).clamp(max=rate), 0.0)
        self._move(grads, norms, factors)

    def randomize(self, generator: torch.Generator | None = None) -> None:
        """Draw Δ uniformly from the ε-ball(s): random model perturbation (RMP), which the paper compares with.

        Like `ascend`, it moves the parameters inside `applied`, and leaves them θ outside.

        Args:
            generator: random numbers to use, on the device of the parameters; None: torch's own.
        """
        if not self._is_applied:
            with self.applied():
                self.randomize(generator)
            return
        shards = [_local(param) for param in self.params]
        noise = {
            i: torch.randn(shard.shape, dtype=shard.dtype, device=shard.device, generator=generator)
            for i, shard in enumerate(shards)
        }
        norms = self._norms(noise)
        sizes = torch.stack([norms.new_full((), _numbers(param)) for param in self.params])
        dims = sizes if self.per_tensor else sizes.sum().reshape(1)
        device = shards[0].device
        uniform = torch.rand(dims.shape, dtype=norms.dtype, device=device, generator=generator).to(norms.device)
        factors = torch.where(norms > 0, self.epsilon * uniform ** (1 / dims) / norms, 0.0)
        self._move(noise, norms, factors)

    @property
    def norm(self) -> Tensor:
        """‖Δ‖₂ over all parameters, a 0-dim tensor on the device."""
        return torch.zeros(()) if self._norm is None else self._norm

    @property
    def skipped(self) -> Tensor:
        """1.0 if an inf or nan made Δ = 0, else 0.0; a 0-dim tensor on the device."""
        return torch.zeros(()) if self._finite is None else (~self._finite).to(self.norm.dtype)

    @torch.no_grad()
    def _add_delta_to(self, grads: dict[int, Tensor], inverse_rate: Tensor | float) -> None:
        """g ← g + Δ / rate, in place: what the rate scales to Δ + rate · g. Leaves Δ / rate in the parameters."""
        if not self._theta:
            return
        shards = self._shards(self._theta)
        torch._foreach_sub_(list(shards.values()), list(self._theta.values()))
        for i, delta in shards.items():
            factor = inverse_rate.to(delta.device) if isinstance(inverse_rate, Tensor) else inverse_rate
            delta.mul_(factor)
            # Without a gradient it had its last one at a former inner iteration.
            grads[i] = grads[i].add_(delta) if i in grads else delta.clone()

    @torch.no_grad()
    def _move(self, directions: dict[int, Tensor], norms: Tensor, factors: Tensor) -> None:
        """θ + Δ ← θ + factor · direction, with a factor for each tensor or one for all; θ if any norm is not finite."""
        finite = norms.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        factors = torch.where(self._finite, factors, 0.0)
        self._norm = torch.where(self._finite, torch.linalg.vector_norm(norms * factors), 0.0)
        shards = self._shards(directions)
        saved = {i: torch.empty_like(shard) for i, shard in shards.items() if i not in self._theta}
        _copy(list(saved.values()), [shards[i] for i in saved])
        self._theta |= saved
        # The factor 0 of gradients that are not finite would leave nan where they were inf or nan. In the host's memory
        # it can be asked whether they are, which saves a pass over them.
        known_finite = self._finite.is_cpu and bool(self._finite)
        for (i, direction), factor in zip(directions.items(), cycle(factors.unbind()), strict=False):
            direction = direction if known_finite else direction.nan_to_num_(nan=0.0)
            torch.addcmul(self._theta[i], direction, factor.to(direction.device), out=shards[i])
        forget_copies()

    @torch.no_grad()
    def _norms(self, tensors: dict[int, Tensor]) -> Tensor:
        """Norm of each ball's tensors, over all shards: shape (len(tensors),), or (1,) for one global ball."""
        norms = _tensor_norms(list(tensors.values()), [self.params[i] for i in tensors])
        return norms if self.per_tensor else torch.linalg.vector_norm(norms).reshape(1)

    @torch.no_grad()
    def _move_to_perturbed(self) -> None:
        """θ ← θ + Δ. One by one, so that there is one copy and not two; θ is kept before it changes."""
        for i, shard in self._shards(self._delta).items():
            self._theta[i] = shard.clone()
            shard.add_(self._delta.pop(i))

    @torch.no_grad()
    def _keep_delta(self) -> None:
        """θ again, with Δ in the place of the copies of θ; the last that moved is the first to go back."""
        for i, shard in reversed(self._shards(self._theta).items()):
            self._delta[i] = shard - self._theta[i]
            shard.copy_(self._theta[i])
            del self._theta[i]
        self._delta = dict(reversed(self._delta.items()))

    @torch.no_grad()
    def _move_to_theta(self) -> None:
        """θ again, and Δ = 0. Backwards, as memory that two parameters share needs it."""
        order = list(reversed(self._theta))
        _copy(list(self._shards(order).values()), [self._theta[i] for i in order])
        self._theta, self._delta = {}, {}

    def _shards(self, places: Iterable[int]) -> dict[int, Tensor]:
        return {i: _local(self.params[i]) for i in places}


def _gradient(param: nn.Parameter, grad: Tensor) -> Tensor:
    """The gradient of a parameter in this process: dense, real, in the dtype of its parameter."""
    return _local(grad.to_dense() if grad.is_sparse else grad).to(_local(param).dtype)


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lives in this process, sharing its memory; complex numbers as pairs of real ones."""
    tensor = tensor.detach()
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _numbers(param: nn.Parameter) -> int:
    """How many real numbers a parameter holds, over all shards."""
    return param.numel() * (2 if param.is_complex() else 1)


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


def forget_copies() -> None:
    """Let go of what `autocast` and `parametrize.cached` around several passes keep of the weights that they saw."""
    torch.clear_autocast_cache()
    nn.utils.parametrize._cache.clear()


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
