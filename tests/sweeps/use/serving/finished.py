"""A sweep of one trial from rows to a winner that is handed over: all but the cluster is what `run` does."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from drawn import WORDS

from sweeps.config.loading import load
from sweeps.reporting.handover import hand_over
from sweeps.reporting.leaderboard import leaderboard
from sweeps.run.folder import absolute_paths, new_folder, write_configuration
from trainables.data.prepare import prepare
from trainables.engine.group import GroupSettings, open_group
from trainables.models.files import context_length, load_model_config, load_tokenizer
from trainables.storage.checkpoints import begin_attempt, write_evaluation
from trainables.storage.records import to_json

TRIAL = "t0001"


def texts(seed: int = 0, count: int = 200) -> list[list[str]]:
    """Words, and three digits that tell rows apart."""
    drawn = random.Random(seed)
    return [
        [*drawn.choices(WORDS.split(), k=drawn.randint(2, 6)), *f"{n:03}"] for n in range(count)
    ]


def classes() -> list[dict[str, object]]:
    return [
        {"text": " ".join(words), "label": "long" if len(words[0]) > 4 else "short"}
        for words in texts()
    ]


def finish(file: Path, params: dict[str, object]) -> Path:
    """Train one trial with `params` as the sweep in `file` says, and hand its best over; the sweep's folder."""
    config = absolute_paths(load(file))
    ledger = new_folder(config)
    assert ledger.store.local is not None
    tokenizer = load_tokenizer(config.model)
    data = ledger.store.local / "data"
    context = context_length(load_model_config(config.model))
    prepare(config.data, config.task, tokenizer, config.seed, data, context)
    write_configuration(ledger, config)
    ledger.set_status("running", 0.0)
    group = open_group(
        data,
        model=config.model,
        task=config.task,
        pad_token_id=int(tokenizer.pad_token_id),
        settings=GroupSettings(probe_rows=8, seed=config.seed),
        device=torch.device("cpu"),
    )
    hp = config.hyperparameters(params)
    ledger.begin(TRIAL, params, default=True)
    attempt, _ = begin_attempt(ledger.store, TRIAL)
    group.join(TRIAL, hp)
    while True:
        while not group.step([TRIAL]):
            pass
        evaluation = group.evaluate([TRIAL])[TRIAL]
        ledger.record(
            TRIAL,
            write_evaluation(
                ledger.store, TRIAL, attempt, evaluation, lambda folder: group.save(TRIAL, folder)
            ),
        )
        if evaluation.finished:
            break
    ledger.finish(TRIAL, "complete", None)
    ledger.set_status("finished", 1.0)
    selection = replace(config.selection)
    board = leaderboard(ledger.load(), config.name, selection)
    assert board.winner is not None, to_json(board)
    hand_over(ledger, config, board)
    return ledger.store.local
