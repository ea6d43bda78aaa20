"""Before a sweep spends anything on a cluster that is not its own: whether it can run there.

What goes wrong for lack of this shows after minutes, on one node, in a traceback of somebody else.
"""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cluster import ClusterError
from cluster.config import joined_address
from cluster.job_page import own_job
from sweeps.config.schema import SweepConfig
from sweeps.run.environment import set_environment
from sweeps.run.node_check import (
    NEEDED,
    PYTHON,
    RAY,
    SUBMITTED,
    Found,
    Question,
    Sent,
    file_sizes,
    look,
    rehearse_rows,
    unusable_gpu,
    versions,
)
from sweeps.run.storage import check_storage, nearest, storage_url
from trainables.errors import InputError
from trainables.metrics.choosing import located_options
from trainables.models.config import ModelConfig
from trainables.storage.records import from_json
from trainables.storage.store import Store

if TYPE_CHECKING:
    from cluster.connect import SlotPlan
    from cluster.nodes import Answered
    from trainables.rehearsal.rehearse import Rehearsal

Say: TypeAlias = Callable[[str], None]
Rehearse: TypeAlias = Callable[
    [ModelConfig, str, Path, Sequence[Mapping[str, Any]], int], "Rehearsal"
]
"""As `trainables.rehearsal.rehearse.rehearse`."""

NODE_TIMEOUT_S = 60.0  # for what a node is asked
REACT_S = 20.0  # in which an autoscaler shows that it starts nodes
NODES_S = 900.0  # for nodes that it starts
WORKER_S = 60.0  # for a free worker, where others use the cluster too


@contextmanager
def preflight(config: SweepConfig, say: Say) -> Iterator[Rehearse | None]:
    """Ask the cluster that the sweep joins whether it can run there: resources, versions, storage,
    model, variables. Inside it is joined; yields how to rehearse on one of its workers, None where
    the sweep starts a Ray of its own. Raises ClusterError, a line, where it cannot run.
    """
    if joined_address(config.cluster) is None:
        yield None
        return
    check_storage(config)
    set_environment()
    from cluster.connect import connect

    began = time.monotonic()
    with connect(config.cluster, namespace="preflight"):
        plan = _room(config, say)
        nodes = _ask(config, plan, say)
        _refuse_unusable_gpus(plan, say)
        seconds = time.monotonic() - began
        say(
            f"Preflight, in {seconds:.1f} s: {nodes} {'node' if nodes == 1 else 'nodes'} for slots,"
            " storage and model are reached"
        )
        yield partial(_rehearse_there, plan, say)


def _room(config: SweepConfig, say: Say) -> "SlotPlan":
    """The slots that fit, maybe after an autoscaler has brought nodes."""

    from cluster.connect import plan_slots_now
    from cluster.nodes import wait_for_room

    cluster, trials = config.cluster, config.search.trials

    def planned() -> "SlotPlan":
        return plan_slots_now(cluster, trials)

    try:
        return planned()
    except ClusterError as error:
        if cluster.resources_per_worker is None:
            raise
        say(f"{error}; waiting for an autoscaler to start nodes.")
        slots = 1 if cluster.slots == "auto" else min(cluster.slots, trials)
        if not wait_for_room(
            cluster.resources_per_worker,
            slots * cluster.workers_per_slot,
            wait_s=NODES_S,
            react_s=REACT_S,
            say=say,
        ):
            raise ClusterError(f"{error}; no autoscaler brings more") from error
    return planned()


def _ask(config: SweepConfig, plan: "SlotPlan", say: Say) -> int:
    """Ask every node that slots would use, and say what differs; the number of nodes. Raises
    ClusterError for what stands in the way.
    """
    from cluster.nodes import ask_nodes

    sent, here = _sent(), versions()
    with _marked(config) as (place, mark):
        question = Question(
            storage=place,
            mark=mark,
            folders=dict(_model_folders(config)),
            files=tuple(_other_files(config)),
            needs=sent.needs,
        )
        # the driver's own node may be none of those, and its tracker wants keys too
        own = [each for each in look(question).problems if each.startswith("--env")]
        answers = ask_nodes(look, question, plan.resources_per_worker, NODE_TIMEOUT_S)
    problems = {each: ["the head"] for each in own}
    for answered in answers:
        for problem in _problems(answered, here):
            problems.setdefault(problem, []).append(answered.node)
    _refuse([f"{problem} (on {', '.join(on)})" for problem, on in problems.items()], say)
    _tell_differences(sent, here, answers, say)
    return len(answers)


