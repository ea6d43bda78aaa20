"""What a sweep will do, known before it starts: `check` prints it, and `run` builds on it."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from sweeps.config import SweepConfig
from trainables.hyperparameters import OPTIONS
from trainables.model import check_files, load_model_config, load_tokenizer, quiet


def prepare_data(config: SweepConfig, folder: Path) -> dict[str, Any]:
    """Check the model's files; read, split and tokenise the data into `folder`. Returns the manifest."""
    from trainables.data.prepare import prepare
    from trainables.data.sources import check_sources

    quiet()
    check_sources(config.data)
    check_files(config.model)
    context = getattr(load_model_config(config.model), "max_position_embeddings", None)
    return prepare(config.data, config.task, load_tokenizer(config.model), config.seed, folder, context)


def methods(config: SweepConfig) -> list[str]:
    """The methods that the sweep may draw."""
    drawn = {draw.get("method") for draw in config.draws()}
    return [method for method in OPTIONS if method in drawn]


def max_epochs(config: SweepConfig) -> float:
    """The most epochs that a trial may train, as far as draws show."""
    return max(float(draw["epochs"]) for draw in config.draws())


def print_plan(config: SweepConfig, console: Console) -> None:
    """Data, space, trials, slots, steps; raises what `run` would raise, and trains nothing."""
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        manifest = prepare_data(config, Path(scratch))

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"Sweep {config.name}: {config.task} with {config.model.name}")
    for name, split in manifest["splits"].items():
        if "rows" in split:
            say(
                f"  {name}: {split['rows']} rows, {split['tokens']} tokens (mean {split['mean_length']:.1f}, longest {split['longest']}, "
                f"{split['truncated']} cut to {manifest['max_length']})"
            )
        else:
            say(f"  {name}: {split['read']} rows, sealed until there is a winner")
    if manifest["labels"]:
        share = f"{manifest['majority_share']:.1%}"
        say(
            f"  labels: {', '.join(map(str, manifest['labels']))}; majority {manifest['majority_label']} with {share} of validation"
        )
    for note in manifest["notes"]:
        say(f"  note: {note}")
    search, rows = config.search, manifest["splits"]["train"]["rows"]
    space = config.space()
    size = space.size()
    say(
        f"Search: {search.trials} trials by {search.sampler}"
        + (f" of {size} configurations" if size is not None else "")
    )
    for path, what in space.parameters:
        say(f"  {path}: {what}")
    for name, value in config.train.fixed().items():
        say(f"  {name}: fixed {value}")
    steps = [math.ceil(draw["epochs"] * math.ceil(rows / draw["batch_size"])) for draw in config.draws()]
    mean = sum(draw["epochs"] for draw in config.draws()) / len(config.draws())
    say(
        f"  steps per trial: {min(steps)} to {max(steps)}; {mean * rows * search.trials:,.0f} samples in all if no trial stops early"
    )
    say(f"Slots: {_slots(config)}")
    if search.time_budget:
        say(f"Time budget: {search.time_budget}")
    say("No problem found.")


def _slots(config: SweepConfig) -> str:
    """What `run` would start here; another cluster is not asked."""
    if config.cluster.address is not None:
        return f"decided on the cluster at {config.cluster.address}"
    import torch

    from cluster.connect import plan_slots

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    resources = {name: amount for name, amount in resources.items() if amount}
    return plan_slots(resources, [{"Alive": True, "Resources": resources}], config.cluster, config.search.trials).reason
