"""The model in use, which is another sweep's winner, on the sealed test rows of a sweep."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from sweeps.use.scoring import raw_rows_for, score
from sweeps.use.trained import Trained, open_trained
from trainables.data.manifest import TokenSummary
from trainables.errors import InputError
from trainables.storage.checkpoints import write_rows

if TYPE_CHECKING:
    from trainables.data.arrow import Split

TEST = "test"


@dataclass(frozen=True, kw_only=True)
class InUse:
    """What the model in use makes of the test rows."""

    words: str
    losses: np.ndarray
    """Summed loss and targets of each row, as the winner's are told [N, 2]."""
    known_rows: int
    """Test rows that it has trained on, token by token."""

    @property
    def known_words(self) -> str:
        """Beside what is said of its losses; empty where it knows none of the rows."""
        if not self.known_rows:
            return ""
        return f" (it has trained on {self.known_rows} of these rows, which favours it)"


def score_in_use(folder: str, own: Trained, winner: np.ndarray) -> InUse:
    """Score the winner of the sweep in `folder` on the test rows of the sweep of `own`, each row
    tokenised as the model in use reads it; kept in the sweep's folder, and taken from there when it
    is asked again. winner: losses of the winner of `own` on these rows [N, 2].

    Raises InputError where their losses cannot be compared.
    """
    with open_trained(folder) as other, TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        _check_alike(own, other)
        words = f"the model in use ({other.ledger.name}, {other.words})"
        split, summary = _tokenised(own, other, Path(scratch))
        kept = f"baselines/{TEST}/against-{other.ledger.name}-{other.trial}-{other.evaluation.step}"
        losses = own.ledger.array(f"{kept}.npy")
        if losses is None:
            found = score(other, split)
            losses = found.losses
            write_rows(own.ledger.store, kept, losses, found.rows_outcomes)
        return InUse(
            words=words,
            losses=_paired(winner, losses, own, other, summary),
            known_rows=_known(split, other.split("train")),
        )


def _check_alike(own: Trained, other: Trained) -> None:
    where = f"--against: {other.ledger.name}"
    if own.ledger.store.url == other.ledger.store.url:
        raise InputError(f"{where} is the sweep itself; give that of the model in use")
    if own.config.task != other.config.task:
        raise InputError(f"{where}: its task is {other.config.task}, not {own.config.task}")
    if own.task.has_pairs and own.config.model.words != other.config.model.words:
        raise InputError(
            f"{where}: its losses are against {other.config.model.words}, not against"
            f" {own.config.model.words}: a preference is what has changed from the untuned model"
        )
    if unknown := sorted(set(own.manifest.labels) - set(other.manifest.labels)):
        raise InputError(
            f"{where}: the model in use does not know the label(s) {', '.join(unknown[:5])}"
        )


def _tokenised(own: Trained, other: Trained, folder: Path) -> "tuple[Split, TokenSummary]":
    from trainables.data.prepare import open_split, tokenise_split

    in_bytes = own.manifest.encoding.in_bytes
    raw_rows_for(other, own.data / f"{TEST}.jsonl", TEST, folder, in_bytes=in_bytes)
    summary = tokenise_split(folder, TEST, other.tokenizer)
    return open_split(folder, TEST), summary


def _paired(
    winner: np.ndarray, losses: np.ndarray, own: Trained, other: Trained, read: TokenSummary
) -> np.ndarray:
    """Losses of the model in use over the targets of the winner's. With one tokenizer the targets
    are the same; with two they are the same text, whose losses are compared as sums, as far as
    neither has lost any of it.
    """
    where = f"--against: {other.ledger.name}"
    if len(winner) != len(losses):
        raise InputError(
            f"{where}: the {len(winner)} test rows are {len(losses)} to the model in use, so that"
            " they cannot be compared one by one"
        )
    if np.allclose(winner[:, 1], losses[:, 1]):
        return losses
    if own.manifest.tokenizer == other.manifest.tokenizer:
        raise InputError(
            f"{where}: the model in use reads at most {other.manifest.max_length} tokens of a row,"
            f" the winner {own.manifest.max_length}, so that they have other targets to predict"
        )
    test = own.ledger.scored_test()
    cut = read.truncated + (0 if test is None else test.summary.truncated)
    if cut:
        raise InputError(
            f"{where}: the tokenizers differ, and {cut} test row(s) are cut to the rows' most"
            " tokens, so that the models predict other texts; raise data.max_length of both"
        )
    return np.stack([losses[:, 0], winner[:, 1]], axis=1)


def _known(split: "Split", train: "Split") -> int:
    """Rows of `split` whose tokens are those of a row of `train`."""
    seen = {row["input_ids"].tobytes() for row in train.rows(range(len(train)))}
    return sum(row["input_ids"].tobytes() in seen for row in split.rows(range(len(split))))
