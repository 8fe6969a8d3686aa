"""Weights that are empty, cut short, damaged or lack a part are told from whole ones, without loading them."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from hf_amp.hub.upload.weights import flaws_of_weights
from hf_amp.push import main


def flaws(folder):
    return {path.name: flaw for path, flaw in flaws_of_weights(sorted(folder.iterdir()))}


def save_shards(folder, suffix="safetensors"):
    shards = [f"model-{i}-of-2.{suffix}" for i in (1, 2)]
    for i, shard in enumerate(shards):
        tensors = {f"layer{i}.weight": torch.ones(30), f"layer{i}.bias": torch.zeros(3)}
        save_file(tensors, folder / shard) if suffix == "safetensors" else torch.save(tensors, folder / shard)
    weight_map = {f"layer{i}.{part}": shard for i, shard in enumerate(shards) for part in ("weight", "bias")}
    index = folder / (f"model.{suffix}.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, [folder / shard for shard in shards]


def test_whole_weights_have_no_flaw(tmp_path):
    save_shards(tmp_path)
    save_shards(tmp_path, "bin")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"w": torch.ones(2)}, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=False)
    torch.save({"no": "weights"}, tmp_path / "training_args.bin")
    assert flaws(tmp_path) == {}


@pytest.mark.parametrize("lost", [1, 119, 120, 150])
def test_safetensors_that_lost_their_end_are_cut_short(tmp_path, lost):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(30)}, path)
    path.write_bytes(path.read_bytes()[:-lost])
    assert "cut short" in flaws(tmp_path)["model.safetensors"]


def test_safetensors_with_more_than_their_header_says_are_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(30)}, path)
    path.write_bytes(path.read_bytes() + b"more")
    assert "damaged" in flaws(tmp_path)["model.safetensors"]


def test_weights_without_content_are_empty(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"")
    save_file({}, tmp_path / "adapter_model.safetensors")
    torch.save({}, tmp_path / "adapter_model.bin")
    assert flaws(tmp_path) == {
        "model.safetensors": "it is empty",
        "pytorch_model.bin": "it is empty",
        "adapter_model.safetensors": "it holds no tensor",
        "adapter_model.bin": "it holds no tensor",
    }


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_files_of_torch_are_checked_and_never_unpickled(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "cut short" in flaws(tmp_path)["pytorch_model.bin"]
    place = whole.index(torch.ones(1000).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\1" + whole[place + 1 :])
    assert "is not what was written" in flaws(tmp_path)["pytorch_model.bin"]
    torch.save({"w": torch.ones(3), "x": Bomb()}, path)
    assert flaws(tmp_path) == {}
    path.write_bytes(pickle.dumps(Bomb()))
    assert flaws(tmp_path) == {}


def test_an_index_names_files_that_are_missing(tmp_path):
    index, shards = save_shards(tmp_path)
    shards[1].unlink()
    assert flaws(tmp_path) == {index.name: "1 of the 2 files that it names are missing: model-2-of-2.safetensors"}


def test_an_index_names_tensors_that_a_shard_lacks(tmp_path):
    index, shards = save_shards(tmp_path)
    save_file({"layer1.bias": torch.zeros(3)}, shards[1])
    assert flaws(tmp_path) == {
        index.name: "1 tensors that it names are not in model-2-of-2.safetensors: layer1.weight",
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_said_to_be_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "it is no index" in flaws(tmp_path)["model.safetensors.index.json"]


def test_nothing_is_published_with_weights_that_are_not_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    _, shards = save_shards(tmp_path)
    shards[0].unlink()
    with pytest.raises(SystemExit, match=r"not whole: model.safetensors.index.json: 1 of the 2 .* Save the model or"):
        main([str(tmp_path), "--repo", "me/m", "--dry-run"])
