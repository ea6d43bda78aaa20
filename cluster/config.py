"""The `cluster` section of a sweep file."""

import re
from dataclasses import dataclass
from typing import Literal

from cluster import ClusterError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where trials run, and how the machines are cut into slots."""

    address: str | None = None  # None: the cluster of RAY_ADDRESS (inside a job), else a Ray of our own; auto or host:port: a running one
    workers_per_slot: int = 1  # processes that train one trial together; their gradients are averaged
    resources_per_worker: dict[str, float] | None = None  # None: {GPU: 1} where there are GPUs, else {CPU: a share of the node's cores}
    slots: int | Literal["auto"] = "auto"  # trials (or packs) trained side by side; auto: as many as fit, at most one per trial

    def __post_init__(self) -> None:
        if self.address is not None:
            check_ray_address(self.address, "cluster.address")
        if self.workers_per_slot < 1:
            raise ClusterError(f"cluster.workers_per_slot: must be at least 1, got {self.workers_per_slot}")
        if self.slots != "auto" and self.slots < 1:
            raise ClusterError(f"cluster.slots: must be auto or at least 1, got {self.slots}")
        if self.resources_per_worker is not None:
            if not self.resources_per_worker:
                raise ClusterError("cluster.resources_per_worker: is empty; name at least one resource, such as {GPU: 1} or {CPU: 2}")
            for name, amount in self.resources_per_worker.items():
                if amount <= 0:
                    raise ClusterError(f"cluster.resources_per_worker.{name}: must be above 0, got {amount:g}")
                if name in ("CPU", "GPU") and amount > 1 and amount != int(amount):
                    raise ClusterError(f"cluster.resources_per_worker.{name}: must be a whole number or below 1, got {amount:g}")


def check_ray_address(address: str, where: str) -> None:
    """Raise ClusterError unless `address` is `auto` or `host:port`: an address that a driver inside the cluster can join."""
    if address == "auto":
        return
    if re.match(r"https?://", address):
        raise ClusterError(f"{where}: {address} is a dashboard's address; give it to `submit`, or use auto or host:port of the head here")
    if address.startswith("ray://"):
        raise ClusterError(f"{where}: Ray Client ({address}) cannot run sweeps; use `submit` with the dashboard's address http://host:8265")
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{1,5}", address):
        raise ClusterError(f"{where}: must be auto or host:port of the head, got {address!r}")
