"""A language model as the judge of answers (Zheng et al. 2023), behind an OpenAI-compatible URL."""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from trainables.errors import InputError, did_you_mean
from trainables.metrics import Answer
from trainables.metrics.completions import Service, Usage

FIELDS = ("prompt", "answer", "reference")
FIELD = re.compile(r"\{(\w+)\}")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
PROMPT = """\
You judge the answer of an assistant.

[Task]
{prompt}

[Reference answer]
{reference}

[Answer to judge]
{answer}

How well does the answer do the task, with the reference as a guide to what is right? Length by
itself is no merit. Reply with one number from {low} to {high} alone, where {high} is the best.
"""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The number that a model gives to each answer, on its scale; NaN where it gave none.

    The model is asked at temperature 0 and with a seed, which services keep to as well as they can;
    what was answered is kept in `cache`, and never asked again.
    """

    name: str = "judge"
    url: str
    """`http://localhost:8000/v1`."""
    model: str
    prompt: str = PROMPT
    """With {prompt}, {answer} and {reference} where these are to stand."""
    key_env: str | None = None
    """The environment variable that holds the key; OPENAI_API_KEY where it is set."""
    scale: tuple[float, float] = (1, 5)
    lower_is_better: bool = False
    requests_per_minute: float | None = None
    parallel: int = 4
    """Requests at once."""
    cache: Path | None = None
    """Folder; None: `finetune-sweeps/judge` of the user's caches."""
    price_per_million: tuple[float, float] | None = None
    """Of tokens that are read, and that are written."""
    seed: int = 0
    max_tokens: int | None = None
    timeout: float = 60.0
    """Seconds for one answer."""
    tries: int = 6
    backoff: float = 1.0
    """Seconds before the second try, doubled before each further one."""
    usage: Usage = field(default_factory=Usage, init=False, compare=False)
    """Of all calls of `score`."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        _check_prompt(self.prompt)
        _check_numbers(self)
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise InputError(f"judge.key_env: the environment variable {self.key_env} is not set")
        self._make_cache()

    def _make_cache(self) -> None:
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"judge.cache: cannot make {str(self._cache)!r}: {error}") from None

    @property
    def _cache(self) -> Path:
        if self.cache is not None:
            return self.cache.absolute()
        root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        return Path(root) / "finetune-sweeps" / "judge"

    @property
    def service(self) -> Service:
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return Service(
            url=self.url,
            parameters={"model": self.model, "temperature": 0, "seed": self.seed, **limit},
            key_env=self.key_env,
            timeout=self.timeout,
            requests_per_minute=self.requests_per_minute,
            parallel=self.parallel,
            tries=self.tries,
            backoff=self.backoff,
            cache=self._cache,
            price_per_million=self.price_per_million,
        )

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """A service that fails costs numbers, never an exception: NaN, and one line is logged."""
        asked = [filled(self.prompt, answer, self.scale) for answer in answers]
        replies = self.service.ask(asked, self.usage)
        values = np.array(
            [math.nan if reply is None else number_in(reply, self.scale) for reply in replies],
            dtype=np.float64,
        )
        lost = sum(reply is None for reply in replies)
        self.usage.unparsed += int(np.isnan(values).sum()) - lost
        if lost:
            logger.warning(
                "%s: %d of %d answers were not judged: %s",
                self.name,
                lost,
                len(answers),
                self.usage.problem,
            )
        return values

    def summary(self) -> str:
        """What was asked so far and what it cost, on one line."""
        of = self.usage
        cost = "" if of.cost is None else f", cost {of.cost:.4f}"
        found = (
            f"{self.name}: {of.requests} requests, {of.cached} from the cache,"
            f" {of.prompt_tokens} tokens read and {of.completion_tokens} written{cost}"
        )
        if of.unparsed:
            found += f"; {of.unparsed} replies had no number from {_range(self.scale)}"
        if of.failed:
            found += f"; {of.failed} requests failed: {of.problem}"
        return found


def filled(template: str, answer: Answer, scale: tuple[float, float]) -> str:
    """What the fields hold is not itself read as a template."""
    low, high = (f"{end:g}" for end in scale)
    values = {
        "prompt": answer.prompt,
        "answer": answer.text,
        "reference": answer.reference,
        "low": low,
        "high": high,
    }
    return FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def number_in(reply: str, scale: tuple[float, float]) -> float:
    """The last number within the scale, NaN where there is none. That the scale is named (`4/5`, `4
    out of 5`, `from 1 to 5`) is not an answer.
    """
    low, high = (re.escape(f"{end:g}") for end in scale)
    reply = re.sub(rf"(?<=\d)\s*(?:/|out of)\s*{high}(?![\w]|\.\d)", " ", reply)
    reply = re.sub(rf"(?<![\w.]){low}\s*(?:-|–|to|and)\s*{high}(?![\w]|\.\d)", " ", reply)
    values = [float(found) for found in NUMBER.findall(reply)]
    within = [value for value in values if scale[0] <= value <= scale[1]]
    return within[-1] if within else math.nan


def _range(scale: tuple[float, float]) -> str:
    return f"{scale[0]:g} to {scale[1]:g}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        has_user = parts.username is not None
        _ = parts.port  # raises where it is no number
    except ValueError:
        is_usable = has_user = False
    if has_user:
        raise InputError(
            "judge.url: must hold no user and password: name the variable of the key by `key_env`"
        )
    if not is_usable:
        raise InputError(f"judge.url: must be like http://localhost:8000/v1, got {url!r}")


def _check_prompt(prompt: str) -> None:
    named = FIELD.findall(prompt)
    for name in named:
        if name not in (*FIELDS, "low", "high"):
            raise InputError(
                f"judge.prompt: must hold none but {{prompt}}, {{answer}}, {{reference}}, {{low}}"
                f" and {{high}}, got {{{name}}}.{did_you_mean(name, FIELDS)}"
            )
    if "answer" not in named:
        raise InputError("judge.prompt: must hold {answer}, where the answer is to stand")


def _check_numbers(judge: Judge) -> None:
    low, high = judge.scale
    if not -math.inf < low < high < math.inf:
        raise InputError(f"judge.scale: must be like [1, 5], got {list(judge.scale)}")
    for name in ("requests_per_minute", "timeout", "max_tokens"):
        value = getattr(judge, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"judge.{name}: must be above 0, got {value}")
    for name in ("parallel", "tries"):
        if getattr(judge, name) < 1:
            raise InputError(f"judge.{name}: must be at least 1, got {getattr(judge, name)}")
    if not 0 <= judge.backoff < math.inf:
        raise InputError(f"judge.backoff: must be 0 or more, got {judge.backoff}")
    if judge.price_per_million is not None and not min(judge.price_per_million) >= 0:
        raise InputError(
            f"judge.price_per_million: must be 0 or more, got {list(judge.price_per_million)}"
        )
