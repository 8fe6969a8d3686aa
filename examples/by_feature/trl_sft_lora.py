"""AMP with trl: supervised fine-tuning of a language model with LoRA, whose matrices are what is perturbed.

A tiny Llama with a tokenizer of its own learns made-up sentences; no network is needed. With a model of the Hub:

    python examples/by_feature/trl_sft_lora.py --output_dir outputs/sft --model Qwen/Qwen3-0.6B --amp_epsilon 0.05
"""

from dataclasses import dataclass

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, TrlParser

from hf_amp import AMPArguments, AMPTrainerMixin

WORDS = ("the cat sees", "a dog likes", "small fish eat", "the bird", "a big house", "red and blue")


class AMPSFTTrainer(AMPTrainerMixin, SFTTrainer):
    pass


@dataclass
class Arguments(AMPArguments, SFTConfig):
    model: str | None = None  # of the Hub; None: a tiny one, made here


def sentences(count=256):
    return Dataset.from_dict({"text": [f"{WORDS[i % 3]} {WORDS[3 + i % 2]} {WORDS[5]}" for i in range(count)]})


def tiny_model():
    words = sorted({word for part in WORDS for word in part.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "</s>", *words])}, "[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="</s>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    return LlamaForCausalLM(config), tokenizer


def main():
    (args,) = TrlParser(Arguments).parse_args_and_config()
    if args.model is None:
        model, tokenizer = tiny_model()
    else:
        model, tokenizer = (cls.from_pretrained(args.model) for cls in (AutoModelForCausalLM, AutoTokenizer))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    AMPSFTTrainer(
        model=model, args=args, train_dataset=sentences(), processing_class=tokenizer, peft_config=lora
    ).train()


if __name__ == "__main__":
    main()
