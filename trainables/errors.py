import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user can put right: a setting, a file, a row. The message is one line:
    where, what is wrong, what is allowed.
    """


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`" Did you mean 'lora'?"`, or an empty string when none of `words` is near."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
