"""Losses around the weights: against quadratics that can be solved by hand, and without a trace on the model."""

import copy
import math

import numpy as np
import pytest
import torch
from small_networks import images, small_network
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_amp.vision.report.flatness.probe import (
    evaluate,
    evaluation_mode,
    filter_normalised_direction,
    losses_at,
    measure_sharpness,
    movable_weights,
    reliability,
    worst_losses,
)
from hf_amp.vision.report.metrics import calibration_error, compute_metrics, reliability_bins


class Bowl(nn.Module):
    """A network whose loss is a quadratic of its weights: base + ½ Σ h (w − centre)², for images of class 0."""

    def __init__(self, weight, bias, curvature=1.0, centre=0.0, base=0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
        self.curvature = torch.as_tensor(curvature, dtype=torch.float64)
        self.centre, self.base = centre, base

    def forward(self, pixel_values):
        weights = torch.cat([self.weight.flatten(), self.bias])
        loss = self.base + 0.5 * (self.curvature * (weights - self.centre) ** 2).sum()
        margin = loss.expm1().log()  # log(1 + exp(margin)) = loss
        logits = torch.stack([torch.zeros_like(margin), margin])
        return ImageClassifierOutput(logits=logits.expand(len(pixel_values), 2))


WEIGHT, BIAS = [[0.3, 0.4], [0.0, -0.2]], [0.1, 0.2]
ZEROS = ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
FLAT = {"train": [{"pixel_values": torch.zeros(3, 1, 1, 1), "labels": torch.zeros(3, dtype=torch.long)}]}


def splits(train=(4, 4), test=(6,)):
    """Random images in batches of these sizes."""
    made = {}
    for seed, (name, sizes) in enumerate((("train", train), ("test", test))):
        pixel_values, labels = images(sum(sizes), seed=seed + 1)
        parts = zip(pixel_values.split(list(sizes)), labels.split(list(sizes)), strict=True)
        made[name] = [{"pixel_values": one, "labels": other} for one, other in parts]
    return made


def everything_of(model):
    """All that a measurement must leave alone: weights, buffers, gradients and modes."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
    )


def assert_untouched(model, before):
    state, grads, modes = everything_of(model)
    assert modes == before[2]
    assert all(state[name].numpy().tobytes() == before[0][name].numpy().tobytes() for name in state)
    for name, grad in grads.items():
        assert (grad is None) == (before[1][name] is None)
        assert grad is None or torch.equal(grad, before[1][name])


def network_in_use(seed=0):
    """A network with batch norm and dropout in the middle of its training: gradients, and modules in both modes."""
    model = small_network("preactresnet-basic", seed, dropout=0.5)
    pixel_values, labels = images()
    model(pixel_values, labels=labels).loss.backward()
    model.stem.eval()
    next(model.classifier.parameters()).grad = None
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = -0.0  # the one number that an addition of 0 changes
    return model


def measure(model, data):
    """Every measurement there is."""
    directions = [filter_normalised_direction(model, torch.Generator().manual_seed(i)) for i in range(2)]
    along = losses_at(model, directions, [(0.0, 0.0), (0.5, -1.0), (1.0, 1.0)], data)
    worst = [worst_losses(model, data, 0.1, norm, 2) for norm in ("tensor", "global")]
    return along, worst, reliability(model, data)


def test_loss_and_error_along_a_ray_are_those_of_the_quadratic():
    model = Bowl(WEIGHT, BIAS, curvature=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], centre=0.3)
    direction = {"weight": torch.tensor([[1.0, -1.0], [0.5, 0.0]]).double(), "bias": torch.tensor([0.0, 2.0]).double()}
    sizes = [-1.0, 0.0, 0.25, 2.0]
    found = losses_at(model, [direction], [(size,) for size in sizes], FLAT)
    theta, step = np.array([0.3, 0.4, 0.0, -0.2, 0.1, 0.2]), np.array([1, -1, 0.5, 0, 0, 2])
    expected = [0.1 + 0.05 * (np.arange(1, 7) * (theta + size * step - 0.3) ** 2).sum() for size in sizes]
    assert [point["train"]["loss"] for point in found] == pytest.approx(expected, rel=1e-12)
    assert [point["train"]["error_rate"] for point in found] == [float(loss > math.log(2)) for loss in expected]
    assert {point["train"]["error_rate"] for point in found} == {0.0, 1.0}


def test_losses_on_a_plane_are_those_of_the_quadratic():
    model = Bowl(*ZEROS, curvature=2.0)
    first = {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double(), "bias": torch.zeros(2).double()}
    second = {"weight": torch.zeros(2, 2).double(), "bias": torch.tensor([3.0, 0.0]).double()}
    places = [(x, y) for x in (-0.5, 0.0, 1.0) for y in (-0.1, 0.2)]
    found = [point["train"]["loss"] for point in losses_at(model, [first, second], places, FLAT)]
    assert found == pytest.approx([0.1 + x**2 + (3 * y) ** 2 for x, y in places], rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.7])
def test_worst_loss_in_a_ball_is_that_of_the_round_quadratic(epsilon):
    norms = [np.linalg.norm(np.array(part) - 0.5) for part in (WEIGHT, BIAS)]
    model = Bowl(WEIGHT, BIAS, curvature=3.0, centre=0.5)
    per_tensor = worst_losses(model, FLAT, epsilon, "tensor", 1)["train"]["loss"]
    assert per_tensor == pytest.approx(0.1 + 1.5 * sum((norm + epsilon) ** 2 for norm in norms), rel=1e-5)
    one_ball = worst_losses(model, FLAT, epsilon, "global", 1)["train"]["loss"]
    assert one_ball == pytest.approx(0.1 + 1.5 * (np.hypot(*norms) + epsilon) ** 2, rel=1e-5)


def test_worst_loss_follows_the_largest_curvature_even_from_the_minimum_itself():
    model = Bowl(*ZEROS, curvature=[1.0, 1.0, 8.0, 1.0, 2.0, 1.0])
    assert not torch.autograd.grad(model(torch.zeros(1, 1)).logits[0, 1], model.weight)[0].any()
    found = worst_losses(model, FLAT, 0.5, "global", 12)["train"]["loss"]
    assert found == pytest.approx(0.1 + 0.5 * 8 * 0.5**2, rel=1e-4)


def test_more_ascents_find_a_worse_place_where_the_first_gradient_misleads():
    model = Bowl([[1.0, 0.05], [0.0, 0.0]], [0.0, 0.0], curvature=[1.0, 10.0, 1.0, 1.0, 1.0, 1.0])
    one, many = (worst_losses(model, FLAT, 1.0, "global", ascents)["train"]["loss"] for ascents in (1, 8))
    assert many > one + 1


def test_the_scale_of_the_loss_does_not_matter_for_the_worst_direction():
    tiny = Bowl(WEIGHT, BIAS, curvature=1e-9, centre=0.5, base=1e-9)
    rise = (worst_losses(tiny, FLAT, 0.5, "global", 1)["train"]["loss"] - 1e-9) * 1e9
    distance = np.linalg.norm(np.array([*np.ravel(WEIGHT), *BIAS]) - 0.5)
    assert rise == pytest.approx(0.5 * (distance + 0.5) ** 2, rel=1e-4)


def test_a_sharp_minimum_shows_as_sharper_than_a_flat_one():
    sharp, flat = (Bowl(WEIGHT, BIAS, curvature, centre=0.0, base=0.1) for curvature in (50.0, 1.0))
    with torch.no_grad():
        for model in (sharp, flat):  # both at the bottom, and with weights of the same size
            model.centre = torch.cat([model.weight.flatten(), model.bias]).clone()
    sizes = [(0.0,), (0.2,), (0.5,), (1.0,)]
    for seed in range(3):
        direction = filter_normalised_direction(flat, torch.Generator().manual_seed(seed))
        curves = [[p["train"]["loss"] for p in losses_at(model, [direction], sizes, FLAT)] for model in (sharp, flat)]
        assert curves[0][0] == curves[1][0]
        assert all(high > low for high, low in zip(curves[0][1:], curves[1][1:], strict=True))
    for norm in ("tensor", "global"):
        high, low = (worst_losses(model, FLAT, 0.3, norm)["train"]["loss"] - 0.1 for model in (sharp, flat))
        assert high == pytest.approx(50 * low, rel=1e-4)


def test_every_filter_of_a_direction_is_as_long_as_the_weights_and_vectors_are_left_out():
    model = small_network("preactresnet-basic")
    with torch.no_grad():
        model.classifier.linear.weight[2] = 0.0
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(0))
    assert list(direction) == [name for name, _ in model.named_parameters()]
    kinds = set()
    for name, param in model.named_parameters():
        kinds.add(param.dim())
        if param.dim() == 1:
            assert not direction[name].any()
        else:
            lengths = [one.flatten(1).norm(dim=1) for one in (direction[name], param)]
            torch.testing.assert_close(*lengths)
            assert not torch.allclose(direction[name], param)
    assert kinds == {1, 2, 4}
    assert not direction["classifier.linear.weight"][2].any()


def test_directions_are_repeated_by_their_seed_only():
    model = small_network("vgg")
    first, again, other = (
        filter_normalised_direction(model, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.linear.weight"], other["classifier.linear.weight"])


class Normalised(nn.Module):
    """Convolution, batch norm, linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-30)
        self.linear = nn.Linear(4, 5)

    def forward(self, pixel_values):
        hidden = self.norm(self.conv(pixel_values)).relu().mean((2, 3))
        return ImageClassifierOutput(logits=self.linear(hidden))


