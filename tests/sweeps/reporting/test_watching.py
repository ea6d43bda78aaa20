"""A running sweep followed from beside: its log, its folder read again, the command, the page's server, and the page in a real browser."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_report import hostile

from sweeps.cli.app import main
from sweeps.config.loading import from_folder
from sweeps.ledger.folder import Ledger
from sweeps.ledger.progress import PROGRESS, Progress, RunningTrial
from sweeps.ledger.story import STAMPED, STORY, Story, read_story
from sweeps.reporting import page_server
from sweeps.reporting import relay as relaying
from sweeps.reporting import watched as watching
from sweeps.reporting.html import Beside, html_report
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.page_server import PageServer
from sweeps.reporting.relay import Relayed
from sweeps.reporting.watched import Watched
from sweeps.reporting.watching import follow
from sweeps.run.onlookers import Onlookers
from trainables.errors import InputError
from trainables.evaluation.answered import Answered, Asked, write_answers, write_asked
from trainables.evaluation.record import MeasuredEvaluation
from trainables.storage.checkpoints import CHECKPOINT, STATE, begin_attempt, write_evaluation
from trainables.storage.records import to_json
from trainables.storage.store import Store

ROOT = Path(__file__).resolve().parents[3]
SWEEP = """
name: quick
task: classification
model: {name: tiny}
data: {train: rows.csv}
search: {space: {method: lora, learning_rate: {log_uniform: [1e-5, 1e-2]}, batch_size: 8, epochs: 1}, trials: 9}
tracking: {wandb: "off"}
"""
PARAMS = {"method": "lora", "learning_rate": 1e-3, "rank": 8}
OVERFIT = [(2.0, 1.9), (1.0, 0.9), (1.6, 0.4), (2.4, 0.1)]


class Growing:
    """A folder that grows as that of a running sweep does: what the sweep's process writes, this one writes."""

    def __init__(self, url: str) -> None:
        self.ledger = Ledger(url)
        self.ledger.store.write_bytes("sweep.yaml", SWEEP.encode())
        self.config = from_folder(SWEEP.encode(), (), "sweep.yaml")
        self.story = Story(self.ledger.store)
        self.onlookers = Onlookers(self.config, self.ledger, self.story)
        self.ledger.set_status("running", 1.0)

    @property
    def url(self) -> str:
        return self.ledger.store.url

    def begin(self, trial: str, **params: object) -> None:
        self.ledger.begin(trial, {**PARAMS, **params})
        begin_attempt(self.ledger.store, trial)
        self.story.tell(f"{trial} starts: lora")

    def evaluate(self, trial: str, *losses: float | tuple[float, float], attempt: int = 1) -> None:
        def save(folder: Path) -> None:
            (folder / CHECKPOINT).mkdir()
            (folder / CHECKPOINT / "adapter_model.safetensors").write_bytes(b"weights")
            (folder / STATE).write_bytes(b"moments")

        for each in losses:
            val, probe = each if isinstance(each, tuple) else (each, each)
            step = 1 + len(self.ledger.curve(trial).points)
            made = MeasuredEvaluation(
                step=step,
                samples_seen=10 * step,
                epoch=step / 2,
                val_loss=val,
                probe_loss=probe,
                metrics={"accuracy": 0.5},
                trainable_parameters=100,
                losses=np.array([[val, 1]] * 4, np.float32),
            )
            written = write_evaluation(self.ledger.store, trial, attempt, made, save)
            self.ledger.record(trial, written)
            self.ledger.prune(trial, self.config.selection)
            self.story.tell(f"{trial} epoch {step / 2:g}: val loss {val}")

    def finish(self, trial: str, status: str = "complete", reason: str | None = None) -> None:
        self.ledger.finish(trial, status, reason)
        self.ledger.prune(trial, self.config.selection)
        self.story.tell(f"{trial} {status}")

    def tell(self) -> None:
        """How far the trials are."""
        running = {
            trial: RunningTrial(
                samples_seen=50, total_samples=100, samples_per_s=12.0, slot="slot0"
            )
            for trial in self.ledger.unfinished()
        }
        self.onlookers.tell(
            Progress(time=time.time(), trials=9, elapsed_s=60.0, left_s=30.0, running=running)
        )

    def answer(self, trial: str, point: int, text: str, score: float = 0.5) -> None:
        found = Answered(rows=(3,), texts=(text,), scores={"wording": (score,)})
        write_answers(self.ledger.store, self.ledger.curve(trial).points[point].folder, found)
        asked = Asked(rows=(3,), prompts=("What is it?",), references=("It is that.",))
        write_asked(self.ledger.store, "validation", "", asked)
        self.ledger.note_answers(trial)

    def end(self, status: str = "finished") -> None:
        for trial in self.ledger.unfinished():
            self.finish(trial)
        self.onlookers.close()
        self.story.save()
        self.ledger.set_status(status, 90.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once."""
    monkeypatch.setattr(watching, "LOOK_S", 0.01)
    monkeypatch.setattr(watching, "SHARE", 1.0)


@pytest.fixture
def sweep(tmp_path: Path, quick: None) -> Growing:
    made = Growing(str(tmp_path / "quick-20260101-120000"))
    made.begin("t0001")
    made.evaluate("t0001", 3.0, 2.0)
    made.tell()
    return made


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A command in this process: its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweeps", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def said(lines: list[str]) -> list[str]:
    found = [STAMPED.fullmatch(line) for line in lines]
    assert all(found), lines
    return [each[2] for each in found if each]


# --- log.txt ---


@pytest.mark.parametrize("url", ["{tmp}", "memory://story-threads"])
def test_lines_of_several_threads_are_all_kept_whole_and_in_each_threads_order(tmp_path, url):
    store = Store(url.format(tmp=tmp_path))
    story = Story(store)
    together = threading.Barrier(8)

    def tell(own: int) -> None:
        together.wait()
        for number in range(50):
            story.tell(f"{own} {number}")
            story.save()

    threads = [threading.Thread(target=tell, args=(own,)) for own in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [tuple(map(int, line.split())) for line in said(read_story(store))]
    assert len(lines) == 400
    for own in range(8):
        assert [number for of, number in lines if of == own] == list(range(50))


@pytest.mark.parametrize("url", ["{tmp}", "memory://story-breaks"])
def test_whatever_is_told_is_one_line(tmp_path, url):
    store = Store(url.format(tmp=tmp_path))
    story = Story(store)
    story.tell("one\ntwo\r\nthree\u2028four\x0bfive")
    story.tell("caf\u00e9 of \udcff, a name that is no text")
    story.save()
    assert said(read_story(store)) == [
        "one two three four five",
        "caf\u00e9 of \\udcff, a name that is no text",
    ]


def test_an_object_store_gets_a_copy_when_it_is_saved_with_the_lines_of_earlier_processes():
    store = Store("memory://story-earlier")
    first = Story(store)
    first.tell("of the first")
    assert read_story(store) == []
    first.save()
    second = Story(store)
    second.tell("of the second")
    second.save()
    second.tell("and more")
    second.save()
    assert said(read_story(store)) == ["of the first", "of the second", "and more"]


def test_a_store_that_did_not_answer_at_first_keeps_the_earlier_lines(monkeypatch):
    store = Store("memory://story-silent")
    first = Story(store)
    first.tell("of the first")
    first.save()

    def silent(name: str) -> bool:
        raise OSError("no answer")

    second = Story(store)
    with monkeypatch.context() as patched:
        patched.setattr(store, "exists", silent)
        second.tell("of the second")
        with pytest.raises(OSError, match="no answer"):
            second.save()
    second.save()
    assert said(read_story(store)) == ["of the first", "of the second"]


def test_a_disk_that_cannot_be_written_ends_nothing(tmp_path):
    folder = tmp_path / "gone"
    story = Story(Store(str(folder)))
    story.tell("into a folder that is not there")
    folder.mkdir()
    (folder / STORY).mkdir()  # nothing can be appended to it, for root neither
    story.tell("into what is no file")
    story.save()
    assert [each.name for each in folder.rglob("*")] == [STORY]


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    (tmp_path / STORY).write_text("2026-01-01 12:00:00 whole\n2026-01-01 12:00:01 ha")
    assert said(read_story(Store(str(tmp_path)))) == ["whole"]


# --- the folder read again ---

CHANGES = {
    "a trial begins": lambda s: s.begin("t0009"),
    "an evaluation": lambda s: s.evaluate("t0001", 1.5),
    "a checkpoint is pruned": lambda s: s.ledger.store.delete(
        f"{s.ledger.curve('t0002').points[-1].folder}/{CHECKPOINT}"
    ),
    "a trial ends": lambda s: s.finish("t0001"),
    "a trial ends otherwise": lambda s: s.finish("t0002", "failed", "out of memory"),
    "answers come": lambda s: s.answer("t0001", 0, "It is this."),
    "answers are others": lambda s: s.answer("t0002", 0, "It is not.", 0.9),
    "parameters are restated": lambda s: s.ledger.restate("t0001", {**PARAMS, "rank": 4}),
    "another attempt": lambda s: (
        begin_attempt(s.ledger.store, "t0001"),
        s.evaluate("t0001", 1.1, attempt=2),
    ),
    "an attempt from the start": lambda s: s.ledger.store.write_json(
        "trials/t0001/attempt-2/attempt.json", {"from": None}
    ),
}


@pytest.mark.parametrize("url", ["{tmp}/quick", "memory://{id}/quick"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_ledger_that_reads_again_is_one_that_reads_first(tmp_path, url, change, monkeypatch):
    s = Growing(url.format(tmp=tmp_path, id=re.sub(r"\W", "", change)))
    for trial in ("t0001", "t0002", "t0003"):
        s.begin(trial)
        s.evaluate(trial, 3.0, 2.0)
    s.finish("t0002")
    s.answer("t0002", 0, "It is.")
    read = Ledger(s.url).load()
    before, found, news = read.curves(), [], read.news
    own = Ledger._read_trial
    monkeypatch.setattr(
        Ledger, "_read_trial", lambda of, trial, names: found.append(trial) or own(of, trial, names)
    )
    assert read.load().curves() == before and found == [] and read.news == news
    CHANGES[change](s)
    again = read.load()
    assert len(found) == 1 and read.news == news + 1, "what did not change is not read again"
    fresh = Ledger(s.url).load()
    assert again.curves() == fresh.curves() != before
    boards = [leaderboard(each, "quick", s.config.selection) for each in (again, fresh)]
    assert boards[0] == boards[1]


def test_answers_that_come_later_are_compared(tmp_path):
    """At the first look no trial has any."""
    s = Growing(str(tmp_path / "quick"))
    manifest = {"task": "causal_lm", "splits": {}, "sources": {}, "notes": []}
    s.ledger.store.write_json("data/manifest.json", manifest)
    for trial in ("t0001", "t0002"):
        s.begin(trial)
        s.evaluate(trial, 2.0)
    read = Ledger(s.url).load()
    one, other = (read.curve(trial).points[0].folder for trial in ("t0001", "t0002"))
    assert read._comparisons.by("wording", one, [other]) == [None]
    s.answer("t0001", 0, "It is.", 0.5)
    s.answer("t0002", 0, "It is not.", 0.9)
    (found,) = read.load()._comparisons.by("wording", one, [other])
    assert found is not None


# --- the command ---


def test_lines_are_printed_as_they_come_each_once(sweep, monkeypatch):
    heard = io.StringIO()
    for number in range(30):
        sweep.story.tell(f"line {number}")

    def grow() -> None:
        until(lambda: "line 29" in heard.getvalue())
        sweep.begin("t0002")
        until(lambda: "t0002 starts" in heard.getvalue())
        sweep.evaluate("t0002", 1.0)
        until(lambda: "val loss 1.0" in heard.getvalue())
        sweep.end()

    grown = threading.Thread(target=grow)
    grown.start()
    board = follow(Watched(sweep.url), Console(file=heard, width=200))
    grown.join()
    story = read_story(sweep.ledger.store)
    lines = heard.getvalue().splitlines()
    assert lines[0] == f"... {len(lines[0:0]) + 13} lines before these in {sweep.url}/log.txt"
    assert [line for line in lines[1:] if STAMPED.fullmatch(line)] == story[13:]
    assert board.status == "finished" and board.winner and board.winner.trial == "t0002"


def test_a_terminal_has_the_table_of_what_runs(sweep):
    heard = io.StringIO()

    def grow() -> None:
        until(lambda: "slot0" in heard.getvalue())
        sweep.end()

    grown = threading.Thread(target=grow)
    grown.start()
    follow(Watched(sweep.url), Console(file=heard, width=160, force_terminal=True))
    grown.join()
    assert re.search(r"t0001 .*running.*2\.0.*50%.*12.*slot0", heard.getvalue())


def test_exit_codes_and_the_board_at_the_end(sweep, command, tmp_path):
    sweep.end()
    code, out, _ = command("watch", sweep.url)
    assert code == 0 and "t0001 complete" in out and "val loss 2.0" in out
    assert out.rindex("Leaderboard" if "Leaderboard" in out else "t0001") > out.index("starts")
    sweep.ledger.set_status("interrupted", 90.0)
    assert command("watch", sweep.url)[0] == 1
    sweep.ledger.set_status("failed", 90.0)
    assert command("watch", sweep.url)[0] == 1
    nobody = tmp_path / "nothing"
    code, out, err = command("watch", str(nobody))
    assert (code, out, err) == (2, "", f"{nobody}: no such folder\n")


def test_a_finished_sweep_without_a_winner_is_a_failure(tmp_path, quick, command):
    s = Growing(str(tmp_path / "quick"))
    s.begin("t0001")
    s.finish("t0001", "failed", "out of memory")
    s.end()
    assert command("watch", s.url)[0] == 1


def test_as_json_the_board_alone_is_on_stdout(sweep, command):
    sweep.end()
    code, out, err = command("watch", sweep.url, "--json")
    assert code == 0 and "t0001 complete" in err
    assert json.loads(out) == json.loads(command("best", sweep.url, "--json")[1])


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_and_says_that_the_sweep_goes_on(sweep, tmp_path):
    log = tmp_path / "watch.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "watch", sweep.url],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        until(lambda: "val loss 2.0" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait() == 1
    finally:
        process.kill()
    assert "quick-20260101-120000 goes on without us." in log.read_text()
    assert "Traceback" not in log.read_text()
    assert sweep.ledger.status()[0] == "running"


def test_what_a_relay_says_is_what_it_sees(sweep, monkeypatch):
    """Also of what changes neither state nor number of evaluations."""
    monkeypatch.setattr(relaying, "LEAST_S", 0.01)
    monkeypatch.setattr(relaying, "BYTES_PER_S", 1e9)
    heard = Relayed()
    seen = Watched(sweep.url)

    def as_json(source) -> list[object]:
        return [to_json(curve) for curve in source.look().curves]

    speaking = threading.Thread(
        target=relaying.relay, args=(Watched(sweep.url), heard.take), kwargs={"pages": True}
    )
    speaking.start()
    changes = ("an evaluation", "answers", "parameters", "a trial begins", "a line", "progress")
    for change in changes:
        before = heard.look().version
        NEWS[change](sweep)
        until(lambda before=before: heard.look().version != before)
        until(lambda: as_json(heard) == as_json(seen))
    sweep.end()
    speaking.join()
    look = heard.look()
    until(lambda: as_json(heard) == as_json(seen))
    assert look.story == seen.look().story
    version = heard.page_version()
    assert f'data-version="{version}"' in heard.page(), "or a browser would ask again for ever"
    assert heard.ended and heard.board() == seen.board()


# --- who serves the page ---


@pytest.fixture
def served(sweep: Growing):
    server = PageServer(Watched(sweep.url))
    yield server
    server.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_nothing_is_served_without_the_secret(served):
    host = served.url.split("/", 3)[2]
    assert get(served.url)[0] == 200 and "t0001" in get(served.url)[1]
    assert "Plotly" in get(f"{served.url}plotly.js")[1]
    for path in ("", "version", "plotly.js", "guess/", "guess/version", served.url[-23:-2]):
        code, text = get(f"http://{host}/{path}")
        assert code == 404 and "t0001" not in text, path


def test_another_sites_name_is_refused(served):
    assert get(served.url, Host="evil.example")[0] == 400
    assert get(served.url, Host="localhost:1")[0] == 200


def test_only_this_machine_is_asked_and_nobody_keeps_it(served):
    with urllib.request.urlopen(served.url) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert served.url.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_one_line(sweep, command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = command("watch", sweep.url, "--open", "--port", str(port))
    line = f"--port: cannot listen at 127.0.0.1:{port}: Address already in use\n"
    assert (code, err) == (2, line)
    with pytest.raises(InputError, match="must be from 1 to 65535, got 70000"):
        PageServer(Watched(sweep.url), 70000)


NEWS = {
    "a trial begins": lambda s: s.begin("t0002"),
    "an evaluation": lambda s: s.evaluate("t0001", 1.5),
    "a trial ends": lambda s: s.ledger.finish("t0001", "failed", "out of memory"),
    "a line": lambda s: s.story.tell("something"),
    "progress": lambda s: s.tell(),
    "answers": lambda s: s.answer("t0001", 0, "It is."),
    "parameters": lambda s: s.ledger.restate("t0001", {**PARAMS, "rank": 4}),
    "the end": lambda s: s.ledger.set_status("finished", 1.0),
    "an interruption": lambda s: s.ledger.set_status("interrupted", 1.0),
}


@pytest.mark.parametrize("news", NEWS)
def test_the_version_changes_with_news_and_only_then(sweep, served, monkeypatch, news):
    def version() -> str:
        return get(f"{served.url}version")[1]

    before, looks = version(), count_looks(monkeypatch)
    until(lambda: version() == before and len(looks) > 3)
    assert f'data-version="{before}"' in get(served.url)[1]
    NEWS[news](sweep)
    until(lambda: version() != before)
    after = version()
    looks.clear()
    until(lambda: version() == after and len(looks) > 3)
    assert f'data-version="{after}"' in get(served.url)[1]


def count_looks(monkeypatch) -> list[str]:
    """Grows with each look into a folder."""
    found: list[str] = []
    own = Ledger.load
    monkeypatch.setattr(Ledger, "load", lambda of: found.append(of.name) or own(of))
    return found


def test_two_clients_at_once_see_the_same_and_news_come_to_both(sweep, served):
    pages: list[str] = []

    def ask() -> None:
        pages.append(get(served.url)[1])

    for count in (1, 2):
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if count == 1:
            sweep.begin("t0002")
            until(lambda: "t0002" in get(served.url)[1])
    assert ["t0002" in page for page in pages] == [False] * 8 + [True] * 8
    assert len(set(pages)) == 2, "the page is made once for all"


def test_the_end_comes_with_an_open_connection_too(sweep):
    server = PageServer(Watched(sweep.url))
    port = int(server.url.split(":")[2].split("/")[0])
    idle = socket.create_connection(("127.0.0.1", port))
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert get(server.url)[0] == 200
    server.close()
    assert not server._thread.is_alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    idle.close()
    half.close()
    PageServer(Watched(sweep.url), port).close()


def test_the_end_does_not_wait_for_a_page_that_is_being_made(monkeypatch, sweep):
    monkeypatch.setattr(page_server, "STOP_S", 1.0)
    asked, made = threading.Event(), threading.Event()

    class Slow(Watched):
        def page(self) -> str:
            asked.set()
            made.wait()
            return ""

    server = PageServer(Slow(sweep.url))
    client = socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0])))
    path = server.url.split("/", 3)[3]
    client.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert asked.wait(60)
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(60)
    ended = not closing.is_alive()
    made.set()
    client.close()
    closing.join()
    assert ended


def test_a_folder_that_cannot_be_read_is_an_error_until_it_can(sweep, served):
    text = (sweep.ledger.store.local / "trials/t0001/trial.json").read_text()
    sweep.ledger.store.write_bytes("trials/t0001/trial.json", b"{")
    until(lambda: get(f"{served.url}version")[0] == 500)
    sweep.ledger.store.write_bytes("trials/t0001/trial.json", text.encode())
    until(lambda: get(served.url)[0] == 200)


def until(happened, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_progress_goes_when_nothing_runs(sweep):
    assert sweep.ledger.store.exists(PROGRESS)
    sweep.end()
    assert not sweep.ledger.store.exists(PROGRESS) and Ledger(sweep.url).progress() is None


# --- the page in a browser ---

browser = [pytest.mark.browser, pytest.mark.slow]


class Reader:
    """Somebody who reads a page: what it asked for and what went wrong are kept."""

    def __init__(self, chromium, **how) -> None:
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.drawn()

    def drawn(self) -> None:
        self.until("document.documentElement.dataset.drawn !== undefined")

    def until(self, happened: str, arg=None) -> None:
        """Asks again and again from outside: the page's policy forbids playwright to do so inside."""
        until(lambda: self.eval(happened, arg))

    def renewed(self, change) -> None:
        """Whatever `change` does is on the page."""
        before = self.eval("document.documentElement.dataset.version")
        change()
        self.until("before => document.documentElement.dataset.version !== before", before)

    def eval(self, script: str, arg=None):
        return self.page.evaluate(script, arg)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def focus(self) -> str:
        return self.eval("document.activeElement.id || document.activeElement.textContent.trim()")

    def overflow(self) -> int:
        return self.eval("document.documentElement.scrollWidth - innerWidth")

    def in_order(self, *, beyond: str = "http://127.0.0.1:") -> None:
        assert self.errors == []
        assert "error" not in self.eval("({...document.documentElement.dataset})")
        own = ("data:", "blob:", beyond)
        assert [url for url in self.asked if not url.startswith(own)] == []


@pytest.fixture
def reader(chromium):
    opened: list[Reader] = []

    def open_page(url: str, **how) -> Reader:
        opened.append(Reader(chromium, **how))
        opened[-1].open(url)
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


POINTS = """id => document.getElementById(id).data.filter(line => line.meta.trial === "t0001" && line.meta.tone !== "winner")[0].y.length"""


class TestPage:
    pytestmark = browser

    def test_it_follows_a_sweep_to_its_end_and_says_when_nobody_answers(self, sweep, reader):
        server = PageServer(Watched(sweep.url))
        try:
            seen = reader(server.url)
            assert seen.text("#status") == "running" and "t0001" in seen.text("#running")
            assert seen.page.locator("#running progress").get_attribute("value") == "0.500"
            assert seen.eval(POINTS, "plot-val_loss") == 2
            seen.page.click("#leaderboard tr[data-trial=t0001] button")
            assert seen.page.locator("#trial-evaluations tbody tr").count() == 2

            seen.renewed(lambda: sweep.evaluate("t0001", 1.25))
            assert seen.eval(POINTS, "plot-val_loss") == 3
            assert seen.page.locator("#trial-evaluations tbody tr").count() == 3
            assert "1.2500" in seen.text("#trial-evaluations")

            seen.renewed(lambda: sweep.begin("t0002"))
            assert seen.page.locator("#leaderboard tr[data-trial=t0002]").count() == 1
            assert "t0002 starts" in seen.text("#story")
            seen.page.click("#running tr[data-trial=t0002] button")
            assert "starts: lora" in seen.text("#trial-log")

            seen.renewed(lambda: sweep.answer("t0001", 2, "It is what it is."))
            seen.page.click("#leaderboard tr[data-trial=t0001] button")
            seen.page.click("#trial-answers summary")
            assert "It is what it is." in seen.text("#trial-answers")

            sweep.end()
            seen.until("document.querySelector('#status').textContent === 'finished'")
            assert seen.page.locator("#running").count() == 0
            assert seen.text("#winner .eyebrow").lower() == "winner"
            seen.in_order()
            assert not seen.page.locator("footer .gone").is_visible()
        finally:
            server.close()
        seen.page.wait_for_selector(".stale footer .gone")
        assert "Nobody answers any more" in seen.text("footer")
        assert "t0001" in seen.text("#leaderboard")

    def test_a_server_that_answers_again_is_followed_again(self, sweep, served, reader):
        seen = reader(served.url)
        file, whole = (
            "trials/t0001/trial.json",
            sweep.ledger.store.read_bytes("trials/t0001/trial.json"),
        )
        sweep.ledger.store.write_bytes(file, b"{")
        seen.page.wait_for_selector(".stale")
        sweep.ledger.store.write_bytes(file, whole)
        sweep.begin("t0002")
        seen.page.wait_for_selector("#leaderboard tr[data-trial=t0002]")
        seen.page.wait_for_selector(".stale", state="detached")
        assert not seen.page.locator("footer .gone").is_visible()

    def test_a_readers_view_stays(self, sweep, served, reader):
        for number in range(2, 40):
            sweep.begin(
                f"t{number:04}", rank=number, **{f"a_long_name_{n}": n * number for n in range(12)}
            )
        sweep.begin("t0050")
        sweep.evaluate("t0050", *OVERFIT)
        sweep.finish("t0050")
        sweep.evaluate("t0002", 2.5, 2.2)
        sweep.tell()
        seen = reader(served.url)
        page = seen.page
        page.click("#leaderboard .chips button[data-tone=healthy]")
        page.click("#leaderboard thead button:text-is('rank')")
        page.click("#leaderboard thead button:text-is('rank')")
        page.click("#leaderboard tr[data-trial=t0002] button")
        page.click("#words summary")
        area = page.locator("#plot-val_loss .nsewdrag")
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=8)
        page.mouse.up()
        seen.until("document.getElementById('plot-val_loss').layout.xaxis.autorange !== true")
        page.focus("#leaderboard tr[data-trial=t0039] button")
        seen.eval("document.querySelector('#leaderboard .table').scrollTo(180, 150)")
        seen.eval("document.querySelector('#trial').scrollTop = 60")
        seen.eval("scrollTo(0, 420)")

        view = """() => ({
          trial: document.querySelector('#trial-name').textContent,
          rows: [...document.querySelectorAll('#leaderboard tbody tr')].filter(row => !row.hidden).map(row => row.dataset.trial).filter(id => id !== 't0060'),
          hidden: document.querySelector('.chips button[data-tone=healthy]').getAttribute('aria-pressed'),
          sorted: document.querySelector('[aria-sort=descending]').textContent.trim(),
          table: [document.querySelector('#leaderboard .table').scrollLeft, document.querySelector('#leaderboard .table').scrollTop],
          panel: document.querySelector('#trial').scrollTop,
          page: [scrollX, scrollY],
          open: document.querySelector('#words details').open,
          focus: document.activeElement.closest('tr').dataset.trial,
          zoom: document.getElementById('plot-val_loss').layout.xaxis.range,
        })"""
        before = seen.eval(view)
        assert before["hidden"] == "false" and "t0050" not in before["rows"]
        assert before["table"] == [180, 150] and before["page"] == [0, 420] and before["open"]

        def grow() -> None:
            sweep.begin("t0060")
            sweep.evaluate("t0060", 2.5)
            sweep.evaluate("t0002", 2.0)

        seen.renewed(grow)
        page.wait_for_selector("#leaderboard tr[data-trial=t0060]")
        assert seen.eval(view) == before
        seen.in_order()

    @pytest.mark.parametrize(
        "selector",
        [
            "#running tr[data-trial=t0001] button",
            "#leaderboard thead button:text-is('val loss')",
            "#leaderboard .chips button",
            "#words summary",
            "#trial .close",
            "#trial-evaluations",
            "#trial-log",
        ],
    )
    def test_keyboard_focus_stays(self, sweep, served, reader, selector):
        seen = reader(served.url)
        seen.page.click("#leaderboard tr[data-trial=t0001] button")
        seen.page.focus(selector)
        seen.eval("document.activeElement.dataset.old = 1")
        seen.renewed(lambda: sweep.evaluate("t0001", 1.5))
        same = seen.eval("document.activeElement.dataset.old") is not None
        assert same == (selector == "#words summary"), "only what shows the same stays itself"
        assert seen.page.locator(selector).first.evaluate("node => node === document.activeElement")

    def test_a_section_that_comes_moves_neither_focus_nor_what_is_open(
        self, tmp_path, quick, reader
    ):
        s = Growing(str(tmp_path / "quick"))
        server = PageServer(Watched(s.url))
        try:
            seen = reader(server.url)
            seen.page.click("#words summary")

            def grow() -> None:
                s.begin("t0001")
                s.evaluate("t0001", 2.0)
                s.tell()

            seen.renewed(grow)
            seen.page.wait_for_selector("#running")
            assert seen.eval("document.querySelector('#words details').open")
            assert seen.focus() == "The words on this page"
            seen.in_order()
        finally:
            server.close()

    @pytest.mark.parametrize("section", ["running", "leaderboard"])
    def test_by_the_keyboard_alone(self, sweep, served, reader, section):
        seen = reader(served.url)
        own = f"document.activeElement === document.querySelector('#{section} tr[data-trial=t0001] button')"
        for _ in range(40):
            seen.page.keyboard.press("Tab")
            if seen.eval(own):
                break
        else:
            pytest.fail("Tab never comes there")
        seen.page.keyboard.press("Enter")
        assert seen.focus() == "trial" and seen.text("#trial-name") == "t0001"
        seen.page.keyboard.press("Tab")
        assert seen.focus() == "Close"
        seen.renewed(lambda: sweep.evaluate("t0001", 1.5))
        assert seen.focus() == "Close"
        seen.page.keyboard.press("Escape")
        assert seen.eval(own) and not seen.page.locator("#trial").is_visible()
        seen.page.keyboard.press("Enter")
        seen.page.keyboard.press("Tab")
        seen.page.keyboard.press("Enter")  # on Close
        assert seen.eval(own) and not seen.page.locator("#trial").is_visible()
        seen.in_order()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_phone(self, sweep, served, reader, scheme):
        sweep.begin("t0002", a_parameter_with_quite_a_long_name="/a/path/" + "long/" * 20)
        sweep.evaluate("t0002", 1.5)
        sweep.answer("t0002", 0, "word" * 200)
        sweep.tell()
        phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
        seen = reader(served.url, **phone, is_mobile=True, has_touch=True)
        assert seen.overflow() <= 0
        seen.page.tap("#leaderboard tr[data-trial=t0002] button")
        seen.page.wait_for_selector("#trial:not([hidden])")
        seen.page.tap("#trial-answers summary")
        box = seen.page.locator("#trial").bounding_box()
        assert (box["x"], box["width"]) == (0, 390) and 300 < box["height"] <= 844 * 0.62 + 1
        inside = """() => { const panel = document.querySelector('#trial'); return [panel.scrollWidth - panel.clientWidth,
          ...[...panel.querySelectorAll('dd, dt, pre, h2, h3, li')].map(n => n.getBoundingClientRect()).filter(b => b.right > innerWidth + 1 || b.left < 0).map(b => b.right)]; }"""
        assert seen.eval(inside) == [0]
        assert seen.overflow() <= 0
        seen.renewed(lambda: sweep.evaluate("t0002", 1.4))
        assert seen.overflow() <= 0
        assert contrast(seen, "#trial dd") > 7 and contrast(seen, "#trial dt") > 4.5
        assert (luminance(seen, "#trial", "backgroundColor") < 0.1) == (scheme == "dark")
        seen.in_order()

    def test_the_colours_follow_the_scheme(self, sweep, served, reader):
        seen = reader(served.url, color_scheme="dark")
        line = """() => document.getElementById('plot-val_loss').data[0].line.color"""
        dark = seen.eval(line)
        seen.page.emulate_media(color_scheme="light")
        seen.until(f"dark => ({line})() !== dark", dark)
        seen.in_order()


