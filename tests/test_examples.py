"""The small examples, run as a user runs them."""

import re
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
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
    return [line for line in lines if "output_dir" not in line and "import" not in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("minimal.py", ()),
        ("by_feature/sam.py", ()),
        ("by_feature/cheap_ascent.py", ()),
        ("by_feature/any_trainer.py", ("--output_dir", "out", "--max_steps", "2", "--logging_steps", "1")),
    ],
)
def test_example_runs_and_logs_the_figures_of_amp(script, words, tmp_path):
    output = run(script, tmp_path, *words)
    assert all(f"'{name}'" in output for name in FIGURES)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("by_feature/sam.py", ['amp_norm="global",', "amp_inner_lr=1e6,"]),
        ("by_feature/cheap_ascent.py", ["amp_ascent_fraction=0.125,"]),
    ],
)
def test_each_feature_changes_one_thing(script, lines):
    assert changed_lines(script) == lines