def test_networks_that_batch_norm_makes_equal_look_equally_sharp():
    torch.manual_seed(0)
    model = Normalised().double()
    data = splits()
    for batches in data.values():
        for batch in batches:
            batch["pixel_values"] = batch["pixel_values"].double()
    model(data["train"][0]["pixel_values"])
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.conv.weight.mul_(7)
        scaled.norm.running_mean.mul_(7)
        scaled.norm.running_var.mul_(49)
    found = []
    for one in (model, scaled):
        direction = filter_normalised_direction(one, torch.Generator().manual_seed(0))
        found.append([p["test"]["loss"] for p in losses_at(one, [direction], [(0.0,), (0.5,), (1.0,)], data)])
    assert found[0] == pytest.approx(found[1], rel=1e-10)
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-3)


def test_measuring_leaves_no_trace():
    model = network_in_use()
    before = everything_of(model)
    along, worst, _ = measure(model, splits())
    assert along[0]["train"]["loss"] not in (along[1]["train"]["loss"], worst[0]["train"]["loss"])
    assert_untouched(model, before)


@pytest.mark.parametrize("calls", [1, 4, 5, 9, 12, 14, 18])
def test_an_exception_in_the_middle_leaves_no_trace(calls, monkeypatch):
    model = network_in_use()
    before, forward, count = everything_of(model), model.forward, 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(model, splits())
    assert_untouched(model, before)


