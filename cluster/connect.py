"""Join a Ray cluster or start one, and cut it into slots."""

import fcntl
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.exceptions

from cluster import ClusterError
from cluster.config import ClusterConfig, check_ray_address, joined_address
from cluster.reaper import reaped

if TYPE_CHECKING:
    from ray._private.node import Node

DASHBOARD_PORT = 8265
PROBE_TIMEOUT_S = 5.0
# characters: a Unix socket's path has 107 at most, and Ray's own folders below it take the rest
STARTS = 3  # of a Ray that a busy machine brings up too slowly for the 30 s that it gives itself
MAX_TEMP_DIR = 40
TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token, or RAY_AUTH_TOKEN_PATH to a"
    " file with it"
)
API_ADDRESS = "RAY_API_SERVER_ADDRESS"  # variable with the address of the dashboard
PRESTART = "RAY_prestart_worker_first_driver"  # variable: a worker at once for every core
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # variable: whether nodes may join one another
MAX_CORES_PER_WORKER = 8  # more threads rarely speed up one small model on a CPU; more slots do


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A joined cluster."""

    namespace: str  # of named actors
    own: bool  # True: a Ray of our own on this machine, which ends with the connection
    socket: Path | None  # by which new processes join a Ray of our own; None: it is another's
    dashboard_url: str | None
    dashboard_token: (
        str | None
    )  # the command that prints the token that the dashboard asks for; None: it asks for none
    end_is_told: Callable[[], None]  # to be called by who ends this process at once, and says so


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How many slots run side by side, and what each of their workers holds."""

    slots: int
    room: int  # slots of this kind that the whole cluster would hold
    workers_per_slot: int
    resources_per_worker: dict[str, float]
    threads_per_worker: int
    reason: str  # one line for people

    @property
    def worker_options(self) -> dict[str, Any]:
        """What a worker holds, as the options of a Ray actor."""
        others = dict(self.resources_per_worker)
        cpus, gpus = others.pop("CPU", 0), others.pop("GPU", 0)
        return {"num_cpus": cpus, "num_gpus": gpus} | ({"resources": others} if others else {})


@contextmanager
def connect(
    config: ClusterConfig, *, namespace: str, temp_dir: Path | None = None, last_words: str = ""
) -> Iterator[Connection]:
    """Join the cluster at `config.address`, else that of RAY_ADDRESS, else start a Ray of our own
    on this machine.

    What was started here is shut down at the end; a Ray that this process had already joined is
    used and left as it is. `temp_dir` is for a Ray of our own: session files and sockets, by
    default /tmp/ray. `last_words` are printed where this process ends before it leaves here, if it
    has joined Ray here. Raises ClusterError: nothing answers at the address, or it wants
    another token.
    """
    if ray.is_initialized():
        joined = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
        yield _connection(joined.dashboard_url, ray.get_runtime_context().namespace, own=False)
        return
    address = joined_address(config) or "local"
    own = address == "local"
    with ExitStack() as after:
        try:
            if own:
                dashboard = _start(namespace, temp_dir)
            else:
                where = "cluster.address" if config.address else "RAY_ADDRESS"
                dashboard = _join(address, where, namespace)
            end_is_told = after.enter_context(reaped(own=own, last_words=last_words))
            yield _connection(dashboard, namespace, own=own, end_is_told=end_is_told)
        finally:
            ray.shutdown()


def plan_slots(
    resources: Mapping[str, float],
    nodes: Sequence[Mapping[str, object]],
    config: ClusterConfig,
    trials: int,
    *,
    can_grow: bool = False,
) -> SlotPlan:
    """Cut the cluster into slots: as many as fit, at most one per trial, or `config.slots`.

    `resources` is `ray.cluster_resources()` and `nodes` is `ray.nodes()`. A worker fits on one
    node; the workers of a slot may lie on several. Threads per worker are its CPUs; one that asks
    for none gets its share of the node's CPUs. With `can_grow` an explicit `config.slots` may
    exceed what fits: the rest waits for nodes to come. Raises ClusterError: not one slot fits, or
    fewer than `config.slots`.
    """
    alive = [node.resources for node in map(_Node.of, nodes) if node.alive]
    worker = config.resources_per_worker or _default_worker(alive)
    room = sum(_count(node, worker) for node in alive) // config.workers_per_slot
    asked = _asked(worker, config.workers_per_slot)
    most = room if config.max_slots is None else min(room, config.max_slots)
    wanted = min(most if config.slots == "auto" else config.slots, trials)
    if wanted > room and not can_grow or wanted == 0:
        raise _does_not_fit(wanted, room, asked, has=f"{amounts(resources)}{_largest(alive)}")
    slots = f"{wanted} {'slot' if wanted == 1 else 'slots'}"
    beside = _room_words(wanted, room, trials, config)
    return SlotPlan(
        slots=wanted,
        room=room,
        workers_per_slot=config.workers_per_slot,
        resources_per_worker=dict(worker),
        threads_per_worker=_fewest_threads(alive, worker),
        reason=f"{slots}: {asked}; the cluster has {amounts(resources)}{beside}",
    )


