"""What a user reads when a search space is wrong."""

import difflib
from collections.abc import Iterable


class SpaceError(ValueError):
    """A search space or a configuration is not valid; one line: where, what is wrong, what we got, what is allowed."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`" Did you mean 'rank'?"`, or an empty string when nothing known is close to the word."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