def test_weights_are_moved_inside_and_from_theta_each_time():
    model = Bowl(WEIGHT, BIAS)
    ones = {name: torch.ones_like(param) for name, param in model.named_parameters()}
    theta = model.weight.detach().clone()
    with movable_weights(model) as move:
        move([1.0], [ones])
        assert torch.equal(model.weight, theta + 1)
        move([0.5, 0.25], [ones, ones])
        assert torch.equal(model.weight, theta + 0.5 + 0.25)
    assert torch.equal(model.weight, theta)


def test_an_autocast_around_moved_weights_sees_where_they_are():
    model = nn.Linear(3, 2, bias=False)
    inputs, theta = torch.ones(1, 3), model.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        at_theta = model(inputs)
        with movable_weights(model) as move:
            move([1.0], [{"weight": torch.ones(2, 3)}])
            assert torch.equal(model(inputs), inputs.bfloat16() @ (theta + 1).bfloat16().T)
        assert torch.equal(model(inputs), at_theta)


def test_parametrized_weights_that_are_cached_around_it_are_where_they_were_moved():
    model = nn.Linear(3, 2, bias=False)
    nn.utils.parametrize.register_parametrization(model, "weight", nn.Tanh())
    ((name, theta),) = ((name, param.detach().clone()) for name, param in model.named_parameters())
    with nn.utils.parametrize.cached(), movable_weights(model) as move:
        assert torch.equal(model.weight, theta.tanh())
        move([1.0], [{name: torch.ones(2, 3)}])
        assert torch.equal(model.weight, (theta + 1).tanh())


