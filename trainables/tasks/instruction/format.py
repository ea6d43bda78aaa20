"""Rows of instruction: conversations, and which of their tokens the assistant wrote."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import (
    IGNORED,
    Encoded,
    Encoding,
    Record,
    batched,
    duplicate_key,
)
from trainables.data.records import (
    group_and_slice as groups,
)
from trainables.data.rows import is_missing, shorten
from trainables.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Table = object

Message = dict[str, Any]
"""As chat templates take it: OpenAI's format, whose keys a template may ask for by any name."""

ROLES = ("system", "developer", "user", "assistant", "tool")


def default_chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What conversations are rendered with where the tokenizer has no chat template: plain text,
    each turn under its role, each assistant's turn closed by the end-of-sequence token. It belongs
    to a model trained with it: save it with the tokenizer.
    """
    first = tokenizer("a", verbose=False).input_ids[:1]
    begin = (
        "{{ bos_token }}"
        if tokenizer.bos_token is not None and first == [tokenizer.bos_token_id]
        else ""
    )
    # Chat templates are rendered with trim_blocks, which eats a line break after a block: hence {{
    # '\n' }}.
    return (
        begin + "{% if tools %}<|tools|>{{ '\\n' }}{{ tools | tojson }}{{ '\\n' }}{% endif %}"
        "{% for message in messages %}"
        "<|{{ message.role }}|>{{ '\\n' }}{{ message.content | trim }}"
        "{% if message.tool_calls %}{% if message.content | trim %}{{ '\\n' }}{% endif %}"
        "{{ message.tool_calls | map(attribute='function') | list | tojson }}{% endif %}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A checked message, as far as one must know who wrote what."""

    role: str
    content: str
    calls: Any
    """Its tool calls, or ""."""
    has_weight: bool
    """OpenAI's format leaves out an assistant's message by giving it weight 0."""

    @classmethod
    def of(cls, message: Message) -> "Turn":
        return cls(
            role=message["role"],
            content=message["content"],
            calls=message.get("tool_calls", ""),
            has_weight=message.get("weight", 1) != 0,
        )

    @property
    def is_assistants(self) -> bool:
        return self.role == "assistant"

    @property
    def is_learnt(self) -> bool:
        return self.is_assistants and self.has_weight

    @property
    def called(self) -> list[str]:
        """Names of the functions that it calls."""
        return [call["function"]["name"] for call in self.calls]


