"""A model that lies in Weights & Biases, brought here."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import InputError

ARTIFACT = "wandb:"


def download(name: str, folder: Path) -> Path:
    """The files of the artifact `wandb:ENTITY/PROJECT/NAME:VERSION`, somewhere below `folder`. A
    version (v3) that is there already is not asked for again; an alias, such as latest, is.
    """
    path = name.removeprefix(ARTIFACT)
    if not re.fullmatch(r"[^/:]+/[^/:]+/[^/:]+:[^/:]+", path):
        raise InputError(f"model.name: must be wandb:ENTITY/PROJECT/NAME:VERSION, got {name!r}")
    if re.fullmatch(r".*:v\d+", path) and (folder / path).is_dir():
        return folder / path
    import wandb

    with border(f"model.name: could not download {name}"):
        artifact = wandb.Api().artifact(path)
        target = folder / f"{path.rpartition(':')[0]}:{artifact.version}"
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = tempfile.mkdtemp(dir=target.parent, prefix=".partial-")
            try:
                artifact.download(root=partial)
                Path(partial).rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


@contextmanager
def border(words: str) -> Iterator[None]:
    """To W&B, where there may be no key, no server, or not what is asked for: InputError with
    these words, and the first line of why.
    """
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"{words}: {first}") from error
