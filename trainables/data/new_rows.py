"""Rows that came after a sweep, read and tokenised as its own were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.asking import numbered, without_parts
from trainables.data.bad_rows import BadRows
from trainables.data.manifest import Manifest
from trainables.data.processes import Processes
from trainables.data.rows import BadRow
from trainables.data.sources import open_sources
from trainables.data.store import RowStore, RowWriter
from trainables.data.tokens import SplitFiles
from trainables.errors import InputError
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.data.manifest import TokenSummary

SPLIT = "test"  # in whose place new rows are read
MOST_NAMED = 5


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
            store, tags = _read(given, manifest, Path(scratch), labelled)
        except InputError as error:  # the setting in whose place they are read
            raise InputError(str(error).removeprefix(f"data.{SPLIT}: ")) from error
        encoding = replace(manifest.encoding, slices=())
        if labelled:
            _check_known((label for label in store.labels.names if label is not None), manifest)
        else:
            encoding = numbered(encoding, tags)
        writing = SplitFiles(
            folder=folder,
            store=store,
            task=manifest.task,
            tokenizer=tokenizer,
            encoding=encoding,
            processes=processes,
            bad_rows=manifest.data.bad_rows,
        )
        try:
            return writing.tokens(name, np.arange(len(store)), None)
        except KeyError as error:  # a name in a list of classes
            _check_known(map(str, error.args), manifest)
            raise


def _read(given: str, manifest: Manifest, scratch: Path, labelled: bool) -> tuple[RowStore, int]:
    """Also how many tags a row has, at most."""
    form = TASKS[manifest.task].format
    data = replace(manifest.data, test=given)
    writer, bad, tags = RowWriter(scratch / "rows.arrow"), BadRows(f"data.{SPLIT}"), 0
    for source in open_sources(data, SPLIT, scratch):
        own = without_parts(source, data)
        reader = form.reader(source, own) if labelled else form.asking(source, own)
        for row in source.rows():
            record = reader.attempt(row)
            if isinstance(record, BadRow):
                bad.add(str(record))
            else:
                writer.add(record)
                tags = max(tags, len(record.value.get("tags", ())))
    bad.refuse(data.bad_rows, len(writer))
    return writer.close(), tags


def _check_known(found: Iterable[str], manifest: Manifest) -> None:
    """Raise InputError for classes that the model does not know."""
    unknown = sorted(set(found) - set(manifest.labels)) if manifest.labels else []
    if unknown:
        raise InputError(
            f"the model does not know the label(s) {', '.join(unknown[:MOST_NAMED])}, only"
            f" {', '.join(manifest.labels)}: a sweep with rows of the new ones has to learn them"
        )
