"""The nodes of a cluster that we have joined: what each answers, and those that may come."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import ray
import ray.exceptions
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from cluster import ClusterError
from cluster.connect import SlotPlan, amounts, fits

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Answered(Generic[Answer]):
    """What a node answered."""

    node: str  # for people: its address, and the beginning of its id
    answer: Answer | None
    problem: str = ""  # why there is no answer, in one line


def ask_nodes(
    ask: Callable[[Question], Answer],
    question: Question,
    worker: Mapping[str, float],
    timeout_s: float,
) -> list[Answered[Answer]]:
    """`ask(question)` as a task on each living node that has room for `worker`, all at once; those
    that are late are told so.
    """
    nodes = {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"] and fits(node["Resources"], worker)
    }
    remote = ray.remote(num_cpus=0, max_retries=0)(ask)
    waiting = {
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote(question): name
        for node, name in nodes.items()
    }
    if not waiting:
        return []
    answered, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
    for each in late:
        ray.cancel(each, force=True)
    in_time = set(answered)
    found = []
    for each, name in waiting.items():
        if each not in in_time:
            problem = f"did not answer within {timeout_s:.0f} s"
            found.append(Answered[Answer](node=name, answer=None, problem=problem))
            continue
        try:
            found.append(Answered[Answer](node=name, answer=ray.get(each)))
        except Exception as error:  # the border to another machine, which may lack anything
            found.append(Answered[Answer](node=name, answer=None, problem=last_line(error)))
    return found


def last_line(error: BaseException) -> str:
    """What an error on another machine comes to, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def on_a_worker(
    run: Callable[..., Answer],
    plan: SlotPlan,
    arguments: Sequence[object],
    *,
    wait_s: float,
    say: Callable[[str], None],
) -> Answer | None:
    """`run(*arguments)` as a task that holds what a worker of a slot holds; None: there was no room
    for it within wait_s. Raises ClusterError for whatever that raises.
    """
    group = placement_group([plan.resources_per_worker])
    try:
        if not group.wait(1.0):
            say(f"Waiting for a worker with {amounts(plan.resources_per_worker)}.")
            if not group.wait(wait_s):
                return None
        there = PlacementGroupSchedulingStrategy(group)
        remote = ray.remote(run).options(scheduling_strategy=there, **plan.worker_options)
        return ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a worker of the cluster: {last_line(error)}") from error
    finally:
        remove_placement_group(group)


def wait_for_room(
    worker: Mapping[str, float],
    workers: int,
    *,
    wait_s: float,
    react_s: float,
    say: Callable[[str], None],
) -> bool:
    """Ask the cluster for room for so many workers, for as long as its autoscaler brings nodes, and
    for wait_s at most; whether there is room then. An autoscaler that has not reacted within
    react_s is none.
    """
    group = placement_group([dict(worker)] * workers)
    try:
        began, told = time.monotonic(), ""
        while not group.wait(1.0):
            took, coming = time.monotonic() - began, launching()
            if coming and coming != told:
                say(f"The cluster starts nodes: {coming}.")
                told = coming
            if took > wait_s or (took > react_s and not told):
                return False
        return True
    finally:
        remove_placement_group(group)


def launching() -> str:
    """What the cluster's autoscaler starts at the moment, in words; empty where it starts nothing,
    or there is none.
    """
    address = ray.get_runtime_context().gcs_address
    status = get_cluster_status(address)
    found = [f"{each.count} {each.ray_node_type_name}" for each in status.pending_launches]
    found += [each.ray_node_type_name for each in status.pending_nodes]
    # autoscalers of the first generation leave a report
    written = GcsClient(address=address).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = json.loads(written).get("autoscaler_report") if written else None
    if report:
        found += [f"{count} {kind}" for kind, count in (report["pending_launches"] or {}).items()]
        found += [each[1] for each in report["pending_nodes"] or ()]
    return ", ".join(found)
