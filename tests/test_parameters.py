"""Parameters of unusual kinds: trained as `Trainer` trains them, or refused by name."""

import pytest
import torch
from tiny import (
    FEATURES,
    Points,
    TinyConfig,
    TinyModel,
    amp_trainer,
    largest_difference,
    logs_of,
    parameters_of,
    tiny_model,
)
from torch import nn
from transformers import Trainer

from hf_amp import AMPTrainerMixin
from hf_amp.parameters import all_parameters, twin_parameters


class Tied(TinyModel):
    """Uses one matrix twice: as one parameter, or as two over the same memory."""

    by_storage = True

    def share(self):
        self.again = nn.Linear(self.config.width, self.config.width, bias=False, dtype=torch.float64)
        if self.by_storage:
            self.again.weight = nn.Parameter(self.middle.weight.data)
        else:
            self.again.weight = self.middle.weight
        return self

    def forward(self, x, labels=None):
        hidden = self.middle(self.first(x).tanh()).tanh()
        logits = self.classifier(self.again(hidden).tanh())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("settings", [{}, {"amp_inner_iter": 2}, {"amp_norm": "global"}])
def test_a_tie_by_storage_trains_as_a_tie_by_object(tmp_path, settings):
    weights = []
    for by_storage in (True, False):
        model = tiny_model(Tied)
        model.by_storage = by_storage
        model.share()
        assert len(twin_parameters(all_parameters(model))) == by_storage
        amp_trainer(tmp_path, model, amp_epsilon=0.1, **settings).train()
        assert model.again.weight.data_ptr() == model.middle.weight.data_ptr()
        weights.append({name: value for name, value in parameters_of(model).items() if "again" not in name})
    assert largest_difference(*weights) <= 1e-12


def test_views_of_one_buffer_train_as_tensors_of_their_own(tmp_path):
    weights = []
    for is_view in (True, False):
        model = tiny_model()
        if is_view:
            layers = (model.first, model.middle)
            buffer = torch.cat([layer.weight.detach().flatten() for layer in layers])
            parts = buffer.split([layer.weight.numel() for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.weight = nn.Parameter(part.view_as(layer.weight))
        amp_trainer(tmp_path, model, amp_epsilon=0.1, save_strategy="no").train()
        weights.append(parameters_of(model))
    assert largest_difference(*weights) == 0.0


def test_interleaved_views_share_no_element():
    whole = torch.zeros(4, 6)
    model = nn.Module()
    model.left, model.right = nn.Parameter(whole[:, :3]), nn.Parameter(whole[:, 3:])
    assert twin_parameters(all_parameters(model)) == []


def test_parameters_that_share_a_part_of_their_memory_are_refused_by_name(tmp_path):
    model = tiny_model()
    buffer = torch.randn(20, dtype=torch.float64)
    model.first_part, model.second_part = nn.Parameter(buffer[:12]), nn.Parameter(buffer[8:])
    with pytest.raises(NotImplementedError, match=r"'second_part', which shares a part of its memory.*'first_part'"):
        amp_trainer(tmp_path, model)
    trainer = amp_trainer(tmp_path, model, amp_epsilon=0.0)  # where nothing is perturbed, nothing is refused
    trainer.train()
    assert trainer.state.global_step == 6


@pytest.mark.parametrize(
    ("of", "remedy"),
    [
        (torch.Tensor.conj, "resolve_conj"),
        (lambda numbers: numbers.conj().imag, "resolve_neg"),
        (lambda numbers: numbers.real.to_sparse(), "to_dense"),
    ],
)
def test_parameters_whose_values_are_not_those_of_their_memory_are_refused_by_name(tmp_path, of, remedy):
    model = tiny_model()
    model.unusual = nn.Parameter(of(torch.eye(3, dtype=torch.complex128)))
    with pytest.raises(NotImplementedError, match=rf"parameter 'unusual', .* make it an .* with `\.{remedy}\(\)`"):
        amp_trainer(tmp_path, model)
    model.unusual.requires_grad_(False)  # what is not perturbed may be of any kind
    assert amp_trainer(tmp_path, model).amp_settings.active_at(0, 1)


class Complex(TinyModel):
    def __init__(self, config):
        super().__init__(config)
        self.turn = nn.Parameter(torch.ones(FEATURES, dtype=torch.complex128))

    def forward(self, x, labels=None):
        return super().forward((x * self.turn).abs(), labels)


def test_complex_parameters_train_as_pairs_of_real_ones(tmp_path):
    class Pairs(TinyModel):
        def __init__(self, config):
            super().__init__(config)
            self.turn = nn.Parameter(torch.view_as_real(torch.ones(FEATURES, dtype=torch.complex128)).clone())

        def forward(self, x, labels=None):
            return super().forward((x * torch.view_as_complex(self.turn)).abs(), labels)

    torch.manual_seed(0)
    pairs = tiny_model(Pairs)
    torch.manual_seed(0)
    model = Complex(TinyConfig())
    for name, param in model.named_parameters():
        if name != "turn":
            param.data = param.data.double()
    for one in (pairs, model):
        amp_trainer(tmp_path, one, amp_epsilon=0.1, amp_inner_iter=2).train()
    torch.testing.assert_close(torch.view_as_real(model.turn.detach()), pairs.turn.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.first.weight, pairs.first.weight, rtol=1e-10, atol=1e-12)


def test_empty_and_scalar_parameters_train(tmp_path):
    class Unusual(TinyModel):
        def __init__(self, config):
            super().__init__(config)
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.table = nn.Embedding(50, FEATURES)

        def forward(self, x, labels=None):
            x = x * self.scale + self.table(labels) + self.empty.sum()
            return super().forward(x, labels)

    model = tiny_model(Unusual)
    before = parameters_of(model)
    trainer = amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_norm="global", amp_inner_lr=1e6)
    trainer.train()
    assert logs_of(trainer)[0]["perturbation_norm"] == pytest.approx(0.1)
    after = parameters_of(model)
    assert torch.equal(before["table.weight"][10:], after["table.weight"][10:])  # rows that nobody used
    assert not torch.equal(before["scale"], after["scale"])


def test_parameters_of_several_dtypes_train(tmp_path):
    class Mixed(TinyModel):
        def forward(self, x, labels=None):
            hidden = self.first(x.float()).tanh().double()
            logits = self.classifier(self.middle(hidden).tanh())
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = tiny_model(Mixed)
    model.first.float()
    trainer = amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_norm="global", amp_inner_lr=1e6)
    trainer.train()
    assert logs_of(trainer)[-1]["perturbation_norm"] == pytest.approx(0.1, rel=1e-5)


