import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster import ClusterError
from cluster.config import ClusterConfig
from cluster.connect import SlotPlan, plan_slots

GIB = 2**30


def plan(
    nodes: list[dict[str, float]], trials: int = 100, can_grow: bool = False, **config: Any
) -> SlotPlan:
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0) + amount
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    return plan_slots(total, alive + dead, ClusterConfig(**config), trials, can_grow=can_grow)


def cpu(cores: float) -> dict[str, float]:
    return {
        "CPU": cores,
        "memory": 8.0 * GIB,
        "node:10.0.0.1": 1.0,
        "object_store_memory": 1.0 * GIB,
    }


def gpu(gpus: float, cores: float) -> dict[str, float]:
    return cpu(cores) | {"GPU": gpus, "accelerator_type:H100": 1.0}


@pytest.mark.parametrize(
    ("nodes", "config", "slots", "worker", "threads"),
    [
        ([cpu(1)], {}, 1, {"CPU": 1}, 1),
        ([cpu(2)], {}, 2, {"CPU": 1}, 1),
        ([cpu(3)], {}, 3, {"CPU": 1}, 1),
        ([cpu(8)], {}, 2, {"CPU": 4}, 4),
        ([cpu(64)], {}, 8, {"CPU": 8}, 8),
        ([cpu(0), cpu(4), cpu(4)], {}, 4, {"CPU": 2}, 2),
        ([cpu(64)], {"slots": 3}, 3, {"CPU": 8}, 8),
        ([cpu(8)], {"workers_per_slot": 2}, 1, {"CPU": 4}, 4),
        ([cpu(8)], {"resources_per_worker": {"CPU": 3}}, 2, {"CPU": 3}, 3),
        ([cpu(8)], {"resources_per_worker": {"CPU": 0.5}}, 16, {"CPU": 0.5}, 1),
        (
            [cpu(64)],
            {"resources_per_worker": {"CPU": 1, "memory": 3 * GIB}},
            2,
            {"CPU": 1, "memory": 3 * GIB},
            1,
        ),
        ([gpu(1, 16)], {}, 1, {"GPU": 1}, 16),
        ([gpu(8, 64)], {}, 8, {"GPU": 1}, 8),
        ([cpu(16), gpu(2, 8), gpu(2, 12)], {}, 4, {"GPU": 1}, 4),
        ([gpu(2, 8), gpu(2, 8)], {"workers_per_slot": 4}, 1, {"GPU": 1}, 4),
        ([gpu(3, 8), gpu(3, 8)], {"workers_per_slot": 2}, 3, {"GPU": 1}, 2),
        ([gpu(1, 8)], {"resources_per_worker": {"GPU": 0.25}}, 4, {"GPU": 0.25}, 2),
        (
            [gpu(7, 100)],
            {"resources_per_worker": {"GPU": 0.07}},
            100,
            {"GPU": 0.07},
            1,
        ),  # 7 / 0.07 is 99.99…
        ([gpu(1, 0)], {}, 1, {"GPU": 1}, 1),
        ([gpu(2, 8)], {"resources_per_worker": {"GPU": 1, "CPU": 3}}, 2, {"GPU": 1, "CPU": 3}, 3),
        ([gpu(3, 8), gpu(3, 8)], {"resources_per_worker": {"GPU": 2}}, 2, {"GPU": 2}, 8),
        ([gpu(2, 8)], {"resources_per_worker": {"CPU": 4}}, 2, {"CPU": 4}, 4),
    ],
)
def test_slots(nodes, config, slots, worker, threads) -> None:
    made = plan(nodes, **config)
    assert (made.slots, made.resources_per_worker, made.threads_per_worker) == (
        slots,
        worker,
        threads,
    )
    assert made.workers_per_slot == config.get("workers_per_slot", 1)


