"""What `verify` says of data and model that are no longer what they were."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from boards import board_of, record

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import MetricsReport
from sweeps.reporting.card import alternatives_lines, card, classes_lines
from sweeps.reporting.metrics import by_class
from sweeps.reporting.verify import altered, changed_sources, measured_again
from trainables.data.manifest import Manifest, SourceSummary
from trainables.tasks import TASKS

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
    config = SimpleNamespace(model=None, bases=("",))
    (tmp_path / "train.csv").write_bytes(CONTENT)
    assert changed_sources(ledger.manifest()) == []
    (tmp_path / "train.csv").write_bytes(CONTENT + b"c,d\n")
    assert changed_sources(ledger.manifest()) == [
        f"data.train: {tmp_path}/train.csv is no longer the file that the sweep read; it uses the"
        " data that it prepared"
    ]
    assert altered(ledger, config) == [], "what it prepared is what it used"
    (tmp_path / "train.csv").unlink()
    assert changed_sources(ledger.manifest()) == [], "what is not here cannot be compared"


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
    assert alternatives_lines(record(MetricsReport, {"alternatives": alternatives})) == [
        "| compared | validation loss | validation macro_f1 |",
        "|---|---|---|",
        "| the winner, t0001 | 0.5000 | 0.2500 |",
        "| train's label shares | 1.5000 |  |",
        "",
    ]
    several = by_class(TASKS["multi_label"].by_class(np.array([[1, 0, 1, 1]]), ["a", "b"]))
    assert classes_lines(record(MetricsReport, {"classes": {"test": several}}))[2:-1] == [
        "| class | rows | answered | recall | precision |",
        "|---|---|---|---|---|",
        "| a | 1 | 1 | 1.000 | 1.000 |",
        "| b | 1 | 0 | 0.000 |  |",
    ]
    outcomes = np.array([[0, 0], [1, 0], [1, 1]])
    found = by_class(TASKS["classification"].by_class(outcomes, ["a|b", "c"]))
    assert classes_lines(record(MetricsReport, {"classes": {"test": found}}))[4:] == [
        "| a\\|b | 2 | 1 | 0.500 | 1.000 | a\\|b 1, c 1 |",
        "| c | 1 | 2 | 1.000 | 0.500 | c 1 |",
        "",
    ]
    assert (
        alternatives_lines(None)
        == classes_lines(None)
        == classes_lines(record(MetricsReport, {"classes": None}))
        == []
    )


def card_of(manifest):
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
    return card(config, board_of(board), manifest, [])


def test_the_card_says_what_to_expect_where_the_winner_ran_again():
    told = card_of(Manifest(task="classification", labels=("a", "b"), max_length=32))
    assert "| validation loss | 0.49 |" in told
    assert "| validation loss, expected 0.4950 ± 0.0070, the mean of 2 new seeds | 0.495 |" in told
    assert "Verdict: healthy, later overfit (it is)" in told


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ([f"shards/{'ab'[i % 2]}/{i:04}.jsonl" for i in range(2000)], " below `shards`"),
        ([f"s3://bucket/x{i}.csv" for i in range(11)], " below `s3://bucket`"),
        ([*(f"x{i}.csv" for i in range(11)), "hf:owner/name"], ""),
    ],
)
def test_the_card_does_not_list_thousands_of_files(names, where):
    sums = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    sources = {
        f"train[{i}]": SourceSummary(source=name, rows=i, sha256=digest)
        for i, (name, digest) in enumerate(zip(names, sums, strict=True))
    }
    held_out = {f"test[{i}]": SourceSummary(source=f"t{i}.csv", sha256="f" * 64) for i in range(2)}
    told = card_of(Manifest(task="classification", labels=("a", "b"), sources=sources | held_out))
    whole = hashlib.sha256("".join(f"{each}\n" for each in sums).encode()).hexdigest()
    assert [line for line in told.splitlines() if line.startswith(("- train", "- test"))] == [
        f"- train: {len(names)} sources{where} with {sum(range(len(names)))} rows, SHA-256 {whole}"
        " (of the SHA-256 of each, one a line, in the order of `data/manifest.json`)",
        f"- test[0]: `t0.csv`, SHA-256 {'f' * 64}",
        f"- test[1]: `t1.csv`, SHA-256 {'f' * 64}",
    ]


def test_what_models_wrote_is_not_verified_as_it_is_not_written_again():
    reported = {"loss": 0.5, "perplexity": 1.6, "exact_match": 0.75}
    assert measured_again(reported, TASKS["instruction"]) == {"loss": 0.5, "perplexity": 1.6}