@dataclass(frozen=True, kw_only=True)
class _Node:
    """What Ray tells of a node."""

    alive: bool
    resources: Mapping[str, float]

    @classmethod
    def of(cls, told: Mapping[str, object]) -> "_Node":
        resources = cast("Mapping[str, float]", told["Resources"])
        return cls(alive=bool(told["Alive"]), resources=resources)


def plan_slots_now(config: ClusterConfig, trials: int, *, can_grow: bool = False) -> SlotPlan:
    """`plan_slots` of the cluster that we have joined as it is, without nodes that are to be taken
    away.
    """
    leaving = draining_nodes()
    nodes = [node for node in ray.nodes() if node["NodeID"] not in leaving]
    return plan_slots(ray.cluster_resources(), nodes, config, trials, can_grow=can_grow)


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes of which the cluster has been told that they will be taken away soon: a spot
    machine that is called back, a pod that Kubernetes ends (`ray start --block` tells it itself).
    """
    try:
        from ray._private.state import state
    except ImportError:  # Ray has no public word for it
        return frozenset()
    return frozenset(getattr(state, "get_draining_nodes", dict)())


def _does_not_fit(wanted: int, room: int, asked: str, *, has: str) -> ClusterError:
    what = f"{wanted} slots do not fit, only {room}" if room else "not one slot fits"
    return ClusterError(f"cluster: {what}: asked are {asked}; the cluster has {has}")


def _room_words(wanted: int, room: int, trials: int, config: ClusterConfig) -> str:
    """Where there is room for more or fewer slots than are planned."""
    if wanted > room:
        return f", room for {room} now: the others wait for nodes to join"
    if config.slots == "auto" and wanted == trials < room:
        return f", room for {room}, but there is work for only {trials}"
    if wanted == config.max_slots and wanted < room:
        return f", room for {room}; cluster.max_slots is {wanted}"
    return ""


def _asked(worker: Mapping[str, float], workers_per_slot: int) -> str:
    several = f", {workers_per_slot} workers per slot" if workers_per_slot > 1 else ""
    return f"{amounts(worker)} per worker{several}"


def _largest(alive: Sequence[Mapping[str, float]]) -> str:
    """Words for the largest node, where there are several."""
    if len(alive) < 2:
        return ""
    largest = max(alive, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    return f", its largest node {amounts(largest)}"


def _default_worker(alive: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if any(node.get("GPU", 0) >= 1 for node in alive):
        return {"GPU": 1.0}
    cores = int(max((node.get("CPU", 0) for node in alive), default=0))
    return {"CPU": float(max(1, min(MAX_CORES_PER_WORKER, cores // 2)))}


def fits(node: Mapping[str, float], worker: Mapping[str, float]) -> bool:
    """Whether a node of these resources has room for a worker."""
    return _count(node, worker) > 0


def _count(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in worker.items())


def _fewest_threads(alive: Sequence[Mapping[str, float]], worker: Mapping[str, float]) -> int:
    """Of a worker on any node that it fits on."""
    threads = [_threads(node, worker) for node in alive if _count(node, worker)]
    return min(threads, default=max(1, int(worker.get("CPU", 1))))


def _threads(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    if (cores := worker.get("CPU")) is not None:
        return max(1, int(cores))
    return max(1, int(node.get("CPU", 0) / max(1, _count(node, worker))))


def amounts(resources: Mapping[str, float]) -> str:
    """`2 CPU, 1 GPU`: what people count; Ray's bookkeeping (node:…, object store, accelerator
    types) is left out.
    """
    hidden = ("node:", "accelerator_type:", "object_store_memory", "bundle_group")
    shown = {
        name: amount
        for name, amount in resources.items()
        if not name.startswith(hidden) and "_group_" not in name  # of placement groups
    }
    words = [
        f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in sorted(shown.items())
        if amount
    ]
    return ", ".join(words) or "nothing"


def _connection(
    dashboard: str | None,
    namespace: str,
    *,
    own: bool,
    end_is_told: Callable[[], None] = lambda: None,
) -> Connection:
    return Connection(
        end_is_told=end_is_told,
        namespace=namespace,
        own=own,
        socket=_socket() if own else None,
        dashboard_url=f"http://{dashboard}" if dashboard else None,
        dashboard_token=(
            "`ray get-auth-token`"
            if dashboard and os.environ.get("RAY_AUTH_MODE") == "token"
            else None
        ),
    )


def _socket() -> Path:
    from ray._private.worker import global_worker

    return Path(cast("str", cast("Node", global_worker.node).raylet_socket_name))


def _start(namespace: str, temp_dir: Path | None) -> str | None:
    if temp_dir is not None and len(str(temp_dir)) > MAX_TEMP_DIR:
        raise ClusterError(
            f"{temp_dir}: Ray's temporary folder may have {MAX_TEMP_DIR} characters at most, for"
            " its sockets"
        )
    with _alone():
        for left in reversed(range(STARTS)):
            try:
                return _init(namespace, temp_dir, _free_dashboard_port())
            except Exception as error:  # Ray raises bare ones, such as where it comes up too slowly
                ray.shutdown()
                if left:
                    continue
                words = " ".join(str(error).split()) or type(error).__name__
                raise ConnectionError(f"Ray did not start on this machine: {words}") from error


@contextmanager
def _alone() -> Iterator[None]:
    """One start at a time on this machine: until a dashboard listens on the port that was free,
    another finds it free too.
    """
    with (Path(tempfile.gettempdir()) / f"finetune-sweeps-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _init(namespace: str, temp_dir: Path | None, port: int) -> str | None:
    cores = None  # Ray counts them, and sees a container's limit but not this process's affinity
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        cores = len(os.sched_getaffinity(0))
    # Ray Train's placement-group cleaner asks "the" cluster of this machine; where there are two it
    # must be told which. The raylet hands that on to every worker.
    variables = {API_ADDRESS: f"http://127.0.0.1:{port}", PRESTART: "0", CLUSTERS: "0"}
    with environment(variables), _on_loopback():
        return ray.init(
            address="local",
            num_cpus=cores,
            namespace=namespace,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(temp_dir) if temp_dir else None,
        ).dashboard_url


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that starts meanwhile listen on loopback, and not on all networks. It does so
    where it makes no clusters, which it reads from the environment when it is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of this process, with `variables` for a while."""
    given = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join(address: str, where: str, namespace: str) -> str | None:
    check_ray_address(address, where)
    if address != "auto" and not answers(address):  # Ray itself would try for more than two minutes
        raise ClusterError(
            f"{where}: nothing answers at {address}; does the head run, and is this its --port"
            " (default 6379)?"
        )
    try:
        joined = ray.init(
            address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR
        )
        return joined.dashboard_url
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if _is_about_tokens(error):
            raise ClusterError(f"{where}: {address} refused our token: {TOKEN_HELP}") from error
        raise ClusterError(
            f"{where}: cannot join {address}: {' '.join(str(error).split())}"
        ) from error


def _is_about_tokens(error: BaseException | None) -> bool:
    """Ray wraps the head's refusal into a ConnectionError, and its traceback into the message of
    that one's cause.
    """
    while error is not None:
        if isinstance(error, ray.exceptions.AuthenticationError) or "AuthenticationError" in str(
            error
        ):
            return True
        error = error.__cause__
    return False


def answers(address: str) -> bool:
    """Whether somebody listens at host:port."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    hosts = (
        [host]
        if host not in ("localhost", "127.0.0.1", "::1")
        else [host, ray.util.get_node_ip_address()]
    )
    for each in hosts:
        try:
            socket.create_connection((each, int(port)), timeout=PROBE_TIMEOUT_S).close()
            return True
        except OSError:
            continue
    return False


def _free_dashboard_port() -> int:
    """The port that people know, where it is free, else any."""
    for port in (DASHBOARD_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ClusterError("127.0.0.1: no port is free for Ray's dashboard")
