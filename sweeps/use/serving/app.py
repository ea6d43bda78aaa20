"""The server of a replica: OpenAI's interface over the models that it holds, by Ray Serve."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.serve.metrics import Counter
from starlette.exceptions import HTTPException

from sweeps.use.generation import Reply, Sampling
from sweeps.use.serving import answers
from sweeps.use.serving.models import Base, Classifier, Models, Served, Writer, load
from sweeps.use.serving.requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    Refused,
    Sampled,
    parsed,
)
from trainables.data.records import Record
from trainables.data.rows import BadRow
from trainables.evaluation.generation import Prompt
from trainables.models.files import quiet

Found = TypeVar("Found")

BATCH = 16
"""Requests that are answered side by side."""
WAIT_S = 0.01
"""For others to come, before a batch begins."""

app = FastAPI(title="finetune-sweeps", docs_url=None, redoc_url=None, openapi_url=None)


@app.exception_handler(Refused)
async def _refused(request: Request, error: Refused) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status)


@app.exception_handler(HTTPException)
async def _not_here(request: Request, error: HTTPException) -> JSONResponse:
    refused = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(refused.body(), status_code=error.status_code)


@app.exception_handler(Exception)
async def _broken(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(_server_error(error).body(), status_code=500)


def _server_error(error: Exception) -> Refused:
    first = (str(error).strip().splitlines() or [""])[0]
    return Refused(500, f"{type(error).__name__}: {first}")


class _Followed:
    """A reply, and somebody who waits for more of it."""

    def __init__(self, reply: Reply, base: Base) -> None:
        self.reply, self.base = reply, base
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def woken(self) -> None:
        await self._event.wait()
        self._event.clear()


def _forget(work: "asyncio.Future[Any]") -> None:
    """An error of what nobody waits for any more is no warning."""
    if not work.cancelled():
        work.exception()


def _cancel(replies: Sequence[Reply]) -> None:
    for reply in replies:
        if reply.finish is None:
            reply.cancelled = True


def _attempted(of: "Callable[[], Found]", param: str) -> "Found":
    """Raises Refused for what a row of the sweep's data would be refused for."""
    try:
        return of()
    except BadRow as error:
        message = str(error).removeprefix("request: ")
        code = "context_length_exceeded" if "tokens, and the model takes" in message else None
        raise Refused(400, message, param=param, code=code) from None


def _event(body: object) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


