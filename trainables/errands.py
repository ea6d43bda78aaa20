"""What a slot does beside training, when no trial is on board: baselines, and the sealed test. No Ray here.

Files that come of it go into the sweep's folder; numbers go back to the sweep.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trainables.checkpoints import finite_or_none, write_losses
from trainables.hyperparameters import company, parse
from trainables.model import Variant, load_tokenizer
from trainables.store import Store

MAX_TOKENS = {"cuda": 16384}  # of a pass, where `train.max_tokens` says nothing
CPU_TOKENS = 4096


def run(store: Store, config: Any, what: dict[str, Any]) -> dict[str, Any]:
    """`what["kind"]`: baselines, test or forgetting. `config`: of the slot (model, task, max_tokens, ...)."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    max_tokens = config.max_tokens or MAX_TOKENS.get(device.type, CPU_TOKENS)
    with tempfile.TemporaryDirectory() as scratch:
        data = store.fetch("data", Path(scratch))
        if what["kind"] == "baselines":
            return _baselines(store, config, data, "validation", max_tokens, device)
        if what["kind"] == "forgetting":
            return _forgetting(store, config, data, what, device)
        return _test(store, config, data, what, max_tokens, device)


def _baselines(store: Store, config: Any, data: Path, split: str, max_tokens: int, device: Any) -> dict[str, Any]:
    from trainables.baselines import measure_baselines

    found = measure_baselines(
        data,
        model=config.model,
        task=config.task,
        pad_token_id=config.pad_token_id,
        max_tokens=max_tokens,
        seed=config.seed,
        device=device,
        split=split,
    )
    for name, measured in found.items():
        if (losses := measured.pop("losses", None)) is not None:
            write_losses(store, f"baselines/{split}/{name}.npy", losses)
    return finite_or_none(found)


def _test(store: Store, config: Any, data: Path, what: dict[str, Any], max_tokens: int, device: Any) -> dict[str, Any]:
    """Tokenise the test split, now that there is a winner, and score winner, untuned base and baselines on it."""
    from trainables.data.prepare import open_split, read_manifest, tokenise_split
    from trainables.loading import load_base_model, load_checkpoint
    from trainables.pack import measure
    from trainables.tasks import TASKS

    described = tokenise_split(data, "test", load_tokenizer(config.model))
    if store.local is None:
        store.write_bytes("data/test.arrow", (data / "test.arrow").read_bytes())
    manifest, task = read_manifest(data), TASKS[config.task]
    kwargs, split = task.model_kwargs(manifest), open_split(data, "test")
    rows = np.arange(len(split))
    base = variant(parse(config.baseline))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = store.fetch(what["checkpoint"], Path(scratch))
        loads = {
            "winner": lambda: load_checkpoint(
                checkpoint, config.model, variant(parse(what["params"])), task.auto_class, kwargs, device
            ),
            "untuned": lambda: load_base_model(config.model, base, task.auto_class, kwargs, device),
        }
        found: dict[str, Any] = {}
        for name, load in loads.items():
            if name == "untuned" and config.task == "classification":
                continue  # its head is new: a number that says nothing, and another one on each machine
            measured = measure(load(), task, split, rows, config.pad_token_id, max_tokens, device)
            write_losses(store, f"baselines/test/{name}.npy", measured.losses)
            found[name] = {"loss": measured.loss, "metrics": task.metrics(*measured.columns)}
            if name == "untuned":
                found[name]["words"] = "the untuned model"
    for name, measured in _baselines(store, config, data, "test", max_tokens, device).items():
        found[name] = {**measured, "loss": measured.get("val_loss")}
        found[name].pop("val_loss", None)
    return finite_or_none({"split": described, "scores": found})


def _forgetting(store: Store, config: Any, data: Path, what: dict[str, Any], device: Any) -> dict[str, Any]:
    from trainables.data.prepare import open_split
    from trainables.forgetting import measure_forgetting
    from trainables.loading import load_base_model, load_checkpoint
    from trainables.tasks import TASKS

    auto_class, lies = TASKS[config.task].auto_class, variant(parse(what["params"]))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = store.fetch(what["checkpoint"], Path(scratch))
        found = measure_forgetting(
            load_checkpoint(checkpoint, config.model, lies, auto_class, {}, device),
            lambda: load_base_model(config.model, lies, auto_class, {}, device),
            load_tokenizer(config.model),
            store.read_bytes("data/general.txt").decode(),
            open_split(data, "validation"),
            device,
        )
    for name, losses in zip(("before", "after"), found.pop("losses"), strict=True):
        write_losses(store, f"baselines/general/{name}.npy", losses)
    return finite_or_none(found)


def variant(hp: Any) -> Variant:
    """How the base of a trial lies in memory."""
    return {"nf4": "nf4", "int8": "int8"}.get(company(hp) or "", "plain")
