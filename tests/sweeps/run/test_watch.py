"""What goes on beside the trials goes on whatever part of it fails: heartbeat, time budget, growing, reminding."""

import asyncio
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from cluster import ClusterError
from sweeps.config.loading import load
from sweeps.ledger.control import ControlBox
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import NO_SLOT
from sweeps.run import monitor as monitoring
from sweeps.run.commands import read_command
from sweeps.run.folder import write_configuration
from sweeps.run.head import ClusterLost
from sweeps.run.monitor import Monitor
from sweeps.run.slots import MAX_STARTS, Slots
from sweeps.run.sweep import Sweep
from trainables.runtime.coordinator import Coordinator
from trainables.runtime.protocol import Failed

LORA = {"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}


class Actor:
    """A coordinator called as an actor is, without Ray: what a call returns is the answer itself."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator, self.called = coordinator, []

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **named: Any) -> Any:
            self.called.append(name)
            return asyncio.run(getattr(self.coordinator, name)(*args, **named))

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
    (tmp_path / "session" / "sockets").mkdir(parents=True)
    (tmp_path / "session" / "sockets" / "raylet").touch()
    given_up: list[ClusterLost] = []
    coordinator = Actor(Coordinator("s", slots=2))
    made.lifetime.coordinator = coordinator
    slots = Slots(
        made.config,
        made.ledger,
        lifetime=made.lifetime,
        coordinator=coordinator,
        namespace="s",
        folder=tmp_path,
        socket=tmp_path / "session" / "sockets" / "raylet",
        say=made.display.say,
        give_up=given_up.append,
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
        notifier=made.notifier,
        page=made.page,
        rows=made.rows,
        pace=made.pace,
        onlookers=made.onlookers,
        steering=made.steering,
    )
    ended = threading.Event()
    monkeypatch.setattr(
        slots,
        "start",
        lambda plan: slots.threads.append(
            threading.Thread(target=ended.wait, name=f"s-1-slot{len(slots.threads)}", daemon=True)
        ),
    )
    monkeypatch.setattr("cluster.connect.draining_nodes", frozenset)
    for _ in range(2):
        slots.start(None)
    yield SimpleNamespace(
        whole=made,
        ledger=made.ledger,
        lifetime=made.lifetime,
        baseline=made.baseline,
        slots=slots,
        monitor=monitor,
        actor=coordinator,
        said=heard.getvalue,
        given_up=given_up,
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
    return {"Alive": alive, "Resources": {"CPU": cpus}, "NodeID": "n1"}


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
        await coordinator.register("s-1-slot0")
        await coordinator.register("s-1-slot1")
        await coordinator.expect("t", {**LORA, "method": "full"})  # slot0 has it
        await fail("s-1-slot1")

    asyncio.run(first())
    watch(sweep, lambda: "s-1-slot1 gets no more trials" in sweep.said())
    assert "RuntimeError: broken" in sweep.said() and sweep.lifetime.stopped is None
    sweep.slots.quarantined = {}
    sweep.slots.lost["s-1-slot0"] = "its node died"
    monkeypatch.setattr(sweep.slots, "grow", lambda: None)
    watch(sweep, lambda: sweep.lifetime.stopped is not None)
    assert sweep.lifetime.stopped == NO_SLOT


def test_the_time_budget_ends_a_sweep_whose_coordinator_does_not_answer(sweep, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(2.0)])
    sweep.lifetime.search = replace(sweep.lifetime.search, time_budget="0.001s")

    def silent(answer: Any, timeout: float | None = None) -> Any:
        raise ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr(ray, "get", silent)
    watch(
        sweep,
        lambda: sweep.lifetime.stopped is not None and sweep.ledger.store.exists("status.json"),
    )
    assert "budget" in sweep.lifetime.stopped


def test_a_sweep_that_fails_tells_who_does_not_watch_it(sweep, monkeypatch):
    told = []
    monkeypatch.setattr(sweep.whole.notifier, "tell", lambda news, trial: told.append(news))

    def fail() -> None:
        raise RuntimeError("no cluster\nat all")

    monkeypatch.setattr(sweep.whole, "_slots_running", fail)
    with pytest.raises(RuntimeError):
        sweep.whole.run()
    (news,) = told
    assert (news.status, news.sweep, news.winner) == ("failed", "s-1", None)
    assert news.text.startswith("Sweep s-1 failed: RuntimeError: no cluster. ")


def test_a_stall_is_looked_for_while_trials_run(sweep, monkeypatch):
    monkeypatch.setattr(monitoring, "LOOK_S", 0.02)
    told = []
    monkeypatch.setattr(sweep.whole.notifier, "tell", lambda news, trial: told.append(news))
    monkeypatch.setattr(sweep.monitor._stall, "_minutes", 0.0)
    watch(sweep, lambda: told)
    assert [news.status for news in told] == ["stalled"]


def test_a_paused_sweep_does_not_stall(sweep, monkeypatch):
    monkeypatch.setattr(monitoring, "LOOK_S", 0.02)
    told = []
    monkeypatch.setattr(sweep.whole.notifier, "tell", lambda news, trial: told.append(news))
    monkeypatch.setattr(sweep.monitor._stall, "_minutes", 0.0)
    looks = []
    look = sweep.monitor._stall.look
    monkeypatch.setattr(sweep.monitor._stall, "look", lambda: (look(), looks.append(1)))
    sweep.lifetime.pause()
    watch(sweep, lambda: len(looks) > 3)
    assert not told and sweep.actor.coordinator._paused
    sweep.lifetime.go_on()
    watch(sweep, lambda: told)
    assert not sweep.actor.coordinator._paused


def test_a_spent_budget_of_device_hours_ends_a_sweep_in_order(sweep, monkeypatch):
    held = SimpleNamespace(seconds=lambda: 7300.0, save=lambda: None)
    monkeypatch.setattr(sweep.lifetime, "_held", held)
    monkeypatch.setattr(sweep.slots, "grow", lambda: None)
    sweep.lifetime.search = replace(sweep.lifetime.search, device_hours=3.0)
    sweep.lifetime.keep_to_the_budget()
    assert sweep.lifetime.stopped is None
    sweep.lifetime.search = replace(sweep.lifetime.search, device_hours=2.0)
    watch(sweep, lambda: sweep.lifetime.stopped is not None)
    assert sweep.lifetime.stopped == "the budget of 2 device hours is spent"
    assert "Stopping: the budget of 2 device hours is spent" in sweep.said()


def test_commands_are_done_beside_the_trials(sweep):
    box = ControlBox(sweep.ledger.store)
    box.put(read_command(["trials=+3"], "ann@desk"))
    sweep.whole.steering.every_s = 0.02
    write_configuration(sweep.ledger, sweep.whole.config)
    watch(sweep, lambda: not box.waiting())
    assert box.steered()[0].words == "Changed: search.trials: 4 to 7"
    assert sweep.lifetime.search.trials == 7


# --- slots that are started again ---


def hold(sweep: Any, monkeypatch: pytest.MonkeyPatch, *ends: BaseException | None) -> list[str]:
    """One slot's thread, of which each run ends so; the slots that were started, in order."""
    from trainables.runtime import slot as running

    started, endings = [], iter(ends)

    def run_slot(slot: Any, **_: Any) -> None:
        started.append(slot.slot)
        if (end := next(endings)) is not None:
            raise end

    monkeypatch.setattr(running, "run_slot", run_slot)
    plan = SimpleNamespace(workers_per_slot=1, resources_per_worker={"CPU": 1.0})
    sweep.slots._run(SimpleNamespace(slot="s-1-slot0"), plan)
    return started


def died() -> BaseException:
    return ray.exceptions.ActorDiedError()


def test_a_slot_whose_process_dies_is_started_again_so_many_times_and_then_lost(sweep, monkeypatch):
    started = hold(sweep, monkeypatch, *(died() for _ in range(MAX_STARTS)))
    assert started == ["s-1-slot0"] * MAX_STARTS
    assert sweep.said().count("s-1-slot0 is started again: Ray Train's process of it died") == (
        MAX_STARTS - 1
    )
    assert (
        "s-1-slot0 is lost: Ray Train's process of it died (5 times, and nothing came of it)"
        in (sweep.said())
    )
    assert sweep.lifetime.stopped is None, "there is another slot"


def test_a_slot_that_cannot_start_is_not_started_again(sweep, monkeypatch):
    asyncio.run(sweep.actor.coordinator.slot_broken("s-1-slot0", "the model is too large"))
    assert hold(sweep, monkeypatch, None) == ["s-1-slot0"]
    assert sweep.slots.lost == {"s-1-slot0": "the model is too large"}


def test_a_sweep_without_any_slot_says_why_and_how_it_goes_on(sweep, monkeypatch):
    del sweep.slots.threads[1:]
    hold(sweep, monkeypatch, *(died() for _ in range(MAX_STARTS)))
    assert sweep.lifetime.stopped == NO_SLOT
    outcome = sweep.whole._conclude()
    assert outcome.status == "failed"
    folder = sweep.ledger.store.path("").rstrip("/")
    assert (
        "Stopped, as no slot could run: Ray Train's process of it died (5 times, and nothing came"
        f" of it). Mend it and go on: python -m sweeps resume {folder}" in sweep.said()
    )


def waiting(*slots: str, running: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        waiting=slots,
        slots=dict.fromkeys(running, ()),
        nodes={},
        quarantined={},
        hung={},
        lost={},
        storage={},
    )


def test_without_a_node_that_could_hold_a_slot_it_ends_in_time_and_with_one_it_waits(
    sweep, monkeypatch
):
    """Where others hold the nodes, its slots wait as long as they do."""
    nodes = [node(1.0, alive=False)]
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(
        sweep.slots, "_config", replace_cluster(sweep.whole.config, wait_minutes=0.001)
    )

    def look(*slots: str, running: tuple[str, ...] = ()) -> None:
        sweep.slots.look(waiting(*slots, running=running))
        time.sleep(0.1)

    for _ in range(3):
        look("s-1-slot0", running=("s-1-slot1",))
    nodes[:] = [node(2.0)]
    for _ in range(3):
        look("s-1-slot0", "s-1-slot1")
    assert sweep.lifetime.stopped is None
    assert sweep.said().count("s-1-slot1 is without workers") == 1
    assert "s-1-slot0 is without" not in sweep.said(), "it never had any"
    nodes[:] = [node(1.0, alive=False)]
    for _ in range(3):
        look("s-1-slot0", "s-1-slot1")
    assert sweep.lifetime.stopped == NO_SLOT
    assert "no slot could run: no node could hold one for 0.001 minutes" in sweep.said()


def test_without_rays_temporary_folder_it_goes_on_as_long_as_a_slot_has_workers(
    sweep, monkeypatch, tmp_path
):
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "nodes", lambda: [node(2.0)])
    sweep.slots.look(waiting("s-1-slot0", "s-1-slot1"))
    assert "Ray's temporary folder" not in sweep.said()
    (tmp_path / "session" / "sockets" / "raylet").unlink()
    for _ in range(2):
        sweep.slots.look(waiting("s-1-slot0", running=("s-1-slot0", "s-1-slot1")))
    told = f"Ray's temporary folder is gone, {tmp_path}/session: what runs goes on"
    assert sweep.said().count(told) == 1 and sweep.given_up == []
    both = ("s-1-slot0", "s-1-slot1")
    sweep.slots.look(waiting(*both, running=both))
    (lost,) = sweep.given_up
    assert f"was deleted while it ran ({tmp_path}/session)" in str(lost)


