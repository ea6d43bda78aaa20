"""What a sweep file may not hold, as its configuration is written down and shown: secrets in URLs,
and values of the environment.
"""

from collections.abc import Iterator

from trainables.errors import InputError
from trainables.storage.url_secrets import refuse_secrets


def refuse_secret_urls(tree: object) -> None:
    """Raise InputError where a text in `tree` has a URL with a password or a signature."""
    for key, text in _texts(tree, ""):
        refuse_secrets(text, key)


def refuse_environment(tree: object) -> None:
    """Raise InputError where a text in `tree` asks for a variable: it may be a token, and whoever
    wrote the file would have it in everything that the sweep writes.
    """
    for key, text in _texts(tree, ""):
        if "${" in text and "oc.env" in text:
            raise InputError(
                f"{key}: {text!r} asks for a variable of the environment, which would be written"
                f" down; give the value itself, such as {key}=... on the command line"
            )


def _texts(tree: object, key: str) -> Iterator[tuple[str, str]]:
    """All texts, with where they stand."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _texts(value, f"{key}[{index}]")
