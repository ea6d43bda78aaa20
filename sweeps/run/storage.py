"""Where a sweep's folder is made, and whether it can be."""

import errno
import os
import tempfile
import uuid
from pathlib import Path

from sweeps.config.schema import SweepConfig
from trainables.errors import InputError
from trainables.storage.store import Store

PROBE = b"x" * 4096  # that a disk must have room for


def storage_url(config: SweepConfig) -> str:
    """Under which the sweep's folder is made: a path of this machine is made absolute."""
    return (
        config.storage
        if "://" in config.storage
        else str(Path(config.storage).expanduser().absolute())
    )


def check_storage(config: SweepConfig) -> None:
    """Try that the sweep's folder could be made and written, before anything is spent; leaves
    nothing behind.
    """
    try:
        store = Store(storage_url(config))
        if store.local is None:
            probe = f".writable-{uuid.uuid4().hex}"
            store.write_bytes(probe, PROBE)
            store.delete(probe)
            return
        # in what is there already: another sweep may be making the rest at this moment
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=nearest(store.local)) as probed:
            probed.write(PROBE)
            probed.flush()
            os.fsync(probed.fileno())
    except Exception as error:  # the border to file systems, each with errors of its own
        reason = (
            getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        )
        raise InputError(
            f"storage: cannot write to {config.storage}: {reason}; give a folder or an fsspec URL"
            " that can be written"
        ) from error


def nearest(folder: Path) -> Path:
    """`folder`, or what there is of the folders above it."""
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return nearest(folder.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder")
    return folder