def test_batch_norm_and_dropout_are_those_of_evaluation():
    model, data = network_in_use(), splits()
    measured = measure(model, data)
    assert measured == measure(model.eval(), data)
    with torch.no_grad():
        training = evaluate(model.train(), data)
    assert training["train"]["loss"] != pytest.approx(measured[0][0]["train"]["loss"], rel=1e-3)


def test_loss_and_error_are_means_over_images_however_they_are_batched():
    model = small_network("wideresnet").eval()
    pixel_values = torch.cat([batch["pixel_values"] for batch in splits()["train"]])
    labels = torch.cat([batch["labels"] for batch in splits()["train"]])
    with torch.no_grad():
        logits = model(pixel_values).logits
    point = evaluate(model, splits(train=(5, 3)))["train"]
    assert point["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert point["error_rate"] == (logits.argmax(1) != labels).float().mean().item()
    worst = [worst_losses(model, splits(train=sizes), 0.05, "global", 2)["train"] for sizes in ((8,), (5, 3))]
    assert worst[0]["loss"] == pytest.approx(worst[1]["loss"], rel=1e-4)


def test_the_worst_place_is_sought_on_the_first_split_and_the_other_is_evaluated_there():
    model, data = small_network("preactresnet-basic").eval(), splits()
    both = worst_losses(model, data, 0.1, "tensor", 2)
    alone = worst_losses(model, {"train": data["train"]}, 0.1, "tensor", 2)
    assert both["train"] == alone["train"]
    own = worst_losses(model, {"test": data["test"]}, 0.1, "tensor", 2)
    assert evaluate(model, data)["test"]["loss"] != both["test"]["loss"] < own["test"]["loss"]


def test_what_a_smaller_ball_gave_is_a_lower_bound():
    model = Bowl(WEIGHT, BIAS)
    small = worst_losses(model, FLAT, 0.1, "global", 1)
    high = {"train": {"loss": 99.0, "error_rate": 1.0}}
    assert worst_losses(model, FLAT, 0.2, "global", 1, start=high) == high
    assert worst_losses(model, FLAT, 0.2, "global", 1, start=small)["train"]["loss"] > small["train"]["loss"]


def test_a_perturbed_loss_that_is_not_finite_is_no_worst_loss():
    model = Bowl(WEIGHT, BIAS, curvature=1e3)  # expm1 overflows nearby
    found = worst_losses(model, FLAT, 1e3, "global", 2)["train"]["loss"]
    assert found == evaluate(model, FLAT)["train"]["loss"]
    direction = {name: torch.ones_like(param) for name, param in model.named_parameters()}
    assert not math.isfinite(losses_at(model, [direction], [(1e3,)], FLAT)[0]["train"]["loss"])


def test_zero_ascents_are_refused():
    with pytest.raises(ValueError, match="`ascents` must be >= 1, got 0; 5 is a good start"):
        worst_losses(Bowl(WEIGHT, BIAS), FLAT, 0.1, "global", 0)


def test_progress_is_told_after_each_place_and_pass():
    told = []
    model = Bowl(WEIGHT, BIAS)
    direction = filter_normalised_direction(model, torch.Generator())
    losses_at(model, [direction], [(0.0,), (1.0,)], FLAT, lambda: told.append("place"))
    worst_losses(model, FLAT, 0.1, "global", 3, on_pass=lambda: told.append("pass"))
    assert told == ["place"] * 2 + ["pass"] * 4


def logits_of(confidences, right):
    """Logits of two classes with these confidences, and labels that make them right or wrong."""
    confidence = np.array(confidences)
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], 1)
    return logits, np.where(right, 0, 1)