def luminance(seen: Reader, selector: str, what: str) -> float:
    found = seen.eval(
        "([s, w]) => getComputedStyle(document.querySelector(s))[w]", [selector, what]
    )
    parts = [int(each) / 255 for each in re.findall(r"\d+", found)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(seen: Reader, selector: str) -> float:
    """Of a text with the panel below it (WCAG)."""
    one, other = luminance(seen, selector, "color"), luminance(seen, "#trial", "backgroundColor")
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


class TestFile:
    pytestmark = browser

    def test_the_panel_works_in_a_file_and_hostile_names_stay_text(self, tmp_path, quick, reader):
        evil = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
        s = Growing(str(tmp_path / "quick"))
        s.begin("t0001", **{evil: evil})
        s.evaluate("t0001", 2.0, 1.0)
        s.story.tell(f"t0001 says {evil}")
        s.answer("t0001", 1, evil)
        s.finish("t0001")
        s.begin("t0002")
        s.finish("t0002", "failed", evil)
        s.ledger.set_status("finished", 1.0)
        s.onlookers._due = 0.0
        s.onlookers.renew_report()
        seen = reader((s.ledger.store.local / "report.html").as_uri())
        seen.page.on("dialog", lambda dialog: pytest.fail("a script has run"))
        seen.page.click("#leaderboard tr[data-trial=t0001] button")
        told = seen.text("#trial")
        assert told.count(evil) == 3, "as name, as value, and in the log"
        assert f"says {evil}" in seen.text("#trial-log") and f"says {evil}" in seen.text("#story")
        seen.page.click("#trial-answers summary")
        assert evil in seen.text("#trial-answers")
        assert seen.page.locator("img, #trial script").count() == 0
        seen.page.keyboard.press("Escape")
        assert not seen.page.locator("#trial").is_visible()
        seen.page.click("#leaderboard tr[data-trial=t0002] button")
        assert f"failed: {evil}" in seen.text("#trial")
        seen.in_order(beyond="file:")

    def test_a_hostile_board_too(self, tmp_path, reader):
        from boards import board_of

        file = tmp_path / "report.html"
        board = board_of(hostile())
        file.write_text(html_report(board, Beside()), encoding="utf-8")
        seen = reader(file.as_uri())
        for row in board.trials:
            seen.eval("id => focusOn(id)", row.id)
            assert seen.text("#trial-name") == row.id.strip()
        assert seen.page.locator("img").count() == 0
        seen.in_order(beyond="file:")

    def test_many_trials_share_lines_and_each_is_still_told_and_chosen(self, tmp_path, reader):
        from boards import board_of
        from test_report import board, trial

        trials = [
            trial(f"t{n:04}", "healthy" if n % 3 else "overfit", [(2 + n / 100, 1.0), (1 + n / 100, 0.9)], rank=n)
            for n in range(150)
        ]  # fmt: skip
        file = tmp_path / "report.html"
        made = board_of(board(trials, winner=("t0001", 1, "the lowest")))
        file.write_text(html_report(made, Beside()), encoding="utf-8")
        seen = reader(file.as_uri())
        lines = """() => document.getElementById('plot-val_loss').data.filter(line => line.visible !== false)
          .map(line => ({y: line.y.filter(y => y !== null).length, tone: line.meta.tone, told: [line.text].flat()[0]}))"""
        drawn = seen.eval(lines)
        assert len(drawn) <= 2 * 20 + 2
        assert sum(line["y"] for line in drawn) == 2 * 150 + 1
        assert any(
            "val_loss 2.0000" in line["told"] and "rank = 0" in line["told"] for line in drawn
        )
        seen.eval("document.querySelector('#curves').scrollIntoView()")
        at = seen.eval("""() => { const plot = document.getElementById('plot-val_loss'), area = plot.querySelector('.nsewdrag').getBoundingClientRect();
          return [area.left + plot._fullLayout.xaxis.l2p(1600), area.top + plot._fullLayout.yaxis.l2p(2 + 149 / 100)]; }""")
        seen.page.mouse.move(*at)
        seen.page.wait_for_selector("#plot-val_loss .hoverlayer .hovertext")
        assert "t0149" in seen.page.locator("#plot-val_loss .hoverlayer").text_content()
        seen.page.mouse.click(*at)
        seen.page.wait_for_selector("#trial:not([hidden])")
        assert seen.text("#trial-name") == "t0149"
        seen.page.click("#leaderboard .chips button[data-tone=overfit]")
        seen.until(f"({lines})().every(line => line.tone !== 'overfit')")
        assert sum(line["y"] for line in seen.eval(lines)) == 2 * 100 + 1
        seen.in_order(beyond="file:")


# --- a real sweep ---


class TestSweep:
    pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

    def test_it_is_followed_to_the_board_that_best_prints(
        self, start_sweeps, sweeps, shakespeare, tmp_path
    ):
        file = shakespeare("""
search:
  trials: 3
  scheduler: none
  space: {method: lora, learning_rate: {log_uniform: [1e-4, 4e-4]}, rank: 4, batch_size: 16, epochs: 20}
cluster: {slots: 1, trials_per_slot: 3}
""")
        ran = tmp_path / "log"
        process = start_sweeps(ran, "run", file)

        def while_it_runs(happened):
            until(lambda: process.poll() is not None or happened(), 1200)
            found = happened()
            assert found, ran.read_text()
            return found

        folder = while_it_runs(lambda: next(tmp_path.glob("runs/*/status.json"), None)).parent
        with (tmp_path / "board.json").open("w") as out, (tmp_path / "watch").open("w") as err:
            watch = subprocess.Popen(
                [sys.executable, "-m", "sweeps", "watch", folder, "--json"],
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )
        try:
            for name in (STORY, PROGRESS, "report.html"):
                while_it_runs((folder / name).exists)
                assert Ledger(str(folder)).status()[0] == "running"
            while_it_runs(lambda: 'data-trial="t0001"' in (folder / "report.html").read_text())
            assert "data-reloads" in (folder / "report.html").read_text()
            progress = json.loads((folder / PROGRESS).read_text())
            assert {"t0001", "t0002", "t0003"} >= set(progress["running"]) != set()
            assert process.wait(1200) == 0, ran.read_text()
            assert watch.wait(300) == 0, (tmp_path / "watch").read_text()
        finally:
            watch.kill()
        assert not (folder / PROGRESS).exists()
        board = json.loads((tmp_path / "board.json").read_text())
        assert board == json.loads(sweeps("best", folder, "--json").out)
        assert board["status"] == "finished" and len(board["trials"]) == 3
        seen = (tmp_path / "watch").read_text()
        story = read_story(Store(str(folder)))
        evaluations = [line for line in story if re.search(r" t\d{4} epoch ", line)]
        assert len(evaluations) == sum(len(trial["evaluations"]) for trial in board["trials"]) == 60
        assert all(line in seen for line in evaluations)
        assert "data-reloads" not in (folder / "report.html").read_text(encoding="utf-8")
