"""The sweeps of a STORAGE, a thousand as fast as ten: of each only its status is read."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import yaml

from sweeps.config.models import ModelsConfig
from sweeps.ledger.folder import Ledger, WrittenStatus
from sweeps.ui.files import is_name
from sweeps.ui.processes import Started, all_started, write
from sweeps.ui.yaml_text import value_at
from trainables.errors import InputError

STARTING, NOT_BEGUN = "starting", "not begun"
"""Of a command that has no sweep's folder yet, and of one that has ended without."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A sweep, or a command that is about to be one."""

    name: str
    status: str
    """running | finished | interrupted | failed, as the sweep's folder says, or one of the two
    above.
    """
    has_winner: bool = False
    started: Started | None = None
    """What the page has started of it last."""
    # its heartbeat is no news
    process: WrittenStatus | None = field(default=None, compare=False)
    """Who has run it last."""
    modified: float = 0.0

    @property
    def is_sweep(self) -> bool:
        return self.status not in (STARTING, NOT_BEGUN)


def list_sweeps(storage: Path) -> list[Listed]:
    """The latest first. Commands that have become a sweep are that sweep."""
    started = all_started(storage)
    sweeps = [
        _listed(storage, folder, started) for folder in storage.glob("*/") if _is_sweep(folder)
    ]
    seen = {each.started.name for each in sweeps if each.started}
    others = [
        Listed(
            name=each.name,
            status=STARTING if each.runs else NOT_BEGUN,
            started=each,
            modified=each.time,
        )
        for each in started
        if each.sweep is None and each.name not in seen
    ]
    return sorted([*sweeps, *others], key=lambda each: (-each.modified, each.name))


def find_sweep(storage: Path, name: str) -> Listed:
    """By its name, also of a command that has become a sweep of another one. Raises InputError."""
    if is_name(name) and _is_sweep(storage / name):
        return _listed(storage, storage / name, all_started(storage))
    for each in list_sweeps(storage):
        if each.started is not None and each.started.name == name:
            return each
    raise InputError(f"{storage}: there is no sweep {name!r}")


def model_and_task(storage: Path, name: str) -> str:
    """What is trained to do what, in words; what is wrong where that cannot be read."""
    try:
        return _model_and_task(storage / name, (storage / name / "sweep.yaml").stat().st_mtime_ns)
    except (InputError, yaml.YAMLError, OSError) as error:
        return " ".join(str(error).split())


@lru_cache(maxsize=4096)
def _model_and_task(folder: Path, changed: int) -> str:
    """changed: when its configuration was; another one is read anew."""
    # the whole configuration, checked, takes a tenth of a second
    written = yaml.load((folder / "sweep.yaml").read_bytes(), Loader=yaml.CSafeLoader)
    model = ModelsConfig(name=value_at(written, "model.name"))
    return f"{value_at(written, 'task')} with {model.words}"


def _is_sweep(folder: Path) -> bool:
    return (folder / "sweep.yaml").exists()


def _listed(storage: Path, folder: Path, started: list[Started]) -> Listed:
    process = _process(folder)
    last = _started_of(storage, folder.name, process, started)
    status = "interrupted" if process is None else process.present
    if status != "running" and last is not None and last.runs:
        # it goes on with the sweep and has not come to write so, or is about to end
        status = STARTING if process is None or not last.has_written(process) else status
    return Listed(
        name=folder.name,
        status=status,
        has_winner=(folder / "winner" / "winner.json").exists(),
        started=last,
        process=process,
        modified=(folder / "sweep.yaml").stat().st_mtime,
    )


def _started_of(
    storage: Path, name: str, process: WrittenStatus | None, started: list[Started]
) -> Started | None:
    """The last command of the page that ran this sweep; which one that is, is written down when it
    is seen first, as another process may go on with the sweep.
    """
    for each in started:
        if each.sweep == name:
            return each
        if each.sweep is None and process is not None and each.has_written(process):
            known = replace(each, sweep=name)
            write(storage, known)
            return known
    return None


def _process(folder: Path) -> WrittenStatus | None:
    try:
        changed = (folder / "status.json").stat().st_mtime_ns
        return _read_process(folder, changed)
    except (InputError, OSError):  # one that is damaged must not hide the others
        return None


@lru_cache(maxsize=4096)
def _read_process(folder: Path, changed: int) -> WrittenStatus | None:
    return Ledger(str(folder)).process()
