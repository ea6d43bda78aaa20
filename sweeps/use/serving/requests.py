"""What clients may ask for, as OpenAI's interface has it, and what they are told instead.

What is not done is refused: a setting that is silently left out gives answers that nobody asked
for.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainables.data.rows import shorten


class Refused(Exception):
    """A request that cannot be answered."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, object]:
        """In OpenAI's form."""
        kinds = {401: "authentication_error", 500: "server_error", 503: "server_error"}
        error = {
            "message": str(self),
            "type": kinds.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


Asked = TypeVar("Asked", bound=BaseModel)

Zero = Annotated[float | None, Field(ge=0, le=0)]
"""A setting that is not done: only its neutral value is taken."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    include_usage: bool = False


class Sampled(_Request):
    """What both kinds of completions have."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    user: str | None = None
    """Changes no answer, here as there."""

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, given))

    @property
    def tokens(self) -> int | None:
        return self.max_tokens

    @property
    def tells_usage(self) -> bool:
        """At the end of a stream."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampled):
    """POST /v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: dict[str, Literal["text"]] | None = None

    @property
    def tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """POST /v1/completions"""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ClassifyRequest(_Request):
    """POST /classify: texts, or rows with the columns that the model was trained on."""

    model: str | None = None
    input: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]

    @property
    def inputs(self) -> Sequence[str | dict[str, Any]]:
        return self.input if isinstance(self.input, list) else [self.input]


def parsed(kind: "type[Asked]", body: object) -> "Asked":
    """Raises Refused with the first thing that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise Refused(400, *_first_fault(kind, error.errors()[0])) from None


def _first_fault(kind: type[BaseModel], fault: Mapping[str, Any]) -> tuple[str]:
    where = ".".join(str(part) for part in fault.get("loc", ())) or "the body"
    match fault.get("type"):
        case "extra_forbidden":
            known = ", ".join(kind.model_fields)
            return (f"{where}: not supported; supported are {known}",)
        case "missing":
            return (f"{where}: is required",)
    return (f"{where}: {fault.get('msg')}, got {shorten(fault.get('input'))}",)
