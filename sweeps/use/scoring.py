"""What a trained model of a sweep makes of rows."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sweeps.use.trained import Trained
from trainables.data.manifest import SplitSummary, write_manifest
from trainables.data.prepare import CHAT_TEMPLATE
from trainables.evaluation.reloaded import measured

if TYPE_CHECKING:
    from trainables.data.arrow import Split
    from trainables.engine.scoring import RowResults


def score(trained: Trained, split: "Split", rows: np.ndarray | None = None) -> "RowResults":
    """Loss, targets and outcomes of each of `rows`; None: of all."""
    from trainables.engine.scoring import with_reference

    task, pad, device = trained.task, trained.spec.pad_token_id, trained.device
    pairs = with_reference(
        split, lambda each: measured(trained.load_untuned(), task, each, pad, device)
    )
    return measured(trained.load(), task, pairs, pad, device, rows)


def raw_rows_for(trained: Trained, rows: Path, name: str, folder: Path, *, in_bytes: bool) -> None:
    """Prepare `folder` for `tokenise_split`: the raw rows of a split of another sweep, which this
    one's tokenizer and encoding shall turn into tokens. in_bytes: whether the other sweep tells
    losses in bits per byte.
    """
    shutil.copyfile(rows, folder / f"{name}.jsonl")
    if (template := trained.data / CHAT_TEMPLATE).exists():
        shutil.copyfile(template, folder / CHAT_TEMPLATE)
    manifest = trained.manifest
    encoding = replace(manifest.encoding, slices=(), in_bytes=in_bytes)
    splits = {**manifest.splits, name: SplitSummary()}
    write_manifest(folder, replace(manifest, encoding=encoding, splits=splits))
