"""Tiny random models and data sets for the tests: seconds on a CPU, no network."""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_amp import AMPArguments, AMPTrainer, AMPTrainingArguments

FEATURES, CLASSES = 6, 3


class TinyConfig(PreTrainedConfig):
    model_type = "tiny-classifier"

    def __init__(self, width=8, batch_norm=False, dropout=0.0, tied=False, unused=False, **kwargs):
        self.width, self.batch_norm, self.dropout = width, batch_norm, dropout
        self.tied, self.unused = tied, unused
        super().__init__(**kwargs)


class TinyModel(PreTrainedModel):
    """Two linear layers between which everything can stand that AMP must get right."""

    config_class = TinyConfig
    main_input_name = "x"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ()

    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Linear(FEATURES, config.width)
        self.norm = nn.BatchNorm1d(config.width) if config.batch_norm else nn.Identity()
        self.middle = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.width, CLASSES)
        if config.tied:
            self.middle_again = self.middle
        if config.unused:
            self.unused = nn.Linear(2, 2)
        self.passes = 0
        self.post_init()

    def forward(self, x, labels=None):
        self.passes += 1
        hidden = self.norm(self.first(x)).tanh()
        hidden = self.middle(hidden).tanh()
        if self.config.tied:
            hidden = self.middle_again(hidden).tanh()
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class ModelThatIgnores(TinyModel):
    """Takes the number of items and ignores it, as most heads of transformers do."""

    accepts_loss_kwargs = True

    def forward(self, x, labels=None, **kwargs):
        return super().forward(x, labels)


class ModelThatCounts(TinyModel):
    """Uses `num_items_in_batch` as it is meant, so that micro-batches of any size add up."""

    accepts_loss_kwargs = True

    def forward(self, x, labels=None, num_items_in_batch=None, **kwargs):
        logits = super().forward(x).logits
        loss = None
        if labels is not None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = nn.functional.cross_entropy(logits, labels, reduction=reduction)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Points(Dataset):
    """Random points with random labels, as dictionaries."""

    def __init__(self, count=48, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


class Tokens(Dataset):
    """Random sequences of tokens, as a language model takes them."""

    def __init__(self, count=48, length=6, vocabulary=17):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (count, length), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def tiny_llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=17, num_key_value_heads=2, max_position_embeddings=32, **sizes))


def tiny_model(cls=TinyModel, dtype=torch.float64, seed=0, **config):
    torch.manual_seed(seed)
    return cls(TinyConfig(**config)).to(dtype)


TINY_SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 0.1,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "seed": 1,
}


def amp_arguments(output_dir, cls=AMPTrainingArguments, **overrides):
    # Without a radius, a training that evaluates nothing has plain steps only.
    radius = {"amp_epsilon": 0.5} if issubclass(cls, AMPArguments) else {}
    return cls(output_dir=str(output_dir), **TINY_SETTINGS | radius | overrides)


def amp_trainer(output_dir, model=None, cls=AMPTrainer, arguments=AMPTrainingArguments, data=None, **overrides):
    """An AMP trainer on tiny data; keyword arguments of `Trainer` go there, all others into the arguments."""
    own = ("callbacks", "optimizers", "compute_loss_func", "model_init", "eval_dataset", "data_collator")
    passed = {name: overrides.pop(name) for name in own if name in overrides}
    if model is None and "model_init" not in passed:
        model = tiny_model()
    args = amp_arguments(output_dir, arguments, **overrides)
    return cls(model=model, args=args, train_dataset=Points() if data is None else data, **passed)


class Recorder(TrainerCallback):
    """Keeps a copy of what `look(model)` sees at every event of training."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def _see(self, args, state, control, model=None, **kwargs):
        self.seen.append((state.global_step, self.look(model)))

    on_step_begin = on_substep_end = on_pre_optimizer_step = on_optimizer_step = on_step_end = _see
    on_log = on_evaluate = on_save = on_epoch_begin = on_epoch_end = on_train_begin = on_train_end = _see


def parameters_of(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def logs_of(trainer, key="loss"):
    return [entry for entry in trainer.state.log_history if key in entry]
