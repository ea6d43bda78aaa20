"""What models wrote to the same rows, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import JudgedEvaluation, Leaderboard, TrialRow
from sweeps.reporting.metrics import default_evaluation
from trainables.errors import InputError
from trainables.evaluation.answered import Answered
from trainables.evaluation.record import untuned_name
from trainables.hyperparameters import base_of


@dataclass(frozen=True, kw_only=True)
class Written:
    """One model's answer to a row."""

    by: str
    text: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Sample:
    row: int
    """Its position in the split."""
    prompt: str
    reference: str
    answers: tuple[Written, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What `samples --json` prints."""

    rows: tuple[Sample, ...]


def samples_of(ledger: Ledger, board: Leaderboard, trial: str | None = None) -> tuple[Sample, ...]:
    """Of the untuned model, the default configuration and the winner, or `trial` in its place;
    empty where no answers were written. Raises InputError for a trial that wrote none.
    """
    shown = _folders(board, trial, ledger)
    written = {words: found for words, folder in shown if (found := ledger.answers(folder))}
    base = _base(board, trial)
    asked = None if base is None or not written else ledger.asked("validation", base)
    if trial is not None and trial not in written:
        raise InputError(
            f"--trial: {trial} wrote no answers; those of {_names(ledger, board)} were kept"
        )
    if asked is None:
        return ()
    return tuple(
        Sample(
            row=row,
            prompt=prompt,
            reference=reference,
            answers=tuple(_to(row, written)),
        )
        for row, prompt, reference in zip(asked.rows, asked.prompts, asked.references, strict=True)
    )


def answers_of_trial(ledger: Ledger, board: Leaderboard, trial: str) -> tuple[Sample, ...]:
    """What one trial alone wrote; empty where it wrote nothing."""
    (row,) = [row for row in board.trials if row.id == trial]
    written = [found for each in _by_rank(board, row) if (found := ledger.answers(each.folder))]
    asked = ledger.asked("validation", base_of(row.params)) if written else None
    if asked is None:
        return ()
    return tuple(
        Sample(row=number, prompt=prompt, reference=reference, answers=tuple(found))
        for number, prompt, reference in zip(
            asked.rows, asked.prompts, asked.references, strict=True
        )
        if (found := _to(number, {trial: written[-1]}))
    )


def samples_table(samples: Sequence[Sample]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: what was given, the row's own answer, and each model's with its scores."""
    scored = {each.by: tuple(each.scores) for sample in samples for each in sample.answers}
    columns, rows = ["row", "given", "its own answer"], []
    for by, names in scored.items():
        columns += [by, *(f"{by}: {name}" for name in names)]
    for sample in samples:
        cells: list[object] = [sample.row, sample.prompt, sample.reference]
        answers = {each.by: each for each in sample.answers}
        for by, names in scored.items():
            each = answers.get(by)  # None: it was asked other rows
            cells += (
                [None] * (1 + len(names)) if each is None else [each.text, *_scores(each, names)]
            )
        rows.append(cells)
    return columns, rows


def _scores(answer: Written, names: Sequence[str]) -> list[float | None]:
    return [answer.scores.get(name) for name in names]


def _folders(board: Leaderboard, trial: str | None, ledger: Ledger) -> list[tuple[str, str]]:
    """Whose answers are shown, in words, and where they lie."""
    base = _base(board, trial)
    if base is None:
        return []
    first = next(iter(ledger.data_folders()))
    found = [(board.name_of(name := untuned_name(base, first)), f"baselines/validation/{name}")]
    if (default := default_evaluation(board)) is not None:
        found.append((f"the default, {default[0].id}", default[1].folder))
    if trial is not None:
        own = [e for row in board.trials if row.id == trial for e in _by_rank(board, row)]
        found += [(trial, each.folder) for each in own]
    elif board.winner is not None:
        found.append((f"the winner, {board.winner.trial}", board.winner.folder))
    by_folder = {folder: words for words, folder in found}  # the default may be the winner
    return [(words, folder) for folder, words in by_folder.items()]


def _by_rank(board: Leaderboard, row: TrialRow) -> list[JudgedEvaluation]:
    """Its evaluations that may win, the best last: the last that wrote some is shown."""
    return sorted(row.may_win, key=board.measure.key, reverse=True)


def _base(board: Leaderboard, trial: str | None) -> str | None:
    """The word for the base of what is shown."""
    if trial is None:
        return None if board.winner is None else base_of(board.winner.params)
    rows = {row.id: row for row in board.trials}
    if trial not in rows:
        raise InputError(f"--trial: must be one of {', '.join(rows) or 'none'}, got {trial!r}")
    return base_of(rows[trial].params)


def _names(ledger: Ledger, board: Leaderboard) -> str:
    kept = [row.id for row in board.trials if any(ledger.answers(e.folder) for e in row.may_win)]
    return ", ".join(kept) or "no trial"


def _to(row: int, written: Mapping[str, Answered]) -> Sequence[Written]:
    found = []
    for words, each in written.items():
        if row not in each.rows:
            continue
        at = each.rows.index(row)
        scores = {name: values[at] for name, values in each.scores.items()}
        found.append(Written(by=words, text=each.texts[at], scores=scores))
    return found
