"""The command trains every method, can be stopped and continued, and reports last and best truthfully."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import EXAMPLES, TINY, classify, load_example
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import AutoModelForImageClassification, EvalPrediction, TrainerCallback
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_amp.hub.access import PublishingError
from hf_amp.vision.report.metrics import compute_metrics
from hf_amp.vision.report.run import SeedRun, last_whole_checkpoint
from hf_amp.vision.train.methods import METHODS

# transformers 5.0 warns when two checkpoints are written within a second, as only tests do.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable")

METRICS = {"accuracy", "error_rate", "nll", "ece"}


def without_clocks(results):
    """Results but for what differs between two equal runs."""
    runs = [{k: v for k, v in run.items() if k not in ("seconds", "continued_from_step")} for run in results["runs"]]
    return json.loads(json.dumps(runs))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stop_at(monkeypatch, seed, step):
    """Make the training of one seed end after a step, as by Ctrl-C."""
    original = SeedRun.run

    def stopping(self):
        if self.seed == seed:
            self.trainer.add_callback(StopAt(step))
        return original(self)

    monkeypatch.setattr(SeedRun, "run", stopping)


@pytest.fixture(scope="module")
def amp_run(tmp_path_factory):
    """Two seeds of AMP with label noise and a validation part."""
    folder = tmp_path_factory.mktemp("amp")
    flags = ("--method", "amp", "--amp_epsilon", "0.05", "--label_noise", "0.2", "--save_strategy", "epoch")
    return folder, flags, classify(folder, *flags, "--seeds", "0", "1", "--validation_fraction", "0.2")


def test_results_file_holds_what_was_done_and_what_came_out(amp_run):
    folder, _, results = amp_run
    written = json.loads((folder / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    expected = {"method": "amp", "dataset": "digits", "model": "preactresnet18", "seeds": [0, 1], "complete": True}
    assert expected.items() <= written.items()
    assert [run["seed"] for run in written["runs"]] == [0, 1]
    for run in written["runs"]:
        assert set(run["test"]) == {"last", "best"}
        for metrics in run["test"].values():
            assert set(metrics) == METRICS
            assert metrics["accuracy"] == pytest.approx(1 - metrics["error_rate"])
        assert run["best_selected_on"] == "validation"
        assert run["seconds"] > 0
        assert run["steps"] == 6
    assert {"torch", "transformers"} <= set(written["versions"])
    assert written["hardware"]["processes"] == 1
    assert written["settings"]["amp_epsilon"] == 0.05
    assert written["settings"]["max_grad_norm"] == 50.0
    assert isinstance(written["command"], str)
    errors = [run["test"]["last"]["error_rate"] for run in written["runs"]]
    assert written["summary"]["last"]["error_rate"]["mean"] == pytest.approx(sum(errors) / 2)


def test_curves_have_an_entry_per_epoch_with_loss_sharpness_and_error(amp_run):
    for run in amp_run[2]["runs"]:
        assert [point["epoch"] for point in run["curves"]] == [1, 2]
        for point in run["curves"]:
            assert {"loss", "erm_loss", "sharpness", "eval_error_rate", "eval_nll"} <= set(point)
            assert point["loss"] - point["erm_loss"] == pytest.approx(point["sharpness"], abs=1e-4)


def test_label_noise_is_recorded_and_of_the_asked_share(amp_run):
    for run in amp_run[2]["runs"]:
        noise = run["label_noise"]
        assert (noise["share"], noise["seed"]) == (0.2, run["seed"])
        assert 0 < noise["changed"] <= round(0.2 * noise["of"])


def test_figure_and_models_are_there_and_load_as_any_other(amp_run):
    folder, _, _ = amp_run
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    for seed in (0, 1):
        for model in (folder / f"seed_{seed}", folder / f"seed_{seed}" / "best"):
            loaded = AutoModelForImageClassification.from_pretrained(model)
            assert loaded.config.num_labels == 10
            assert AutoImageProcessor.from_pretrained(model) is not None


def test_best_is_the_epoch_with_the_lowest_validation_error(amp_run):
    for run in amp_run[2]["runs"]:
        errors = [point["eval_error_rate"] for point in run["curves"]]
        assert run["best_epoch"] == 1 + errors.index(min(errors))


def test_seeds_differ_and_each_repeats_itself(amp_run, tmp_path):
    _, flags, results = amp_run
    first, second = without_clocks(results)
    assert first["curves"] != second["curves"]
    alone = classify(tmp_path, *flags, "--seeds", "1", "--validation_fraction", "0.2")
    assert without_clocks(alone) == [second]


def test_finished_seeds_are_not_trained_again(amp_run, monkeypatch):
    folder, flags, results = amp_run

    def never(self):
        raise AssertionError("trained again")

    monkeypatch.setattr(SeedRun, "run", never)
    again = classify(folder, *flags, "--seeds", "0", "1", "--validation_fraction", "0.2")
    assert again["runs"] == json.loads(json.dumps(results["runs"]))


def test_a_call_with_fewer_seeds_keeps_the_others_in_the_file(tmp_path):
    flags = ("--method", "erm", "--num_train_epochs", "1")
    both = classify(tmp_path, *flags, "--seeds", "0", "1")
    assert [run["seed"] for run in classify(tmp_path, *flags, "--seeds", "1")["runs"]] == [1]
    classify(tmp_path, *flags, "--seeds", "2")
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["seeds"], written["complete"]) == ([2, 0, 1], True)
    assert written["runs"][1:] == json.loads(json.dumps(both["runs"]))
    assert written["summary"]["last"]["error_rate"]["n"] == 3


def test_other_settings_in_the_same_folder_are_refused(amp_run):
    folder, flags, _ = amp_run
    before = (folder / "results.json").read_bytes()
    with pytest.raises(SystemExit, match=r"amp_epsilon: 0.05 there, 0.1 now.*give another --output_dir"):
        classify(folder, *flags, "--seeds", "0", "1", "--validation_fraction", "0.2", "--amp_epsilon", "0.1")
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("step", [2, 4])  # before and after the first checkpoint
def test_a_stopped_run_continues_and_ends_as_the_uninterrupted_one(amp_run, tmp_path, monkeypatch, step):
    folder, flags, results = amp_run
    flags = (*flags, "--seeds", "0", "1", "--validation_fraction", "0.2")
    with monkeypatch.context() as patch:
        stop_at(patch, seed=1, step=step)
        with pytest.raises(KeyboardInterrupt):
            classify(tmp_path, *flags)
    partial = json.loads((tmp_path / "results.json").read_text())
    assert (partial["complete"], [run["seed"] for run in partial["runs"]]) == (False, [0])
    continued = classify(tmp_path, *flags)
    assert without_clocks(continued) == without_clocks(results)
    assert continued["runs"][1]["continued_from_step"] == (None if step == 2 else 3)
    for name in ("seed_0", "seed_1"):
        ours, theirs = (load_file(root / name / "model.safetensors") for root in (tmp_path, folder))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_seconds_of_a_continued_run_are_those_of_all_its_parts(tmp_path, monkeypatch):
    flags = ("--save_strategy", "epoch", "--seeds", "1")
    with monkeypatch.context() as patch:
        stop_at(patch, seed=1, step=4)
        with pytest.raises(KeyboardInterrupt):
            classify(tmp_path, *flags)
    path = tmp_path / "seed_1" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    counted = state["stateful_callbacks"]["TrainingClock"]["attributes"]
    assert 0 < counted["before"] < 100
    counted["before"] = 1000.0
    path.write_text(json.dumps(state))
    (run,) = classify(tmp_path, *flags)["runs"]
    assert 1000 < run["seconds"] < 1100
    assert f"| seconds of training | {run['seconds']:.1f} |" in (tmp_path / "seed_1" / "README.md").read_text()


def test_a_training_without_clipping_is_recorded_to_its_end(tmp_path):
    classify(tmp_path, "--method", "erm", "--max_grad_norm", "inf", "--num_train_epochs", "1")
    assert json.loads((tmp_path / "seed_42" / "card.json").read_text())["arguments"]["max_grad_norm"] == "inf"
    assert (tmp_path / "seed_42" / "results.json").is_file()


@pytest.mark.parametrize("error", [PublishingError("There is no token"), ValueError("There is no token")])
def test_a_trainer_that_cannot_be_made_is_one_line_and_leaves_the_folder_free(tmp_path, error):
    def refuse(*_):
        raise error

    command = load_example("image_classification")
    command.make_trainer = refuse
    with pytest.raises(SystemExit, match="error: There is no token"):
        command.main([*TINY, "--output_dir", str(tmp_path), "--learning_rate", "0.2"])
    assert classify(tmp_path, "--num_train_epochs", "1")["complete"]


def test_a_checkpoint_that_was_cut_off_is_not_trusted(tmp_path):
    for step, state in ((3, '{"global_step": 3}'), (12, '{"global_st'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert last_whole_checkpoint(tmp_path / "nothing") is None


def test_without_validation_best_is_chosen_on_test_and_says_so(tmp_path, capsys):
    run = classify(tmp_path, "--method", "erm", "--seeds", "3")["runs"][0]
    assert run["best_selected_on"] == "test"
    assert "the TEST images" in capsys.readouterr().out
    errors = [point["eval_error_rate"] for point in run["curves"]]
    assert run["test"]["best"]["error_rate"] == min(errors)
    assert run["test"]["last"]["error_rate"] == errors[-1]
    assert run["validation"] is None


def test_best_metrics_are_those_of_the_saved_best_model(tmp_path, monkeypatch):
    seen = {}
    original = SeedRun.run

    def spy(self):
        result = original(self)
        seen.update(test=self.data.test, collator=self.data.eval_collator)
        return result

    monkeypatch.setattr(SeedRun, "run", spy)
    # The rate is so high that later epochs may be worse.
    flags = ("--method", "erm", "--validation_fraction", "0.3", "--num_train_epochs", "4", "--learning_rate", "1")
    run = classify(tmp_path, *flags)["runs"][0]
    for which, folder in (("last", tmp_path / "seed_42"), ("best", tmp_path / "seed_42" / "best")):
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        batch = seen["collator"]([seen["test"][i] for i in range(len(seen["test"]))])
        with torch.no_grad():
            logits = model(pixel_values=batch["pixel_values"]).logits
        by_hand = compute_metrics(EvalPrediction(logits.numpy(), batch["labels"].numpy()))
        assert run["test"][which] == pytest.approx(by_hand, rel=1e-4, abs=1e-5)


def test_short_trainings_write_no_checkpoints_and_still_keep_the_best_weights(tmp_path, capsys):
    flags = ("--method", "erm", "--num_train_epochs", "4", "--learning_rate", "1", "--validation_fraction", "0.3")
    run = classify(tmp_path / "none", *flags)["runs"][0]
    assert "a checkpoint every 10 minutes, from which the same command continues" in capsys.readouterr().out
    assert not list(tmp_path.rglob("checkpoint-*"))
    saved = classify(tmp_path / "each", *flags, "--save_strategy", "epoch")["runs"][0]
    assert run["best_epoch"] == saved["best_epoch"]
    assert run["test"] == saved["test"]
    names = ("model.safetensors", "best/model.safetensors")
    ours, theirs = ([load_file(tmp_path / way / "seed_42" / name) for name in names] for way in ("none", "each"))
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_checkpoints_by_the_clock_hold_the_best_weights_and_a_stopped_run_continues_from_them(tmp_path, monkeypatch):
    flags = ("--method", "erm", "--num_train_epochs", "4", "--learning_rate", "1", "--validation_fraction", "0.3")
    whole = classify(tmp_path / "whole", *flags)
    always = (*flags, "--save_minutes", "1e-9")
    with monkeypatch.context() as patch:
        stop_at(patch, seed=42, step=8)
        with pytest.raises(KeyboardInterrupt):
            classify(tmp_path / "cut", *always)
    continued = classify(tmp_path / "cut", *always)
    assert continued["runs"][0]["continued_from_step"] == 7
    (ours,), (theirs,) = without_clocks(continued), without_clocks(whole)
    # The Trainer's mean training loss of the epoch that was cut is that of its last part.
    assert ours.pop("curves")[2]["loss"] != theirs.pop("curves")[2]["loss"]
    assert ours == theirs


def test_without_evaluation_there_is_no_best(tmp_path, capsys):
    run = classify(tmp_path, "--method", "erm", "--eval_strategy", "no", "--max_steps", "2")["runs"][0]
    assert (run["best_selected_on"], run["best_epoch"], run["test"]["best"]) == (None, None, None)
    assert run["steps"] == 2
    assert "| best: nothing was evaluated | – |" in capsys.readouterr().out


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"amp", "erm"}))
def test_every_method_runs(tmp_path, method):
    results = classify(tmp_path, "--method", method, "--num_train_epochs", "1")
    assert results["method"] == method
    assert results["runs"][0]["steps"] == 3
    logged = results["runs"][0]["curves"][0]
    assert ("perturbation_norm" in logged) == (method in ("sam", "rmp"))


def test_dropout_goes_into_the_config(tmp_path):
    classify(tmp_path, "--method", "dropout", "--dropout", "0.3", "--num_train_epochs", "1")
    assert json.loads((tmp_path / "seed_42" / "config.json").read_text())["dropout"] == 0.3


def test_tensorboard_is_written_in_the_folder_of_the_seed(tmp_path):
    classify(tmp_path, "--method", "erm", "--num_train_epochs", "1", "--report_to", "tensorboard")
    assert list((tmp_path / "seed_42").rglob("events.out.tfevents*"))


def test_a_recipe_is_read_and_flags_override_it(tmp_path, capsys):
    flags = ["--recipe", "cifar10_preactresnet18_amp", "--scale", "0.01", "--amp_epsilon", "0.05"]
    results = classify(tmp_path, *flags, "--seeds", "0", base=[w for w in TINY if w not in ("--num_train_epochs", "2")])
    assert results["settings"]["amp_epsilon"] == 0.05
    assert results["settings"]["dataset"] == "digits"
    assert results["runs"][0]["epochs"] == 2  # 200 x 0.01
    out = capsys.readouterr().out
    assert "Method   AMP amp_epsilon=0.05" in out
    assert "2 epochs, batch 20 on 1 process(es), seeds 0" in out
    assert "| last epoch |" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "preactresnet19"), "`model` must be one of .*got 'preactresnet19'"),
        (("--label_noise", "1.5"), r"`label_noise` must be in \[0, 1\), got 1.5"),
        (("--model_args", "{'a': 1}"), "`model_args` must be a JSON object"),
        (("--method", "mixup", "--label_smoothing_factor", "0.1"), ".*cannot be combined with method 'mixup'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, flags, message):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match=f"error: {message}"):
        classify(folder, *flags)
    assert not folder.exists()


def test_a_flag_that_the_method_does_not_read_is_warned_about(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="hf_amp"):
        classify(tmp_path, "--method", "erm", "--amp_epsilon", "0.1", "--num_train_epochs", "1")
    assert "--amp_epsilon has no effect with --method erm" in caplog.text


REAL = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.mark.parametrize(
    ("dataset", "folder", "classes", "tested_on"),
    [
        ("cifar10", "cifar10-small", 10, "test"),
        ("cifar100", "cifar100-small", 100, "test"),
        ("svhn", "svhn-small", 10, "validation"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has no test split")
def test_real_images(tmp_path, dataset, folder, classes, tested_on):
    if not (REAL / folder).is_dir():
        pytest.skip(f"no {REAL / folder}")
    small = json.dumps({"stem_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1]})
    data = ("--dataset", dataset, "--dataset_path", str(REAL / folder), "--max_train_samples", "100")
    flags = ("--model_args", small, "--num_train_epochs", "1", "--method", "amp", "--amp_epsilon", "0.5", "--use_cpu")
    results = classify(tmp_path, *data, *flags, base=())
    assert results["tested_on"] == tested_on
    assert results["settings"]["augmentation"] == "vanilla"
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "seed_42").config.num_labels == classes


@pytest.mark.slow
def test_two_processes_train_one_model_and_one_writes_to_a_terminal_that_knows_no_greek(tmp_path):
    config = tmp_path / "two_cpu.yaml"
    config.write_text("distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\nnum_machines: 1\n")
    out = tmp_path / "out"
    flags = [*TINY, "--method", "amp", "--amp_epsilon", "0.05", "--seeds", "0", "1", "--output_dir", str(out)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command = [*launch, "--main_process_port", "0", str(EXAMPLES / "image_classification.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert " ? " in done.stdout  # ±
    results = json.loads((out / "results.json").read_text())
    assert results["complete"]
    assert results["hardware"]["processes"] == 2
    assert [run["steps"] for run in results["runs"]] == [4, 4]  # 60 images, 2 x 20 a step, 2 epochs
    assert done.stdout.count("Results and figure are in") == 1
    assert done.stdout.count("seed 0: test error") == 1
    # Every test image counted once: the errors are whole numbers of images.
    images = _test_images()
    for run in results["runs"]:
        wrong = run["test"]["last"]["error_rate"] * images
        assert wrong == pytest.approx(round(wrong), abs=1e-6)


def _test_images():
    from hf_amp.vision import load_image_dataset

    return load_image_dataset("digits")["test"].num_rows


def test_processes_that_do_not_know_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_amp.vision.report.experiment.unconnected_processes", lambda args: "two processes, apart")
    with pytest.raises(SystemExit, match="two processes, apart"):
        classify(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_different_sizes_train_with_the_flag_that_the_refusal_names(tmp_path):
    for split in ("train", "test"):
        for label, size in (("a", 8), ("b", 12)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (size, size), (i, 2 * i, 3 * i)).save(folder / f"{i}.png")
    where = ("--dataset", "local", "--dataset_path", str(tmp_path / "images"))
    base = [flag for flag in TINY if flag not in ("--dataset", "digits")]
    with pytest.raises(SystemExit, match="`--image_size` on the command line"):
        classify(tmp_path / "refused", *where, base=base)
    results = classify(tmp_path / "out", *where, "--image_size", "10", base=base)
    processor = json.loads((tmp_path / "out" / "seed_42" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 10, "width": 10}
    assert results["runs"][0]["test"]["last"]["accuracy"] >= 0


@pytest.mark.slow
def test_compiled_in_bf16_it_trains_as_uncompiled_and_compiles_nothing_for_the_last_batch(tmp_path):
    base = [word for word in TINY if word not in ("--precision", "float32", "--max_train_samples", "60")]
    flags = (
        "--max_train_samples",
        "45",
        "--bf16",
        "--method",
        "amp",
        "--amp_epsilon",
        "0.05",
        "--num_train_epochs",
        "3",
    )
    plain = classify(tmp_path / "plain", *flags, base=base)["runs"][0]
    torch.compiler.reset()
    counters["stats"].clear()
    compiled_flags = ("--torch_compile", "--torch_compile_backend", "aot_eager")
    compiled = classify(tmp_path / "compiled", *flags, *compiled_flags, base=base)["runs"][0]
    assert counters["stats"]["unique_graphs"] == 1  # 20, 20 and 5 images in an epoch
    for ours, theirs in zip(compiled["curves"], plain["curves"], strict=True):
        for name in ("loss", "eval_nll"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.02)
    for name, value in plain["test"]["last"].items():
        assert compiled["test"]["last"][name] == pytest.approx(value, rel=0.02, abs=0.03)


def test_the_precision_is_chosen_for_the_device_and_said(tmp_path, monkeypatch, capsys):
    base = [word for word in TINY if word not in ("--precision", "float32")]
    for name, pays in (("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)):
        told = {"amx_bf16": False, "avx512_bf16": False, name: True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        results = classify(tmp_path / name, "--num_train_epochs", "1", base=base)
        assert results["settings"]["bf16"] == pays
        assert f"Passes   in {'bf16' if pays else 'float32'} (" in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    classify(tmp_path / "asked", "--num_train_epochs", "1")
    assert "float32 (as asked; bf16 would be faster here)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="`precision`='float32' and `bf16`=True contradict each other"):
        classify(tmp_path / "both", "--bf16")


def test_results_that_were_cut_off_are_named_with_a_remedy_that_works(tmp_path):
    flags = ("--method", "erm", "--num_train_epochs", "1", "--seeds", "0", "1")
    whole = classify(tmp_path, *flags)
    cut = tmp_path / "seed_1" / "results.json"
    cut.write_text(cut.read_text()[:50])
    with pytest.raises(SystemExit, match=r"seed_1.results.json is not a JSON file .* delete it to run that part again"):
        classify(tmp_path, *flags)
    cut.unlink()
    (tmp_path / "results.json").write_text("{")  # it is written anew from those of the seeds
    assert without_clocks(classify(tmp_path, *flags)) == without_clocks(whole)
