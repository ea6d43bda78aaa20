"""Rows of a dataset of the Hugging Face hub: `hf:owner/name?split=train&config=...`."""

import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.data.files import one_line
from trainables.data.readers import Rows, Value, arrow_value, python_rows
from trainables.data.rows import BadRow, Row
from trainables.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

PREFIX = "hf:"
OPTIONS = ("split", "config", "revision", "streaming")
BATCH = 256  # rows that are Python objects at a time


def is_hub(source: str) -> bool:
    """Not `hf://`, which is a file at a URL."""
    return source.startswith(PREFIX) and not source.startswith("hf://")


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """One split of a dataset, loaded when it is first read."""

    key: str
    name: str
    """As the user wrote it."""
    path: str
    options: Mapping[str, str]
    copy: Path | None = None
    """Where what is streamed is put, so that it comes once."""

    @classmethod
    def of(cls, source: str, key: str, copy: Path | None = None) -> "HubDataset":
        """Raises InputError for an option that there is not."""
        path, _, query = source.removeprefix(PREFIX).partition("?")
        # a plus is one of split arithmetic (train[:10]+train[20:30]), not a blank
        options = urllib.parse.parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
        for option, value in options:
            if option not in OPTIONS:
                raise InputError(
                    f"{key}: {source}: unknown option {option!r}; allowed are {', '.join(OPTIONS)}."
                    + did_you_mean(option, OPTIONS)
                )
            if option == "streaming" and value not in ("0", "1"):
                raise InputError(f"{key}: {source}: streaming must be 0 or 1, got {value!r}")
        return cls(key=key, name=source, path=path, options=dict(options), copy=copy)

    def rows(self) -> Rows:
        number = 0
        for batch in self._batches():
            changed = self._changes(batch.schema, keep_nulls=False)
            for row in python_rows(batch, changed):
                number += 1
                place = f"{self.name} row {number}"
                if isinstance(row, str):
                    yield BadRow(f"{self.key}: {place}: {row}")
                else:
                    yield Row(key=self.key, place=place, columns=row)

    def fingerprint(self) -> str:
        """SHA-256 of its rows, nulls included."""
        found = hashlib.sha256()
        for batch in self._batches():
            for row in python_rows(batch, self._changes(batch.schema, keep_nulls=True)):
                found.update(json.dumps(row, sort_keys=True, default=str).encode())
        return found.hexdigest()

    @cached_property
    def _dataset(self) -> "datasets.Dataset | datasets.IterableDataset":
        import datasets

        return datasets.load_dataset(
            self.path,
            self.options.get("config"),
            split=self.options.get("split", self.key.removeprefix("data.")),
            revision=self.options.get("revision"),
            streaming=self._is_stream,
        )

    @property
    def _is_stream(self) -> bool:
        return self.options.get("streaming") == "1"

    def _batches(self) -> "Iterator[pa.Table]":
        try:
            yield from self._fetched() if self._copied is None else _read(self._copied)
        except InputError:
            raise
        except Exception as error:
            # Hub, network, cache, the dataset's own layout: each fails in its own way, and the user
            # can mend each.
            raise InputError(
                f"{self.key}: {self.name}: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _fetched(self) -> "Iterator[pa.Table]":
        return self._dataset.with_format("arrow").iter(BATCH)

    @cached_property
    def _copied(self) -> Path | None:
        """Batches of a stream, each with a schema of its own: a stream need not have one."""
        import pyarrow as pa

        if self.copy is None or not self._is_stream:
            return None
        with pa.OSFile(str(self.copy), "wb") as sink:
            for batch in self._fetched():
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_table(batch)
        return self.copy

    def _changes(self, schema: "pa.Schema", *, keep_nulls: bool) -> dict[str, Value]:
        """What makes the values of columns what they mean."""
        import datasets

        stored = ((each.name, arrow_value(each.type, keep_nulls=keep_nulls)) for each in schema)
        changes = {name: value for name, value in stored if value is not None}
        for name, feature in (self._dataset.features or {}).items():
            item = getattr(feature, "feature", None)  # of a list
            if isinstance(feature, datasets.ClassLabel):
                changes[name] = _class_name(feature.names)
            elif isinstance(item, datasets.ClassLabel):
                changes[name] = _class_names(item.names)
        return changes


def _read(copy: Path) -> "Iterator[pa.Table]":
    import pyarrow as pa

    with pa.OSFile(str(copy), "rb") as source:
        while source.tell() < source.size():
            yield pa.ipc.open_stream(source).read_all()


def _class_name(names: list[str]) -> Callable[[Any], str | None]:
    # -1: the hidden label of a test split
    return lambda number: names[number] if number is not None and number >= 0 else None


def _class_names(names: list[str]) -> Callable[[Any], list[str | None] | None]:
    name = _class_name(names)
    return lambda numbers: None if numbers is None else [name(number) for number in numbers]
