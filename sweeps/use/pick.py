"""Fetch a winner into a folder, from where it is shown or lies."""

import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.ledger.folder import WINNER
from sweeps.ledger.opening import open_sweep
from sweeps.tracking.sources import Found, find_artifact, names_artifact
from trainables.errors import InputError
from trainables.storage.checksums import CHECKSUMS, altered_files, digest_of_checksums
from trainables.storage.store import Store

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Picked:
    """What was fetched."""

    folder: Path
    what: str
    """Which checkpoint, and from where."""
    notes: tuple[str, ...]
    loading: str
    """Python that loads it; empty where its card does not say."""
    check: str
    """How to see that it gives what was reported."""


def pick(source: str, to: str) -> Picked:
    """Bring the winner that `source` names into the folder `to`, whole or not at all, with the sums
    of its files checked. The local checkpoint is taken where it is the same.

    Raises InputError for a source that is none, and a folder that has files; OSError where a
    server, a store or the files do not do their part.
    """
    target = Path(to).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--to: must be a folder that is not there yet, or is empty, got {to!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
        fetched = Path(scratch) / "fetched"
        fetched.mkdir()
        if names_artifact(source) and not Path(source).expanduser().is_dir():
            found = find_artifact(source)
            what, metadata = _of_artifact(found, fetched, source)
            notes = (found.moved,) if found.moved else ()
        else:
            what, metadata = _of_sweep(source, fetched)
            notes = ()
        if wrong := altered_files(fetched):
            raise OSError(f"{source}: not what was handed over: {', '.join(wrong[:3])}")
        if target.is_dir():
            target.rmdir()
        fetched.rename(target)
    checkpoint = str(metadata.get("checkpoint") or "")
    return Picked(
        folder=target,
        what=what,
        notes=notes,
        loading=_loading(target, to),
        check=_check(checkpoint, metadata.get("files_sha256"), to),
    )


def _of_sweep(source: str, fetched: Path) -> tuple[str, Mapping[str, Any]]:
    ledger, _ = open_sweep(source)
    winner = ledger.handed_over()
    if winner is None:
        raise InputError(f"{source}: has no winner: it has not ended, or nothing could win")
    _copy(Store(ledger.store.path(WINNER)), fetched)
    sums = _digest(Store(ledger.store.path(WINNER)))
    told = {"checkpoint": ledger.store.path(WINNER), "files_sha256": sums}
    return f"{winner.trial}, step {winner.step}, of {source}", told


def _of_artifact(found: Found, fetched: Path, source: str) -> tuple[str, Mapping[str, Any]]:
    artifact, metadata = found.artifact, found.artifact.metadata
    checkpoint, digest = str(metadata.get("checkpoint") or ""), metadata.get("files_sha256")
    what = f"{metadata.get('trial', 'a model')} of {artifact.qualified_name} ({artifact.version})"
    is_reference = any(entry.ref for entry in artifact.manifest.entries.values())
    if _holds(checkpoint, digest):
        what = f"{what}, copied from {checkpoint}"
        _copy(Store(checkpoint), fetched)
    elif is_reference and "://" in checkpoint:
        what = f"{what}, from {checkpoint}"
        _copy(Store(checkpoint), fetched)
    elif is_reference:
        raise OSError(
            f"{source}: W&B has but a reference, to {checkpoint}, which is not on this machine, or"
            " is another by now"
        )
    else:
        _download(found, fetched, source)
    if digest and _digest(Store(str(fetched))) != digest:
        raise OSError(f"{source}: its files are not those that the sweep has handed over")
    return what, metadata


def _holds(checkpoint: str, digest: object) -> bool:
    """Whether there is the same on this machine."""
    if not checkpoint or "://" in checkpoint or not digest:
        return False
    return _digest(Store(checkpoint)) == digest


def _download(found: Found, fetched: Path, source: str) -> None:
    try:
        found.artifact.download(root=str(fetched), skip_cache=True)
        found.artifact.verify(root=str(fetched))
    except Exception as error:  # the outside world, as wandb tells of it
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise OSError(f"{source}: could not be downloaded: {first}") from error


def _copy(store: Store, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        shutil.copytree(store.fetch("", Path(scratch)), folder, dirs_exist_ok=True)


def _digest(store: Store) -> str | None:
    """Of all files, as their sums tell; None where there are none."""
    return digest_of_checksums(store.read_bytes(CHECKSUMS)) if store.exists(CHECKSUMS) else None


def _loading(folder: Path, to: str) -> str:
    """The lines of the card, which call the folder `winner`."""
    card = folder / "README.md"
    found = CODE.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    if found is None:
        return ""
    return re.sub(rf'"{WINNER}(?=["/])', lambda _: f'"{to}', found[1]).rstrip()


def _check(checkpoint: str, digest: object, to: str) -> str:
    """checkpoint: where the sweep has the same, by what it told."""
    sweep = checkpoint.rpartition("/")[0]
    if _holds(checkpoint, digest):
        return f"python -m sweeps verify {shlex.quote(sweep)}"
    return (
        f"(cd {shlex.quote(to)} && sha256sum --check {CHECKSUMS}); evaluating it again takes the"
        f" sweep's data: python -m sweeps verify {shlex.quote(sweep) if sweep else 'DIR'}"
    )
