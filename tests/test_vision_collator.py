"""A batch is the images, augmented and normalised; the same images, whoever reads them, and however a run is cut up."""

import copy
import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from fake_cuda import CUDA, Recorder, fake_cuda
from tiny_images import REAL, image_split, own_cache
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_amp.vision import DecodedImages, EpochCallback, ImageCollator, load_image_dataset, normalisation
from hf_amp.vision.augment import autoaugment
from hf_amp.vision.augment import collator as collator_module
from hf_amp.vision.augment.plan import AUGMENTATIONS

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path / "cache")


def images_of(count=12, epoch=0, **options):
    images = DecodedImages(image_split(count), **options)
    if epoch is not None:
        images.set_epoch(epoch)
    return images


def collator_of(augmentation="autoaugment", **options):
    return ImageCollator("cifar10", **{"augmentation": augmentation, "mean": MEAN, "std": STD, **options})


def batch_of(images, collator, indices=range(12)):
    return collator(images.__getitems__(list(indices)))


@pytest.mark.parametrize("options", [{"augmentation": "none"}, {"augmentation": "cutout", "train": False}])
def test_without_augmentation_images_are_only_normalised(options):
    images = images_of(epoch=None)
    batch = batch_of(images, collator_of(**options, mixup_alpha=None if options.get("train", True) else 1.0))
    pixels = images.pixels(torch.arange(12)).double() / 255
    expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].is_contiguous()
    torch.testing.assert_close(batch["pixel_values"].double(), expected, rtol=0, atol=2e-6)
    assert batch["labels"].tolist() == [i % 3 for i in range(12)]


def test_squares_of_cutout_are_0_before_normalisation():
    images = images_of()
    batch = batch_of(images, collator_of("cutout"))["pixel_values"]
    plain = batch_of(images, collator_of("vanilla"))["pixel_values"]
    zero = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None].expand_as(plain)
    changed = (batch != plain).any(1, keepdim=True).expand_as(plain)
    assert changed.any()
    assert torch.equal(batch, torch.where(changed, zero, plain))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("mixup_alpha", [None, 1.0])
def test_per_image_transforms_give_the_same_batches(augmentation, mixup_alpha):
    fast = batch_of(images_of(), collator_of(augmentation, mixup_alpha=mixup_alpha))
    slow = batch_of(images_of(max_bytes=0), collator_of(augmentation, mixup_alpha=mixup_alpha, per_image=True))
    assert torch.equal(fast["pixel_values"], slow["pixel_values"])
    assert torch.equal(fast["labels"], slow["labels"])


@pytest.mark.parametrize("mixup_alpha", [None, 0.5])
def test_an_image_looks_the_same_in_every_batch(mixup_alpha):
    images, collator = images_of(), collator_of(mixup_alpha=mixup_alpha)
    whole = batch_of(images, collator)
    for indices in ([3], [11, 0, 3], [3, 3]):
        part = batch_of(images, collator, indices)
        assert torch.equal(part["pixel_values"], whole["pixel_values"][indices])
        assert torch.equal(part["labels"], whole["labels"][indices])
    one_by_one = collator([images[i] for i in range(12)])
    assert torch.equal(one_by_one["pixel_values"], whole["pixel_values"])


def test_seed_and_epoch_change_every_batch():
    images = images_of()
    base = batch_of(images, collator_of(seed=0))["pixel_values"]
    assert not torch.equal(batch_of(images, collator_of(seed=1))["pixel_values"], base)
    images.set_epoch(1)
    assert not torch.equal(batch_of(images, collator_of(seed=0))["pixel_values"], base)
    images.set_epoch(0)
    assert torch.equal(batch_of(images, collator_of(seed=0))["pixel_values"], base)


def test_mixup_mixes_each_image_with_another_of_the_data_set():
    images, plain = images_of(60), batch_of(images_of(60), collator_of("vanilla"), range(60))
    batch = batch_of(images, collator_of("vanilla", mixup_alpha=1.0), range(60))
    assert batch["labels"].shape == (60, 3)
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(60))
    values, partners = plain["pixel_values"].flatten(1), set()
    for i, mixed in enumerate(batch["pixel_values"].flatten(1)):
        if torch.allclose(mixed, values[i], atol=1e-4):  # its own partner
            continue
        found = []
        for j, other in enumerate(values):
            if j == i:
                continue
            difference = values[i] - other
            weight = float((mixed - other) @ difference / (difference @ difference))
            if torch.allclose(mixed, weight * values[i] + (1 - weight) * other, atol=1e-4):
                found.append((j, weight))
        assert len(found) == 1
        (j, weight), expected = found[0], torch.zeros(3)
        expected[plain["labels"][i]] += weight
        expected[plain["labels"][j]] += 1 - weight
        torch.testing.assert_close(batch["labels"][i], expected, rtol=0, atol=1e-3)
        partners.add(j)
    assert len(partners) > 25  # 60 draws of 60 give 38 different ones on average


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(workers, persistent):
    def epochs(**options):
        images = images_of(epoch=None)
        loader = DataLoader(images, batch_size=5, collate_fn=collator_of(mixup_alpha=1.0), **options)
        batches = []
        for epoch in range(3):
            images.set_epoch(epoch)
            batches.extend(batch["pixel_values"] for batch in loader)
        return torch.cat(batches)

    alone = epochs()
    assert torch.equal(epochs(num_workers=workers, persistent_workers=persistent), alone)
    assert not torch.equal(alone[:12], alone[12:24])


