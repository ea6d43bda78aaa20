import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.strip().splitlines()[-1]


def environment(tmp: Path) -> dict[str, str]:
    """Of a command under test: a Ray of its own with token authentication off, W&B offline, no hub."""
    return {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(tmp),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def ray_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short folder for Ray's sockets, whose paths are limited to 107 characters."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fs", dir="/tmp"))


@pytest.fixture(scope="session")
def sweeps(ray_tmp: Path):
    """`python -m sweeps` as a user calls it."""

    def call(
        *arguments: str, program: Sequence[str] = ("-m", "sweeps"), umask: int = -1, **env: str
    ) -> Finished:
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            cwd=ROOT,
            env={**environment(ray_tmp), **env},
            capture_output=True,
            text=True,
            umask=umask,
        )
        return Finished(code=done.returncode, out=done.stdout, err=done.stderr)

    return call


@pytest.fixture(scope="session")
def start_sweeps(ray_tmp: Path):
    """`python -m sweeps` in the background, its output going to a file."""
    running: list[subprocess.Popen] = []

    def call(log: Path, *arguments: str) -> subprocess.Popen:
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "sweeps", *map(str, arguments)],
                cwd=ROOT,
                env=environment(ray_tmp),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(process)
        return process

    yield call
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def general_text(tmp_path: Path) -> Path:
    """A file of it that is read in a moment: the default is 65,000 tokens."""
    file = tmp_path / "general.txt"
    file.write_text(
        "The manual says what each word of the language does, and what it does not do. " * 40
    )
    return file


@pytest.fixture
def shakespeare(shared_data: Path, general_text: Path, tmp_path: Path):
    """Writes the file of a sweep over a play with a tiny real language model; `more` is the rest of the file."""

    def write(more: str) -> Path:
        defaults = {
            "train": "{probe_rows: 64}",
            "cluster": "{slots: 1}",
            "selection": f"{{general_text: {general_text}}}",
        }
        file = tmp_path / "shakespeare.yaml"
        file.write_text(f"""
name: shakespeare
task: causal_lm
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
{more}
""")
        with file.open("a") as stream:
            stream.writelines(
                f"{key}: {value}\n" for key, value in defaults.items() if f"\n{key}:" not in more
            )
        return file

    return write
