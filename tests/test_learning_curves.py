"""The figure of learning curves."""

import math

import pytest

from hf_amp.hub import learning_curves
from hf_amp.hub.learning_curves import save_learning_curves

POINTS = [
    {"epoch": 1.0, "step": 5, "loss": 1.0, "eval_nll": 1.0, "eval_error_rate": 0.1},
    {"epoch": 2.0, "step": 10, "loss": 0.5, "eval_nll": 0.5, "eval_error_rate": 0.2},
]


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(learning_curves, "save_png", lambda figure, path: figures.append(figure))
    return figures


def lines(axes):
    return [list(line.get_ydata()) for line in axes.lines]


def test_error_in_percent_and_no_sharpness_without_perturbation(tmp_path, drawn):
    save_learning_curves(tmp_path / "curves.png", [{"curves": POINTS, "eval_split": "test"}], "ERM")
    loss, error, sharpness = drawn[0].axes
    assert lines(loss) == [[1.0, 0.5], [1.0, 0.5]]
    assert lines(error) == [[10.0, 20.0]]
    assert error.get_title() == "test error in %"
    assert not sharpness.lines
    assert sharpness.texts[0].get_text() == "no perturbation was logged"


def test_other_metrics_of_any_trainer(tmp_path, drawn):
    points = [{"epoch": 1.0, "step": 1, "eval_loss": 2.0, "eval_f1": 0.5, "eval_rouge": 0.25, "sharpness": 0.1}]
    save_learning_curves(tmp_path / "curves.png", [{"curves": points}], "any")
    loss, quality, sharpness = drawn[0].axes
    assert lines(loss) == [[2.0]]
    assert lines(quality) == [[0.5], [0.25]]
    assert [text.get_text() for text in quality.get_legend().get_texts()] == ["f1", "rouge"]
    assert sharpness.lines[0].get_marker() == "o", "one point makes no line"


def test_plain_steps_are_a_gap_in_sharpness_and_the_radius_is_drawn(tmp_path, drawn):
    perturbed = {"sharpness": 0.1, "erm_loss": 0.9}
    points = [{"epoch": i, "step": i, "loss": 1.0, "amp_epsilon": 0.25 * (i % 2)} for i in range(4)]
    points = [point | (perturbed if i % 2 else {}) for i, point in enumerate(points)]
    save_learning_curves(tmp_path / "curves.png", [{"curves": points}], "AMP")
    loss, _, sharpness = drawn[0].axes
    assert lines(loss)[1] == pytest.approx([math.nan, 0.9, math.nan, 0.9], nan_ok=True)
    assert lines(sharpness)[0] == pytest.approx([math.nan, 0.1, math.nan, 0.1], nan_ok=True)
    assert sharpness.lines[0].get_marker() == "o", "a point between gaps makes no line"
    assert lines(sharpness)[1] == [0.0, 0.25, 0.0, 0.25]
    assert [text.get_text() for text in sharpness.get_legend().get_texts()] == ["sharpness", "radius ε"]


def test_one_colour_per_run(tmp_path, drawn):
    runs = [{"curves": POINTS, "label": f"seed {seed}"} for seed in (0, 1)]
    save_learning_curves(tmp_path / "curves.png", runs, "two")
    error = drawn[0].axes[1]
    assert [line.get_color() for line in error.lines] == ["C0", "C1"]
    assert [text.get_text() for text in error.get_legend().get_texts()] == ["seed 0", "seed 1"]


def test_what_was_not_measured_is_said(tmp_path, drawn):
    for name, said in (("loss", "not evaluated"), ("eval_loss", "no metric but the loss")):
        save_learning_curves(tmp_path / "curves.png", [{"curves": [{"epoch": 1.0, "step": 1, name: 2.0}]}], "any")
        assert [text.get_text() for text in drawn[-1].axes[1].texts] == [said]
