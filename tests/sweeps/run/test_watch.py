"""What goes on beside the trials goes on whatever part of it fails: heartbeat, time budget, growing, reminding."""

import asyncio
import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from cluster import ClusterError
from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import NO_SLOT
from sweeps.run import monitor as monitoring
from sweeps.run.monitor import Monitor
from sweeps.run.slots import Slots
from sweeps.run.sweep import Sweep
from trainables.runtime.coordinator import Coordinator
from trainables.runtime.protocol import Failed

LORA = {"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}


class Actor:
    """A coordinator called as an actor is, without Ray: what a call returns is the answer itself."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator, self.called = coordinator, []

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any) -> Any:
            self.called.append(name)
            return asyncio.run(getattr(self.coordinator, name)(*args))

        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sweep whose slots are threads that wait; what it says is in `sweep.said()`."""
    monkeypatch.setattr(monitoring, "WATCH_S", 0.01)
    monkeypatch.setattr(monitoring, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(monitoring, "GROW_S", 0.02)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    file = tmp_path / "s.yaml"
    file.write_text(f"""
name: s
task: causal_lm
storage: {tmp_path}/runs
model: {{name: nobody/knows}}
data: {{train: {tmp_path}/a.txt, validation: 0.1}}
search: {{trials: 4, time_budget: 1h, space: {{method: lora, learning_rate: 1e-3, batch_size: 8, epochs: 1}}}}
selection: {{baselines: false}}
cluster: {{slots: 2}}
tracking: {{wandb: "off"}}
""")
    folder = tmp_path / "runs" / "s-1"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "manifest.json").write_text(
        json.dumps(
            {
                "task": "causal_lm",
                "splits": {"train": {"rows": 100}, "validation": {"rows": 10}},
                "sources": {"train": {"source": "a.txt"}},
                "notes": [],
            }
        )
    )
    heard = io.StringIO()
    made = Sweep(load(file), Ledger(str(folder)), Console(file=heard, width=300), 0.0)
    coordinator = Actor(Coordinator("s", slots=2))
    made.lifetime.coordinator = coordinator
    slots = Slots(
        made.config,
        made.ledger,
        lifetime=made.lifetime,
        coordinator=coordinator,
        namespace="s",
        folder=tmp_path,
        say=made.display.say,
    )
    monitor = Monitor(
        made.config,
        made.ledger,
        coordinator=coordinator,
        lifetime=made.lifetime,
        slots=slots,
        jobs=made.jobs,
        baseline=made.baseline,
        display=made.display,
        rows=made.rows,
    )
    ended = threading.Event()
    monkeypatch.setattr(
        slots,
        "start",
        lambda plan: slots.threads.append(threading.Thread(target=ended.wait, daemon=True)),
    )
    for _ in range(2):
        slots.start(None)
    yield SimpleNamespace(
        ledger=made.ledger,
        lifetime=made.lifetime,
        baseline=made.baseline,
        slots=slots,
        monitor=monitor,
        actor=coordinator,
        said=heard.getvalue,
    )
    monitor.stop()
    ended.set()
    made.close()


def alive(sweep: Any) -> bool:
    """Whether every duty still has its thread."""
    return all(thread.is_alive() for thread in sweep.monitor.threads)


def watch(sweep: Any, until: Any) -> None:
    """Let it be watched over until something has happened."""
    sweep.monitor.start()
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline and alive(sweep):
        time.sleep(0.01)
    happened = until()
    assert happened and alive(sweep), sweep.said()
    sweep.monitor.stop()
    assert not any(thread.is_alive() for thread in sweep.monitor.threads)


def count(sweep: Any, monkeypatch: pytest.MonkeyPatch, *duties: tuple[str, str]) -> dict[Any, int]:
    """How often each duty was done."""
    done = dict.fromkeys(duties, 0)

    def counted(duty: tuple[str, str], do: Any) -> Any:
        def call() -> None:
            done[duty] += 1
            do()

        return call

    for duty in duties:
        owner, name = getattr(sweep, duty[0]), duty[1]
        monkeypatch.setattr(owner, name, counted(duty, getattr(owner, name)))
    return done


HEARTBEAT, BUDGET = ("lifetime", "heartbeat"), ("lifetime", "keep_to_the_budget")
LOOK, GROW = ("monitor", "look"), ("slots", "grow")
DUTIES = (HEARTBEAT, BUDGET, ("monitor", "remind"), LOOK, GROW)


@pytest.mark.parametrize("broken", DUTIES, ids="_".join)
def test_a_duty_that_fails_silences_no_other_and_is_told_once(sweep, monkeypatch, broken):
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "nodes", list)

    def fail() -> None:
        raise ClusterError("cluster: 2 slots do not fit, only 1")

    monkeypatch.setattr(getattr(sweep, broken[0]), broken[1], fail)
    done = count(sweep, monkeypatch, *DUTIES)
    watch(sweep, lambda: all(times >= 4 for times in done.values()))
    assert sweep.said().count("2 slots do not fit") == 1
    assert sweep.ledger.status()[0] == "running" or broken == HEARTBEAT


