"""The losses of the compared schemes equal their definitions."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_amp.vision.train.methods import METHODS, adversarial_images, flooded, smoothed_cross_entropy


class TinyNetwork(nn.Module):
    """Batch norm, dropout and a linear layer: every state that an extra pass could disturb."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(3 * 4 * 4, 5)

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(logits=self.classifier(self.dropout(self.norm(pixel_values)).flatten(1)))


def images_and_labels():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 4, 4, generator=generator), torch.randint(5, (6,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.7])
def test_smoothing_spreads_over_the_other_classes(smoothing):
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.full_like(logits, smoothing / 4)
    target[torch.arange(6), labels] = 1 - smoothing
    expected = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, smoothing), expected, rtol=1e-12, atol=0)


def test_smoothing_differs_from_torchs_which_counts_the_label_among_the_classes():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torchs = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    assert not torch.isclose(smoothed_cross_entropy(logits, labels, 0.2), torchs)
    same = nn.functional.cross_entropy(logits, labels, label_smoothing=0.25)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.2), same)  # 0.25 · 4/5 = 0.2


@pytest.mark.parametrize(("loss", "value", "slope"), [(1.5, 1.5, 1.0), (0.005, 0.035, -1.0)])
def test_flooding_climbs_below_its_level(loss, value, slope):
    loss = torch.tensor(loss, requires_grad=True)
    out = flooded(loss, 0.02)
    out.backward()
    assert out.item() == pytest.approx(value)
    assert loss.grad.item() == slope


def test_adversarial_images_move_by_the_radius_along_the_sign_of_the_gradient():
    model, (images, labels) = TinyNetwork().train(), images_and_labels()
    radius = torch.tensor([0.1, 0.2, 0.3])
    moved = adversarial_images(model, images, labels, radius)
    by_hand = images.clone().requires_grad_()
    model.eval()
    nn.functional.cross_entropy(model(by_hand).logits, labels).backward()
    assert torch.equal(moved, images + radius.view(1, 3, 1, 1) * by_hand.grad.sign())
    assert not moved.requires_grad


def test_adversarial_images_leave_model_and_images_as_they_were():
    model, (images, labels) = TinyNetwork().train(), images_and_labels()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = images.clone()
    adversarial_images(model, images, labels, torch.ones(3))
    assert model.training
    assert all(param.grad is None for param in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_mode_is_put_back_after_an_error():
    model, (images, _) = TinyNetwork().train(), images_and_labels()
    with pytest.raises(IndexError):
        adversarial_images(model, images, torch.full((6,), 99), torch.ones(3))
    assert model.training


def test_every_method_that_the_issue_names_is_there():
    expected = ["erm", "amp", "sam", "rmp", "dropout", "label_smoothing", "flooding", "mixup", "adversarial"]
    assert list(METHODS) == expected
