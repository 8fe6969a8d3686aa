"""Architectures: parameter counts, order of the layers, first weights, sizes, configurations and their refusals."""

import pytest
import torch
from small_networks import SMALL_NAMES, images, small_config, small_network
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageClassification

from hf_amp.models import (
    ARCHITECTURES,
    MODEL_NAMES,
    PreActResNetConfig,
    PreActResNetForImageClassification,
    PyramidNetConfig,
    VGGConfig,
    WideResNetConfig,
    build_config,
)
from hf_amp.models.modeling_preactresnet import PreActBasicBlock, PreActBottleneckBlock
from hf_amp.models.modeling_pyramidnet import PyramidBasicBlock, PyramidBottleneckBlock
from hf_amp.models.modeling_vgg import VGGConvolution
from hf_amp.models.modeling_wideresnet import WideBlock

# Parameters by hand: a k×k convolution from a to b channels has k²ab weights, a batch norm 2 per channel.


def preact_basic(depths):
    """Stem 27·64; a block from a to b: 2a + 9ab + 2b + 9b², and ab for a shortcut with convolution."""
    total, a = 27 * 64, 64
    for b, depth in zip((64, 128, 256, 512), depths, strict=True):
        total += 2 * a + 9 * a * b + 2 * b + 9 * b * b + (a * b if a != b else 0)
        total += (depth - 1) * (4 * b + 18 * b * b)
        a = b
    return total + 2 * 512 + 512 * 10 + 10


def preact_bottleneck(depths):
    """A block from a to 4w: 2a + aw + 2w + 9w² + 2w + 4w², and 4aw for a shortcut with convolution."""
    total, a = 27 * 64, 64
    for w, depth in zip((64, 128, 256, 512), depths, strict=True):
        total += 2 * a + 5 * a * w + 4 * w + 13 * w * w
        total += (depth - 1) * (8 * w + 4 * w * w + 4 * w + 13 * w * w)
        a = 4 * w
    return total + 2 * 2048 + 2048 * 10 + 10


