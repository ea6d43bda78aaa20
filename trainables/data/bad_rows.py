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
            self._first.append(error.removeprefix(f"{self._key}: "))

    def refuse(self, bad_rows: str, usable: int) -> None:
        """Raise InputError where there are any, unless they are to be left out and others can be
        used. bad_rows: the setting; usable: how many others there are.
        """
        if not self.count or (bad_rows == "drop" and usable):
            return
        first, *others = self._first
        said = f"{self._key}: {first}"
        if others:
            more = f"{self.count - 1} more row(s) cannot be used either"
            said += f"; {more}: {'; '.join(others)}"
        if usable:
            them = "them" if others else "it"
            mend = " Mend" if said[-1] in ".?" else "; mend"
            said += f"{mend} {them}, or set data.bad_rows=drop to leave {them} out"
        elif others:
            said += "; none of its rows can be used"
        raise InputError(said)

    def finding(self, split: str) -> Finding:
        examples = tuple(self._first)
        return Finding(
            kind="bad_rows",
            severity="warning",
            split=split,
            rows=self.count,
            message=f"{split}: {self.count} row(s) left out that cannot be used",
            examples=examples,
        )
