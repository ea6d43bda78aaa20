"""Answers in the forms of OpenAI's interface: whole, and in pieces as they are written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.use.generation import Reply, Token

Json = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What all pieces of an answer have in common."""

    id: str
    created: int
    model: str


class Stream(Protocol):
    def opened(self) -> Iterator[Json]:
        """Before anything is written."""
        ...

    def news(self) -> Iterator[Json]:
        """What was written since; last of all why it ended."""
        ...


class Form(Protocol):
    prefix: str

    def whole(self, head: Head, replies: Sequence[Reply]) -> Json: ...

    def chunk(self, head: Head, choices: list[Json]) -> Json: ...

    def stream(self, head: Head, index: int, reply: Reply) -> Stream: ...


def usage(replies: Sequence[Reply]) -> Json:
    """Tokens."""
    given = sum(len(reply.prompt.ids) for reply in replies)
    written = sum(len(reply.tokens) for reply in replies)
    return {
        "prompt_tokens": given,
        "completion_tokens": written,
        "total_tokens": given + written,
    }


def _body(head: Head, kind: str, choices: list[Json]) -> Json:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }


class Chat:
    prefix = "chatcmpl"

    def whole(self, head: Head, replies: Sequence[Reply]) -> Json:
        choices: list[Json] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": _logprobs(reply, reply.tokens),
                "finish_reason": reply.finish,
            }
            for index, reply in enumerate(replies)
        ]
        return {**_body(head, "chat.completion", choices), "usage": usage(replies)}

    def chunk(self, head: Head, choices: list[Json]) -> Json:
        return _body(head, "chat.completion.chunk", choices)

    def stream(self, head: Head, index: int, reply: Reply) -> Stream:
        return _ChatStream(self, head, index, reply)


class Completion:
    prefix = "cmpl"

    def whole(self, head: Head, replies: Sequence[Reply]) -> Json:
        choices = [
            _text_choice(index, reply.text, reply.finish) for index, reply in enumerate(replies)
        ]
        return {**_body(head, "text_completion", choices), "usage": usage(replies)}

    def chunk(self, head: Head, choices: list[Json]) -> Json:
        return _body(head, "text_completion", choices)

    def stream(self, head: Head, index: int, reply: Reply) -> Stream:
        return _TextStream(self, head, index, reply)


def _text_choice(index: int, text: str, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


@dataclass
class _Told:
    """Of one reply, and how much of it has been told."""

    form: Form
    head: Head
    index: int
    reply: Reply
    characters: int = 0
    tokens: int = 0
    ended: bool = field(default=False)

    def fresh(self) -> str:
        text = self.reply.text[self.characters :]
        self.characters += len(text)
        return text

    def fresh_tokens(self) -> list[Token]:
        found = self.reply.tokens[self.tokens :]
        self.tokens += len(found)
        return found

    def ends(self) -> bool:
        """Once."""
        is_now = self.reply.finish is not None and not self.ended
        self.ended = self.ended or is_now
        return is_now


class _ChatStream(_Told):
    def opened(self) -> Iterator[Json]:
        yield self._chunk({"role": "assistant", "content": ""}, None)

    def news(self) -> Iterator[Json]:
        finish = self.reply.finish  # before the text: what is written after it waits for the next
        if text := self.fresh():
            logprobs = _logprobs(self.reply, self.fresh_tokens())
            yield self._chunk({"content": text}, None, logprobs)
        if finish is not None and self.ends():
            yield self._chunk({}, finish)

    def _chunk(self, delta: Json, finish: str | None, logprobs: Json | None = None) -> Json:
        choice: Json = {
            "index": self.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return self.form.chunk(self.head, [choice])


class _TextStream(_Told):
    def opened(self) -> Iterator[Json]:
        yield from ()

    def news(self) -> Iterator[Json]:
        finish = self.reply.finish
        if text := self.fresh():
            yield self.form.chunk(self.head, [_text_choice(self.index, text, None)])
        if finish is not None and self.ends():
            yield self.form.chunk(self.head, [_text_choice(self.index, "", finish)])


def _logprobs(reply: Reply, tokens: Sequence[Token]) -> Json | None:
    if reply.sampling.top_logprobs is None:
        return None
    content = [
        {
            **_token(reply, token.id, token.logprob),
            "top_logprobs": [_token(reply, id, logprob) for id, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(reply: Reply, id: int, logprob: float) -> Json:
    text = str(reply.tokenizer.decode([id]))
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def classified(model: str, found: Sequence[Mapping[str, object]]) -> Json:
    """Answers of a model with a head."""
    data = [{"index": index, **answer} for index, answer in enumerate(found)]
    return {"object": "list", "model": model, "data": data}
