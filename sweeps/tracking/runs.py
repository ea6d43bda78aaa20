"""Trials that lie in Weights & Biases, read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.tracking.artifacts import ARTIFACT, border
from trainables.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrackedTrial:
    """What was told of a trial."""

    config: Mapping[str, Any]
    """Task, model and data, and the trial's hyperparameters."""
    summary: Mapping[str, Any]


def trials_of(name: str, where: str) -> list[TrackedTrial]:
    """The trials of the sweep `wandb:ENTITY/PROJECT/SWEEP`, which is a group of runs there, without
    new seeds of finalists. where: the setting that names it. Raises InputError for a name that is
    none, and where there are none.
    """
    found = re.fullmatch(r"([^/:]+/[^/:]+)/([^/:]+)", name.removeprefix(ARTIFACT))
    if found is None:
        raise InputError(f"{where}: must be a folder or wandb:ENTITY/PROJECT/SWEEP, got {name!r}")
    project, group = found.groups()
    import wandb

    with border(f"{where}: could not read {name}"):
        of_trials = {"group": group, "jobType": "trial"}
        runs = wandb.Api().runs(project, filters=of_trials, lazy=False)
        trials = [
            TrackedTrial(config=dict(run.config), summary=dict(run.summary_metrics)) for run in runs
        ]
    if not trials:
        raise InputError(f"{where}: {name}: no runs of this group in project {project}")
    return trials
