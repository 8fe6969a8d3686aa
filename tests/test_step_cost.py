import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[1] / "examples" / "benchmarks" / "step_cost.py"


@pytest.mark.slow
def test_step_cost_reports_times_ratios_and_memory_within_its_limits(tmp_path):
    words = ["--models", "conv", "--batch_size", "8", "--steps", "1", "--repeats", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words, "--json", str(tmp_path / "cost.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "cost.json").read_text())["models"]["conv"]["rows"]
    assert set(rows) == {
        "Trainer",
        "AMPTrainer N=1",
        "AMPTrainer N=2",
        "AMPTrainer, ascent on 1/8",
        "AMPTrainer, ascent on 1/16",
        "plain two-pass Trainer",
        "plain two-pass loop",
        "AMPTrainer N=1, 4 micro-batches",
    }
    assert rows["Trainer"]["ratio"] == 1.0
    low, high = rows["AMPTrainer N=1"]["cpu_ratio_quartiles"]
    assert low == rows["AMPTrainer N=1"]["cpu_ratio"] == high  # of a single repeat
    assert all(row["seconds"] > 0 for row in rows.values() if "seconds" in row)
    # Allocations are counted, not timed, so that these limits hold on any machine.
    assert 0.9 < rows["AMPTrainer N=1"]["extra_memory_copies"] <= 1.05
    assert rows["AMPTrainer N=2"]["extra_memory_copies"] <= 2.05
    assert rows["AMPTrainer N=1, 4 micro-batches"]["extra_memory_copies"] <= 2.05


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--repeats", "0"), "--batch_size, --steps and --repeats must be >= 1"),
        (("--device", "cpu", "--sync_debug"), "--sync_debug needs --device cuda, got cpu; leave it out"),
        (("--device", "cpu", "--json", "nowhere/cost.json"), "--json must lie in an existing folder, got nowhere"),
        (("--device", "cuda"), "--device cuda needs a CUDA device, and torch finds none; use --device cpu"),
    ],
)
def test_bad_options_are_refused(words, text, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *words])
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARK), run_name="__main__")
    assert text in capsys.readouterr().err
