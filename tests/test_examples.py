"""The small examples, run as a user runs them."""

import re
import runpy
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest
import transformers
from commands import load_example
from tiny_images import image_split, own_cache, write_folder, write_parquet
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hf_amp.vision import make_image_processor

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ("--output_dir", "out", "--max_steps", "2", "--logging_steps", "1")
FIGURES = ("erm_loss", "sharpness", "perturbation_norm", "skipped_ascents")


def run(script, folder, *words):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def changed_lines(script):
    """Lines of code of `script` that `minimal.py` has not, without its docstring."""
    codes = [(EXAMPLES / name).read_text().split('"""', 2)[2].splitlines() for name in ("minimal.py", script)]
    lines = [line[1:].strip() for line in unified_diff(*codes, n=0) if re.match(r"\+[^+]", line)]
    return [line for line in lines if not any(one in line for one in ("output_dir", "import", "args ="))]


@pytest.mark.slow
def test_the_smallest_example_runs_and_logs_the_figures_of_amp(tmp_path):
    output = run("minimal.py", tmp_path)
    assert all(f"'{name}'" in output for name in FIGURES)


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Runs an example in this process, which spares the import of everything."""
    monkeypatch.chdir(tmp_path)

    def run_example(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # users see it, too
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("by_feature/sam.py", ()),
        ("by_feature/cheap_ascent.py", ()),
        ("by_feature/any_trainer.py", (*SHORT, "--amp_epsilon", "0.02")),
    ],
)
def test_example_runs_and_logs_the_figures_of_amp(script, words, run_here):
    output = run_here(script, *words)
    assert all(f"'{name}'" in output for name in FIGURES)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # users see it, too
def test_the_search_tries_radii_and_says_which_was_best(run_here):
    output = run_here("by_feature/search_radius.py")
    assert re.search(r"best: amp_epsilon=0\.\d+ with a held-out loss of \d\.\d{3}", output)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("by_feature/sam.py", ["amp_epsilon=0.05,", 'amp_norm="global",', "amp_inner_lr=1e6,"]),
        ("by_feature/cheap_ascent.py", ["amp_ascent_fraction=0.125,"]),
    ],
)
def test_each_feature_changes_one_thing(script, lines):
    assert changed_lines(script) == lines


def save_classifier(folder):
    """A tiny image classifier with 7 classes and its processor, as from the Hub."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(num_labels=7, **sizes)).save_pretrained(folder)
    make_image_processor("cifar10", 8).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT reads it
@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_any_classifier_is_fine_tuned_on_a_folder_of_images(tmp_path, monkeypatch, peft, splits):
    own_cache(monkeypatch, tmp_path / "cache")
    model = save_classifier(tmp_path / "model")
    data = write_folder(tmp_path / "images", splits, ("cat", "dog"), per_class=10)
    words = ["--dataset", str(data), "--model", model, "--use_cpu", "--max_steps", "2", "--report_to", "none"]
    words += ["--amp_epsilon", "0.1"]
    words += ["--output_dir", str(tmp_path / "out"), *(["--peft"] if peft else [])]
    metrics = load_example("fine_tune").main([*words, *(["--hold_out", "0.2"] if splits == ("train",) else [])])
    assert {"eval_accuracy", "eval_nll", "eval_ece"} <= set(metrics)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `amp_epsilon` |" in card
    if not peft:
        assert str(tmp_path) not in card
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        assert loaded.config.id2label == {0: "cat", 1: "dog"}
    else:
        assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # nobody says use_cpu
def test_the_lines_of_the_readme_run_on_a_model_and_a_data_set_as_of_the_hub(tmp_path, monkeypatch):
    try:
        assert transformers.AutoImageProcessor.from_pretrained
    except ImportError:
        pytest.skip("transformers 5.5 to 5.17 gives out AutoImageProcessor with torchvision only")
    monkeypatch.chdir(tmp_path)
    own_cache(monkeypatch, tmp_path / "cache")
    text = (EXAMPLES.parent / "README.md").read_text().partition("## Use it")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    train = image_split(40, classes=10, image="img", size=(8, 8))
    here = {"microsoft/resnet-18": save_classifier(tmp_path / "model")}
    here["uoft-cs/cifar10"] = str(write_parquet(tmp_path / "images", train=train, test=train))
    for hub, folder in here.items():
        assert hub in code
        code = code.replace(hub, folder)
    names = {}
    exec(code, names)
    state = names["trainer"].state
    assert state.global_step == 15
    assert sum("eval_loss" in logs for logs in state.log_history) == 3


def test_a_data_set_that_is_not_there_is_one_line(tmp_path):
    words = ["--dataset", str(tmp_path / "no"), "--model", "x", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"error: .*does not exist"):
        load_example("fine_tune").main(words)


@pytest.mark.filterwarnings("ignore:unclosed file")  # datasets leaves that of a damaged image open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--hold_out", "2"), r"error: `hold_out` must be in \[0, 1\), got 2; 0.1 holds out a tenth"),
        (("--amp_epsilon", "nan"), "error: `amp_epsilon` must be"),
        (("--modell", "x"), "error: .*'--modell', 'x'"),
        ((), r"error: image \d+ .*cat.* cannot be read"),
    ],
)
def test_what_cannot_be_fine_tuned_is_one_line_before_any_step(tmp_path, monkeypatch, words, text):
    own_cache(monkeypatch, tmp_path / "cache")
    data = write_folder(tmp_path / "images", ("train", "test"), ("cat", "dog"), per_class=4)
    damaged = sorted((data / "test" / "cat").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    given = ["--dataset", str(data), "--model", save_classifier(tmp_path / "model"), "--use_cpu"]
    with pytest.raises(SystemExit, match=text):
        load_example("fine_tune").main([*given, "--output_dir", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
