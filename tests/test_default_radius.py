"""The grid of tasks for the default radius: what it trains, what its table says, and that it continues."""

import dataclasses
import re

import pytest
from commands import EXAMPLES, load_example
from tiny_images import image_split, own_cache, write_parquet


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    return load_example("benchmarks/default_radius")


def rows(**errors):
    """Rows of one task: way → errors by seed."""
    return {
        way: {str(seed): {"error": error, "best_error": error - 1, "seconds": 2.0} for seed, error in enumerate(values)}
        for way, values in errors.items()
    }


def constants(**errors):
    return {
        way: errors.get(f"r{way.replace('.', '')}", [50.0, 52.0, 54.0]) for way in ("0.5", "0.3", "0.2", "0.1", "0.05")
    }


def test_a_loss_beyond_its_standard_error_is_harm(grid):
    harmed = grid.summary_of(rows(erm=[10.0, 12.0, 14.0], default=[11.0, 13.1, 14.9]))
    assert harmed["default"] == pytest.approx((1.0, 0.0577, 3), abs=1e-3)
    assert harmed["harms"]
    assert not grid.summary_of(rows(erm=[10.0, 12.0, 14.0], default=[12.0, 11.0, 14.1]))["harms"]
    assert not grid.summary_of(rows(erm=[10.0], default=[10.0]))["harms"]


def test_the_share_of_the_gain_is_that_of_the_best_constant_radius(grid):
    made = rows(erm=[40.0, 42.0, 44.0], default=[34.0, 36.0, 38.0], **constants(r01=[30.0, 32.0, 34.0]))
    summary = grid.summary_of(made)
    assert summary["best_constant"] == "0.1"
    assert summary["share_of_gain"] == pytest.approx(0.6)
    table = grid.table({"a": {"rows": made, "summary": summary}})
    assert "| a | 3 | 42.0 | 41.0 | – | 36.0 | -6.00 ± 0.00 | 32.0 (0.1) | 52.0 | 60% | – | – | – | 2 | 2 |" in table
    assert "Worse than ERM by more than a standard error, or in the only seed: none, of 1." in table
    assert "Share of the best constant radius's gain: 60% in 1 tasks." in table


def test_the_share_is_that_on_the_seeds_of_the_constant_radius(grid):
    fewer = {way: [50.0, 52.0] if way != "0.1" else [30.0, 32.0] for way in constants()}
    made = rows(erm=[40.0, 42.0, 44.0], default=[34.0, 36.0, 44.0], **fewer)
    assert grid.summary_of(made)["share_of_gain"] == pytest.approx(0.6)


def test_a_single_seed_has_no_standard_error(grid):
    made = rows(erm=[40.0], default=[34.0], **constants(r01=[30.0]))
    assert grid.summary_of(made)["share_of_gain"] == pytest.approx(0.6)
    assert not grid.summary_of(made)["harms"]
    assert grid.summary_of(rows(erm=[34.0], default=[34.1]))["harms"]
    assert "| a | 1 | 40.0 | 39.0 | – | 34.0 | -6.00 | 30.0 (0.1) |" in grid.table(
        {"a": {"rows": made, "summary": grid.summary_of(made)}}
    )


def test_where_no_constant_radius_gains_there_is_no_share(grid):
    summary = grid.summary_of(rows(erm=[40.0, 42.0], default=[40.0, 42.0], **constants()))
    assert summary["share_of_gain"] is None


def test_the_best_constant_radius_is_chosen_by_the_seeds_that_all_five_have(grid):
    later = constants(r03=[36.0], r01=[35.0, 46.0, 48.0], r005=[37.0, 10.0])
    made = rows(erm=[40.0, 42.0, 44.0], default=[34.0, 36.0, 38.0], **{**later, "0.5": [52.0], "0.2": [50.0]})
    summary = grid.summary_of(made)
    assert summary["best_constant"] == "0.1"
    assert summary["constant"] == pytest.approx((1.0, 3.0, 3))
    assert summary["share_of_gain"] is None
    del made["0.2"]
    assert grid.summary_of(made)["best_constant"] is None
    equal = constants(r05=[0.1, 0.2, 0.3], r01=[0.3, 0.2, 0.1])
    assert grid.summary_of(rows(erm=[1.0], default=[1.0], **equal))["best_constant"] == "0.5"


