import json
import math
import subprocess
import sys

import pytest
from commands import EXAMPLES, load_example


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the command says when it refuses these words, with exit status 2."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            load_example("quickstart").main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.slow
def test_quickstart_prints_and_writes_both_methods_on_both_kinds_of_labels(tmp_path):
    words = ["--epochs", "2", "--seeds", "0", "1", "--output_dir", str(tmp_path)]
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "quickstart.json").read_text())
    names = [f"{labels} / {method}" for labels in ("clean", "20% replaced") for method in ("Trainer", "AMPTrainer")]
    assert list(record["runs"]) == names
    for runs in record["runs"].values():
        assert [one["seed"] for one in runs] == [0, 1]
        assert all(0 <= one["error_rate"] <= 1 and math.isfinite(one["nll"]) for one in runs)
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quickstart.json", "quickstart.png"]
    mean = sum(one["error_rate"] for one in record["runs"]["clean / Trainer"]) / 2
    assert f"{100 * mean:.2f} ± " in done.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--epochs", 0), "--epochs must be >= 1, got 0; use the default of 30"),
        (("--seeds", 1, 1), "--seeds must be in [0, 2**32) and differ, got [1, 1]; name each once"),
        (("--seeds", -1), "--seeds must be in [0, 2**32) and differ, got [-1]; name each once"),
        (("--amp_epsilon", -1), "`amp_epsilon` must be finite and >= 0, got -1.0; use 0 to switch"),
    ],
)
def test_bad_options_are_refused(words, text, tmp_path, refused):
    assert text in refused(*words, "--output_dir", tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_other_settings_are_not_overwritten(tmp_path, refused):
    kept = json.dumps({"settings": {"amp_epsilon": 0.1, "epochs": 2, "seeds": [0]}})
    (tmp_path / "quickstart.json").write_text(kept)
    said = refused("--epochs", 2, "--seeds", 1, "--output_dir", tmp_path)
    assert "quickstart.json was made with other settings and is kept; give another --output_dir" in said
    assert (tmp_path / "quickstart.json").read_text() == kept


@pytest.mark.parametrize("damaged", ["{", "[]", '{"settings": 1}'])
def test_results_that_cannot_be_read_are_not_overwritten(damaged, tmp_path, refused):
    (tmp_path / "quickstart.json").write_text(damaged)
    said = refused("--output_dir", tmp_path)
    assert "give another" in said
    assert (tmp_path / "quickstart.json").read_text() == damaged


def test_a_file_is_no_place_for_results(tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    assert "file cannot be used (" in refused("--output_dir", tmp_path / "file")
