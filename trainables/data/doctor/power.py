"""How small a difference the validation rows can tell."""

import math
from collections.abc import Iterator

from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding
from trainables.tasks import TASKS

Z = 1.96 + 0.84  # found at 5% with a power of 80%
MEND = "data.validation: a larger share"
DISAGREE = 0.2  # of the rows, on which two models of like quality answer differently


def power(prepared: Prepared) -> Iterator[Finding]:
    rows, owner = len(prepared.splits["validation"]), TASKS[prepared.task]
    if not owner.targets_are_answers:
        return  # rows are blocks of documents, which are not cut yet
    if not owner.has_classes:
        yield Finding(
            kind="power",
            split="validation",
            rows=rows,
            message=f"validation: with {rows} rows, two configurations can be told apart whose"
            f" losses differ by {Z / math.sqrt(rows):.2g} standard deviations of their difference"
            " on a row",
            setting=MEND,
        )
        return
    least = Z * math.sqrt(DISAGREE / rows)
    yield Finding(
        kind="power",
        split="validation",
        rows=rows,
        message=f"validation: with {rows} rows, two configurations can be told apart whose"
        f" accuracies differ by {least:.1%} or more (where they disagree on"
        f" {DISAGREE:.0%} of the rows); 1% takes {math.ceil(Z**2 * DISAGREE / 0.01**2):,} rows",
        setting=MEND,
    )
