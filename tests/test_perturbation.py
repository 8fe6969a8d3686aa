import math
import weakref

import pytest
import torch
from reference import amp_perturbation
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_amp.passes import gradients_set_aside
from hf_amp.perturbation import Perturbation


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def loss_of(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(3, (9,), generator=generator)
    return lambda: nn.functional.cross_entropy(model(x), y)


def ascended(model, epsilon, norm="tensor", inner_lr=1.0, inner_iter=1, grad_scale=1.0, inside=True):
    """A perturbation after N ascents, each inside `applied`, as the trainer makes them, or after it."""
    perturbation = Perturbation(model.parameters(), epsilon, norm)
    loss_at = loss_of(model)
    for _ in range(inner_iter):
        with gradients_set_aside(model.parameters()):
            with perturbation.applied():
                (loss_at() * grad_scale).backward()
                if inside:
                    perturbation.ascend(inner_lr, grad_scale)
            if not inside:
                perturbation.ascend(inner_lr, grad_scale)
    return perturbation


def delta_of(perturbation):
    theta = [param.detach().clone() for param in perturbation.params]
    with perturbation.applied():
        return [param.detach() - t for param, t in zip(perturbation.params, theta, strict=True)]


@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("inner_iter", [1, 2, 3])
@pytest.mark.parametrize(("epsilon", "inner_lr"), [(0.05, 1.0), (10.0, 1.0), (0.3, 0.2), (0.1, 1e6)])
@pytest.mark.parametrize("inside", [True, False])
def test_delta_is_that_of_algorithm_1(norm, inner_iter, epsilon, inner_lr, inside):
    model = network()
    settings = {"epsilon": epsilon, "inner_lr": inner_lr, "inner_iter": inner_iter, "norm": norm}
    expected, _ = amp_perturbation(list(model.parameters()), loss_of(model), **settings)
    perturbation = ascended(model, epsilon, norm, inner_lr, inner_iter, inside=inside)
    for got, want in zip(delta_of(perturbation), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    norm_of_all = torch.cat([d.flatten() for d in expected]).norm()
    torch.testing.assert_close(perturbation.norm, norm_of_all, rtol=1e-12, atol=0.0)


def test_one_step_on_a_quadratic_worked_by_hand():
    # L(θ) = θ₁² / 2 + 2 θ₂² at θ = (3, 1): g = (3, 4), ‖g‖ = 5. With ε = 1 and ζ = 1, Δ = g / 5 = (0.6, 0.8).
    # The gradient at θ + Δ = (3.6, 1.8) is (3.6, 7.2).
    theta = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def loss():
        return (curvature * theta**2).sum() / 2

    perturbation = Perturbation([theta], 1.0, "global")
    loss().backward()
    perturbation.ascend(1.0)
    theta.grad = None
    with perturbation.applied():
        torch.testing.assert_close(theta.detach(), torch.tensor([3.6, 1.8], dtype=torch.float64))
        loss().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([3.6, 7.2], dtype=torch.float64))
    assert theta.tolist() == [3.0, 1.0]


def test_inside_the_ball_delta_is_the_inner_lr_times_the_gradient_unnormalised():
    model = network()
    grads = torch.autograd.grad(loss_of(model)(), list(model.parameters()))
    for got, grad in zip(delta_of(ascended(model, epsilon=100.0, inner_lr=0.25)), grads, strict=True):
        torch.testing.assert_close(got, 0.25 * grad, rtol=1e-9, atol=1e-15)


def test_a_very_large_inner_lr_with_the_global_ball_is_sam():
    model = network()
    grads = torch.autograd.grad(loss_of(model)(), list(model.parameters()))
    total = torch.cat([g.flatten() for g in grads]).norm()
    for inner_lr in (1e6, 1e30, 1e300):
        for got, grad in zip(delta_of(ascended(model, 0.05, "global", inner_lr)), grads, strict=True):
            torch.testing.assert_close(got, 0.05 * grad / total, rtol=1e-9, atol=1e-15)


def test_the_two_norms_differ_and_keep_to_their_balls():
    model = network()
    per_tensor, together = delta_of(ascended(model, 0.01)), delta_of(ascended(model, 0.01, "global"))
    torch.testing.assert_close(torch.stack([d.norm() for d in per_tensor]), torch.full((4,), 0.01, dtype=torch.float64))
    assert torch.cat([d.flatten() for d in together]).norm().item() == pytest.approx(0.01)
    assert not torch.allclose(per_tensor[0], together[0])


@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**-3])
@pytest.mark.parametrize("inside", [True, False])
def test_a_scale_that_the_gradients_carry_changes_nothing(inner_iter, scale, inside):
    plain = delta_of(ascended(network(), 0.05, inner_iter=inner_iter))
    for grad_scale in (scale, torch.tensor(scale)):
        scaled = delta_of(ascended(network(), 0.05, inner_iter=inner_iter, grad_scale=grad_scale, inside=inside))
        for left, right in zip(plain, scaled, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-16)


