"""Making a batch of images on a device: milliseconds until it is there, and of the host's work. See gpu_minutes.sh."""

import argparse
import json
import time
from pathlib import Path

import torch

from hf_amp.vision import DecodedImages, ImageCollator, load_image_dataset

WARM_UP = 5  # batches


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with the parquet files of CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--images", type=int, help="use so many images only")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def now():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    split = load_image_dataset("cifar10", path=options.data, max_train_samples=options.images)["train"]
    loaded = now()
    images = DecodedImages(split)
    decoded = now()
    images.to(device).set_epoch(0)
    result = {
        "device": device,
        "images": len(images),
        "load_seconds": loaded - started,
        "decode_seconds": decoded - loaded,
        "to_device_seconds": now() - decoded,
    }
    order = torch.randperm(len(images)).tolist()
    starts = range(0, len(order) - options.batch_size + 1, options.batch_size)
    batches = [order[i : i + options.batch_size] for i in starts][: options.batches]
    for augmentation in ("vanilla", "cutout", "autoaugment"):
        collate = ImageCollator("cifar10", augmentation=augmentation)
        for batch in batches[:WARM_UP]:
            collate(images.__getitems__(batch))
        began = now()
        for batch in batches:
            collate(images.__getitems__(batch))
        host = time.perf_counter()
        result[augmentation] = {
            "ms": 1e3 * (now() - began) / len(batches),
            "host_ms": 1e3 * (host - began) / len(batches),
        }
    options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
