"""Networks in training: loss, accumulation, checkpointing, compiling, memory formats, low precision, hidden states."""

import pytest
import torch
from small_networks import SMALL_NAMES, images, small_network
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_amp.models.modeling_small_image import mean_cross_entropy


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def backward(model, pixel_values, labels):
    """Return loss and gradients of one pass."""
    model.zero_grad()
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(model)


# Loss


def test_loss_is_the_mean_cross_entropy():
    logits, labels = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([2, 0])
    by_hand = (-torch.log_softmax(logits[0], 0)[2] - torch.log(torch.tensor(1 / 3))) / 2
    torch.testing.assert_close(mean_cross_entropy(logits, labels), by_hand)
    torch.testing.assert_close(mean_cross_entropy(logits, labels.to(torch.int32)), by_hand)


def test_probabilities_as_labels_mix_the_losses_of_the_classes():
    model = small_network("preactresnet-basic").eval()
    pixel_values, labels = images()
    one_hot = functional.one_hot(labels, 5).float()
    loss = model(pixel_values, labels=labels).loss
    torch.testing.assert_close(model(pixel_values, labels=one_hot).loss, loss)
    other = model(pixel_values, labels=labels.flip(0)).loss
    mixed = model(pixel_values, labels=0.3 * one_hot + 0.7 * one_hot.flip(0)).loss
    torch.testing.assert_close(mixed, 0.3 * loss + 0.7 * other)
    assert not torch.isclose(loss, other)


def test_loss_is_at_least_in_single_precision():
    logits, labels = torch.randn(4, 5), torch.arange(4)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert mean_cross_entropy(logits.to(dtype), labels).dtype == expected
        assert mean_cross_entropy(logits.to(dtype), torch.full((4, 5), 0.2)).dtype == expected


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (
            torch.zeros(6, 5, dtype=torch.long),
            ValueError,
            r"integer classes must have shape \(6,\), got \(6, 5\)",
        ),
        (torch.zeros(5, dtype=torch.long), ValueError, r"integer classes must have shape \(6,\), got \(5,\)"),
        (torch.zeros(6), ValueError, r"float probabilities must have shape \(6, 5\), got \(6,\)"),
        (torch.zeros(6, 4), ValueError, r"float probabilities must have shape \(6, 5\), got \(6, 4\)"),
        (torch.zeros(6, dtype=torch.bool), TypeError, r"`labels` must be integer classes or float .* got torch.bool"),
    ],
)
def test_wrong_labels_are_refused(labels, error, text):
    with pytest.raises(error, match=text):
        small_network("vgg")(images()[0], labels=labels)


