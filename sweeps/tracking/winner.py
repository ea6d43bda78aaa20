"""The winner of a sweep, and what it was made of, as artifacts of Weights & Biases."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import BaseSource, DataSource, SourceFile, SweepEnd
from trainables.storage.records import Json
from trainables.storage.store import Store

if TYPE_CHECKING:
    import wandb

MODEL, LORA, DATASET = "model", "lora", "dataset"  # types of artifacts
ALIAS = "winner"
REGISTRY = "wandb-registry-model"
ADAPTER_FILES = re.compile(r"adapter_(config\.json|model.*\.safetensors)")
OF_THE_FOLDER = ("files_sha256", "checkpoint")
MOST_KEYS = 100  # of an artifact's metadata, W&B's limit


@contextmanager
def winner_artifact(
    config: TrackingConfig, name: str, end: SweepEnd
) -> Iterator[wandb.Artifact | None]:
    """The files of `winner/` as they lie there, or references to them; None where none is wanted.
    Files that were fetched for it are there as long as the context lasts.
    """
    if config.artifact == "off":
        yield None
        return
    store = Store(end.checkpoint)
    if not store.exists("winner.json"):
        raise OSError(f"{end.checkpoint}: the winner is not there")
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        artifact = _artifact(name, MODEL, end.metadata, end.reason)
        if uploads_files(config, store):
            _add_files(artifact, store.fetch("", Path(scratch)))
        else:
            _add_references(artifact, store)
        yield artifact


@contextmanager
def lora_artifact(
    config: TrackingConfig, name: str, end: SweepEnd
) -> Iterator[wandb.Artifact | None]:
    """The winner's LoRA adapter as W&B's own serving takes it; None where none is wanted, or the
    winner is no adapter.
    """
    store = Store(end.checkpoint)
    if config.lora_base is None or not store.exists("adapter_config.json"):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        # not those that tell of the whole folder, which this is not
        own = {k: each for k, each in end.metadata.items() if k not in OF_THE_FOLDER}
        metadata = {**own, "wandb.base_model": config.lora_base}
        artifact = _artifact(name, LORA, metadata, end.reason)
        for file in sorted(store.fetch("", Path(scratch)).iterdir()):
            if ADAPTER_FILES.fullmatch(file.name):
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
        yield artifact


def uploads_files(config: TrackingConfig, store: Store) -> bool:
    """Whether the winner's files go to W&B."""
    if config.artifact != "auto":
        return config.artifact == "files"
    return store.local is not None and store.size() <= config.artifact_limit_gb * 1e9


def data_artifact(config: TrackingConfig, end: SweepEnd) -> wandb.Artifact | None:
    """The splits that the sweep read, under a name that other sweeps over the same data share; None
    where none is wanted, or nothing is known of them.
    """
    if config.dataset == "off" or not end.data_fingerprint:
        return None
    splits = {each.name: _told(each) for each in end.data}
    artifact = _artifact(f"data-{end.data_fingerprint[:16]}", DATASET, splits)
    for entry, file in (found for each in end.data for found in _entries(each)):
        local = Path(file.name)
        if config.dataset == "files" and local.is_file():
            artifact.add_file(str(local), name=entry, policy="immutable", skip_cache=True)
        else:
            _add_reference(artifact, _uri(file.name), entry, file.sha256)
    return artifact


def base_artifact(base: BaseSource) -> wandb.Artifact:
    """The base model, referred to."""
    told = {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    artifact = _artifact(f"base-{base.name}", MODEL, told)
    uri = _uri(base.name) if Path(base.name).is_absolute() else f"hf://{base.name}"
    revision = base.revision or base.fingerprint or ""
    _add_reference(artifact, f"{uri}@{revision}" if revision else uri, "base", revision or uri)
    return artifact


def valid_name(name: str) -> str:
    """Of an artifact: W&B takes letters, digits, -, _ and ., 128 characters at most."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


def _artifact(
    name: str, kind: str, metadata: Mapping[str, object], description: str | None = None
) -> wandb.Artifact:
    import wandb

    kept = {key: metadata[key] for key in list(metadata)[:MOST_KEYS]}
    return wandb.Artifact(valid_name(name), kind, description=description, metadata=kept)


def _told(source: DataSource) -> dict[str, Json]:
    return {"source": source.source, "fingerprint": source.fingerprint, "rows": source.rows}


def _entries(split: DataSource) -> Iterator[tuple[str, SourceFile]]:
    """By their names in the artifact: two splits may be shares of one file."""
    for number, file in enumerate(split.files):
        path = Path(file.name.partition("?")[0])
        one = f"{split.name}{path.suffix}"
        yield (one if len(split.files) == 1 else f"{split.name}/{number:04}-{path.name}"), file


def _uri(source: str) -> str:
    return source if re.match(r"[a-z0-9+]+:", source) else f"file://{Path(source).absolute()}"


def _add_files(artifact: wandb.Artifact, folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            # no copy on this disk: nothing changes a winner that is there
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)


def _add_references(artifact: wandb.Artifact, store: Store) -> None:
    """With digests that W&B checks, where it can read what is referred to."""
    uri = _uri(store.path("").rstrip("/"))
    if store.local is not None:
        artifact.add_reference(uri)
        return
    for name in store.find():
        _add_reference(artifact, f"{uri}/{name}", name, f"{uri}/{name}")


def _add_reference(artifact: wandb.Artifact, uri: str, name: str, digest: str) -> None:
    """Not with `add_reference`, which for some schemes wants packages of a cloud."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath, URIStr

    entry = ArtifactManifestEntry(path=LogicalPath(name), ref=URIStr(uri), digest=digest)
    artifact.manifest.add_entry(entry)
