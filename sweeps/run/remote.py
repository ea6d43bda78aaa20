"""The `submit` command: a sweep as a Ray job, with the code and the data files that it needs."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cluster.endpoint import Endpoint, find_endpoint
from cluster.jobs import STOP_WAIT, SWEEP
from cluster.staging import stage
from cluster.submit import JobOutcome
from cluster.submit import submit as submit_job
from sweeps.config.loading import dump, with_own_space
from sweeps.config.schema import SweepConfig
from sweeps.run.node_check import SUBMITTED, Sent, versions
from sweeps.tracking.artifacts import ARTIFACT
from trainables.data.config import DataConfig
from trainables.data.files import kind_of
from trainables.data.sources import SPLITS, is_local, local_files
from trainables.errors import InputError
from trainables.metrics.choosing import located_options
from trainables.storage.records import to_json
from trainables.tasks.instruction.templates import NONE, PRESETS

ORDERLY_END_S = 60  # Ray's own default is 3
PASSED_ON = (
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "WANDB_MODE",
    "WANDB_BASE_URL",
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    STOP_WAIT,
)  # settings; keys and tokens belong into the cluster's environment

DATA = "data"  # where a job has the files that went along

Source = TypeVar("Source", bound=str | float | None)  # a file or a URL; a share of another; none


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Where and how a sweep is submitted."""

    address: str | None
    """None: where Ray's variables say."""
    verify: str | None = None
    """As `cluster.endpoint.open_client` takes it."""
    needs: Sequence[str] = ()
    """Names of the variables that every node must have."""
    wait: bool = False
    print_line: Callable[[str], None]

    def __post_init__(self) -> None:
        for name in self.needs:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise InputError(
                    f"--env: must be the name of a variable alone, such as HF_TOKEN, got"
                    f" {name.partition('=')[0]!r} and more; its value belongs into the"
                    " environment of the cluster's nodes"
                )


def submit_sweep(config: SweepConfig, how: Submission, *, check: bool = False) -> JobOutcome:
    """Run a sweep on a cluster; check: only look there whether it could run.

    Data files of this machine travel with the job; a model folder and the storage must be where the
    cluster's nodes reach them. Raises InputError or ClusterError before anything is submitted.
    """
    endpoint = find_endpoint(how.address)
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
        storage=_reached("storage", config.storage, endpoint),
        search=replace(
            config.search,
            prior=[_reached("search.prior", each, endpoint) for each in config.search.prior],
        ),
        cluster=replace(config.cluster, address=None),
    )
    with TemporaryDirectory(prefix="finetune-sweeps-submit-") as scratch:
        files["sweep.yaml"] = Path(scratch) / "sweep.yaml"
        files["sweep.yaml"].write_text(dump(config))
        return _submit(
            how,
            name=config.name,
            entry=["sweeps", "check" if check else "run", "sweep.yaml"],
            files=files,
            metadata={
                "checks" if check else SWEEP: config.name,
                "model": config.model.words,
                "trials": str(config.search.trials),
                "storage": config.storage,
            },
        )


def submit_resume(folder: str, overrides: Sequence[str], how: Submission) -> JobOutcome:
    """Go on with the sweep in `folder`, as the cluster reaches it, in a job."""
    folder = _reached("DIR", folder.rstrip("/"), find_endpoint(how.address))
    storage, _, sweep = folder.rpartition("/")
    return _submit(
        how,
        name=re.sub(r"-\d{8}-\d{6}$", "", sweep) or sweep,
        entry=["sweeps", "resume", folder, *overrides],
        files={},
        metadata={SWEEP: sweep, "storage": storage},
    )


def _submit(
    how: Submission,
    *,
    name: str,
    entry: Sequence[str],
    files: Mapping[str, Path],
    metadata: Mapping[str, str],
) -> JobOutcome:
    with TemporaryDirectory(prefix="finetune-sweeps-submit-") as scratch:
        sent = Path(scratch) / SUBMITTED
        sent.write_text(json.dumps(to_json(Sent(versions=versions(), needs=tuple(how.needs)))))
        with stage(Path(__file__).resolve().parents[2], {**files, SUBMITTED: sent}) as folder:
            outcome = submit_job(
                name=name,
                entry=entry,
                working_dir=folder,
                address=how.address,
                verify=how.verify,
                metadata=metadata,
                env=_passed_on(),
                wait=how.wait,
                print_line=how.print_line,
            )
    how.print_line(
        f"Job {outcome.job_id}:"
        f" {outcome.status}{f' ({outcome.message})' if outcome.status == 'FAILED' else ''},"
        f" {outcome.url}"
    )
    return outcome


def _passed_on() -> dict[str, str]:
    """Settings of this machine that hold in the job too."""
    found = {STOP_WAIT: str(ORDERLY_END_S)}
    found |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    for name, value in found.items():
        if "://" in value and urlsplit(value).password is not None:
            raise InputError(
                f"{name}: has a password in it, and Ray shows a job's variables to all who may"
                " submit; set it in the environment of the cluster's nodes, and unset it here"
            )
    return found


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
    """A file that a metric reads, or the folder of a script, under its own name, by which a metric
    may be called; other folders, such as a judge's cache, are made where the job runs.
    """
    found = Path(path).expanduser()
    if not found.is_file() and not (found / f"{found.name}.py").is_file():
        return path
    name = f"data/metrics/{len(files):04d}/{found.name}"
    files[name] = found
    return name


def _ship_functions(metrics: Sequence[object], files: dict[str, Path]) -> None:
    """Modules of the current folder whose functions are metrics go along by their own names, of a
    package all of it.
    """
    names = [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in metrics]
    for name in map(str, names):
        module, colon, _ = name.partition(":")
        if not colon or module in ("evaluate", "torchmetrics"):
            continue
        place = Path(*module.split("."))
        file, package = place.with_suffix(".py"), Path(place.parts[0])
        if file == package.with_suffix(".py") and file.is_file():
            files[str(file)] = file
        elif file.is_file() or (place / "__init__.py").is_file():
            if str(package) == DATA:
                raise InputError(
                    f"metrics: {name}: a package that goes along cannot be called {DATA!r}, where"
                    " the job has its files; rename it"
                )
            files[str(package)] = package


def _shipped(key: str, source: Source, files: dict[str, Path]) -> Source | str:
    """A source as the job finds it: files of this machine go along as data/NAME.EXTENSION. `key`:
    where it stands in the sweep file.
    """
    if not isinstance(source, str) or not is_local(source):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"{key}: no such file: {source}")
    name = f"{DATA}/{key.rsplit('.', 1)[1]}{''.join(kind_of(source))}"
    files[name] = path
    return name


def _reached(key: str, folder: str, endpoint: Endpoint) -> str:
    """Where the job writes or reads: its own folder is Ray's, and goes when Ray likes."""
    elsewhere = "://" in folder or folder.startswith(ARTIFACT)
    if elsewhere or Path(folder).expanduser().is_absolute():
        return folder
    if endpoint.is_here:
        return str(Path(folder).absolute())
    raise InputError(
        f"{key}: must be a URL (s3://…, gs://…) or an absolute path that every node of the"
        f" cluster reads, got {folder!r}"
    )
