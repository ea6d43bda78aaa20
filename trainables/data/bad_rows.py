"""Rows that cannot be used: counted, and the first ones named."""

from collections.abc import Iterable

from trainables.data.findings import Finding
from trainables.errors import InputError

NAMED = 3


class BadRows:
    """Of a split."""

    def __init__(self, key: str, errors: Iterable[str] = ()) -> None:
        """key: the setting that names the split's source; errors: what is wrong, with the place."""
        self._key = key
        self._first: list[str] = []
        self.count = 0
        for error in errors:
            self.add(error)

    def add(self, error: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self._first.append(error)

    def refuse(self, bad_rows: str) -> None:
        """Raise InputError where there are any, unless they are to be left out."""
        if not self.count or bad_rows == "drop":
            return
        first, *others = self._first
        if not others:
            raise InputError(first)
        named = "; ".join(error.removeprefix(f"{self._key}: ") for error in others)
        raise InputError(
            f"{first}; {self.count - 1} more row(s) cannot be used either: {named}; mend them, or"
            " set data.bad_rows=drop to leave them out"
        )

    def finding(self, split: str) -> Finding:
        examples = tuple(error.removeprefix(f"{self._key}: ") for error in self._first)
        return Finding(
            kind="bad_rows",
            severity="warning",
            split=split,
            rows=self.count,
            message=f"{split}: {self.count} row(s) left out that cannot be used, such as"
            f" {'; '.join(examples)}",
            examples=examples,
        )