def test_restore_is_bit_identical_over_many_steps_where_subtraction_drifts():
    model = network(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    subtracted = [p.clone() for p in before]
    for _ in range(200):
        perturbation = ascended(model, 0.5)
        for drifting, delta in zip(subtracted, delta_of(perturbation), strict=True):
            drifting.add_(delta).sub_(delta)
        with perturbation.applied():
            assert not torch.equal(model[0].weight, before[0])
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not all(torch.equal(p, b) for p, b in zip(subtracted, before, strict=True))


@pytest.mark.parametrize("inner_iter", [1, 2, 3])
def test_an_ascent_inside_moves_the_parameters_straight_to_the_new_point(inner_iter):
    model = network()
    theta = [p.detach().clone() for p in model.parameters()]
    settings = {"epsilon": 0.3, "inner_lr": 1.0, "inner_iter": inner_iter, "norm": "tensor"}
    expected, _ = amp_perturbation(list(model.parameters()), loss_of(model), **settings)
    perturbation, loss_at = Perturbation(model.parameters(), 0.3, "tensor"), loss_of(model)
    with perturbation.applied(keep_delta=False):
        for _ in range(inner_iter):
            model.zero_grad()
            loss_at().backward()
            perturbation.ascend(1.0)
        for param, start, delta in zip(model.parameters(), theta, expected, strict=True):
            torch.testing.assert_close(param.detach() - start, delta, rtol=1e-10, atol=1e-14)
    assert all(map(torch.equal, model.parameters(), theta))


def test_a_parameter_has_one_spare_tensor_whatever_the_step_does():
    class Allocated(TorchDispatchMode):
        """Bytes of the tensors as large as the parameters that are alive at once."""

        def __init__(self, numel):
            super().__init__()
            self.numel, self.alive, self.most = numel, weakref.WeakSet(), 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() == self.numel:
                self.alive.add(result.untyped_storage())
                self.most = max(self.most, len({storage.data_ptr() for storage in self.alive}))
            return result

    param = nn.Parameter(torch.randn(1000))
    other = {param.untyped_storage().data_ptr()}
    perturbation = Perturbation([param], 0.5, "tensor")
    with Allocated(1000) as allocated:
        with perturbation.applied():
            for _ in range(3):
                param.grad = torch.ones(1000)
                perturbation.ascend(1.0)
                param.grad = None
        with perturbation.applied():
            pass
        with perturbation.applied(keep_delta=False):
            pass
    assert allocated.most <= len(other) + 1 + 1  # the parameter, its spare tensor, and its gradient or one on its way


@pytest.mark.parametrize("inner_iter", [1, 2])
@pytest.mark.parametrize("inside", [True, False])
def test_a_kept_delta_moves_the_parameters_to_the_same_bits_each_time(inner_iter, inside):
    model = network(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    perturbation = ascended(model, 0.5, inner_iter=inner_iter, inside=inside)
    places = []
    for _ in range(3):
        with perturbation.applied():
            places.append([p.detach().clone() for p in model.parameters()])
        assert all(map(torch.equal, model.parameters(), before))
    assert not torch.equal(places[0][0], before[0])
    assert all(torch.equal(*pair) for later in places[1:] for pair in zip(places[0], later, strict=True))


def test_changes_of_theta_between_two_times_stay():
    model = network()
    perturbation = ascended(model, 0.5)
    with perturbation.applied():
        pass
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    with perturbation.applied():
        pass
    assert model[0].weight.unique().tolist() == [7.0]


def test_delta_is_added_to_what_the_parameters_are_by_then():
    model, moved = network(), network()
    perturbation = ascended(model, 0.5)
    for param in model.parameters():
        param.data.add_(1.0)  # of which torch keeps no count
    with perturbation.applied(), ascended(moved, 0.5).applied():
        for param, other in zip(model.parameters(), moved.parameters(), strict=True):
            torch.testing.assert_close(param, other + 1.0)


class Interrupted(TorchDispatchMode):
    """Raises before one of the operations, but those that put θ back: nothing could go on without them."""

    def __init__(self, params, at):
        super().__init__()
        self.places, self.at, self.count = {param.data_ptr() for param in params}, at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        restores = func is torch.ops.aten._foreach_copy_.default and args[0][0].data_ptr() in self.places
        if not restores and func is not torch.ops.aten.detach.default:
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def test_weights_are_back_after_an_interruption_before_any_operation_of_a_step():
    def step(model):
        perturbation = ascended(model, 0.5, inner_iter=2)
        for keep_delta in (True, True, False):
            with perturbation.applied(keep_delta):
                loss_of(model)().backward()

    model = network(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    with Interrupted(model.parameters(), at=0) as whole:
        step(model)
    assert whole.count > 100
    for at in range(1, whole.count + 1):
        with pytest.raises(KeyboardInterrupt), Interrupted(model.parameters(), at):
            step(model)
        assert all(map(torch.equal, model.parameters(), before)), at


def test_delta_is_zero_and_not_a_part_of_it_after_an_interruption_on_the_way():
    def there_and_back_twice(perturbation):
        for _ in range(2):
            with perturbation.applied():
                pass

    model = network()
    with Interrupted(model.parameters(), at=0) as whole:
        perturbation = ascended(model, 0.5)
        whole.count = 0
        there_and_back_twice(perturbation)
    assert whole.count > 20
    for at in range(1, whole.count + 1):
        perturbation = ascended(model, 0.5)
        with pytest.raises(KeyboardInterrupt), Interrupted(model.parameters(), at):
            there_and_back_twice(perturbation)
        assert all(torch.equal(d, torch.zeros_like(d)) for d in delta_of(perturbation)), at


def test_delta_is_zero_after_an_error():
    model = network()
    perturbation = ascended(model, 0.5)
    for _ in range(2):  # in the first time that Δ is applied, and when it is kept
        with pytest.raises(ValueError, match="stop"), perturbation.applied():
            raise ValueError("stop")
        assert all(torch.equal(d, torch.zeros_like(d)) for d in delta_of(perturbation))
        perturbation = ascended(model, 0.5)
        with perturbation.applied():
            pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_weights_are_back_after_an_error(error):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    perturbation = ascended(model, 0.5)
    with pytest.raises(error), perturbation.applied():
        raise error
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_a_gradient_that_is_not_finite_makes_delta_zero_everywhere(bad, norm):
    model = network()
    loss_of(model)().backward()
    model[2].bias.grad[1] = bad
    perturbation = Perturbation(model.parameters(), 0.5, norm)
    perturbation.ascend(1.0)
    assert all(torch.equal(d, torch.zeros_like(d)) for d in delta_of(perturbation))
    assert (perturbation.norm.item(), perturbation.skipped.item()) == (0.0, 1.0)


def test_delta_stays_zero_after_a_bad_gradient_and_a_good_one_counts_as_none_skipped():
    model = network()
    perturbation = Perturbation(model.parameters(), 0.5, "tensor")
    loss_of(model)().backward()
    good = [p.grad.clone() for p in model.parameters()]
    model[0].bias.grad.fill_(math.nan)
    perturbation.ascend(1.0)
    for param, grad in zip(model.parameters(), good, strict=True):
        param.grad = grad
    perturbation.ascend(1.0)
    assert perturbation.norm.item() == 0.0
    assert ascended(network(), 0.5).skipped.item() == 0.0


def test_parameters_without_a_gradient_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    delta = delta_of(ascended(model, 0.5))
    assert torch.equal(delta[0], torch.zeros_like(delta[0]))
    assert delta[1].norm() > 0


@pytest.mark.parametrize("inside", [True, False])
def test_a_first_gradient_at_a_later_inner_iteration_counts(inside):
    early, late = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    perturbation = Perturbation([early, late], 1.0, "tensor")
    early.grad = torch.tensor([0.1, 0.0], dtype=torch.float64)
    perturbation.ascend(1.0)
    with perturbation.applied():
        late.grad = torch.tensor([0.0, 0.2], dtype=torch.float64)
        if inside:
            perturbation.ascend(1.0)
    if not inside:
        perturbation.ascend(1.0)
    assert [d.tolist() for d in delta_of(perturbation)] == [[0.2, 0.0], [0.0, 0.2]]
    assert [param.tolist() for param in (early, late)] == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("inside", [True, False])
def test_a_parameter_without_a_gradient_at_a_later_inner_iteration_keeps_its_delta(inside):
    early, always = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    perturbation = Perturbation([early, always], 1.0, "tensor")
    early.grad, always.grad = (torch.tensor([value, 0.0], dtype=torch.float64) for value in (0.1, 0.2))
    perturbation.ascend(2.0)
    with perturbation.applied():
        early.grad, always.grad = None, torch.tensor([0.0, 0.2], dtype=torch.float64)
        if inside:
            perturbation.ascend(2.0)
    if not inside:
        perturbation.ascend(2.0)
    assert [d.tolist() for d in delta_of(perturbation)] == [[0.2, 0.0], [0.4, 0.4]]


def test_without_any_gradient_at_a_later_inner_iteration_delta_stays():
    model = network()
    expected = delta_of(ascended(model, 0.5))
    perturbation = ascended(model, 0.5)
    with gradients_set_aside(model.parameters()), perturbation.applied():
        perturbation.ascend(1.0)
    assert all(map(torch.equal, delta_of(perturbation), expected))


def test_no_gradient_at_all_gives_no_perturbation():
    model = network()
    perturbation = Perturbation(model.parameters(), 0.5, "tensor")
    perturbation.ascend(1.0)
    assert (perturbation.norm.item(), perturbation.skipped.item()) == (0.0, 0.0)
    with perturbation.applied():
        assert torch.equal(model[0].weight, network()[0].weight)


def test_a_zero_gradient_gives_a_zero_delta_not_nan():
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    perturbation = Perturbation([param], 0.5, "tensor")
    perturbation.ascend(1e38)
    assert torch.equal(delta_of(perturbation)[0], torch.zeros(3))


def test_sparse_gradients_work():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    perturbation = Perturbation(table.parameters(), 1.0, "tensor")
    perturbation.ascend(1e6)
    (delta,) = delta_of(perturbation)
    assert delta[0].tolist() == [0.0, 0.0]
    assert delta.norm().item() == pytest.approx(1.0)


def test_half_precision_norms_do_not_overflow_and_small_deltas_round_away():
    param = nn.Parameter(torch.full((4,), 256.0, dtype=torch.float16))
    param.grad = torch.full((4,), 3e4, dtype=torch.float16)  # its sum of squares is beyond float16
    perturbation = Perturbation([param], 2.0, "tensor")
    perturbation.ascend(1.0)
    assert perturbation.norm.item() == pytest.approx(2.0)
    assert delta_of(perturbation)[0].tolist() == [1.0] * 4
    param.grad = torch.full((4,), 1.0, dtype=torch.float16)
    small = Perturbation([param], 0.1, "tensor")
    small.ascend(1.0)
    assert delta_of(small)[0].tolist() == [0.0] * 4  # 0.05 is less than half of float16's step at 256


def test_delta_is_freed_when_it_is_not_needed_again():
    model = network()
    perturbation = ascended(model, 0.5)
    with perturbation.applied(keep_delta=False):
        pass
    assert all(torch.equal(d, torch.zeros_like(d)) for d in delta_of(perturbation))
    assert perturbation.norm.item() > 0  # it still tells of the Δ that was


@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_delta_that_is_not_kept_moves_the_parameters_to_the_same_place(norm, bad):
    places = []
    for keep in (True, False):
        model = network()
        loss_of(model)().backward()
        if bad is not None:
            model[0].weight.grad[2, 1] = bad
        perturbation = Perturbation(model.parameters(), 0.3, norm)
        perturbation.ascend(1.0)
        before = [param.detach().clone() for param in model.parameters()]
        with perturbation.applied(keep_delta=keep):
            places.append([param.detach().clone() for param in model.parameters()])
        assert all(map(torch.equal, before, model.parameters()))
        assert all(map(torch.equal, before, places[-1])) == (bad is not None)
    for kept, fused in zip(*places, strict=True):
        torch.testing.assert_close(kept, fused, rtol=1e-15, atol=1e-15)


def test_a_kept_delta_does_not_live_in_the_memory_of_the_gradients():
    model = network()
    loss_of(model)().backward()
    perturbation = Perturbation(model.parameters(), 0.3, "tensor")
    perturbation.ascend(1.0)
    first = delta_of(perturbation)
    for param in model.parameters():
        param.grad.fill_(1000.0)  # as DDP writes its next averages into its buckets
    assert all(map(torch.equal, first, delta_of(perturbation)))


def test_accumulated_gradients_are_hidden_and_put_back_after_an_error():
    model = network()
    loss_of(model)().backward()
    before = [p.grad for p in model.parameters()]
    with pytest.raises(ValueError, match="stop"), gradients_set_aside(model.parameters()):
        assert all(p.grad is None for p in model.parameters())
        loss_of(model)().backward()
        raise ValueError("stop")
    assert all(p.grad is b for p, b in zip(model.parameters(), before, strict=True))


def test_a_random_perturbation_takes_the_place_of_one_that_is_applied_or_kept():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    expected = Perturbation(model.parameters(), 0.5, "tensor")
    expected.randomize(torch.Generator().manual_seed(3))
    expected = delta_of(expected)
    for inside in (True, False):
        perturbation = ascended(model, 0.5)
        with perturbation.applied():
            if inside:
                perturbation.randomize(torch.Generator().manual_seed(3))
                assert not torch.equal(model[0].weight, before[0])
        if not inside:
            perturbation.randomize(torch.Generator().manual_seed(3))
        assert all(map(torch.equal, model.parameters(), before))
        assert all(map(torch.equal, delta_of(perturbation), expected))


@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_random_perturbations_fill_the_ball_evenly(norm):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    radii = []
    for _ in range(2000):
        perturbation = Perturbation(params, 0.5, norm)
        perturbation.randomize()
        deltas = delta_of(perturbation)
        radii.append((deltas[0] if norm == "tensor" else torch.cat(deltas)).norm().item())
    dims = 2 if norm == "tensor" else 3
    assert max(radii) <= 0.5 + 1e-6
    assert sum(radii) / len(radii) == pytest.approx(0.5 * dims / (dims + 1), rel=0.03)  # mean radius in a ball


def test_random_perturbations_follow_their_generator():
    model = network()
    draws = []
    for seed in (3, 3, 4):
        perturbation = Perturbation(model.parameters(), 0.5, "tensor")
        perturbation.randomize(torch.Generator().manual_seed(seed))
        draws.append(delta_of(perturbation)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_complex_parameters_are_pairs_of_real_ones():
    start = torch.tensor([3 + 4j, 1 - 2j], dtype=torch.complex128)
    complex_one, real_one = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    for param in (complex_one, real_one):
        perturbation = Perturbation([param], 0.5, "tensor")
        numbers = torch.view_as_real(param) if param.is_complex() else param
        (numbers**2).sum().backward()
        perturbation.ascend(1.0)
        assert perturbation.norm.item() == pytest.approx(0.5)
        with perturbation.applied():
            moved = param.detach().clone()
        assert torch.equal(param.detach(), start if param.is_complex() else torch.view_as_real(start))
        if param is complex_one:
            expected = torch.view_as_real(moved)
    torch.testing.assert_close(moved, expected)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11, for the first sparse tensor
@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_empty_and_scalar_parameters_and_sparse_gradients_do_no_harm(norm):
    params = [nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(4, 2))]
    params[0].grad, params[1].grad = torch.zeros(0, 3), torch.tensor(1.0)
    params[2].grad = torch.sparse_coo_tensor([[1]], [[3.0, 4.0]], (4, 2), check_invariants=True)
    perturbation = Perturbation(params, 0.5, norm)
    perturbation.ascend(1.0)
    deltas = delta_of(perturbation)
    assert torch.linalg.vector_norm(torch.cat([delta.flatten() for delta in deltas])) > 0.4
    assert params[1].item() == 2.0
    assert all(delta.isfinite().all() for delta in deltas)
    perturbation.randomize(torch.Generator().manual_seed(0))
    assert perturbation.norm.isfinite()


@pytest.mark.parametrize("overlap", [slice(0, 6), slice(3, 6)])
def test_theta_comes_back_where_two_parameters_share_memory(overlap):
    buffer = torch.randn(6)
    params = [nn.Parameter(buffer[:6]), nn.Parameter(buffer[overlap])]
    before = buffer.clone()
    perturbation = Perturbation(params, 0.5, "tensor")
    for param in params:
        param.grad = torch.randn_like(param)
    with perturbation.applied():
        perturbation.ascend(1.0)
        moved = buffer.clone()
    assert torch.equal(buffer, before)
    for keep in (True, True, False):
        with perturbation.applied(keep):
            torch.testing.assert_close(buffer, moved, rtol=torch.finfo().eps, atol=0)
        assert torch.equal(buffer, before)


def test_gradients_of_another_dtype_are_taken_in_that_of_their_parameter():
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    for param in params:
        param.grad = torch.ones_like(param)
    perturbation = Perturbation(params, 0.5, "global")
    perturbation.ascend(1.0)
    assert perturbation.norm.item() == pytest.approx(0.5, rel=1e-3)
