"""What may be asked of a running sweep, what is refused, and in which order it is done: without Ray."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from cluster import ClusterError
from sweeps.config.loading import from_folder, from_tree
from sweeps.ledger.control import Answer, Command, ControlBox
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import BY_HAND
from sweeps.reporting.live import Display
from sweeps.run import ctl, steering
from sweeps.run.commands import (
    amended,
    check_command,
    configuration,
    read_command,
    target_of,
    whoever,
)
from sweeps.run.folder import write_configuration
from sweeps.run.job_page import FOLDER
from sweeps.run.lifetime import Lifetime
from sweeps.run.pace import Pace
from sweeps.run.steering import Steering
from trainables.errors import InputError
from trainables.storage.store import Store

ROOT = Path(__file__).resolve().parents[3]
SPACE = {
    "method": {
        "full": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}},
        "lora": {
            "learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "rank": {"choice": [4, 8]},
            "alpha": "2 * rank",
        },
    },
    "batch_size": 8,
    "epochs": {"int": [1, 4]},
}
LORA = {"method": "lora", "learning_rate": 1e-3, "rank": 4, "alpha": 8}
FIRST = LORA | {"batch_size": 8, "epochs": 2}


def configured(**search):
    tree = {
        "name": "quick",
        "task": "causal_lm",
        "model": {"name": "tiny"},
        "data": {"train": "rows.txt"},
        "search": {"space": SPACE, "trials": 4, **search},
        "tracking": {"wandb": "off"},
    }
    return from_tree(OmegaConf.create(tree), (), "sweep.yaml")


@pytest.fixture
def ledger(tmp_path):
    """Of a sweep of two trials, of which the first has ended."""
    found = Ledger(str(tmp_path / "quick"))
    write_configuration(found, configured())
    found.begin("t0001", FIRST)
    found.finish("t0001", "complete", None)
    found.begin("t0002", FIRST | {"epochs": 3})
    return found


def read(line):
    return read_command(line.split(), "ann@desk")


# --- what one may type ---


@pytest.mark.parametrize(
    ("line", "what", "rest"),
    [
        ("stop t0002", "stop", {"trial": "t0002"}),
        ("pause", "pause", {}),
        ("go-on", "go-on", {}),
        ("go on", "go-on", {}),
        ("trials=+10", "set", {"setting": "trials", "value": "+10"}),
        ("time_budget=8h", "set", {"setting": "time_budget", "value": "8h"}),
        ("device_hours=+2.5", "set", {"setting": "device_hours", "value": "+2.5"}),
        ("add rank=8 method=lora", "add", {"params": {"rank": 8, "method": "lora"}}),
        (
            "clone t0002 learning_rate=1e-3",
            "clone",
            {"trial": "t0002", "params": {"learning_rate": 1e-3}},
        ),
    ],
)
def test_a_command_is_read(line, what, rest):
    found = read(line)
    assert (found.what, found.by) == (what, "ann@desk")
    assert {name: getattr(found, name) for name in rest} == rest
    assert read(found.words).words == found.words


WRONG = [
    ("", "ctl: must be stop TRIAL, clone TRIAL key=value..., add key=value..., pause, go-on, or"),
    ("halt t0001", "ctl: must be stop TRIAL, "),
    ("go off", "ctl: must be stop TRIAL, "),
    ("stop", "ctl: must be stop TRIAL, "),
    ("stop rank=8", "ctl: must be stop TRIAL, "),
    ("stop t0001 t0002", "ctl: stop t0001: nothing may follow, got 't0002'"),
    ("pause now", "ctl: pause: nothing may follow, got 'now'"),
    ("trials=+1 now", "ctl: trials=+1: nothing may follow, got 'now'"),
    ("clone t0001", "ctl: must be stop TRIAL, "),
    ("add", "ctl: must be stop TRIAL, "),
    ("add rank", "ctl: rank: a hyperparameter is given as key=value, such as rank=8"),
    ("add lora.rank=8", "ctl: lora.rank=8: a hyperparameter is given as key=value"),
    ("add rank=8 rank=4", "ctl: rank: given twice"),
    ("add rank=[8", "ctl: rank=[8: not valid YAML"),
    ("trials=", "ctl: trials: must be a number of trials, such as 40 or +10, got ''"),
    ("trials=0", "ctl: trials: must be a number of trials, such as 40 or +10, got '0'"),
    ("trials=-1", "ctl: trials: must be a number of trials, such as 40 or +10, got '-1'"),
    ("trials=+1.5", "ctl: trials: must be a number of trials, such as 40 or +10, got '+1.5'"),
    ("time_budget=2", "ctl: time_budget: must be a number with s, m, h or d, such as 8h or +2h"),
    ("device_hours=much", "ctl: device_hours: must be a number above 0, such as 8 or +2, got"),
    ("seed=3", "ctl: must be stop TRIAL, "),
]


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line or "nothing" for line, _ in WRONG])
def test_what_is_no_command_is_one_line(line, words):
    with pytest.raises(InputError) as raised:
        read_command(line.split() or [""], "ann@desk")
    assert str(raised.value).startswith(words) and "\n" not in str(raised.value)


def test_who_types_has_a_name_and_a_machine():
    user, _, host = whoever().partition("@")
    assert user and host


# --- what this sweep can do ---


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stop t0009", "t0009: the sweep has no such trial, they are t0001 to t0002"),
        ("stop t0001", "t0001: has ended already (complete)"),
        ("clone t0009 rank=8", "t0009: the sweep has no such trial"),
        ("clone t0001 rank=16", "clone: rank: got 16, allowed: one of 4, 8"),
        ("clone t0001 alpha=7", "clone.alpha: got 7, but it is 8 (= 2 * rank)"),
        ("clone t0001 method=full rank=8", "clone.rank: not a parameter where method is full"),
        ("add rank=8", "add.rank: only some branches of 'method' have it; give 'method' as well"),
        ("add method=lora learning_rate=1", "add.learning_rate: got 1, allowed: log-uniform"),
        ("add batch_size=16", "add.batch_size: got 16, but it is 8 (fixed 8)"),
        ("add dropout=0.1", "add.dropout: unknown parameter. The space has "),
        ("time_budget=+2h", "search.time_budget: the sweep has none that could be added to;"),
        ("cost=5", "search.cost: needs search.price"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_line(ledger, line, words):
    with pytest.raises(InputError) as raised:
        check_command(read(line), configured(), ledger)
    assert str(raised.value).startswith(words) and "\n" not in str(raised.value)


def test_a_sweep_without_trials_has_none_to_stop(tmp_path):
    with pytest.raises(InputError, match="t0001: the sweep has no such trial, it has none yet"):
        check_command(read("stop t0001"), configured(), Ledger(str(tmp_path)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clone t0001 learning_rate=2e-3", {"learning_rate": 2e-3}),
        ("clone t0001 rank=8", {"rank": 8}),
        ("clone t0001 method=full", {"method": "full", "rank": None}),
        ("clone t0001 epochs=4 alpha=8", {"epochs": 4, "alpha": 8}),
    ],
)
def test_a_clone_has_what_its_original_has_but_for_what_is_changed_and_hangs_on_it(
    ledger, line, expected
):
    own = {name: FIRST[name] for name in ("method", "learning_rate", "rank", "epochs")}
    wanted = {name: value for name, value in (own | expected).items() if value is not None}
    assert configuration(read(line), configured(), ledger) == wanted


@pytest.mark.parametrize(
    ("line", "search", "target"),
    [
        ("trials=+10", {}, "14"),
        ("trials=40", {}, "40"),
        ("time_budget=+2h", {"time_budget": "8h"}, "10h"),
        ("time_budget=+30m", {"time_budget": "2d"}, "2910m"),
        ("time_budget=1d", {}, "1d"),
        ("device_hours=+1.5", {"device_hours": 2}, "3.5"),
        ("cost=+10", {"cost": 5, "price": 2}, "15.0"),
    ],
)
def test_a_bound_is_set_or_added_to(line, search, target):
    command, config = read(line), configured(**search)
    assert target_of(command, config) == target
    assert str(getattr(amended(command, config, target).search, command.setting)) == target


# --- files ---


def test_commands_come_in_the_order_in_which_they_were_left(ledger):
    box = ControlBox(ledger.store)
    numbers = [box.put(read(f"add epochs={number}")) for number in (1, 2, 3)]
    assert ControlBox(ledger.store).waiting() == numbers == sorted(numbers)
    box.answer(numbers[1], Answer(state="done", words="so it is"))
    box.answer(numbers[2], Answer(state="begun", words=""))
    for each in (box, ControlBox(ledger.store)):
        assert each.waiting() == [numbers[0], numbers[2]]
        assert [one.state for one in each.steered()] == ["waiting", "done", "begun"]


def test_an_object_store_takes_commands_too():
    store = Store("memory://steered/quick")
    box = ControlBox(store)
    assert box.waiting() == [] and box.steered() == ()
    number = box.put(read("pause"))
    other = ControlBox(store)
    assert other.waiting() == [number] and other.command(number).what == "pause"
    other.answer(number, Answer(state="done", words="it is"))
    assert box.waiting() == [] and box.is_paused() and box.of(number).words == "it is"


def test_whether_it_is_paused_is_what_was_done_last(ledger):
    box = ControlBox(ledger.store)
    assert not box.is_paused()
    for line, state, paused in (
        ("pause", "done", True),
        ("go-on", "refused", True),
        ("stop t0002", "done", True),
        ("go-on", "done", False),
        ("pause", "begun", False),
    ):
        box.answer(box.put(read(line)), Answer(state=state, words=""))
        assert ControlBox(ledger.store).is_paused() is paused


# --- a running sweep, whose coordinator, searcher and trackers are played ---


class Recorder:
    """Notes what is called; what it gives is None, or what it was told to give."""

    def __init__(self, **gives):
        self.calls, self._gives = [], gives

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, *args))
            given = self._gives.get(name)
            return given(*args) if given else None

        return call


@pytest.fixture
def sweep(ledger, monkeypatch):
    """What a process of the sweep has for it; `again()` is the next process."""
    import ray

    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)

    def process():
        found = SimpleNamespace(ledger=Ledger(ledger.store.url).load(), said=io.StringIO())
        found.config = from_folder(ledger.store.read_bytes("sweep.yaml"), (), "sweep.yaml")
        found.display = Display(Console(file=found.said, width=300), name="q", selection=None)
        found.lifetime = Lifetime(
            found.ledger,
            found.config.search,
            elapsed_s=0.0,
            say=found.display.say,
            save_study=lambda: None,
        )
        found.told = Recorder()
        remote = lambda name: SimpleNamespace(remote=getattr(found.told, name))  # noqa: E731
        found.lifetime.coordinator = SimpleNamespace(
            pause=remote("pause"), stop_trial=remote("stop_trial")
        )
        found.pace = Pace(
            "q",
            trials=4,
            time_budget_s=None,
            total_samples=lambda curve: 1,
            clock=time.monotonic,
        )
        found.page, found.tracker = SimpleNamespace(trials=4), Recorder()

        def add(command, params, by_hand):
            trial = found.ledger.made_by(command)
            if trial is None:
                trial = f"t{len(found.ledger.trials()) + 1:04d}"
                found.ledger.begin(trial, FIRST | params, by_hand=by_hand, command=command)
            return trial

        found.searcher = Recorder(add=add)
        found.steering = Steering(
            found.config,
            found.ledger,
            lifetime=found.lifetime,
            tracker=found.tracker,
            pace=found.pace,
            page=found.page,
            say=found.display.say,
        )
        found.steering.searcher = found.searcher
        found.again = process
        return found

    return process()


def asked(sweep, *lines):
    """Their ids."""
    box = ControlBox(sweep.ledger.store)
    return [box.put(read(line)) for line in lines]


def states(sweep):
    return [(each.command, each.state) for each in ControlBox(sweep.ledger.store).steered()]


def test_each_is_done_once_in_order_and_told(sweep):
    asked(sweep, "pause", "clone t0001 rank=8", "stop t0077", "trials=+1", "go-on")
    sweep.steering.act()
    assert states(sweep) == [
        ("pause", "done"),
        ("clone t0001 rank=8", "done"),
        ("stop t0077", "refused"),
        ("trials=+1", "done"),
        ("go-on", "done"),
    ]
    assert [call for call, *_ in sweep.searcher.calls] == ["add", "follow"]
    assert ("pause", True) in sweep.told.calls and sweep.told.calls[-1] == ("pause", False)
    said = sweep.said.getvalue()
    assert "ann@desk: clone t0001 rank=8: done: t0003 comes next: " in said
    assert "ann@desk: stop t0077: refused: t0077: the sweep has no such trial" in said
    assert "ann@desk: trials=+1: done: Changed: search.trials: 4 to 5" in said
    assert sweep.pace.trials == sweep.page.trials == 6  # five of the search, and the clone
    assert sweep.lifetime.search.trials == 5
    assert sweep.ledger.by_hand("t0003") == "clone of t0001 by ann@desk"
    before = len(sweep.searcher.calls)
    for process in (sweep, sweep.again()):
        process.steering.act()
        assert len(sweep.searcher.calls) == before and not process.steering.waiting()


def test_what_is_not_done_yet_holds_up_what_comes_after(sweep):
    asked(sweep, "stop t0002", "pause")
    sweep.steering.act()
    assert states(sweep) == [("stop t0002", "waiting"), ("pause", "waiting")]
    assert ("stop_trial", "t0002", BY_HAND) in sweep.told.calls
    assert sweep.tracker.calls == [("noted", "t0002", "stopped by hand of ann@desk")]
    sweep.ledger.finish("t0002", "pruned", BY_HAND)
    sweep.steering.act()
    assert states(sweep) == [("stop t0002", "done"), ("pause", "done")]
    assert len(sweep.tracker.calls) == 1 and sweep.lifetime.paused


def test_a_trial_that_ended_by_itself_meanwhile_was_not_stopped(sweep):
    asked(sweep, "stop t0002")
    sweep.steering.act()
    sweep.ledger.finish("t0002", "complete", None)
    sweep.steering.act()
    assert states(sweep) == [("stop t0002", "refused")]


def test_a_kill_between_deed_and_answer_repeats_nothing(sweep, monkeypatch):
    """As the process may die at any time, each command is cut off right before its answer."""
    lines = ["add method=lora rank=8", "trials=+2", "stop t0002"]
    asked(sweep, *lines)
    real = ControlBox.answer

    class Killed(BaseException): ...

    def cut(box, number, answer):
        if answer.state != "begun":
            raise Killed
        real(box, number, answer)

    monkeypatch.setattr(ControlBox, "answer", cut)
    with pytest.raises(Killed):
        sweep.steering.act()
    second = sweep.again()
    with pytest.raises(Killed):
        second.steering.act()
    assert second.ledger.trials() == ["t0001", "t0002", "t0003"]
    monkeypatch.setattr(ControlBox, "answer", real)
    ControlBox(sweep.ledger.store).answer(
        ControlBox(sweep.ledger.store).waiting()[0], Answer(state="done", words="", trial="t0003")
    )
    monkeypatch.setattr(ControlBox, "answer", cut)
    third = sweep.again()
    with pytest.raises(Killed):
        third.steering.act()
    assert third.config.search.trials == 4 and third.lifetime.search.trials == 6
    monkeypatch.setattr(ControlBox, "answer", real)
    last = sweep.again()
    assert last.config.search.trials == 6  # resumed with what was set already
    last.steering.act()
    last.ledger.finish("t0002", "pruned", BY_HAND)
    last.again().steering.act()
    assert last.again().config.search.trials == 6
    assert states(last) == [(line, "done") for line in lines]
    assert last.again().ledger.trials() == ["t0001", "t0002", "t0003"]
    assert len(last.ledger.store.find("configurations")) == 2


def test_a_sweep_that_was_paused_is_paused_in_its_next_process(sweep):
    asked(sweep, "pause")
    sweep.steering.act()
    assert sweep.ledger.process().paused
    second = sweep.again()
    assert not second.lifetime.paused
    second.steering.begin()
    assert second.lifetime.paused and "go-on lets it go on" in second.said.getvalue()
    asked(sweep, "go-on")
    second.steering.act()
    third = sweep.again()
    third.steering.begin()
    assert not third.lifetime.paused and not third.ledger.process().paused


def test_trials_that_are_asked_for_wait_for_the_search_and_are_left_when_it_is_over(sweep):
    sweep.steering.searcher = None
    asked(sweep, "add epochs=4", "pause")
    sweep.steering.act()
    assert [state for _, state in states(sweep)] == ["waiting", "waiting"]
    sweep.steering.end()
    sweep.steering.act()
    assert [state for _, state in states(sweep)] == ["waiting", "waiting"]
    assert sweep.again().steering.expects()


def test_bounds_that_were_set_before_the_search_began_are_those_of_it(sweep):
    sweep.steering.searcher, before = None, sweep.config.search.trials
    asked(sweep, "trials=+10")
    sweep.steering.act()
    assert sweep.lifetime.search.trials == before + 10
    sweep.steering.attach(sweep.searcher)
    ((call, config),) = sweep.searcher.calls
    assert (call, config.search.trials) == ("follow", before + 10)


def test_a_file_that_is_no_command_is_refused_and_stops_nothing(sweep):
    sweep.ledger.store.write_bytes("control/0-broken.json", b"{")
    sweep.ledger.store.write_json("control/1-other.json", {"what": "dance"})
    asked(sweep, "pause")
    sweep.steering.act()
    assert [state for _, state in states(sweep)] == ["refused", "refused", "done"]


def test_time_stands_still_while_it_is_paused(sweep, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lifetime = sweep.again().lifetime
    now += 5
    lifetime.pause()
    now += 100
    lifetime.pause()
    assert lifetime.elapsed_s() == 5
    lifetime.go_on()
    now += 2
    assert lifetime.elapsed_s() == 7


# --- who asks ---


def test_an_answer_is_waited_for(sweep, monkeypatch):
    sweep.ledger.set_status("running", 1.0)
    monkeypatch.setattr(ctl, "LOOK_S", 0.0)
    real = ControlBox.waiting
    looks = []

    def waiting(box):
        looks.append(box)
        if len(looks) == 2:
            sweep.steering.act()
        return real(box)

    monkeypatch.setattr(ControlBox, "waiting", waiting)
    found = ctl.steer(sweep.ledger.store.url, ["clone", "t0001", "epochs=4"], by="ann@desk")
    assert (found.state, found.trial, found.by) == ("done", "t0003", "ann@desk")


def test_a_sweep_that_has_finished_neither_pauses_nor_goes_on(sweep):
    sweep.ledger.set_status("finished", 1.0)
    for words in (["pause"], ["go-on"], ["go", "on"]):
        with pytest.raises(InputError, match="the sweep has finished, and nothing runs"):
            ctl.steer(sweep.ledger.store.url, words, by="ann@desk")
    assert not sweep.again().steering.waiting()


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_sweep_that_does_not_run_is_said_to_do_it_when_it_is_resumed(sweep, status):
    sweep.ledger.set_status(status, 1.0)
    found = ctl.steer(sweep.ledger.store.url, ["pause"], by="ann@desk")
    folder = sweep.ledger.store.url
    assert found.state == "waiting"
    assert found.words == (
        f"the sweep does not run ({status}); python -m sweeps resume {folder}, or of a submitted one"
        f" submit {folder} --address URL, takes it up"
    )
    assert sweep.again().steering.waiting()


def test_a_sweep_that_does_not_answer_is_not_waited_for_for_ever(sweep):
    sweep.ledger.set_status("running", 1.0)
    found = ctl.steer(sweep.ledger.store.url, ["pause"], by="ann@desk", wait_s=0.0)
    assert found.state == "waiting" and "has not answered within 0 s" in found.words


def test_what_cannot_be_done_is_not_left_in_the_folder(sweep):
    with pytest.raises(InputError, match="t0001: has ended already"):
        ctl.steer(sweep.ledger.store.url, ["stop", "t0001"], by="ann@desk")
    assert not sweep.ledger.store.find("control")


class FakeJobs:
    """A cluster whose jobs are processes here, and whose folders nobody else reaches."""

    def __init__(self, address, verify=None):
        self.folder, self.log = address, []

    def choose(self, word):
        return SimpleNamespace(job_id=f"{word}-1")

    def find(self, job_id):
        return SimpleNamespace(metadata={FOLDER: self.folder}, has_ended=False)

    def start_beside(self, job, job_id, entry):
        command = [sys.executable, "-m", *entry]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        self.log = (done.stderr + done.stdout).splitlines()

    def read(self, job_id, take):
        for line in ["Runtime env is setting up.", *self.log]:
            take(line)


def test_a_job_beside_the_sweep_leaves_the_command_where_the_folder_is_out_of_reach(
    sweep, monkeypatch
):
    sweep.ledger.set_status("interrupted", 1.0)
    monkeypatch.setattr(ctl, "Jobs", FakeJobs)
    monkeypatch.setattr(ctl, "is_reached", lambda folder: False)

    def steer(line):
        url = sweep.ledger.store.url
        return ctl.steer_job(url, "quick", line.split(), by="ann@desk", say=print)

    found = steer("clone t0001 learning_rate=2e-3")
    assert (found.state, found.by) == ("waiting", "ann@desk")
    assert found.command == "clone t0001 learning_rate=0.002"
    with pytest.raises(ClusterError, match="^ctl: t0009: the sweep has no such trial"):
        steer("stop t0009")
    with pytest.raises(InputError, match="^ctl: must be stop TRIAL"):
        steer("halt")
    assert len(sweep.again().steering._box.waiting()) == 1


def test_the_answer_is_found_in_the_log_of_a_job():
    answer = {"id": "1-a", "command": "pause", "by": "ann", "time": 1.0, "state": "done"}
    log = ["Ray says", "{", *json.dumps(answer, indent=1).splitlines(), "and more"]
    found = ctl._printed(log)
    assert found is not None and (found.command, found.state) == ("pause", "done")
    assert ctl._printed(["nothing", "{", "}"[:0]]) is None


def test_a_command_survives_its_file(ledger):
    box = ControlBox(ledger.store)
    command = read("clone t0001 rank=8 learning_rate=1e-3")
    found = ControlBox(ledger.store).command(box.put(command))
    assert found == command and isinstance(found, Command)
    assert steering.LOOK_S > 0
