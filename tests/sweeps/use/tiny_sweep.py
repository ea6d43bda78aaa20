"""A finished sweep of one trial over a tiny drawn model, made without Ray: data, checkpoint, winner."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from sweeps.config.loading import dump, load
from sweeps.ledger.folder import Ledger
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.handover import hand_over
from sweeps.reporting.leaderboard import leaderboard
from sweeps.run.folder import absolute_paths
from sweeps.run.preparation import prepare_data
from tests.trainables import zoo
from trainables.engine.group import GroupSettings, open_group
from trainables.evaluation.jobs import run
from trainables.evaluation.record import ScoredTest, TestJob, TrainedCheckpoint
from trainables.models.files import load_tokenizer, pad_token_of
from trainables.runtime.protocol import SlotBase, SlotConfig
from trainables.storage.checkpoints import CHECKPOINT, begin_attempt, write_evaluation
from trainables.tasks import TASKS

TRIAL = "t0001"
STEPS = 4
WORDS = "good bad fine awful great dull bright slow quick weak strong nice poor rich sad".split()


def rows_of(task: str) -> list[dict[str, Any]]:
    """Forty of them."""
    found = []
    for i in range(40):
        text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 5)) + f" {i}"
        kinds: dict[str, dict[str, Any]] = {
            "classification": {
                "text": text,
                "label": ("low", "middle", "high")[i % 3],
                "half": "first" if i % 2 else "second",
            },
            "regression": {"text": text, "label": i / 10},
            "multi_label": {"text": text, "labels": ["a", "b"][: i % 3]},
            "token_classification": {
                "tokens": text.split(),
                "tags": ["B-X" if len(word) > 4 else "O" for word in text.split()],
            },
            "causal_lm": {"text": text},
            "instruction": {
                "messages": [
                    {"role": "user", "content": text[:12]},
                    {"role": "assistant", "content": text[-8:]},
                ]
            },
            "preference": {"prompt": text[:8], "chosen": text[-6:], "rejected": text[8:14]},
            "seq2seq": {"source": text, "target": text.upper()},
        }
        found.append(kinds[task])
    return found


def tiny_sweep(
    folder: Path,
    task: str,
    model: Path | str,
    method: str,
    *,
    won: bool = True,
    steps: int = STEPS,
    data: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **params: Any,
) -> Path:
    """The sweep's folder. won: whether it has been handed over."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(task)), encoding="utf-8")
    general = folder / "general.txt"  # the default is 65,000 tokens
    general.write_text("What was known before, and may be lost. " * 40, encoding="utf-8")
    given = {"learning_rate": 2e-2, "batch_size": 8, "epochs": 9, **params}
    given |= {"schedule": "constant", "warmup_ratio": 0.0}
    tree = {
        "name": "tiny",
        "task": task,
        "storage": str(folder / "runs"),
        "model": {"name": str(model)},
        "data": {"train": str(file), "validation": 0.3, "max_length": 48, **(data or {})},
        "train": {"probe_rows": 6},
        "search": {"trials": 1, "space": {"method": method, **given}},
        "selection": {"general_text": str(general)} if TASKS[task].continues_text else {},
        **(settings or {}),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = absolute_paths(load(folder / "sweep.yaml"))
    ledger = Ledger(str(folder / "runs" / "tiny-20260101-120000"))
    ledger.store.write_bytes("sweep.yaml", dump(config).encode())
    prepare_data(config, Path(ledger.store.url) / "data")
    _train(ledger, config, {"method": method, **given}, steps)
    ledger.set_status("finished", 1.0)
    if won:
        board = leaderboard(ledger.load(), config.name, config.selection)
        hand_over(ledger, config, board)
    return Path(ledger.store.url)


def _train(ledger: Ledger, config: Any, params: dict[str, Any], steps: int) -> None:
    group = open_group(
        Path(ledger.store.url) / "data",
        model=config.model,
        task=config.task,
        pad_token_id=pad_token_of(load_tokenizer(config.model)),
        settings=GroupSettings(probe_rows=6),
        device=torch.device("cpu"),
    )
    ledger.begin(TRIAL, params)
    begin_attempt(ledger.store, TRIAL)
    group.join(TRIAL, config.hyperparameters(params))
    for _ in range(steps):
        group.step([TRIAL])
    evaluation = group.evaluate([TRIAL])[TRIAL]
    write_evaluation(ledger.store, TRIAL, 1, evaluation, lambda target: group.save(TRIAL, target))
    ledger.finish(TRIAL, "complete", None)


def score_test(folder: Path) -> None:
    """What a slot does of the sealed test split of a finished sweep, once there is a winner."""
    ledger, config = open_sweep(str(folder))
    winner, _ = ledger.load().select(config.selection)
    assert winner is not None and winner.point.checkpoint is not None
    checkpoint = f"{winner.point.folder}/{CHECKPOINT}"
    parameters = ledger.curve(winner.trial).params
    trained = TrainedCheckpoint(checkpoint=checkpoint, parameters=parameters)
    pad = pad_token_of(load_tokenizer(config.model))
    slot = SlotConfig(
        sweep="",
        slot="",
        coordinator="",
        namespace="",
        storage=ledger.store.url,
        bases={"": SlotBase(model=config.model, pad_token_id=pad, baseline=parameters)},
        task=config.task,
        seed=config.seed,
        evaluate_every=None,
        max_tokens=None,
        precision="fp32",
        save_dtype="fp32",
        gradient_checkpointing=False,
        most=1,
        probe_rows=6,
        forgetting=False,
        baseline_minutes=1.0,
        threads=1,
        metrics=config.metrics,
        generation=config.generation,
    )
    found = run(ledger.store, slot, TestJob(winner=trained, default=None, baselines=False))
    assert isinstance(found, ScoredTest), found
    ledger.write_test(found, config.selection)


def drawn(
    folder: Path, name: str, kind: zoo.Task, change: Callable[[Path], None] | None = None
) -> Path:
    """A model of the zoo."""
    zoo.make(name, kind, folder)
    if change is not None:
        change(folder)
    return folder
