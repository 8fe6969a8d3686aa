"""The settings behind the figures are read by the commands that they name; what is told of the figures is theirs."""

import json
import math
import re
import statistics

import pytest
import yaml
from commands import EXAMPLES, TINY_MODEL, load_example
from huggingface_hub import ModelCard
from test_report_experiment import stop_at
from tiny_images import image_split, own_cache, write_parquet

from hf_amp.hub.card import is_untouched
from hf_amp.vision.train.command_line import read_settings

EVIDENCE = EXAMPLES / "evidence"
HEADLINES = ("headline_erm", "headline_amp")
WITH_LABELS_OF_PEOPLE = ("cifar10n_a", "cifar10n_b")


def test_every_file_of_settings_is_tested_here():
    names = {path.stem for path in EVIDENCE.glob("*.yaml")}
    assert names == {*HEADLINES, *WITH_LABELS_OF_PEOPLE}


@pytest.mark.parametrize("name", WITH_LABELS_OF_PEOPLE)
def test_studies_with_labels_of_people_hold_the_methods_and_choose_the_radius_of_sam_on_held_out_data(name):
    comparison = load_example("compare").parse(["--config", str(EVIDENCE / f"{name}.yaml")])
    twice = {"num_train_epochs": f"{2 * comparison.training.num_train_epochs:g}"}
    methods = [(variant.method, dict(variant.settings)) for variant in comparison.variants]
    expected = [
        ("erm", {}),
        ("amp", {}),
        ("amp", {"amp_epsilon": "0.5"}),
        ("amp", {"amp_ascent_fraction": "0.06", "amp_norm_stats": "descent"}),
        ("erm", twice),
        ("label_smoothing", {}),
        ("sam", {}),
    ]
    assert methods == expected
    assert list(comparison.training.all_seeds) == [0, 1, 2]
    assert comparison.data_arguments.validation_fraction == 0.1
    assert [(selection.method, selection.name) for selection in comparison.select] == [("sam", "amp_epsilon")]


@pytest.mark.parametrize("name", HEADLINES)
def test_headline_is_the_published_protocol_with_a_larger_batch(name):
    # A GPU is not here: bf16 and the compiled graph are taken back, as a trial on a CPU does.
    words = ["--config", str(EVIDENCE / f"{name}.yaml"), "--bf16", "false", "--torch_compile", "false", "--use_cpu"]
    model, data, training = read_settings(words)[0].arguments()
    recipe = f"cifar10_preactresnet18_{name.removeprefix('headline_')}"
    published_model, published_data, published = read_settings(["--recipe", recipe, "--use_cpu"])[0].arguments()
    assert (model, data) == (published_model, published_data)
    assert training.strengths() == published.strengths()
    for name, factor in (("per_device_train_batch_size", 4), ("learning_rate", 2)):
        assert math.isclose(getattr(training, name), factor * getattr(published, name))
    for same in ("method", "optim", "optim_args", "lr_schedule", "weight_decay", "max_grad_norm"):
        assert getattr(training, same) == getattr(published, same), same


@pytest.mark.slow
# As for any test with checkpoints of one second: transformers 5.0 warns of them.
@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
@pytest.mark.parametrize("name", HEADLINES)
def test_headline_trains_in_bf16_and_compiled_and_goes_on_where_it_was_stopped(name, tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path / "cache")
    options = {"classes": 10, "image": "img", "size": (32, 32)}
    images = write_parquet(tmp_path / "images", train=image_split(40, **options), test=image_split(20, **options))
    words = ["--config", str(EVIDENCE / f"{name}.yaml"), "--dataset_path", str(images), "--use_cpu"]
    words += ["--model_args", TINY_MODEL, "--num_train_epochs", "4", "--per_device_train_batch_size", "20"]
    words += ["--torch_compile_backend", "aot_eager", "--output_dir", str(tmp_path / "out")]
    command = load_example("image_classification")
    with monkeypatch.context() as patch:
        stop_at(patch, seed=0, step=5)
        with pytest.raises(KeyboardInterrupt):
            command.main(words)
    (run,) = command.main(words)["runs"]
    assert (run["continued_from_step"], run["steps"], len(run["curves"])) == (4, 8, 4)
    assert 0 <= run["test"]["last"]["error_rate"] <= 1
    assert all(("perturbation_norm" in point) == (name == "headline_amp") for point in run["curves"])


