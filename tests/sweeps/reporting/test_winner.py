"""What `verify` says of data and model that are no longer what they were."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.reporting.card import alternatives_lines, card, classes_lines
from sweeps.reporting.metrics import by_class
from sweeps.reporting.verify import altered
from trainables.data.manifest import Manifest

ROOT = Path(__file__).resolve().parents[3]
CONTENT = b"text,label\na,b\n"


@pytest.fixture
def ledger(tmp_path):
    """A folder whose data came from train.csv beside it, and from a hub."""
    made = Ledger(str(tmp_path / "quick-20260101-120000"))
    source = {"source": str(tmp_path / "train.csv"), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    sources = {"train": source, "test": {"source": "hf:somebody/something", "sha256": "f" * 64}}
    made.store.write_json("data/manifest.json", {"splits": {}, "sources": sources})
    return made


def test_a_source_that_has_changed_since_is_named(ledger, tmp_path):
    config = SimpleNamespace(model=None)
    (tmp_path / "train.csv").write_bytes(CONTENT)
    assert altered(ledger, config) == []
    (tmp_path / "train.csv").write_bytes(CONTENT + b"c,d\n")
    assert altered(ledger, config) == [
        f"data.train: {tmp_path}/train.csv is no longer the file that the sweep read"
    ]
    (tmp_path / "train.csv").unlink()
    assert altered(ledger, config) == [], (
        "what is not here cannot be compared: the prepared data are"
    )


def test_the_card_has_the_metrics_of_all_that_is_compared_and_the_answers_by_class():
    alternatives = [
        {
            "name": "winner",
            "words": "the winner, t0001",
            "validation": {"loss": 0.5, "metrics": {"macro_f1": 0.25}},
        },
        {
            "name": "prior",
            "words": "train's label shares",
            "validation": {"loss": 1.5, "metrics": {}},
        },
    ]
    alternatives = [{**each, "test": None} for each in alternatives]
    assert alternatives_lines({"alternatives": alternatives}) == [
        "| compared | validation loss | validation macro_f1 |",
        "|---|---|---|",
        "| the winner, t0001 | 0.5000 | 0.2500 |",
        "| train's label shares | 1.5000 |  |",
        "",
    ]
    found = by_class(np.array([[0, 0], [1, 0], [1, 1]]), ["a|b", "c"])
    assert classes_lines({"classes": {"test": found}})[4:] == [
        "| a\\|b | 2 | 1 | 0.500 | 1.000 | a\\|b 1, c 1 |",
        "| c | 1 | 2 | 1.000 | 0.500 | c 1 |",
        "",
    ]
    assert alternatives_lines(None) == classes_lines(None) == classes_lines({"classes": None}) == []


def test_the_card_says_what_to_expect_where_the_winner_ran_again(tmp_path):
    config = load(ROOT / "sweeps" / "gpt2_tweets.yaml")
    seeds = {"t0002": 0.49, "t0003": 0.5}
    evaluation = {
        "samples_seen": 10,
        "epoch": 1.0,
        "val_loss": 0.49,
        "probe_loss": 0.4,
        "metrics": {},
    }
    params = {"method": "full", "learning_rate": 1e-4, "batch_size": 8, "epochs": 1}
    trial = {
        "id": "t0002",
        "verdict": "healthy",
        "verdict_later": "overfit",
        "verdict_reason": "it is",
    }
    board = {
        "winner": {"trial": "t0002", "params": params, "reason": "Lowest mean.", **evaluation},
        "trials": [trial | {"evaluations": [evaluation]}],
        "baselines": {},
        "folder": "runs/quick",
    }
    board["winner"]["expected"] = {"seeds": seeds, "failed": [], "mean": 0.495, "spread": 0.007}
    told = card(config, board, Manifest(labels=("a", "b"), max_length=32), [])
    assert "| validation loss | 0.49 |" in told
    assert "| validation loss, expected 0.4950 ± 0.0070, the mean of 2 new seeds | 0.495 |" in told
    assert "Verdict: healthy, later overfit (it is)" in told
