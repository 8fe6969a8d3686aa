import json
import re
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import amp_trainer
from transformers import TrainingArguments

BENCHMARK = Path(__file__).parents[1] / "examples" / "benchmarks" / "step_cost.py"
PLAIN_PASSES = BENCHMARK.with_name("plain_passes.py")


@pytest.mark.slow
def test_step_cost_reports_times_ratios_and_memory_within_its_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    words = ["--batch_size", "8", "--steps", "1", "--repeats", "1", "--device", "cpu", "--output_dir", str(tmp_path)]

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["step_cost.py", *words, *more])
        runpy.run_path(str(BENCHMARK), run_name="__main__")

    call("--models", "conv")
    first = json.loads((tmp_path / "step_cost.json").read_text())
    assert (tmp_path / "step_cost.png").read_bytes().startswith(b"\x89PNG")
    rows = first["models"]["conv"]["rows"]
    assert set(rows) == {
        "Trainer",
        "AMPTrainer N=1",
        "AMPTrainer N=2",
        "AMPTrainer, ascent on 1/8",
        "AMPTrainer, ascent on 1/16",
        "plain two-pass Trainer",
        "plain two-pass loop",
        "Trainer, 4 micro-batches",
        "AMPTrainer N=1, 4 micro-batches",
        "AMPTrainer, ascent on 1/16, 4 micro-batches",
    }
    assert rows["Trainer"]["ratio"] == rows["Trainer, 4 micro-batches"]["fastest_ratio"] == 1.0
    low, high = rows["AMPTrainer N=1"]["cpu_ratio_quartiles"]
    assert low == rows["AMPTrainer N=1"]["cpu_ratio"] == high  # of a single repeat
    assert rows["AMPTrainer N=1"]["ratio"] == rows["AMPTrainer N=1"]["fastest_ratio"]  # of a single step
    assert all(row["seconds"] > 0 for row in rows.values())
    for label in ("AMPTrainer N=1", "plain two-pass Trainer"):
        assert 0 < rows[label]["own_work"] < rows[label]["ratio"]  # in steps of Trainer
    # Allocations are counted, not timed, so that these limits hold on any machine.
    for label in ("AMPTrainer N=1", "AMPTrainer N=2", "AMPTrainer N=1, 4 micro-batches"):
        assert 0.9 < rows[label]["extra_memory_copies"] <= 1.01, label

    with pytest.raises(SystemExit):
        call("--models", "preactresnet18", "--dtype", "bfloat16")
    assert "with another dtype, float32, not bfloat16; use another --output_dir" in capsys.readouterr().err
    chosen = "AMPTrainer N=1, 4 micro-batches"  # on one of the paper's networks, in a call of its own
    call("--models", "preactresnet18", "--batch_size", "4", "--variants", chosen, "--minutes", "5")
    models = json.loads((tmp_path / "step_cost.json").read_text())["models"]
    assert models["conv"] == first["models"]["conv"]
    assert models["preactresnet18"]["parameters"] == 11_172_170
    assert list(models["preactresnet18"]["rows"]) == ["Trainer", "Trainer, 4 micro-batches", chosen]
    assert 0.9 < models["preactresnet18"]["rows"][chosen]["extra_memory_copies"] <= 1.01


@pytest.mark.parametrize(("seconds", "runs", "repeats"), [(14, 10, 2), (10, 10, 1), (4, 4, 1), (0, 0, 0)])
def test_when_the_time_is_over_what_was_measured_is_kept(tmp_path, monkeypatch, seconds, runs, repeats):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    import step_cost

    passed = iter(range(1000))  # a second between two looks at the clock, which come before each variant
    monkeypatch.setattr(step_cost, "time", SimpleNamespace(monotonic=lambda: next(passed)))
    monkeypatch.setattr(step_cost, "make_run", lambda *args: SimpleNamespace(steps=lambda: [(2.0, 3.0)]))
    options = SimpleNamespace(variants=[*step_cost.VARIANTS], repeats=3, end=seconds)
    result = step_cost.measure("conv", options, tmp_path)
    assert list(result["rows"]) == list(step_cost.VARIANTS)[:runs]
    assert all(row["ratio"] == 1 and "own_work" not in row for row in result["rows"].values())
    assert result["repeats"] == repeats


def test_a_network_for_which_no_time_is_left_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    words = ["--models", "conv", "--device", "cpu", "--minutes", "1e-9", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *words, "--variants", "AMPTrainer N=1"])
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    assert "conv: no time left" in capsys.readouterr().out
    assert not (tmp_path / "step_cost.json").exists()


def test_the_warning_of_the_watch_for_waits_ends_no_run(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    import step_cost

    modes = []

    def of_torch(mode):
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)
        modes.append(mode)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", of_torch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_cost.watch_waits("error")
    assert modes == ["error"]


