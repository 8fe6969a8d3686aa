"""What is known of one split is checked in all, before training; a name and a record say which data they are of."""

import pytest
from commands import TINY, classify
from PIL import Image
from tiny_images import image_split, own_cache, random_images, write_folder, write_parquet

from hf_amp.models import PreActResNetConfig, PreActResNetForImageClassification
from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import DataArguments, Images
from hf_amp.vision.train.trainer import ImageTrainer

SPLITS = ("train", "validation", "test")

MINE = [word for word in TINY if word not in ("--dataset", "digits", "--max_train_samples", "60")]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path / "cache")


def written(folder, train=None, test=None, count=12):
    """A data set of two splits in parquet files, each with its own options."""
    splits = {name: image_split(count, **(options or {})) for name, options in (("train", train), ("test", test))}
    return str(write_parquet(folder, **splits))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            {"bands": 1},
            None,
            r"in grey in 'train' and 8×8 pixels in colour in 'test'; give `image_mode` \(`--image_m",
        ),
        (None, {"bands": 1}, r"in colour in 'train' and 8×8 pixels in grey in 'test'; give `image_mode`"),
        (None, {"size": (9, 9)}, r"'train' and 9×9 pixels in colour in 'test'; give `image_size` \(`--image_size 8"),
    ],
)
def test_images_of_other_kinds_in_another_split_are_refused(tmp_path, train, test, message):
    data = DataArguments(dataset_path=written(tmp_path / "data", train, test))
    with pytest.raises(ValueError, match=message):
        Images(data)


@pytest.mark.parametrize(("mode", "channels"), [("grey", 1), ("rgb", 3)])
def test_image_mode_makes_all_splits_alike(tmp_path, mode, channels):
    data = DataArguments(dataset_path=written(tmp_path / "data", None, {"bands": 1}), image_mode=mode)
    images = Images(data)
    assert images.num_channels == channels
    assert images.test.pixel_shape == (channels, 8, 8)
    expected = image_split(12)[5]["image"].convert("L" if channels == 1 else "RGB")
    pixels = images.for_seed(0, data, ImageTrainingArguments(use_cpu=True, method="erm")).train._pixels[5]
    assert bytes(pixels.permute(1, 2, 0).flatten().tolist()) == expected.tobytes()


def test_a_mixed_split_is_refused_with_the_flag_that_helps(tmp_path):
    mixed = {"images": [*random_images(3, bands=1), *random_images(9)]}
    folder = written(tmp_path / "data", mixed, {"bands": 1})
    with pytest.raises(ValueError, match=r"image 3 of split 'train' is in colour .*`--image_mode rgb` or `grey`"):
        Images(DataArguments(dataset_path=folder))
    assert Images(DataArguments(dataset_path=folder, image_mode="grey")).num_channels == 1


