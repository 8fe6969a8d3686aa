"""How training images are changed: random crops, mirroring, Cutout, AutoAugment, MixUp, on whole batches."""
