"""The trainers of other libraries on tiny models, each with its data, its arguments and what to perturb.

`KINDS[name](folder, method, **arguments)` makes a trainer: `method` is "plain" (the library's class), "amp" (the mixin
before it) or "by_hand" (two passes written out, see `by_hand.py`).
"""

import functools
from dataclasses import dataclass

import torch
from by_hand import two_passes_by_hand
from peft import LoraConfig, get_peft_model
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as ranking
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny import TINY_SETTINGS
from tiny_text import (
    Sentences,
    judged,
    pairs,
    preferences,
    save_tiny_bert,
    save_tiny_classifier,
    texts,
    tiny_llama,
    tiny_reward_llama,
    tiny_t5,
    tokenizer,
)
from torch.utils.data import StackDataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments, set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from hf_amp import AMPArguments, AMPTrainerMixin

EPSILON = 0.1
COMMON = TINY_SETTINGS | {"max_steps": 4, "learning_rate": 0.05}


def refusal(check, trainer):
    """What a check of `hf_amp` says of a trainer that AMP does not support; None if it does."""
    try:
        check(trainer)
    except NotImplementedError as error:
        return str(error)
    return None


@functools.cache
def amp_class(plain):
    return type(f"AMP{plain.__name__}", (AMPTrainerMixin, plain), {})


@functools.cache
def amp_arguments_class(plain):
    made = dataclass(type(f"AMP{plain.__name__}", (AMPArguments, plain), {"__module__": __name__}))
    globals()[made.__name__] = made  # a checkpoint holds its arguments, and pickles them by name
    return made


def trainer_of(folder, method, trainer_class, arguments_class, arguments, **passed):
    arguments = COMMON | {"output_dir": str(folder)} | arguments
    epsilon = arguments.pop("amp_epsilon", EPSILON)
    share = arguments.pop("amp_ascent_fraction", 1.0)
    if method == "amp":
        trainer_class, arguments_class = amp_class(trainer_class), amp_arguments_class(arguments_class)
        arguments |= {"amp_epsilon": epsilon, "amp_ascent_fraction": share}
    if method == "by_hand":
        trainer_class = two_passes_by_hand(trainer_class, epsilon, share)
    return trainer_class(args=arguments_class(**arguments), **passed)


def lora(**more):
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, **more)


# --- trl ---

TRL = {"bf16": False, "gradient_checkpointing": False}


def sft(folder, method, peft_config=None, model=None, **arguments):
    passed = {"peft_config": peft_config, "processing_class": tokenizer(), "train_dataset": texts(64)}
    return trainer_of(folder, method, SFTTrainer, SFTConfig, TRL | arguments, model=model or tiny_llama(), **passed)


def dpo(folder, method, peft_config=None, **arguments):
    reference = None if peft_config else tiny_llama(seed=1)
    passed = {"ref_model": reference, "peft_config": peft_config, "processing_class": tokenizer()}
    data = {"train_dataset": preferences()}
    return trainer_of(folder, method, DPOTrainer, DPOConfig, TRL | arguments, model=tiny_llama(), **passed, **data)


def reward(folder, method, **arguments):
    passed = {"processing_class": tokenizer(), "train_dataset": preferences()}
    return trainer_of(folder, method, RewardTrainer, RewardConfig, TRL | arguments, model=tiny_reward_llama(), **passed)


def kto(folder, method, **arguments):
    passed = {"ref_model": tiny_llama(seed=1), "processing_class": tokenizer(), "train_dataset": judged()}
    return trainer_of(folder, method, KTOTrainer, KTOConfig, TRL | arguments, model=tiny_llama(), **passed)


def tpo(folder, method, **arguments):
    data = preferences().map(lambda row: {"reference": row["chosen"] + " dog"})
    passed = {"model": tiny_llama(), "processing_class": tokenizer(), "train_dataset": data}
    return trainer_of(folder, method, TPOTrainer, TPOConfig, TRL | arguments, **passed)


def without_reference(folder, method, classes, **arguments):
    passed = {"model": tiny_llama(), "processing_class": tokenizer(), "train_dataset": preferences()}
    return trainer_of(folder, method, *classes, TRL | {"remove_unused_columns": False} | arguments, **passed)


# --- sentence-transformers ---


def embedder(folder):
    return SentenceTransformer(modules=[Transformer(save_tiny_bert(folder / "model")), Pooling(16)], device="cpu")


def embeddings(folder, method, loss_of, data, **arguments):
    model = embedder(folder)
    set_seed(2)  # losses may have parameters
    return trainer_of(
        folder,
        method,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        arguments,
        model=model,
        loss=loss_of(model),
        train_dataset=data,
    )


