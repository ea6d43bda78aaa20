"""Data for the quickstart, made on the reader's own machine: `python -m sweeps.quickstart OUT.csv`.

The task: from the first sentence of a docstring, tell what it documents: a module, a class, a
function (or method), or a property. The rows come from the sources of packages that this project
depends on, at the versions that its lock names; the sources are parsed and never imported. The
standard library stays out: it changes with the Python version. Rows of one file resemble each
other, so the column `file` is there to split by: a random split flatters every model.
"""

import ast
import csv
import hashlib
import importlib.util
import io
import os
import re
import sys
import uuid
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "accelerate",
    "aiohttp",
    "alembic",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "jinja2",
    "networkx",
    "omegaconf",
    "optuna",
    "pandas",
    "peft",
    "pydantic",
    "ray",
    "rich",
    "sqlalchemy",
    "wandb",
)
LABELS = ("class", "function", "module", "property")
ROWS_PER_LABEL = 600
ROWS_PER_FILE_AND_LABEL = 6
MAX_FILE_BYTES = 64_000  # long files take most of the time and give no more rows than others
MIN_ROWS_PER_LABEL = 100
MIN_WORDS = 3
MAX_WORDS = 16

# Tests, code that a package carries of others, and generated clients: little prose, or the same
# prose again and again.
SKIPPED_FOLDERS = frozenset(
    {
        "tests",
        "test",
        "testing",
        "_vendor",
        "vendor",
        "thirdparty_files",
        "rllib",
        "generated",
        "proto",
        "_generated",
    }
)
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LEGAL = re.compile(r"copyright|licen[sc]e|all rights reserved", re.IGNORECASE)


class QuickstartError(ValueError):
    """The quickstart's data cannot be made here; the message is one line for the user."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Row:
    text: str
    label: str
    file: str  # below the folder that holds the package, with "/": the same on every machine


def gather(folders: Sequence[Path]) -> list[Row]:
    """The rows of the package folders: no text twice, none under two labels, at most
    `ROWS_PER_LABEL` of a label.

    Which rows stay when there are too many is decided by a hash of the text, so one more file
    changes few rows.
    """
    by_text: dict[str, list[Row]] = defaultdict(list)
    for folder in folders:
        for row in _package_rows(folder):
            by_text[_normalised(row.text)].append(row)
    unambiguous = [
        min(rows, key=_rank) for rows in by_text.values() if len({row.label for row in rows}) == 1
    ]

    kept: list[Row] = []
    per_label: Counter[str] = Counter()
    per_file: Counter[tuple[str, str]] = Counter()
    for row in sorted(unambiguous, key=_rank):
        both = (row.file, row.label)
        if per_label[row.label] < ROWS_PER_LABEL and per_file[both] < ROWS_PER_FILE_AND_LABEL:
            per_label[row.label] += 1
            per_file[both] += 1
            kept.append(row)
    return sorted(kept, key=lambda row: (row.file, row.label, row.text))


def docstring_rows(source: bytes, file: str) -> Iterator[Row]:
    """One row for every docstring whose first sentence has a fitting length. Raises SyntaxError,
    ValueError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences in other people's code
        tree = ast.parse(source)
    for node in _definitions(tree):
        text = first_sentence(ast.get_docstring(node) or "")
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and not LEGAL.search(text):
            yield Row(text=text, label=_label(node), file=file)


def first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.match(r".+?[.!?](?=\s|$)", paragraph)
    return sentence.group() if sentence else paragraph


def write_csv(rows: Sequence[Row], out: Path) -> None:
    """Columns text, label, file. The file appears whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["text", "label", "file"])
    writer.writerows((row.text, row.label, row.file) for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(text.getvalue().encode())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def make(out: Path) -> str:
    """Gather the rows, write them to `out`, and return one line that says what was gathered. Raises
    QuickstartError.
    """
    folders = [folder for name in PACKAGES if (folder := _package_folder(name))]
    rows = gather(folders)
    counts = Counter(row.label for row in rows)
    for label in LABELS:
        if counts[label] < MIN_ROWS_PER_LABEL:
            raise QuickstartError(
                f"quickstart: too few docstrings of a {label}: got {counts[label]} from"
                f" {len(folders)} of {len(PACKAGES)} packages, need {MIN_ROWS_PER_LABEL}; install"
                " the locked packages with their sources"
            )
    try:
        write_csv(rows, out)
    except OSError as error:
        raise QuickstartError(f"quickstart: {out}: cannot write: {error.strerror}") from error
    share = max(counts.values()) / len(rows)
    files = len({row.file for row in rows})
    return (
        f"{out}: {len(rows)} rows, {len(counts)} classes ({', '.join(LABELS)}), {files} files of"
        f" {len(folders)} packages, majority class {share:.0%}"
    )


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # for a top-level name this finds without importing
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _package_rows(folder: Path) -> Iterator[Row]:
    files = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}
    for file, path in sorted(files.items()):
        if SKIPPED_FOLDERS.intersection(file.split("/")):
            continue
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                yield from docstring_rows(path.read_bytes(), file)
        except (OSError, SyntaxError, ValueError):
            # unreadable, or for another Python (ValueError: a null byte, before 3.11.4): the other
            # files do
            continue


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    """The module, its classes and functions, and theirs; not what is defined inside a function
    (four times faster).
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, Definition):
            yield node
        if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try):
            pending.extend(ast.iter_child_nodes(node))


def _label(node: Definition) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = [ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list]
    # property, cached_property, hybrid_property, ...; not x.setter
    return "property" if any(name.endswith("property") for name in decorators) else "function"


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _rank(row: Row) -> tuple[str, str, str]:
    return hashlib.sha256(_normalised(row.text).encode()).hexdigest(), row.file, row.text


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sweeps.quickstart OUT.csv", file=sys.stderr)
        return 2
    try:
        print(make(Path(arguments[0])))
    except QuickstartError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
