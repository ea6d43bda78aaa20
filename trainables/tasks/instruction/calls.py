"""Tools, and the calls of them, in the one form that chat templates take."""

from collections.abc import Mapping

from trainables.data.rows import shorten
from trainables.tasks.instruction.fields import Fields, is_blank, is_empty

Call = dict[str, object]


def read_calls(fields: Fields, given: object, where: str) -> list[Call]:
    """The `tool_calls` of a message, perhaps as JSON text."""
    if is_blank(given):
        return []
    calls = fields.parsed(given, where)
    if not isinstance(calls, list):
        raise fields.error(f"{where}: must be a list of calls, got {shorten(calls)}")
    return [_call(fields, call, f"{where}[{k}]") for k, call in enumerate(calls)]


def read_bare_calls(fields: Fields, given: object, where: str) -> list[Call]:
    """What is said in JSON by ShareGPT's turn `function_call`, or by OpenAI's old key of that
    name: one call or several, each only the function's name and its arguments.
    """
    parsed = fields.parsed(given, where)
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls:
        raise fields.error(f"{where}: must be a call of a function, got {shorten(given)}")
    return [
        _call(
            fields,
            call if _names_function(call) else {"type": "function", "function": call},
            where if calls is not parsed else f"{where}[{k}]",
            shown=call,
        )
        for k, call in enumerate(calls)
    ]


def _names_function(call: object) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)


def _call(fields: Fields, call: object, where: str, shown: object = None) -> Call:
    """Chat templates write the arguments out as JSON themselves; OpenAI's format has them as a
    string of JSON.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if (
        not isinstance(call, Mapping)
        or not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
    ):
        raise fields.error(
            f'{where}: must be like {{"type": "function", "function": {{"name": ..., "arguments":'
            f" ...}}}}, got {shorten(shown or call)}"
        )
    arguments = _arguments(fields, function.get("arguments"), f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments(fields: Fields, given: object, where: str) -> Mapping[str, object]:
    if is_blank(given):
        return {}
    arguments = fields.parsed(given, where)
    if not isinstance(arguments, Mapping):
        raise fields.error(f"{where}: must be a JSON object, got {shorten(arguments)}")
    return arguments


def read_tools(fields: Fields) -> list[object]:
    """Of the column `tools`, or of OpenAI's old `functions`; perhaps as JSON text."""
    if not is_empty(tools := _listed(fields, "tools")):
        return tools
    return [
        function if _names_function(function) else {"type": "function", "function": function}
        for function in _listed(fields, "functions")
    ]


def _listed(fields: Fields, ours: str) -> list[object]:
    if is_blank(given := fields.get(ours)):
        return []
    where = fields.columns.name(ours)
    tools = fields.parsed(given, where)
    if tools is None:
        return []
    if isinstance(tools, list):
        tools = [fields.parsed(tool, f"{where}[{k}]") for k, tool in enumerate(tools)]
        if all(isinstance(tool, Mapping) for tool in tools):
            return tools
    raise fields.error(
        f"{where!r} must be a list of tools like {{"
        f'"type": "function", "function": {{"name": ...}}}}, got {shorten(tools)}'
    )
