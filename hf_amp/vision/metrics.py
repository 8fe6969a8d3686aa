"""Metrics of a classifier from its logits: accuracy, error rate, negative log-likelihood, calibration.

Each is an [`evaluate.Metric`] whose code is here, so nothing is fetched from a network. `predictions` are
logits of shape (images, classes) before softmax, `references` are integer labels of shape (images,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction

CALIBRATION_BINS = 15

_INPUTS = """
Args:
    predictions: logits, (images, classes) float, before softmax
    references: labels, (images,) integers in [0, classes)
"""


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64; the largest logit is taken out first, so nothing overflows."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels as arrays, or say what is wrong with their shapes or values."""
    logits, labels = np.asarray(predictions), np.asarray(references)
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] == 0:
        raise ValueError(
            f"`predictions` must be logits of shape (images, classes), got shape {logits.shape}; pass the "
            "model's logits, not class numbers"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`references` must hold one integer label per image, shape {logits.shape[:1]}, got "
            f"{labels.shape}; metrics need the true labels, not mixed ones"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`references` must be integers, got {labels.dtype}; convert them to class numbers")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"`references` must lie in [0, {logits.shape[1]}), got values from {labels.min()} to "
            f"{labels.max()}; the model's `num_labels` does not fit the data set"
        )
    return logits, labels


class _LogitsMetric(evaluate.Metric):
    """A metric of logits against labels; a subclass gives `key`, `about`, `source` and `score`."""

    key = ""
    about = ""
    source = ""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        # In memory: several processes that evaluate at once must not share a cache file.
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.source,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        """Fetch nothing: the code is here."""

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        return {self.key: self.score(*_check(predictions, references), **kwargs)}

    @staticmethod
    def score(logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the metric's value for (images, classes) logits and (images,) labels."""
        raise NotImplementedError


class Accuracy(_LogitsMetric):
    """Share of images whose largest logit is that of the label, in [0, 1]; of equals the first counts."""

    key = "accuracy"
    about = "Share of images whose largest logit is that of the label."

    @staticmethod
    def score(logits: np.ndarray, labels: np.ndarray) -> float:
        """Return mean[argmax(logits) = label]."""
        return float(np.mean(logits.argmax(axis=1) == labels))


class ErrorRate(_LogitsMetric):
    """Share of images that are classified wrongly, 1 − accuracy, in [0, 1]."""

    key = "error_rate"
    about = "Share of images that are classified wrongly, 1 - accuracy."

    @staticmethod
    def score(logits: np.ndarray, labels: np.ndarray) -> float:
        """Return mean[argmax(logits) ≠ label]."""
        return float(np.mean(logits.argmax(axis=1) != labels))


class NegativeLogLikelihood(_LogitsMetric):
    """Mean of −log p(label) in nats, p = softmax(logits); at least 0."""

    key = "nll"
    about = "Mean negative log-probability of the label, in nats."

    @staticmethod
    def score(logits: np.ndarray, labels: np.ndarray) -> float:
        """Return −mean log softmax(logits)[label]."""
        return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


class ExpectedCalibrationError(_LogitsMetric):
    """Gap between confidence and accuracy, Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|, in [0, 1].

    Images are sorted by confidence max softmax(logits) into `num_bins` bins of equal width, (0, 1/15],
    (1/15, 2/15], …
    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017, section 2.
    """

    key = "ece"
    about = "Expected calibration error: mean gap between confidence and accuracy over bins of confidence."
    source = "Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017"

    @staticmethod
    def score(logits: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS) -> float:
        """Return the calibration error over `num_bins` (>= 1) bins of equal width."""
        if num_bins < 1:
            raise ValueError(f"`num_bins` must be >= 1, got {num_bins}; 15 is usual")
        confidence = np.exp(_log_softmax(logits).max(axis=1))
        if not np.isfinite(confidence).all():
            return float("nan")
        correct = logits.argmax(axis=1) == labels
        # (0, 1/15] is bin 0: the right edge belongs to the bin, as in the paper.
        bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
        gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
        return float(np.abs(gaps).sum() / len(labels))


METRICS = (Accuracy, ErrorRate, NegativeLogLikelihood, ExpectedCalibrationError)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return `accuracy`, `error_rate`, `nll` and `ece` of a [`Trainer`] evaluation.

    Pass it as `compute_metrics=`, with [`keep_logits`] as `preprocess_logits_for_metrics=`.

    Args:
        prediction: `predictions`, (images, classes) logits, and `label_ids`, (images,) integer labels.

    Returns:
        The four metrics, plain floats; nan where the logits are not finite.

    Raises:
        ValueError: the shapes or the labels do not fit.
    """
    logits, labels = _check(prediction.predictions, prediction.label_ids)
    # The scores themselves: through `evaluate`'s Arrow table 10,000 x 100 logits would take a second.
    return {metric.key: metric.score(logits, labels) for metric in METRICS}


def keep_logits(outputs: Any, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - the Trainer's signature
    """Return only the logits of a model's outputs, so that evaluation does not also gather hidden states.

    Args:
        outputs: logits of shape (images, classes), or a tuple that begins with them.
        labels: not used; the [`Trainer`] passes them.
    """
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs
