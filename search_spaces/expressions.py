"""Tied values: arithmetic on other parameters, such as `2 * rank`.

An expression is parsed with `ast` and walked here, never evaluated by Python: it holds numbers,
parameter names, + - * / // ** and parentheses, and nothing else.
"""

import ast
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from search_spaces.domains import is_number, is_whole, show
from search_spaces.errors import SpaceError

_OPERATORS = set("+-*/()")
_WORD = re.compile(r"[^\W\d]\w*")
_HYPHENATED = re.compile(r"[^\W\d]\w*(-[^\W\d]\w*)+")


def is_expression(text: str, parameters: Collection[str]) -> bool:
    """Whether a string is meant as arithmetic: it has an operator or names a parameter.

    Hyphenated words such as `all-linear` are text, unless each of the words is a parameter.
    """
    words = _WORD.findall(text)
    if _HYPHENATED.fullmatch(text):
        return all(word in parameters for word in words)
    return bool(_OPERATORS.intersection(text)) or any(word in parameters for word in words)


def names_in(text: str) -> tuple[str, ...]:
    """The names that an expression uses, in order; SpaceError if it is no arithmetic expression."""
    found = []
    nodes = [_parse(text)]
    while nodes:
        match nodes.pop():
            case ast.Name(id=name):
                found.append(name)
            case ast.Constant(value=value) if is_number(value):
                pass
            case (
                ast.BinOp(
                    op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Pow()
                ) as node
            ):
                nodes += [node.right, node.left]
            case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
                nodes.append(operand)
            case _:
                raise _not_arithmetic(text)
    return tuple(dict.fromkeys(found))


def is_name(text: str) -> bool:
    """A single name: the value is copied, so it need not be a number."""
    return isinstance(_parse(text), ast.Name)


def evaluate(text: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression; an int where all that goes in is int and the result is whole
    (`rank / 2`).

    SpaceError where there is no finite real result, or an operand is not a number.
    """
    tree = _parse(text)
    if isinstance(tree, ast.Name):
        return values[tree.id]
    given = {name: values[name] for name in names_in(text)}
    with_values = (
        f" with {', '.join(f'{name} = {show(value)}' for name, value in given.items())}"
        if given
        else ""
    )
    for name, value in given.items():
        if not is_number(value):
            raise SpaceError(f"{text!r}: {name} is not a number but {show(value)}")
    try:
        result = _compute(tree, given)
    except (ZeroDivisionError, OverflowError) as error:
        raise SpaceError(f"{text!r}{with_values} has no value: {error}") from None
    if not is_number(result):
        raise SpaceError(f"{text!r}{with_values} is {result}, which is not a finite real number")
    literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    if (
        isinstance(result, float)
        and result.is_integer()
        and all(map(is_whole, [*literals, *given.values()]))
    ):
        return int(result)
    return result


def _compute(node: ast.expr, values: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_compute(operand, values)
        case ast.UnaryOp(operand=operand):
            return _compute(operand, values)
        case ast.BinOp(left=left_node, op=op, right=right_node):
            left, right = _compute(left_node, values), _compute(right_node, values)
            match op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.Div():
                    return left / right
                case ast.FloorDiv():
                    return left // right
                case ast.Pow():
                    # As floats first: 9 ** 9 ** 9 then overflows at once, where whole numbers would
                    # fill the memory.
                    approximate = float(left) ** float(right)
                    whole = (
                        is_whole(left)
                        and is_whole(right)
                        and right >= 0
                        and math.isfinite(approximate)
                    )
                    return left**right if whole else approximate
    raise AssertionError(f"names_in let {ast.dump(node)} through")


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _not_arithmetic(text) from None


def _not_arithmetic(text: str) -> SpaceError:
    return SpaceError(
        f"{text!r} is not arithmetic on parameters; allowed: + - * / // ** ( ), numbers and"
        f" parameter names; plain text with such signs is written {{choice: [{text!r}]}}"
    )
