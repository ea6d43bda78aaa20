"""What a trial leaves behind: `trials/<id>/attempt-<n>/step-<s>/` with `evaluation.json`,
`losses.npy`, `outcomes.npy` (as the task has them; language models: none) and `checkpoint/`.

Every time a trial joins a slot it writes under a new attempt, so a cut-off host that still runs
cannot overwrite its successor. `attempt.json` says where the attempt went on from; evaluations of
older attempts after that point are void.

A trial that has to leave its slot between two evaluations, such as that of a machine which is to
be taken away, leaves `attempt-<n>/paused/step-<s>/`: the same files without what was measured.
"""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainables.evaluation.answered import ANSWERS
from trainables.evaluation.record import POSITION, Evaluation, MeasuredEvaluation, Position
from trainables.storage.patience import of_disk
from trainables.storage.records import from_json, to_json
from trainables.storage.store import Damaged, Store

EVALUATION, CHECKPOINT, LOSSES, STATE = (
    "evaluation.json",
    "checkpoint",
    "losses.npy",
    "training_state.safetensors",
)
OUTCOMES = "outcomes.npy"
FILES = "files"  # key of evaluation.json: bytes of what a trial loads or goes on from, by name
ORIGIN = "/attempt.json"
PAUSED = "paused"


def begin_attempt(store: Store, trial: str) -> tuple[int, str | None]:
    """Number of a new attempt of `trial`, and the folder of the evaluation or of the pause that it
    goes on from (None: from the start).
    """
    while True:
        sizes = {name: seen.size for name, seen in store.stamps(f"trials/{trial}").items()}
        attempt = 1 + max((_attempt(name) for name in sizes if "/attempt-" in name), default=0)
        resumable = [each.folder for each in _read(store, trial, sizes) if each.resumable(sizes)]
        resumable += [each for each in _pauses(store, sizes) if _is_whole_pause(store, each, sizes)]
        origin = max(resumable, key=_step, default=None)
        written = json.dumps({"from": origin}, indent=1).encode()
        if store.create(f"trials/{trial}/attempt-{attempt}{ORIGIN}", written):
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

    def once() -> Evaluation:
        return _write_evaluation(store, trial, attempt, evaluation, save)

    return store.again(once)


def _write_evaluation(
    store: Store,
    trial: str,
    attempt: int,
    evaluation: MeasuredEvaluation,
    save: Callable[[Path], None],
) -> Evaluation:
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
        written[FILES] = {**_sizes(folder, [*files, *folder.glob(STATE)])}
        Store(str(folder)).write_json(EVALUATION, written)
        store.publish(folder, name, last=EVALUATION)
    except BaseException as error:  # half a checkpoint must not fill a full disk further
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, Exception) and (of_system := of_disk(error)) is not None:
            raise of_system from error
        raise
    return from_json(Evaluation, written, name)


def write_pause(
    store: Store, trial: str, attempt: int, position: Position, save: Callable[[Path], None]
) -> None:
    """Publish what `trial` goes on from elsewhere, which `save(folder)` writes."""

    def once() -> None:
        folder = store.scratch()
        try:
            save(folder)
            files = [path for path in folder.rglob("*") if path.is_file()]
            written = to_json(position) | {FILES: _sizes(folder, files)}
            Store(str(folder)).write_json(POSITION, written)
            name = f"trials/{trial}/attempt-{attempt}/{PAUSED}/step-{position.step:08d}"
            store.publish(folder, name, last=POSITION)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    store.again(once)


def is_pause(folder: str) -> bool:
    return f"/{PAUSED}/" in folder


def delete_pauses(store: Store, trial: str) -> None:
    """Of a trial that has gone on to an evaluation, or has ended."""
    for folder in _under(store.find(f"trials/{trial}"), f"/{POSITION}"):
        store.delete(folder)


def _pauses(store: Store, sizes: Mapping[str, int]) -> list[str]:
    """Folders of those that count."""
    return _that_count(store, sizes, POSITION)