# `ingress` copies the routes with what the module holds so far: their helpers must stand above
@serve.deployment
@serve.ingress(app)
class Server:
    """One replica."""

    def __init__(
        self, served: Sequence[Served], threads: int, token: str | None, most_tokens: int
    ) -> None:
        """threads: of torch. token: that clients must have. most_tokens: of an answer, and of one
        whose request names no number.
        """
        torch.set_num_threads(threads)
        quiet()
        self._files = ExitStack()
        self._models: Models = load(served, self._files)
        self._token, self._most = token, most_tokens
        self._started = int(time.time())
        self._written = Counter(
            "sweeps_generated_tokens", description="Tokens written.", tag_keys=("model",)
        )

    # --- routes ---

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(self, request: Request) -> dict[str, object]:
        self._admit(request)
        return {"object": "list", "data": [self._card(name) for name in self._models]}

    @app.get("/v1/models/{name}")
    async def one_model(self, request: Request, name: str) -> dict[str, object]:
        self._admit(request)
        self._named(name)
        return self._card(name)

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Any:
        asked = parsed(ChatRequest, await self._body(request))
        writer = self._writer(asked.model)
        if not writer.prompts.takes_messages:
            raise Refused(
                400,
                f"{asked.model} was trained on texts, not on conversations: use /v1/completions",
                param="model",
            )
        prompt = _attempted(lambda: writer.prompts.of_messages(asked.messages), "messages")
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refused(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
        reply = writer.reply(prompt, self._sampling(asked, writer, prompt, top))
        return await self._answered(asked, writer, [reply], answers.Chat())

    @app.post("/v1/completions")
    async def completions(self, request: Request) -> Any:
        asked = parsed(CompletionRequest, await self._body(request))
        writer = self._writer(asked.model)
        replies = []
        for text in asked.prompts:
            prompt = _attempted(lambda text=text: writer.prompts.of_text(text), "prompt")
            replies.append(writer.reply(prompt, self._sampling(asked, writer, prompt, None)))
        return await self._answered(asked, writer, replies, answers.Completion())

    @app.post("/classify")
    async def classify(self, request: Request) -> dict[str, object]:
        asked = parsed(ClassifyRequest, await self._body(request))
        classifier = self._classifier(asked.model)
        records = [
            _attempted(lambda each=each, i=i: classifier.record(each, f"input[{i}]"), "input")
            for i, each in enumerate(asked.inputs)
        ]
        found = await asyncio.gather(
            *(self._classified((classifier.name, record)) for record in records)
        )
        return answers.classified(classifier.name, found)

    # --- who may ask for what ---

    def _admit(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._token is None or hmac.compare_digest(
            given.encode(), f"Bearer {self._token}".encode()
        ):
            return
        what = "a wrong token" if given else "no token"
        raise Refused(
            401,
            f"{what} was given; the header must be Authorization: Bearer TOKEN",
            code="invalid_api_key",
        )

    async def _body(self, request: Request) -> object:
        """Of JSON that says so: a page in a browser cannot send it to another origin unasked."""
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":
            raise Refused(400, f"content-type: must be application/json, got {kind or 'none'}")
        try:
            return json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from None

    def _named(self, name: str) -> Writer | Classifier:
        if name not in self._models:
            raise Refused(
                404,
                f"there is no model {name!r}; there are {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def _writer(self, name: str) -> Writer:
        found = self._named(name)
        if isinstance(found, Writer):
            return found
        raise Refused(400, f"{name} writes no text: use /classify", param="model")

    def _classifier(self, name: str | None) -> Classifier:
        known = [each for each in self._models.values() if isinstance(each, Classifier)]
        found = self._named(name) if name else known[0] if len(known) == 1 else None
        if isinstance(found, Classifier):
            return found
        names = ", ".join(each.name for each in known) or "none"
        message = f"model: must name one that classifies; there are {names}"
        raise Refused(400, message, param="model")

    def _card(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "finetune-sweeps",
            "root": self._models[name].words,
        }

    def _sampling(
        self, asked: Sampled, writer: Writer, prompt: Prompt, top: int | None
    ) -> Sampling:
        """Raises Refused where there is no room for what is asked for."""
        room = writer.prompts.room(prompt)
        wanted = asked.tokens
        if wanted is not None and wanted > min(room, self._most):
            limit = (
                f"the prompt has {len(prompt.ids)} tokens, which leaves {room}"
                if room < self._most
                else f"this server writes {self._most} at most"
            )
            raise Refused(400, f"max_tokens: {wanted} is too many: {limit}", param="max_tokens")
        return Sampling(
            max_new_tokens=wanted or min(room, self._most),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stops,
            top_logprobs=top,
        )

    # --- answers ---

    async def _answered(
        self, asked: Sampled, writer: Writer, replies: Sequence[Reply], form: answers.Form
    ) -> Any:
        head = answers.Head(
            id=f"{form.prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=asked.model
        )
        if asked.stream_options is not None and not asked.stream:
            raise Refused(400, "stream_options: needs stream: true", param="stream_options")
        if asked.stream:
            events = self._events(asked, writer.base, replies, form, head)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            await asyncio.gather(*(self._end(_Followed(each, writer.base)) for each in replies))
        finally:
            _cancel(replies)
        self._count(replies, asked.model)
        return form.whole(head, replies)

    async def _end(self, followed: _Followed) -> None:
        async for _ in self._steps(followed):
            pass

    async def _events(
        self,
        asked: Sampled,
        base: Base,
        replies: Sequence[Reply],
        form: answers.Form,
        head: answers.Head,
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        try:
            for index, reply in enumerate(replies):
                stream = form.stream(head, index, reply)
                for chunk in stream.opened():
                    yield _event(chunk)
                async for _ in self._steps(_Followed(reply, base)):
                    for chunk in stream.news():
                        yield _event(chunk)
            if asked.tells_usage:
                yield _event({**form.chunk(head, []), "usage": answers.usage(replies)})
            yield "data: [DONE]\n\n"
        except Exception as error:  # the headers are sent: what is wrong can only be told here
            yield _event(_server_error(error).body())
        finally:
            _cancel(replies)
            self._count(replies, asked.model)

    def _count(self, replies: Sequence[Reply], model: str) -> None:
        if written := sum(len(reply.tokens) for reply in replies):
            self._written.inc(written, tags={"model": model})

    async def _steps(self, followed: _Followed) -> AsyncIterator[None]:
        """Once for each time that there may be more of a reply; raises what went wrong."""
        work = asyncio.ensure_future(self._write(followed))
        work.add_done_callback(lambda _: followed.wake())
        try:
            is_done = False
            while not is_done:
                await followed.woken()
                if work.done() and (error := work.exception()) is not None:
                    raise error
                is_done = followed.reply.is_done  # before all that there is, is told
                yield
        finally:
            if not work.done():
                work.add_done_callback(_forget)

    # --- batches ---

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def _write(self, batch: list[_Followed]) -> list[None]:
        """Each reply ends when it does, whatever the others of the batch do."""
        loop = asyncio.get_running_loop()
        for each in batch:
            each.reply.heard = partial(loop.call_soon_threadsafe, each.wake)
        for base in dict.fromkeys(each.base for each in batch):
            waited = [e.reply for e in batch if e.base is base and not e.reply.is_done]
            if waited:
                await asyncio.to_thread(base.write, waited)
        return [None] * len(batch)

    @serve.batch(max_batch_size=4 * BATCH, batch_wait_timeout_s=WAIT_S)
    async def _classified(self, batch: list[tuple[str, Record]]) -> list[dict[str, object]]:
        found: dict[int, dict[str, object]] = {}
        for name in dict.fromkeys(name for name, _ in batch):
            at = [i for i, (other, _) in enumerate(batch) if other == name]
            classifier = self._models[name]
            assert isinstance(classifier, Classifier)
            answered = await asyncio.to_thread(classifier.answer, [batch[i][1] for i in at])
            found |= dict(zip(at, answered, strict=True))
        return [found[i] for i in range(len(batch))]