def test_an_image_that_cannot_be_read_is_named_with_split_and_path(tmp_path):
    folder = write_folder(tmp_path / "images")
    (folder / "test" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 4 of split 'test' \(.*test/dog/1.png\) cannot be read"):
        Images(DataArguments(dataset_path=str(folder)))


def test_a_name_is_never_a_path_and_local_data_have_their_own():
    assert DataArguments().dataset == "cifar10"
    local = DataArguments(dataset_path="some/pets")
    assert (local.dataset, local.dataset_path, local.augmentation) == ("pets", "some/pets", "none")
    assert DataArguments(dataset_path="/data/cifar10").dataset == "cifar10_folder"
    given = DataArguments(dataset="/data/pets")
    assert (given.dataset, given.dataset_path) == ("pets", "/data/pets")
    assert DataArguments(dataset="cifar10", dataset_path="/data/cifar10").dataset == "cifar10"


def test_other_data_under_a_known_name_are_refused(tmp_path):
    folder = written(tmp_path / "data")
    with pytest.raises(ValueError, match="`dataset` 'cifar10' has 10 classes, and these images have 3; give another"):
        Images(DataArguments(dataset="cifar10", dataset_path=folder))


def test_images_of_another_kind_under_a_known_name_are_refused(tmp_path):
    splits = {name: image_split(20, classes=10, bands=1) for name in ("train", "test")}
    folder = str(write_parquet(tmp_path / "data", **splits))
    with pytest.raises(ValueError, match="'cifar10' has rgb images, and these are grey; give --image_mode rgb, or ano"):
        Images(DataArguments(dataset="cifar10", dataset_path=folder))
    assert Images(DataArguments(dataset="cifar10", dataset_path=folder, image_mode="rgb")).num_channels == 3


def test_one_class_is_refused(tmp_path):
    folder = write_folder(tmp_path / "pets", classes=("cat",))
    with pytest.raises(ValueError, match="`dataset` 'pets' has one class, 'cat', and there must be two at least; add"):
        Images(DataArguments(dataset=str(folder)))


def test_the_card_of_local_images_claims_no_known_data_set_and_no_place(tmp_path):
    folder = write_folder(tmp_path / "pets", per_class=10)
    classify(tmp_path / "out", "--dataset", str(folder), "--num_train_epochs", "1", base=MINE)
    card = (tmp_path / "out" / "seed_42" / "README.md").read_text()
    assert "for images of pets (local files)" in card
    assert "cifar" not in card.lower().partition("## citation")[0]
    assert str(tmp_path) not in card


def test_a_run_never_mixes_two_states_of_its_data(tmp_path):
    folder = write_folder(tmp_path / "pets", per_class=10)
    flags = ("--dataset", str(folder), "--num_train_epochs", "1")
    first = classify(tmp_path / "out", *flags, base=MINE)
    assert {"train images", "test images"} <= set(first["settings"])
    moved = folder.rename(tmp_path / "moved")
    again = classify(tmp_path / "out", "--dataset", str(folder), "--dataset_path", str(moved), *flags[2:], base=MINE)
    assert again["runs"] == first["runs"]  # the same images in another place
    Image.new("RGB", (8, 8)).save(moved / "test" / "cat" / "new.png")
    with pytest.raises(SystemExit, match=r"holds a run with other settings \(test images: "):
        classify(tmp_path / "out", "--dataset", "pets", "--dataset_path", str(moved), *flags[2:], base=MINE)


def test_labels_of_others_are_trained_on_reported_and_recorded(tmp_path, capsys):
    data = written(tmp_path / "data", count=60)
    labels = tmp_path / "people.csv"
    labels.write_text("worst\n" + "".join(f"{(i + (i < 15)) % 3}\n" for i in range(60)))
    flags = ("--dataset_path", data, "--train_labels", f"{labels}:worst", "--num_train_epochs", "1", "--method", "erm")
    results = classify(tmp_path / "out", *flags, base=MINE)
    noise = results["runs"][0]["label_noise"]
    assert (noise["changed"], noise["of"], noise["labels_of"]) == (15, 60, "people.csv:worst")
    assert "60 training with labels of people.csv:worst, 25.0% of which differ" in capsys.readouterr().out
    card = (tmp_path / "out" / "seed_42" / "README.md").read_text()
    assert "The training labels are those of people.csv:worst, not the data set's own." in card
    assert "| training labels | 25.0% are not the data set's own |" in card
    assert "label noise" not in card
    own = classify(tmp_path / "own", *flags[:2], *flags[4:], base=MINE)
    assert own["settings"]["train images"] != results["settings"]["train images"]
    assert own["settings"]["test images"] == results["settings"]["test images"]
    with pytest.raises(SystemExit, match="`train_labels` and `label_noise` exclude each other"):
        classify(tmp_path / "both", *flags, "--label_noise", "0.1", base=MINE)


def test_label_noise_is_in_what_is_held_out_from_the_training_images_and_in_no_other_split(tmp_path):
    folder = written(tmp_path / "data", count=100)
    training = ImageTrainingArguments(use_cpu=True, method="erm")
    noisy = DataArguments(dataset_path=folder, validation_fraction=0.3, label_noise=0.4)
    clean = DataArguments(dataset_path=folder, validation_fraction=0.3)
    splits = [Images(data).for_seed(1, data, training) for data in (noisy, clean)]
    differ = [int((getattr(splits[0], name).labels != getattr(splits[1], name).labels).sum()) for name in SPLITS]
    assert differ == [round(0.4 * len(splits[1].train)), round(0.4 * len(splits[1].validation)), 0]


def test_label_noise_leaves_a_validation_split_that_is_tested_on_as_it_is(tmp_path):
    folder = str(write_parquet(tmp_path / "data", train=image_split(60)))
    data = DataArguments(dataset_path=folder, validation_fraction=0.5, label_noise=0.4)
    split = Images(data).for_seed(1, data, ImageTrainingArguments(use_cpu=True, method="erm"))
    assert split.validation is None
    assert sorted(split.test.labels.tolist()) == sorted([0, 1, 2] * 10)
    assert split.label_noise["changed"] == 12


def test_the_radius_follows_held_out_images_and_never_the_test_images(tmp_path, caplog):
    words = [word for word in MINE if word not in ("--amp_epsilon", "0.5")]
    data = ("--dataset_path", written(tmp_path / "data", count=60), "--num_train_epochs", "12")
    fast = (
        "--optim",
        "adamw_torch",
        "--learning_rate",
        "0.05",
        "--label_noise",
        "0.5",
        "--lr_scheduler_type",
        "linear",
    )
    never = ("--validation_fraction", "0.4", "--eval_strategy", "no")
    for name, flags, message in (("none", (), "none are held out"), ("never", never, "unless a callback evaluates")):
        caplog.clear()
        with caplog.at_level("WARNING"):
            (run,) = classify(tmp_path / name, *data, *fast, *flags, base=words)["runs"]
        assert message in caplog.text
        assert "every step is a plain one" in caplog.text
        assert not any("sharpness" in point for point in run["curves"])
    results = classify(tmp_path / "out", *data, *fast, "--validation_fraction", "0.4", base=words)
    radii = [point["amp_epsilon"] for point in results["runs"][0]["curves"] if "loss" in point]
    assert radii[0] == 0.0 < max(radii)


@pytest.mark.parametrize(("split", "followed"), [("validation", 1.0), ("test", None)])
def test_the_loss_on_the_test_images_has_no_part_in_the_radius(tmp_path, split, followed):
    network = PreActResNetForImageClassification(PreActResNetConfig(stem_size=4, hidden_sizes=[4], depths=[1]))
    trainer = ImageTrainer(model=network, args=ImageTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="no"))
    trainer.evaluated_split = split
    assert trainer.held_out_loss({"eval_loss": 1.0}) == followed
