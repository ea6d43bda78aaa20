"""What the assistant writes where a chat template says so itself, by {% generation %}."""

from collections.abc import Iterable
from typing import NoReturn

from trainables.data.rows import BadRow, shorten
from trainables.tasks.instruction.layout import Layout
from trainables.tasks.instruction.marks import ANSWER, NAME, Spot
from trainables.tasks.instruction.turns import Extent


def generated(
    layout: Layout, learnt: dict[int, float], extents: dict[int, Extent], place: str
) -> dict[int, list[Extent]]:
    """What the template's {% generation %} marks hold of each turn, held to the messages: all
    that the assistant said, and nothing that others said.
    """
    pieces = _merged(layout)
    known = dict(extents)
    for turn, message in enumerate(layout.row.messages):
        spots = layout.spots_of(turn)
        if message.get("role") != "assistant":
            _check_not_held(layout, turn, spots, pieces, place)
            continue
        if turn in learnt:
            _check_held(layout, turn, spots, pieces, place)
        if spots:
            known.setdefault(turn, Extent(spots[0].start, spots[-1].end))
    return _by_turn(pieces, known)


def _check_held(
    layout: Layout, turn: int, spots: list[Spot], pieces: list[tuple[int, int]], place: str
) -> None:
    held = {
        spot.part
        for spot in spots
        if any(start <= spot.start and spot.end <= end for start, end in pieces)
    }
    for spot in spots:
        if layout.parts[spot.part].kind in (ANSWER, NAME) and spot.part not in held:
            raise_left_out(layout, turn, place)


def _check_not_held(
    layout: Layout, turn: int, spots: list[Spot], pieces: list[tuple[int, int]], place: str
) -> None:
    if any(start < spot.end and spot.start < end for spot in spots for start, end in pieces):
        message = layout.row.messages[turn]
        raise BadRow(
            f"{place}: the chat template's {{% generation %}} marks take in messages[{turn}], the"
            f" {message.get('role')}'s {shorten(message.get('content'))}"
        )


def _merged(layout: Layout) -> list[tuple[int, int]]:
    """What the template marks; it may mark a turn in pieces."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(layout.generated):
        if not layout.text[start:end].strip():
            continue
        if merged and merged[-1][1] >= start:
            start, end = merged[-1][0], max(merged.pop()[1], end)
        merged.append((start, end))
    return merged


def _by_turn(
    pieces: Iterable[tuple[int, int]], extents: dict[int, Extent]
) -> dict[int, list[Extent]]:
    """Each piece goes to the turn that it holds something of; one that holds several is cut."""
    found: dict[int, list[Extent]] = {}
    ordered = sorted(extents.items())
    for start, end in pieces:
        held = [turn for turn, extent in ordered if extent.start < end and start < extent.end]
        for turn, following in zip(held, [*held[1:], None], strict=True):
            edge = end if following is None else extents[turn].end
            found.setdefault(turn, []).append(Extent(start, edge))
            start = edge if following is None else extents[following].start
    return found


def raise_left_out(layout: Layout, turn: int, place: str) -> NoReturn:
    raise BadRow(
        f"{place}: the chat template's {{% generation %}} marks leave out messages[{turn}], the"
        f" assistant's {shorten(layout.row.messages[turn].get('content'))}"
    )
