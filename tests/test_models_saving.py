"""Saving and loading: auto classes, code beside the weights, a process without this package, devices, sharding."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from small_networks import SMALL_NAMES, images, small_config, small_network
from transformers import AutoConfig, AutoModelForImageClassification

# Runs where `hf_amp` cannot be imported: loads each folder, and saves the logits, the pipeline's answer and the model.
WITHOUT_HF_AMP = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_amp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
try:
    import hf_amp
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hf_amp was imported")

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

root = Path(sys.argv[1])
batch = torch.load(root / "images.pt")
for folder in sorted(path for path in root.iterdir() if path.is_dir() and (path / "config.json").is_file()):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(batch).logits
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True, device="cpu")
    answer = classify(Image.open(root / "image.png"), top_k=5)
    torch.save({"logits": logits, "answer": answer}, root / f"{folder.name}.pt")
    model.save_pretrained(root / "again" / folder.name)
assert not any(name.split(".")[0] == "hf_amp" for name in sys.modules)
"""

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 2,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
NAMES = dict(enumerate(("cat", "dog", "frog", "ship", "truck")))


def named_network(name):
    """Return a small network with class names and statistics that are not the first ones."""
    model = small_network(name, id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    model(images()[0])
    return model.eval()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Save every network, and load all of them in a process that cannot import this package."""
    from PIL import Image

    root = tmp_path_factory.mktemp("networks")
    torch.save(images()[0], root / "images.pt")
    pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(root / "image.png")
    for name in SMALL_NAMES:
        named_network(name).save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HF_AMP, str(root)], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root, pixels


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_folder_loads_and_answers_where_the_package_is_not_installed(elsewhere, name):
    root, pixels = elsewhere
    model = named_network(name)
    found = torch.load(root / f"{name}.pt")
    with torch.no_grad():
        assert torch.equal(found["logits"], model(images()[0]).logits)
        normalised = (pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        expected = model(normalised).logits.softmax(-1)[0]
    assert {entry["label"] for entry in found["answer"]} == set(NAMES.values())
    for entry in found["answer"]:
        index = model.config.label2id[entry["label"]]
        assert entry["score"] == pytest.approx(expected[index].item(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_model_loaded_without_the_package_is_saved_with_its_code_again(elsewhere, name):
    root, _ = elsewhere
    first, again = ({path.name for path in (root / folder).glob("*.py")} for folder in (name, f"again/{name}"))
    assert first == again
    model = AutoModelForImageClassification.from_pretrained(root / "again" / name)
    with torch.no_grad():
        assert torch.equal(model(images()[0]).logits, torch.load(root / f"{name}.pt")["logits"])


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_saved_folder_holds_the_code_of_its_network_only(tmp_path, name):
    small_network(name).save_pretrained(tmp_path)
    family = name.split("-")[0]
    expected = {f"{part}_{which}.py" for part in ("configuration", "modeling") for which in (family, "small_image")}
    assert {path.name for path in tmp_path.glob("*.py")} == expected
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModelForImageClassification"}
    for path in tmp_path.glob("*.py"):
        assert "hf_amp" not in path.read_text()


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_auto_classes_load_the_same_network(tmp_path, name):
    model = named_network(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.id2label == NAMES
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)


@pytest.mark.parametrize("num_labels", [1, 2, 10])
def test_number_of_classes_survives_saving(tmp_path, num_labels):
    model = small_network("vgg", num_labels=num_labels)
    model.save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.num_labels == num_labels


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_configuration_survives_saving(tmp_path, name):
    config = small_config(name, dropout=0.25, num_channels=1, image_size=64)
    config.save_pretrained(tmp_path)
    loaded, saved = AutoConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    assert (saved["dropout"], saved["num_channels"], saved["image_size"]) == (0.25, 1, 64)
    assert {key: loaded[key] for key in saved.keys() - {"_name_or_path"}} == {
        key: saved[key] for key in saved.keys() - {"_name_or_path"}
    }


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_new_classifier_fits_another_number_of_classes(tmp_path, name):
    model = named_network(name)
    model.save_pretrained(tmp_path)
    changed = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert changed(images()[0]).logits.shape == (6, 3)
    kept = [key for key in model.state_dict() if not key.startswith("classifier.linear")]
    assert all(torch.equal(changed.state_dict()[key], model.state_dict()[key]) for key in kept)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_blocks_are_not_split_between_devices(name):
    model = small_network(name)
    blocks = {path for path, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    assert blocks
    assert all(isinstance(block_name, str) for block_name in model._no_split_modules)
    bytes_per_device = model.num_parameters() * 4 * 2 // 3
    device_map = infer_auto_device_map(
        model, max_memory={"cpu": bytes_per_device, "disk": 10**9}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    assert not any(path.startswith(f"{block}.") for path in device_map for block in blocks)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_sharding_wraps_every_block_with_weights_and_nothing_else(name):
    model = small_network(name)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)  # as Accelerate prepares a model; raises for a name that it has no block of
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = [module for module in model.modules() if policy(module)]
    assert wrapped == [block for stage in model.stages for block in stage if next(block.parameters(), None) is not None]


def test_names_of_blocks_of_one_network_do_not_leak_into_another():
    basic, bottleneck = small_network("preactresnet-basic"), small_network("preactresnet-bottleneck")
    assert set(basic._no_split_modules) == {"PreActBasicBlock"}
    assert set(bottleneck._no_split_modules) == {"PreActBottleneckBlock"}
