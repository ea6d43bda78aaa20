"""A trained model of a sweep, as all that use it open it: the winner, or the best of a trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.handover import relative_name, trained_base
from sweeps.selection.verdicts import best_point
from trainables.data.manifest import Manifest
from trainables.data.prepare import CHAT_TEMPLATE
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation
from trainables.hyperparameters import base_of
from trainables.models.base import BaseSpec
from trainables.models.checkpoint import load_checkpoint, load_untuned
from trainables.models.files import load_tokenizer, pad_token_of, quiet
from trainables.storage.checkpoints import CHECKPOINT, read_evaluation
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainables.data.arrow import Split


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A checkpoint of a sweep, its base and its data, on this machine."""

    ledger: Ledger
    config: SweepConfig
    """The sweep's, over the checkpoint's own base alone."""
    trial: str
    words: str
    """Which it is: `the winner, trial t0003`."""
    params: Mapping[str, object]
    evaluation: Evaluation
    """As the slot wrote it when it saved the checkpoint."""
    files: Path
    """A folder of this machine that holds the checkpoint's files."""
    data: Path
    """The prepared data for its base."""
    manifest: Manifest
    """Of those."""

    @property
    def task(self) -> Task:
        return TASKS[self.config.task]

    @property
    def virtual_tokens(self) -> int:
        """That its method puts before each row."""
        return self.config.hyperparameters(self.params).options.soft_prompt_tokens

    @cached_property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """With the chat template that it was trained with."""
        found = load_tokenizer(self.config.model)
        if (template := self.data / CHAT_TEMPLATE).exists():
            found.chat_template = template.read_text(encoding="utf-8")
        return found

    @cached_property
    def spec(self) -> BaseSpec:
        """Of its base."""
        pad = pad_token_of(self.tokenizer)
        return trained_base(self.config, self.params, self.manifest, pad)

    def load(self) -> "PreTrainedModel":
        """In eval mode on `device`, by transformers and PEFT alone."""
        quiet()
        return load_checkpoint(self.files, self.spec, self.device)

    def load_untuned(self) -> "PreTrainedModel":
        """What it was trained from, likewise."""
        quiet()
        return load_untuned(self.spec, self.device)

    def split(self, name: str = "validation") -> "Split":
        """Prepared rows: `train`, `validation`, or `test` once it has been scored."""
        from trainables.data.prepare import open_split

        return open_split(self.data, name)


@contextmanager
def open_trained(folder: str, trial: str | None = None) -> Iterator[Trained]:
    """The winner of the sweep in `folder` (a path or URL), or the best checkpoint of a trial that
    may win. Its files are there for as long as the context lasts. Raises InputError where there is
    none.
    """
    ledger, config = open_sweep(folder)
    ledger.load()
    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        yield (
            _winner(ledger, config, Path(scratch))
            if trial is None
            else _best_of(ledger, config, trial, Path(scratch))
        )


def _winner(ledger: Ledger, config: SweepConfig, scratch: Path) -> Trained:
    winner = ledger.handed_over()
    if winner is None:
        raise InputError(
            f"{ledger.store.path('')}: there is no winner; the sweep has not ended, or nothing"
            " could win (the best of a trial: --trial ID)"
        )
    assert winner.checkpoint is not None, "what is handed over has a checkpoint"
    folder = relative_name(ledger, winner.checkpoint).removesuffix(f"/{CHECKPOINT}")
    evaluation = read_evaluation(ledger.store, folder)
    words = f"the winner, trial {winner.trial}"
    return _trained(ledger, config, winner.trial, words, winner.params, evaluation, WINNER, scratch)


def _best_of(ledger: Ledger, config: SweepConfig, trial: str, scratch: Path) -> Trained:
    known = {curve.id: curve for curve in ledger.curves()}
    if trial not in known:
        raise InputError(
            f"--trial: {ledger.store.path('')} has no trial {trial!r}; it has"
            f" {', '.join(known) or 'none'}"
        )
    curve = known[trial]
    point = best_point(curve, config.selection)
    if point is None or point.checkpoint is None:
        raise InputError(f"--trial: {trial} has no checkpoint that may win ({curve.status})")
    kept = f"{point.folder}/{CHECKPOINT}"
    return _trained(ledger, config, trial, f"trial {trial}", curve.params, point, kept, scratch)


def _trained(
    ledger: Ledger,
    config: SweepConfig,
    trial: str,
    words: str,
    params: Mapping[str, object],
    evaluation: Evaluation,
    folder: str,
    scratch: Path,
) -> Trained:
    base = base_of(params)
    prepared = ledger.data_folders()[base]
    files = ledger.store.fetch(folder, scratch)
    data = ledger.store.fetch(prepared, scratch)
    return Trained(
        ledger=ledger,
        config=config.over(base),
        trial=trial,
        words=words,
        params=params,
        evaluation=evaluation,
        files=files,
        data=data,
        manifest=ledger.manifest(prepared),
    )
