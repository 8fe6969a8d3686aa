"""Algorithm 1 of the paper (Zheng, Zhang, Mao, CVPR 2021), written out plainly. Imports nothing from `hf_amp`.

One process, one batch at a time, one tensor at a time: slow, and meant to be read beside the paper.
"""

import torch


def amp_perturbation(params, loss_at, *, epsilon, inner_lr, inner_iter, norm):
    """Return Δ for the loss `loss_at()` of the parameters, and the losses seen at θ, θ + Δ_1, …"""
    theta = [param.detach().clone() for param in params]
    delta = [torch.zeros_like(param) for param in params]
    losses = []
    for _ in range(inner_iter):
        _set(params, [t + d for t, d in zip(theta, delta, strict=True)])
        loss = loss_at()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, params)
        delta = [d + inner_lr * g for d, g in zip(delta, grads, strict=True)]
        delta = _project(delta, epsilon, norm)
    _set(params, theta)
    return delta, losses


def amp_step(params, loss_at, optimizer, **settings):
    """One optimizer step with the gradient at θ + Δ applied at θ. Return the losses at θ and at θ + Δ."""
    theta = [param.detach().clone() for param in params]
    delta, losses = amp_perturbation(params, loss_at, **settings)
    _set(params, [t + d for t, d in zip(theta, delta, strict=True)])
    optimizer.zero_grad()
    amp_loss = loss_at()
    amp_loss.backward()
    _set(params, theta)
    optimizer.step()
    return losses[0] if losses else amp_loss.item(), amp_loss.item()


def _project(delta, epsilon, norm):
    if norm == "tensor":
        return [d * min(1.0, epsilon / d.norm().item()) if d.norm() > 0 else d for d in delta]
    total = sum((d**2).sum() for d in delta).sqrt().item()
    return [d * (epsilon / total) for d in delta] if total > epsilon else delta


def _set(params, values):
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
