"""Tasks of default_radius.py that need no images: data made on the spot or of scikit-learn, and networks for them.

Each function returns, for a way, a seed and a share of wrong labels, the model, training, held-out and test data, and
the settings of the training.
"""

import pydoc_data.topics
import time

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from torch.utils.data import StackDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_amp import AMPTrainer, AMPTrainingArguments

TEXTS = (800, 200, 2000)  # training, held-out and test sentences
POINTS = (400, 100, 2000)  # those of a regression
DIGITS = (600, 200)  # training and held-out digits; the others are for the test
TUMOURS = (250, 80)
LINES = (100, 200, 1000)


def with_wrong_labels(labels, classes, noise, generator):
    """A share of the labels, in the mean, is one of the others, each as likely."""
    wrong = torch.rand(len(labels), generator=generator) < noise
    return torch.where(wrong, (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes, labels)


def parts(inputs, labels, classes, noise, way, seed, sizes, name="x"):
    """Training, held-out and test data, drawn anew for each seed; those of the test have no wrong labels."""
    generator = torch.Generator().manual_seed(500 + seed)
    order = torch.randperm(len(labels), generator=generator)
    inputs, labels = inputs[order], labels[order]
    train, held_out = sizes
    seen = train + held_out
    given = torch.cat([with_wrong_labels(labels[:seen], classes, noise, generator), labels[seen:]])
    ranges = (slice(0, seen if way == "together" else train), slice(train, seen), slice(seen, None))
    return tuple(StackDataset(**{name: inputs[part]}, labels=given[part]) for part in ranges)


def digits_of(way, seed, noise, name="x", shape=(64,)):
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32).view(-1, *shape) / 16
    return parts(pixels, torch.tensor(digits.target), 10, noise, way, seed, DIGITS, name)


class Classifier(nn.Module):
    """Layers, and the cross-entropy of what they say of `x`."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def mlp(way, seed, noise):
    """Two hidden layers with batch norm on digits, AdamW, 30 epochs."""
    data = digits_of(way, seed, noise)
    set_seed(seed)
    hidden = (nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU())
    return Classifier(*hidden, nn.Linear(128, 10)), data, {"num_train_epochs": 30, "learning_rate": 1e-3}


def lenet(way, seed, noise):
    """Two convolutions without batch norm on digits, AdamW, 30 epochs."""
    data = digits_of(way, seed, noise, shape=(1, 8, 8))
    set_seed(seed)
    first = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
    second = (nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = Classifier(*first, *second, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, data, {"num_train_epochs": 30, "learning_rate": 1e-3}


def tabular(way, seed, noise):
    """Two hidden layers on 30 measures of tumours, AdamW, 50 epochs."""
    cancer = load_breast_cancer()
    measures = torch.tensor(cancer.data, dtype=torch.float32)
    measures = (measures - measures.mean(0)) / measures.std(0)
    data = parts(measures, torch.tensor(cancer.target), 2, noise, way, seed, TUMOURS)
    set_seed(seed)
    model = Classifier(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    return model, data, {"num_train_epochs": 50, "learning_rate": 1e-3}


def vit(way, seed, noise):
    """A vision transformer of three layers on digits, AdamW, 40 epochs."""
    data = digits_of(way, seed, noise, "pixel_values", (1, 8, 8))
    set_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    return ViTForImageClassification(config), data, {"num_train_epochs": 40, "learning_rate": 1e-3}


def sentences(count, noise, seed):
    """Sequences of 16 of 64 words; the class is which of four groups of eight words is most frequent."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 68, (count, 16), generator=generator)
    groups = torch.stack([((ids - 4) // 8 == group).sum(1) for group in range(4)], 1)
    labels = (groups + 0.1 * torch.rand(groups.shape, generator=generator)).argmax(1)
    return StackDataset(input_ids=ids, labels=with_wrong_labels(labels, 4, noise, generator))


def sentences_of(way, seed, noise):
    train, held_out, test = TEXTS
    train = sentences(train + held_out if way == "together" else train, noise, 1000 + seed)
    return train, sentences(held_out, noise, 2000 + seed), sentences(test, 0.0, 3000)


def text(way, seed, noise):
    """A small DistilBERT on made sentences, AdamW, 20 epochs."""
    data = sentences_of(way, seed, noise)
    set_seed(seed)
    sizes = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 16}
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=68, num_labels=4, **sizes))
    model.accepts_loss_kwargs = False
    return model, data, {"num_train_epochs": 20, "learning_rate": 1e-3}


