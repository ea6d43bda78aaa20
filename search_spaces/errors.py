"""What a user reads when a search space is wrong."""

import difflib
from collections.abc import Iterable


class SpaceError(ValueError):
    """A search space or a configuration is not valid; one line: where, what is wrong, what we got,
    what is allowed.
    """


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`" Did you mean 'rank'?"`, or an empty string when nothing known is close to the word; case
    does not count.
    """
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""
