"""What one model makes of the sealed test split, row by row."""

import math
from dataclasses import dataclass

import numpy as np

from sweeps.ledger.comparing import Rows, rows_with
from sweeps.ledger.folder import Ledger
from sweeps.selection.measure import Measure

TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """By its loss, and by what else models are compared by."""

    losses: np.ndarray | None
    """Summed loss and targets of each row [N, 2]; None: of other targets than the winner's, or
    unknown.
    """
    rows: Rows | None
    """Of the metric; None where models are compared by the loss, and of one that was not measured
    by it.
    """


def row_losses(ledger: Ledger, name: str) -> np.ndarray | None:
    """Of what was scored on the test split under this name [N, 2]."""
    return ledger.row_losses(f"baselines/{TEST}/{name}")


def metric_rows(ledger: Ledger, name: str, by: Measure) -> Rows | None:
    """The same of a metric; None of the loss, and where it could not be told."""
    found = None if by.is_loss else rows_with(ledger, f"baselines/{TEST}/{name}", by.name, TEST)
    return None if found is None else if_told(found, by)


def if_told(rows: Rows, by: Measure) -> Rows | None:
    """None where the metric is no number, as a correlation with what is constant."""
    value = rows.metrics(rows.outcomes).get(by.name, math.nan) if len(rows.outcomes) else math.nan
    return rows if math.isfinite(value) else None