def mnrl(folder, method, **arguments):
    return embeddings(folder, method, losses.MultipleNegativesRankingLoss, pairs(), **arguments)


def cached_mnrl(folder, method, **arguments):
    loss = functools.partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=3)
    return embeddings(folder, method, loss, pairs(), **arguments)


def gathered_mnrl(folder, method, **arguments):
    """The pairs of all processes are negatives, as those of one larger batch are."""
    loss = functools.partial(losses.MultipleNegativesRankingLoss, gather_across_devices=True)
    return embeddings(folder, method, loss, pairs(), **arguments)


def cosine(folder, method, **arguments):
    data = pairs(label=[i % 5 / 4 for i in range(32)])
    return embeddings(folder, method, losses.CosineSimilarityLoss, data, **arguments)


def softmax_loss(folder, method, **arguments):
    """Its classifier is in the optimizer and not in the model."""
    loss = functools.partial(losses.SoftmaxLoss, embedding_dimension=16, num_labels=3)
    return embeddings(folder, method, loss, pairs(label=[i % 3 for i in range(32)]), **arguments)


def triplets_of_a_batch(folder, method, **arguments):
    data = Sentences(32).table("sentence", label=[i % 3 for i in range(32)])
    return embeddings(folder, method, losses.BatchAllTripletLoss, data, **arguments)


def reranker(folder, method, loss_of, data, **arguments):
    model = CrossEncoder(save_tiny_classifier(folder / "model"), num_labels=1, device="cpu")
    classes = CrossEncoderTrainer, CrossEncoderTrainingArguments
    return trainer_of(folder, method, *classes, arguments, model=model, loss=loss_of(model), train_dataset=data)


def cross_encoder(folder, method, **arguments):
    data = Sentences(32).table("query", "document", label=[float(i % 2) for i in range(32)])
    return reranker(folder, method, ranking.BinaryCrossEntropyLoss, data, **arguments)


def cross_encoder_lists(folder, method, **arguments):
    sentences = Sentences(32)
    documents = [[sentences.one() for _ in range(2 + i % 3)] for i in range(32)]
    labels = [[1.0] + [0.0] * (len(found) - 1) for found in documents]
    data = sentences.table("query", documents=documents, labels=labels)
    return reranker(folder, method, ranking.LambdaLoss, data, **arguments)


# --- PEFT and transformers ---


def peft(folder, method, **arguments):
    use_dora = arguments.pop("use_dora", False)
    model = get_peft_model(tiny_reward_llama(), lora(task_type="SEQ_CLS", use_dora=use_dora))
    tokens = torch.randint(5, 19, (32, 8), generator=torch.Generator().manual_seed(0))
    data = StackDataset(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens[:, :1].float() / 20)
    return trainer_of(folder, method, Trainer, TrainingArguments, arguments, model=model, train_dataset=data)


def seq2seq(folder, method, **arguments):
    tokens = torch.randint(5, 19, (32, 6), generator=torch.Generator().manual_seed(0))
    data = StackDataset(input_ids=tokens, labels=tokens.flip(1))
    classes = Seq2SeqTrainer, Seq2SeqTrainingArguments
    return trainer_of(folder, method, *classes, arguments, model=tiny_t5(), train_dataset=data)


KINDS = {
    "SFT": sft,
    "SFT, LoRA": functools.partial(sft, peft_config=lora(task_type="CAUSAL_LM")),
    "SFT, packing": functools.partial(sft, packing=True, max_length=16, per_device_train_batch_size=4),
    "DPO": dpo,
    "DPO, LoRA": functools.partial(dpo, peft_config=lora(task_type="CAUSAL_LM")),
    "DPO, reference computed before": functools.partial(dpo, precompute_ref_log_probs=True),
    "Reward": reward,
    "KTO": kto,
    "CPO": functools.partial(without_reference, classes=(CPOTrainer, CPOConfig)),
    "ORPO": functools.partial(without_reference, classes=(ORPOTrainer, ORPOConfig)),
    "TPO": tpo,
    "MultipleNegativesRanking": mnrl,
    "CachedMultipleNegativesRanking": cached_mnrl,
    "SoftmaxLoss": softmax_loss,
    "CrossEncoder": cross_encoder,
    "CrossEncoder, lists": cross_encoder_lists,
    "PEFT, LoRA": peft,
    "PEFT, DoRA": functools.partial(peft, use_dora=True),
    "Seq2Seq": seq2seq,
}

# Losses that are the same however the batch is split; that of in-batch negatives is, if all processes share them.
SEVERAL_PROCESSES = {"CosineSimilarity": cosine, "MultipleNegativesRanking, gathered": gathered_mnrl}
