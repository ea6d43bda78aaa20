"""Commands that the page starts: they outlive it, are found again, and are stopped as in a terminal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.cli.app import main
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import process_start
from sweeps.ui.listing import NOT_BEGUN, STARTING, find_sweep, list_sweeps, model_and_task
from sweeps.ui.processes import Started, all_started, in_a_terminal, log_of, start, stop, write
from trainables.errors import InputError

SWEEP = """\
name: quick
task: classification
model: {name: tiny}
data: {train: rows.csv}
search: {space: auto}
"""


@pytest.fixture
def sleeper():
    """A process that ends with Ctrl-C."""
    # whoever runs the tests in the background has it ignored, which is inherited
    lines = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: print('up', flush=True); time.sleep(600)\nexcept KeyboardInterrupt: print('stopped')"
    )
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()


def begun_by(pid: int, name: str = "quick", sweep: str | None = None) -> Started:
    return Started(
        name=name,
        command=("run", "a.yaml"),
        pid=pid,
        began=process_start(pid),
        host=socket.gethostname(),
        time=time.time(),
        sweep=sweep,
    )


def make_sweep(storage: Path, name: str) -> Ledger:
    ledger = Ledger(str(storage / name))
    ledger.store.write_bytes("sweep.yaml", SWEEP.encode())
    return ledger


def written(storage: Path, started: Started) -> None:
    (storage / "ui/sweep-files").mkdir(parents=True, exist_ok=True)
    write(storage, started)


@pytest.mark.slow
def test_a_command_that_fails_before_it_begins_says_why(tmp_path):
    started = start(tmp_path, "quick", ("run", str(tmp_path / "none.yaml")))
    assert os.getsid(started.pid) == started.pid, "a session of its own: it outlives the page"
    (found,) = all_started(tmp_path)
    assert found == started and found.command[0] == "run"
    while found.runs:
        time.sleep(0.05)
    (listed,) = list_sweeps(tmp_path)
    assert (listed.name, listed.status, listed.is_sweep) == ("quick", NOT_BEGUN, False)
    assert log_of(tmp_path, started).strip() == f"{tmp_path}/none.yaml: no such file"
    again = start(tmp_path, "quick", ("run", str(tmp_path / "none.yaml")))
    assert again.name == "quick-2" and log_of(tmp_path, started), "no log is written over"
    while again.runs:
        time.sleep(0.05)


def test_a_command_is_the_sweep_whose_status_it_has_written(tmp_path, sleeper):
    started = begun_by(sleeper.pid)
    written(tmp_path, started)
    (listed,) = list_sweeps(tmp_path)
    assert (listed.name, listed.status) == ("quick", STARTING)
    name = "quick-20260101-120000"
    ledger = make_sweep(tmp_path, name)
    status = {**vars(ledger_status(sleeper.pid)), "status": "running"}
    ledger.store.write_json("status.json", status)
    (listed,) = list_sweeps(tmp_path)
    assert (listed.name, listed.status, listed.started) == (
        name,
        "running",
        replace(started, sweep=name),
    )
    assert find_sweep(tmp_path, "quick") == listed, "who watches the command is led on to the sweep"
    stop(sleeper.pid, started.began, started.host)
    assert sleeper.wait() == 0 and sleeper.stdout.read() == "stopped\n"
    assert find_sweep(tmp_path, name).status == "interrupted"
    ledger.set_status("running", 1.0)  # another process goes on with it
    assert find_sweep(tmp_path, name).started == replace(started, sweep=name)
    assert len(list_sweeps(tmp_path)) == 1


def ledger_status(pid: int):
    ledger = Ledger("memory://status")
    ledger.set_status("running", 1.0)
    found = ledger.process()
    assert found is not None
    return replace(found, pid=pid, began=process_start(pid))


def test_only_a_process_of_this_machine_is_stopped_and_no_other_that_has_its_number(sleeper):
    here, began = socket.gethostname(), process_start(sleeper.pid)
    with pytest.raises(
        InputError, match=f"runs on elsewhere: stop it there.*kill -INT {sleeper.pid}"
    ):
        stop(sleeper.pid, began, "elsewhere")
    with pytest.raises(InputError, match="it has ended already"):
        stop(sleeper.pid, "123", here)
    assert sleeper.poll() is None
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    with pytest.raises(InputError, match="it has ended already"):
        stop(sleeper.pid, began, here)


def test_sweeps_of_the_terminal_are_listed_too_and_damaged_ones_hide_none(tmp_path):
    for number in range(3):
        make_sweep(tmp_path, f"quick-{number}").set_status("finished", 1.0)
    (tmp_path / "quick-1" / "status.json").write_text("{")
    (tmp_path / "quick-2" / "sweep.yaml").write_text("a: [")
    (tmp_path / "no sweep").mkdir()
    found = {each.name: each.status for each in list_sweeps(tmp_path)}
    assert found == {"quick-0": "finished", "quick-1": "interrupted", "quick-2": "finished"}
    assert model_and_task(tmp_path, "quick-0") == "classification with tiny"
    assert "quick-2" not in model_and_task(tmp_path, "quick-0")
    assert model_and_task(tmp_path, "quick-2"), "what is wrong is told"


@pytest.mark.parametrize("name", ["none", "../quick-0", "", ".", "..", "quick-0/.."])
def test_a_name_is_no_way_out_of_the_folder(tmp_path, name):
    make_sweep(tmp_path / "in", "quick-0")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    make_sweep(tmp_path, "quick-0")
    with pytest.raises(InputError, match="there is no sweep"):
        find_sweep(tmp_path / "in", name)


def test_a_thousand_sweeps_are_a_thousand_statuses(tmp_path):
    make_sweep(tmp_path, "quick-0").set_status("finished", 1.0)
    status = (tmp_path / "quick-0" / "status.json").read_bytes()
    for number in range(1, 1000):
        folder = tmp_path / f"quick-{number}"
        folder.mkdir()
        (folder / "sweep.yaml").write_text(SWEEP)
        (folder / "status.json").write_bytes(status)
    assert [each.status for each in list_sweeps(tmp_path)] == ["finished"] * 1000
    before = time.process_time()
    list_sweeps(tmp_path)
    print(f"1000 sweeps listed again in {time.process_time() - before:.2f} s of CPU")


def test_a_command_can_be_typed():
    assert in_a_terminal(("run", "my runs/a.yaml")) == "python -m sweeps run 'my runs/a.yaml'"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("s3://bucket/runs",), "STORAGE: must be a folder of this machine"),
        (("FILE",), "STORAGE: .* is a file, not a folder"),
        (("--host", "0.0.0.0"), "--token: 0.0.0.0 is reached from other machines: give a token"),
        (("--token", "NOWHERE"), "--token: NOWHERE is neither a variable of this shell nor a file"),
        (("--port", "0"), "--port: must be from 1 to 65535, got 0"),
    ],
)
def test_a_wrong_call_is_answered_in_a_line(tmp_path, monkeypatch, capsys, arguments, line):
    (tmp_path / "file").touch()
    given = [str(tmp_path / "file") if each == "FILE" else each for each in arguments]
    monkeypatch.chdir(tmp_path)
    assert_refused(monkeypatch, capsys, given, line)


def test_a_port_that_is_taken_is_told(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [str(tmp_path), "--port", port, "--no-browser"]
        assert_refused(
            monkeypatch, capsys, given, f"--host, --port: cannot listen at 127.0.0.1:{port}"
        )


def test_without_its_package_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [each for each in sys.modules if each.startswith(("nicegui", "sweeps.ui"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert_refused(
        monkeypatch, capsys, [str(tmp_path)], r"ui: needs the package nicegui; install '\.\[ui\]'$"
    )


def assert_refused(monkeypatch, capsys, arguments: list[str], line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sweeps", "ui", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "\n" not in said
    assert re.match(line, said), said


def test_what_is_written_of_a_command_is_json(tmp_path, sleeper):
    written(tmp_path, begun_by(sleeper.pid, sweep="quick-1"))
    found = json.loads((tmp_path / "ui/sweep-files" / "quick.json").read_text())
    assert found["command"] == ["run", "a.yaml"] and found["sweep"] == "quick-1"
