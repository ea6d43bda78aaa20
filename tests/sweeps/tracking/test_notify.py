"""News of a sweep, posted to real servers on this machine: a webhook, one that is dead, slow or refuses, and W&B."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard, WinnerRow
from sweeps.run.news import StallWatch, tell_end
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.notify import Notifier
from trainables.evaluation.record import Evaluation

SECRET = "/services/T000/B000/secret"


class Hook(ThreadingHTTPServer):
    """Keeps what it is sent; can refuse it, or be silent until the test ends."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.got, self.status, self.answer = [], 200, b"ok"
        self.silent, self.released = False, threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):  # clients that gave up waiting
        pass


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, body, self.headers))
        if self.server.silent:
            self.server.released.wait(60)
            return
        answer = self.server.answer(body) if callable(self.server.answer) else self.server.answer
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def hook(monkeypatch):
    server = Hook()
    monkeypatch.setenv("TEAM_HOOK", server.url + SECRET)
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def notifier(lines):
    return Notifier(TrackingConfig(notify="env:TEAM_HOOK"), lines.append)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "s-1"))


WINNER = WinnerRow(trial="t0002", val_loss=0.25, reason="it has the lowest validation loss")
BOARD = Leaderboard(sweep="s", winner=WINNER)


def test_a_hook_is_told_that_a_sweep_ended_and_what_won(hook, notifier, ledger, lines):
    tell_end(notifier, ledger, "finished", board=BOARD, report="https://wandb.ai/a/b/reports/c")
    notifier.close()
    ((path, news, headers),) = hook.got
    assert path == SECRET and headers["Content-Type"] == "application/json"
    folder = ledger.store.path("").rstrip("/")
    assert news == {
        "text": "Sweep s-1 finished; the best is t0002, validation loss 0.2500."
        " https://wandb.ai/a/b/reports/c",
        "sweep": "s-1",
        "status": "finished",
        "winner": "t0002",
        "val_loss": 0.25,
        "folder": folder,
        "report": "https://wandb.ai/a/b/reports/c",
    }
    assert lines == []


def test_a_hook_is_told_of_failures_and_of_ends_without_a_winner(hook, notifier, ledger):
    nothing = Leaderboard(sweep="s", reason="no trial has a checkpoint")
    tell_end(notifier, ledger, "failed", why="RuntimeError: the cluster is gone")
    tell_end(notifier, ledger, "interrupted", board=nothing)
    notifier.close()
    failed, interrupted = (news for _, news, _ in hook.got)
    folder = ledger.store.path("").rstrip("/")
    assert failed["text"] == f"Sweep s-1 failed: RuntimeError: the cluster is gone. {folder}"
    assert (failed["status"], failed["winner"], failed["report"]) == ("failed", None, None)
    assert interrupted["text"].startswith(
        "Sweep s-1 was interrupted, and nothing wins: no trial has a checkpoint."
    )


def test_a_stall_is_told_once_until_a_trial_is_evaluated_again(hook, notifier, ledger):
    now, searching = 0.0, True
    watch = StallWatch(ledger, notifier, minutes=10, searching=lambda: searching, clock=lambda: now)

    def look_at(*minutes):
        nonlocal now
        for each in minutes:
            now = each * 60
            watch.look()

    look_at(0, 9, 10, 30)  # nothing begins
    ledger.begin("t0000", {"method": "lora"})
    look_at(35, 44, 45, 60)  # it begins, and no evaluation comes
    losses = {"val_loss": 0.5, "probe_loss": 0.4}
    ledger.record("t0000", Evaluation(step=1, samples_seen=8, epoch=1.0, **losses))
    look_at(61, 70)
    ledger.finish("t0000", "complete", None)
    look_at(71, 80)
    searching = False  # baselines and the test are measured
    look_at(81, 500)
    # the sweep goes on with more trials, and no slot comes
    watch = StallWatch(ledger, notifier, minutes=10, searching=lambda: True, clock=lambda: now)
    look_at(501, 510, 511)
    notifier.close()
    folder = ledger.store.path("").rstrip("/")
    stalls = "Sweep s-1 stalls: no trial was evaluated for 10 minutes"
    assert [news["text"] for _, news, _ in hook.got] == [
        f"{stalls} (none runs). {folder}",
        f"{stalls} (1 running). {folder}",
        f"{stalls} (none runs). {folder}",
    ]
    assert {news["status"] for _, news, _ in hook.got} == {"stalled"}


def refuse(hook, monkeypatch):
    hook.status = 404


