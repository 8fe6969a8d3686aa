"""AMP with another Trainer subclass: put the mixin before it, and `AMPArguments` before its arguments.

A tiny T5 learns to reverse sequences; no network is needed. All arguments can be given on the command line:

    python examples/by_feature/any_trainer.py --output_dir outputs/any_trainer --amp_epsilon 0.02 --max_steps 300
"""

from dataclasses import dataclass

import torch
from torch.utils.data import StackDataset
from transformers import (
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_amp import AMPArguments, AMPTrainerMixin

VOCABULARY, LENGTH, PAD = 20, 6, 0


class AMPSeq2SeqTrainer(AMPTrainerMixin, Seq2SeqTrainer):
    pass


@dataclass
class Arguments(AMPArguments, Seq2SeqTrainingArguments):
    pass


def reversals(count, seed):
    """Sequences of tokens 1 … 19, and the same backwards."""
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return StackDataset(input_ids=tokens, labels=tokens.flip(1))


def tiny_t5():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=PAD, **sizes)
    )


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    set_seed(args.seed)
    trainer = AMPSeq2SeqTrainer(
        model=tiny_t5(), args=args, train_dataset=reversals(512, seed=0), eval_dataset=reversals(128, seed=1)
    )
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