def test_where_a_run_takes_minutes_the_first_seed_chooses_the_constant_radius(grid, tmp_path, monkeypatch):
    long, short = "vit_40epochs_noise0", "mlp_30epochs_noise0"
    assert [grid.TASKS[name].first_seed_chooses for name in (long, short)] == [True, False]
    made = []

    def run(name, way, seed, *folders):
        made.append((name, way, seed))
        return {"error": 30.0 if way == "0.1" else 40.0 + seed, "best_error": None, "seconds": 1.0}

    monkeypatch.setattr(grid, "run_task", run)
    words = ["--tasks", long, short, "--seeds", "0", "1", "2", "--output_dir", str(tmp_path)]
    tasks = grid.main([*words, "--ways", "erm", *grid.CONSTANT])["tasks"]
    assert [way for name, way, seed in made if (name, seed) == (long, 0)] == ["erm", *grid.CONSTANT]
    assert [way for name, way, seed in made if (name, seed) == (long, 2)] == ["erm", "0.1"]
    assert [way for name, way, seed in made if (name, seed) == (short, 2)] == ["erm", *grid.CONSTANT]
    assert [task["summary"]["best_constant"] for task in tasks.values()] == ["0.1", "0.1"]
    assert tasks[long]["summary"]["constant"][2] == 3