class Chat:
    default_length = 1024

    def read(self, table: "Table", data: DataConfig) -> tuple[str, list[Record]]:
        name, convert = _recognise(table)
        records = []
        parts = groups(table, data), groups(table, data)
        for i, (row, group, part) in enumerate(zip(table.rows, *parts, strict=True)):
            value = convert(table, i, row)
            turns = [Turn.of(message) for message in value["messages"]]
            if not any(turn.is_learnt for turn in turns):
                raise table.error(i, "no assistant message to learn from")
            said = [
                text for turn in turns for text in (turn.role, turn.content, json.dumps(turn.calls))
            ]
            first_user = next((t.content for t in turns if t.role == "user"), turns[-1].content)
            records.append(
                Record(
                    value=value,
                    place=table.place(i),
                    key=duplicate_key(*said),
                    shown=first_user,
                    group=group,
                    slice=part,
                )
            )
        return name, records

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose their end; a row that has no token of the assistant left
        is dropped.
        """
        input_ids, labels, origin, truncated, dropped, endless = [], [], [], 0, 0, 0
        for number, (ids, mask, endless_answers) in enumerate(_tokenise(records, tokenizer)):
            endless += endless_answers
            if len(ids) > encoding.max_length:
                ids, mask = ids[: encoding.max_length], mask[: encoding.max_length]
                truncated += 1
            if not mask[1:].any():
                dropped += 1
                continue
            input_ids.append(ids)
            origin.append(number)
            labels.append(np.where(mask, ids, IGNORED).astype(np.int32))
        if not input_ids:
            raise InputError(
                f"data.max_length: in none of {len(records)} rows ({records[0].place} and on) do"
                f" the first {encoding.max_length} tokens reach the assistant's answer; raise it"
            )
        return Encoded(
            input_ids=input_ids,
            labels=labels,
            origin=np.array(origin),
            truncated=truncated,
            dropped=dropped,
            endless_answers=endless,
        )


# Reading: three formats, one shape.

Columns = Mapping[str, object]
Convert = Callable[[Any, int, Columns], dict[str, Any]]


def _recognise(table: "Table") -> tuple[str, Convert]:
    columns = table.columns()
    for needed, (name, convert) in FORMATS.items():
        if set(needed) <= set(columns):
            return name, convert
    wanted = [column for needed in FORMATS for column in needed]
    guess = next((hint for column in columns if (hint := did_you_mean(column, wanted))), "")
    raise InputError(
        f"{table.key}: {table.name}: not a format of instruction data; allowed are columns"
        " 'messages' (OpenAI chat), 'prompt' and 'completion', or 'instruction', 'output' and"
        f" perhaps 'input'; got {', '.join(columns)}.{guess}"
    )


def _from_messages(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    value = {"messages": _messages(table, index, row.get("messages"), "messages")}
    tools = _without_missing(row.get("tools"))
    if isinstance(
        tools, str
    ):  # Parquet files keep them as JSON, since no two tools have the same columns
        tools = _json(table, index, tools, "tools")
    if tools:
        value["tools"] = tools
    return value


def _from_prompt(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        return {
            "messages": (
                _messages(table, index, prompt, "prompt")
                + _messages(table, index, completion, "completion")
            )
        }
    return {
        "messages": [
            {"role": "user", "content": _text(table, index, row, "prompt")},
            {"role": "assistant", "content": _text(table, index, row, "completion")},
        ]
    }


def _from_instruction(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    question = _text(table, index, row, "instruction")
    extra = row.get("input")
    if not is_missing(extra) and extra != "":
        question += "\n\n" + _text(table, index, row, "input")
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _text(table, index, row, "output")},
        ]
    }


FORMATS: dict[tuple[str, ...], tuple[str, Convert]] = {
    ("messages",): ("messages", _from_messages),
    ("prompt", "completion"): ("prompt+completion", _from_prompt),
    ("instruction", "output"): ("instruction+input+output", _from_instruction),
}


def _text(table: "Table", index: int, row: Columns, column: str) -> str:
    text = row.get(column)
    if is_missing(text):
        raise table.error(index, f"{column!r} is missing")
    if not isinstance(text, str):
        raise table.error(
            index, f"{column!r} must be text, got {type(text).__name__} {shorten(text)}"
        )
    table.check_text(index, text, repr(column))
    return text


def _messages(table: "Table", index: int, messages: object, column: str) -> list[Message]:
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) for m in messages)
    ):
        raise table.error(
            index,
            f'{column!r} must be a list of messages like {{"role": "user", "content": ...}}, got'
            f" {shorten(messages)}",
        )
    return [
        _message(table, index, message, f"{column}[{number}]")
        for number, message in enumerate(messages)
    ]


def _message(table: "Table", index: int, given: object, where: str) -> Message:
    message = _without_missing(given)
    role = message.get("role")
    if role not in ROLES:
        raise table.error(
            index,
            f"{where}: role must be one of {', '.join(ROLES)}, got {shorten(role)}."
            + (did_you_mean(role, ROLES) if isinstance(role, str) else ""),
        )
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [
            _tool_call(table, index, call, f"{where}.tool_calls[{k}]")
            for k, call in enumerate(calls)
        ]
    may_be_empty = bool(calls) or role == "tool"  # a tool may well return nothing
    message["content"] = _content(table, index, message, where, may_be_empty)
    return message


def _content(table: "Table", index: int, message: Message, where: str, may_be_empty: bool) -> str:
    content = message.get("content", "")
    if isinstance(content, list):
        content = "".join(_text_part(table, index, part, where) for part in content)
    if not isinstance(content, str):
        raise table.error(
            index,
            f"{where}: content must be text, got {type(content).__name__} {shorten(content)}",
        )
    if content.strip():
        table.check_text(index, content, where)
    elif not may_be_empty:
        role = message.get("role")
        raise table.error(index, f"{where}: the content of the {role}'s message is empty")
    return content


def _text_part(table: "Table", index: int, part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise table.error(index, f"{where}: content may hold text parts only, got {shorten(part)}")
    return text


def _tool_call(table: "Table", index: int, call: object, where: str) -> dict[str, Any]:
    """Chat templates write the arguments out as JSON themselves; OpenAI's format has them as a
    string of JSON.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise table.error(
            index,
            f'{where}: must be like {{"type": "function", "function": {{"name": ..., "arguments":'
            f" ...}}}}, got {shorten(call)}",
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(table, index, arguments or "{}", f"{where}.function.arguments")
    return {**cast("Message", call), "function": {**function, "arguments": arguments}}


def _json(table: "Table", index: int, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise table.error(index, f"{where}: not JSON: {error.msg}: {shorten(text)}") from None


def _without_missing(value: Any) -> Any:
    """Without null entries: a Parquet reader fills every row's objects with the keys that other
    rows have.
    """
    if isinstance(value, dict):
        return {key: _without_missing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_missing(item) for item in value]
    return value


# Rendering, and finding what the assistant wrote.


class Span(NamedTuple):
    """What the assistant wrote in one turn of a rendered conversation: characters [start, end)."""

    start: int
    end: int
    has_end: bool
    """Whether they take in what the template closes the turn with."""


def _tokenise(
    records: list[Record], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield of each record its tokens int32 [T], the mask of the assistant's tokens bool [T], and
    how many of the assistant's turns no special token closes.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"model: {type(tokenizer).__name__} is a slow tokenizer, which cannot say which tokens"
            " the assistant's text became; instruction needs a fast one (a tokenizer.json)"
        )
    default = default_chat_template(tokenizer)
    specials = np.array(
        sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}), dtype=np.int64
    )
    for batch in batched(records, 200):
        rendered = [_rendered(record, tokenizer, default) for record in batch]
        tokens = tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for record, (text, spans), ids, offsets in zip(
            batch, rendered, tokens.input_ids, tokens.offset_mapping, strict=True
        ):
            row = _Tokens(
                text=text,
                ids=np.array(ids, dtype=np.int32),
                offsets=np.array(offsets, dtype=np.int64).reshape(-1, 2),
                specials=specials,
            )
            yield row.ids, *_mask(row, spans, record.place, tokenizer)


