import pytest
import torch
from torch import nn

from hf_amp.passes import frozen_norm_stats, moved_state, running_statistics


def convolutional_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True))


def statistics_of(model):
    return [buffer.clone() for buffer in running_statistics(model)]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_buffers_change_without_and_stay_with_it():
    model, x = convolutional_net(), torch.randn(4, 1, 6, 6)
    before = statistics_of(model)
    with frozen_norm_stats(model):
        model(x)
        assert not same(before, statistics_of(model))  # it is put back afterwards, not switched off
    assert same(before, statistics_of(model))
    model(x)
    assert not same(before, statistics_of(model))


def test_the_batch_is_normalised_with_its_own_statistics_inside():
    model, x = convolutional_net(), torch.randn(4, 1, 6, 6)
    with frozen_norm_stats(model):
        inside = model(x)
    assert torch.equal(inside, model(x))
    assert not torch.equal(inside, model.eval()(x))


def test_the_counter_of_batches_is_kept_too():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with frozen_norm_stats(model):
        model(torch.randn(4, 3))
    assert model[0].num_batches_tracked == 0


def test_nesting_keeps_the_statistics_from_before_the_outermost():
    model = nn.Sequential(nn.BatchNorm1d(3))
    before = statistics_of(model)
    with frozen_norm_stats(model):
        model(torch.randn(4, 3))
        with frozen_norm_stats(model):
            model(torch.randn(4, 3))
    assert same(before, statistics_of(model))


def test_statistics_are_put_back_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(3))
    before = statistics_of(model)
    with pytest.raises(RuntimeError, match="out of memory"), frozen_norm_stats(model):
        model(torch.randn(4, 3))
        raise RuntimeError("out of memory")
    assert same(before, statistics_of(model))


def test_layers_without_running_statistics_are_left_alone():
    model = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    assert running_statistics(model) == []
    with frozen_norm_stats(model):
        model(torch.randn(4, 3))


def test_the_pass_backward_inside_gives_the_usual_gradient():
    model, x = convolutional_net(), torch.randn(4, 1, 6, 6)
    with frozen_norm_stats(model):
        model(x).square().sum().backward()
    inside = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    assert same(inside, [p.grad for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_state_of_any_kind_is_looked_at_or_left_out():
    values = {
        "whole": torch.arange(3),
        "flag": torch.tensor(True),
        "rounded": torch.ones(2, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex128).conj(),
        "negated": torch.ones(2, dtype=torch.complex64).conj().imag,
        "turned": torch.ones(2, 3).t(),
        "empty": torch.empty(0),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }
    model = nn.Module()
    for name, value in values.items():
        model.register_buffer(name, value)
    for name in ("whole", "rounded"):
        model.register_parameter(f"frozen_{name}", nn.Parameter(values[name].clone(), requires_grad=False))
    with moved_state(model) as names:
        pass
    assert names == []
    left_out = {"empty", "sparse", "meta", "quantised"}
    with moved_state(model) as names, torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if name not in left_out:
                value.copy_(torch.zeros_like(value))
        model.left_over = nn.Parameter(torch.zeros(1), requires_grad=False)
    assert set(names) == set(model.state_dict()) - left_out - {"left_over"}
