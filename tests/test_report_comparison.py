"""The comparison runs what is missing, chooses on validation images only, and shows what came out."""

import json

import pytest
from commands import EXAMPLES, TINY, compare, load_example
from tiny_images import image_split, own_cache, write_parquet

from hf_amp.vision.report.comparison import Comparison
from hf_amp.vision.report.results import comparison_table
from hf_amp.vision.report.run import SeedRun
from hf_amp.vision.report.variants import Selection, Variant
from hf_amp.vision.train.command_line import Settings

# transformers 5.0 warns when two checkpoints are written within a second, as only tests do.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable")

FLAGS = ("--methods", "erm", "amp:amp_epsilon=0.05", "--label_noise", "0", "0.2", "--seeds", "0", "1")


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained, in order: (folder's name, seed)."""
    done = []
    original = SeedRun.run

    def counting(self):
        done.append((self.folder.parent.name, self.seed))
        return original(self)

    monkeypatch.setattr(SeedRun, "run", counting)
    return done


def test_table_figure_and_file_of_a_comparison_that_was_stopped_and_continued(tmp_path, trained, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        counted = SeedRun.run

        def stopping(self):
            if len(trained) == 3:
                raise KeyboardInterrupt
            return counted(self)

        patch.setattr(SeedRun, "run", stopping)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path, *FLAGS)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["complete"], len(written["rows"])) == (False, 1)
    first = list(trained)
    assert first == [("erm", 0), ("erm", 1), ("amp_amp_epsilon=0.05", 0)]

    content = compare(tmp_path, *FLAGS)
    rest = trained[3:]
    assert rest == [
        ("amp_amp_epsilon=0.05", 1),
        *(("erm", seed) for seed in (0, 1)),
        *(("amp_amp_epsilon=0.05", seed) for seed in (0, 1)),
    ]
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["complete"]
    assert written["rows"] == json.loads(json.dumps(content["rows"]))
    keys = [(row["label"], row["label_noise"]) for row in written["rows"]]
    amp = "AMP (amp_epsilon=0.05)"
    assert keys == [("ERM", 0.0), (amp, 0.0), ("ERM", 0.2), (amp, 0.2)]
    for row in written["rows"]:
        errors = [test["last"]["error_rate"] for test in row["test"].values()]
        assert row["summary"]["last"]["error_rate"]["mean"] == pytest.approx(sum(errors) / 2)
        assert row["summary"]["sharpness"]["n"] == 2
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.count("| 20% | ERM |") == 2  # last and best
    assert "± " in out

    before = len(trained)
    compare(tmp_path, *FLAGS)
    assert len(trained) == before


def test_radius_is_chosen_on_the_validation_images_and_recorded(tmp_path, trained):
    flags = ("--methods", "erm", "amp", "--select", "amp_epsilon=0.01,5", "--validation_fraction", "0.3")
    content = compare(tmp_path, *flags, "--seeds", "0", "1")
    erm, amp = content["rows"]
    assert erm["selections"] == []
    (record,) = amp["selections"]
    assert (record["name"], record["seeds"]) == ("amp_epsilon", [0])
    scores = {one["value"]: (one["validation_error_rate"], one["validation_nll"]) for one in record["candidates"]}
    assert set(scores) == {"0.01", "5"}
    assert record["chosen"] == min(scores, key=scores.get)
    assert amp["settings"] == {"amp_epsilon": record["chosen"]}
    # Each candidate with the choosing seed, then only the chosen one with the others.
    chosen, other = (f"amp_amp_epsilon={v}" for v in sorted(scores, key=scores.get))
    assert sorted(trained[2:]) == sorted([(chosen, 0), (other, 0), (chosen, 1)])
    results = json.loads((tmp_path / "noise0" / chosen / "results.json").read_text())
    assert results["settings"]["amp_epsilon"] == float(record["chosen"])
    run = results["runs"][0]
    assert scores[record["chosen"]][0] == run["validation"]["error_rate"]


def test_a_candidate_that_diverges_is_not_chosen(tmp_path, monkeypatch):
    original = SeedRun.run

    def diverging(self):
        result = original(self)
        if "0.01" in self.folder.parent.name:
            result["validation"] = dict.fromkeys(result["validation"], float("nan"))
        return result

    monkeypatch.setattr(SeedRun, "run", diverging)
    flags = ("--methods", "amp", "--select", "amp_epsilon=0.01,0.02", "--validation_fraction", "0.3")
    (row,) = compare(tmp_path, *flags, "--num_train_epochs", "1")["rows"]
    assert row["selections"][0]["chosen"] == "0.02"


def test_a_config_file_holds_flags_of_both_commands(tmp_path, trained):
    path = tmp_path / "comparison.yaml"
    path.write_text("methods: [erm, sam]\nlabel_noise: [0.2]\nnum_train_epochs: 1\nseeds: [5]\n")
    words = [word for word in TINY if word not in ("--num_train_epochs", "2")]
    content = compare(tmp_path / "out", "--config", str(path), base=words)
    assert [(row["method"], row["label_noise"], row["seeds"]) for row in content["rows"]] == [
        ("erm", 0.2, [5]),
        ("sam", 0.2, [5]),
    ]
    assert trained == [("erm", 5), ("sam", 5)]


