"""The folder of a sweep as it begins and as it goes on: its configurations, and what it is of."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sweeps.config.loading import dump, from_folder
from sweeps.config.resuming import as_trained, check_resumable, differences
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.run.storage import storage_url
from sweeps.tracking.artifacts import ARTIFACT
from trainables.data.config import DataConfig
from trainables.data.manifest import Manifest, source_words
from trainables.data.sources import is_local
from trainables.metrics.choosing import located_options
from trainables.models.files import digest_of
from trainables.models.lineage import Ancestor, lineage_json

TRACKING = "tracking"  # folder of all that trackers write


def new_folder(config: SweepConfig) -> Ledger:
    """The ledger of a new sweep in STORAGE/NAME-YYYYMMDD-HHMMSS, a folder that no other sweep
    has.
    """
    while True:
        ledger = Ledger(f"{storage_url(config)}/{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
        if ledger.store.claim():
            return ledger
        time.sleep(
            random.uniform(0.5, 1.5)
        )  # who wants the same name at the same moment must not do so again


def absolute_paths(config: SweepConfig) -> SweepConfig:
    """The configuration with data files, model folder and earlier sweeps as absolute paths: the
    sweep's folder must not depend on where it began.
    """

    def absolute(source: str) -> str:
        if source and is_local(source):
            return str(Path(source).expanduser().absolute())
        return source

    def absolutes(given: Any) -> Any:
        """Of what a split is read from: a source, a list of them, or a share of train."""
        if isinstance(given, str):
            return absolute(given)
        if isinstance(given, list):
            return [absolutes(each) for each in given]
        return {**given, "source": absolute(given["source"])} if isinstance(given, dict) else given

    data: DataConfig = replace(
        config.data,
        train=absolutes(config.data.train),
        validation=absolutes(config.data.validation),
        test=absolutes(config.data.test),
    )
    if isinstance(data.replay, dict) and data.replay.get("source"):
        data = replace(data, replay=absolutes(data.replay))

    def located(name: str) -> str:
        """Of a model, which may also be on the hub or in a package."""
        is_folder = not name.startswith("package:") and Path(name).expanduser().is_dir()
        return absolute(name) if is_folder else name

    model = config.model.located(located)
    metrics = located_options(config.metrics, absolute)
    prior = [each if each.startswith(ARTIFACT) else absolute(each) for each in config.search.prior]
    search = replace(config.search, prior=prior)
    return replace(config, data=data, model=model, metrics=metrics, search=search)


def about(ledger: Ledger, config: SweepConfig) -> dict[str, object]:
    """What every tracked run says of the sweep that it is of: `tracked`, and where its folder
    is.
    """
    base = ledger.store.read_json("base.json") if ledger.store.exists("base.json") else {}
    told = tracked(config, ledger.manifest(), base, ledger.lineages())
    return told | {"folder": ledger.folder}


def tracked(
    config: SweepConfig,
    manifest: Manifest,
    base: dict[str, str],
    lineages: Mapping[str, Sequence[Ancestor]] | None = None,
) -> dict[str, object]:
    """Task, model and data as they stand in the configuration of every W&B run; base: what
    `fingerprint` gave; lineages: what each base came from, by the words for them.
    """
    data: dict[str, object] = {}
    for name in [name for name in ("train", "validation", "test") if name in manifest.splits]:
        split = manifest.splits[name]
        data[name] = {
            "source": source_words(manifest.sources_of(name)),
            "rows": split.rows or split.read,
            "fingerprint": split.fingerprint or split.raw_fingerprint or None,
        }
    model = _tracked_model(config, base, lineages or {})
    return {
        "task": config.task,
        # of several bases a trial's own word is its parameter `model`
        "models" if config.model.choice else "model": model,
        "data": data,
    }


def _tracked_model(
    config: SweepConfig, base: dict[str, str], lineages: Mapping[str, Sequence[Ancestor]]
) -> dict[str, object]:
    """Of several bases what differs stands by the words for them."""
    model: dict[str, object] = {
        name: getattr(config.model, name) for name in ("name", "revision", "dtype")
    }
    digests = {word: digest_of(each) for word, each in config.model.of_each(base).items()}
    model |= {"fingerprints": digests} if config.model.choice else {"fingerprint": digests[""]}
    of_bases = {word: lineage_json(each) for word, each in lineages.items()}
    if of_bases:
        model["lineage"] = of_bases if config.model.choice else of_bases[""]
    return model


def amend(ledger: Ledger, config: SweepConfig) -> list[str]:
    """Let the sweep go on as `config`; says what has changed since it last ran. Raises InputError
    for what cannot.
    """
    ran_with = ledger.store.find("configurations")
    last = ran_with[-1] if ran_with else "sweep.yaml"
    former = from_folder(ledger.store.read_bytes(last), (), ledger.store.path(last))
    found = differences(former, config)
    if not found:
        return []
    check_resumable(former, config)
    for curve in ledger.curves():
        params = as_trained(former, config, curve.params)
        if params != curve.params:
            ledger.restate(curve.id, params)
    write_configuration(ledger, config)
    return [f"Changed: {words}" for words in found]


def write_configuration(ledger: Ledger, config: SweepConfig) -> None:
    """The last of `configurations` is what trials were run with, also when somebody edits
    sweep.yaml.
    """
    number = len(ledger.store.find("configurations")) + 1
    ledger.store.write_bytes(f"configurations/{number:03d}.yaml", dump(config).encode())
    ledger.store.write_bytes("sweep.yaml", dump(config).encode())
