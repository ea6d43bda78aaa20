"""Text from a language model: several prompts at once, each with its own way of choosing tokens.

transformers' `generate` keeps the cache and the batch; which token comes next in each row, and when
a row has ended, is chosen here. Letters of shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sweeps.use.prompts import Prompt, Stops

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
    stops: Stops
    tokenizer: "PreTrainedTokenizerBase"
    adapter: str | None = None
    """Name of the adapter that it is written with, where a model has several."""
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

    def take(self, token: Token) -> None:
        """The next one."""
        if token.id in self.stops.tokens:
            self._end("stop")
            return
        self.tokens.append(token)
        text = self._decoded()
        stops = (*self.stops.texts, *self.sampling.stop)
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
    heard: Callable[[], None] = lambda: None,
) -> None:
    """Write all `replies`, side by side. A reply's tokens do not depend on those beside it but for
    rounding. heard: called after each token of all.
    """
    device = next(model.parameters()).device
    longest = max(len(reply.prompt.ids) for reply in replies)
    ids_BT = torch.full((len(replies), longest), pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    is_decoder = not model.config.is_encoder_decoder
    for row, reply in enumerate(replies):
        size = len(reply.prompt.ids)
        # a decoder goes on from the last token, an encoder reads rows as it was trained to
        at = slice(longest - size, None) if is_decoder else slice(size)
        ids_BT[row, at], mask_BT[row, at] = torch.tensor(reply.prompt.ids), 1
    choice = _Choice(replies)
    adapters: dict[str, Any] = {}
    if any(reply.adapter is not None for reply in replies):
        adapters = {"adapter_names": [reply.adapter or "__base__" for reply in replies]}
    with torch.no_grad():
        model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            generation_config=_plain(replies, pad_token_id),
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([_Listener(replies, choice, heard)]),
            **adapters,
        )


def _plain(replies: Sequence[Reply], pad_token_id: int) -> GenerationConfig:
    """Nothing but the model's own probabilities, whatever the base recommends."""
    return GenerationConfig(
        max_new_tokens=max(reply.sampling.max_new_tokens for reply in replies),
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=pad_token_id,
        use_cache=True,
    )


class _Choice(LogitsProcessor):
    """Chooses the next token of each row, and leaves only that one possible."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies
        self._generators = [_generator(reply.sampling) for reply in replies]
        self.chosen: list[Token] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, V]."""
        likeliest_B = scores.argmax(dim=-1).tolist()
        self.chosen = [
            self._next(row, scores[row], likeliest_B[row]) for row in range(len(self._replies))
        ]
        ids = torch.tensor([[token.id] for token in self.chosen], device=scores.device)
        return torch.full_like(scores, -math.inf).scatter(1, ids, 0.0)

    def _next(self, row: int, scores_V: Tensor, likeliest: int) -> Token:
        reply = self._replies[row]
        if reply.is_done:
            return Token(id=likeliest)
        sampling, generator, found = reply.sampling, self._generators[row], likeliest
        if generator is not None:
            found = _drawn(scores_V.double().cpu(), sampling, generator)
        if sampling.top_logprobs is None:
            return Token(id=found)
        logprobs_V = scores_V.double().log_softmax(-1)
        top = logprobs_V.topk(sampling.top_logprobs)
        return Token(
            id=found,
            logprob=float(logprobs_V[found]),
            top=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        )


def _generator(sampling: Sampling) -> torch.Generator | None:
    """None: nothing is drawn."""
    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _drawn(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token, by chance."""
    shares_V = (scores_V / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, ids = shares_V.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= sampling.top_p] = 0  # the likeliest always stays
        shares_V = torch.zeros_like(shares_V).scatter(0, ids, ordered)
    return int(torch.multinomial(shares_V, 1, generator=generator))


class _Listener(StoppingCriteria):
    """Hands the tokens to the replies."""

    def __init__(
        self, replies: Sequence[Reply], choice: _Choice, heard: Callable[[], None]
    ) -> None:
        self._replies, self._choice, self._heard = replies, choice, heard

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - a tensor is what is read
        self, input_ids: Tensor, scores: Tensor, **kwargs: object
    ) -> Tensor:
        for reply, token in zip(self._replies, self._choice.chosen, strict=True):
            if not reply.is_done:
                reply.take(token)
        self._heard()
        done = [reply.is_done for reply in self._replies]
        return torch.tensor(done, device=input_ids.device)