def vgg(depths):
    """A convolution from a to b has 9ab weights, b biases and 2b of batch norm; classifier 512-4096-4096-10."""
    total, a = 0, 3
    for b, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
        total += 9 * a * b + 3 * b + (depth - 1) * (9 * b * b + 3 * b)
        a = b
    return total + (512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 10


def wide(depth, k):
    """Stem 27·16; blocks as in `preact_basic`."""
    n, total, a = (depth - 4) // 6, 27 * 16, 16
    for b in (16 * k, 32 * k, 64 * k):
        total += 2 * a + 10 * a * b + 2 * b + 9 * b * b + (n - 1) * (4 * b + 18 * b * b)
        a = b
    return total + 2 * a + 10 * a + 10


def pyramid(depth, alpha, bottleneck):
    """Stem 27·16 + 32; a basic block a → b: 2a + 9ab + 2b + 9b² + 2b; a bottleneck a → 4w: 2a + aw + 13w² + 12w."""
    blocks, total, a = (depth - 2) // (9 if bottleneck else 6) * 3, 27 * 16 + 2 * 16, 16
    for k in range(1, blocks + 1):
        w = round(16 + alpha * k / blocks)
        total += 2 * a + a * w + 13 * w * w + 12 * w if bottleneck else 2 * a + 9 * a * w + 9 * w * w + 4 * w
        a = 4 * w if bottleneck else w
    return total + 2 * a + 10 * a + 10


PARAMETERS = {
    "preactresnet18": (11_172_170, preact_basic((2, 2, 2, 2))),
    "preactresnet34": (21_280_330, preact_basic((3, 4, 6, 3))),
    "preactresnet50": (23_513_162, preact_bottleneck((3, 4, 6, 3))),
    "vgg11": (28_149_514, vgg((1, 1, 2, 2, 2))),
    "vgg13": (28_334_410, vgg((2, 2, 2, 2, 2))),
    "vgg16": (33_646_666, vgg((2, 2, 3, 3, 3))),
    "vgg19": (38_958_922, vgg((2, 2, 4, 4, 4))),
    "wideresnet28_10": (36_479_194, wide(28, 10)),
    "wideresnet28_2": (1_467_610, wide(28, 2)),
    "wideresnet16_8": (10_961_370, wide(16, 8)),
    "pyramidnet110_48": (1_772_706, pyramid(110, 48, False)),
    "pyramidnet110_270": (28_485_477, pyramid(110, 270, False)),
    "pyramidnet164_270": (27_216_021, pyramid(164, 270, True)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_network_has_the_parameters_worked_out_by_hand(name):
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(build_config(name))
    assert model.config.num_labels == 10
    assert model.num_parameters() == PARAMETERS[name][0] == PARAMETERS[name][1]


def test_every_name_has_a_count_and_the_defaults_are_published_networks():
    assert set(PARAMETERS) == set(MODEL_NAMES) == set(ARCHITECTURES)
    for name, config in (
        ("preactresnet18", PreActResNetConfig()),
        ("vgg16", VGGConfig()),
        ("wideresnet28_10", WideResNetConfig()),
        ("pyramidnet164_270", PyramidNetConfig()),
    ):
        assert build_config(name, num_labels=2).to_dict() == config.to_dict()


def order_of_layers(block, hidden):
    """Return the names of the direct parts of a block in the order in which they run."""
    order = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: order.append(name)) for name, part in block.named_children()
    ]
    block(hidden)
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.parametrize(
    ("block", "order"),
    [
        (PreActBasicBlock(4, 6, 2, 0.0), "norm1 conv1 norm2 dropout conv2 shortcut"),
        (PreActBasicBlock(4, 4, 1, 0.0), "norm1 conv1 norm2 dropout conv2"),
        (PreActBottleneckBlock(4, 3, 6, 2, 0.0), "norm1 conv1 norm2 conv2 norm3 dropout conv3 shortcut"),
        (WideBlock(4, 6, 2, 0.0), "norm1 conv1 dropout norm2 conv2 shortcut"),
        (PyramidBasicBlock(4, 6, 2, 0.0), "norm1 conv1 norm2 dropout conv2 norm3 shortcut"),
        (PyramidBottleneckBlock(4, 3, 6, 2, 0.0), "norm1 conv1 norm2 conv2 norm3 dropout conv3 norm4 shortcut"),
        (VGGConvolution(4, 6, 0.0), "conv norm dropout"),
    ],
)
def test_layers_run_in_the_published_order(block, order):
    assert order_of_layers(block, torch.randn(2, 4, 8, 8)) == order.split()


@pytest.mark.parametrize("block_class", [PreActBasicBlock, WideBlock])
def test_shortcut_is_the_input_or_a_convolution_of_its_activation(block_class):
    hidden = torch.randn(3, 4, 6, 6)
    same, changing = block_class(4, 4, 1, 0.0), block_class(4, 6, 2, 0.0)
    nn.init.zeros_(same.conv2.weight)
    nn.init.zeros_(changing.conv2.weight)
    assert torch.equal(same(hidden), hidden)
    activated = functional.relu(functional.batch_norm(hidden, None, None, training=True))
    torch.testing.assert_close(changing(hidden), functional.conv2d(activated, changing.shortcut.weight, stride=2))


def test_bottleneck_halves_in_its_3x3_convolution():
    for block in (PreActBottleneckBlock(4, 3, 6, 2, 0.0), PyramidBottleneckBlock(4, 3, 6, 2, 0.0)):
        assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
        assert [block.conv1.kernel_size, block.conv2.kernel_size, block.conv3.kernel_size] == [(1, 1), (3, 3), (1, 1)]


def test_pyramid_shortcut_averages_pixels_and_pads_channels_with_zeros():
    hidden = torch.randn(2, 4, 5, 5)
    block = PyramidBasicBlock(4, 6, 2, 0.0)
    nn.init.zeros_(block.norm3.weight)
    out = block(hidden)
    assert out.shape == (2, 6, 3, 3)
    torch.testing.assert_close(out[:, :4, 0, 0], hidden[:, :, :2, :2].mean((2, 3)))
    torch.testing.assert_close(out[:, :4, 2, 2], hidden[:, :, 4, 4])  # the window is cut at the border
    assert not out[:, 4:].any()


def test_pyramid_widths_grow_additively():
    config = build_config("pyramidnet110_48")
    assert config.blocks_per_stage == 18
    assert [config.block_width(k) for k in (1, 2, 3, 18, 54)] == [17, 18, 19, 32, 64]
    assert [build_config("pyramidnet164_270").block_width(k) for k in (1, 2, 54)] == [21, 26, 286]


def test_pyramid_has_no_relu_before_the_first_convolution_of_a_block():
    block = PyramidBasicBlock(4, 4, 1, 0.0)
    seen = []
    block.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].min().item()))
    block(torch.randn(2, 4, 8, 8))
    assert seen[0] < 0


