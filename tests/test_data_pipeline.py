"""The data benchmark runs as it stands, on made images and on a local data set."""

import importlib.util
import json
from pathlib import Path

import pytest
from tiny_images import image_split, own_cache, write_parquet

SCRIPT = Path(__file__).parent.parent / "examples" / "benchmarks" / "data_pipeline.py"
TINY = [
    *("--images", "40", "--batch_size", "10", "--batches", "2", "--steps", "1", "--rounds", "2", "--device", "cpu"),
    *("--model_args", json.dumps({"hidden_sizes": [4, 8], "depths": [1, 1]})),
]


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    own_cache(monkeypatch, tmp_path / "cache")
    spec = importlib.util.spec_from_file_location("data_pipeline", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_rates_and_their_ratio_are_reported(benchmark, tmp_path, capsys):
    results = benchmark.main([*TINY, "--augmentation", "autoaugment", "--json", str(tmp_path / "results.json")])
    assert set(results["images_per_second"]) == {"pil", "fast", "step"}
    for name, times in results["milliseconds_per_batch"].items():
        assert len(times) == 2
        assert min(times) <= 10_000 / results["images_per_second"][name] <= max(times)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["pixels_mebibytes"] == 40 * 3 * 32 * 32 / 2**20
    assert "of a training step (aim: 5 % at most)" in capsys.readouterr().out


def test_a_local_data_set_is_read(benchmark, tmp_path):
    folder = write_parquet(tmp_path / "data", train=image_split(40, size=(32, 32)), test=image_split(3))
    results = benchmark.main([*TINY, "--dataset", "svhn", "--dataset_path", str(folder), "--workers", "1"])
    assert results["fast_share_of_step"] > 0
