"""The command for a GPU that is at hand for minutes, rehearsed on a CPU with a tiny network."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from commands import load_example
from datasets import Dataset
from tiny_images import image_split, write_parquet

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "benchmarks" / "gpu_minutes.sh"
SAM_RUN = "small_sam_seed{}/cifar10n_a_worst"
TINY = '{"stem_size":4,"hidden_sizes":[4,8],"depths":[1,1]}'


def rehearse(folder, *phases, seconds=200, **environment):
    settings = {
        "PYTHON": sys.executable,
        "OUT": str(folder / "out"),
        "KEEP": str(folder / "keep"),
        "TRAIN_FILES": "1",
        "TEST_FILES": "1",
        "RESERVE": "1",
        "BATCH": "8",
        "COMPILE": "false",
        "STEP_FLAGS": "--tiny --cases 1 --steps 2 --rounds 1",
        "EXTRA": f"--use_cpu true --model_args {TINY} --eval_strategy epoch",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), str(seconds), *phases],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_phase_writes_what_it_finds_and_a_second_call_goes_on(tmp_path):
    options = {"classes": 10, "image": "img", "size": (32, 32)}
    data = write_parquet(tmp_path / "data", train=image_split(40, **options), test=image_split(20, **options))
    said = rehearse(tmp_path, "data", "steps", "erm", DATA=str(data), EPOCHS="auto", MOST_EPOCHS="5")
    out = tmp_path / "out"
    assert json.loads((out / "data.json").read_text())["vanilla"]["ms"] > 0
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "error" in row]
    measured = {row["variant"] for row in rows if "watched_ms" in row}
    assert measured == {"Trainer", "AMPTrainer N=1", "plain two passes", "plain loop", "AMPTrainer, ascent on 6 %"}
    assert "5 epochs each" in said
    assert json.loads((out / "erm.json").read_text())["complete"]
    said = rehearse(tmp_path, "amp", "nonsense", EPOCHS="1")  # the images are kept from the first call
    assert json.loads((out / "amp.json").read_text())["method"] == "amp"
    assert "there is no phase nonsense" in said


def test_the_study_chooses_the_radius_of_sam_with_one_seed_and_trains_the_others_with_it(tmp_path):
    options = {"classes": 10, "image": "img", "size": (32, 32)}
    images = image_split(40, **options)
    data = write_parquet(tmp_path / "data", train=images, test=image_split(20, **options))
    labels = Dataset.from_dict({"label": images["label"], "worst": images["label"][::-1]})
    flags = f"--use_cpu true --model_args {TINY} --num_train_epochs 2"
    assert "not all images and labels are here yet" in rehearse(tmp_path, "study", DATA=str(data), EXTRA=flags)
    labels.to_parquet(str(tmp_path / "keep" / "data" / "labels.parquet"))
    said = rehearse(tmp_path, "study", STUDY_JOBS="sam a worst", EXTRA=flags, PARALLEL="2")
    assert said.count("ended with 0") == 5, said
    with tarfile.open(tmp_path / "out" / "study.tgz") as packed:
        files = [packed.extractfile(f"study/{SAM_RUN.format(seed)}/comparison.json") for seed in (1, 2)]
        rows = [row for file in files for row in json.load(file)["rows"]]
    candidates = [row["selections"][0]["candidates"] for row in rows]
    best = min(candidates[0], key=lambda one: (one["validation_error_rate"], one["validation_nll"]))
    assert candidates[0] == candidates[1]  # those of seed 0, trained once
    assert [(row["settings"]["amp_epsilon"], row["seeds"]) for row in rows] == [(best["value"], [0, s]) for s in (1, 2)]


def test_what_has_no_time_left_or_no_images_is_said_and_left_out(tmp_path):
    said = rehearse(tmp_path, "data", "erm", seconds=5)
    assert "no time left for" in said
    assert "erm: not all images are here yet" in said


def test_epochs_are_planned_by_the_steps_that_were_measured():
    epochs = load_example("benchmarks/gpu_plan").epochs
    row = {"model": "preactresnet18", "compiled": True, "dtype": "bfloat16"}
    rows = [
        {**row, "variant": "Trainer", "ms": 10.0},
        {**row, "variant": "AMPTrainer N=1", "ms": 18.0},
        {**row, "variant": "Trainer", "compiled": False, "ms": 99.0},
        {**row, "variant": "AMPTrainer N=1", "watched_ms": 99.0},
    ]
    # 250 steps an epoch: 2.5 + 0.5 s and 4.5 + 0.5 s; 35 s to start each
    assert epochs(150.1, ["erm", "worst_amp"], 200, 60, rows) == 10
    assert epochs(150.1, ["erm", "worst_amp"], 200, 7, rows) == 7
    assert epochs(1.0, ["erm", "worst_amp"], 200, 60, rows) == 5  # no fewer
    assert epochs(150.1, ["erm", "amp"], 200, 60, []) == 20  # guesses: 1 + 0.5 s and 2 + 0.5 s
