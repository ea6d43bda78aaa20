"""What answers of classes are worth. numpy alone: a sweep's folder is read without torch.

Letters of shapes: N rows, C classes.
"""

import math

import numpy as np

from trainables.tasks.declared import Counts

MOST_CLASSES = 100  # whose probabilities are kept with every evaluation: 4 bytes a row and class
BINS = 15


def count_classes(predictions: np.ndarray, labels: np.ndarray, classes: int) -> Counts:
    """predictions, labels: predicted and true class of each row [N]."""

    def count(of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(of_rows, minlength=classes)

    return Counts(count(labels[predictions == labels]), count(predictions), count(labels))


def class_metrics(counts: Counts) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among labels or predictions, and by how
    often each is true; the higher, the better.
    """
    return {
        "accuracy": float(counts.hits.sum() / counts.true.sum()),
        "macro_f1": counts.macro_f1,
        "weighted_f1": counts.weighted_f1,
    }


def class_outcomes(
    predictions: np.ndarray, labels: np.ndarray, log_probabilities: np.ndarray
) -> np.ndarray:
    """Predicted and true class of each row, and the log-probability of every class, float32 [N, 2 +
    C]; [N, 2] where there are more than 100 classes.
    """
    found = np.stack([predictions, labels], axis=1).astype(np.float32)
    if log_probabilities.shape[1] > MOST_CLASSES:
        return found
    return np.concatenate([found, log_probabilities.astype(np.float32)], axis=1)


def probability_metrics(
    predictions: np.ndarray, labels: np.ndarray, log_probabilities: np.ndarray
) -> dict[str, float]:
    """What the probabilities of the classes [N, C] are worth: `auroc` and `calibration_error`; NaN
    where they are no numbers.
    """
    if np.isnan(log_probabilities).any():
        return {"auroc": math.nan, "calibration_error": math.nan}
    return {
        "auroc": auroc(labels, log_probabilities),
        "calibration_error": calibration_error(predictions == labels, log_probabilities),
    }


def auroc(labels: np.ndarray, log_probabilities: np.ndarray) -> float:
    """Area under the ROC curve: how often a row of a class is given a higher probability of it than
    a row of another, ties by half (Mann-Whitney). Of two classes that of the second; of more the
    mean over those that some rows have and some have not, each against the rest. NaN where there is
    no such class.
    """
    classes = log_probabilities.shape[1]
    if classes == 2:
        # their difference tells apart what is nearly certain, where one alone is rounded to 0
        second = log_probabilities[:, 1].astype(np.float64) - log_probabilities[:, 0]
        return _area(second, labels == 1)
    columns = np.ascontiguousarray(log_probabilities.T)
    areas = np.array([_area(columns[c], labels == c) for c in range(classes)])
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else math.nan


def _area(scores: np.ndarray, has_class: np.ndarray) -> float:
    inside, outside = scores[has_class], np.sort(scores[~has_class])
    if not len(inside) or not len(outside):
        return math.nan
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))


def calibration_error(is_right: np.ndarray, log_probabilities: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): how far the probability of the likeliest class
    lies from the share of rows that are right, over 15 bins of equal width of that probability, by
    the rows in each.
    """
    confidence = np.exp(log_probabilities.max(axis=1).astype(np.float64))
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, is_right - confidence)).sum() / len(bins))


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Rows of each true class (first index) that were answered with each class (second) [C, C]."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(
        classes, classes
    )