@pytest.mark.parametrize(
    ("pixel_values", "error", "text"),
    [
        (
            torch.zeros(2, 1, 8, 8),
            ValueError,
            r"shape \(batch, 3, height, width\), got \(2, 1, 8, 8\); put",
        ),
        (torch.zeros(2, 8, 8, 3), ValueError, r"shape \(batch, 3, height, width\), got \(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8), ValueError, r"shape \(batch, 3, height, width\), got \(3, 8, 8\)"),
        (torch.zeros(2, 3, 0, 8), ValueError, r"height and width >= 1, got \(2, 3, 0, 8\); look at how the images"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "must be floating point, got torch.uint8; scale and"),
    ],
)
def test_wrong_images_are_refused(pixel_values, error, text):
    with pytest.raises(error, match=text):
        small_network("wideresnet")(pixel_values)


# Outputs


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_hidden_states_are_those_of_the_stem_and_of_each_stage(name):
    model = small_network(name).eval()
    pixel_values, labels = images()
    assert model(pixel_values).hidden_states is None
    output = model(pixel_values, output_hidden_states=True)
    channels = {
        "preactresnet-basic": [(4, 8), (4, 8), (8, 4)],
        "preactresnet-bottleneck": [(4, 8), (8, 8), (12, 4)],
        "vgg": [(4, 4), (8, 2)],
        "wideresnet": [(4, 8), (4, 8), (8, 4), (12, 2)],
        "pyramidnet-basic": [(4, 8), (8, 8), (11, 4), (15, 2)],  # 4 + 11·k/6 for k = 2, 4, 6, rounded
        "pyramidnet-bottleneck": [(4, 8), (16, 8), (22, 4), (30, 2)],  # and twice that
    }
    assert [(state.shape[1], state.shape[2]) for state in output.hidden_states] == channels[name]
    torch.testing.assert_close(model.classifier(output.hidden_states[-1]), output.logits)
    as_tuple = model(pixel_values, labels=labels, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[1], output.logits)
    assert len(as_tuple) == 3
    model.config.output_hidden_states, model.config.return_dict = True, False
    assert len(model(pixel_values)) == 2


# Accumulation


class FirstGradient(TrainerCallback):
    """Keeps the gradient that the first optimizer step is given."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = gradients(model)


class ThirtyTwo(torch.utils.data.Dataset):
    def __init__(self):
        self.pixel_values, self.labels = images(32, dtype=torch.float64)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index].item()}


def trainer_gradient(folder, name, batch, accumulation):
    """Return the gradient of one step on 32 images, with batch norms that keep to their running statistics."""
    model = small_network(name).double()
    assert model.accepts_loss_kwargs is False
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
            norm.train = lambda mode=True: None  # the Trainer calls it; statistics of the batch differ by its size
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = FirstGradient()
    Trainer(model=model, args=arguments, train_dataset=ThirtyTwo(), callbacks=[callback]).train()
    return callback.gradient


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_one_batch_of_32_has_the_gradient_of_8_accumulated_batches_of_4(tmp_path, name):
    whole, accumulated = (trainer_gradient(tmp_path, name, *sizes) for sizes in ((32, 1), (4, 8)))
    assert whole.keys() == accumulated.keys()
    for parameter, gradient in whole.items():
        torch.testing.assert_close(accumulated[parameter], gradient, rtol=1e-9, atol=1e-12)
    assert sum(gradient.abs().sum().item() for gradient in whole.values()) > 0


# Checkpointing


def switch_checkpointing(model, how, *arguments):
    """Call the method by its newer name where there is one: transformers 5.23 warns of the older."""
    names = (f"activation_checkpointing_{how}", f"gradient_checkpointing_{how}")
    getattr(model, next(name for name in names if hasattr(model, name)))(*arguments)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_checkpointing_changes_neither_gradients_nor_running_statistics(name, use_reentrant):
    pixel_values, labels = images()
    plain, checkpointed = (small_network(name, dropout=0.2) for _ in range(2))
    switch_checkpointing(checkpointed, "enable", {"use_reentrant": use_reentrant})
    runs = []
    last_block = checkpointed.stages[-1][0]
    last_block.register_forward_hook(lambda *_: runs.append("whole"))
    last_block.register_forward_pre_hook(lambda *_: runs.append("begun"))
    for _ in range(2):
        results = []
        for model in (plain, checkpointed):
            torch.manual_seed(3)  # of the dropout
            results.append(backward(model, pixel_values, labels))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert runs.count("begun") == 4  # twice in each of two passes
    for (buffer_name, buffer), other in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(buffer, other), buffer_name
    assert all(norm.momentum == 0.1 for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d))


def test_running_statistics_do_move_under_checkpointing():
    model = small_network("wideresnet")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    switch_checkpointing(model, "enable")
    backward(model, *images())
    assert all(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(buffer == 1 for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked"))


def test_checkpointing_can_be_switched_off_and_does_not_touch_evaluation():
    model, starts = small_network("wideresnet"), []
    model.stages[1][0].register_forward_pre_hook(lambda *_: starts.append(1))
    switch_checkpointing(model, "enable")
    model.eval()
    backward(model, *images())
    model.train()
    switch_checkpointing(model, "disable")
    backward(model, *images())
    assert len(starts) == 2


# Replicas


def replica_of(model):
    """Return what DataParallel runs on a device: copies of the modules with plain tensors in place of parameters."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copy in copies.items():
        for name, part in module.named_children():
            setattr(copy, name, copies[part])
        for name, parameter in module._parameters.items():
            setattr(copy, name, None if parameter is None else parameter.view_as(parameter))
    assert not list(copies[model].parameters())
    return copies[model]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_replica_of_data_parallel_gives_the_loss_and_gradients_of_the_network(name, dtype):
    pixel_values, labels = images()
    plain, replicated = (small_network(name).to(dtype) for _ in range(2))
    expected = backward(plain, pixel_values, labels)
    loss = replica_of(replicated)(pixel_values, labels=labels).loss
    loss.backward()
    torch.testing.assert_close((loss.detach(), gradients(replicated)), expected, rtol=0, atol=0)


# Compiling, memory format, precision


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_network_compiles_to_one_graph(name):
    torch.compiler.reset()
    pixel_values, labels = images()
    eager, compiled = small_network(name), small_network(name)
    whole_graph = torch.compile(compiled, backend="eager", fullgraph=True)
    loss, expected = backward(eager, pixel_values, labels)
    output = whole_graph(pixel_values, labels=labels, output_hidden_states=True)
    output.loss.backward()
    torch.testing.assert_close(output.loss.detach(), loss)
    torch.testing.assert_close(gradients(compiled), expected)


def test_probabilities_as_labels_compile_to_one_graph():
    torch.compiler.reset()
    model, (pixel_values, _) = small_network("vgg").eval(), images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    soft = torch.full((6, 5), 0.2)
    torch.testing.assert_close(compiled(pixel_values, labels=soft).loss, model(pixel_values, labels=soft).loss)


@pytest.mark.parametrize("name", ["preactresnet-basic", "vgg"])
def test_network_compiles_with_checkpointing(name):
    torch.compiler.reset()
    plain, model = small_network(name), small_network(name)
    switch_checkpointing(model, "enable")
    loss, expected = backward(plain, *images())
    compiled_loss = torch.compile(model, backend="aot_eager")(images()[0], labels=images()[1]).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss.detach(), loss)
    torch.testing.assert_close(gradients(model), expected)
    if torch.__version__ >= (2, 8):  # torch 2.6 makes the passes of checkpoints twice when it compiles
        torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_channels_last_gives_the_same_and_stays_channels_last(name):
    pixel_values, labels = images(dtype=torch.float64)
    plain, last = small_network(name).double(), small_network(name).double().to(memory_format=torch.channels_last)
    rearranged = pixel_values.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(backward(last, rearranged, labels), backward(plain, pixel_values, labels))
    for state in last(rearranged, output_hidden_states=True).hidden_states:
        assert state.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_bfloat16_and_autocast_train(name):
    pixel_values, labels = images()
    expected = small_network(name)(pixel_values, labels=labels)
    low = small_network(name).to(torch.bfloat16)
    output = low(pixel_values, labels=labels)  # images are converted to the dtype of the weights
    output.loss.backward()
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)
    assert all(gradient.isfinite().all() for gradient in gradients(low).values())
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.1, atol=0.1)
    mixed = small_network(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = mixed(pixel_values, labels=labels)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.1, atol=0.1)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(mixed).values())