@pytest.mark.slow
def test_steps_beside_the_plain_passes_are_of_networks_built_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    import step_cost

    built = []
    of_step_cost = step_cost.build
    monkeypatch.setattr(step_cost, "build", lambda name: built.append(name) or of_step_cost(name))
    words = ["--batch_size", "2", "--steps", "1", "--device", "cpu", "--output_dir", str(tmp_path)]

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["plain_passes.py", *words, *more])
        runpy.run_path(str(PLAIN_PASSES), run_name="__main__")
        return json.loads((tmp_path / "plain_passes.json").read_text())

    conv = call("--models", "conv", "--repeats", "3")["models"]["conv"]
    assert built == ["conv"] * 4 * 3
    assert set(conv["rows"]) == {"Trainer", "plain two-pass Trainer", "plain two-pass loop"}
    for row in conv["rows"].values():
        assert len(row["ratios"]) == 3
        assert row["quartiles"][0] <= row["ratio"] == sorted(row["ratios"])[1] <= row["quartiles"][1]
    models = call("--models", "vit", "--repeats", "1")["models"]
    assert models["conv"] == conv
    seconds = models["vit"]["seconds"]
    for base, row in models["vit"]["rows"].items():
        assert row["ratio"] == seconds["AMPTrainer N=1"] / seconds[base]
    assert "| vit, batch 2, 1 × 1 |" in capsys.readouterr().out.splitlines()[-1]


def test_plain_passes_are_measured_in_bfloat16_and_compiled_where_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    import step_cost

    seen = []

    def run(model, options, *args, **settings):
        seen.append((options.dtype, options.torch_compile))
        return SimpleNamespace(steps=lambda: [(1.0, 1.0)])

    monkeypatch.setattr(step_cost, "TrainerRun", run)
    monkeypatch.setattr(step_cost, "PlainLoop", run)
    flags = ["--dtype", "bfloat16", "--torch_compile", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["plain_passes.py", "--models", "conv", *flags, "--output_dir", str(tmp_path)])
    runpy.run_path(str(PLAIN_PASSES), run_name="__main__")
    assert seen == [("bfloat16", True)] * 4
    record = json.loads((tmp_path / "plain_passes.json").read_text())
    assert (record["dtype"], record["torch_compile"]) == ("bfloat16", True)


@pytest.mark.parametrize(
    ("cls", "settings", "own"),
    [
        ("OwnWorkTrainer", {"amp_inner_iter": 1}, 3),
        ("OwnWorkTrainer", {"amp_inner_iter": 2}, 4),
        ("PlainOwnWorkTrainer", {"arguments": TrainingArguments}, 3),
    ],
)
def test_own_work_is_the_training_step_without_its_passes(tmp_path, monkeypatch, cls, settings, own):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    import step_meters

    readings = iter(range(1000))  # a second between two looks at the clock: one within each pass, `own` around them
    monkeypatch.setattr(step_meters, "synchronised_clocks", lambda device: (next(readings), 0))
    trainer = amp_trainer(tmp_path, cls=getattr(step_meters, cls), max_steps=3, **settings)
    trainer.train()
    assert trainer.own_work == [own] * (3 - step_meters.WARM_UP)


@pytest.mark.parametrize(
    ("page", "benchmark"),
    [
        ("examples/benchmarks/RESULTS.md", BENCHMARK),
        ("examples/benchmarks/RESULTS.md", PLAIN_PASSES),
    ],
)
def test_commands_that_are_shown_use_flags_that_there_are(page, benchmark, monkeypatch, capsys):
    shown = (BENCHMARK.parents[2] / page).read_text().replace("\\\n", " ")
    flags = set(re.findall(r"--\w+", " ".join(re.findall(rf"python \S+{benchmark.name}(.*)", shown))))
    assert "--models" in flags
    monkeypatch.setattr(sys, "argv", [benchmark.name, "--help"])
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    with pytest.raises(SystemExit):
        runpy.run_path(str(benchmark), run_name="__main__")
    assert flags <= set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("benchmark", "words", "text"),
    [
        (BENCHMARK, ("--repeats", "0"), "--repeats must be >= 1, got 0; raise it"),
        (BENCHMARK, ("--batch_size", "6"), "--batch_size must be a multiple of 4, which it is also split into, got 6"),
        (BENCHMARK, ("--minutes", "0"), "--minutes must be > 0, got 0.0; raise it, or leave it out for no limit"),
        (BENCHMARK, ("--variants", "AMPTrainner"), "argument --variants: invalid choice: 'AMPTrainner' (choose from"),
        (BENCHMARK, ("--device", "cpu", "--sync_debug"), "--sync_debug needs --device cuda, got cpu; leave it out"),
        (BENCHMARK, ("--device", "cuda"), "--device cuda needs a CUDA device, and torch finds none; use --device cpu"),
        (PLAIN_PASSES, ("--device", "cuda"), "--device cuda needs a CUDA device, and torch finds none"),
        (PLAIN_PASSES, ("--batch_size", "0"), "--batch_size must be >= 1, got 0; raise it"),
    ],
)
def test_bad_options_are_refused(benchmark, words, text, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [benchmark.name, *words])
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    with pytest.raises(SystemExit):
        runpy.run_path(str(benchmark), run_name="__main__")
    assert text in capsys.readouterr().err
