"""Answers to requests while `trainables.engine.decoding` writes them: each with its own way of
choosing tokens, its text so far, the texts that end it, and whoever follows it.

Letters of shapes: V vocabulary.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from trainables.engine.decoding import Decoding, Padding, generate_each
from trainables.evaluation.generation import Prompt
from trainables.metrics.config import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HALF = "\ufffd"
"""What a part of a character decodes to."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are chosen."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 1.0
    """Only of the likeliest that have this share together."""
    seed: int | None = None
    """None: another for each answer."""
    stop: tuple[str, ...] = ()
    """Texts at which it ends, which are no part of it."""
    top_logprobs: int | None = None
    """None: log-probabilities are not kept; else with those of so many likeliest tokens."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One that was written."""

    id: int
    logprob: float = 0.0
    """In nats, before temperature and top_p; with `top`: kept where they are asked for."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(kw_only=True)
class Reply:
    """What is written for one prompt, while it is written and after."""

    prompt: Prompt
    sampling: Sampling
    stop: frozenset[int]
    """Tokens that end it, and are no part of it."""
    tokenizer: "PreTrainedTokenizerBase"
    adapter: str | None = None
    """Name of the adapter that it is written with, where a model has several."""
    heard: Callable[[], object] = lambda: None
    """Called when there is more of it, by the thread that writes."""
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    """So far, without what may yet turn out to be a stop."""
    finish: Literal["stop", "length"] | None = None
    """Why it ended; None: it has not."""
    cancelled: bool = False
    """Nobody waits for it any more."""

    @property
    def is_done(self) -> bool:
        return self.finish is not None or self.cancelled

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @cached_property
    def decoding(self) -> Decoding:
        how = self.sampling
        return Decoding(
            settings=GenerationConfig(
                max_new_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p
            ),
            stop=self.stop,
            seed=secrets.randbits(63) if how.seed is None else how.seed,
        )

    def take(self, token: Token) -> None:
        """The next one."""
        if token.id in self.stop:
            self._end("stop")
            return
        self.tokens.append(token)
        text, stops = self._decoded(), self.sampling.stop
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            self.text, self.finish = text[: min(found)], "stop"
        elif len(self.tokens) >= self.sampling.max_new_tokens:
            self._end("length")
        elif not text.endswith(HALF):
            self.text = text[: len(text) - max((_begun(text, stop) for stop in stops), default=0)]

    def _end(self, why: Literal["stop", "length"]) -> None:
        self.text, self.finish = self._decoded(), why

    def _decoded(self) -> str:
        before = list(self.prompt.before)
        if not before:
            return self._decode(self.ids)
        return self._decode(before + self.ids)[len(self._decode(before)) :]

    def _decode(self, ids: list[int]) -> str:
        found = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(found, str), "one row is one text"
        return found


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


def generate(
    model: "PreTrainedModel",
    replies: Sequence[Reply],
    pad_token_id: int,
    *,
    adapters: Sequence[str] | None = None,
    padding: Padding | None = None,
) -> None:
    """Write all `replies`, side by side. A reply's tokens do not depend on those beside it but for
    rounding. adapters, padding: as of `generate_each`.
    """

    def on_token(position: int, id: int, scores_V: Tensor) -> bool:
        reply = replies[position]
        if not reply.is_done:
            reply.take(_token(id, scores_V, reply.sampling.top_logprobs))
            reply.heard()
        return reply.is_done

    generate_each(
        model,
        [reply.prompt for reply in replies],
        [reply.decoding for reply in replies],
        pad_token_id=pad_token_id,
        adapters=adapters,
        padding=padding,
        on_token=on_token,
    )


def _token(id: int, scores_V: Tensor, top_logprobs: int | None) -> Token:
    if top_logprobs is None:
        return Token(id=id)
    logprobs_V = scores_V.double().log_softmax(-1)
    top = logprobs_V.topk(top_logprobs)
    return Token(
        id=id,
        logprob=float(logprobs_V[id]),
        top=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
    )
