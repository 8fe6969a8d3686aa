"""Results are written whole, never mixed between settings, and summed up as statistics says."""

import json
import math
import os
import shutil
import statistics

import pytest

from hf_amp.hub.learning_curves import save_learning_curves
from hf_amp.vision.report.figures import save_comparison
from hf_amp.vision.report.results import (
    check_output_dir,
    format_mean,
    mean_and_standard_error,
    note_settings,
    own_folder,
    read_json,
    results_table,
    summarise,
    write_json,
)

PNG = b"\x89PNG"


def run(seed, error, best=True):
    metrics = {"accuracy": 1 - error, "error_rate": error, "nll": 3 * error, "ece": error / 2}
    return {
        "seed": seed,
        "best_selected_on": "validation",
        "test": {"last": metrics, "best": dict(metrics) if best else None},
        "seconds": 2.0,
        "sharpness": 0.1,
        "eval_split": "validation",
        "curves": [{"epoch": e, "step": e, "loss": 1 / e, "eval_error_rate": error, "eval_nll": 1 / e} for e in (1, 2)],
    }


def test_what_is_written_is_read_again(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "ε"}}
    write_json(tmp_path / "new" / "x.json", content)
    assert read_json(tmp_path / "new" / "x.json") == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"nll": float("nan"), "all": (float("inf"), 1.0)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"nll": None, "all": [None, 1.0]}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"old": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "x.json", {"new": 1})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"seed": 0, "te')
    with pytest.raises(ValueError, match=r"results.json is not a JSON file .* delete it to run that part again"):
        read_json(tmp_path / "results.json")
    assert read_json(tmp_path / "missing.json") is None


def test_other_settings_in_the_same_folder_are_refused_and_named(tmp_path):
    check_output_dir(tmp_path, {"method": "amp"})  # nothing there yet
    note_settings(tmp_path, {"method": "amp", "amp_epsilon": 0.1, "only_old": 1})
    check_output_dir(tmp_path, {"method": "erm"})  # nothing was trained, as after a run that was refused
    (tmp_path / "seed_0").mkdir()
    check_output_dir(tmp_path, {"method": "erm"})
    (tmp_path / "seed_0" / "checkpoint-4").mkdir()
    check_output_dir(tmp_path, {"method": "amp", "amp_epsilon": 0.1, "only_new": 2})
    text = r"holds a run with other settings \(amp_epsilon: 0.1 there, 0.5 now\); give another --output_dir"
    with pytest.raises(ValueError, match=text):
        check_output_dir(tmp_path, {"method": "amp", "amp_epsilon": 0.5})


def test_results_of_unknown_origin_are_not_overwritten(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="what made it is not known; give another --output_dir"):
        check_output_dir(tmp_path, {"method": "amp"})


def test_settings_that_were_cut_off_are_refused_with_a_remedy_that_works(tmp_path):
    folder = tmp_path / "run"
    note_settings(folder, {"method": "amp"})
    (folder / "settings.json").write_text('{"method": "a')
    (folder / "seed_0" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is not a whole JSON file.*remove the folder .*or give another --output_dir"):
        check_output_dir(folder, {"method": "amp"})
    shutil.rmtree(folder)
    check_output_dir(folder, {"method": "amp"})


def test_a_folder_that_cannot_be_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(NotADirectoryError, match=r"cannot be a folder, since .*file is a file; give another one"):
            check_output_dir(tmp_path / place, {})
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a folder of somebody else
    with pytest.raises(PermissionError, match="cannot be written to; give another one, or make"):
        check_output_dir(tmp_path / "new", {})


def test_two_runs_cannot_have_one_folder(tmp_path):
    with own_folder(tmp_path):
        with (
            pytest.raises(BlockingIOError, match="is in use by another run; wait for it, or give another"),
            own_folder(tmp_path),
        ):
            pass
        with own_folder(tmp_path / "another"):
            pass
    with own_folder(tmp_path):
        pass


def test_mean_and_standard_error():
    values = [0.1, 0.2, 0.4]
    expected = {"mean": statistics.mean(values), "standard_error": statistics.stdev(values) / math.sqrt(3), "n": 3}
    assert mean_and_standard_error(values) == pytest.approx(expected)
    assert mean_and_standard_error([0.3]) == {"mean": 0.3, "standard_error": None, "n": 1}
    assert mean_and_standard_error([]) is None
    assert mean_and_standard_error([0.1, None]) is None
    assert mean_and_standard_error([0.1, float("nan")]) is None


def test_summary_over_seeds():
    summary = summarise([run(0, 0.1), run(1, 0.3)])
    assert summary["last"]["error_rate"] == pytest.approx({"mean": 0.2, "standard_error": 0.1, "n": 2})
    assert summary["best"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert summary["seconds"]["mean"] == 2.0


def test_a_seed_without_best_weights_leaves_no_mean_of_the_others():
    summary = summarise([run(0, 0.1), run(1, 0.3, best=False)])
    assert summary["best"]["error_rate"] is None
    assert summary["last"]["error_rate"]["n"] == 2


def test_table_of_one_experiment():
    runs = [run(0, 0.1), run(1, 0.3)]
    results = {"summary": summarise(runs), "runs": runs, "tested_on": "test"}
    table = results_table(results).splitlines()
    assert table[0].startswith("| test, 2 seed(s) |")
    assert table[2] == "| last epoch | 80.00 ± 10.00 | 20.00 ± 10.00 | 0.600 ± 0.300 | 10.00 ± 5.00 |"
    assert table[3].startswith("| best, chosen on validation | 80.00")
    only = [{**one, "best_selected_on": "test"} for one in runs]  # of data without a test split
    table = results_table({**results, "runs": only, "tested_on": "validation"}).splitlines()
    assert table[0].startswith("| validation, 2 seed(s) |")
    assert table[3].startswith("| best, chosen on validation |")
    assert format_mean(None) == "–"
    assert format_mean({"mean": 0.1234, "standard_error": None}, 100, 1) == "12.3"


def test_figures_are_written(tmp_path):
    runs = [run(0, 0.1), run(1, 0.3)]
    runs[0]["curves"][0]["sharpness"] = 0.2
    save_learning_curves(tmp_path / "curves.png", runs, "AMP")
    rows = [
        {"label": label, "label_noise": noise, "summary": summarise(runs)}
        for label in ("ERM", "$10 $_ AMP")  # no formula, and no error
        for noise in (0.0, 0.2)
    ]
    save_comparison(tmp_path / "comparison.png", rows, "$digits_$ $")
    for name in ("curves.png", "comparison.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
