"""The model in use, which is another sweep's winner, on the sealed test rows of a sweep."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from sweeps.ledger.comparing import Rows
from sweeps.selection.measure import Measure, metric_words
from sweeps.use.measured import TEST, Measured, metric_rows
from sweeps.use.scoring import raw_rows_for, score
from sweeps.use.trained import Trained, open_trained
from trainables.data.manifest import TokenSummary
from trainables.errors import InputError
from trainables.evaluation.answered import Answered, read_answers, write_answers
from trainables.metrics.config import settings_digest
from trainables.storage.checkpoints import write_rows

if TYPE_CHECKING:
    from trainables.data.arrow import Split


@dataclass(frozen=True, kw_only=True)
class InUse:
    """What the model in use makes of the test rows."""

    words: str
    measured: Measured
    known_rows: int
    """Test rows that it has trained on, token by token."""

    @property
    def known_words(self) -> str:
        """Beside what is said of its numbers; empty where it knows none of the rows."""
        if not self.known_rows:
            return ""
        return f" (it has trained on {self.known_rows} of these rows, which favours it)"


def measure_in_use(folder: str, own: Trained, winner: Measured, by: Measure) -> InUse:
    """Measure the winner of the sweep in `folder` on the test rows of the sweep of `own`, each row
    tokenised as the model in use reads it, as `winner` was: it answers the rows that the winner
    has answered, where the metric is of answers. Kept in the sweep's folder, and taken from there
    when it is asked again.

    Raises InputError where the two cannot be compared.
    """
    with open_trained(folder) as other, TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        _check_alike(own, other, winner)
        split, summary = _tokenised(own, other, Path(scratch))
        place = hashlib.sha256(other.ledger.store.url.encode()).hexdigest()[:8]  # of equal names
        name = f"against-{other.ledger.name}-{place}-{other.trial}-{other.evaluation.step}"
        kept = f"baselines/{TEST}/{name}"
        losses = own.ledger.array(f"{kept}.npy")
        if losses is None:
            found = score(other, split)
            losses = found.losses
            write_rows(own.ledger.store, kept, losses, found.rows_outcomes)
        if winner.rows is not None and winner.rows.of is not None:
            _have_answered(own, other, split, kept, winner.rows.of)
        rows = metric_rows(own.ledger, name, by)
        _check_measured(other, winner.rows, rows, by)
        return InUse(
            words=f"the model in use ({other.ledger.name}, {other.words})",
            measured=Measured(losses=_paired(winner, losses, own, other, summary), rows=rows),
            known_rows=_known(split, other.split("train")),
        )


def _check_alike(own: Trained, other: Trained, winner: Measured) -> None:
    where = f"--against: {other.ledger.name}"
    if own.ledger.store.url == other.ledger.store.url:
        raise InputError(f"{where} is the sweep itself; give that of the model in use")
    if own.config.task != other.config.task:
        raise InputError(f"{where}: its task is {other.config.task}, not {own.config.task}")
    by_answers = winner.rows is not None and winner.rows.of is not None
    is_relative = own.task.has_pairs and not by_answers
    if is_relative and own.config.model.words != other.config.model.words:
        raise InputError(
            f"{where}: its losses are against {other.config.model.words}, not against"
            f" {own.config.model.words}: a preference is what has changed from the untuned model"
        )
    if unknown := sorted(set(own.manifest.labels) - set(other.manifest.labels)):
        raise InputError(
            f"{where}: the model in use does not know the label(s) {', '.join(unknown[:5])}"
        )


def _have_answered(
    own: Trained, other: Trained, split: "Split", kept: str, rows: tuple[int, ...]
) -> None:
    """Write what the model in use answers to some rows of `split`, and what the sweep's metrics
    give of it, unless that is there.
    """
    from trainables.engine.budget import MICRO_BATCH_TOKENS
    from trainables.evaluation.answering import Answering
    from trainables.metrics.choosing import metrics_from

    config, store = own.config, own.ledger.store
    digest = settings_digest(config.metrics, config.generation)
    known = read_answers(store, kept)
    if known is not None and known.settings == digest and _asked(known, rows):
        return
    answering = Answering(
        task=own.task,
        split=split,
        tokenizer=other.tokenizer,
        metrics=metrics_from(config.metrics),
        settings=config.generation,
        pad_token_id=other.spec.pad_token_id,
        max_tokens=MICRO_BATCH_TOKENS[other.device.type],
        seed=config.seed,
        digest=digest,
        rows=rows,
    )
    if not answering.prompts:
        raise InputError(
            f"--against: {other.ledger.name}: the model in use reads at most"
            f" {other.manifest.max_length} tokens of a row, which holds none of the {len(rows)}"
            " test rows that the winner has answered"
        )
    write_answers(store, kept, answering.write(other.load()))


def _asked(known: Answered, rows: tuple[int, ...]) -> bool:
    """Whether no other rows were asked; some may hold no prompt for the model in use."""
    return set(known.rows) <= set(rows)


def _check_measured(other: Trained, own: Rows | None, its: Rows | None, by: Measure) -> None:
    if own is not None and its is None:
        raise InputError(
            f"--against: {other.ledger.name}: {metric_words(by.name)} is not told of the model in"
            " use on these test rows; compare by the loss: `metric: val_loss` in gate.yaml"
        )


def _tokenised(own: Trained, other: Trained, folder: Path) -> "tuple[Split, TokenSummary]":
    from trainables.data.prepare import open_split, tokenise_split

    in_bytes = own.manifest.encoding.in_bytes
    raw_rows_for(other, own.data / f"{TEST}.jsonl", TEST, folder, in_bytes=in_bytes)
    summary = tokenise_split(folder, TEST, other.tokenizer)
    return open_split(folder, TEST), summary


def _paired(
    winner: Measured, losses: np.ndarray, own: Trained, other: Trained, read: TokenSummary
) -> np.ndarray | None:
    """Losses of the model in use over the targets of the winner's. With one tokenizer the targets
    are the same; with two they are the same text, whose losses are compared as sums, as far as
    neither has lost any of it. None where they cannot be, and the two are compared by a metric.
    """
    assert winner.losses is not None, "the winner was scored"
    where = f"--against: {other.ledger.name}"
    if len(winner.losses) != len(losses):
        raise InputError(
            f"{where}: the {len(winner.losses)} test rows are {len(losses)} to the model in use, so"
            " that they cannot be compared one by one"
        )
    if np.allclose(winner.losses[:, 1], losses[:, 1]):
        return losses
    why = _other_targets(own, other, read)
    if why is None:
        return np.stack([losses[:, 0], winner.losses[:, 1]], axis=1)
    if winner.rows is None:
        raise InputError(f"{where}: {why}")
    return None


def _other_targets(own: Trained, other: Trained, read: TokenSummary) -> str | None:
    """Why the two predict other targets of the same rows; None where these are the same text."""
    if own.manifest.tokenizer == other.manifest.tokenizer:
        return (
            f"the model in use reads at most {other.manifest.max_length} tokens of a row, the"
            f" winner {own.manifest.max_length}, so that they have other targets to predict"
        )
    test = own.ledger.scored_test()
    cut = read.truncated + (0 if test is None else test.summary.truncated)
    if not cut:
        return None
    return (
        f"the tokenizers differ, and {cut} test row(s) are cut to the rows' most tokens, so that"
        " the models predict other texts; raise data.max_length of both"
    )


def _known(split: "Split", train: "Split") -> int:
    """Rows of `split` whose tokens are those of a row of `train`."""
    seen = {row["input_ids"].tobytes() for row in train.rows(range(len(train)))}
    return sum(row["input_ids"].tobytes() in seen for row in split.rows(range(len(split))))
