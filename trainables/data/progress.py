"""How far reading and tokenising are, where that takes seconds and a terminal shows it."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def counted(
    doing: str, batches: Iterable[tuple[int, Item]], total: int | None = None
) -> Iterator[tuple[int, Item]]:
    """Batches, beside each of how many of all rows it is; total: None where that is not known."""
    with tqdm(desc=doing, unit=" rows", total=total, delay=2, disable=None, leave=False) as shown:
        for rows, batch in batches:
            yield rows, batch
            shown.update(rows)