@pytest.mark.slow
def test_a_task_is_trained_in_every_way_and_never_again(grid, tmp_path, monkeypatch):
    import default_radius_tasks as tasks

    small = tasks.digits(0.5, 12, 0.4)
    small = dataclasses.replace(small, settings={**small.settings, "learning_rate": 0.2}, train=150, held_out=60)
    monkeypatch.setitem(grid.TASKS, "digits_width0.5_10epochs_noise0.4", small)
    monkeypatch.setattr("default_radius_made.TEXTS", (120, 60, 200))
    words = ["--tasks", "digits_width0.5_10epochs_noise0.4", "text_20epochs_noise0.2", "--seeds", "0"]
    words += ["--ways", "erm", "default", "0.1", "together", "--output_dir", str(tmp_path)]
    content = grid.main(words)
    of_images = content["tasks"]["digits_width0.5_10epochs_noise0.4"]["rows"]
    assert of_images["erm"]["0"]["best_error"] is not None
    assert of_images["together"]["0"]["best_error"] is None  # nothing is held out, nothing evaluated
    for task in content["tasks"].values():
        assert set(task["rows"]) == {"erm", "default", "0.1", "together"}
        assert task["rows"]["default"]["0"]["largest_radius"] > 0
        assert task["rows"]["erm"]["0"]["largest_radius"] == 0
        assert all(0 < row["0"]["error"] < 100 for row in task["rows"].values())
    monkeypatch.setattr(grid, "run_task", None)
    again = grid.main(words)["tasks"]
    assert {name: task["rows"] for name, task in again.items()} == {
        name: task["rows"] for name, task in content["tasks"].items()
    }
    assert (tmp_path / "default_radius.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["text", "regression", "mlp", "lenet", "tabular", "vit", "gru", "bert", "gpt2"])
def test_made_tasks_hold_out_labels_that_are_as_wrong_as_those_of_the_training(grid, kind):
    import default_radius_made as made

    assert kind in made.MADE
    model, clean, _ = made.MADE[kind]("default", 0, 0.0)
    _, wrong, _ = made.MADE[kind]("default", 0, 0.4)
    changed = [share_of_other_labels(*both) for both in zip(clean, wrong, strict=True)]
    if kind == "gpt2":  # its labels are its text
        assert changed == [0, 0, 0]
    else:
        assert changed[2] == 0
        assert all(0.25 < share <= (1 if kind == "regression" else 0.55) for share in changed[:2]), changed
    _, together, _ = made.MADE[kind]("together", 0, 0.0)
    assert len(together[0]) == len(clean[0]) + len(clean[1])
    loss = model(**{name: values[:8] for name, values in clean[2].datasets.items()})["loss"]
    assert 0 < loss.item() < 10


def test_made_tasks_are_evaluated_as_often_as_their_names_say(grid, tmp_path, monkeypatch):
    import default_radius_made as made

    evaluated = []

    class Noting(made.AMPTrainer):
        def evaluate(self, *args, **kwargs):
            evaluated.append(self.state.global_step)
            return super().evaluate(*args, **kwargs)

    model, data, _ = made.tabular("default", 0, 0.0)  # 250 samples: 8 steps an epoch
    monkeypatch.setattr(made, "AMPTrainer", Noting)
    monkeypatch.setitem(made.MADE, "tabular", lambda *_: (model, data, {"num_train_epochs": 2}))
    for steps, expected in ((None, {8, 16}), (5, {5, 10, 15, 16})):
        evaluated.clear()
        made.made_run("tabular", "default", 0, 0.0, tmp_path, steps)
        assert set(evaluated) == expected  # and on the test data after the last step
    named = {name: task.eval_steps for name, task in grid.TASKS.items() if "_every" in name}
    assert named.keys() == {name for name, task in grid.TASKS.items() if task.eval_steps}
    assert all(f"_every{steps}steps_" in name for name, steps in named.items())


def test_what_follows_no_evaluation_is_trained_once_and_not_for_each_number_of_steps(grid, tmp_path, monkeypatch):
    import default_radius_made as made

    tabular = made.MADE["tabular"]
    monkeypatch.setitem(made.MADE, "tabular", lambda *own: (*tabular(*own)[:2], {"num_train_epochs": 3}))
    for way in ("0.5", "together"):
        errors = {made.made_run("tabular", way, 0, 0.0, tmp_path, steps)["error"] for steps in (None, 5)}
        assert len(errors) == 1
    by_steps = {name for name, task in grid.TASKS.items() if task.eval_steps}
    for name in by_steps:
        assert grid.ways_of(name) == ("erm", "default")
        assert set(grid.ways_of(re.sub(r"_every\d+steps", "", name))) == {"erm", "default", *grid.FOLLOW_NOTHING}
    assert len(by_steps) == 8


def share_of_other_labels(left, right):
    return (left.datasets["labels"] != right.datasets["labels"]).float().mean().item()


@pytest.mark.slow
def test_a_regression_is_plain_by_default_and_perturbed_by_a_constant_radius(grid, tmp_path):
    words = ["--tasks", "regression_60epochs_noise0.3", "--seeds", "0", "--ways", "erm", "default", "0.05"]
    rows = grid.main([*words, "--output_dir", str(tmp_path)])["tasks"]["regression_60epochs_noise0.3"]["rows"]
    errors = {way: row["0"]["error"] for way, row in rows.items()}
    assert errors["default"] == errors["erm"] != errors["0.05"]
    assert 0 < errors["erm"] < 100
    assert rows["default"]["0"]["largest_radius"] == 0


@pytest.mark.slow
def test_images_without_a_test_split_are_tested_on_their_validation_split(grid, tmp_path, monkeypatch):
    import default_radius_tasks as tasks

    own_cache(monkeypatch, tmp_path / "cache")
    splits = {
        "train": image_split(40, classes=10, size=(32, 32)),
        "validation": image_split(12, classes=10, size=(32, 32)),
    }
    write_parquet(tmp_path / "data" / "svhn-small", **splits)
    name = "svhn_from_cifar10_20epochs_noise0.4"
    settings = {**tasks.TASKS[name].settings, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    settings["model_args"] = tasks.network(0.5, (8, 16))
    small = dataclasses.replace(tasks.TASKS[name], settings=settings, train=30, held_out=10, start=None)
    monkeypatch.setitem(grid.TASKS, name, small)
    monkeypatch.setitem(tasks._SIZES, "svhn", 40)
    words = ["--tasks", name, "--ways", "erm", "default", "--seeds", "0", "--data", str(tmp_path / "data")]
    task = grid.main([*words, "--output_dir", str(tmp_path / "out")])["tasks"][name]
    errors = {way: rows["0"]["error"] for way, rows in task["rows"].items()}
    assert errors.keys() == {"erm", "default"}
    assert all(round(error * 12 / 100, 2).is_integer() for error in errors.values())  # of the 12 validation images


def test_tasks_without_their_images_are_refused(grid, capsys):
    with pytest.raises(SystemExit):
        grid.main(["--tasks", "cifar10_1500_15epochs_noise0_none"])
    assert "--tasks cifar10_1500_15epochs_noise0_none needs images; add --data FOLDER" in capsys.readouterr().err