def test_studies_with_labels_of_people_differ_in_what_makes_them_overfit():
    first, second = (yaml.safe_load((EVIDENCE / f"{name}.yaml").read_text()) for name in WITH_LABELS_OF_PEOPLE)
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == {
        "methods",  # ERM has twice the epochs
        "select",  # where ERM over-fits, the best radius of SAM lies higher
        "model_args",
        "num_train_epochs",
        "augmentation",
        "learning_rate",
    }


@pytest.mark.slow
def test_studies_with_labels_of_people_run_when_shortened(tmp_path, monkeypatch, capsys):
    own_cache(monkeypatch, tmp_path / "cache")
    options = {"classes": 10, "image": "img", "size": (32, 32)}
    images = write_parquet(tmp_path / "images", train=image_split(80, **options), test=image_split(20, **options))
    (tmp_path / "people.csv").write_text("worst\n" + "\n".join(str((i + i % 2) % 10) for i in range(80)))
    words = ["--config", str(EVIDENCE / "cifar10n_b.yaml"), "--dataset_path", str(images), "--use_cpu", "--seeds", "0"]
    words += ["--train_labels", f"{tmp_path / 'people.csv'}:worst", "--output_dir", str(tmp_path / "cifar10n_b_worst")]
    words += ["--model_args", TINY_MODEL, "--torch_compile", "false", "--per_device_train_batch_size", "36"]
    content = load_example("compare").main([*words, "--num_train_epochs", "2"])
    rows = {row["label"]: row for row in content["rows"]}
    assert [len(row["selections"]) for row in rows.values()] == [int(label == "SAM") for label in rows]
    assert {"ERM", "AMP", "AMP (amp_epsilon=0.5)", "Label smoothing"} < set(rows)
    assert all(0 <= row["summary"]["best"]["error_rate"]["mean"] <= 1 for row in rows.values())
    (study,) = load_example("benchmarks/cifar10n").main(
        [str(tmp_path / "cifar10n_b_worst"), "--output_dir", str(tmp_path)]
    )
    assert (study["regime"], study["labels"], len(study["rows"])) == ("b", "worst", len(rows))
    passes = {row["label"]: row["passes"]["0"] for row in study["rows"]}
    assert (passes["ERM"], passes["ERM (num_train_epochs=40)"], passes["Label smoothing"]) == (2, 40, 2)
    assert passes["AMP (amp_epsilon=0.5)"] == passes["SAM"] == 4
    table = capsys.readouterr().out
    mean = 100 * rows["AMP"]["summary"]["last"]["error_rate"]["mean"]
    assert f"| SAM, ε = {rows['SAM']['settings']['amp_epsilon']} (chosen) | 1 |" in table
    seconds = rows["AMP"]["summary"]["seconds"]["mean"]
    assert re.search(rf"\| worst \| b \| AMP, nothing set \| 1 \| {mean:.2f} \| .* \| {seconds:.0f} \|", table)
    assert (tmp_path / "cifar10n.png").read_bytes().startswith(b"\x89PNG")


def test_no_figures_name_places_of_one_machine():
    files = [*EVIDENCE.rglob("*.json"), *EVIDENCE.rglob("*.yaml"), *EVIDENCE.rglob("*.md")]
    assert len(files) > len(WITH_LABELS_OF_PEOPLE)
    for path in files:
        text = path.read_text()
        assert all(place not in text for place in ("/tmp", "/work", "/home", "/root")), path


@pytest.mark.parametrize("page", ["README.md", "examples/benchmarks/RESULTS.md"])
def test_every_figure_that_is_shown_is_there(page):
    page = EXAMPLES.parent / page
    text = page.read_text()
    places = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    places += [re.search(rf"^\[{name}\]: (.+)$", text, re.M)[1] for name in re.findall(r"!\[[^\]]+\]\[(\w+)\]", text)]
    shown = [page.parent / place for place in places]
    assert shown
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shown)


