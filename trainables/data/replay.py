"""Rows of an earlier sweep's training among those of this one, against forgetting.

Experience replay: a small share of old rows keeps most of what was learnt from them (Scialom et al.
2022, https://arxiv.org/abs/2205.12393). They are taken as tokens, as the earlier sweep has prepared
them, so that its sources may be gone.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.arrow import Split, SplitWriter, open_split, split_fingerprint
from trainables.data.config import Replay
from trainables.data.findings import Finding
from trainables.data.manifest import Manifest, SplitSummary, read_manifest
from trainables.data.prepare import tokenise_split
from trainables.data.records import Encoded, duplicate_key
from trainables.errors import InputError
from trainables.streams import stream
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # rows that are in memory


def unlike(manifest: Manifest, earlier: Manifest) -> str | None:
    """Why rows of `earlier` are no rows of `manifest`, in words; None where they are."""
    if earlier.task != manifest.task:
        return f"its task is {earlier.task}, and this one's {manifest.task}"
    if earlier.labels != manifest.labels:
        named = (", ".join(each[:5]) or "none" for each in (earlier.labels, manifest.labels))
        return "its labels are {}, and these {}".format(*named)
    if earlier.tokenizer != manifest.tokenizer:
        return "its rows were tokenised otherwise"
    return None


def with_replay(
    manifest: Manifest,
    folder: Path,
    earlier: Path,
    wanted: Replay,
    tokenizer: "PreTrainedTokenizerBase",
) -> Manifest:
    """Add rows of the train split that `earlier` has prepared to that of `folder`, drawn by the
    seed, none of which stands in what is measured (case and white space ignored). Returns the
    manifest that goes with it, which is not written. Raises InputError where they do not suit.
    """
    theirs = read_manifest(earlier)
    if theirs is None:
        raise InputError(f"data.replay: {earlier.parent} is no sweep with prepared data")
    if (why := unlike(manifest, theirs)) is not None:
        raise InputError(f"data.replay: rows of {earlier.parent} cannot be trained on here: {why}")
    old, own = open_split(earlier, "train"), len(open_split(folder, "train"))
    measured = set(_measured(folder, manifest, tokenizer))
    keys = _keys(old, tokenizer)
    allowed = np.flatnonzero([key not in measured for key in keys])
    count = round(own * wanted.share / (1 - wanted.share))
    if not 0 < count <= len(allowed):
        most = len(allowed) / (own + len(allowed))
        raise InputError(
            f"data.replay: a share of {wanted.share:g} beside {own} rows takes {count} of the"
            f" {len(allowed)} rows that {earlier.parent} has trained on and that are not measured"
            f" here; it must take one or more, and be at most {int(most * 1000) / 1000:g}"
        )
    chosen = np.sort(stream("replay", manifest.seed).choice(allowed, count, replace=False))
    train = _with_rows(manifest.train, folder, old, chosen, manifest)
    left_out = len(old) - len(allowed)
    finding = Finding(
        kind="replay",
        split="train",
        rows=count,
        message=f"train: {count} of {own + count} rows are replayed from {earlier.parent.name}"
        + (f"; {left_out} of its rows are measured here and left out" if left_out else ""),
    )
    return _with_majority(
        replace(
            manifest,
            splits={**manifest.splits, "train": train},
            findings=(*manifest.findings, finding),
        )
    )


def _measured(
    folder: Path, manifest: Manifest, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[bytes]:
    """Keys of the rows of validation and test; the latter's tokens are thrown away again."""
    yield from _keys(open_split(folder, "validation"), tokenizer)
    if "test" in manifest.splits:
        with tempfile.TemporaryDirectory() as scratch:
            for file in folder.iterdir():
                if file.is_file() and file.suffix != ".arrow":
                    shutil.copyfile(file, Path(scratch) / file.name)
            tokenise_split(Path(scratch), "test", tokenizer)
            yield from _keys(open_split(Path(scratch), "test"), tokenizer)


def _keys(split: Split, tokenizer: "PreTrainedTokenizerBase") -> list[bytes]:
    """Equal for rows whose texts are, but for case and white space."""
    found: list[bytes] = []
    for rows in _batches(split, np.arange(len(split))):
        ids = [_all_ids(row, split) for row in rows]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found += map(duplicate_key, texts)
    return found


def _all_ids(row: dict[str, np.ndarray], split: Split) -> list[int]:
    """Of a row, and of its target where that is another text."""
    ids = row["input_ids"].tolist()
    return [*ids, *row["labels"].tolist()] if split.parts.shape[1] > 1 else ids


def _batches(split: Split, rows: np.ndarray) -> Iterator[list[dict[str, np.ndarray]]]:
    for begin in range(0, len(rows), BATCH):
        yield split.rows(rows[begin : begin + BATCH])


def _with_rows(
    train: SplitSummary, folder: Path, old: Split, chosen: np.ndarray, manifest: Manifest
) -> SplitSummary:
    path, partial = folder / "train.arrow", folder / "train.arrow.partial"
    own = open_split(folder, "train")
    targets = 0
    with SplitWriter(partial) as writer:
        for rows in _batches(own, np.arange(len(own))):
            writer.write(_encoded(rows, own))
        for rows in _batches(old, chosen):
            encoded = _encoded(rows, old)
            targets += TASKS[manifest.task].count_targets(encoded.targets)
            writer.write(encoded)
    os.replace(partial, path)
    split = open_split(folder, "train")
    labels = TASKS[manifest.task].summarise(split, manifest.labels)
    return replace(
        train,
        rows=len(split),
        replayed=len(chosen),
        tokens=int(split.lengths.sum()),
        targets=train.targets + targets,
        mean_length=float(split.lengths.mean()),
        longest=int(split.lengths.max()),
        largest_id=split.largest_id,
        fingerprint=split_fingerprint(path),
        label_counts=labels.counts,
        label_mean=labels.mean,
        label_variance=labels.variance,
    )


def _encoded(rows: Sequence[dict[str, np.ndarray]], split: Split) -> Encoded:
    """Rows of a split as they were written."""

    def column(name: str) -> list[np.ndarray] | None:
        return [row[name] for row in rows] if name in rows[0] else None

    of_a_decoder = split.parts.shape[1] > 1  # whose rows have their targets as labels
    labels = column("labels") if split.has_labels else None
    if labels is not None and split.labels is not None:
        labels = np.array(labels, dtype=split.labels.dtype)
    return Encoded(
        input_ids=[row["input_ids"] for row in rows],
        labels=labels,
        target_ids=column("labels") if of_a_decoder else None,
        token_type_ids=column("token_type_ids"),
        weights=column("weights"),
        second=None if (second := column("second")) is None else np.array(second, np.int32),
    )


def _with_majority(manifest: Manifest) -> Manifest:
    """The commonest class of train may be another now."""
    counts = manifest.train.label_counts
    if not counts or not manifest.majority_label:
        return manifest
    most = max(counts, key=lambda label: counts[label])
    validation = manifest.validation
    share = (validation.label_counts or {}).get(most, 0) / validation.rows
    return replace(manifest, majority_label=most, majority_share=share)
