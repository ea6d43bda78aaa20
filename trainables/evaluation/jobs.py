"""What a slot does beside training, when no trial is on board: baselines, and the sealed test. No
Ray here.

Files that come of it go into the sweep's folder; numbers go back to the sweep.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.engine.memory import release
from trainables.hyperparameters import parse
from trainables.models.base import BaseSpec
from trainables.models.files import load_tokenizer
from trainables.storage.checkpoints import write_rows
from trainables.storage.records import finite_or_none, to_json
from trainables.storage.store import Store


def run(store: Store, config: Any, what: dict[str, Any]) -> dict[str, Any]:
    """`what["kind"]`: baselines, test or forgetting. `config`: of the slot (model, task,
    max_tokens, ...).
    """
    import torch

    from trainables.engine.budget import MICRO_BATCH_TOKENS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    max_tokens = config.max_tokens or MICRO_BATCH_TOKENS[device.type]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            data = store.fetch("data", Path(scratch))
            if what["kind"] == "baselines":
                return _baselines(store, config, data, "validation", max_tokens, device)
            if what["kind"] == "forgetting":
                return _forgetting(store, config, data, what, device)
            return _test(store, config, data, what, max_tokens, device)
    finally:
        release(device)  # the slot's next base comes after


def _baselines(
    store: Store, config: Any, data: Path, split: str, max_tokens: int, device: Any
) -> dict[str, Any]:
    from trainables.evaluation.baselines import measure_baselines

    found = measure_baselines(
        data,
        model=config.model,
        task=config.task,
        pad_token_id=config.pad_token_id,
        max_tokens=max_tokens,
        seed=config.seed,
        device=device,
        split=split,
        minutes=config.baseline_minutes,
    )
    for name, measured in found.items():
        losses, predictions = (measured.pop(each, None) for each in ("losses", "predictions"))
        if losses is not None:
            write_rows(store, f"baselines/{split}/{name}", losses, predictions)
    return finite_or_none(found)


def _test(
    store: Store, config: Any, data: Path, what: dict[str, Any], max_tokens: int, device: Any
) -> dict[str, Any]:
    """Tokenise the test split, now that there is a winner, and score it, the default configuration,
    the untuned base and baselines on it.
    """
    from trainables.data.manifest import read_manifest
    from trainables.data.prepare import (
        GROUPS,
        SLICES,
        open_slices,
        open_split,
        tokenise_split,
    )
    from trainables.engine.scoring import evaluate_model
    from trainables.models.checkpoint import load_base_model, load_checkpoint
    from trainables.tasks import TASKS

    described = tokenise_split(data, "test", load_tokenizer(config.model))
    if store.local is None:
        for name in ("test.arrow", SLICES.format("test"), GROUPS.format("test")):
            if (data / name).exists():
                store.write_bytes(f"data/{name}", (data / name).read_bytes())
    slices = open_slices(data, "test")
    manifest, task = read_manifest(data), TASKS[config.task]
    assert manifest is not None, "tokenise_split has read it"
    split = open_split(data, "test")
    with tempfile.TemporaryDirectory() as scratch:

        def load(trained: dict[str, Any]) -> Any:
            checkpoint = store.fetch(trained["checkpoint"], Path(scratch))
            return load_checkpoint(
                checkpoint, _spec(config, manifest.labels, trained["params"], device), device
            )

        loads = {"winner": lambda: load(what)}
        if what["default"] is not None:
            loads["default"] = lambda: load(what["default"])
        # the head of an untuned classifier is new: its number says nothing, and is another on each
        # machine
        if config.task != "classification":
            untuned = _spec(config, manifest.labels, config.baseline, device)
            loads["untuned"] = lambda: load_base_model(untuned, device)
        found: dict[str, Any] = {}
        for name, loaded in loads.items():
            measured = evaluate_model(
                loaded(),
                task,
                split,
                np.arange(len(split)),
                config.pad_token_id,
                max_tokens,
                device,
            )
            write_rows(store, f"baselines/test/{name}", measured.losses, measured.classes)
            found[name] = {"loss": measured.loss, "metrics": task.metrics(*measured.columns)}
            found[name]["slices"] = measured.by_slice(task, slices)
            release(device)  # before the next one is loaded
    for name, other in _baselines(store, config, data, "test", max_tokens, device).items():
        found[name] = {"loss": other.pop("val_loss", None), **other}
    return finite_or_none({"split": to_json(described), "scores": found})


def _forgetting(
    store: Store, config: Any, data: Path, what: dict[str, Any], device: Any
) -> dict[str, Any]:
    from trainables.data.prepare import open_split
    from trainables.evaluation.forgetting import GENERAL, measure_forgetting
    from trainables.models.checkpoint import load_base_model, load_checkpoint

    spec = _spec(config, [], what["params"], device)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = store.fetch(what["checkpoint"], Path(scratch))
        found = measure_forgetting(
            load_checkpoint(checkpoint, spec, device),
            lambda: load_base_model(spec, device),
            open_split(data, GENERAL),
            open_split(data, "validation"),
            device,
        )
    for name, losses in zip(("before", "after"), found.pop("losses"), strict=True):
        write_rows(store, f"baselines/general/{name}", losses)
    return finite_or_none(found)


def _spec(config: Any, labels: Sequence[str], params: dict[str, Any], device: Any) -> BaseSpec:
    """The base of a trial with these parameters."""
    from trainables.models.checkpoint import base_spec
    from trainables.tasks import TASKS

    hp = parse(params)
    task, pad = TASKS[config.task], config.pad_token_id
    return base_spec(
        config.model, task, labels, pad, hp.method, hp.options, device, config.precision
    )
