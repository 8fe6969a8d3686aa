"""What is refused, what is warned about, and what works beside it."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from test_trainer import InOrder
from tiny import (
    ModelThatCounts,
    ModelThatIgnores,
    Points,
    TinyModel,
    Tokens,
    amp_arguments,
    amp_trainer,
    largest_difference,
    logs_of,
    parameters_of,
    tiny_llama,
    tiny_model,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

import hf_amp
from hf_amp import AMPArguments, AMPTrainer, AMPTrainerMixin
from hf_amp.parameters import all_parameters, target_parameters
from hf_amp.passes import is_compiled
from hf_amp.support import check_communication, unconnected_processes
from hf_amp.training_run import TrainingRun

# --- refusals ---


def assert_refused(tmp_path, prepare, text, **overrides):
    """The trainer that `prepare` makes unsupported says so before its first pass."""
    trainer = amp_trainer(tmp_path, **overrides)
    prepare(trainer)
    with pytest.raises(NotImplementedError, match=text):
        trainer.train()
    assert trainer.model.passes == 0


def test_deepspeed_is_refused(tmp_path):
    assert_refused(tmp_path, lambda t: setattr(t, "is_deepspeed_enabled", True), "DeepSpeed: .*use DDP or FSDP2")


@pytest.mark.parametrize("size", ["get_cp_size", "get_sp_size"])
def test_context_and_sequence_parallelism_are_refused(tmp_path, size):
    assert_refused(tmp_path, lambda t: setattr(t, size, lambda: 2), "context or sequence parallelism: set `cp_size`")


def test_sagemaker_model_parallelism_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_amp.support.is_sagemaker_mp_enabled", lambda: True)
    with pytest.raises(NotImplementedError, match="SageMaker model parallelism: use DDP"):
        amp_trainer(tmp_path)


def test_megatron_is_refused(tmp_path, monkeypatch):
    megatron = property(lambda self: DistributedType.MEGATRON_LM)
    trainer = amp_trainer(tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", megatron)
    with pytest.raises(NotImplementedError, match="Megatron-LM"):
        trainer.train()


def test_fsdp_version_1_is_refused_with_the_setting_that_chooses_version_2(tmp_path):
    assert_refused(tmp_path, lambda t: setattr(t, "is_fsdp_enabled", True), 'FSDP version 1: .*"fsdp_version": 2')


def test_fsdp_on_xla_is_refused(tmp_path):
    assert_refused(tmp_path, lambda t: setattr(t, "is_fsdp_xla_enabled", True), "FSDP on XLA")


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_inside_backward_are_refused_at_construction(tmp_path, optim):
    with pytest.raises(NotImplementedError, match=f"optimizer '{optim}': it steps inside backward.*another `optim`"):
        amp_trainer(tmp_path, optim=optim)


def test_such_an_optimizer_handed_over_is_refused_too(tmp_path):
    class AdaLomo(torch.optim.SGD):
        pass

    model = tiny_model()
    with pytest.raises(NotImplementedError, match="optimizer 'AdaLomo'"):
        amp_trainer(tmp_path, model, optimizers=(AdaLomo(model.parameters(), lr=0.1), None))


def test_what_is_refused_trains_when_amp_is_switched_off(tmp_path):
    class AdaLomo(torch.optim.SGD):
        pass

    model = tiny_model()
    trainer = amp_trainer(tmp_path, model, amp_epsilon=0.0, optimizers=(AdaLomo(model.parameters(), lr=0.1), None))
    trainer.train()
    assert trainer.state.global_step == model.passes == 6


def test_communication_hooks_that_step_are_refused():
    def hook(state, bucket):
        pass

    hook.__module__ = "torch.distributed.algorithms.ddp_comm_hooks.ddp_zero_hook"  # whose import warns
    with pytest.raises(NotImplementedError, match=r"communication hook '.*hook': it steps inside backward, at θ \+ Δ"):
        check_communication(SimpleNamespace(_comm_hooks=[(hook, None)]))


def test_a_communication_hook_with_a_state_of_its_own_is_warned_about(caplog):
    class Errors(dict):
        pass

    def compress(state, bucket):
        pass

    with caplog.at_level("WARNING"):
        check_communication(SimpleNamespace(_comm_hooks=[(compress, None)]))
        assert not caplog.text
        check_communication(SimpleNamespace(_orig_mod=SimpleNamespace(_comm_hooks=[(compress, Errors())])))  # compiled
    assert "compress' has a state (Errors)" in caplog.text
    assert "only while `trainer.amp_pass` is not 'ascent'" in caplog.text


@pytest.mark.parametrize("forgets", [True, False])
def test_shards_that_keep_a_failed_pass_are_warned_about(monkeypatch, caplog, forgets):
    methods = {"reshard": lambda: None} | ({"reset_iter_state": lambda: None} if forgets else {})
    monkeypatch.setattr("hf_amp.training_run.sharded_modules", lambda model: [SimpleNamespace(**methods)])
    with caplog.at_level("WARNING"):
        TrainingRun(None)._reshard(tiny_model(), is_new_step=True)
    assert ("cannot forget a forward pass that failed" in caplog.text) == (not forgets)


def test_the_mixin_behind_its_trainer_is_refused():
    with pytest.raises(TypeError, match="Backwards must name AMPTrainerMixin before its Trainer"):
        type("Backwards", (Trainer, AMPTrainerMixin), {})


def test_a_second_amp_mixin_is_refused():
    with pytest.raises(TypeError, match="Twice has a second AMP mixin"):
        type("Twice", (AMPTrainer, AMPTrainerMixin), {})
    with pytest.raises(TypeError):  # Python itself finds no order for these bases
        type("Twice", (AMPTrainerMixin, AMPTrainer), {})
    copied = type("AMPTrainerMixin", (), {})  # as a second installed copy of the module would bring
    with pytest.raises(TypeError, match="Twice has a second AMP mixin"):
        type("Twice", (AMPTrainer, copied), {})


def test_target_parameters_that_match_nothing_are_refused_at_construction(tmp_path):
    with pytest.raises(ValueError, match=r"must match a trainable parameter, got \['attention'\]; the names are first"):
        amp_trainer(tmp_path, amp_target_parameters="attention")


def test_target_parameters_that_are_frozen_are_refused(tmp_path):
    model = tiny_model()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="must match a trainable parameter"):
        amp_trainer(tmp_path, model, amp_target_parameters="classifier")


def test_a_frozen_model_is_evaluated_and_refused_only_when_it_is_trained(tmp_path):
    model = tiny_model().requires_grad_(False)
    trainer = amp_trainer(tmp_path, model, eval_dataset=Points(8))
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="must have a trainable parameter to perturb"):
        trainer.train()
    assert model.passes == 1
    model.classifier.requires_grad_(True)
    trainer.train()
    assert trainer.state.global_step == 6


def test_one_pattern_of_several_that_matches_nothing_is_warned_about(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        amp_trainer(tmp_path, amp_target_parameters=["classifier", "clasifier"])
    assert "'clasifier' matches no trainable parameter" in caplog.text
    assert "'classifier' matches" not in caplog.text


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch imports its own deprecated module
def test_names_are_those_of_the_unwrapped_model():
    model = nn.DataParallel(torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))
    names = {id(p): n for n, p in model.module._orig_mod.named_parameters()}
    found = [names[id(p)] for p in target_parameters(all_parameters(model), ("^1\\.",))]
    assert found == ["1.weight", "1.bias"]


@pytest.mark.parametrize(("launched", "seen", "apart"), [("2", 1, True), ("2", 2, False), ("1", 1, False)])
def test_launched_processes_that_do_not_know_each_other_are_found(monkeypatch, launched, seen, apart):
    monkeypatch.setenv("WORLD_SIZE", launched)
    problem = unconnected_processes(SimpleNamespace(world_size=seen))
    assert (problem is not None) == apart
    if problem:
        assert "started WORLD_SIZE=2 processes, but the training arguments see one" in problem
        assert "pass `use_cpu=True` (`--use_cpu`)" in problem


def test_the_trainer_warns_of_such_processes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_amp.support.unconnected_processes", lambda args: "two processes, apart")
    with caplog.at_level("WARNING"):
        amp_trainer(tmp_path).train()
    assert "two processes, apart" in caplog.text


# --- the loss that ignores the number of items ---


def resnet():
    config = AutoConfig.for_model(
        "resnet", num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3
    )
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config)


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.pixels = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": index % 3}


def ignoring_run(tmp_path, caplog, prepare=lambda model: None, **overrides):
    model = resnet()
    prepare(model)
    caplog.clear()
    with caplog.at_level("WARNING"):
        trainer = amp_trainer(tmp_path, model, data=Images(), amp_epsilon=0.01, **overrides)
        trainer.train()
    return trainer, "ignores it" in caplog.text


SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}


def test_a_model_whose_loss_ignores_num_items_is_warned_about_where_it_matters(tmp_path, caplog):
    trainer, warned = ignoring_run(tmp_path, caplog, **SPLIT)
    assert warned
    assert "`model.accepts_loss_kwargs = False`" in caplog.text
    assert logs_of(trainer)[0]["loss"] > 4  # the caveat itself: eight micro-batches, eight times the loss
    _, warned = ignoring_run(tmp_path, caplog, per_device_train_batch_size=32)
    assert not warned


def test_the_remedy_of_that_warning_works(tmp_path, caplog):
    def remedy(model):
        model.accepts_loss_kwargs = False

    split, warned = ignoring_run(tmp_path, caplog, remedy, **SPLIT)
    assert not warned
    assert logs_of(split)[0]["loss"] < 2


def test_models_that_use_the_number_of_items_are_not_warned_about(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        amp_trainer(tmp_path, tiny_model(ModelThatCounts), gradient_accumulation_steps=2).train()
    assert "ignores it" not in caplog.text


@pytest.mark.parametrize("options", [{"amp_scope": "micro_batch"}, {"amp_ascent_fraction": 0.5}], ids=str)
def test_where_the_loss_ignores_the_items_sharpness_is_still_that_of_delta(tmp_path, options):
    data = torch.utils.data.Subset(Points(), [0] * 32)  # one sample is as good as another
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = amp_trainer(tmp_path, tiny_model(ModelThatIgnores), data=data, amp_epsilon=1e-9, **split, **options)
    trainer.train()
    assert logs_of(trainer)[0]["loss"] == pytest.approx(logs_of(trainer)[0]["erm_loss"], abs=1e-4)


def test_a_loss_of_ones_own_that_ignores_the_items_is_told_what_that_does(tmp_path, caplog):
    class Weighted(AMPTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(inputs["x"])
            loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    class Counted(Weighted):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            mean = super().compute_loss(model, inputs)
            return mean if num_items_in_batch is None else mean * len(inputs["labels"]) / num_items_in_batch

    class Believed(Weighted):
        loss_is_scaled_for_ga = True

    def trained(cls, model=ModelThatIgnores, split=2):
        caplog.clear()
        with caplog.at_level("WARNING"):
            amp_trainer(tmp_path, tiny_model(model), cls, gradient_accumulation_steps=split).train()
        return caplog.text.count("compute_loss ignores `num_items_in_batch`")

    assert trained(Weighted) == 1
    assert "`model.accepts_loss_kwargs = False`" in caplog.text
    assert trained(Weighted, TinyModel) == trained(Weighted, split=1) == trained(Counted) == trained(Believed) == 0


def test_the_check_of_the_loss_makes_no_pass_of_its_own(tmp_path, caplog):
    modes = []

    class Seen(ModelThatCounts):
        def forward(self, x, labels=None, num_items_in_batch=None, **kwargs):
            modes.append(self.training)
            return super().forward(x, labels, num_items_in_batch, **kwargs)

    amp_trainer(tmp_path, tiny_model(Seen), gradient_accumulation_steps=2, max_steps=1).train()
    assert modes == [True] * 4


@pytest.mark.parametrize("outputs", ["none", "nothing", "list"])
def test_models_without_a_loss_in_evaluation_mode_train(tmp_path, outputs):
    class TrainingOnly(TinyModel):
        accepts_loss_kwargs = True

        def forward(self, x, labels=None, **kwargs):
            result = super().forward(x, labels)
            if self.training:
                return result
            if outputs == "list":
                return [{"boxes": result.logits}]
            return {"logits": result.logits} | ({"loss": None} if outputs == "none" else {})

    trainer = amp_trainer(tmp_path, tiny_model(TrainingOnly), gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 3


# --- what works beside it ---


def test_any_trainer_subclass_becomes_an_amp_one(tmp_path):
    @dataclass
    class Config(AMPArguments, Seq2SeqTrainingArguments):
        pass

    class AMPSeq2SeqTrainer(AMPTrainerMixin, Seq2SeqTrainer):
        pass

    model, plain = tiny_model(), tiny_model()
    args = amp_arguments(tmp_path, Config, amp_epsilon=0.1)
    trainer = AMPSeq2SeqTrainer(model=model, args=args, train_dataset=Points())
    trainer.train()
    assert "sharpness" in logs_of(trainer)[0]
    amp_trainer(tmp_path, plain, amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(model), parameters_of(plain)) == 0.0


def test_a_subclass_with_a_step_and_a_loss_of_its_own_keeps_them(tmp_path):
    steps = []

    class Own(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            steps.append(1)
            return super().training_step(model, inputs, num_items_in_batch)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(inputs["x"])
            loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"]) * 2
            return (loss, outputs) if return_outputs else loss

    class AMPOwn(AMPTrainerMixin, Own):
        pass

    trainer = amp_trainer(tmp_path, cls=AMPOwn, amp_epsilon=0.1)
    trainer.train()
    assert len(steps) == 12
    assert logs_of(trainer)[0]["loss"] > 2


def test_hyperparameter_search_over_amp_fields(tmp_path):
    seen = []

    class Look(AMPTrainer):
        def find_perturbation(self, perturbation, ascent_pass):
            super().find_perturbation(perturbation, ascent_pass)
            seen.append((self.args.amp_epsilon, perturbation.norm.item()))

    trainer = amp_trainer(
        tmp_path,
        None,
        Look,
        model_init=lambda: tiny_model(),
        eval_dataset=Points(8),
        amp_norm="global",
        amp_inner_lr=1e6,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"amp_epsilon": trial.suggest_categorical("amp_epsilon", [0.125, 0.25, 0.5])},
        backend="optuna",
        n_trials=3,
        direction="minimize",
        compute_objective=lambda metrics: metrics["eval_loss"],
    )
    assert best.hyperparameters["amp_epsilon"] in (0.125, 0.25, 0.5)
    assert len(seen) == 18
    assert all(norm == pytest.approx(epsilon) for epsilon, norm in seen)


def test_gradient_checkpointing_gives_the_same_weights(tmp_path):
    class Checkpointed(TinyModel):
        def forward(self, x, labels=None):
            if self.training:
                hidden = torch.utils.checkpoint.checkpoint(
                    lambda y: self.norm(self.first(y)).tanh(), x, use_reentrant=False
                )
            else:
                hidden = self.norm(self.first(x)).tanh()
            logits = self.classifier(self.middle(hidden).tanh())
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    plain, checkpointed = tiny_model(batch_norm=True), tiny_model(Checkpointed, batch_norm=True)
    for model in (plain, checkpointed):
        amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_norm_stats="clean").train()
    assert largest_difference(parameters_of(plain), parameters_of(checkpointed)) <= 1e-12


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def compiled_around(model):
    return torch.compile(model, backend="aot_eager")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiles", [compiled_in_place, compiled_around])
def test_a_compiled_model_that_counts_its_items_trains_the_same_weights(tmp_path, compiles):
    models = [tiny_llama(), tiny_llama()]
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "remove_unused_columns": False}
    for model, change in zip(models, (lambda model: model, compiles), strict=True):
        amp_trainer(tmp_path, change(model), data=Tokens(16), amp_epsilon=0.1, **options).train()
    assert largest_difference(*map(parameters_of, models)) <= 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["", "model", "loss", "function", "arguments", "environment"])
def test_it_is_seen_that_something_is_compiled(tmp_path, monkeypatch, how):
    def loss(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum()

    model = tiny_model()
    options = {"torch_compile": True} if how == "arguments" else {}
    if how == "model":
        model.first.compile()
    if how == "loss":
        model.loss_function = torch.compile(loss)
    if how == "function":
        options["compute_loss_func"] = torch.compile(loss)
    if how == "environment":
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
        AcceleratorState._reset_state(reset_partial_state=True)
    trainer = amp_trainer(tmp_path, model, **options)
    assert is_compiled(trainer) == bool(how)
    if how == "environment":
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("stats", ["every_pass", "descent"])
def test_torch_compile_gives_the_same_weights(tmp_path, stats):
    plain, compiled = tiny_model(batch_norm=True), tiny_model(batch_norm=True)
    for model, compiles in ((plain, False), (compiled, True)):
        options = {"torch_compile": compiles, "torch_compile_backend": "aot_eager"} if compiles else {}
        amp_trainer(tmp_path, model, amp_epsilon=0.1, amp_norm_stats=stats, **options).train()
    assert largest_difference(parameters_of(plain), parameters_of(compiled)) <= 1e-10
    assert torch.allclose(plain.norm.running_mean, compiled.norm.running_mean)


def test_data_parallel_wrapping_trains_the_same_weights(tmp_path):
    plain, wrapped = tiny_model(), tiny_model()
    amp_trainer(tmp_path, plain, amp_epsilon=0.1).train()

    class Wraps(AMPTrainer):
        def training_step(self, model, *args, **kwargs):
            return super().training_step(nn.DataParallel(model), *args, **kwargs)

    amp_trainer(tmp_path, wrapped, Wraps, amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(plain), parameters_of(wrapped)) == 0.0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
def test_peft_models_move_only_their_adapters(tmp_path):
    config = peft.LoraConfig(target_modules=["first", "middle"], r=2, modules_to_save=["classifier"])
    model = peft.get_peft_model(tiny_model(), config)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    moved = set()

    class Look(InOrder):
        def compute_loss(self, model, *args, **kwargs):
            moved.update(n for n, p in model.named_parameters() if n in base and not torch.equal(p, base[n]))
            return super().compute_loss(model, *args, **kwargs)

    trainer = amp_trainer(tmp_path, model, Look, amp_epsilon=0.1)
    before = parameters_of(model)
    trainer.train()
    assert moved == set()
    after = parameters_of(model)
    assert all(torch.equal(after[name], base[name]) for name in base)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora_B" in n)


def test_a_schedule_free_optimizer_changes_its_weights_before_they_are_perturbed(tmp_path):
    """Such an optimizer moves the weights itself when it enters training mode, also after an evaluation."""

    class Moves(torch.optim.SGD):
        training = False

        def train(self):
            if not self.training:
                self._shift(1.0)
            self.training = True

        def eval(self):
            if self.training:
                self._shift(-1.0)
            self.training = False

        def _shift(self, amount):
            with torch.no_grad():
                for group in self.param_groups:
                    for param in group["params"]:
                        param.add_(amount * 2**-8)

    model = tiny_model()
    theta = parameters_of(model)
    optimizer = Moves(model.parameters(), lr=0.0)
    trainer = amp_trainer(
        tmp_path,
        model,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        eval_dataset=Points(8),
        eval_strategy="steps",
        eval_steps=2,
        amp_epsilon=0.1,
    )
    trainer.train()
    optimizer.eval()
    assert largest_difference(theta, parameters_of(model)) <= 1e-15


# --- the package ---


def test_public_names_and_types():
    assert hf_amp.__all__ == sorted(hf_amp.__all__)
    trainers = {"AMPTrainer", "AMPTrainerMixin", "PublishingMixin"}
    arguments = {"AMPArguments", "AMPTrainingArguments", "PublishingArguments"}
    assert set(hf_amp.__all__) == {*trainers, *arguments, "__version__"}
    assert all(hasattr(hf_amp, name) for name in hf_amp.__all__)
    assert (importlib.resources.files("hf_amp") / "py.typed").is_file()


def test_names_of_the_package_are_listed_and_others_refused():
    assert set(hf_amp.__all__) <= set(dir(hf_amp))
    with pytest.raises(AttributeError, match="module 'hf_amp' has no attribute 'AMPTrainner'"):
        hf_amp.AMPTrainner  # noqa: B018 - the look-up is what is tried


def test_the_command_that_pushes_does_not_wait_for_torch():
    code = "import sys, hf_amp.push; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy():
    heavy = ("datasets", "kornia", "matplotlib", "sklearn", "evaluate")
    there = f"{{name for name in {heavy} if name in sys.modules}}"
    # Not more than the Trainer by itself, which imports some of them where they are installed.
    code = f"import sys, transformers.trainer; plain = {there}; import hf_amp.trainer; print({there} - plain)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
