"""The image Trainer's optimizer, schedule and losses are those of the paper, whatever the transformers version."""

import math

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from hf_amp.perturbation import Perturbation
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import DataArguments
from hf_amp.vision.train.methods import adversarial_images, smoothed_cross_entropy
from hf_amp.vision.train.network import ModelArguments
from hf_amp.vision.train.trainer import ImageTrainer, RMPTrainer, trainer_class

STD = torch.tensor([0.25, 0.5, 1.0])


def tiny_model():
    set_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=3, num_labels=4, **sizes))


def examples(count=12):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 4} for i in range(count)]


def collate(batch):
    return {
        "pixel_values": torch.stack([one["pixel_values"] for one in batch]),
        "labels": torch.tensor([one["labels"] for one in batch]),
    }


def collate_mixed(batch):
    inputs = collate(batch)
    one_hot = nn.functional.one_hot(inputs["labels"], 4).float()
    return {**inputs, "labels": 0.7 * one_hot + 0.3 * one_hot.flip(0)}


def make_trainer(tmp_path, method="erm", collator=collate, **settings):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "precision": "float32", **settings}
    args = ImageTrainingArguments(
        output_dir=str(tmp_path), method=method, use_cpu=True, disable_tqdm=True, eval_strategy="no", **settings
    )
    return trainer_class(method)(
        model=tiny_model(),
        args=args,
        train_dataset=examples(),
        data_collator=collator,
        eval_collator=collate,
        pixel_std=STD,
    )


def loss_of(trainer, inputs):
    trainer.model.train()
    with torch.no_grad() if trainer.args.method != "adversarial" else torch.enable_grad():
        return trainer.compute_loss(trainer.model, inputs).detach()


def test_optimizer_is_nesterov_sgd_that_decays_every_parameter(tmp_path):
    trainer = make_trainer(tmp_path)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] == 1e-4 for p in group["params"]]
    assert len(decayed) == len(list(trainer.model.parameters()))
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.9, True)


def test_optimizer_arguments_can_be_given(tmp_path):
    optimizer = make_trainer(tmp_path, optim_args="momentum=0.5, nesterov=False").create_optimizer()
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["nesterov"]) == (0.5, False)
    assert type(make_trainer(tmp_path, optim="adamw_torch").create_optimizer()) is torch.optim.AdamW


@pytest.mark.parametrize("text", ["momentum", "momentum=x", "beta=0.1", "nesterov=maybe"])
def test_refused_optimizer_arguments(tmp_path, text):
    with pytest.raises(ValueError, match=rf"`optim_args` of sgd must look like .* got '{text}'"):
        make_trainer(tmp_path, optim_args=text)


def test_learning_rate_falls_at_half_and_three_quarters_of_the_training(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=8, logging_strategy="steps", logging_steps=1)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    steps = 8
    expected = [0.1 * 0.1 ** ((step >= steps / 2) + (step >= steps * 3 / 4)) for step in range(steps)]
    # Versions of the Trainer log the rate of this step or of the next one.
    assert rates == pytest.approx(expected) or rates[:-1] == pytest.approx(expected[1:])


def test_schedule_of_the_trainer_on_request(tmp_path):
    trainer = make_trainer(tmp_path, lr_schedule="trainer", lr_scheduler_type="cosine")
    trainer.create_optimizer_and_scheduler(4)
    assert isinstance(trainer.lr_scheduler, torch.optim.lr_scheduler.LambdaLR)


def test_a_second_training_starts_a_new_schedule(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.train()
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # 0.1 · 0.1²


@pytest.mark.parametrize("method", ["erm", "flooding", "label_smoothing", "mixup", "adversarial"])
def test_loss_of_each_scheme(tmp_path, method):
    strength = {"flooding": {"flood_level": 5.0}, "adversarial": {"adversarial_radius": 4.0}}.get(method, {})
    trainer = make_trainer(tmp_path, method, **strength)
    inputs = (collate_mixed if method == "mixup" else collate)(examples())
    given = dict(inputs)
    found = loss_of(trainer, given)
    assert given.keys() == inputs.keys()  # the caller's batch keeps its labels
    model = tiny_model().train()
    images = inputs["pixel_values"]
    if method == "adversarial":
        images = adversarial_images(model, images, inputs["labels"], 4 / 255 / STD)
    logits = model(images).logits.detach()
    plain = nn.functional.cross_entropy(logits, inputs["labels"])
    expected = {
        "flooding": (plain - 5.0).abs() + 5.0,
        "label_smoothing": smoothed_cross_entropy(logits, inputs["labels"], 0.2) if method != "mixup" else None,
    }.get(method, plain)
    torch.testing.assert_close(found, expected)


def test_evaluation_has_the_plain_loss(tmp_path):
    trainer = make_trainer(tmp_path, "label_smoothing")
    trainer.model.eval()
    inputs = collate(examples())
    expected = nn.functional.cross_entropy(trainer.model(inputs["pixel_values"]).logits, inputs["labels"])
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), expected)