def bert(way, seed, noise):
    """A wider BERT on made sentences, at half of the learning rate, AdamW, 20 epochs."""
    data = sentences_of(way, seed, noise)
    set_seed(seed)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    config = BertConfig(vocab_size=68, num_labels=4, max_position_embeddings=16, **sizes)
    model = BertForSequenceClassification(config)
    model.accepts_loss_kwargs = False
    return model, data, {"num_train_epochs": 20, "learning_rate": 5e-4}


class Recurrent(nn.Module):
    """A gated recurrent unit over words, and the mean of its states."""

    def __init__(self):
        super().__init__()
        self.words, self.states, self.classes = nn.Embedding(68, 32), nn.GRU(32, 64, batch_first=True), nn.Linear(64, 4)

    def forward(self, input_ids, labels):
        states, _ = self.states(self.words(input_ids))
        logits = self.classes(states.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def gru(way, seed, noise):
    """A recurrent network on made sentences, AdamW, 20 epochs."""
    data = sentences_of(way, seed, noise)
    set_seed(seed)
    return Recurrent(), data, {"num_train_epochs": 20, "learning_rate": 3e-3}


def gpt2(way, seed, noise):
    """A small GPT-2 on 64 characters at a time of Python's own documentation, AdamW, 80 epochs."""
    topics = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    known = {character: i for i, character in enumerate(sorted(set(topics)))}
    ids = torch.tensor([known[character] for character in topics])
    lines = ids[: len(ids) // 64 * 64].view(-1, 64)
    lines = lines[torch.randperm(len(lines), generator=torch.Generator().manual_seed(500 + seed))]
    train, held_out, test = LINES
    seen = train + held_out
    ranges = (slice(0, seen if way == "together" else train), slice(train, seen), slice(seen, seen + test))
    data = tuple(StackDataset(input_ids=lines[part], labels=lines[part].clone()) for part in ranges)
    set_seed(seed)
    config = GPT2Config(vocab_size=len(known), n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config), data, {"num_train_epochs": 80, "learning_rate": 2e-3}


def points(count, noise, seed):
    """Values of a smooth function of four of eight numbers, about as large as 1, and their noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    values = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * (x[:, 3] ** 2 - 1)
    return StackDataset(x=x, labels=values + noise * torch.randn(count, generator=generator))


class SquaredError(nn.Module):
    """A network with two hidden layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x, labels):
        values = self.layers(x)[:, 0]
        return {"loss": (values - labels).pow(2).mean(), "logits": values}


def regression(way, seed, noise):
    """A small network on made points, in 60 epochs."""
    train, held_out, test = POINTS
    train = points(train + held_out if way == "together" else train, noise, 1000 + seed)
    held_out, test = points(held_out, noise, 2000 + seed), points(test, 0.0, 3000)
    set_seed(seed)
    return SquaredError(), (train, held_out, test), {"num_train_epochs": 60, "learning_rate": 3e-3}


MADE = {one.__name__: one for one in (text, regression, mlp, lenet, tabular, vit, gru, bert, gpt2)}


def made_run(kind, way, seed, noise, output_dir, eval_steps=None):
    """One training on made data; the plain `TrainingArguments` are those of the default."""
    strategy = "epoch" if eval_steps is None else "steps"
    model, (train, held_out, test), lengths = MADE[kind](way, seed, noise)
    own = {"amp_epsilon": 0.0 if way in ("erm", "together") else float(way)} if way != "default" else {}
    args = (TrainingArguments if way == "default" else AMPTrainingArguments)(
        output_dir=str(output_dir / "runs" / "made" / way / f"seed{seed}"),
        per_device_train_batch_size=32,
        eval_strategy=strategy,
        eval_steps=eval_steps,
        logging_strategy=strategy,
        logging_steps=eval_steps or 500,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        **lengths,
        **own,
    )
    trainer = AMPTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=held_out, compute_metrics=error_of_outputs
    )
    trainer.remove_callback(PrinterCallback)  # the progress bar of all trainings says enough
    seconds = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - seconds
    return {
        "error": 100 * trainer.evaluate(test, metric_key_prefix="test")["test_error"],
        "best_error": None,
        "seconds": seconds,
        "largest_radius": max(entry.get("amp_epsilon", 0.0) for entry in trainer.state.log_history),
    }


def error_of_outputs(prediction):
    """Share of wrong classes or characters, or, in a regression, of the variance of the values not explained."""
    outputs, labels = prediction.predictions, prediction.label_ids
    if outputs.ndim == 3:
        outputs, labels = outputs[:, :-1], labels[:, 1:]
    if outputs.ndim > 1:
        return {"error": float((outputs.argmax(-1) != labels).mean())}
    return {"error": float(((outputs - labels) ** 2).mean() / labels.var())}