def _is_whole_pause(store: Store, folder: str, sizes: Mapping[str, int]) -> bool:
    try:
        files = store.read_json(f"{folder}/{POSITION}")[FILES]
    except Damaged:
        return False
    return _are_whole(folder, files, sizes)


def _are_whole(folder: str, files: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    """Whether the files of a folder have the bytes that they were written with. sizes: of the files
    that are there.
    """
    return all(sizes.get(f"{folder}/{name}") == size for name, size in files.items())


def _sizes(folder: Path, files: Iterable[Path]) -> dict[str, int]:
    """Bytes of files below a folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def read_evaluation(store: Store, folder: str) -> Evaluation:
    """The evaluation in `folder`; its `checkpoint` is where that would be."""
    return _evaluation(store, folder, store.read_json(f"{folder}/{EVALUATION}"))


def read_evaluations(store: Store, trial: str, sizes: Mapping[str, int]) -> list[Evaluation]:
    """Those of `trial` that count, in the order of their steps; without a `checkpoint` where it was
    deleted or is not whole. sizes: of all files of the trial.
    """
    return [
        each.evaluation if each.has_checkpoint(sizes) else replace(each.evaluation, checkpoint=None)
        for each in _read(store, trial, sizes)
    ]


@dataclass(frozen=True, kw_only=True)
class _Written:
    """An evaluation as it was written, and what files it was written with."""

    folder: str
    evaluation: Evaluation
    files: Mapping[str, int]
    """Bytes of each; none where an earlier version has written it."""

    @classmethod
    def read(cls, store: Store, folder: str) -> "_Written | None":
        """None where the file was cut short: then it is as if it had not been written."""
        try:
            content = store.read_json(f"{folder}/{EVALUATION}")
        except Damaged:
            return None
        evaluation = _evaluation(store, folder, content)
        return cls(folder=folder, evaluation=evaluation, files=content.get(FILES, {}))

    def has_checkpoint(self, sizes: Mapping[str, int]) -> bool:
        """sizes: of the files that are there."""
        below = f"{self.folder}/{CHECKPOINT}/"
        return any(name.startswith(below) for name in sizes) and self._whole(sizes, CHECKPOINT)

    def resumable(self, sizes: Mapping[str, int]) -> bool:
        """Whether its trial can go on from it, or has nothing more to do."""
        if self.evaluation.finished:
            deleted = not any(name.startswith(f"{self.folder}/{CHECKPOINT}/") for name in sizes)
            return deleted or self._whole(sizes, CHECKPOINT)
        has_state = f"{self.folder}/{STATE}" in sizes
        return has_state and self._whole(sizes, "")

    def _whole(self, sizes: Mapping[str, int], below: str) -> bool:
        files = {name: size for name, size in self.files.items() if name.startswith(below)}
        return _are_whole(self.folder, files, sizes)


def _read(store: Store, trial: str, sizes: Mapping[str, int]) -> list[_Written]:
    """Those of `trial` that count."""
    found = [_Written.read(store, each) for each in evaluation_folders(store, trial, sizes)]
    return [each for each in found if each is not None]


def _evaluation(store: Store, folder: str, content: Mapping[str, object]) -> Evaluation:
    found = from_json(Evaluation, content, store.path(folder))
    size = found.checkpoint_bytes or 4 * found.trainable_parameters
    # where it was found, whatever it says of that: what cannot win is deleted there
    return replace(
        found, folder=folder, checkpoint_bytes=size, checkpoint=store.path(f"{folder}/{CHECKPOINT}")
    )


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
    return _that_count(store, names, EVALUATION)


def _that_count(store: Store, names: Iterable[str], file: str) -> list[str]:
    """Folders of a trial that hold `file`, in the order of their steps, as far as no later attempt
    went on from before them.
    """
    names = list(names)
    complete = _under(names, f"/{file}")
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