def test_copies_of_the_data_set_give_the_same_batches():
    images = images_of(epoch=4)
    expected = batch_of(images, collator_of())["pixel_values"]
    for other in (copy.deepcopy(images), pickle.loads(pickle.dumps(images))):
        assert torch.equal(batch_of(other, collator_of())["pixel_values"], expected)


def test_augmentation_for_an_unknown_epoch_is_refused():
    with pytest.raises(ValueError, match=r"every epoch would be augmented alike; add hf_amp.vision.EpochCallback\(\)"):
        batch_of(images_of(epoch=None), collator_of("vanilla"))
    with pytest.raises(ValueError, match=r"call dataset.set_epoch in your own loop"):
        batch_of(images_of(epoch=None), collator_of("none", mixup_alpha=1.0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10", {"augmentation": "strong"}, "must be one of vanilla, cutout, autoaugment, none, got 'strong'"),
        ("cifar10", {"mixup_alpha": -1.0}, "`mixup_alpha` must be >= 0, got -1.0; 0 switches MixUp off"),
        ("cifar10", {"mean": [0.5]}, r"`mean` and `std` go together, got \[0.5\] and None"),
        ("cifar10", {"mean": [0.5], "std": [0.0]}, "`std` must hold as many numbers > 0 as `mean`"),
        ("cifar10", {"mean": [0.5], "std": [1.0, 1.0]}, "`std` must hold as many numbers > 0 as `mean`"),
        ("cifar10", {"mean": [float("nan")], "std": [1.0]}, "`mean` must hold one finite number per channel"),
        ("someone/else", {}, "'someone/else' has no fixed mean and standard deviation.*compute them: normalisation"),
    ],
)
def test_arguments_outside_their_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        ImageCollator(name, **options)


def test_other_items_and_channels_are_refused():
    images = images_of()
    with pytest.raises(TypeError, match="takes items of DecodedImages, got dict; pass DecodedImages"):
        collator_of()([{"image": 1}])
    with pytest.raises(TypeError, match="got nothing"):
        collator_of()([])
    with pytest.raises(ValueError, match=r"a batch must come from one DecodedImages; join splits"):
        collator_of()([images[0], images_of()[0]])
    with pytest.raises(ValueError, match="images have 3 channels and `mean` 1; give `mean` and `std`"):
        batch_of(images, ImageCollator("digits"))


def test_published_normalisation_and_that_of_other_data():
    mean, std = normalisation("uoft-cs/cifar100")
    assert mean == pytest.approx((129.3 / 255, 124.1 / 255, 112.4 / 255))
    assert std == pytest.approx((68.2 / 255, 65.4 / 255, 70.4 / 255))
    images = images_of(30)
    mean, std = normalisation("someone/else", images)
    pixels = images.pixels(torch.arange(30)).double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    batch = batch_of(images, ImageCollator("someone/else", augmentation="none", mean=mean, std=std), range(30))
    assert batch["pixel_values"].mean((0, 2, 3)).abs().max() < 1e-5
    fixed = normalisation("digits")
    measured = normalisation("other", DecodedImages(load_image_dataset("digits")["train"]))
    for ours, theirs in zip(fixed, measured, strict=True):
        assert ours == pytest.approx(theirs, abs=0.05 / 255)


class Recording(nn.Module):
    """Keeps every batch that it sees in training."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(())), []

    def forward(self, pixel_values, labels=None):
        if self.training:
            self.seen.append(pixel_values.clone())
        return {"loss": (self.weight - 1) ** 2, "logits": pixel_values.flatten(1)[:, :3]}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = state.global_step == self.step


def train(folder, resume=False, stop=None, images=None, callbacks=(EpochCallback,), **options):
    """Two epochs of six batches; returns the batches that the model saw."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    model = Recording()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**{**settings, **options}),
        train_dataset=images or images_of(epoch=None),
        data_collator=collator_of(mixup_alpha=1.0, seed=3),
        callbacks=[callback() for callback in callbacks] + ([StopAt(stop)] if stop else []),
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.parametrize("unused", [True, False])
def test_each_epoch_of_a_trainer_is_augmented_anew(tmp_path, unused):
    seen = torch.cat(train(tmp_path, remove_unused_columns=unused))
    images, collator = images_of(), collator_of(mixup_alpha=1.0, seed=3)
    for epoch, found in enumerate(seen.split(12)):
        images.set_epoch(epoch)
        expected = batch_of(images, collator)["pixel_values"]
        matches = (found[:, None] == expected[None]).flatten(2).all(2)
        assert (matches.sum(0) == 1).all()