def _sent() -> Sent:
    """What `submit` said; empty where nobody submitted."""
    if own_job() is None or not Path(SUBMITTED).is_file():
        return Sent(versions={})
    import json

    return from_json(Sent, json.loads(Path(SUBMITTED).read_text()), SUBMITTED)


@contextmanager
def _marked(config: SweepConfig) -> Iterator[tuple[str, str]]:
    """A place that is there already, and the name of a file there; it goes at the end."""
    store = Store(storage_url(config))
    if store.local is not None:
        store = Store(str(nearest(store.local)))
    mark = f".preflight-{uuid.uuid4().hex}"
    store.write_bytes(mark, b"")
    try:
        yield store.url, mark
    finally:
        with suppress(OSError):
            store.delete(mark)


def _model_folders(config: SweepConfig) -> Iterator[tuple[str, dict[str, int]]]:
    """Those of base models that workers read, with their files."""
    for base in config.bases:
        folder = Path(_located(config.over(base).model.name))
        if folder.is_dir():
            yield str(folder), file_sizes(folder)


def _located(name: str) -> str:
    """A model's folder as every node may find it; other names as they are."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _other_files(config: SweepConfig) -> list[str]:
    found: list[str] = []

    def keep(path: str) -> str:
        if Path(path).is_file():
            found.append(path)
        return path

    located_options(config.metrics, keep)
    return found


def _problems(answered: "Answered[Found]", here: Mapping[str, str]) -> Iterator[str]:
    """What stands in the way of a node."""
    if answered.answer is None:
        yield answered.problem
        return
    there = answered.answer.versions
    # what is pickled by one Python is not read by another, and Ray's parts speak to their own alone
    for name, of in ((PYTHON, _minor), (RAY, str)):
        if of(there.get(name, "")) != of(here[name]):
            yield f"{name} is {there.get(name, 'not there')}, and {here[name]} on the head"
    if lacking := [name for name in NEEDED if name in here and name not in there]:
        yield f"{', '.join(lacking)} not installed: it needs requirements.lock"
    yield from answered.answer.problems


def _minor(python: str) -> str:
    return python.rpartition(".")[0]


def _refuse(problems: Sequence[str], say: Say) -> None:
    if len(problems) > 1:
        for problem in problems:
            say(f"Preflight: {problem}")
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ClusterError(f"preflight: {problems[0]}{more}")


def _tell_differences(
    sent: Sent, here: Mapping[str, str], answers: "Sequence[Answered[Found]]", say: Say
) -> None:
    """Versions that need not be the same, but give other numbers where they are not."""
    others = {answer.node: answer.answer.versions for answer in answers if answer.answer}
    if sent.versions:
        others["where it was submitted"] = sent.versions
    for where, there in others.items():
        found = [
            f"{name} {there[name]}, {here[name]} on the head"
            for name in there
            if name in here and there[name] != here[name]
        ]
        if found:
            say(f"Other versions ({where}): {'; '.join(found)}")


def _refuse_unusable_gpus(plan: "SlotPlan", say: Say) -> None:
    if plan.resources_per_worker.get("GPU"):
        from cluster.nodes import on_a_worker

        why = on_a_worker(unusable_gpu, plan, (), wait_s=WORKER_S, say=say)
        _refuse([why] if why else [], say)


def _rehearse_there(
    plan: "SlotPlan",
    say: Say,
    model: ModelConfig,
    task: str,
    data: Path,
    trials: Sequence[Mapping[str, Any]],
    pad_token_id: int,
) -> "Rehearsal":
    """On a worker: the driver's node may have no room for it, nor what workers have."""
    from cluster.nodes import on_a_worker
    from trainables.rehearsal.rehearse import excerpt, rehearse

    scratch = Path(tempfile.mkdtemp(prefix="finetune-sweeps-"))
    try:
        excerpt(data, scratch / "data", task)
        rows = {each.name: each.read_bytes() for each in (scratch / "data").iterdir()}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say("Rehearsing on a worker; `rehearse: false` leaves it out.")
    arguments = (replace(model, name=_located(model.name)), task, rows, trials, pad_token_id)
    found = on_a_worker(rehearse_rows, plan, arguments, wait_s=WORKER_S, say=say)
    if found is None:
        say(f"No worker is free within {WORKER_S:.0f} s: the rehearsal is here.")
        return rehearse(model, task, data, trials, pad_token_id)
    if isinstance(found, str):
        raise InputError(found)
    return found
