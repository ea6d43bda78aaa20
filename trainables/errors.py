"""What a user reads when a trial, its data or its model is wrong."""

import difflib
import re
from collections.abc import Iterable

UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Control characters, line breaks, halves of characters."""


class InputError(ValueError):
    """Something that the user can put right: a setting, a file, a row. The message is one line:
    where, what is wrong, what is allowed. More lines, which a name, a value or a library brings
    along, are joined, and what cannot be printed is written as Python writes it.
    """

    def __init__(self, message: str) -> None:
        line = message.replace("\n", " ")
        super().__init__(UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], line))


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`" Did you mean 'lora'?"`, or an empty string when nothing known is close to the word; case
    does not count.
    """
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""


class NotExported(Exception):
    """Why a model could not be written in another format, or loaded from it again, in a line."""