def test_changes_by_the_default_radius_are_those_of_its_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    grid = load_example("benchmarks/default_radius")
    tasks = json.loads((EVIDENCE / "figures" / "default_radius.json").read_text())["tasks"]
    results = (EXAMPLES / "benchmarks" / "RESULTS.md").read_text()
    for name, task in tasks.items():
        summary = grid.summary_of(task["rows"])
        errors = {way: f"{error:.1f}" for way, error in summary["errors"].items()}
        assert f"{errors['erm']} → {errors['default']} ({errors.get('0.5', '–')})" in results, name
    harmed = [name for name, task in tasks.items() if grid.summary_of(task["rows"])["harms"]]
    assert harmed == []
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert f"in none of {len(tasks)} tasks" in results
    assert f"in none of {len(tasks)} tasks" in readme
    mean, error, seeds = grid.summary_of(tasks["cifar10n_aggregate_18000_30epochs"]["rows"])["default"]
    assert (f"{mean:+.2f} ± {error:.2f} points", seeds) == (re.search(r"[-+]\d\.\d\d ± \d\.\d\d points", results)[0], 3)
    told = results.replace("\n ", "")
    rows = {name: task["rows"] for name, task in tasks.items()}
    summaries = {name: grid.summary_of(of_task) for name, of_task in rows.items()}
    whole = [name for name, one in summaries.items() if one["best_constant"]]
    changes = {way: [grid.paired(rows[name], way, "erm") for name in whole] for way in grid.CONSTANT}
    harm = {way: sum(mean > (error or 0) for mean, error, _ in values) for way, values in changes.items()}
    assert all(harm.values())
    assert f"0.5 in {harm['0.5']} and 0.05 in {harm['0.05']} of the {len(whole)} tasks in which all five" in told
    shares = [one["share_of_gain"] for one in summaries.values() if one["share_of_gain"] is not None]
    assert (
        f"in the {len(shares)} tasks where one gains, the default has {statistics.mean(shares):.0%}".replace("%", " %")
        in told
    )
    together = [grid.paired(of_task, "together", "default") for of_task in rows.values() if of_task.get("together")]
    better, worse = (sum(sign * mean > (error or 0) for mean, error, _ in together) for sign in (-1, 1))
    assert f"better than the default in {better} of the {len(together)} tasks in which it was tried" in told
    assert f"and worse in {worse}, most of them with wrong ones" in told
    for steps in (5, 100):
        parts = [
            summaries[f"{kind}_every{steps}steps_{noise}"]["default"][0] / summaries[f"{kind}_{noise}"]["default"][0]
            for kind, noise in (("mlp_30epochs", "noise0.3"), ("gru_20epochs", "noise0"), ("gru_20epochs", "noise0.2"))
        ]
        assert f"{100 * min(parts):.0f} to {100 * max(parts):.0f} %" in told
    by_images = ("ascent_0.02", "ascent_0.06", "ascent_0.24", "default")
    means = [errors for task in tasks.values() if (errors := task["summary"]["errors"]).keys() >= {*by_images}]
    assert len(means) >= 2
    for errors in means:
        *some, whole = (f"{errors[way]:.1f}" for way in by_images)
        assert f"{', '.join(some)} and {whole} %" in results
    assert tasks.keys() == grid.TASKS.keys()
    assert not list(grid.runs_to_make(grid.parse(["--data", "data"]), rows))
    assert (EVIDENCE / "figures" / "default_radius.md").read_text() == f"{grid.table(tasks)}\n"
    when = readme.partition("## When it helps")[2].partition("- **")[0]
    told = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| [^|]+ \| ([\d.]+|–) \|", when)
    rows = [task["summary"]["errors"] for task in tasks.values()]
    shown = {tuple(f"{row[way]:.1f}" if way in row else "–" for way in ("erm", "default", "0.5")) for row in rows}
    people = json.loads((EVIDENCE / "figures" / "cifar10n.json").read_text())["studies"]
    for study in people:
        tests = {row["label"]: row["test"].values() for row in study["rows"]}
        means = {
            label: f"{100 * statistics.mean(run['last']['error_rate'] for run in runs):.1f}"
            for label, runs in tests.items()
        }
        shown.add((means["ERM"], means["AMP"], means.get("AMP (amp_epsilon=0.5)", "–")))
    assert len(told) == 7
    assert set(told) <= shown


def test_errors_with_labels_of_people_are_those_of_the_figures():
    studies = json.loads((EVIDENCE / "figures" / "cifar10n.json").read_text())["studies"]
    results = (EXAMPLES / "benchmarks" / "RESULTS.md").read_text()
    table = load_example("benchmarks/cifar10n").table(studies).splitlines()
    assert len(table) >= 6
    assert all(line in results for line in table)
    default = [row for study in studies if study["regime"] == "a" for row in study["rows"] if row["label"] == "AMP"]
    largest = [max(radius or 0 for radius in of_seed) for row in default for of_seed in row["radii"].values()]
    assert (len(largest), largest.count(0), max(largest)) == (9, 7, 0.03)  # "in seven of the nine trainings"


