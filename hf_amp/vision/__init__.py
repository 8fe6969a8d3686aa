"""Data sets, a fast data path, augmentation and image processors for image classification.

splits = load_image_dataset("cifar10", validation_fraction=0.1)   # train, validation, test: image, label
train = DecodedImages(splits["train"])                            # decoded once, cached on disk
mean, std = normalisation("cifar10", train)                       # the paper's, or computed
collator = ImageCollator("cifar10", augmentation="cutout", mean=mean, std=std, seed=0)
processor = make_image_processor("cifar10", 32, mean=mean, std=std)
Trainer(train_dataset=train, data_collator=collator, callbacks=[EpochCallback()], ...)

Four wings, of which each knows those before it only: `data`, `augment`, `train`, `report`.
"""

from hf_amp.vision.augment.collator import ImageCollator
from hf_amp.vision.augment.plan import AUGMENTATIONS
from hf_amp.vision.data.decoded import DecodedImages, ImageSelection
from hf_amp.vision.data.labels import add_label_noise
from hf_amp.vision.data.load import load_image_dataset
from hf_amp.vision.data.normalisation import make_image_processor, normalisation
from hf_amp.vision.train.callbacks import EpochCallback

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