def die(hook, monkeypatch):
    monkeypatch.setenv("TEAM_HOOK", "http://127.0.0.1:9" + SECRET)


def be_no_url(hook, monkeypatch):
    monkeypatch.setenv("TEAM_HOOK", "http://127.0.0.1:port" + SECRET)


@pytest.mark.parametrize(
    ("broken", "why"),
    [(refuse, "HTTP 404"), (die, "Connection refused"), (be_no_url, "InvalidURL")],
)
def test_a_hook_that_is_broken_is_one_line_without_its_url(
    hook, ledger, lines, monkeypatch, broken, why
):
    broken(hook, monkeypatch)
    notifier = Notifier(TrackingConfig(notify="env:TEAM_HOOK"), lines.append)
    tell_end(notifier, ledger, "finished", board=BOARD)
    tell_end(notifier, ledger, "failed", board=BOARD)
    notifier.close(60)
    assert lines == [f"notify: the message 'finished' failed ({why})"]


def test_a_slow_hook_holds_up_nobody(hook, ledger, lines, notifier):
    hook.silent = True
    tell_end(notifier, ledger, "finished", board=BOARD)
    notifier.close(0.2)
    assert not hook.released.is_set()
    assert lines == ["notify: no answer within 0.2 s"]


@pytest.mark.parametrize("value", [None, "", "ftp://somewhere", "hooks.slack.com/services/secret"])
def test_a_variable_without_a_url_is_told_at_the_start(monkeypatch, ledger, lines, value):
    monkeypatch.delenv("TEAM_HOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("TEAM_HOOK", value)
    notifier = Notifier(TrackingConfig(notify="env:TEAM_HOOK"), lines.append)
    line = "notify: nobody will be told: the environment variable TEAM_HOOK holds no http(s) URL"
    assert lines == [line]
    tell_end(notifier, ledger, "finished", board=BOARD)
    notifier.close(60)
    assert lines == [line]


@pytest.mark.parametrize("url", ["https://hooks.slack.com/services/secret", "slack", "env:a b"])
def test_a_url_in_the_sweep_file_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="tracking.notify: must be null, wandb or env:NAME") as it:
        TrackingConfig(notify=url)
    assert "secret" not in str(it.value)


# --- W&B ---


def graphql(body):
    if "NotifyScriptableRunAlert" in body["query"]:
        return b'{"data": {"notifyScriptableRunAlert": {"success": true}}}'
    return b'{"data": {"viewer": {"entity": "ada"}}}'


@pytest.fixture
def wandb_of(hook, monkeypatch, tmp_path):
    import wandb

    wandb.teardown()
    for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", hook.url)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "local-" + "a" * 40)
    hook.answer = graphql
    yield hook
    wandb.teardown()


def test_wandb_sends_an_alert_of_the_winners_run(wandb_of, ledger, lines):
    notifier = Notifier(TrackingConfig(notify="wandb", project="sweeps"), lines.append)
    tell_end(notifier, ledger, "finished", board=BOARD)
    notifier.close(60)
    assert lines == []
    _, (path, alert, headers) = wandb_of.got
    assert path == "/graphql" and headers["Authorization"].startswith("Basic ")
    assert alert["variables"] == {
        "entityName": "ada",
        "projectName": "sweeps",
        "runName": "s-1-t0002",
        "title": "Sweep finished: s-1",
        "text": f"Sweep s-1 finished; the best is t0002, validation loss 0.2500."
        f" {ledger.store.path('').rstrip('/')}",
        "severity": "INFO",
    }


@pytest.mark.parametrize(
    ("config", "answer", "why"),
    [
        ({"wandb": "offline"}, graphql, "the sweep is not tracked online"),
        (
            {"entity": "team"},
            b'{"errors": [{"message": "run not found"}]}',
            "W&B says: run not found",
        ),
    ],
)
def test_an_alert_that_wandb_does_not_send_is_one_line(
    wandb_of, ledger, lines, config, answer, why
):
    wandb_of.answer = answer
    notifier = Notifier(TrackingConfig(notify="wandb", **config), lines.append)
    tell_end(notifier, ledger, "failed", board=BOARD)
    notifier.close(60)
    assert lines == [f"notify: the message 'failed' failed ({why})"]


def test_nobody_is_told_where_nobody_is_named(hook, ledger, lines):
    notifier = Notifier(TrackingConfig(), lines.append)
    tell_end(notifier, ledger, "finished", board=BOARD)
    notifier.close()
    assert hook.got == lines == []
