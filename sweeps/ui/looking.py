"""What a file of rows looks like, and what could be learnt from it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from trainables.data.config import DataConfig
from trainables.data.rows import Row
from trainables.data.sources import Source, open_sources
from trainables.errors import InputError
from trainables.tasks import TASKS

FIRST = 500  # rows that are looked at
SHOWN = 3
FEW = 0.2  # of the rows: no more values has a column of classes
SHORT = 40  # characters of a class's name

ASKED = ("question", "query", "input", "request")
ANSWERED = ("answer", "response", "output", "reply", "sql")
"""What columns of a question and its answer are called, beside the formats that are known."""

# which of the tasks is meant by columns that several could read; the rest by what they hold
BY_NAMES = ("preference", "instruction", "token_classification", "multi_label", "seq2seq")


@dataclass(frozen=True, kw_only=True)
class Look:
    """At the first rows of a source."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, object], ...]
    """The first few, to be shown."""
    task: str
    """That these columns are for, as far as that can be told."""
    settings: Mapping[str, str]
    """The columns that are to be named in the sweep file."""
    why: str

    def settings_of(self, task: str) -> Mapping[str, str]:
        """Where another task was chosen, the columns that fit its settings are not known."""
        return self.settings if task == self.task else {}


def look(source: str) -> Look:
    """Raises InputError where it is not there, or cannot be read."""
    first = open_sources(DataConfig(train=source), "train")[0]
    columns = first.columns
    rows = [row.columns for row in islice(first.rows(), FIRST) if isinstance(row, Row)]
    task, settings, why = _meant(first, rows)
    return Look(
        source=source,
        columns=columns,
        rows=tuple(rows[:SHOWN]),
        task=task,
        settings=settings,
        why=why,
    )


Meant = tuple[str, Mapping[str, str], str]
Rows = Sequence[Mapping[str, object]]


def _meant(source: Source, rows: Rows) -> Meant:
    """Task, columns and why."""
    if source.is_document:
        return "causal_lm", {}, "one long text"
    for task in BY_NAMES:
        if _reads(task, source):
            return task, {}, f"it has the columns of {task}"
    asked, answered = (_called(names, source.columns) for names in (ASKED, ANSWERED))
    if asked and answered:
        return _answers(asked[0], answered[0])
    return _by_values(source.columns, rows)


def _by_values(columns: Sequence[str], rows: Rows) -> Meant:
    """Of columns that nobody knows by their names."""
    texts = sorted(_texts(columns, rows), key=lambda name: -_length(name, rows))
    if not texts:
        return "classification", {}, "no column with texts was found"
    text = "text" if "text" in texts else texts[0]
    others = [name for name in columns if name != text]
    others = _called(("label",), others) or others
    if number := next((name for name in others if _is_number(name, rows)), None):
        return "regression", _named(text, number), f"{number!r} has numbers"
    if label := next((name for name in others if _is_class(name, rows)), None):
        return "classification", _named(text, label), f"{label!r} has few values"
    if len(texts) > 1:
        return _answers(*[name for name in columns if name in texts][:2])
    return "causal_lm", {} if text == "text" else {"data.text": text}, f"{text!r} has texts"


def _called(names: Collection[str], columns: Sequence[str]) -> list[str]:
    return [column for column in columns if column.lower() in names]


def _answers(asked: str, answered: str) -> Meant:
    settings = {"data.columns.prompt": asked, "data.columns.completion": answered}
    return "instruction", settings, f"{asked!r} and {answered!r} have texts"


def _reads(task: str, source: Source) -> bool:
    try:
        TASKS[task].format.reader(source, DataConfig(train=source.name))
    except InputError:
        return False
    return True


def _named(text: str, label: str) -> Mapping[str, str]:
    return {"data.text": text, "data.label": label}


def _values(name: str, rows: Rows) -> Iterator[object]:
    return (row.get(name) for row in rows)


def _texts(columns: Sequence[str], rows: Rows) -> list[str]:
    """Columns of texts that are no numbers."""
    return [
        name
        for name in columns
        if any(isinstance(value, str) for value in _values(name, rows))
        and not all(_number(value) for value in _values(name, rows))
    ]


def _length(name: str, rows: Rows) -> int:
    return sum(len(value) for value in _values(name, rows) if isinstance(value, str))


def _is_number(name: str, rows: Rows) -> bool:
    """Numbers that are no numbers of classes."""
    values = list(_values(name, rows))
    return all(map(_number, values)) and any("." in str(value) for value in values)


def _number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _is_class(name: str, rows: Rows) -> bool:
    values = [str(value) for value in _values(name, rows) if isinstance(value, str | int)]
    kinds = {*values}
    few = max(2, FEW * len(rows))
    short = all(len(value) <= SHORT for value in kinds)
    return len(values) == len(rows) and 2 <= len(kinds) <= few and short
