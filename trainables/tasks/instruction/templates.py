"""Chat templates: which one a sweep renders its conversations with, and how one is compiled."""

import json
import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from trainables.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Chat templates are rendered with trim_blocks, which eats a line break after a block: hence {{ '\n'
# }}.
THOUGHTS = (
    "{% if message.reasoning_content is string %}<think>{{ '\\n' + message.reasoning_content }}"
    "{{ '\\n' }}</think>{{ '\\n\\n' }}{% endif %}"
)
CALLS = (
    "{% if message.tool_calls %}{% if message.content | trim %}{{ '\\n' }}{% endif %}"
    "{{ message.tool_calls | map(attribute='function') | list | tojson }}{% endif %}"
)
PRESETS = {
    "plain": (
        "{% if tools %}<|tools|>{{ '\\n' }}{{ tools | tojson }}{{ '\\n' }}{% endif %}"
        "{% for message in messages %}"
        "<|{{ message.role }}|>{{ '\\n' }}" + THOUGHTS + "{{ message.content }}" + CALLS + "{% if"
        " message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% if tools %}<|im_start|>tools{{ '\\n' }}{{ tools | tojson }}<|im_end|>{{ '\\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "<|im_start|>{{ message.role + '\\n' }}" + THOUGHTS + "{{ message.content }}" + CALLS + "<|"
        "im_end|>{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
    ),
    "llama3": (
        "{% if tools %}<|start_header_id|>tools<|end_header_id|>{{ '\\n\\n' }}{{ tools | tojson }}"
        "<|eot_id|>{% endif %}"
        "{% for message in messages %}"
        "<|start_header_id|>{{ message.role }}<|end_header_id|>{{ '\\n\\n' }}" + THOUGHTS + "{{"
        " message.content }}" + CALLS + "<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}"
        "{% endif %}"
    ),
    "zephyr": (
        "{% if tools %}<|tools|>{{ '\\n' }}{{ tools | tojson }}{{ eos_token + '\\n' }}{% endif %}"
        "{% for message in messages %}"
        "<|{{ message.role }}|>{{ '\\n' }}" + THOUGHTS + "{{ message.content }}" + CALLS + "{{"
        " eos_token + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
    ),
}
"""Each begins with what the tokenizer begins a text with, and changes no text of a row."""

NONE = "none"
"""As `data.chat_template`: a prompt and its completion as they are."""


def chat_template(
    tokenizer: "PreTrainedTokenizerBase", setting: str | None, *, with_tools: bool = False
) -> str | None:
    """The template that `data.chat_template` names; None: prompt and completion as they are.
    with_tools: of conversations that have tools, where the tokenizer keeps one of their own.
    """
    if setting == NONE:
        return None
    if setting is None:
        if not tokenizer.chat_template:
            return default_chat_template(tokenizer)
        return tokenizer.get_chat_template(tools=[{}] if with_tools else None)
    if setting in PRESETS:
        return _begin(tokenizer) + PRESETS[setting]
    file = Path(setting).expanduser()
    if not file.is_file():
        names = (*PRESETS, NONE)
        raise InputError(
            f"data.chat_template: {setting!r} is no file and none of {', '.join(names)}."
            + did_you_mean(setting, names)
        )
    text = _read(file)
    check_template(text, f"data.chat_template: {setting}")
    return text


def default_chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What conversations are rendered with where the tokenizer has no chat template: plain text,
    each turn under its role, each assistant's turn closed by the end-of-sequence token. It belongs
    to a model trained with it: save it with the tokenizer.
    """
    return _begin(tokenizer) + PRESETS["plain"]


def check_template(template: str, where: str) -> None:
    """Raise InputError unless it is one that can be rendered."""
    try:
        compiled(template)
    except TemplateError as error:
        raise InputError(f"{where}: not a Jinja template: {error}") from None
    if "messages" not in template:
        raise InputError(f"{where}: renders no 'messages'")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.chat_template: {file}: cannot be read: {error}") from None


def _begin(tokenizer: "PreTrainedTokenizerBase") -> str:
    first = tokenizer("a", verbose=False).input_ids[:1]
    begins = tokenizer.bos_token is not None and first == [tokenizer.bos_token_id]
    return "{{ bos_token }}" if begins else ""


# Compiling: what transformers' apply_chat_template renders with, kept here because a row is
# rendered twice and its function copies every row; a test holds the two to each other.


@lru_cache(maxsize=64)
def compiled(template: str) -> Template:
    """Raises TemplateError where it is not Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


GENERATION_OPEN, GENERATION_CLOSE = "generation_open", "generation_close"
"""Variables that are written at the edges of what a template marks with {% generation %}."""


class _Generation(Extension):
    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opened, closed = (
            nodes.Output([nodes.Name(name, "load")]) for name in (GENERATION_OPEN, GENERATION_CLOSE)
        )
        # a call block, since what a template sets inside it must stay inside it
        call = self.call_method("_called", [])
        return nodes.CallBlock(call, [], [], [opened, *body, closed]).set_lineno(line)

    def _called(self, caller) -> str:
        return caller()


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


class _Dict:
    """`dict` of a template: a template comes from anywhere and must not reach the class."""

    def __call__(self, *args, **kwargs) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args) -> dict:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's, without names that reach into Python."""

    def __init__(*args: object, **kwargs: object) -> None:  # noqa: N805
        # a template may call an attribute `self`
        namespace, *rest = args
        assert isinstance(namespace, _Namespace)
        attributes = dict(*rest, **kwargs)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name in attributes:
            _check_name(name)
        Namespace.__init__(namespace, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set {name!r}")


def has_generation(template: str) -> bool:
    """Whether it marks what the assistant writes."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
