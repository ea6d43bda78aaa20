"""Hand a trained model over to other software: written, loaded again in a fresh process, and scored
there before anybody gets it.
"""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sweeps.use.export_card import export_card
from sweeps.use.export_formats import (
    WRITERS,
    Format,
    Job,
    Request,
    Written,
    check_software,
    chosen_format,
    method_of,
)
from sweeps.use.trained import Trained, open_trained
from trainables.errors import InputError, NotExported
from trainables.evaluation.reloaded import Rows, measured, score_in_fresh_process
from trainables.models.files import quiet
from trainables.models.vllm import vllm_words
from trainables.storage.records import to_json
from trainables.storage.store import Store

RECORD = "export.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What something in the folder gave when it was loaded again."""

    words: str
    loss: float
    drift: float
    """Relative to the loss that was reported."""
    limit: float

    @property
    def is_within(self) -> bool:
        return abs(self.drift) <= self.limit

    @property
    def numbers(self) -> str:
        return f"validation loss {self.loss:.8g} (drift {self.drift:+.2g}, limit {self.limit:g})"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was handed over."""

    folder: str
    sweep: str
    model: str
    """Which it is: `the winner, trial t0003`."""
    method: str
    format: Format
    reported: float
    """Validation loss, as it was measured when the checkpoint was saved."""
    measured: tuple[Measured, ...]
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        found = "; ".join(f"{each.words}: {each.numbers}" for each in self.measured)
        return (
            f"{self.folder}: {self.model} ({self.method}), loaded again in a fresh process;"
            f" {found}; reported {self.reported:.8g}"
        )


def export(folder: str, to: str, trial: str | None, request: Request) -> Exported:
    """Write the winner of the sweep in `folder`, or the best of `trial`, to the folder `to`. Raises
    InputError for what cannot be, and NotExported where it was not written, or is not what was
    reported; then there is nothing at `to`.
    """
    quiet()
    check_software(request)
    target = _free_folder(to)
    with open_trained(folder, trial) as trained:
        kind = chosen_format(trained, request)
        beside = Store(str(target.parent))
        scratch = beside.scratch()
        try:
            job = Job(trained, request, scratch, str(target))
            written = WRITERS[kind](job)
            exported = _checked(job, kind, written)
            _describe(exported, job, written)
            beside.publish(scratch, target.name, last=RECORD)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return exported


def _free_folder(to: str) -> Path:
    if "://" in to:
        raise InputError(f"--to: must be a folder of this machine, got {to}")
    target = Path(to).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--to: {to} is there already; name a folder that is not, or is empty")
    return target


def _checked(job: Job, kind: Format, written: list[Written]) -> Exported:
    """Load all that lies in the job's folder again. Raises NotExported for what is not what was
    reported.
    """
    trained, reported = job.trained, job.trained.evaluation.val_loss
    assert reported is not None, "what may win has a loss"
    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        rows = _rows(trained, Path(scratch))
        found = tuple(_measured(each, job, rows, reported) for each in written)
    for each in found:
        if not each.is_within:
            raise NotExported(
                f"{job.name}: not written: {each.words} gives {each.numbers}, and {reported:.8g}"
                " was reported; --limit allows more"
            )
    return Exported(
        folder=job.name,
        sweep=trained.ledger.name,
        model=trained.words,
        method=method_of(trained),
        format=kind,
        reported=reported,
        measured=found,
        notes=(vllm_words(job.folder, trained.spec),) if kind == "peft" else (),
    )


def _rows(trained: Trained, scratch: Path) -> Rows:
    from trainables.engine.scoring import reference

    rows = Rows(
        task=trained.config.task,
        data=str(trained.data),
        pad_token_id=trained.spec.pad_token_id,
    )
    found = reference(
        trained.split(),
        lambda pairs: measured(
            trained.load_untuned(), trained.task, pairs, rows.pad_token_id, trained.device
        ),
    )
    if found is None:
        return rows
    np.save(file := scratch / "reference.npy", found)
    return replace(rows, reference=str(file))


def _measured(written: Written, job: Job, rows: Rows, reported: float) -> Measured:
    folder, limit = str(job.folder), job.request.limit
    try:
        score = score_in_fresh_process([*written.code(folder), *written.scoring(folder)], rows)
    except NotExported as error:
        raise NotExported(f"{written.words}: it does not load again: {error}") from error
    loss = math.nan if score.loss is None else score.loss
    return Measured(
        words=written.words,
        loss=loss,
        drift=(loss - reported) / abs(reported) if reported else loss,
        limit=written.limit if limit is None else limit,
    )


def _describe(exported: Exported, job: Job, written: list[Written]) -> None:
    code = [each.code(exported.folder) for each in written]
    card = export_card(exported, job.trained.config.model.name, code)
    (job.folder / "README.md").write_text(card, encoding="utf-8")
    record = json.dumps(to_json(exported), indent=1) + "\n"
    (job.folder / RECORD).write_text(record, encoding="utf-8")
