"""What a trial leaves behind: `trials/<id>/attempt-<n>/step-<s>/` with `evaluation.json`,
`losses.npy`, `outcomes.npy` (as the task has them; language models: none) and `checkpoint/`.

Every time a trial joins a slot it writes under a new attempt, so a cut-off host that still runs
cannot overwrite its successor. `attempt.json` says where the attempt went on from; evaluations of
older attempts after that point are void.
"""

import io
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainables.evaluation.answered import ANSWERS
from trainables.evaluation.record import Evaluation, MeasuredEvaluation
from trainables.storage.records import from_json, to_json
from trainables.storage.store import Store

EVALUATION, CHECKPOINT, LOSSES, STATE = (
    "evaluation.json",
    "checkpoint",
    "losses.npy",
    "training_state.safetensors",
)
OUTCOMES = "outcomes.npy"
ORIGIN = "/attempt.json"


def begin_attempt(store: Store, trial: str) -> tuple[int, str | None]:
    """Number of a new attempt of `trial`, and the evaluation folder it goes on from (None: from the
    start).
    """
    names = store.find(f"trials/{trial}")
    attempt = 1 + max((_attempt(name) for name in names if "/attempt-" in name), default=0)
    folders = evaluation_folders(store, trial, names)
    resumable = [
        f for f in folders if f"{f}/{STATE}" in names or read_evaluation(store, f).finished
    ]
    origin = resumable[-1] if resumable else None
    store.write_json(f"trials/{trial}/attempt-{attempt}{ORIGIN}", {"from": origin})
    return attempt, origin


def write_evaluation(
    store: Store,
    trial: str,
    attempt: int,
    evaluation: MeasuredEvaluation,
    save: Callable[[Path], None],
) -> Evaluation:
    """Publish an evaluation together with its checkpoint, which `save(folder)` writes; returns what
    stands in evaluation.json.
    """
    name = f"trials/{trial}/attempt-{attempt}/step-{evaluation.step:08d}"
    folder = store.scratch()
    try:
        save(folder)
        files = [path for path in (folder / CHECKPOINT).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        whole = replace(evaluation, attempt=attempt, folder=name, checkpoint_bytes=size)
        written = to_json(whole, Evaluation)
        del written["checkpoint"]  # beside the file, wherever the folder is moved to
        np.save(folder / LOSSES, evaluation.losses)
        if evaluation.outcomes is not None:
            np.save(folder / OUTCOMES, evaluation.outcomes)
        if evaluation.answered is not None:
            Store(str(folder)).write_json(ANSWERS, to_json(evaluation.answered))
        Store(str(folder)).write_json(EVALUATION, written)
        store.publish(folder, name, last=EVALUATION)
    except BaseException:  # a full disk, most likely: half a checkpoint must not fill it further
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return from_json(Evaluation, written, name)


def read_evaluation(store: Store, folder: str) -> Evaluation:
    """The evaluation in `folder`; its `checkpoint` is where that would be."""
    found = from_json(Evaluation, store.read_json(f"{folder}/{EVALUATION}"), store.path(folder))
    size = found.checkpoint_bytes or 4 * found.trainable_parameters
    return replace(found, checkpoint_bytes=size, checkpoint=store.path(f"{folder}/{CHECKPOINT}"))


def write_rows(
    store: Store, name: str, losses: np.ndarray, outcomes: np.ndarray | None = None
) -> None:
    """What was measured of each row by something that is no trial, as `NAME.npy` (losses [N, 2])
    and, where the task has some, `NAME.outcomes.npy` [N, M].
    """
    for file, array in ((f"{name}.npy", losses), (f"{name}.{OUTCOMES}", outcomes)):
        if array is not None:
            content = io.BytesIO()
            np.save(content, array)
            store.write_bytes(file, content.getvalue())


def evaluation_folders(store: Store, trial: str, names: Iterable[str]) -> list[str]:
    """Folders of the evaluations of `trial` that count, in the order of their steps. `names`: all
    files of the trial.
    """
    names = list(names)
    complete = _under(names, f"/{EVALUATION}")
    origins = {_attempt(name): name for name in _under(names, ORIGIN)}
    kept: list[str] = []
    limit = math.inf  # steps of older attempts count up to here
    for attempt in sorted({*map(_attempt, complete), *origins}, reverse=True):
        kept += [f for f in complete if _attempt(f) == attempt and _step(f) <= limit]
        if attempt in origins:
            origin = store.read_json(f"{origins[attempt]}{ORIGIN}")["from"]
            limit = -1 if origin is None else min(_step(origin), limit)
    return sorted(kept, key=_step)


def _under(names: Iterable[str], file: str) -> list[str]:
    """Folders that hold such a file."""
    return [name.removesuffix(file) for name in names if name.endswith(file)]


def _attempt(name: str) -> int:
    return int(name.split("/attempt-", 1)[1].split("/", 1)[0])


def _step(folder: str) -> int:
    return int(folder.rsplit("/step-", 1)[1])