def test_methods_and_seeds_of_other_folders_stay_in_the_figures_of_labels_of_people():
    merged = load_example("benchmarks/cifar10n").merged
    studies = json.loads((EVIDENCE / "figures" / "cifar10n.json").read_text())["studies"]
    assert merged(studies) == studies

    def row(label, **seeds):
        return {"label": label, **dict.fromkeys(("test", "training_loss", "radii", "passes", "seconds"), seeds)}

    def study(labels, *rows, regime="b"):
        return {"regime": regime, "labels": labels, "rows": list(rows), "versions": {}}

    before = [study("worst", row("SAM", s0=1), row("ERM", s0=1, s1=2))]
    whole = merged([*before, study("official", row("ERM", s0=7)), study("worst", row("AMP", s2=3), row("ERM", s1=9))])
    assert whole == [
        study("official", row("ERM", s0=7)),
        study("worst", row("ERM", s0=1, s1=9), row("AMP", s2=3), row("SAM", s0=1)),
    ]
    assert [one["regime"] for one in merged([study("worst"), study("worst", regime="a")])] == ["a", "b"]


def test_a_study_without_plain_training_is_refused_before_anything_is_written(tmp_path, capsys):
    folder = tmp_path / "cifar10n_b_worst"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"rows": [], "versions": {}}))
    with pytest.raises(SystemExit):
        load_example("benchmarks/cifar10n").main([str(folder), "--output_dir", str(tmp_path / "out")])
    assert "regime b with labels 'worst' has no ERM to compare with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_figure_of_labels_of_people_has_two_bars_for_each_study(monkeypatch):
    study = load_example("benchmarks/cifar10n")
    studies = json.loads((EVIDENCE / "figures" / "cifar10n.json").read_text())["studies"]
    monkeypatch.setattr(study, "save_png", lambda figure, path: path.append(figure))
    study.save_figure(drawn := [], studies)
    bars = [bar.get_height() for axes in drawn[0].axes for bar in axes.patches]
    errors = [
        100 * statistics.mean(run["last"]["error_rate"] for run in row["test"].values())
        for regime in ("b", "a")
        for one in studies
        for row in one["rows"]
        if one["regime"] == regime and row["label"] in ("ERM", "AMP")
    ]
    assert len(bars) == 2 * len(studies)
    assert bars == pytest.approx(errors)


def test_cards_hold_what_was_measured():
    studies = json.loads((EVIDENCE / "figures" / "cifar10n.json").read_text())["studies"]
    measured = {run["last"]["error_rate"] for study in studies for row in study["rows"] for run in row["test"].values()}
    cards = list((EXAMPLES.parent / "model_cards").glob("*/README.md"))
    assert cards
    for path in cards:
        text = path.read_text()
        card = ModelCard(text)
        assert is_untouched(text), path
        assert card.data.model_name == path.parent.name
        (error,) = (
            one.metric_value
            for one in card.data.eval_results
            if (one.dataset_split, one.metric_name) == ("test", "error rate, last epoch")
        )
        assert error in measured, path
        assert f'model="{path.parent.name}"' in text
        assert all((path.parent / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
        assert all(place not in text for place in ("/tmp", "/work", "/home", "/root")), path


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("Trainer", "2.030 ± 0.003"),
        ("plain two-pass Trainer", "1.001 ± 0.003"),
        ("plain two-pass loop", "0.998 ± 0.003"),
    ],
)
def test_mean_cost_beside_each_base_is_that_of_the_figures(base, shown):
    names = ("plain_passes", "plain_passes_batch_4")
    ratios = [
        ratio
        for name in names
        for model in json.loads((EVIDENCE / "figures" / f"{name}.json").read_text())["models"].values()
        for ratio in model["rows"][base]["ratios"]
    ]
    logs = [math.log(ratio) for ratio in ratios]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    assert len(ratios) == 80
    assert f"{math.exp(statistics.mean(logs)):.3f} ± {error:.3f}" == shown
    assert shown in (EXAMPLES / "benchmarks" / "RESULTS.md").read_text()
