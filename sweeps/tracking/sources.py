"""What a link of Weights & Biases shows: which artifact is the winner of the sweep behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from sweeps.tracking.artifacts import ARTIFACT, border
from sweeps.tracking.wandb import SWEEP, run_id
from sweeps.tracking.winner import ALIAS
from trainables.errors import InputError

if TYPE_CHECKING:
    import wandb

ALLOWED = (
    "ENTITY/PROJECT/NAME:ALIAS, wandb-registry-NAME/COLLECTION:ALIAS, the URL of a run, group,"
    " artifact or report, or a sweep's folder"
)
PATH = re.compile(r"(?:[^/:]+/){1,2}[^/:]+:[^/:]+")


@dataclass(frozen=True, kw_only=True)
class Found:
    """An artifact, and what is to be said of it."""

    artifact: wandb.Artifact
    moved: str | None
    """That its alias is not where the sweep has set it; None where it is, or none is known of."""


def names_artifact(source: str) -> bool:
    """Whether W&B is to be asked for it, and no folder."""
    return source.startswith((ARTIFACT, "http://", "https://")) or bool(PATH.fullmatch(source))


def find_artifact(source: str) -> Found:
    """Raises InputError without a key, for what is none of `ALLOWED`, and where there is no such
    thing; OSError where the server does not answer.
    """
    import wandb

    from sweeps.tracking.online import server_problem

    if problem := server_problem():
        raise OSError(f"W&B: {problem}")
    with border(source):
        api = wandb.Api()
        is_url = source.startswith(("http://", "https://"))
        path = _of_url(api, source) if is_url else source.removeprefix(ARTIFACT)
        if not PATH.fullmatch(path):
            raise InputError(f"must be {ALLOWED}")
        artifact = api.artifact(path)
        return Found(artifact=artifact, moved=_moved(api, artifact, path.rpartition(":")[2]))


def _of_url(api: wandb.Api, url: str) -> str:
    parts = [unquote(part) for part in urlparse(url).path.split("/") if part]
    match parts:
        case [entity, project, "runs", run, *_]:
            return _winner_of(entity, project, str(api.run(f"{entity}/{project}/{run}").group))
        case [entity, project, "groups", group, *_]:
            return _winner_of(entity, project, group)
        case [entity, project, "artifacts", _, name, version, *_]:
            return f"{entity}/{project}/{name}:{version}"
        case [entity, project, "reports", *_]:
            return _of_report(entity, project, url)
    raise InputError(f"must be {ALLOWED}")


def _winner_of(entity: str, project: str, sweep: str) -> str:
    return f"{entity}/{project}/{run_id(sweep, 'winner')}:{ALIAS}"


def _of_report(entity: str, project: str, url: str) -> str:
    """The winner of the one group whose runs the report shows."""
    from wandb_workspaces.reports.v2.interface import _load_spec_from_url

    groups = sorted(set(_groups(_load_spec_from_url(url))))
    if len(groups) != 1:
        shown = ", ".join(groups) or "none"
        raise InputError(f"the report must show the runs of one sweep's group, it shows {shown}")
    return _winner_of(entity, project, groups[0])


def _groups(spec: object) -> Iterator[str]:
    """Values that runs are filtered by as their group, anywhere in a report."""
    if isinstance(spec, dict):
        key = spec.get("key")
        if isinstance(key, dict) and key.get("name") == "group" and isinstance(spec["value"], str):
            yield spec["value"]
        for each in spec.values():
            yield from _groups(each)
    elif isinstance(spec, list):
        for each in spec:
            yield from _groups(each)


def _moved(api: wandb.Api, artifact: wandb.Artifact, alias: str) -> str | None:
    sweep, trial = artifact.metadata.get("sweep"), artifact.metadata.get("trial")
    if sweep is None or re.fullmatch(r"v\d+", alias):
        return None
    where = f"{artifact.source_entity}/{artifact.source_project}"
    try:
        run = api.run(f"{where}/{run_id(str(sweep), SWEEP)}")
    except Exception:
        return None  # the run is gone: nobody knows what was chosen
    chosen = run.summary_metrics.get("winner_trial")
    if chosen in (None, trial):
        return None
    return (
        f"alias `{alias}` points to {artifact.source_version} ({trial}); the sweep itself chose"
        f" {chosen}"
    )
