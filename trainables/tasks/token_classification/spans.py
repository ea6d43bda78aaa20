"""Entities of tagged words: B begins one, I goes on with it, O is none; also E that ends one and S
that is one (IOB1, IOB2, IOE, IOBES). As seqeval finds them by default
(https://github.com/chakki-works/seqeval, after conlleval.pl): a tag that goes on with nothing
begins an entity itself.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

TAG = re.compile(r"([BIES])-(.+)")
OUTSIDE = "O"


class Tag(NamedTuple):
    """A tag's two parts; without a type it is outside of entities."""

    prefix: str
    type: str | None


class Entity(NamedTuple):
    """Words [start, end) of one row."""

    type: str
    start: int
    end: int


def scheme(names: Sequence[str]) -> tuple[Tag, ...] | None:
    """The tags of these names; None where they name no spans, such as parts of speech."""
    tags = []
    for name in names:
        found = TAG.fullmatch(name)
        if found is None and name != OUTSIDE:
            return None
        tags.append(Tag(OUTSIDE, None) if found is None else Tag(*found.groups()))
    return tuple(tags) if any(tag.type for tag in tags) else None


def entities(tags: Sequence[Tag]) -> set[Entity]:
    """Those of one row."""
    found, start, last = set(), 0, Tag(OUTSIDE, None)
    for at, tag in enumerate([*tags, Tag(OUTSIDE, None)]):
        ends = last.type is not None and (
            last.prefix in "ES" or tag.prefix in "BSO" or tag.type != last.type
        )
        if ends:
            found.add(Entity(str(last.type), start, at))
        if tag.type is not None and (ends or last.type is None):
            start = at
        last = tag
    return found