def test_images_are_loaded_once_for_all_methods(tmp_path, monkeypatch):
    import hf_amp.vision.train.images as sources

    calls = []
    original = sources.load_image_dataset
    monkeypatch.setattr(
        sources, "load_image_dataset", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)
    )
    compare(tmp_path, "--methods", "erm", "rmp", "--label_noise", "0", "0.2", "--num_train_epochs", "1")
    assert len(calls) == 1


def test_variants():
    plain, own = Variant.parse("erm"), Variant.parse("amp:amp_epsilon=0.3,amp_every=2")
    assert (plain.label, plain.folder) == ("ERM", "erm")
    assert own.settings == {"amp_epsilon": "0.3", "amp_every": "2"}
    assert own.label == "AMP (amp_epsilon=0.3, amp_every=2)"
    assert own.folder == "amp_amp_epsilon=0.3_amp_every=2"
    selection = Selection.parse("amp_epsilon=0.1,0.2")
    assert selection.applies_to(Variant.parse("sam"))
    assert not selection.applies_to(plain)
    assert not selection.applies_to(own)  # it has its own
    of_sam = Selection.parse("sam:amp_epsilon=0.1,0.2")
    assert of_sam.applies_to(Variant.parse("sam"))
    assert not of_sam.applies_to(Variant.parse("amp"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--methods", "emr"), "`methods` must name some of erm, amp, .* got 'emr'"),
        (("--methods", "amp:amp_epsilon"), "`methods` must look like amp:amp_epsilon=0.1"),
        (("--methods", "erm", "erm"), "`methods` must not repeat itself"),
        (("--label_noise", "0.2", "0.2"), "`label_noise` must not repeat itself"),
        (("--label_noise", "2"), r"`label_noise` must be in \[0, 1\), got 2"),
        (("--select", "epsilon=1,2"), "`select` must name one of .*amp_epsilon.* got 'epsilon'"),
        (("--select", "amp_epsilon=1"), "`select` must give at least two values"),
        (("--select", "erm:amp_epsilon=1,2"), "`select` must name one of .* got 'amp_epsilon'"),
        (("--select", "asam:amp_epsilon=1,2"), "`select` must name a method before ':', .* got 'asam'"),
        (("--select", "amp_epsilon=1,2"), "`select` chooses on validation images, but there are none"),
        (("--method", "erm"), "`--method` runs one method; write --methods erm amp"),
        (("--methods", "amp:amp_epsilon=-1"), "`amp_epsilon` must be .*>= 0, got -1"),
        (("--label_noise", "0", "1.5"), r"`label_noise` must be in \[0, 1\), got 1.5"),
        (
            ("--label_noise", "0", "0.2", "--train_labels", "a.csv"),
            "`train_labels` and `label_noise` exclude each other",
        ),
        (
            ("--label_noise", "0.1", "0.10000001"),
            ".*with `label_noise` 0.1 and ERM with 0.10000001 would share the folder",
        ),
        (("--select", "amp_epsilon=0.1,abc"), "`amp_epsilon` must be float, got 'abc'"),
        (("--select", "amp_epsilon=0.1,-1"), "`amp_epsilon` must be .*>= 0, got -1"),
        (("--select", "amp_epsilon=0.1,nan"), "`amp_epsilon` must be .*>= 0, got nan"),
        (("--select", "amp_epsilon=0.1,0.10"), "`select` must not repeat a value, got 'amp_epsilon=0.1,0.10'"),
        (("--select", "dropout=0.1,0.2"), "`select` dropout=0.1,0.2 has no effect: none of ERM, AMP reads dropout"),
        (("--methods", "amp:amp_epsilon=0.2", "--select", "amp_epsilon=1,2"), "`select` .* has no effect"),
        (("--select", "amp_epsilon=1,2", "amp_epsilon=3,4"), "`select` amp_epsilon=3,4 has no effect"),
        (("--select_seeds", "1"), "`select_seeds` has no effect without `select`"),
        (("--methods", "amp:method=erm"), "`methods` 'amp:method=erm' must not set method.*give it with --methods"),
        (("--methods", "amp:label_noise=0.5"), "`methods` .* must not set label_noise.*give it with --label_noise"),
        (("--methods", "amp:output_dir=x"), "`methods` .* must not set output_dir"),
        (("--methods", "amp:seed=3"), "`methods` .* must not set seed, .*give it with --seeds"),
        (("--methods", "amp:seeds=3"), "`methods` .* must not set seeds, .*give it with --seeds"),
        (("--methods", "amp:max_train_samples=50"), "`methods` .* must not set max_train_samples"),
        (("--methods", "amp", "amp:push_to_hub=true"), "`push_to_hub` would publish every run"),
        (("--methods", "amp:amp_every=2,amp_every=3"), "`methods` .* must give amp_every once"),
        (("--methods", "erm:amp_epsilon=0.1"), "`methods` .* gives amp_epsilon, which erm does not read"),
        (("--amp_epsilom", "1"), "'--amp_epsilom' is not a flag; did you mean `amp_epsilon`"),
    ],
)
def test_refusals_come_before_any_training(tmp_path, trained, flags, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        compare(tmp_path / "out", *flags)
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_there_are_refused_before_anything_is_written(tmp_path, trained):
    with pytest.raises(SystemExit, match="error: "):
        compare(tmp_path / "out", "--methods", "erm", "amp", "--dataset_path", str(tmp_path / "nothing"))
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_a_later_folder_of_another_run_is_refused_before_the_first_one_trains(tmp_path, trained):
    compare(tmp_path, "--methods", "erm", "--label_noise", "0.2", "--num_train_epochs", "1")
    with pytest.raises(SystemExit, match=r"noise0.2.erm holds a run with other settings \(num_train_epochs"):
        compare(tmp_path, "--methods", "erm", "--label_noise", "0", "0.2")
    assert len(trained) == 1
    assert not (tmp_path / "noise0").exists()


def test_a_choice_for_a_method_that_is_not_compared_is_passed_over_and_said(tmp_path, caplog):
    flags = ("--methods", "erm", "--select", "sam:amp_epsilon=1,2", "--validation_fraction", "0.2")
    with caplog.at_level("WARNING"):
        compare(tmp_path, *flags, "--num_train_epochs", "1")
    assert "`select` sam:amp_epsilon=1,2 has no effect, since sam is not among --methods" in caplog.text


@pytest.mark.parametrize(
    ("splits", "flags", "message"),
    [
        (("train", "validation", "test"), (), None),
        (("train", "test"), ("--validation_fraction", "0.2"), None),
        (("train", "test"), (), "there are none: add --validation_fraction 0.2"),
        (
            ("train",),
            ("--validation_fraction", "0.2"),
            "there are none: the data set has no test split.*add a test split",
        ),
        (("train", "validation"), (), "there are none: the data set has no test split.*add a test split"),
    ],
)
def test_a_choice_needs_validation_images_that_are_not_tested_on(tmp_path, monkeypatch, splits, flags, message):
    own_cache(monkeypatch, tmp_path / "cache")
    data = write_parquet(tmp_path / "data", **{name: image_split(30) for name in splits})
    words = [word for word in TINY if word not in ("--dataset", "digits", "--max_train_samples", "60")]
    words += ["--dataset", str(data), "--methods", "amp", "--select", "amp_epsilon=0.1,0.2", *flags]
    comparison = load_example("compare").parse([*words, "--output_dir", str(tmp_path / "out")])
    if message is None:
        comparison.check()
    else:
        with pytest.raises(ValueError, match="`select` chooses on validation images, but " + message):
            comparison.check()


def test_a_smaller_table_says_what_it_leaves_out(tmp_path, trained, caplog):
    flags = ("--num_train_epochs", "1", "--label_noise", "0")
    compare(tmp_path, *flags, "--methods", "erm", "rmp", "--seeds", "0", "1")
    assert "leaves out" not in caplog.text
    with caplog.at_level("WARNING"):
        compare(tmp_path, *flags, "--methods", "erm", "--seeds", "0")
    assert "holds of ERM with 0% label noise (seeds 1), RMP with 0% label noise (seeds 0 1)" in caplog.text
    assert "name them too in --methods, --label_noise and --seeds" in caplog.text
    assert len(trained) == 4


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`methods` must hold at least one value, got none"):
        Comparison([], [0.0], Settings({}), tmp_path)


def test_table_shows_a_dash_where_there_is_no_best():
    value = {"mean": 0.1, "standard_error": 0.01, "n": 2}
    metrics = dict.fromkeys(("error_rate", "nll", "ece"), value)
    summary = {"last": metrics, "best": dict.fromkeys(metrics), "sharpness": value, "seconds": value}
    row = {"label": "ERM", "label_noise": 0.0, "selections": [], "summary": summary}
    assert comparison_table([row]).splitlines()[2].startswith("| 0% | ERM | – | 10.00 ± 1.00 | 0.100 ± 0.010 |")
    assert comparison_table([row], "best").splitlines()[2].startswith("| 0% | ERM | – | – | – | – |")
    assert "| test error % |" in comparison_table([row])
    assert "| validation error % |" in comparison_table([{**row, "tested_on": "validation"}])


def test_the_committed_comparison_on_digits_runs_when_shortened(tmp_path):
    short = ("--num_train_epochs", "1", "--max_train_samples", "60", "--seeds", "0", "--use_cpu")
    content = compare(tmp_path, "--config", str(EXAMPLES / "digits.yaml"), *short, base=())
    assert [(row["method"], row["label_noise"]) for row in content["rows"]] == [
        (method, noise) for noise in (0.0, 0.2) for method in ("erm", "amp", "amp")
    ]
