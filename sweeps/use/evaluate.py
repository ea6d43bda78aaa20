"""A sweep's language model and its untuned base on benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sweeps.ledger.folder import WINNER
from sweeps.ledger.harness import HarnessScore, add_harness
from sweeps.ledger.leaderboard import Forgetting, Leaderboard
from sweeps.reporting.handover import renew_card
from sweeps.reporting.leaderboard import leaderboard
from sweeps.use.trained import Trained, open_trained
from trainables.errors import InputError
from trainables.evaluation.harness import Asked, TaskScore, difference, open_tasks, run_tasks


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a trained checkpoint has gained and lost beside its task."""

    scores: tuple[HarnessScore, ...]
    forgetting: Forgetting | None
    """As the sweep has measured it of its winner."""


def evaluate(folder: str, asked: Asked, trial: str | None = None) -> Evaluated:
    """Scores of the winner (or of the best checkpoint of a trial) beside those of its base, which
    also go into the sweep's folder, those of the winner onto its card and the report's page too.
    Raises InputError for what is no language model, and for tasks that are unknown.
    """
    with open_trained(folder, trial) as trained:
        if not trained.task.is_language_model:
            raise InputError(
                f"{folder}: {trained.words} is trained for {trained.config.task}: it has a head in"
                " the place of a language model's output, and tasks of lm-eval ask what a language"
                " model writes"
            )
        if asked.chat and not trained.tokenizer.chat_template:
            raise InputError(f"--chat: the tokenizer of {trained.words} has no chat template")
        found = _measured(trained, asked)
        add_harness(trained.ledger, found)
        board = leaderboard(trained.ledger, trained.config.name, trained.config.selection)
        own = (trained.trial, trained.evaluation.step)
        won = board.winner is not None and (board.winner.trial, board.winner.step) == own
        if won and trained.ledger.holds(*own):
            _show(trained, board)
        return Evaluated(scores=tuple(found), forgetting=board.forgetting if won else None)


def _show(trained: Trained, board: Leaderboard) -> None:
    """Where the winner is told of."""
    from sweeps.reporting.publish import write_report

    ledger, config = trained.ledger, trained.config
    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        files = ledger.store.fetch(WINNER, Path(scratch))
        renew_card(ledger, config, board, trained.manifest, trained.spec, files)
    write_report(ledger, config, board)


def _measured(trained: Trained, asked: Asked) -> list[HarnessScore]:
    """One model is in memory at a time."""
    from trainables.engine.memory import release

    manager, both = open_tasks(asked), []
    for load in (trained.load_untuned, trained.load):
        both.append(run_tasks(load(), trained.tokenizer, manager, asked))
        release(trained.device)
    base, own = both
    before = {(each.task, each.filter, each.metric): each for each in base}
    return [
        _compared(trained, asked, each, before[each.task, each.filter, each.metric])
        for each in own
        if (each.task, each.filter, each.metric) in before
    ]


def _compared(trained: Trained, asked: Asked, after: TaskScore, before: TaskScore) -> HarnessScore:
    gain, error, paired = difference(after, before)
    return HarnessScore(
        trial=trained.trial,
        step=trained.evaluation.step,
        task=after.task,
        filter=after.filter,
        metric=after.metric,
        version=after.version,
        shots=after.shots,
        samples=after.samples,
        limit=asked.limit,
        chat=asked.chat,
        trained=after.value,
        base=before.value,
        difference=gain,
        standard_error=error,
        paired=paired,
        higher_is_better=after.higher_is_better,
    )