@pytest.mark.parametrize("name", ["preactresnet18", "vgg11"])
def test_first_weights_are_he_normal_by_fan_out(name):
    torch.manual_seed(0)
    narrow = {"classifier_sizes": [128]} if name == "vgg11" else {}
    model = AutoModelForImageClassification.from_config(build_config(name, **narrow))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.06)
        assert conv.bias is None or not conv.bias.any()
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        bound = linear.in_features**-0.5
        assert 0.97 * bound < linear.weight.abs().max().item() <= bound
        assert not linear.bias.any()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_dropout_is_off_by_default_and_random_in_training_only(name):
    torch.manual_seed(0)
    pixel_values, _ = images()
    model = small_network(name)
    assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    model = small_network(name, dropout=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.3] * len(rates)
    assert len(rates) == 1 + (3 if name == "vgg" else sum(len(stage) for stage in model.stages))
    assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    model.eval()
    assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_sizes_channels_and_classes(name):
    for channels, size in ((1, 8), (3, 32), (3, 64), (2, 7)):
        model = small_network(name, num_channels=channels, image_size=size, num_labels=4)
        assert model(images(2, channels, size)[0]).logits.shape == (2, 4)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_full_depth_vgg_takes_small_and_large_images(size):
    config = build_config("vgg16", image_size=size, hidden_sizes=[4] * 5, classifier_sizes=[8, 8])
    output = AutoModelForImageClassification.from_config(config).eval()(
        images(2, 3, size)[0], output_hidden_states=True
    )
    expected = {8: [4, 2, 1, 1, 1], 28: [14, 7, 4, 2, 1], 32: [16, 8, 4, 2, 1], 64: [32, 16, 8, 4, 2]}
    assert [state.shape[-1] for state in output.hidden_states] == expected[size]


def test_vgg_without_hidden_layers_is_linear_after_the_stages():
    model = small_network("vgg", classifier_sizes=[]).eval()
    output = model(images()[0], output_hidden_states=True)
    pooled = output.hidden_states[-1].mean((2, 3))
    torch.testing.assert_close(model.classifier.linear(pooled), output.logits)