def test_evaluation_uses_its_own_collator(tmp_path):
    trainer = make_trainer(tmp_path, "mixup", collate_mixed)
    assert next(iter(trainer.get_eval_dataloader(examples())))["labels"].dtype == torch.int64
    assert trainer.data_collator is collate_mixed


def test_adversarial_training_needs_the_std(tmp_path):
    trainer = make_trainer(tmp_path, "adversarial")
    trainer.pixel_std = None
    with pytest.raises(ValueError, match="'adversarial' needs `pixel_std`"):
        loss_of(trainer, collate(examples()))


def test_accumulation_does_not_scale_the_loss_of_a_model_that_ignores_the_number_of_items(tmp_path):
    gradients = []
    for accumulation in (1, 3):
        trainer = make_trainer(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=12 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            learning_rate=1.0,
            optim_args="momentum=0",
            weight_decay=0.0,
        )
        freeze_norms(trainer.model)
        before = trainer.model.classifier[1].weight.detach().clone()
        trainer.train()
        gradients.append(before - trainer.model.classifier[1].weight.detach())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def freeze_norms(model):
    """Batch norm without batch statistics, so that a batch equals its parts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False


@pytest.mark.parametrize("method", ["amp", "sam", "rmp"])
def test_perturbing_methods_move_and_restore(tmp_path, method):
    trainer = make_trainer(tmp_path, method, amp_epsilon=0.1, max_steps=2, logging_strategy="steps", logging_steps=1)
    norms = []
    original = type(trainer).find_perturbation

    def spy(self, perturbation, ascent_pass):
        before = [p.detach().clone() for p in self.model.parameters()]
        original(self, perturbation, ascent_pass)
        norms.append([(p.detach() - a).norm().item() for p, a in zip(self.model.parameters(), before, strict=True)])

    trainer.find_perturbation = spy.__get__(trainer)
    trainer.train()
    for moved in norms:
        total = math.sqrt(sum(norm**2 for norm in moved))
        if method == "sam":  # the whole model on the sphere of radius ε
            assert total == pytest.approx(0.1, rel=1e-3)
        else:  # each tensor in its own ball
            assert max(moved) <= 0.1 * (1 + 1e-3)
            assert total > 0.1
    assert len(norms) == 2


def test_random_perturbations_differ_between_steps_and_seeds_and_repeat_after_a_resume(tmp_path):
    def draw(seed, step):
        trainer = make_trainer(tmp_path, "rmp", seed=seed)
        trainer.state.global_step = step
        perturbation = Perturbation(trainer.model.parameters(), 0.1, "tensor")
        with perturbation.applied():
            trainer.find_perturbation(perturbation, None)
            return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    assert torch.equal(draw(0, 5), draw(0, 5))
    assert not torch.equal(draw(0, 5), draw(0, 6))
    assert not torch.equal(draw(0, 5), draw(1, 5))


def test_classes():
    assert trainer_class("rmp") is RMPTrainer
    assert {trainer_class(m) for m in ("erm", "amp", "sam", "mixup")} == {ImageTrainer}


def test_method_decides_the_perturbation():
    def fields(**given):
        args = ImageTrainingArguments(use_cpu=True, **given)
        return args.amp_epsilon, args.amp_norm, args.amp_inner_iter

    assert fields(method="erm", amp_epsilon=0.3)[0] == 0.0
    assert fields(method="amp") == (None, "tensor", 1)
    assert fields(method="amp", amp_epsilon=0.1, amp_norm="global", amp_inner_iter=2) == (0.1, "global", 2)
    assert fields(method="sam", amp_norm="tensor") == (0.05, "global", 1)
    assert fields(method="rmp") == (0.1, "tensor", 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "adam"}, "`method` must be one of erm, amp, .* got 'adam'"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"smoothing": -0.1}, r"`smoothing` must be in \[0, 1\), got -0.1"),
        ({"flood_level": -1.0}, "`flood_level` must be finite and >= 0, got -1.0"),
        ({"mixup_alpha": 0.0}, "`mixup_alpha` must be finite and > 0, got 0.0"),
        ({"adversarial_radius": 0.0}, "`adversarial_radius` must be finite and > 0, got 0.0"),
        ({"amp_epsilon": -0.5}, "`amp_epsilon` must be .*>= 0, got -0.5"),
        ({"scale": 0.0}, "`scale` must be finite and > 0, got 0.0; 0.1 trains a tenth"),
        ({"scale": float("inf")}, "`scale` must be finite and > 0, got inf"),
        ({"flood_level": float("inf")}, "`flood_level` must be finite and >= 0, got inf"),
        ({"adversarial_radius": float("inf")}, "`adversarial_radius` must be finite and > 0, got inf"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be finite and >= 0, got nan"),
        ({"learning_rate": -1.0}, "`learning_rate` must be finite and >= 0, got -1.0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be finite and >= 0, got -1.0"),
        ({"max_grad_norm": float("nan")}, "`max_grad_norm` must be >= 0, got nan; 0 or inf clips nothing"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*32\), got -1"),
        ({"seeds": [0, 2**32]}, r"`seeds` must be in \[0, 2\*\*32\), got 4294967296"),
        ({"num_train_epochs": 0.0}, "`num_train_epochs` must be finite and > 0, got 0.0"),
        ({"max_steps": 0}, "`max_steps` must be >= 1, or -1, got 0"),
        ({"per_device_train_batch_size": -3}, "`per_device_train_batch_size` must be >= 1, got -3"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be >= 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be >= 1, got 0"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers` must be >= 0, got -1"),
        ({"label_smoothing_factor": -1.0}, r"`label_smoothing_factor` must be in \[0, 1\), got -1.0"),
        ({"torch_compile_mode": "foo"}, "`torch_compile_mode` must be a mode that torch.compile knows, got 'foo'"),
        ({"torch_compile_backend": "foo"}, "`torch_compile_backend` must be one of .*inductor.* got 'foo'"),
        ({"optim_args": "lr=1"}, "`optim_args` of sgd must look like .* got 'lr=1'"),
        ({"optim_args": "momentum=nan"}, "`optim_args` of sgd must look like .* got 'momentum=nan'"),
        ({"optim_args": "momentum=0,nesterov=True"}, "`optim_args` 'momentum=0,nesterov=True' are refused by sgd"),
        ({"bf16": True, "fp16": True}, "`bf16`=True and `fp16`=True contradict each other"),
        ({"output_dir": ""}, "`output_dir` must be the name of a folder, got ''"),
        ({"scale": 0.5, "max_steps": 10}, "`scale` shortens num_train_epochs, but `max_steps`=10"),
        ({"seeds": [1, 1]}, r"`seeds` must differ from each other, got \[1, 1\]"),
        ({"warmup_steps": 10}, "`warmup_steps`=10 has no part in the step schedule; add --lr_schedule trainer"),
        ({"method": "mixup", "label_smoothing_factor": 0.1}, "cannot be combined with method 'mixup'"),
        ({"load_best_model_at_end": True}, "`load_best_model_at_end` would lose the last weights"),
        ({"push_to_hub": True, "seeds": [0, 1]}, r"`push_to_hub` publishes one model, got seeds \[0, 1\]"),
    ],
)
def test_refused_training_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        ImageTrainingArguments(use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"label_noise": 1.5}, r"`label_noise` must be in \[0, 1\), got 1.5"),
        ({"validation_fraction": 1.0}, r"`validation_fraction` must be in \[0, 1\), got 1.0"),
        ({"split_seed": -1}, r"`split_seed` must be in \[0, 2\*\*32\), got -1"),
        ({"max_train_samples": 0}, "`max_train_samples` must be >= 1, got 0"),
        ({"augmentation": "flip"}, "`augmentation` must be one of vanilla, .* got 'flip'"),
    ],
)
def test_refused_data_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        DataArguments(**settings)


def test_values_at_the_edge_are_allowed():
    edge = {"max_grad_norm": float("inf"), "seeds": [0, 2**32 - 1], "optim_args": "momentum=0", "learning_rate": 0.0}
    assert ImageTrainingArguments(use_cpu=True, torch_compile_mode="max-autotune", **edge).max_grad_norm == float("inf")


def test_model_arguments_are_json():
    assert ModelArguments(model_args='{"depth": 4}').config_overrides() == {"depth": 4}
    for text in ("{'depth': 4}", "[1]", "depth=4"):
        with pytest.raises(ValueError, match="`model_args` must be a JSON object, got"):
            ModelArguments(model_args=text)


def test_augmentation_by_data_set():
    assert DataArguments(dataset="svhn").augmentation == "vanilla"
    assert DataArguments(dataset="digits").augmentation == "none"
    assert DataArguments(dataset="digits", augmentation="cutout").augmentation == "cutout"


def test_scale_shortens_the_epochs_to_whole_ones():
    assert ImageTrainingArguments(use_cpu=True, scale=0.05).epochs == 10
    assert ImageTrainingArguments(use_cpu=True, scale=0.0001).epochs == 1
    assert ImageTrainingArguments(use_cpu=True, num_train_epochs=0.5).epochs == 0.5