def test_one_slot_per_trial_at_most() -> None:
    made = plan([gpu(8, 64)], trials=3)
    assert made.slots == 3
    assert (
        made.reason
        == "3 slots: 1 GPU per worker; the cluster has 64 CPU, 8 GPU, 8.0 GiB memory, room for 8, but there is work for only 3"
    )
    assert plan([gpu(8, 64)], trials=3, slots=5).slots == 3


@pytest.mark.parametrize(
    ("nodes", "config", "message"),
    [
        ([], {}, "cluster: not one slot fits: asked are 1 CPU per worker; the cluster has nothing"),
        (
            [cpu(2)],
            {"resources_per_worker": {"GPU": 1}},
            "cluster: not one slot fits: asked are 1 GPU per worker; the cluster has 2 CPU, 8.0 GiB memory",
        ),
        (
            [cpu(4), cpu(6)],
            {"resources_per_worker": {"CPU": 8}},
            "cluster: not one slot fits: asked are 8 CPU per worker; the cluster has 10 CPU, 16.0 GiB memory, "
            "its largest node 6 CPU, 8.0 GiB memory",
        ),
        (
            [gpu(2, 8)],
            {"workers_per_slot": 4},
            "cluster: not one slot fits: asked are 1 GPU per worker, 4 workers per slot; "
            "the cluster has 8 CPU, 2 GPU, 8.0 GiB memory",
        ),
        (
            [gpu(2, 8)],
            {"slots": 3},
            "cluster: 3 slots do not fit, only 2: asked are 1 GPU per worker; the cluster has 8 CPU, 2 GPU, 8.0 GiB memory",
        ),
    ],
)
def test_does_not_fit(nodes, config, message) -> None:
    with pytest.raises(ClusterError) as caught:
        plan(nodes, **config)
    assert str(caught.value) == message


def test_a_cluster_that_can_grow() -> None:
    made = plan([cpu(0)], can_grow=True, slots=4, resources_per_worker={"GPU": 1})
    assert (made.slots, made.threads_per_worker) == (4, 1)
    assert made.reason.endswith("room for 0 now: the others wait for nodes to join")
    with pytest.raises(ClusterError, match="not one slot fits"):
        plan([cpu(0)], can_grow=True, resources_per_worker={"GPU": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"workers_per_slot": 0}, "cluster.workers_per_slot: must be at least 1, got 0"),
        ({"slots": 0}, "cluster.slots: must be auto or at least 1, got 0"),
        (
            {"resources_per_worker": {}},
            "cluster.resources_per_worker: must name a resource, such as {GPU: 1}, got {}",
        ),
        (
            {"resources_per_worker": {"GPU": 1.5}},
            "cluster.resources_per_worker.GPU: must be a whole number, or a part between 0 and 1, got 1.5",
        ),
        (
            {"resources_per_worker": {"CPU": 0}},
            "cluster.resources_per_worker.CPU: must be a whole number, or a part between 0 and 1, got 0",
        ),
        ({"address": "head"}, "cluster.address: must be auto or the head's host:port, got 'head'"),
        (
            {"address": "http://head:8265"},
            "cluster.address: http://head:8265 is a dashboard's: give it to `submit`; here goes auto or the head's host:port",
        ),
        (
            {"address": "ray://head:10001"},
            "cluster.address: a sweep cannot run through Ray Client (ray://head:10001): use `submit http://host:8265`",
        ),
    ],
)
def test_mistakes(config, message) -> None:
    with pytest.raises(ClusterError) as caught:
        ClusterConfig(**config)
    assert str(caught.value) == message


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    assert ClusterConfig(address=address).address == address


def test_omegaconf_reads_it() -> None:
    tree = OmegaConf.merge(
        OmegaConf.structured(ClusterConfig),
        OmegaConf.create("{slots: auto, resources_per_worker: {CPU: 2}}"),
    )
    assert OmegaConf.to_object(tree) == ClusterConfig(resources_per_worker={"CPU": 2.0})
    assert (
        OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(ClusterConfig), {"slots": 3})
        ).slots
        == 3
    )
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(OmegaConf.structured(ClusterConfig), {"slots": "many"})


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClusterConfig().slots = 3
