"""Names of classes of which a row may have several."""

from collections.abc import Set

import numpy as np

from trainables.data.rows import shorten
from trainables.data.splits import Splits
from trainables.data.store import RowStore
from trainables.errors import InputError, did_you_mean
from trainables.tasks.classification.format import sorted_labels


def names_of_train(store: RowStore, splits: Splits, drawn: Set[str], field: str) -> tuple[str, ...]:
    """The classes that stand in the lists `field` of the stored rows of train and of the splits
    that were `drawn` from it, in the order of the model's outputs: a rare class may be in the
    latter alone. Raises InputError where there are fewer than two, or another split has others.
    """
    known = {
        name
        for split in ("train", *sorted(drawn))
        for record in store.records(np.unique(splits[split]))
        for name in record.value[field]
    }
    if len(known) < 2:
        raise InputError(
            f"data.{field}: the rows of train have {len(known)} class(es); at least two are needed"
        )
    for split in splits.keys() - {"train", *drawn}:
        for record in store.records(np.unique(splits[split])):
            if strange := set(record.value[field]) - known:
                name = min(strange)
                meant = did_you_mean(name, sorted(known))
                raise InputError(
                    f"data.{split}: {record.place}: {shorten(name)} in {field} is nowhere in"
                    f" train{meant and f'.{meant}'}"
                )
    return sorted_labels(known)
