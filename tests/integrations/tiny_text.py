"""Tiny random language models, a tokenizer and data sets of a few words: made on the spot, no network."""

import random

from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "</s>"}
WORDS = ["a", "the", "cat", "dog", "bird", "fish", "sees", "likes", "eats", "red", "blue", "small", "big", "house"]


def tokenizer():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **SPECIAL)


def tiny_llama(cls=LlamaForCausalLM, seed=0, **config):
    set_seed(seed)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    return cls(LlamaConfig(**heads, **sizes, pad_token_id=0, eos_token_id=4, bos_token_id=4, **config))


def tiny_reward_llama():
    return tiny_llama(LlamaForSequenceClassification, num_labels=1)


def save_tiny_bert(folder, cls=BertModel, seed=0, **config):
    """Save a BERT and its tokenizer, as sentence-transformers loads them; without dropout, so that passes repeat."""
    set_seed(seed)
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    model = cls(BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes, **dropout, **config))
    model.config.architectures = [cls.__name__]
    folder.mkdir(parents=True)
    # `save_pretrained` would save in one process alone
    model.config.to_json_file(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(folder)
    return str(folder)


def save_tiny_classifier(folder):
    return save_tiny_bert(folder, BertForSequenceClassification, num_labels=1)


def tiny_t5(seed=0):
    set_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer()), **sizes, **ids))


class Sentences:
    """Random sentences; the same for the same seed."""

    def __init__(self, count=32, seed=0):
        self.count, self.random = count, random.Random(seed)

    def one(self):
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(3, 8)))

    def column(self):
        return [self.one() for _ in range(self.count)]

    def table(self, *names, **more):
        return Dataset.from_dict({name: self.column() for name in names} | more)


def texts(count=32):
    return Sentences(count).table("text")


def preferences(count=32):
    """Prompts with a chosen and a rejected continuation; a space keeps prompt and continuation apart."""
    table = Sentences(count).table("prompt", "chosen", "rejected")
    return table.map(lambda row: {key: f" {row[key]}" for key in ("chosen", "rejected")})


def judged(count=32):
    return Sentences(count).table("prompt", "completion", label=[i % 2 == 0 for i in range(count)])


def pairs(count=32, **more):
    return Sentences(count).table("anchor", "positive", **more)
