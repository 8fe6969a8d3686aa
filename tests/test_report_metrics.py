"""The metrics equal scikit-learn's and a hand computation, alone and inside a Trainer."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from transformers import EvalPrediction

from hf_amp.vision.report.metrics import calibration_error, classification_metrics, compute_metrics, keep_logits


def random_case(images=200, classes=7, scale=3.0, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=scale, size=(images, classes)).astype(np.float32)
    return logits, generator.integers(classes, size=images)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ece_by_loop(logits, labels, num_bins):
    """The definition of Guo et al., bin by bin."""
    probabilities = softmax(logits)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if inside.any():
            gap = (predicted[inside] == labels[inside]).mean() - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn(seed):
    logits, labels = random_case(seed=seed)
    values = compute_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    accuracy = accuracy_score(labels, logits.argmax(axis=1))
    assert values["accuracy"] == accuracy
    assert values["error_rate"] == pytest.approx(1 - accuracy, abs=1e-15)
    expected_nll = log_loss(labels, softmax(logits), labels=range(logits.shape[1]))
    assert values["nll"] == pytest.approx(expected_nll, rel=1e-12)
    assert values["ece"] == pytest.approx(ece_by_loop(logits, labels, 15), rel=1e-12)
    assert all(type(value) is float for value in values.values())


def test_nll_equals_torch_cross_entropy_where_a_softmax_would_overflow():
    logits, labels = random_case(scale=3000.0)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), torch.tensor(labels)).item()
    value = classification_metrics(logits, labels)["nll"]
    assert value == pytest.approx(expected, rel=1e-12)


def test_calibration_error_worked_by_hand():
    # Four images, two classes, confidences 0.6, 0.6, 0.9, 0.9; right, wrong, right, right.
    # Bins of 1/15: 0.6 = 9/15 alone, 0.9 in the 14th: |1/2 - 0.6| * 2/4 + |1 - 0.9| * 2/4 = 0.1.
    logits = np.log(np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]]))
    labels = np.array([0, 1, 0, 1])
    value = calibration_error(logits, labels)
    assert value == pytest.approx(0.1, abs=1e-12)
    # One bin for all: |3/4 - 0.75| = 0.
    one_bin = calibration_error(logits, labels, num_bins=1)
    assert one_bin == pytest.approx(0.0, abs=1e-12)


def test_a_sure_right_model_has_no_calibration_error_and_a_sure_wrong_one_has_all():
    logits = np.array([[100.0, 0.0], [0.0, 100.0]])
    assert calibration_error(logits, np.array([0, 1])) == pytest.approx(0.0)
    assert calibration_error(logits, np.array([1, 0])) == pytest.approx(1.0)


def test_logits_that_are_not_finite_give_nan_and_no_crash():
    logits, labels = random_case()
    logits[0] = np.nan
    with np.errstate(invalid="ignore"):
        values = compute_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert np.isnan(values["nll"])
    assert np.isnan(values["ece"])


@pytest.mark.parametrize(
    ("predictions", "labels", "error", "text"),
    [
        (
            np.zeros(4),
            np.zeros(4, int),
            ValueError,
            r"`logits` must be logits .*got shape \(4,\)",
        ),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, r"got shape \(0, 3\)"),
        (
            np.zeros((4, 3)),
            np.zeros((4, 3)),
            ValueError,
            "must hold one integer label per image",
        ),
        (np.zeros((4, 3)), np.zeros(3, int), ValueError, r"shape \(4,\), got \(3,\)"),
        (np.zeros((4, 3)), np.zeros(4), TypeError, "`labels` must be integers, got float64"),
        (
            np.zeros((4, 3)),
            np.array([0, 1, 2, 3]),
            ValueError,
            r"in \[0, 3\), got values from 0 to 3",
        ),
        (np.zeros((4, 3)), np.array([0, 1, 2, -1]), ValueError, "from -1 to 2"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(predictions, labels, error, text):
    with pytest.raises(error, match=text):
        compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))


def test_refused_number_of_bins():
    with pytest.raises(ValueError, match="`num_bins` must be >= 1, got 0; 15 is usual"):
        calibration_error(np.array([[0.0, 1.0]]), np.array([1]), num_bins=0)


def test_only_the_logits_are_kept_for_the_metrics():
    logits, hidden = torch.zeros(2, 3), (torch.zeros(2, 8), torch.zeros(2, 8))
    assert keep_logits((logits, hidden), torch.zeros(2)) is logits
    assert keep_logits(logits, torch.zeros(2)) is logits
