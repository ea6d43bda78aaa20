"""A sweep whose folder is out of reach, watched through the log of a job that reads it there.

The job prints lines that `Incoming` puts together again; what is no such line is Ray's.
"""

import base64
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.progress import Progress
from sweeps.reporting.watched import Look, Watched
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from trainables.errors import InputError
from trainables.storage.records import from_json, to_json

MARK = "watch-relay"
PART = 200_000  # characters of a line: a message of the dashboard may have 4 MB
RELAY_S = 3600.0  # after which a job ends that nobody may be reading any more
LEAST_S = 2.0  # between messages
BYTES_PER_S = 20_000  # on average, as the log lies on the head's disk


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new since the message before."""

    name: str
    log: str
    """Where the sweep's log lies."""
    selection: SelectionConfig
    status: str
    progress: Progress | None
    curves: tuple[Curve, ...] = ()
    """Those that changed."""
    story: tuple[str, ...] = ()
    """Lines that came."""
    page: tuple[str, str] | None = None
    """Its version, and the page; None: there is none that is new."""
    board: Leaderboard | None = None
    """How it stands, once it has ended."""


def relay(watched: Watched, say: Callable[[str], None], *, pages: bool) -> None:
    """Say what is new, again and again, until the sweep has ended or RELAY_S are over."""
    until = time.monotonic() + RELAY_S
    known: dict[str, Curve] = {}
    lines, version, page_due = 0, None, time.monotonic()
    while time.monotonic() < until:
        look = watched.look()
        ended = look.status != "running"
        sent = 0
        if look.version != version or ended:
            draws = pages and (ended or time.monotonic() >= page_due)
            news = News(
                name=watched.name,
                log=watched.log,
                selection=watched.selection,
                status=look.status,
                progress=look.progress,
                curves=tuple(each for each in look.curves if each != known.get(each.id)),
                story=tuple(look.story[lines:]),
                page=(watched.page_version(), watched.page()) if draws else None,
                board=watched.board() if ended else None,
            )
            for frame in frames(news):
                say(frame)
                sent += len(frame)
            if draws:  # the rest is small, and does not wait for it
                page_due, sent = time.monotonic() + sent / BYTES_PER_S, 0
            known = {each.id: each for each in look.curves}
            lines, version = len(look.story), look.version
        if ended:
            return
        time.sleep(max(LEAST_S, sent / BYTES_PER_S))


def frames(news: News) -> Iterator[str]:
    """Lines of PART characters at most, each with its number and how many there are."""
    packed = zlib.compress(json.dumps(to_json(news), allow_nan=False).encode())
    text = base64.b64encode(packed).decode()
    parts = [text[at : at + PART] for at in range(0, len(text), PART)]
    for number, part in enumerate(parts, 1):
        yield f"{MARK} {number}/{len(parts)} {part}"


@dataclass
class Incoming:
    """Puts lines together."""

    _parts: list[str] = field(default_factory=list)

    def add(self, line: str) -> News | None:
        """The message of which this was the last line."""
        mark, _, rest = line.partition(" ")
        if mark != MARK:
            return None
        number, _, part = rest.partition(" ")
        at, _, of = number.partition("/")
        if at == "1":
            self._parts = []
        self._parts.append(part)
        if at != of or len(self._parts) != int(of):
            return None
        content = json.loads(zlib.decompress(base64.b64decode("".join(self._parts))))
        return from_json(News, content, "what the cluster's job says")


class Relayed:
    """What `Watched` is of a folder, of what a relay has said so far."""

    looks_every_s = 0.5

    def __init__(self) -> None:
        self.heard = False
        """Whether the job that speaks now has said anything."""
        self._changed = threading.Condition()
        self._news: News | None = None
        self._curves: dict[str, Curve] = {}
        self._story: list[str] = []
        self._page: tuple[str, str] | None = None
        self._messages = 0
        self._incoming = Incoming()
        self._error: Exception | None = None

    def take(self, line: str) -> None:
        """A line of the job's log."""
        news = self._incoming.add(line)
        if news is None:
            return
        with self._changed:
            if not self.heard:  # what was said before is shown until then
                self._curves, self._story = {}, []
            self.heard, self._news = True, news
            self._curves |= {curve.id: curve for curve in news.curves}
            self._story += news.story
            self._page = news.page or self._page
            self._messages += 1
            self._changed.notify_all()

    def start_over(self) -> None:
        """Another job will say all from the beginning."""
        self.heard = False

    def fail(self, error: Exception) -> None:
        """Nothing more comes."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        return self._news is not None and self._news.board is not None

    def _known(self) -> News:
        """The last message; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._news is not None or self._error is not None)
            if self._error is not None and not self.ended:
                raise self._error
            assert self._news is not None
            return self._news

    @property
    def name(self) -> str:
        return self._known().name

    @property
    def log(self) -> str:
        return self._known().log

    @property
    def selection(self) -> SelectionConfig:
        return self._known().selection

    def look(self) -> Look:
        news = self._known()
        with self._changed:
            curves = [self._curves[trial] for trial in sorted(self._curves)]
            story = list(self._story)
            messages = self._messages
        return Look(
            status=news.status, curves=curves, progress=news.progress, story=story, news=messages
        )

    def page_version(self) -> str:
        return self._drawn()[0]

    def page(self) -> str:
        return self._drawn()[1]

    def _drawn(self) -> tuple[str, str]:
        self._known()
        if self._page is None:
            raise InputError("the job was not asked for pages")
        return self._page

    def board(self) -> Leaderboard | None:
        """None: the sweep goes on."""
        return self._known().board
