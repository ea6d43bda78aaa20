"""A server from its start to Ctrl-C."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import ray
from ray import serve

from cluster.config import ClusterConfig
from cluster.connect import Connection, SlotPlan, connect, plan_slots_now
from sweeps.run.signals import SignalHandler
from sweeps.use.serving import vllm
from sweeps.use.serving.address import Address, listening
from sweeps.use.serving.models import Served
from sweeps.use.trained import Trained, open_trained
from trainables.errors import InputError

APPLICATION = "finetune-sweeps"
NAMED = re.compile(r"([\w.-]+)=(.+)")
Engine = Literal["auto", "transformers", "vllm"]


def named(folders: Sequence[str], trial: str | None) -> list[tuple[Served, Trained]]:
    """The models by their names, looked at once. Raises InputError."""
    if trial is not None and len(folders) > 1:
        raise InputError("--trial: is of one sweep's folder, got several")
    found: dict[str, tuple[Served, Trained]] = {}
    for given in folders:
        is_named = NAMED.fullmatch(given)
        name, folder = is_named.groups() if is_named and not Path(given).exists() else ("", given)
        with open_trained(folder, trial) as trained:
            name = name or trained.config.name
            if name in found:
                raise InputError(
                    f"DIR: two models are called {name!r}: give one another name, NAME={folder}"
                )
            found[name] = Served(name=name, folder=folder, trial=trial), trained
    return list(found.values())


def run(
    models: Sequence[tuple[Served, Trained]],
    address: Address,
    cluster: ClusterConfig,
    *,
    replicas: int,
    most_tokens: int,
    engine: Engine,
    say: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises InputError and ClusterError for what the user can put
    right.
    """
    listening(address).close()  # whether it may: Ray's own server says it much later
    by_vllm = vllm.is_taken(engine, [trained for _, trained in models])
    ended = threading.Event()
    with SignalHandler(ended.set), connect(cluster, namespace="serve") as connection:
        if not connection.own:
            _check_alone()
        plan = plan_slots_now(replace(cluster, slots=replicas), replicas)
        say(plan.reason.replace("slot", "replica"))
        with _served(models, address, plan, most_tokens, by_vllm):
            for line in _told(models, address, connection):
                say(line)
            while not ended.wait(1.0):  # a wait without end would not see the signal
                pass
        say("stopped")


def _check_alone() -> None:
    """A cluster has one Ray Serve, with one port."""
    if others := ", ".join(serve.status().applications):
        raise InputError(f"--address: Ray Serve runs there already, with {others}; end that first")


@contextmanager
def _served(
    models: Sequence[tuple[Served, Trained]],
    address: Address,
    plan: SlotPlan,
    most_tokens: int,
    by_vllm: bool,
) -> Iterator[None]:
    application = _application(models, address, plan, most_tokens, by_vllm)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # its news are for those who run Ray
    serve.start(
        http_options={"host": address.host, "port": address.port}, proxy_location="HeadOnly"
    )
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
        yield
    finally:
        serve.shutdown()


def _application(
    models: Sequence[tuple[Served, Trained]],
    address: Address,
    plan: SlotPlan,
    most_tokens: int,
    by_vllm: bool,
) -> serve.Application:
    if by_vllm:
        return vllm.application(models, plan.slots, address.token)
    from sweeps.use.serving.app import BATCH, Server

    deployment = cast("serve.Deployment", Server)
    return deployment.options(
        num_replicas=plan.slots,
        ray_actor_options=plan.worker_options,
        # what waits beyond a batch waits in the replica, so that the next batch is full
        max_ongoing_requests=8 * BATCH,
        health_check_period_s=5,
    ).bind([served for served, _ in models], plan.threads_per_worker, address.token, most_tokens)


def _told(
    models: Sequence[tuple[Served, Trained]], address: Address, connection: Connection
) -> Iterator[str]:
    for served, trained in models:
        yield f"{served.name}: {trained.words} of {served.folder}, {trained.config.task}"
    node = next(node for node in ray.nodes() if node.get("Alive"))
    metrics = f"http://{node.get('NodeManagerAddress')}:{node.get('MetricsExportPort')}/metrics"
    yield f"metrics, for Prometheus: {metrics}"
    if connection.dashboard_url:
        yield f"dashboard: {connection.dashboard_url}/#/serve"
    yield f"token: {'asked for' if address.token else 'none is asked for'}"
    yield f"serving at {address.url}/v1 (health: {address.url}/health); Ctrl-C ends it"
