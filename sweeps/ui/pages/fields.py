"""Fields that show one place of the sweep file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nicegui import ui

WORDS = {
    "data.text": "Text",
    "data.text_pair": "Second text",
    "data.label": "Label",
    "data.labels": "Labels",
    "data.tokens": "Words",
    "data.tags": "Tags",
    "data.columns.prompt": "Prompt",
    "data.columns.completion": "Completion",
    "data.columns.chosen": "Better answer",
    "data.columns.rejected": "Worse answer",
    "data.columns.source": "Source",
    "data.columns.target": "Target",
    "data.group": "Group (its rows never fall into two splits)",
}


@dataclass(frozen=True)
class Field:
    """What shows and changes one place of the file."""

    element: ui.input | ui.number | ui.select
    of: Callable[[object], object]
    """What is meant by what is typed; None: nothing."""

    def show(self, value: object) -> None:
        """What stands in the file; nothing where it does not fit this field."""
        if self.of(self.element.value) == value:
            return
        options = getattr(self.element, "options", None)
        if options is not None and value not in options:
            value = None
        if isinstance(self.element, ui.number):
            self.element.value = value if isinstance(value, int | float) else None
        elif isinstance(self.element, ui.input):
            self.element.value = "" if value is None else str(value)
        else:
            self.element.value = value


def column_field(key: str, columns: Sequence[str]) -> ui.select:
    """For the name of a column."""
    words = f"Column: {WORDS.get(key, key)}"
    return ui.select([*columns], label=words, clearable=True).props("outlined")


def text(value: object) -> object:
    """None where nothing is typed."""
    return str(value).strip() or None if value is not None else None


def whole(value: object) -> object:
    """A number as it is typed, without the point that a field of numbers gives to all."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