def replace_cluster(config: Any, **settings: Any) -> Any:
    return replace(config, cluster=replace(config.cluster, **settings))


def test_a_slot_that_hangs_is_told_once_each_time(sweep):
    for hung in ({"s-1-slot0": ["t0001"]}, {"s-1-slot0": ["t0001"]}, {}, {"s-1-slot0": []}):
        snapshot = waiting(running=("s-1-slot0",))
        snapshot.hung = hung
        sweep.slots.look(snapshot)
    said = "s-1-slot0 made no progress for 60 minutes"
    assert sweep.said().count(said) == 2 and f"{said} with t0001: its workers" in sweep.said()


class Share:
    """Of a cluster, where it is what somebody else says."""

    def __init__(self) -> None:
        self.allowed: int | None = None
        self.others: list[str] = []
        self.asked: list[dict[str, int]] = []

    def ask(self, **asked: int) -> int | None:
        self.asked.append(asked)
        return self.allowed

    def leave(self) -> None:
        self.allowed = None


@pytest.fixture
def shared(sweep, monkeypatch):
    """A sweep on a cluster of three slots, of which others want some."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(3.0)])
    config = replace_cluster(sweep.whole.config, slots="auto", resources_per_worker={"CPU": 1.0})
    monkeypatch.setattr(sweep.slots, "_config", config)
    monkeypatch.setattr(sweep.slots, "_share", share := Share())
    return share


def names(sweep: Any) -> list[str]:
    return [thread.name for thread in sweep.slots.threads]


def test_slots_come_and_go_with_the_share_of_the_cluster(sweep, shared):
    retired = sweep.actor.coordinator
    for name in names(sweep):
        asyncio.run(retired.register(name))
    sweep.slots.grow()
    assert names(sweep) == ["s-1-slot0", "s-1-slot1", "s-1-slot2"], "alone it takes all"
    assert shared.asked[-1]["room"] == 3
    shared.allowed, shared.others = 1, ["/runs/other"]
    sweep.slots.look(asyncio.run(retired.snapshot()))
    sweep.slots.grow()
    going = set(sweep.slots._retiring)
    assert len(going) == 2
    assert sweep.said().count("ends: it is another sweep's turn") == 2
    sweep.slots.grow()
    assert sweep.slots._retiring == going, "those that go are not counted again"
    sweep.slots.look(asyncio.run(retired.snapshot()))
    assert sweep.lifetime.stopped is None
    shared.allowed, shared.others = None, []
    sweep.slots.grow()
    assert names(sweep)[3:] == ["s-1-slot3", "s-1-slot4"]


def test_a_sweep_may_have_no_slot_while_it_is_the_turn_of_others(sweep, shared):
    shared.allowed, shared.others = 0, ["/runs/other"]
    sweep.slots.grow()
    assert sweep.slots._retiring == {"s-1-slot0", "s-1-slot1"}
    sweep.slots.look(waiting())
    assert sweep.lifetime.stopped is None and "No node is left" not in sweep.said()


def test_slots_of_a_machine_that_is_to_be_taken_away_go_once(sweep, monkeypatch):
    snapshot = waiting()
    snapshot.nodes = {"s-1-slot0": ["n1", "n2"], "s-1-slot1": ["n3"]}
    snapshot.slots = {"s-1-slot0": ["t0001", "t0002"], "s-1-slot1": ["t0003"]}
    monkeypatch.setattr("cluster.connect.draining_nodes", lambda: frozenset({"n2"}))
    sweep.slots.look(snapshot)
    sweep.slots.leave_nodes()
    sweep.slots.leave_nodes()
    said = "s-1-slot0 ends: its machine is to be taken away; t0001, t0002 paused"
    assert sweep.said().count(said) == 1 and "s-1-slot1 ends" not in sweep.said()


def test_a_slot_that_was_told_to_go_is_not_started_again(sweep, monkeypatch):
    sweep.slots._retiring.add("s-1-slot0")
    assert hold(sweep, monkeypatch, died()) == ["s-1-slot0"]
    assert sweep.slots.lost == {}
    assert asyncio.run(sweep.actor.coordinator.snapshot()).retired == ["s-1-slot0"]
