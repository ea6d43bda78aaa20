"""What a user reads when a trial, its data or its model is wrong."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user can put right: a setting, a file, a row. The message is one line:
    where, what is wrong, what is allowed.
    """


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`" Did you mean 'lora'?"`, or an empty string when nothing known is close to the word; case
    does not count.
    """
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""
