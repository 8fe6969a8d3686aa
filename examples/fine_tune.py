"""Fine-tune any image classifier of the Hub on any image data set, with adversarial model perturbation (AMP).

python examples/fine_tune.py --dataset uoft-cs/cifar10 --model google/vit-base-patch16-224-in21k
python examples/fine_tune.py --dataset path/to/folder --model facebook/convnext-tiny-224 --peft --amp_epsilon 0.1
python examples/fine_tune.py --dataset user/birds --model microsoft/resnet-50 --push_to_hub --hub_model_id user/birds

A folder holds <split>/<class>/<image>, or parquet files. All flags of TrainingArguments work, and those of AMP:
--amp_epsilon 0 is plain training; without it, the radius follows the loss on the images that are evaluated after each
epoch. These are the validation split, or the test split: --hold_out 0.1 keeps the latter for a test.
"""

import sys
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import ImageOps
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, HfArgumentParser, set_seed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hf_amp.models  # noqa: F401 - registers the networks of this library with the Auto classes
from hf_amp import AMPTrainer, AMPTrainingArguments
from hf_amp.hub.access import PublishingError
from hf_amp.vision import load_image_dataset
from hf_amp.vision.data.pixels import read_images
from hf_amp.vision.report.metrics import compute_metrics, keep_logits
from hf_amp.vision.train.command_line import HelpFormatter


@dataclass
class Choice:
    dataset: str = field(metadata={"help": "Hub id, a name such as cifar10 or digits, or a local folder."})
    model: str = field(metadata={"help": "Hub id or folder of an image classifier."})
    peft: bool = field(default=False, metadata={"help": "Train low-rank adapters (LoRA) and the classifier only."})
    hold_out: float = field(default=0.0, metadata={"help": "Share of the training images to evaluate on."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Keep that many training images."})


def load_splits(choice, seed):
    """Training images and those to evaluate on, with columns `image` and `label`, all of which can be read."""
    if not 0 <= choice.hold_out < 1:
        raise ValueError(f"`hold_out` must be in [0, 1), got {choice.hold_out:g}; 0.1 holds out a tenth")
    options = {"max_train_samples": choice.max_train_samples, "validation_fraction": choice.hold_out, "seed": seed}
    splits = load_image_dataset(choice.dataset, **options)
    used = [splits["train"], splits["validation" if "validation" in splits else "test"]]
    for split in used:
        for i in tqdm(range(len(split)), desc="looking at images"):  # one that is damaged would end the training
            read_images(split, [i])
    return used


def prepare(rows, processor, mirror):
    """Images as the model wants them; while training every second one is mirrored."""
    images = [image.convert("RGB") for image in rows["image"]]
    if mirror:
        images = [ImageOps.mirror(image) if torch.rand(()) < 0.5 else image for image in images]
    return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"], "labels": rows["label"]}


def load_model(choice, names):
    """The model with a new classifier for these classes, all of it to train or, with PEFT, little adapters only."""
    model = AutoModelForImageClassification.from_pretrained(
        choice.model,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    if choice.peft:
        from peft import LoraConfig, get_peft_model

        layers = [name for name, module in model.named_modules() if takes_adapter(module)]
        head = [name for name in layers if model.get_submodule(name).weight.shape[0] == len(names)][-1:]
        adapted = [name for name in layers if name not in head]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=adapted, modules_to_save=head))
    # Image classifiers take `num_items_in_batch` and ignore it: huggingface/transformers#47688
    model.accepts_loss_kwargs = False
    return model


def takes_adapter(module):
    return isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.groups == 1)


def main(argv=None):
    parser = HfArgumentParser((Choice, AMPTrainingArguments), description=__doc__, formatter_class=HelpFormatter)
    # `prepare` needs the column `image`
    parser.set_defaults(output_dir="outputs/fine_tune", eval_strategy="epoch", remove_unused_columns=False)
    try:
        choice, args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        set_seed(args.seed)
        train, evaluation = load_splits(choice, args.seed)
        processor = AutoImageProcessor.from_pretrained(choice.model)
        trainer = AMPTrainer(
            model=load_model(choice, train.features["label"].names),
            args=args,
            train_dataset=train.with_transform(partial(prepare, processor=processor, mirror=True)),
            eval_dataset=evaluation.with_transform(partial(prepare, processor=processor, mirror=False)),
            processing_class=processor,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=keep_logits,
        )
    except (ValueError, OSError, PublishingError) as error:  # what the user can correct
        sys.exit(f"error: {error}")

    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    print({name: round(value, 4) for name, value in metrics.items()})
    return metrics


if __name__ == "__main__":
    main()