@pytest.mark.parametrize("hanging", [LOOK, GROW], ids="_".join)
def test_a_duty_that_hangs_silences_no_other(sweep, monkeypatch, hanging):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {})
    monkeypatch.setattr(ray, "nodes", list)
    released = threading.Event()
    monkeypatch.setattr(getattr(sweep, hanging[0]), hanging[1], released.wait)
    done = count(sweep, monkeypatch, HEARTBEAT, BUDGET)
    sweep.monitor.start()
    deadline = time.monotonic() + 60
    while min(done.values()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    released.set()
    sweep.monitor.stop()
    assert min(done.values()) >= 5


def node(cpus: float, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus}}


def test_a_lost_node_ends_nothing_and_its_slot_starts_again_when_there_is_room(sweep, monkeypatch):
    """`cluster.slots: 2`, of which one lay on a node that died."""
    nodes = [node(1.0), node(1.0, alive=False)]
    monkeypatch.setattr(
        ray,
        "cluster_resources",
        lambda: {"CPU": sum(n["Resources"]["CPU"] for n in nodes if n["Alive"])},
    )
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    done = count(sweep, monkeypatch, *DUTIES)
    watch(sweep, lambda: min(done.values()) >= 3)
    assert len(sweep.slots.threads) == 2 and "failed" not in sweep.said()
    sweep.slots.lost["s-1-slot1"] = "its node died"
    watch(sweep, lambda: len(sweep.slots.threads) == 3)
    nodes[:] = [node(1.0, alive=False)]
    watch(sweep, lambda: min(done.values()) >= 20)
    assert len(sweep.slots.threads) == 3 and "failed" not in sweep.said(), (
        "no room for any is no fault either"
    )


def test_a_coordinator_that_was_restarted_is_told_again_what_the_sweep_knows(sweep, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(2.0)])
    sweep.baseline.known = True
    sweep.slots.lost["s-1-slot0"] = "its node died"
    fresh = sweep.actor.coordinator = Coordinator("s", slots=7)
    asyncio.run(fresh.register("s-1-slot1"))
    watch(sweep, lambda: fresh._lost and fresh._planned != 7 and fresh._baseline_slot == "-")
    assert not asyncio.run(fresh.take("s-1-slot1", 0)).baseline
    sweep.lifetime.stop("the budget is spent")
    fresh = sweep.actor.coordinator = Coordinator("s", slots=7)
    watch(sweep, lambda: fresh._stop == "the budget is spent")


def test_slots_that_fail_every_trial_are_named_and_without_any_other_the_sweep_ends(
    sweep, monkeypatch
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(2.0)])
    coordinator = sweep.actor.coordinator

    async def fail(slot: str) -> None:
        for number in range(3):
            await coordinator.expect(f"{slot} t{number}", LORA)
            (trial,) = [t for t, p in coordinator._trials.items() if p.slot == slot][:1]
            await coordinator.publish(slot, trial, Failed(reason="RuntimeError: broken"))

    async def first() -> None:
        await coordinator.register("good")
        await coordinator.register("bad")
        await coordinator.expect("t", {**LORA, "method": "full"})  # good has it
        await fail("bad")

    asyncio.run(first())
    watch(sweep, lambda: "bad gets no more trials" in sweep.said())
    assert "RuntimeError: broken" in sweep.said() and sweep.lifetime.stopped is None
    sweep.slots.quarantined = {}
    sweep.slots.lost["good"] = "its node died"
    monkeypatch.setattr(sweep.slots, "grow", lambda: None)
    watch(sweep, lambda: sweep.lifetime.stopped is not None)
    assert sweep.lifetime.stopped == NO_SLOT


def test_the_time_budget_ends_a_sweep_whose_coordinator_does_not_answer(sweep, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(2.0)])
    sweep.lifetime._budget_s = 0.0

    def silent(answer: Any, timeout: float | None = None) -> Any:
        raise ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr(ray, "get", silent)
    watch(
        sweep,
        lambda: sweep.lifetime.stopped is not None and sweep.ledger.store.exists("status.json"),
    )
    assert "budget" in sweep.lifetime.stopped
