"""The study of cheaper AMP: what it runs, what it reports, and that it goes on where it was stopped."""

import json

import pytest
from commands import TINY, load_example
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_amp.vision.report.run import SeedRun
from hf_amp.vision.train.command_line import read_settings

# transformers 5.0 warns when two checkpoints are written within a second, as only tests do.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable")

FAST = (*TINY, "--num_train_epochs", "1", "--eval_strategy", "no", "--save_strategy", "no")


@pytest.fixture
def trained(monkeypatch):
    """How many steps each training made, in order."""
    steps = []
    original = SeedRun.run

    def counting(self):
        result = original(self)
        steps.append(result["steps"])
        return result

    monkeypatch.setattr(SeedRun, "run", counting)
    return steps


@pytest.fixture(scope="module")
def cheap():
    return load_example("benchmarks/cheap_amp")


def study(cheap, folder, *flags):
    words = [*FAST, "--label_noise", "0.2", "--timing_steps", "2", "--timing_rounds", "2"]
    return cheap.main([*words, "--output_dir", str(folder), *flags])


@pytest.mark.slow
def test_the_study_reports_errors_costs_and_passes_of_all_ways_and_goes_on_where_it_was_stopped(
    tmp_path, cheap, trained, monkeypatch, capsys
):
    flags = ("--validation_fraction", "0.3", "--select", "amp_epsilon=0.1,0.3")
    some = {"ERM", "ERM, twice the epochs", "AMP", "ascent on 6% of the batch"}
    every = cheap.entries
    assert len(every(1)) == 18
    monkeypatch.setattr(cheap, "entries", lambda epochs: [way for way in every(epochs) if way.label in some])
    with monkeypatch.context() as patch:
        counted = SeedRun.run

        def stopping(self):
            if len(trained) == 5:  # the first one, 3 of the first round, 1 of the second
                raise KeyboardInterrupt
            return counted(self)

        patch.setattr(SeedRun, "run", stopping)
        with pytest.raises(KeyboardInterrupt):
            study(cheap, tmp_path, *flags)
    first = json.loads((tmp_path / "timing" / "timing.json").read_text())["rounds"]
    assert len(first) == 1
    assert not (tmp_path / "cheap_amp.json").exists()

    result = study(cheap, tmp_path, *flags)
    assert result["timing"]["rounds"][0] == first[0]
    assert json.loads((tmp_path / "cheap_amp.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "cheap_amp.png").read_bytes().startswith(b"\x89PNG")
    rows = {row["label"]: row for row in result["rows"]}
    assert set(rows) == some
    assert rows["AMP"]["passes"] == 2
    assert rows["ERM"]["cost"] == {"median": 1, "lowest": 1, "highest": 1}
    assert rows["AMP"]["cost"]["median"] == pytest.approx(
        sum(one["AMP"] / one["ERM"] for one in result["timing"]["rounds"]) / 2
    )
    assert rows["ERM, twice the epochs"]["passes"] == 2
    assert rows["AMP"]["settings"]["amp_epsilon"] in ("0.1", "0.3")
    assert "| 20% | ascent on 6% of the batch | " in capsys.readouterr().out

    before = len(trained)
    study(cheap, tmp_path, *flags)
    assert len(trained) == before


def test_passes_count_the_images_of_the_ascent_and_the_steps_that_make_one(cheap):
    def of(*words, base=10):
        argv = ["--num_train_epochs", "10", "--per_device_train_batch_size", "50", "--use_cpu", *words]
        return cheap.passes(read_settings(argv)[0].arguments()[2], base)

    assert of("--method", "erm") == 1
    assert of("--method", "erm", "--num_train_epochs", "20") == 2
    assert of("--method", "amp") == 2
    assert of("--method", "amp", "--amp_inner_iter", "2") == 3
    assert of("--method", "amp", "--amp_ascent_fraction", "0.06") == pytest.approx(1.06)
    assert of("--method", "amp", "--amp_ascent_fraction", "0.001") == pytest.approx(1.02)  # one image at least
    accumulated = ("--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "10")
    assert of("--method", "amp", "--amp_ascent_fraction", "0.06", *accumulated) == pytest.approx(1.06)
    assert of("--method", "amp", "--amp_every", "5") == pytest.approx(1.2)
    assert of("--method", "amp", "--amp_start", "0.75") == pytest.approx(1.25)
    assert of("--method", "rmp") == 1


def test_families_leave_out_ways_but_never_erm_and_amp(cheap):
    options, _ = cheap.parse(["--families", "random direction", "last part"])
    assert [way.label for way in cheap.chosen_ways(10, options.families)] == [
        "ERM",
        "AMP",
        "from 50% of the training",
        "from 75% of the training",
        "random direction (RMP)",
    ]
    assert len(cheap.chosen_ways(10, cheap.parse([])[0].families)) == len(cheap.entries(10))


@pytest.mark.parametrize("costs", [(1.06, 1.06, 1.06), (1.04, 1.06, 1.065), (1.0, 2.0, 2.0)])
def test_marks_of_points_that_lie_close_together_do_not_cover_each_other(cheap, costs):
    rows = [
        {"label": label, "family": label, "mark": "12%, k=2", "error": {"mean": mean, "standard_error": 0.01}}
        for label, mean in zip("ABC", (0.586, 0.5862, 0.5858), strict=True)
    ]
    figure = Figure()
    axes = figure.subplots()
    cheap.draw_errors(axes, rows, costs)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert any(box.count_overlaps(boxes) > 1 for box in boxes)  # one place for all marks is not enough

    cheap.spread_marks(axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    assert [to_hex(text.get_color()) for text in axes.texts] == [to_hex(color) for color in ("C0", "C1", "C2")]


def test_share_of_the_gain_that_is_kept(cheap):
    erm, amp = [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]
    assert cheap.share_kept(erm, amp, amp) == (pytest.approx(1), pytest.approx(0))
    assert cheap.share_kept(erm, amp, erm) == (pytest.approx(0), pytest.approx(0))
    share, error = cheap.share_kept(erm, amp, [0.1, 0.15, 0.2])
    # Shares of the seeds are 1, 0.5 and 0: mean 0.5, standard error 0.5 / √3, which the jackknife gives exactly here.
    assert (share, error) == (pytest.approx(0.5), pytest.approx(0.5 / 3**0.5))
    assert cheap.share_kept(amp, erm, amp) == (None, None)
    assert cheap.share_kept([0.2], [0.1], [0.15]) == (pytest.approx(0.5), None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--select", "amp_epsilon=1"), "error: `select` must give at least two values"),
        (("--select", "amp_epsilon=1,2"), "error: `select` chooses on validation images, but there are none"),
        (("--timing_rounds", "0"), "--timing_rounds must be >= 1, got 0; raise it"),
        (("--amp_epsilom", "1"), "'--amp_epsilom' is not a flag; did you mean `amp_epsilon`"),
    ],
)
def test_refusals_of_the_study_come_before_any_training(tmp_path, cheap, trained, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        study(cheap, tmp_path / "out", *flags)
    assert message in f"{caught.value}{capsys.readouterr().err}"
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_other_steps_are_not_mixed_into_the_timing(tmp_path, cheap):
    ways = cheap.entries(2)[:1]
    cheap.Timing(ways, read_settings(FAST)[0], tmp_path, steps=2, rounds=1).run()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(steps: 2 there, 3 now"):
        cheap.Timing(ways, read_settings(FAST)[0], tmp_path, steps=3, rounds=1)
