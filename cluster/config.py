"""The `cluster` section of a sweep file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cluster import ClusterError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where trials run, and how the machines are cut into slots."""

    # None: the cluster of RAY_ADDRESS (set inside a job), else a Ray of our own; auto or host:port:
    # a running cluster
    address: str | None = None
    # processes that train one trial together; their gradients are averaged
    workers_per_slot: int = 1
    # of Ray; None: {GPU: 1} where there are GPUs, else {CPU: half of the node's cores, 8 at most}
    resources_per_worker: dict[str, float] | None = None
    # that train side by side; auto: as many as fit, at most one per trial
    slots: int | Literal["auto"] = "auto"
    # of them, where slots is auto; None: as many as there are
    max_slots: int | None = None
    # where several sweeps share a cluster: one of priority 2 gets twice the slots of one of 1
    priority: float = 1.0
    # for how long one of several sweeps that take turns at a slot keeps it, at least
    slice_minutes: float = 10.0
    # trials that share one base model in a slot, where their methods allow it; auto: as many as fit
    # and as pays, measured
    trials_per_slot: int | Literal["auto"] = "auto"
    # without a step, an evaluation or anything else from a slot, after which its workers are killed
    # and started again; a trial with which that happens twice has failed
    hang_minutes: float = 60
    # in which no slot runs and no node is there that could hold one, after which the sweep ends, to
    # be resumed
    wait_minutes: float = 10

    def __post_init__(self) -> None:
        if self.address is not None:
            check_ray_address(self.address, "cluster.address")
        if self.workers_per_slot < 1:
            raise ClusterError(
                f"cluster.workers_per_slot: must be at least 1, got {self.workers_per_slot}"
            )
        if self.slots != "auto" and self.slots < 1:
            raise ClusterError(f"cluster.slots: must be auto or at least 1, got {self.slots}")
        if self.max_slots is not None and self.slots != "auto":
            raise ClusterError(
                f"cluster.max_slots: goes with slots: auto, got slots: {self.slots}; leave one out"
            )
        if self.max_slots is not None and self.max_slots < 1:
            raise ClusterError(f"cluster.max_slots: must be at least 1, got {self.max_slots}")
        if self.trials_per_slot != "auto" and self.trials_per_slot < 1:
            raise ClusterError(
                f"cluster.trials_per_slot: must be auto or at least 1, got {self.trials_per_slot}"
            )
        for name in ("hang_minutes", "wait_minutes", "slice_minutes", "priority"):
            if not (given := getattr(self, name)) > 0:
                raise ClusterError(f"cluster.{name}: must be above 0, got {given:g}")
        if self.resources_per_worker is not None:
            _check_resources(self.resources_per_worker)


def joined_address(config: ClusterConfig) -> str | None:
    """Of the cluster that a sweep joins; None: it starts a Ray of its own."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def _check_resources(resources: Mapping[str, float]) -> None:
    if not resources:
        raise ClusterError(
            "cluster.resources_per_worker: must name a resource, such as {GPU: 1}, got {}"
        )
    for name, amount in resources.items():
        if amount <= 0 or (amount > 1 and amount != int(amount)):
            raise ClusterError(
                f"cluster.resources_per_worker.{name}: must be a whole number, or a part between 0"
                f" and 1, got {amount:g}"
            )


def check_ray_address(address: str, where: str) -> None:
    """Raise ClusterError unless a driver inside the cluster can join at `address`: `auto` or
    `host:port`.
    """
    if address == "auto":
        return
    if re.match(r"https?://", address):
        raise ClusterError(
            f"{where}: {address} is a dashboard's: give it to `submit`; here goes auto or the"
            " head's host:port"
        )
    if address.startswith("ray://"):
        raise ClusterError(
            f"{where}: a sweep cannot run through Ray Client ({address}): use `submit"
            " http://host:8265`"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{1,5}", address):
        raise ClusterError(f"{where}: must be auto or the head's host:port, got {address!r}")