def test_gradient_hooks_that_step_are_refused_by_name(tmp_path):
    model = tiny_model()
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda one: one.data.sub_(one.grad))
    with pytest.raises(NotImplementedError, match=r"a hook on the gradient of 'first\.weight'.*step in the optimizer"):
        amp_trainer(tmp_path, model)


def test_hooks_that_come_with_the_optimizer_are_found_before_the_first_pass(tmp_path):
    class Layerwise(Trainer):
        def create_optimizer(self, model=None):
            for param in self.model.parameters():
                param.register_post_accumulate_grad_hook(lambda one: None)
            return super().create_optimizer(model) if model is not None else super().create_optimizer()

    model = tiny_model()
    trainer = amp_trainer(tmp_path, model, type("Mixed", (AMPTrainerMixin, Layerwise), {}))
    with pytest.raises(NotImplementedError, match="a hook on the gradient of"):
        trainer.train()
    assert model.passes == 0


@pytest.mark.parametrize("attribute", ["grad_sample", "main_grad"])
def test_gradients_that_a_library_keeps_elsewhere_are_refused(tmp_path, attribute):
    # Opacus sets `grad_sample`, and sums the gradients of all passes in it; Apex and Megatron `main_grad`.
    model = tiny_model()
    setattr(model.first.weight, attribute, None)
    with pytest.raises(NotImplementedError, match=rf"`{attribute}` of 'first\.weight'.*all passes of a step"):
        amp_trainer(tmp_path, model)
    amp_trainer(tmp_path, model, amp_epsilon=0).train()
    model.first.weight.requires_grad = False
    amp_trainer(tmp_path, model).train()


def test_hooks_on_gradients_before_they_are_accumulated_are_left_alone(tmp_path):
    masked, plain = tiny_model(), tiny_model()
    masked.first.weight.register_hook(lambda grad: grad * 1.0)
    for model in (masked, plain):
        amp_trainer(tmp_path, model, data=Points(), amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(masked), parameters_of(plain)) == 0.0
