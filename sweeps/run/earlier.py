"""What a sweep takes over from the one that it goes on from: its winner, rows to train on again,
and rows by which forgetting is measured.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.run.storage import storage_url
from sweeps.tracking.artifacts import ARTIFACT, download
from trainables.data.cache import cache_folder
from trainables.data.config import Replay
from trainables.data.findings import Finding
from trainables.data.manifest import (
    EARLIER,
    MANIFEST,
    Manifest,
    data_of,
    read_manifest,
    write_manifest,
)
from trainables.data.replay import unlike, with_replay
from trainables.errors import InputError
from trainables.hyperparameters import base_of, parse
from trainables.models.base import BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.files import pad_token_of
from trainables.models.heads import keeps_head
from trainables.models.lineage import Ancestor, read_lineage
from trainables.models.origin import Adapter, adapter_of, resolve
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_local_model(config: SweepConfig) -> SweepConfig:
    """The configuration with a folder in the place of a W&B artifact, which is downloaded: to where
    the sweeps are, so that all that reach those reach it, or to the user's caches.
    """
    storage = storage_url(config)
    folder = cache_folder().parent if "://" in storage else Path(storage)

    def local(name: str) -> str:
        return str(download(name, folder / "artifacts")) if name.startswith(ARTIFACT) else name

    return replace(config, model=config.model.located(local))


def lineages(config: SweepConfig) -> dict[str, tuple[Ancestor, ...]]:
    """The winners that each base model comes from, the oldest first, by the words for the bases;
    without those that are no sweep's.
    """
    found = {base: _lineage(config.model.base(base)) for base in config.bases}
    return {base: ancestors for base, ancestors in found.items() if ancestors}


def _lineage(model: ModelConfig) -> tuple[Ancestor, ...]:
    return read_lineage(Path(resolve(model.name)))


def with_earlier(
    config: SweepConfig,
    manifest: Manifest,
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    drawn: Sequence[Mapping[str, object]],
) -> Manifest:
    """Add to the prepared data in `folder` what comes from an earlier sweep, and to what is told of
    them from where the model comes. Returns the manifest as it now is. Raises InputError where an
    adapter is to be continued that the search space does not fit. config: with one base model;
    drawn: configurations that trials of it may have.
    """
    model, replay = config.model, config.data.replay
    if replay is None and adapter_of(model) is None and not _lineage(model):
        return manifest
    sweep = _sweep_of(Path(resolve(model.name)))
    if replay is not None:
        wanted = Replay.of(replay)
        source = _data_of(_source_of(wanted, sweep, model))
        manifest = with_replay(manifest, folder, source, wanted, tokenizer)
    spec = _spec(config, manifest, pad_token_of(tokenizer))
    if model.adapter == "continue":
        from trainables.engine.continuing import check_continues

        check_continues(spec, map(parse, drawn))
    words = list(_origin(config, spec))
    words += _take_validation(config, manifest, folder, sweep)
    found = tuple(Finding(kind="origin", message=each) for each in words)
    manifest = replace(manifest, findings=(*manifest.findings, *found))
    write_manifest(folder, manifest)
    return manifest


def _sweep_of(model: Path) -> Path | None:
    """The folder of the sweep that a checkpoint lies in; None where it lies in none."""
    for folder in (model, *model.parents):
        if (folder / "sweep.yaml").is_file() and (folder / "data" / MANIFEST).is_file():
            return folder
    return None


def _source_of(replay: Replay, sweep: Path | None, model: ModelConfig) -> Path:
    """The sweep whose rows are replayed. sweep: that which the model is of."""
    source = Path(replay.source).expanduser() if replay.source else sweep
    if source is None:
        raise InputError(
            f"data.replay: {model.name} is not the winner in a sweep's folder, so it is not known"
            f" which rows it was trained on; give {{source: SWEEP_DIR, share: {replay.share:g}}}"
        )
    return source


def _data_of(sweep: Path) -> Path:
    """The prepared data of a sweep; where it had several bases, those for the winner's."""
    manifest, winner = read_manifest(sweep / "data"), sweep / "winner" / "winner.json"
    if manifest is None or not manifest.bases or not winner.is_file():
        return sweep / "data"
    params = json.loads(winner.read_text(encoding="utf-8"))["params"]
    return sweep / "data" / data_of(base_of(params), manifest.bases[0])


def _spec(config: SweepConfig, manifest: Manifest, pad_token_id: int) -> BaseSpec:
    task = TASKS[config.task]
    return BaseSpec(
        model=config.model,
        auto_class=task.auto_class,
        pad_token_id=pad_token_id,
        outputs=task.outputs(manifest.labels),
        problem_type=task.problem_type,
    )


def _origin(config: SweepConfig, spec: BaseSpec) -> Iterator[str]:
    """From where the model comes, and what becomes of it, in words."""
    adapter, ancestors = adapter_of(config.model), _lineage(config.model)
    if ancestors:
        yield f"model: goes on from {ancestors[-1].words}"
    if adapter is not None:
        yield _adapter_words(config.model, adapter, ancestors[-1:])
    if spec.has_head and (ancestors or adapter is not None):
        yield (
            "model: the head goes on, as task and labels are the same"
            if keeps_head(spec)
            else "model: the head is new, as task or labels are others; the backbone goes on"
        )


def _adapter_words(model: ModelConfig, adapter: Adapter, last: Sequence[Ancestor]) -> str:
    if model.adapter == "continue":
        return f"model: an adapter over {adapter.base.name}, which every trial continues"
    words = f"model: an adapter, merged into {adapter.base.name}: the untuned model is both"
    if last and last[0].quantisation != "none":
        words += f"; it was trained over {last[0].quantisation}, and is merged into whole weights"
    return words


def _take_validation(
    config: SweepConfig, manifest: Manifest, folder: Path, sweep: Path | None
) -> Iterator[str]:
    """Keep the earlier sweep's validation rows beside the data, where a loss on them says what was
    forgotten; else why not, in words.
    """
    for old in folder.glob(f"{EARLIER}.*"):
        old.unlink()
    if not _lineage(config.model):
        return
    why = _why_not_measured(config, manifest, sweep)
    if sweep is None or why is not None:
        yield f"forgetting of the earlier sweep's data is not measured: {why}"
        return
    for file in _data_of(sweep).glob("validation.*"):
        if file.suffix in (".arrow", ".npy"):
            shutil.copyfile(file, folder / file.name.replace("validation", EARLIER, 1))


def _why_not_measured(config: SweepConfig, manifest: Manifest, sweep: Path | None) -> str | None:
    """Why a loss on the earlier sweep's rows says nothing of what was forgotten, in words."""
    if TASKS[config.task].has_pairs:
        return "a pair's loss is told over the model that training starts from"
    if sweep is None:
        return "its folder is not here"
    theirs = read_manifest(_data_of(sweep))
    return None if theirs is None else unlike(manifest, theirs)
