"""Asking a chat model behind an OpenAI-compatible URL: once for each request, at a given rate, and
again where the service fails for the moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 60.0  # seconds between two tries, whatever the service asks for
REFUSED = (400, 401, 403, 404, 405, 422)  # nothing that another try would change
MOST_FAILURES = 3  # requests in a row, all tries of each; then nothing more is asked


@dataclass(kw_only=True)
class Usage:
    """What was asked of a service, and what it cost."""

    requests: int = 0
    """Answered by the service."""
    cached: int = 0
    """Answered by an earlier run's cache."""
    failed: int = 0
    """Not answered, after all tries."""
    unparsed: int = 0
    """Answered with no number within the scale."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """Of the tokens, in the currency of the prices; None where there are no prices."""
    problem: str | None = None
    """Why the first request that was not answered was not."""


class Unanswered(Exception):
    """The service did not answer; the message says what it did."""

    wait: float | None = None
    """Seconds after which it wants to be asked again."""
    is_final: bool = False
    """Whether another try would change nothing."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where, what and how is asked."""

    url: str
    """Up to and without `/chat/completions`."""
    parameters: Mapping[str, object]
    """Of every request: model, temperature, seed."""
    key_env: str | None = None
    timeout: float = 60.0
    """Seconds for one answer."""
    requests_per_minute: float | None = None
    parallel: int = 4
    tries: int = 6
    backoff: float = 1.0
    """Seconds before the second try, doubled before each further one."""
    cache: Path | None = None
    price_per_million: tuple[float, float] | None = None
    """Of tokens that are read, and that are written."""

    @property
    def endpoint(self) -> str:
        return f"{self.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    def ask(self, contents: Sequence[str], usage: Usage) -> list[str | None]:
        """What the model says to each; None where it did not answer. The same content is asked
        once. Adds to `usage`.
        """
        import httpx

        distinct = list(dict.fromkeys(contents))
        key = os.environ.get(self.key_env or "OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(self.parallel) as pool,
        ):
            asking = _Asking(self, client, usage)
            found = dict(zip(distinct, pool.map(asking.answer, distinct), strict=True))
        return [found[content] for content in contents]


@dataclass
class _Asking:
    """The requests of one call, by several threads."""

    service: Service
    client: httpx.Client
    usage: Usage
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_start: float = 0.0
    """When the next request may begin, by time.monotonic."""
    failures: int = 0
    """In a row."""
    has_given_up: bool = False

    def answer(self, content: str) -> str | None:
        message = {"role": "user", "content": content}
        request = {**self.service.parameters, "messages": [message]}
        file = _cache_file(self.service, request)
        if (kept := _read(file)) is not None:
            with self.lock:
                self.usage.cached += 1
            return kept
        try:
            reply = self._asked(request)
        except Unanswered as error:
            self._failed(error)
            return None
        content, tokens = reply
        self._answered(tokens)
        _keep(file, request, content, tokens)
        return content

    def _asked(self, request: Mapping[str, object]) -> tuple[str, tuple[int, int]]:
        for attempt in range(1, self.service.tries + 1):
            if self.has_given_up:
                raise Unanswered("not asked any more")
            self._take_turn()
            try:
                return _once(self.client, self.service.endpoint, request)
            except Unanswered as error:
                if error.is_final or attempt == self.service.tries:
                    raise
                time.sleep(self._pause(attempt, error.wait))
        raise AssertionError("there is at least one try")

    def _pause(self, attempt: int, asked_for: float | None) -> float:
        """Seconds; with jitter, so that threads do not come back together."""
        own = self.service.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        return min(LONGEST_WAIT, own if asked_for is None else asked_for)

    def _take_turn(self) -> None:
        if (rate := self.service.requests_per_minute) is None:
            return
        with self.lock:
            start = max(self.next_start, time.monotonic())
            self.next_start = start + 60 / rate
        time.sleep(max(0.0, start - time.monotonic()))

    def _failed(self, error: Unanswered) -> None:
        with self.lock:
            self.usage.failed += 1
            self.usage.problem = self.usage.problem or str(error)
            self.failures += 1
            self.has_given_up |= error.is_final or self.failures >= MOST_FAILURES

    def _answered(self, tokens: tuple[int, int]) -> None:
        with self.lock:
            self.failures = 0
            self.usage.requests += 1
            self.usage.prompt_tokens += tokens[0]
            self.usage.completion_tokens += tokens[1]
            if (prices := self.service.price_per_million) is not None:
                cost = sum(n * price for n, price in zip(tokens, prices, strict=True)) / 1e6
                self.usage.cost = (self.usage.cost or 0.0) + cost


def _once(
    client: httpx.Client, url: str, request: Mapping[str, object]
) -> tuple[str, tuple[int, int]]:
    """The text of the answer, and tokens read and written. Raises Unanswered."""
    import httpx

    try:
        response = client.post(url, json=request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = str(error) or "no answer in time"
        raise Unanswered(f"{type(error).__name__}: {said}") from None
    if response.status_code != 200:
        error = Unanswered(f"HTTP {response.status_code} {_told(response)}".strip())
        error.is_final = response.status_code in REFUSED
        with suppress(KeyError, ValueError):
            error.wait = max(0.0, float(response.headers["Retry-After"]))
        raise error
    try:
        return _content(response.json())
    except (ValueError, RecursionError):
        raise Unanswered(f"its answer is no chat completion: {response.text[:60]!r}") from None


def _told(response: httpx.Response) -> str:
    """What OpenAI's format of errors says, or the beginning of anything else."""
    with suppress(ValueError, RecursionError):
        match response.json():
            case {"error": {"message": str(message)}}:
                return message[:200]
    return response.text[:60]


def _content(found: object) -> tuple[str, tuple[int, int]]:
    """Raises ValueError."""
    match found:
        case {"choices": [{"message": {"content": str(content)}}, *_]}:
            match found:
                case {"usage": {"prompt_tokens": int(read), "completion_tokens": int(written)}}:
                    return content, (read, written)
            return content, (0, 0)
    raise ValueError("no chat completion")


# --- what was answered before ---


def _cache_file(service: Service, request: Mapping[str, object]) -> Path | None:
    if service.cache is None:
        return None
    asked = json.dumps([service.endpoint, request], sort_keys=True)
    return service.cache / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _read(file: Path | None) -> str | None:
    """None where it was not asked, or what is kept of it is broken."""
    if file is None:
        return None
    with suppress(OSError, ValueError, RecursionError):
        match json.loads(file.read_text(encoding="utf-8")):
            case {"content": str(content)}:
                return content
    return None


def _keep(
    file: Path | None, request: Mapping[str, object], content: str, tokens: tuple[int, int]
) -> None:
    """Whole or not at all; a full disk costs the cache, and no answer."""
    if file is None:
        return
    kept = {"request": request, "content": content, "tokens": tokens}
    with suppress(OSError):
        handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(kept, stream)
        os.replace(partial, file)