def test_class_names_are_kept():
    names = {0: "cat", 1: "dog", 2: "frog"}
    config = small_config("vgg", num_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    assert config.num_labels == 3
    assert AutoModelForImageClassification.from_config(config)(images()[0]).logits.shape == (6, 3)
    built = build_config("vgg11", id2label=names)
    assert (built.num_labels, built.id2label) == (3, names)


def test_a_field_changes_the_named_network_and_nothing_else():
    config = build_config("preactresnet34", hidden_sizes=[8, 16], depths=[1, 2], dropout=0.1, num_channels=1)
    assert (config.hidden_sizes, config.depths, config.dropout, config.num_channels) == ([8, 16], [1, 2], 0.1, 1)
    assert config.stem_size == 64
    assert build_config("preactresnet34").hidden_sizes == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: build_config("resnet18"), ValueError, r"`name` must be one of preactresnet18, .*, got 'resnet18'"),
        (
            lambda: build_config("vgg16", width=3),
            ValueError,
            r"vgg16 has no config field 'width'; its fields are hidden_",
        ),
        (lambda: build_config("wideresnet28_2", kwargs=3), ValueError, "no config field 'kwargs'"),
        (
            lambda: WideResNetConfig(depth=30),
            ValueError,
            r"`depth` must be 6n \+ 4 with n >= 1, got 30; choose one of 10",
        ),
        (lambda: WideResNetConfig(depth=4), ValueError, r"`depth` must be 6n \+ 4 with n >= 1, got 4"),
        (
            lambda: WideResNetConfig(hidden_sizes=[16]),
            ValueError,
            r"`hidden_sizes` must have three entries, got \[16\]",
        ),
        (lambda: WideResNetConfig(widen_factor=2.5), TypeError, "`widen_factor` must be an integer, got 2.5"),
        (
            lambda: PyramidNetConfig(depth=21),
            ValueError,
            r"`depth` must be 9n \+ 2 .* bottleneck blocks, got 21; choose one of 11, 20",
        ),
        (lambda: PyramidNetConfig(depth=2), ValueError, r"`depth` must be 9n \+ 2 with n >= 1"),
        (lambda: PyramidNetConfig(depth=164, block_type="basic"), None, None),
        (lambda: PyramidNetConfig(depth=165, block_type="basic"), ValueError, r"`depth` must be 6n \+ 2"),
        (lambda: PyramidNetConfig(alpha=-1), ValueError, "`alpha` must be >= 0, got -1"),
        (lambda: PyramidNetConfig(alpha=float("nan")), ValueError, "`alpha` must be finite, got nan; write a number"),
        (lambda: PyramidNetConfig(alpha=float("inf")), ValueError, "`alpha` must be finite, got inf"),
        (lambda: PyramidNetConfig(alpha="48"), TypeError, "`alpha` must be a number, got '48'"),
        (
            lambda: PyramidNetConfig(block_type="wide"),
            ValueError,
            "`block_type` must be one of basic, bottleneck, got 'wide'",
        ),
        (lambda: PreActResNetConfig(block_type="wide"), ValueError, "`block_type` must be one of basic, bottleneck"),
        (
            lambda: PreActResNetConfig(depths=[2, 2]),
            ValueError,
            r"`hidden_sizes` and `depths` must have one entry for each",
        ),
        (lambda: PreActResNetConfig(depths=[], hidden_sizes=[]), ValueError, "give both the same length, at least 1"),
        (lambda: PreActResNetConfig(depths=[2, 2, 0, 2]), ValueError, r"`depths\[2\]` must be >= 1, got 0"),
        (lambda: PreActResNetConfig(hidden_sizes=64), TypeError, "`hidden_sizes` must be a list of integers, got 64"),
        (lambda: PreActResNetConfig(expansion=0), ValueError, "`expansion` must be >= 1, got 0"),
        (lambda: VGGConfig(depths=[1]), ValueError, "`hidden_sizes` and `depths` must have one entry"),
        (lambda: VGGConfig(classifier_sizes=[4096, 0]), ValueError, r"`classifier_sizes\[1\]` must be >= 1, got 0"),
        (lambda: VGGConfig(dropout=1.0), ValueError, r"`dropout` must be in \[0, 1\), got 1.0; use 0"),
        (lambda: VGGConfig(dropout=float("nan")), ValueError, "`dropout` must be finite, got nan"),
        (lambda: VGGConfig(dropout=-0.1), ValueError, r"`dropout` must be in \[0, 1\), got -0.1"),
        (lambda: VGGConfig(dropout="0.1"), TypeError, "`dropout` must be a number, got '0.1'"),
        (lambda: VGGConfig(num_channels=0), ValueError, "`num_channels` must be >= 1, got 0"),
        (lambda: VGGConfig(num_channels=True), TypeError, "`num_channels` must be an integer, got True"),
        (lambda: VGGConfig(image_size=(32, 32)), TypeError, r"`image_size` must be an integer, got \(32, 32\)"),
        (
            lambda: VGGConfig(problem_type="regression"),
            ValueError,
            "`problem_type` must be 'single_label_classification'",
        ),
    ],
)
def test_configurations_that_make_no_network_are_refused(call, error, text):
    if error is None:
        call()
    else:
        with pytest.raises(error, match=text):
            call()


def test_a_field_changed_later_is_refused_when_the_network_is_made():
    config = PreActResNetConfig()
    config.depths = [2]
    with pytest.raises(ValueError, match="must have one entry for each stage"):
        PreActResNetForImageClassification(config)
