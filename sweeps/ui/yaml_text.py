"""A setting of a sweep file, changed in its text: comments, and all else that is there, stay."""

import json
import math
import textwrap
from collections.abc import Sequence

import yaml

from trainables.errors import InputError

Pair = tuple[yaml.Node, yaml.Node]


def tree_of(text: str) -> dict[str, object]:
    """What a sweep file holds; nothing where it is no mapping. Raises InputError."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def value_at(tree: object, key: str) -> object:
    """What stands at a key with dots; None where nothing does."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def with_value(text: str, key: str, value: object) -> str:
    """The text with `value` at a key with dots, in sections that it may not have yet."""
    root = _mapping(text)
    if root is None:
        return f"{flow(key.split('.')[0])}:{_written(_nested(key.split('.')[1:], value), 0)}\n"
    node, parts = root, key.split(".")
    for depth, part in enumerate(parts):
        found = _child(node, part)
        if found is None:
            return _inserted(text, node, parts[depth:], value)
        key_node, below = found
        last = depth == len(parts) - 1
        if last or not isinstance(below, yaml.MappingNode) or not below.value:
            rest = value if last else _nested(parts[depth + 1 :], value)
            indent = None if node.flow_style else key_node.start_mark.column
            return (
                text[: key_node.end_mark.index] + ":" + _written(rest, indent) + text[_end(found) :]
            )
        node = below
    raise AssertionError("the last part returns")


def without(text: str, key: str) -> str:
    """The text without what stands at a key with dots."""
    way = _way(text, key)
    if not way:
        return text
    *_, (node, found) = way
    others = [pair for pair in node.value if pair is not found]
    if len(way) > 1 and not others:
        return with_value(text, key.rpartition(".")[0], {})
    if node.flow_style:
        kept = ", ".join(text[each[0].start_mark.index : _end(each)] for each in others)
        return text[: node.start_mark.index] + f"{{{kept}}}" + text[node.end_mark.index :]
    start = text.rfind("\n", 0, found[0].start_mark.index) + 1
    return text[:start] + text[_next_line(text, _end(found)) :]


def _way(text: str, key: str) -> list[tuple[yaml.MappingNode, Pair]]:
    """Each section on the way to a key, with what of it leads on; none where there is no such
    key.
    """
    found: list[tuple[yaml.MappingNode, Pair]] = []
    node: yaml.Node | None = _mapping(text)
    for part in key.split("."):
        pair = _child(node, part) if isinstance(node, yaml.MappingNode) else None
        if pair is None:
            return []
        assert isinstance(node, yaml.MappingNode), "it has a child"
        found.append((node, pair))
        node = pair[1]
    return found


def without_comment(text: str, key: str) -> str:
    """Without the comment behind the value of a key, where it is about another one."""
    way = _way(text, key)
    if not way:
        return text
    end = _end(way[-1][1])
    stop = text.find("\n", end)
    stop = len(text) if stop < 0 else stop
    return text[:end] + text[end:stop].split(" #")[0].rstrip() + text[stop:]


def flow(value: object) -> str:
    """A value on one line, as it may stand anywhere in a sweep file."""
    if isinstance(value, float) and math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(name)}: {flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    # in a list, where more has to stand in quotes than on a line of its own
    written = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf)
    return written.strip()[1:-1]


def _written(value: object, indent: int | None) -> str:
    """Behind the colon of a key that stands so far to the right; None: inside braces."""
    is_tree = isinstance(value, dict) and any(isinstance(each, dict) for each in value.values())
    if indent is None or not is_tree:
        return f" {flow(value)}"
    lines = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=math.inf)
    return "\n" + textwrap.indent(lines.rstrip("\n"), " " * (indent + 2))


def _mapping(text: str) -> yaml.MappingNode | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from error
    return root if isinstance(root, yaml.MappingNode) and root.value else None


def _child(node: yaml.MappingNode, name: str) -> Pair | None:
    return next((pair for pair in node.value if pair[0].value == name), None)


def _inserted(text: str, node: yaml.MappingNode, parts: Sequence[str], value: object) -> str:
    """With a new key behind the last one of a mapping."""
    nested = _nested(parts[1:], value)
    line = f"{flow(parts[0])}: {flow(nested)}"
    if node.flow_style:
        end = node.end_mark.index - 1
        before = text[:end].rstrip()
        return f"{before}{', ' if node.value else ''}{line}{text[end:]}"
    column = node.value[0][0].start_mark.column
    at = _next_line(text, _end(node.value[-1]))
    before = text[:at] if text[:at].endswith("\n") else text[:at] + "\n"
    written = f"{' ' * column}{flow(parts[0])}:{_written(nested, column)}"
    return f"{before}{written}\n{text[at:]}"


def _nested(parts: Sequence[str], value: object) -> object:
    for part in reversed(parts):
        value = {part: value}
    return value


def _end(pair: Pair) -> int:
    """Where what a key holds ends, without the comments and the empty lines behind it."""
    key, node = pair
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last if isinstance(last, tuple) else (key, last))
    if node.start_mark.index == node.end_mark.index:  # nothing stands there
        return node.end_mark.index
    held = node.start_mark.buffer
    if node.start_mark.line == node.end_mark.line or held is None:
        return node.end_mark.index
    return node.start_mark.index + len(
        held[node.start_mark.pointer : node.end_mark.pointer].rstrip()
    )


def _next_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1
