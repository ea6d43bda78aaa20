"""Names of classes of which a row may have several."""

import numpy as np

from trainables.data.rows import shorten
from trainables.data.splits import Splits
from trainables.data.store import RowStore
from trainables.errors import InputError, did_you_mean
from trainables.tasks.classification.format import sorted_labels


def names_of_train(store: RowStore, splits: Splits, field: str) -> tuple[str, ...]:
    """The classes that stand in the lists `field` of train's stored rows, in the order of the
    model's outputs. Raises InputError where there are fewer than two, or another split has others.
    """
    known = {
        name for record in store.records(np.unique(splits["train"])) for name in record.value[field]
    }
    if len(known) < 2:
        raise InputError(
            f"data.{field}: the rows of train have {len(known)} class(es); at least two are needed"
        )
    for split, rows in splits.items():
        for record in store.records(np.unique(rows)) if split != "train" else ():
            if strange := set(record.value[field]) - known:
                name = min(strange)
                meant = did_you_mean(name, sorted(known))
                raise InputError(
                    f"data.{split}: {record.place}: {shorten(name)} in {field} is nowhere in"
                    f" train{meant and f'.{meant}'}"
                )
    return sorted_labels(known)
