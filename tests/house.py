"""What the house is like to live in, in numbers: `.venv/bin/python -m tests.house`, or with other folders as arguments.

- `Any` in signatures, per 100 functions: names of parameters' and results' types, wherever in them.
- `x["key"]` per 1,000 lines of code: subscripts by a literal string; lines that are neither empty nor a comment.
- functions of complexity above 10: branches, loops, handlers, comprehensions, conditions and each `and` or `or` more
  (McCabe 1976, as radon counts it).
- lines of more than 100 characters, and how long functions are.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sweeps", "trainables", "search_spaces", "cluster")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)


@dataclass(frozen=True, kw_only=True)
class House:
    """Measured over all files of some folders."""

    any_per_100_functions: float
    keys_per_1000_lines: float
    complex_functions: float
    """Share of functions of complexity above 10."""
    long_lines: float
    """Share of lines of more than 100 characters."""
    function_length_90: int
    longest_function: int
    readme_lines: int

    def table(self) -> str:
        """As a table in Markdown."""
        rows = {
            "`Any` in signatures, per 100 functions": f"{self.any_per_100_functions:.1f}",
            '`x["key"]`, per 1,000 lines of code': f"{self.keys_per_1000_lines:.1f}",
            "functions of complexity above 10": f"{self.complex_functions:.1%}",
            "lines of more than 100 characters": f"{self.long_lines:.1%}",
            "README, lines": str(self.readme_lines),
            "function length, 90th percentile / longest": f"{self.function_length_90} / "
            f"{self.longest_function}",
        }
        return "\n".join(
            ["| measured | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
        )


def measure(folders: Sequence[Path], readme: Path) -> House:
    sources = [file.read_text(encoding="utf-8") for top in folders for file in top.rglob("*.py")]
    lines = [line for source in sources for line in source.splitlines()]
    code = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    lengths = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    return House(
        any_per_100_functions=100 * sum(map(anys, functions)) / len(functions),
        keys_per_1000_lines=1000 * sum(map(is_keyed, nodes)) / len(code),
        complex_functions=sum(complexity(node) > 10 for node in functions) / len(functions),
        long_lines=sum(len(line) > 100 for line in lines) / len(lines),
        function_length_90=lengths[int(0.9 * len(lengths))],
        longest_function=lengths[-1],
        readme_lines=len(readme.read_text(encoding="utf-8").splitlines()),
    )


def anys(function: FUNCTIONS) -> int:
    """How often `Any` stands in a signature."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    types = [each.annotation for each in named if each is not None] + [function.returns]
    inside = [node for each in types if each is not None for node in ast.walk(each)]
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in inside)


def is_keyed(node: ast.AST) -> bool:
    """Whether it is `x["key"]`."""
    match node:
        case ast.Subscript(slice=ast.Constant(value=str())):
            return True
    return False


def complexity(function: FUNCTIONS) -> int:
    """Ways through a function; a function inside it counts by itself."""
    return 1 + sum(ways(node) for statement in function.body for node in own(statement))


def own(node: ast.AST) -> Iterator[ast.AST]:
    """What is below `node`, itself included, without the insides of functions and classes."""
    yield node
    if not isinstance(node, FUNCTIONS | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from own(child)


def ways(node: ast.AST) -> int:
    match node:
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.comprehension(ifs=conditions):
            return 1 + len(conditions)
        case ast.Match(cases=cases):
            return len(cases)
    return int(isinstance(node, BRANCHES))


def main(folders: Sequence[str]) -> None:
    chosen = [Path(folder) for folder in folders] or [ROOT / name for name in PACKAGES]
    print(measure(chosen, ROOT / "README.md").table())


if __name__ == "__main__":
    main(sys.argv[1:])
