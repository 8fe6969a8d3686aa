"""Data sets, a fast data path, augmentation and image processors for image classification.

splits = load_image_dataset("cifar10", validation_fraction=0.1)   # train, validation, test: image, label
train = DecodedImages(splits["train"])                            # decoded once, cached on disk
mean, std = normalisation("cifar10", train)                       # the paper's, or computed
collator = ImageCollator("cifar10", augmentation="cutout", mean=mean, std=std, seed=0)
processor = make_image_processor("cifar10", 32, mean=mean, std=std)
Trainer(train_dataset=train, data_collator=collator, callbacks=[EpochCallback()], ...)
"""

from hf_amp.vision.augmentation import AUGMENTATIONS
from hf_amp.vision.collator import ImageCollator
from hf_amp.vision.datasets import load_image_dataset
from hf_amp.vision.decoded import DecodedImages, ImageSelection
from hf_amp.vision.epoch_callback import EpochCallback
from hf_amp.vision.image_processor import make_image_processor
from hf_amp.vision.normalisation import normalisation
from hf_amp.vision.splits import add_label_noise

__all__ = [
    "AUGMENTATIONS",
    "DecodedImages",
    "EpochCallback",
    "ImageCollator",
    "ImageSelection",
    "add_label_noise",
    "load_image_dataset",
    "make_image_processor",
    "normalisation",
]
