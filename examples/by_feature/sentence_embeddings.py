"""AMP with sentence-transformers: pairs of sentences, the other pairs of the batch as negatives.

A tiny BERT with a tokenizer of its own learns made-up questions and answers; no network is needed. --model ID takes
one of the Hub.

    python examples/by_feature/sentence_embeddings.py --output_dir outputs/pairs --amp_epsilon 0.1
"""

import tempfile
from dataclasses import dataclass

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, HfArgumentParser, PreTrainedTokenizerFast

from hf_amp import AMPArguments, AMPTrainerMixin

COLOURS, THINGS = ("red", "blue", "green", "black"), ("cat", "dog", "house", "fish", "bird", "tree", "boat", "book")


class AMPSentenceTransformerTrainer(AMPTrainerMixin, SentenceTransformerTrainer):
    pass


@dataclass
class Arguments(AMPArguments, SentenceTransformerTrainingArguments):
    model: str | None = None  # of the Hub; None: a tiny one, made here


def pairs():
    named = [(colour, thing) for colour in COLOURS for thing in THINGS] * 4
    return Dataset.from_dict(
        {"question": [f"where is the {c} {t}" for c, t in named], "answer": [f"here is a {t} in {c}" for c, t in named]}
    )


def tiny_model():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "the", "here", "a", "in", *COLOURS, *THINGS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(32)])


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    model = SentenceTransformer(args.model) if args.model else tiny_model()
    loss = MultipleNegativesRankingLoss(model)
    AMPSentenceTransformerTrainer(model=model, args=args, train_dataset=pairs(), loss=loss).train()


if __name__ == "__main__":
    main()