@pytest.mark.parametrize("stop", [4, 6, 9])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_what_the_whole_one_saw(tmp_path, stop, workers):
    whole = train(tmp_path / "whole")
    first = train(tmp_path / "cut", stop=stop, dataloader_num_workers=workers)
    second = train(tmp_path / "cut", resume=True, dataloader_num_workers=workers)
    assert len(first) == stop
    assert torch.equal(torch.cat(first + second), torch.cat(whole))


def test_micro_batches_see_what_the_whole_batch_saw(tmp_path):
    whole = train(tmp_path, per_device_train_batch_size=6)
    parts = train(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    assert torch.equal(torch.cat(parts), torch.cat(whole))


def test_a_resume_without_the_callback_is_refused_not_wrong(tmp_path):
    train(tmp_path, stop=9, callbacks=())
    with pytest.raises(ValueError, match=r"add hf_amp.vision.EpochCallback"):
        train(tmp_path, resume=True, callbacks=())


def shards(images, processes, batch_size):
    """The loaders of several processes, as Accelerate makes them for the Trainer."""
    Accelerator(cpu=True)
    loaders = []
    for rank in range(processes):
        loader = DataLoader(images, batch_size=batch_size, shuffle=True, collate_fn=collator_of())
        loaders.append(prepare_data_loader(loader, num_processes=processes, process_index=rank,
                                           use_seedable_sampler=True, data_seed=7))  # fmt: skip
    return loaders


@pytest.mark.parametrize("skipped", [0, 2])
def test_several_processes_see_what_one_saw_after_a_resume_too(skipped):
    images = images_of(epoch=None)

    def epoch_of(loader, epoch):
        state = TrainerState(epoch=epoch + skipped / 3)
        EpochCallback().on_epoch_begin(None, state, TrainerControl(), train_dataloader=loader)
        resumed = skip_first_batches(loader, skipped) if skipped else loader
        resumed.set_epoch(epoch)  # what the Trainer does
        return [batch["pixel_values"] for batch in resumed]

    (alone,) = (epoch_of(loader, 1) for loader in shards(images, 1, 4))
    images.set_epoch(0)  # stale, as in a process that has just started
    left, right = (epoch_of(loader, 1) for loader in shards(images, 2, 2))
    assert len(left) == 3 - skipped
    for whole, one, other in zip(alone, left, right, strict=True):
        assert torch.equal(torch.cat([one, other]), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_gpu_makes_the_batches_of_a_cpu(augmentation):
    collator = collator_of(augmentation, mixup_alpha=1.0)
    expected = batch_of(images_of(), collator)
    images = images_of().to("cuda")
    batch = batch_of(images, collator)
    assert batch["pixel_values"].device.type == batch["labels"].device.type == "cuda"
    torch.testing.assert_close(batch["pixel_values"].cpu(), expected["pixel_values"], rtol=0, atol=1 / 255 / 0.2 + 1e-5)
    torch.testing.assert_close(batch["labels"].cpu(), expected["labels"])
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch_of(images, collator)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mixup_alpha", [None, 1.0])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_batch_of_images_on_a_gpu_is_made_there_without_a_wait(monkeypatch, augmentation, mixup_alpha):
    images, collator = images_of(), collator_of(augmentation, mixup_alpha=mixup_alpha)
    monkeypatch.setattr(DecodedImages, "epoch", 0)
    # The one thing that comes from the host, from pinned memory, which fake tensors cannot have.
    on_device = {"dtype": torch.int64, "device": CUDA}
    monkeypatch.setattr(DecodedImages, "place", lambda self, indices: torch.zeros(len(indices), **on_device))
    with fake_cuda():
        images._pixels = torch.zeros(images._pixels.shape, dtype=torch.uint8, device=CUDA)
        images.labels = torch.zeros(len(images), **on_device)
        try:
            batch_of(images, collator)  # tables are copied to the device once
            selections = images.__getitems__(list(range(12)))
            with Recorder() as recorder:
                batch = collator(selections)
        finally:
            for table in (collator_module._scale_and_shift, autoaugment._policy_table):
                table.cache_clear()
    assert batch["pixel_values"].device == batch["labels"].device == CUDA
    assert recorder.kernels


def test_workers_cannot_use_a_gpu(monkeypatch):
    images = images_of()
    images.labels = images.labels.to("meta")
    monkeypatch.setattr("hf_amp.vision.data.decoded.get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="worker processes cannot use; set dataloader_num_workers=0"):
        batch_of(images, collator_of())


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_real_images_are_normalised_to_about_0_and_1():
    split = load_image_dataset("cifar10", path=REAL / "cifar10-small", max_train_samples=1000)["train"]
    batch = batch_of(DecodedImages(split), ImageCollator("cifar10", augmentation="none"), range(1000))
    assert batch["pixel_values"].mean((0, 2, 3)).abs().max() < 0.05
    assert (batch["pixel_values"].std((0, 2, 3)) - 1).abs().max() < 0.05
