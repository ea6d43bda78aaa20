"""What a finished sweep tells its trackers."""

from collections.abc import Iterator

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.ledger.leaderboard import Leaderboard, RankedTrial, ShownEvaluation, WinnerRow
from sweeps.reporting.card import found_lines
from sweeps.reporting.formatting import distinct_names
from sweeps.reporting.samples import samples_of, samples_table
from sweeps.reporting.words import format_params, verdict_words, when
from sweeps.selection.statistics import mean_interval
from sweeps.tracking.protocol import BaseSource, DataSource, SourceFile, SweepEnd, Table
from trainables.data.manifest import Manifest, source_words
from trainables.hyperparameters import base_of
from trainables.models.files import digest_of
from trainables.storage.checksums import CHECKSUMS, digest_of_checksums
from trainables.storage.records import Json, to_json


def sweep_end(ledger: Ledger, config: SweepConfig, board: Leaderboard, checkpoint: str) -> SweepEnd:
    """checkpoint: where the winner was handed over."""
    winner = board.winner
    assert winner is not None, "a sweep that is told of has a winner"
    word = base_of(winner.params)
    manifest = ledger.manifest(ledger.data_folders()[word])
    base, data = _base(ledger, config, word), tuple(_data(manifest))
    tables = {"leaderboard": _leaderboard_table(board)}
    if samples := samples_of(ledger, board):
        columns, rows = samples_table(samples)
        tables["samples"] = Table(columns=tuple(columns), rows=tuple(map(tuple, rows)))
    if board.steered:
        tables["steered"] = _steered_table(board)
    return SweepEnd(
        trial=winner.trial,
        reason=winner.reason,
        checkpoint=checkpoint,
        paragraph=_paragraph(board, winner),
        summary=_summary(board, winner),
        findings=tuple(manifest.notes),
        tables=tables,
        data=data,
        data_fingerprint=manifest.fingerprint,
        base=base,
        metadata=_metadata(ledger, config, board, winner, base, data) | {"checkpoint": checkpoint},
    )


def _base(ledger: Ledger, config: SweepConfig, word: str) -> BaseSource:
    """word: for the base model of the winner."""
    model = config.over(word).model
    known = ledger.store.read_json("base.json") if ledger.store.exists("base.json") else {}
    fingerprint = digest_of(config.model.of_each(known)[word])
    return BaseSource(name=model.name, revision=model.revision, fingerprint=fingerprint)


def _data(manifest: Manifest) -> Iterator[DataSource]:
    for name in ("train", "validation", "test"):
        if (split := manifest.splits.get(name)) is not None:
            sources = manifest.sources_of(name)
            yield DataSource(
                name=name,
                source=source_words(sources),
                files=tuple(SourceFile(name=of.source, sha256=of.sha256) for of in sources),
                fingerprint=split.fingerprint or split.raw_fingerprint,
                rows=split.rows or split.read,
            )


def _paragraph(board: Leaderboard, winner: WinnerRow) -> str:
    head = f"**The winner is {winner.trial}**: {format_params(winner.params)}."
    return "\n".join([head, "", *found_lines(board, winner)]).rstrip()


def _summary(board: Leaderboard, winner: WinnerRow) -> dict[str, Json]:
    found: dict[str, Json] = {
        "trials": len(board.trials),
        "val_loss": winner.val_loss,
        "probe_loss": winner.probe_loss,
        "samples_seen": winner.samples_seen,
        **winner.metrics,
    }
    for name, baseline in board.baselines.items():
        found[f"baselines/{name}"] = baseline.val_loss
    if board.test is not None:
        found["test_loss"] = board.test.winner.loss
    if board.worth is not None:
        found["worth"] = board.worth.verdict
    if board.cost is not None:
        found |= {f"cost/{name}": value for name, value in to_json(board.cost).items()}
    return {name: value for name, value in found.items() if value is not None}


def _steered_table(board: Leaderboard) -> Table:
    return Table(
        columns=("time", "by", "command", "state", "what came of it"),
        rows=tuple(
            (when(each.time), each.by, each.command, each.state, each.words)
            for each in board.steered
        ),
    )


def _leaderboard_table(board: Leaderboard) -> Table:
    params = distinct_names(trial.params for trial in board.trials)
    metrics = distinct_names(row.shown.metrics for row in board.rows if row.shown)
    columns = ("place", "trial", "verdict", "status", "val_loss", "probe_loss", *metrics)
    return Table(
        columns=(*columns, "samples_seen", *params, "excluded"),
        rows=tuple(_row(row, metrics, params) for row in board.rows),
    )


def _row(row: RankedTrial, metrics: list[str], params: list[str]) -> tuple[Json, ...]:
    trial, shown = row.trial, row.shown or ShownEvaluation()
    values = [trial.params.get(name) for name in params]
    return (
        row.rank,
        trial.id,
        verdict_words(trial),
        trial.status,
        shown.val_loss,
        shown.probe_loss,
        *(shown.metrics.get(name) for name in metrics),
        shown.samples_seen,
        *(each if isinstance(each, str | int | float | None) else str(each) for each in values),
        row.excluded,
    )


def _metadata(
    ledger: Ledger,
    config: SweepConfig,
    board: Leaderboard,
    winner: WinnerRow,
    base: BaseSource,
    data: tuple[DataSource, ...],
) -> dict[str, Json]:
    losses = ledger.losses(winner.folder)
    interval = None if losses is None else mean_interval(losses)
    trial = next(trial for trial in board.trials if trial.id == winner.trial)
    complete = config.over(base_of(winner.params)).complete(winner.params)
    sums = f"{WINNER}/{CHECKSUMS}"
    return {
        "sweep": ledger.name,
        "trial": winner.trial,
        "step": winner.step,
        "task": config.task,
        "base": to_json(base),
        "method": str(complete.get("method")),
        "parameters": {name: _plain(value) for name, value in complete.items()},
        "val_loss": winner.val_loss,
        "val_loss_interval": None if interval is None else [*map(float, interval)],
        "metric": board.metric,
        "metrics": dict(winner.metrics),
        "verdict": trial.verdict,
        "verdict_reason": trial.verdict_reason,
        "reason": winner.reason,
        "test": None if board.test is None else to_json(board.test.winner),
        "data": {each.name: each.fingerprint for each in data},
        "files_sha256": digest_of_checksums(ledger.store.read_bytes(sums)),
    }


def _plain(value: object) -> Json:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
