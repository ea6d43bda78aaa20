"""Tied values: arithmetic on other parameters, such as `2 * rank`.

An expression is parsed with `ast` and walked here, never evaluated by Python: it holds numbers,
parameter names, + - * / // ** and parentheses, and nothing else.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping

from search_spaces.domains import Value, is_number, is_whole, show
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


def evaluate(text: str, values: Mapping[str, Value]) -> Value:
    """The value of an expression; an int where all that goes in is int and the result is whole
    (`rank / 2`).

    SpaceError where there is no finite real result, or an operand is not a number.
    """
    tree = _parse(text)
    if isinstance(tree, ast.Name):
        return values[tree.id]
    given = _numbers(text, {name: values[name] for name in names_in(text)})
    try:
        result = _compute(tree, given)
    except (ZeroDivisionError, OverflowError) as error:
        raise SpaceError(f"{text!r}{_with(given)} has no value: {error}") from None
    if not is_number(result):
        raise SpaceError(f"{text!r}{_with(given)} is {result}, which is not a finite real number")
    literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    whole = all(map(is_whole, [*literals, *given.values()]))
    return int(result) if whole and float(result).is_integer() else result


def _numbers(text: str, values: Mapping[str, Value]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        if not is_number(value):
            raise SpaceError(f"{text!r}: {name} is not a number but {show(value)}")
        found[name] = value
    return found


def _with(values: Mapping[str, float]) -> str:
    words = ", ".join(f"{name} = {show(value)}" for name, value in values.items())
    return f" with {words}" if values else ""


def _compute(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_compute(operand, values)
        case ast.UnaryOp(operand=operand):
            return _compute(operand, values)
        case ast.BinOp(left=left, op=op, right=right):
            return _COMPUTES[type(op)](_compute(left, values), _compute(right, values))
    raise AssertionError(f"names_in let {ast.dump(node)} through")


def _power(left: float, right: float) -> float:
    # As floats first: 9 ** 9 ** 9 then overflows at once, where whole numbers would fill the
    # memory.
    approximate = float(left) ** float(right)
    whole = is_whole(left) and is_whole(right) and right >= 0 and math.isfinite(approximate)
    return left**right if whole else approximate


_COMPUTES: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
}


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