def test_reliability_bins_by_hand():
    logits, labels = logits_of([0.55, 0.58, 0.95, 0.99], [True, False, True, True])
    bins = reliability_bins(logits, labels, num_bins=10)
    assert [one["count"] for one in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert bins[5]["confidence"] == pytest.approx(0.565)
    assert (bins[5]["accuracy"], bins[9]["accuracy"]) == (0.5, 1.0)
    assert (bins[5]["lower"], bins[5]["upper"]) == (0.5, 0.6)
    assert (bins[0]["confidence"], bins[0]["accuracy"]) == (None, None)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_bins_add_up_to_the_calibration_error_of_the_metrics(scale):
    random = np.random.default_rng(0)
    logits, labels = (random.normal(size=(200, 7)) * scale).astype(np.float32), random.integers(0, 7, 200)
    bins = reliability_bins(logits, labels)
    assert sum(one["count"] for one in bins) == 200
    total = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["count"]) / 200
    assert len(bins) == 15
    assert total == pytest.approx(calibration_error(logits, labels), abs=1e-12)


def test_reliability_holds_the_metrics_of_evaluation():
    model, data = small_network("preactresnet-basic"), splits()
    found = reliability(model, data)["test"]
    with evaluation_mode(model), torch.no_grad():
        logits = model(data["test"][0]["pixel_values"]).logits.numpy()
    labels = data["test"][0]["labels"].numpy()
    expected = compute_metrics(type("Prediction", (), {"predictions": logits, "label_ids": labels}))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["bins"] == reliability_bins(logits, labels)


def test_sharpness_of_a_quadratic_is_known():
    class Line(nn.Module):
        """Logits (θ, 0): the loss is log(1 + exp(∓θ))."""

        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([0.3]))

        def forward(self, pixel_values):
            logit = self.theta.expand(len(pixel_values), 1)
            return ImageClassifierOutput(logits=torch.cat([logit, torch.zeros_like(logit)], dim=1))

    model = Line()
    batch = {"pixel_values": torch.zeros(4, 1, 1, 1), "labels": torch.zeros(4, dtype=torch.long)}
    # All labels are class 0, so the loss falls with θ and the worst Δ is -ε.
    expected = nn.functional.softplus(torch.tensor(-0.2)) - nn.functional.softplus(torch.tensor(-0.3))
    assert measure_sharpness(model, [batch, batch], radius=0.1) == pytest.approx(expected.item(), rel=1e-5)
    assert model.theta.item() == pytest.approx(0.3)


def test_sharpness_does_not_depend_on_how_images_are_cut_into_batches_and_changes_nothing():
    model = network_in_use()
    before = everything_of(model)
    inputs = dict(zip(("pixel_values", "labels"), images(), strict=True))
    whole = measure_sharpness(model, [inputs], 0.5)
    parts = [{name: values[i : i + 4] for name, values in inputs.items()} for i in (0, 4)]
    assert measure_sharpness(model, parts, 0.5) == pytest.approx(whole, rel=1e-4)
    assert whole > 0
    assert_untouched(model, before)
