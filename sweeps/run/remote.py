"""The `submit` command: a sweep as a Ray job, with the code and the data files that it needs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from cluster.submit import JobOutcome, is_loopback, parse_address, stage
from cluster.submit import submit as submit_job
from sweeps.config.loading import dump, with_own_space
from sweeps.config.schema import SweepConfig
from sweeps.tracking.artifacts import ARTIFACT
from trainables.data.config import DataConfig
from trainables.data.files import kind_of
from trainables.data.sources import SPLITS, is_local, local_files
from trainables.errors import InputError
from trainables.metrics.choosing import located_options
from trainables.tasks.instruction.templates import NONE, PRESETS

STOP_WAIT = (  # seconds from the signal that stops a job to the one that kills it
    "RAY_JOB_STOP_WAIT_TIME_S"
)
ORDERLY_END_S = 60  # Ray's own default is 3
PASSED_ON = (
    "HF_HUB_OFFLINE",
    "WANDB_MODE",
    "WANDB_BASE_URL",
    STOP_WAIT,
)  # settings; keys and tokens belong into the cluster's environment

Source = TypeVar("Source", bound=str | float | None)  # a file or a URL; a share of another; none


def submit_sweep(
    config: SweepConfig, *, address: str, wait: bool, print_line: Callable[[str], None]
) -> JobOutcome:
    """Run a sweep on the cluster with its dashboard at `address`.

    Data files of this machine travel with the job; a model folder and the storage must be where the
    cluster's nodes reach them. Raises InputError or ClusterError before anything is submitted.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise InputError(
            "--address: not given; the cluster's dashboard, such as http://127.0.0.1:8265"
        )
    files: dict[str, Path] = {}
    data = replace(
        config.data,
        **{name: _shipped_split(config.data, name, files) for name in SPLITS},
        chat_template=_shipped_template(config.data.chat_template, files),
    )
    general = _shipped("selection.general_text", config.selection.general_text, files)
    metrics = located_options(config.metrics, lambda path: _shipped_option(path, files))
    _ship_functions(config.metrics, files)
    config = with_own_space(config)
    config = replace(
        config,
        data=data,
        metrics=metrics,
        selection=replace(config.selection, general_text=general),
        storage=_reached("storage", config.storage, address),
        search=replace(
            config.search,
            prior=[_reached("search.prior", each, address) for each in config.search.prior],
        ),
        cluster=replace(config.cluster, address=None),
    )
    with TemporaryDirectory(prefix="finetune-sweeps-submit-") as scratch:
        files["sweep.yaml"] = Path(scratch) / "sweep.yaml"
        files["sweep.yaml"].write_text(dump(config))
        with stage(Path(__file__).resolve().parents[2], files) as folder:
            outcome = submit_job(
                name=config.name,
                entry=["sweeps", "run", "sweep.yaml"],
                working_dir=folder,
                address=address,
                metadata={
                    "sweep": config.name,
                    "model": config.model.words,
                    "trials": str(config.search.trials),
                    "storage": config.storage,
                },
                env={STOP_WAIT: str(ORDERLY_END_S)}
                | {name: os.environ[name] for name in PASSED_ON if name in os.environ},
                wait=wait,
                print_line=print_line,
            )
    print_line(
        f"Job {outcome.job_id}:"
        f" {outcome.status}{f' ({outcome.message})' if outcome.status == 'FAILED' else ''},"
        f" {outcome.url}"
    )
    return outcome


def _shipped_split(data: DataConfig, split: str, files: dict[str, Path]) -> Any:
    """What a split is read from, as the job finds it; each file of a folder or a pattern by itself.
    A single file is data/SPLIT.EXTENSION.
    """
    given, key = getattr(data, split), f"data.{split}"
    if not data.parts(split):
        return given
    is_several = isinstance(given, str) and (Path(given).expanduser().is_dir() or has_magic(given))
    if isinstance(given, str) and not (is_local(given) and is_several):
        return _shipped(key, given, files)
    found: list[str | dict[str, Any]] = []
    for part in data.parts(split):
        if not is_local(part.source):
            names = [part.source]
        else:
            names = []
            for path in local_files(part.source, key):
                name = f"data/{split}/{len(found) + len(names):04d}-{path.name}"
                files[name] = path
                names.append(name)
        found += [
            name if part.weight == 1 else {"source": name, "weight": part.weight} for name in names
        ]
    return found


def _shipped_template(setting: str | None, files: dict[str, Path]) -> str | None:
    """`data.chat_template`, which may be a file."""
    if setting is None or setting in (*PRESETS, NONE):
        return setting
    path = Path(setting).expanduser()
    if not path.is_file():
        raise InputError(f"data.chat_template: no such file: {setting}")
    name = f"data/chat_template{path.suffix}"
    files[name] = path
    return name


def _shipped_option(path: str, files: dict[str, Path]) -> str:
    """A file that a metric reads; folders, such as a judge's cache, are made where the job runs."""
    found = Path(path).expanduser()
    if not found.is_file():
        return path
    name = f"data/metrics/{len(files):04d}-{found.name}"
    files[name] = found
    return name


def _ship_functions(metrics: Sequence[object], files: dict[str, Path]) -> None:
    """Modules of the current folder whose functions are metrics go along by their own names."""
    names = [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in metrics]
    for name in map(str, names):
        module, colon, _ = name.partition(":")
        file = Path(*module.split(".")).with_suffix(".py")
        if colon and module not in ("evaluate", "torchmetrics") and file.is_file():
            files[str(file)] = file


def _shipped(key: str, source: Source, files: dict[str, Path]) -> Source | str:
    """A source as the job finds it: files of this machine go along as data/NAME.EXTENSION. `key`:
    where it stands in the sweep file.
    """
    if not isinstance(source, str) or not is_local(source):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"{key}: no such file: {source}")
    name = f"data/{key.rsplit('.', 1)[1]}{''.join(kind_of(source))}"
    files[name] = path
    return name


def _reached(key: str, folder: str, address: str) -> str:
    """Where the job writes or reads: its own folder is Ray's, and goes when Ray likes."""
    elsewhere = "://" in folder or folder.startswith(ARTIFACT)
    if elsewhere or Path(folder).expanduser().is_absolute():
        return folder
    _, host, _ = parse_address(address)
    if is_loopback(host):
        return str(Path(folder).absolute())
    raise InputError(
        f"{key}: must be a URL (s3://…, gs://…) or an absolute path that every node of the"
        f" cluster reads, got {folder!r}"
    )
