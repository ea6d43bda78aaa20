"""Rows that came after a sweep, read and tokenised as its own were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.bad_rows import BadRows
from trainables.data.manifest import Manifest
from trainables.data.processes import Processes
from trainables.data.readers import Rows
from trainables.data.rows import BadRow, Row
from trainables.data.sources import Source, open_sources
from trainables.data.store import RowStore, RowWriter
from trainables.data.tokens import SplitFiles
from trainables.errors import InputError
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.data.manifest import TokenSummary

SPLIT = "test"  # in whose place new rows are read
MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class _Answered(Source):
    """Rows that have no answers, with any in their place."""

    source: Source
    answered: Callable[[Row], Row]

    @property
    def is_document(self) -> bool:
        return self.source.is_document

    def _digest(self) -> str:
        return self.source.fingerprint()

    def _read(self) -> Rows:
        for row in self.source.rows():
            yield row if isinstance(row, BadRow) else self.answered(row)


def tokenise_new(
    given: str,
    manifest: Manifest,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    labelled: bool,
) -> TokenSummary:
    """Read the rows of `given` (anything that `data.train` may be) by the format, the columns and
    the encoding of the data that `manifest` describes, and write them to `folder` as the split
    `name`; then `open_split` opens it.

    tokenizer: with the chat template of those data. labelled: whether the rows have their answers;
    else any stand in their place, and what is measured of these means nothing. Columns of groups
    and slices may be missing.

    Raises InputError for what cannot be used.
    """
    with TemporaryDirectory(dir=folder, prefix="rows.") as scratch, Processes() as processes:
        try:
            store = _read(given, manifest, Path(scratch), labelled)
        except InputError as error:  # the setting in whose place they are read
            raise InputError(str(error).removeprefix(f"data.{SPLIT}: ")) from error
        _check_known((label for label in store.labels.names if label is not None), manifest)
        writing = SplitFiles(
            folder=folder,
            store=store,
            task=manifest.task,
            tokenizer=tokenizer,
            encoding=replace(manifest.encoding, slices=()),
            processes=processes,
            bad_rows=manifest.data.bad_rows,
        )
        try:
            return writing.tokens(name, np.arange(len(store)), None)
        except KeyError as error:  # a name in a list of classes
            _check_known(map(str, error.args), manifest)
            raise


def _read(given: str, manifest: Manifest, scratch: Path, labelled: bool) -> RowStore:
    form = TASKS[manifest.task].format
    data = replace(manifest.data, test=given)
    writer, bad = RowWriter(scratch / "rows.arrow"), BadRows(f"data.{SPLIT}")
    for source in open_sources(data, SPLIT, scratch):
        own = replace(data, slice=None)
        if data.group is not None and data.group not in source.columns:
            own = replace(own, group=None)
        if not labelled:
            source = _Answered(
                key=source.key,
                name=source.name,
                source=source,
                answered=lambda row, own=own: form.with_any_answer(row, own, manifest.labels),
            )
        reader = form.reader(source, own)
        for row in source.rows():
            record = reader.attempt(row)
            if isinstance(record, BadRow):
                bad.add(str(record))
            else:
                writer.add(record)
    bad.refuse(data.bad_rows, len(writer))
    return writer.close()


def _check_known(found: Iterable[str], manifest: Manifest) -> None:
    """Raise InputError for classes that the model does not know."""
    unknown = sorted(set(found) - set(manifest.labels)) if manifest.labels else []
    if unknown:
        raise InputError(
            f"the model does not know the label(s) {', '.join(unknown[:MOST_NAMED])}, only"
            f" {', '.join(manifest.labels)}: a sweep with rows of the new ones has to learn them"
        )
