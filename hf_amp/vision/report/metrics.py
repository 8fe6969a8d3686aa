"""Metrics of a classifier from its logits: accuracy, error rate, negative log-likelihood, calibration.

Written here since `evaluate` and scikit-learn take class numbers or probabilities, have no calibration error, and put
10,000 × 100 logits through a table, which takes a second each epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction

CALIBRATION_BINS = 15


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of logits against labels, as plain floats; nan where the logits are not finite.

    Args:
        logits: (images, classes) float, before softmax.
        labels: (images,) integers in [0, classes).

    Returns:
        `accuracy`, the share of images whose largest logit is that of the label (of equals the first counts);
        `error_rate`, 1 − accuracy; `nll`, the mean of −log softmax(logits)[label] in nats; `ece`, see
        `calibration_error`.

    Raises:
        ValueError: shapes or labels do not fit.
        TypeError: the labels are no integers.
    """
    logits, labels = _check(logits, labels)
    wrong = logits.argmax(axis=1) != labels
    at_label = _log_softmax(logits)[np.arange(len(labels)), labels]
    return {
        "accuracy": float(np.mean(~wrong)),
        "error_rate": float(np.mean(wrong)),
        "nll": float(-at_label.mean()),
        "ece": calibration_error(logits, labels),
    }


def confidences(logits: np.ndarray, num_bins: int = CALIBRATION_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Return max softmax(logits) of each image, and which of `num_bins` bins of equal width holds it.

    The bins are (0, 1/15], (1/15, 2/15], …: the right edge belongs to the bin, as in the paper of Guo et al.
    """
    confidence = np.exp(_log_softmax(logits).max(axis=1))
    bins = np.nan_to_num(np.ceil(confidence * num_bins) - 1)
    return confidence, np.clip(bins, 0, num_bins - 1).astype(int)


def calibration_error(logits: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|, in [0, 1].

    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017, section 2.

    Args:
        logits: (images, classes) float, before softmax.
        labels: (images,) integers.
        num_bins: number of bins of confidence, >= 1.
    """
    if num_bins < 1:
        raise ValueError(f"`num_bins` must be >= 1, got {num_bins}; 15 is usual")
    confidence, bins = confidences(logits, num_bins)
    if not np.isfinite(confidence).all():
        return float("nan")
    correct = logits.argmax(axis=1) == labels
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def reliability_bins(
    logits: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> list[dict[str, float | int | None]]:
    """Sort images by confidence max softmax(logits) into bins of equal width, (0, 1/15], (1/15, 2/15], …

    The mean of |accuracy − confidence|, weighted with `count`, is `calibration_error`.

    Args:
        logits: (images, classes) float, before softmax.
        labels: (images,) integers.
        num_bins: >= 1.

    Returns:
        Per bin `lower`, `upper`, `count`, and the means `confidence` and `accuracy`, None in an empty bin.
    """
    confidence, which = confidences(logits, num_bins)
    correct = logits.argmax(1) == labels
    bins = []
    for i in range(num_bins):
        inside = which == i
        count = int(inside.sum())
        bins.append(
            {
                "lower": i / num_bins,
                "upper": (i + 1) / num_bins,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
            }
        )
    return bins


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the metrics of a `Trainer` evaluation.

    Pass it as `compute_metrics=`, with `keep_logits` as `preprocess_logits_for_metrics=`.
    """
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))


def keep_logits(outputs: Any, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - the Trainer's signature
    """Return only the logits of a model's outputs, so that evaluation does not also gather hidden states.

    Args:
        outputs: logits of shape (images, classes), or a tuple that begins with them.
        labels: not used; the `Trainer` passes them.
    """
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64; the largest logit is taken out first, so nothing overflows."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels, or say what is wrong with their shapes or values."""
    logits, labels = np.asarray(predictions), np.asarray(references)
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] == 0:
        raise ValueError(
            f"`logits` must be logits of shape (images, classes), got shape {logits.shape}; pass the "
            "model's logits, not class numbers"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` must hold one integer label per image, shape {logits.shape[:1]}, got "
            f"{labels.shape}; metrics need the true labels, not mixed ones"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`labels` must be integers, got {labels.dtype}; convert them to class numbers")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"`labels` must lie in [0, {logits.shape[1]}), got values from {labels.min()} to "
            f"{labels.max()}; the model's `num_labels` does not fit the data set"
        )
    return logits, labels
