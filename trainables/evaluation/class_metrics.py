"""What answers of classes are worth. numpy alone: a sweep's folder is read without torch.

Letters of shapes: N rows, C classes.
"""

import numpy as np

from trainables.tasks.declared import Counts


def count_classes(predictions: np.ndarray, labels: np.ndarray, classes: int) -> Counts:
    """predictions, labels: predicted and true class of each row [N]."""

    def count(of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(of_rows, minlength=classes)

    return Counts(count(labels[predictions == labels]), count(predictions), count(labels))


def class_metrics(counts: Counts) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among labels or predictions; the
    higher, the better.
    """
    return {
        "accuracy": float(counts.hits.sum() / counts.true.sum()),
        "macro_f1": counts.macro_f1,
    }


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Rows of each true class (first index) that were answered with each class (second) [C, C]."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(
        classes, classes
    )
