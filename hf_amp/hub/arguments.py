"""The training argument of publishing, and the training arguments of `AMPTrainer`: those of AMP and this one."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_amp.training_args import AMPArguments


@dataclass
class PublishingArguments:
    """Mixin of the field that `PublishingMixin` reads; put it before a dataclass of training arguments.

        @dataclass
        class Config(PublishingArguments, Seq2SeqTrainingArguments): ...

        args = Config("out", hub_check=False)

    Args:
        hub_check: with `push_to_hub`, ask the Hub before training whether the token may write to the repository.
    """

    hub_check: bool = field(
        default=True,
        metadata={"help": "With push_to_hub: check before training that the token can write to the repository."},
    )


@dataclass
class AMPTrainingArguments(AMPArguments, PublishingArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the fields of `AMPArguments` and `PublishingArguments`, see there.

        args = AMPTrainingArguments("out", amp_ascent_fraction=0.06, amp_norm_stats="descent")

    On a command line they are flags: `HfArgumentParser(AMPTrainingArguments)`.
    """
