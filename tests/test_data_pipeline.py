"""The data benchmark runs as it stands, on made images and on a local data set."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
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
    printed = capsys.readouterr().out
    assert "of a training step (aim: 5 % at most)" in printed
    assert "of its CPU seconds" in printed
    assert [path.name for path in tmp_path.glob("results*")] == ["results.json"]


def test_a_local_data_set_is_read(benchmark, tmp_path):
    folder = write_parquet(tmp_path / "data", train=image_split(40, size=(32, 32)), test=image_split(3))
    results = benchmark.main([*TINY, "--dataset", "svhn", "--dataset_path", str(folder), "--workers", "1"])
    assert results["fast_share_of_step"] > 0


def test_shares_are_medians_of_the_rounds(benchmark):
    times = {"fast": [1.0, 9.0, 1.0], "step": [10.0, 10.0, 20.0]}
    assert benchmark.share_of_step(times, "fast") == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "0"], "--batch_size must be >= 1, got 0"),
        (["--rounds", "-1"], "--rounds must be >= 1, got -1"),
        (["--json", "nowhere/at/all.json"], "--json must lie in an existing folder"),
    ],
)
def test_bad_options_are_refused(benchmark, capsys, options, message):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, *options])
    assert message in capsys.readouterr().err


def test_a_batch_must_not_be_larger_than_the_data(benchmark):
    with pytest.raises(SystemExit, match="--batch_size 41 is more than the 40 training images; lower it"):
        benchmark.main([*TINY, "--batch_size", "41"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_must_be_there(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, "--device", "cuda"])
    assert "--device cuda needs a CUDA device, and torch finds none; use --device cpu" in capsys.readouterr().err
