"""A sweep's folder, opened by its path or URL."""

from collections.abc import Sequence
from pathlib import Path

from sweeps.config.loading import from_folder
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from trainables.errors import InputError


def open_sweep(folder: str, overrides: Sequence[str] | None = None) -> tuple[Ledger, SweepConfig]:
    """The sweep's ledger and its configuration, also of one that an earlier version has run."""
    try:
        ledger = Ledger(folder if "://" in folder else str(Path(folder).expanduser().absolute()))
    # a protocol that fsspec does not know, or whose package is not there
    except (ValueError, ImportError) as error:
        raise InputError(f"{folder}: {error}") from error
    if ledger.store.local is not None and not ledger.store.local.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not ledger.store.exists("sweep.yaml"):
        raise InputError(f"{folder}: not a sweep's folder (it has no sweep.yaml)")
    written = ledger.store.read_bytes("sweep.yaml")
    return ledger, from_folder(written, overrides or (), f"{folder}/sweep.yaml")
