"""What the page shows of a trial that one selects: configuration, evaluations, log, answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from sweeps.ledger.leaderboard import JudgedEvaluation, Leaderboard, TrialRow
from sweeps.ledger.story import STAMPED
from sweeps.reporting.formatting import distinct_names, loss_text, value_text
from sweeps.reporting.words import LOST

if TYPE_CHECKING:
    from sweeps.reporting.samples import Sample

MOST_LINES = 40  # of a trial's log


@dataclass(frozen=True, kw_only=True)
class TrialDetails:
    """All in words, as the page shows it."""

    facts: list[tuple[str, str]]
    params: list[tuple[str, str]]
    columns: list[str]
    evaluations: list[list[str]]
    log: list[str]
    answers: list[tuple[int, str, str, str]]
    """Of each row its number, what was given, its own answer, and the trial's."""


def details_of(
    board: Leaderboard,
    story: Sequence[str] = (),
    answers: Mapping[str, Sequence["Sample"]] = MappingProxyType({}),
) -> dict[str, TrialDetails]:
    """By trial. story: the sweep's log; answers: of trials that wrote some."""
    lines = _by_trial(story, {row.id for row in board.trials})
    return {
        row.id: TrialDetails(
            facts=_facts(row),
            params=[(name, value_text(value)) for name, value in row.params.items()],
            columns=_columns(row),
            evaluations=[_cells(each, row) for each in row.evaluations],
            log=lines.get(row.id, [])[-MOST_LINES:],
            answers=[
                (each.row, each.prompt, each.reference, each.answers[0].text)
                for each in answers.get(row.id, ())
            ],
        )
        for row in board.trials
    }


def _facts(row: TrialRow) -> list[tuple[str, str]]:
    def because(word: str | None, reason: str | None) -> str:
        return f"{word or 'none yet'}: {reason}" if reason else word or "none yet"

    facts = [
        ("status", because(row.status, row.status_reason)),
        ("verdict", because(row.verdict, row.verdict_reason)),
    ]
    if row.verdict_later:
        facts.append(("later", row.verdict_later))
    if row.default:
        facts.append(("configuration", "the default, what one would train without a search"))
    if row.by_hand:
        facts.append(("by hand", row.by_hand))
    if row.finalist_of:
        facts.append(("finalist", f"{row.finalist_of} with another seed"))
    kept = [each.checkpoint for each in row.may_win if each.checkpoint]
    if kept:
        facts.append(("checkpoint", kept[-1]))
    return facts


def _metrics(row: TrialRow) -> list[str]:
    return distinct_names(each.metrics for each in row.evaluations)


def _lost(row: TrialRow) -> list[str]:
    return [name for name in LOST if any(getattr(e, name) is not None for e in row.evaluations)]


def _columns(row: TrialRow) -> list[str]:
    numbers = ["epoch", "samples seen", "val loss", "probe loss"]
    return [*numbers, *_metrics(row), *_lost(row), "why excluded"]


def _cells(each: JudgedEvaluation, row: TrialRow) -> list[str]:
    losses = [each.val_loss, each.probe_loss]
    losses += [each.metrics.get(name) for name in _metrics(row)]
    losses += [getattr(each, name) for name in _lost(row)]
    return [
        value_text(each.epoch),
        f"{each.samples_seen:,}",
        *map(loss_text, losses),
        each.excluded or "",
    ]


def _by_trial(story: Sequence[str], trials: set[str]) -> dict[str, list[str]]:
    """Its lines, without those of evaluations, which have a table of their own."""
    found: dict[str, list[str]] = {}
    for line in story:
        stamped = STAMPED.fullmatch(line)
        if stamped is None:
            continue
        trial, _, said = stamped[2].partition(" ")
        if trial in trials and not said.startswith("epoch "):
            found.setdefault(trial, []).append(f"{stamped[1]} {said}")
    return found