def _rendered(
    record: Record, tokenizer: "PreTrainedTokenizerBase", default: str
) -> tuple[str, list[Span]]:
    """The conversation as text, and what in it the assistant wrote. default: template of a
    tokenizer that has none.
    """
    from jinja2 import TemplateError

    tools = record.value.get("tools")
    template = tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else default
    talk = _Conversation(
        place=record.place,
        messages=record.value["messages"],
        tools=tools,
        tokenizer=tokenizer,
        template=template,
    )
    try:
        try:
            return _render(talk)
        # a template that joins the arguments of tool calls to its text, as DeepSeek's does
        except TypeError:
            messages = [_with_text_arguments(message) for message in talk.messages]
            return _render(replace(talk, messages=messages))
    except (TemplateError, TypeError) as error:
        raise InputError(
            f"{record.place}: the chat template refuses this conversation: {error}"
        ) from None


def _mask(
    row: "_Tokens", spans: list[Span], place: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[np.ndarray, int]:
    """The mask of the tokens of `spans` bool [T], and how many of them no special token closes."""
    mask = np.zeros(len(row.ids), dtype=bool)
    endless = 0
    for span in spans:
        first, last = _tokens_of(row, span, place, tokenizer)
        if not span.has_end:
            last = _end_of_turn(row, last, cast("int | None", tokenizer.eos_token_id))
        mask[first : last + 1] = True
        while last > first and row.is_blank(last):  # a line break after the end
            last -= 1
        endless += not row.is_special(last)
    return mask, endless


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message

    def in_text(function: dict[str, Any]) -> dict[str, Any]:
        return {**function, "arguments": json.dumps(function["arguments"])}

    calls = [{**call, "function": in_text(call["function"])} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


@dataclass(frozen=True, kw_only=True)
class _Conversation:
    """Messages, and the chat template that renders them."""

    place: str
    messages: list[Message]
    tools: Any
    tokenizer: "PreTrainedTokenizerBase"
    template: str

    @property
    def turns(self) -> list[Turn]:
        return [Turn.of(message) for message in self.messages]

    def rendered(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """`messages`, which are these or made of them, as text."""
        text = self.tokenizer.apply_chat_template(
            messages,
            tools=self.tools,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return cast("str", text)


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """A rendered conversation of T tokens."""

    text: str
    ids: np.ndarray
    """int32 [T]."""
    offsets: np.ndarray
    """Characters that each token became of, [start, end), int64 [T, 2]."""
    specials: np.ndarray
    """Ids of special tokens."""

    def is_special(self, position: int) -> bool:
        return self.ids[position] in self.specials

    def is_blank(self, position: int) -> bool:
        return not self.text[slice(*self.offsets[position])].strip()


def _render(talk: _Conversation) -> tuple[str, list[Span]]:
    """The conversation as text, and where the assistant's messages stand in it."""
    marks_spans = re.search(r"\{%-?\s*generation\s*-?%\}", talk.template)
    if marks_spans and all(turn.has_weight for turn in talk.turns):
        return _render_by_marks(talk)
    return _render_by_messages(talk)


def _render_by_messages(talk: _Conversation) -> tuple[str, list[Span]]:
    """Spans of a template that does not mark them: all that the model has to write after its
    prompt.

    That is the content and what a template puts between the two of its own (an empty thought, a
    channel).
    """
    turns, text = talk.turns, talk.rendered(talk.messages)
    plain = [i for i, turn in enumerate(turns) if turn.is_assistants and not turn.calls]
    spans = _align(text, talk, plain)
    for i, turn in enumerate(turns):
        if i in spans:
            spans[i] = _after_prompt(spans[i], _prompt(i, talk), text)
        elif turn.is_assistants:
            spans[i] = _turn(i, text, talk)
    return text, [spans[i] for i in sorted(spans) if turns[i].is_learnt]


def _after_prompt(span: Span, prompt: str, text: str) -> Span:
    """With what stands between the prompt and the content."""
    is_longer = text.startswith(prompt) and 0 < len(prompt) < span.start
    return span._replace(start=len(prompt)) if is_longer else span


def _prompt(index: int, talk: _Conversation) -> str:
    """What the model is given to write the message at `index`; "" where the template has no say in
    it.
    """
    from jinja2 import TemplateError

    if index == 0 or "add_generation_prompt" not in talk.template:
        return ""
    try:
        return talk.rendered(talk.messages[:index], add_generation_prompt=True)
    except TemplateError:  # a template that wants a user's message before the assistant's
        return ""


def _turn(index: int, text: str, talk: _Conversation) -> Span:
    """The assistant's message at `index` where its content does not say where it stands: it calls
    tools, in the template's own form, or the template takes it apart (such as its thoughts).

    It reaches from the end of the prompt to the end of the conversation cut off after it. Where the
    prompt already opens the assistant's thoughts and the message has none, it begins where the two
    part.
    """
    before = talk.rendered(talk.messages[:index]) if index else ""
    prompt = _prompt(index, talk) or before
    start = len(os.path.commonprefix([prompt, text]))
    if start < len(prompt):  # not inside a tag
        while start > len(before) and not (text[start - 1].isspace() or text[start - 1] in ">]"):
            start -= 1
    end = len(talk.rendered(talk.messages[: index + 1]).rstrip())
    written, turn = text[start:end], talk.turns[index]
    _check_calls(index, turn, written, talk.place)
    if not len(before) <= start < end or turn.content.strip() not in written:
        raise InputError(
            f"{talk.place}: messages[{index}]: cannot tell which part of the text that the chat"
            " template renders is the assistant's; a template with {% generation %} marks"
            " says so"
        )
    return Span(start + len(written) - len(written.lstrip()), end, has_end=True)


def _check_calls(index: int, turn: Turn, written: str, place: str) -> None:
    for name in turn.called:
        if name not in written:
            raise InputError(
                f"{place}: messages[{index}]: the chat template does not write out tool"
                " calls; this data needs a model whose template does"
            )


def _render_by_marks(talk: _Conversation) -> tuple[str, list[Span]]:
    """Spans of a template that marks them with {% generation %}, held to the messages: all that the
    assistant said, and nothing that others said.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (found,) = render_jinja_template(
        conversations=[talk.messages],
        tools=talk.tools,
        chat_template=talk.template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=False,
        # the tokens' names are variables of the template, never other arguments
        **talk.tokenizer.special_tokens_map,  # pyright: ignore[reportArgumentType]
    )
    marked = cast("list[tuple[int, int]]", found)
    spans = _merge(
        [Span(start, end, has_end=True) for start, end in marked if text[start:end].strip()]
    )
    _check_marks(spans, text, talk)
    return text, spans


def _check_marks(spans: list[Span], text: str, talk: _Conversation) -> None:
    """Raise InputError unless `spans` are what the assistant said."""
    said, turns = "".join(text[span.start : span.end] for span in spans), talk.turns
    plain = [i for i, turn in enumerate(turns) if turn.content.strip() and not turn.calls]
    where = _align(text, talk, plain)
    for i, turn in enumerate(turns):
        if turn.is_assistants:
            _check_calls(i, turn, said, talk.place)
            if turn.content.strip() not in said or not _is_inside(where.get(i), spans):
                raise InputError(
                    f"{talk.place}: the chat template's {{% generation %}} marks leave out"
                    f" messages[{i}], the assistant's {shorten(turn.content)}"
                )
        elif _touches(where.get(i), spans):
            raise InputError(
                f"{talk.place}: the chat template's {{% generation %}} marks take in"
                f" messages[{i}], the {turn.role}'s {shorten(turn.content)}"
            )


def _is_inside(span: Span | None, spans: list[Span]) -> bool:
    """Whether one of `spans` holds all of `span`; None: where it stands cannot be told."""
    return span is None or any(s.start <= span.start and span.end <= s.end for s in spans)


def _touches(span: Span | None, spans: list[Span]) -> bool:
    return span is not None and any(span.start < s.end and s.start < span.end for s in spans)


def _merge(spans: list[Span]) -> list[Span]:
    """Spans of which none begins where another ends: templates may mark a turn in pieces."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].end == span.start:
            span = span._replace(start=merged.pop().start)
        merged.append(span)
    return merged


def _align(text: str, talk: _Conversation, chosen: list[int]) -> dict[int, Span]:
    """Where the contents of the `chosen` messages stand in `text`, which is `talk` rendered.

    {} where the text around them depends on the contents, so that this cannot be told.
    """
    # Private use characters: no text has them, and no template trims or escapes them.
    placeholders = {i: f"\ue000{i}\ue001" for i in chosen}
    turns = talk.turns
    rest = talk.rendered(
        [
            {**message, "content": placeholders.get(i, turns[i].content)}
            for i, message in enumerate(talk.messages)
        ]
    )
    spans = {}
    position = 0
    for i, placeholder in placeholders.items():
        before, found, rest = rest.partition(placeholder)
        if not found or not text.startswith(before, position):
            return {}
        position += len(before)
        after = rest.partition("\ue000")[0]
        content = turns[i].content
        forms = (content, content.rstrip(), content.lstrip(), content.strip())  # templates may trim
        form = next((form for form in forms if text.startswith(form + after, position)), None)
        if form is None:
            return {}
        spans[i] = Span(position, position + len(form), has_end=False)
        position += len(form)
    return spans if text[position:] == rest else {}


def _tokens_of(
    row: _Tokens, span: Span, place: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, int]:
    """First and last of the tokens that text[start:end] became. Raises InputError unless they
    decode to just that.
    """
    start, end = span.start, span.end
    text, ids, offsets = row.text, row.ids, row.offsets
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, -1)
    covered = text[offsets[first, 0] : offsets[last, 1]] if len(inside) else ""
    decoded = cast("str", tokenizer.decode(ids[first : last + 1]))
    # A tokenizer that loses characters (unknown ones, or case) decodes nothing faithfully: then the
    # offsets have to do.
    if not _same(covered, text[start:end]) or (
        not _same(decoded, covered) and _same(cast("str", tokenizer.decode(ids)), text)
    ):
        raise InputError(
            f"{place}: the tokens of the assistant's answer do not add up to it:"
            f" {shorten(decoded)} instead of {shorten(text[start:end])}"
        )
    return first, last


def _end_of_turn(row: _Tokens, last: int, eos: int | None) -> int:
    """Position of the special token that closes the turn whose last token is `last`, or `last`
    where none does.
    """
    close, count = last + 1, len(row.ids)
    while close < count and not row.is_special(close) and row.is_blank(close):
        close += 1
    if close == count or not row.is_special(close):
        return last
    # a template may close the turn with a token of its own and then with the one that generation
    # stops at
    after = close
    while after < count and (row.is_special(after) or row.is_blank(after)):
        if row.ids[after] == eos:
            return after
        after += 1
    return close


def _same(a: str, b: str) -> bool:
    """Equal but for white space: tokenizers add and drop spaces at the edges of a piece of text."""
    return "".join(a.split()) == "".join(b.split())
