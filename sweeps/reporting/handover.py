"""Hand over the winner: a folder that transformers or PEFT load alone, with a card; and check that
it gives the number shown.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.reporting.card import card, usage_code
from trainables.data.manifest import Manifest
from trainables.data.prepare import CHAT_TEMPLATE
from trainables.hyperparameters import base_of
from trainables.models.base import BaseSpec
from trainables.models.checkpoint import base_spec, complete, loading_code
from trainables.models.files import load_tokenizer, pad_token_of
from trainables.models.lineage import LINEAGE, Ancestor, lineage_json
from trainables.models.origin import adapter_of
from trainables.storage.checksums import CARD, CHECKSUMS, with_checksum, write_checksums
from trainables.storage.records import to_json
from trainables.tasks import TASKS


def hand_over(ledger: Ledger, config: SweepConfig, board: Leaderboard) -> str:
    """Write `winner/`: the checkpoint's files, the tokenizer, what was reported, README.md, and the
    sums of all. Returns where it lies.
    """
    winner = board.winner
    assert winner is not None and winner.checkpoint is not None, "what is handed over has won"
    base = base_of(winner.params)
    config, prepared = config.over(base), ledger.data_folders()[base]
    folder = ledger.store.scratch()
    name = relative_name(ledger, winner.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(ledger.store.fetch(name, Path(scratch)), folder, dirs_exist_ok=True)
    tokenizer = load_tokenizer(config.model)
    manifest = ledger.manifest(prepared)
    if ledger.store.exists(template := f"{prepared}/{CHAT_TEMPLATE}"):
        tokenizer.chat_template = ledger.store.read_bytes(template).decode()
    tokenizer.save_pretrained(folder)
    spec = trained_base(config, winner.params, manifest, pad_token_of(tokenizer))
    complete(folder, spec, WINNER)
    lineage = [*ledger.lineage(base), ancestor(ledger, config, board, spec, manifest)]
    (folder / LINEAGE).write_text(json.dumps(lineage_json(lineage), indent=1), encoding="utf-8")
    (folder / CARD).write_text(_card(config, board, manifest, spec, folder), encoding="utf-8")
    ledger.store.delete(WINNER)
    (folder / "winner.json").write_text(json.dumps(to_json(winner), indent=1))
    write_checksums(folder)
    ledger.store.publish(folder, WINNER, last="winner.json")
    return ledger.store.path(WINNER)


def renew_card(
    ledger: Ledger,
    config: SweepConfig,
    board: Leaderboard,
    manifest: Manifest,
    spec: BaseSpec,
    folder: Path,
) -> None:
    """Write the card anew, of a winner of which more has been measured. config: over its base;
    folder: the files of `winner/` on this machine.
    """
    written, sums = _card(config, board, manifest, spec, folder).encode(), f"{WINNER}/{CHECKSUMS}"
    ledger.store.write_bytes(f"{WINNER}/{CARD}", written)
    if ledger.store.exists(sums):
        before = ledger.store.read_bytes(sums)
        ledger.store.write_bytes(sums, with_checksum(before, CARD, written))


def _card(
    config: SweepConfig, board: Leaderboard, manifest: Manifest, spec: BaseSpec, folder: Path
) -> str:
    loading = usage_code(loading_code(folder, spec, WINNER), config, manifest)
    return card(config, board, manifest, loading)


def ancestor(
    ledger: Ledger,
    config: SweepConfig,
    board: Leaderboard,
    spec: BaseSpec,
    manifest: Manifest,
) -> Ancestor:
    """The winner, as those know it that go on from it."""
    winner = board.winner
    assert winner is not None, "what is handed over has won"
    splits, continued = manifest.splits, None
    if config.model.adapter == "continue":
        continued = adapter_of(config.model)
    return Ancestor(
        sweep=ledger.name,
        trial=winner.trial,
        step=winner.step,
        val_loss=winner.val_loss,
        data={name: split.fingerprint or split.raw_fingerprint for name, split in splits.items()},
        base=config.model.name if continued is None else continued.base.name,
        method=config.hyperparameters(winner.params).method,
        task=config.task,
        auto_class=spec.auto_class,
        problem_type=spec.problem_type,
        outputs=spec.outputs,
        quantisation=spec.quantisation,
    )


def trained_base(
    config: SweepConfig, params: Mapping[str, object], manifest: Manifest, pad_token_id: int
) -> BaseSpec:
    """The base of a trial with these parameters, on this machine."""
    import torch

    hp, device = (
        config.hyperparameters(params),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    task = TASKS[config.task]
    labels, precision = manifest.labels, config.train.precision
    return base_spec(
        config.model, task, labels, pad_token_id, hp.method, hp.options, device, precision
    )


def relative_name(ledger: Ledger, checkpoint: str) -> str:
    """The checkpoint's name inside the sweep's folder, wherever that folder has been moved
    since.
    """
    return "trials/" + checkpoint.rsplit("/trials/", 1)[1]
