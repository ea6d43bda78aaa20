"""Who is told when a sweep ends, fails or stalls: W&B, which sends mails and messages of Slack, or
a webhook.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from sweeps.tracking.background import Background
from sweeps.tracking.config import WANDB, TrackingConfig
from sweeps.tracking.online import key_header, session_key, session_settings
from sweeps.tracking.wandb import run_id
from trainables.storage.records import Json, to_json

TIMEOUT_S = 5.0
"""Of a request, and the longest that the end of a sweep waits for it."""

MOST_OF_ANSWER = 1 << 16
MOST_OF_TITLE = 63

Status = Literal["finished", "interrupted", "failed", "stalled"]
SEVERITIES: Mapping[Status, str] = {"finished": "INFO", "interrupted": "WARN", "stalled": "WARN"}

VIEWER = "query Viewer { viewer { entity } }"
ALERT = """mutation NotifyScriptableRunAlert(
    $entityName: String!, $projectName: String!, $runName: String!,
    $title: String!, $text: String!, $severity: AlertSeverity = INFO
) {
    notifyScriptableRunAlert(input: {
        entityName: $entityName, projectName: $projectName, runName: $runName,
        title: $title, text: $text, severity: $severity
    }) { success }
}"""
"""What wandb.Run.alert sends; a run must be open for that, and those of a sweep have ended."""


@dataclass(frozen=True, kw_only=True)
class News:
    """What a webhook gets, as JSON. Slack, and what takes Slack's messages, shows `text`."""

    text: str
    sweep: str
    status: Status
    winner: str | None = None
    """The trial."""
    val_loss: float | None = None
    folder: str
    report: str | None = None
    """Its address or file."""


class NotToldError(Exception):
    """Why W&B sends no alert, in words for people."""


class Notifier:
    """Tells whom `tracking.notify` names. Calls return at once, and what fails is one line. A
    webhook's URL is a secret: it is read from the environment, and never said.
    """

    def __init__(self, config: TrackingConfig, log: Callable[[str], None]) -> None:
        self._config, self._hook = config, ""
        self._background = None if config.notify is None else Background("notify", log, _words)
        if self._background is None or config.notify in (None, WANDB):
            return
        variable = config.notify.removeprefix("env:")
        self._hook = os.environ.get(variable, "")
        if urllib.parse.urlsplit(self._hook).scheme not in ("http", "https"):
            self._background.give_up(
                f"nobody will be told: the environment variable {variable} holds no http(s) URL"
            )

    def tell(self, news: News, trial: str | None) -> None:
        """trial: whose run W&B's alert hangs on; None: there is no run yet."""
        if self._background is None:
            return
        send = partial(_post, self._hook, to_json(news), {})
        if self._config.notify == WANDB:
            send = partial(_alert, self._config, news, trial)
        self._background.put(f"the message {news.status!r}", send)

    def close(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until all was told, `timeout_s` at most."""
        if self._background is not None and not self._background.close(timeout_s):
            self._background.say("late", f"no answer within {timeout_s:g} s")


def _alert(config: TrackingConfig, news: News, trial: str | None) -> None:
    key = session_key(config)
    if key is None:
        raise NotToldError("the sweep is not tracked online")
    if trial is None:
        raise NotToldError("an alert hangs on a run, and no trial has begun")
    server = session_settings().base_url
    entity = config.entity or _ask(server, key, VIEWER, {})["viewer"]["entity"]
    alert = {
        "entityName": entity,
        "projectName": config.project,
        "runName": run_id(news.sweep, trial),
        "title": f"Sweep {news.status}: {news.sweep}"[:MOST_OF_TITLE],
        "text": news.text,
        "severity": SEVERITIES.get(news.status, "ERROR"),
    }
    _ask(server, key, ALERT, alert)


def _ask(server: str, key: str, query: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """What W&B answers. By itself, as its client would start a process that outlives the sweep's
    tracking.
    """
    content: dict[str, Json] = {"query": query, "variables": {**variables}}
    said = _post(f"{server}/graphql", content, key_header(key))
    answer = json.loads(said)
    if answer.get("errors"):
        raise NotToldError(f"W&B says: {str(answer['errors'][0].get('message'))[:200]}")
    return answer["data"]


def _post(url: str, content: Mapping[str, Json], headers: Mapping[str, str]) -> bytes:
    """The beginning of the answer."""
    headers = {"Content-Type": "application/json", "User-Agent": "finetune-sweeps", **headers}
    request = urllib.request.Request(url, data=json.dumps(content).encode(), headers={**headers})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return response.read(MOST_OF_ANSWER)


def _words(error: Exception) -> str:
    """Without the URL, which some errors of the library quote."""
    if isinstance(error, NotToldError):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
