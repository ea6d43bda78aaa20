"""Which answers a sweep still needs, when it is resumed with other metrics or rows. Without Ray."""

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from sweeps.config.loading import from_tree
from sweeps.config.resuming import check_resumable
from sweeps.ledger.folder import Ledger
from sweeps.run.jobs import Jobs
from trainables.errors import InputError
from trainables.evaluation.answered import Answered, write_answers
from trainables.evaluation.record import MeasuredEvaluation
from trainables.metrics.config import settings_digest
from trainables.storage.checkpoints import CHECKPOINT, begin_attempt, write_evaluation

TEST = {"trial": "t0002", "step": 1, "split": {}, "scores": {"winner": {"loss": 1.0}}}


def configuration(*overrides):
    space = {"method": "lora", "learning_rate": {"log_uniform": [1e-4, 1e-2]}, "batch_size": 2}
    tree = {
        "name": "quick",
        "task": "instruction",
        "model": {"name": "tiny"},
        "data": {"train": "rows.jsonl"},
        "search": {"space": space, "trials": 3},
        "train": {"epochs": 2},
        "metrics": ["exact_match"],
        "generation": {"rows": 20, "candidates": 1},
        "selection": {"metric": "exact_match", "metric_mode": "max"},
    }
    return from_tree(OmegaConf.create(tree), overrides, "sweep.yaml")


def answer(ledger, config, folder, shares, rows=range(20)):
    rows = tuple(rows)
    write_answers(
        ledger.store,
        folder,
        Answered(
            rows=rows,
            texts=tuple("" for _ in rows),
            scores={
                "exact_match": tuple(float(k < shares * len(rows)) for k, _ in enumerate(rows))
            },
            settings=settings_digest(config.metrics, config.generation),
        ),
    )


def save(folder):
    (folder / CHECKPOINT).mkdir()
    (folder / CHECKPOINT / "adapter_model.safetensors").write_bytes(b"weights")


@pytest.fixture
def ended(tmp_path):
    """A finished sweep of three trials; that of the lowest loss and one more have answered."""
    ledger, config = Ledger(str(tmp_path / "quick")), configuration()
    splits = {"train": {"rows": 10}, "validation": {"rows": 40}, "test": {"read": 40}}
    ledger.store.write_json(
        "data/manifest.json",
        {"task": "instruction", "splits": splits, "data": {}, "encoding": {}, "notes": []},
    )
    for trial, loss in (("t0001", 3.0), ("t0002", 2.0), ("t0003", 4.0)):
        ledger.begin(trial, {"method": "lora", "learning_rate": 1e-3, "batch_size": 2})
        begin_attempt(ledger.store, trial)
        measured = MeasuredEvaluation(
            step=1,
            samples_seen=10,
            epoch=1.0,
            val_loss=loss,
            probe_loss=loss,
            trainable_parameters=10,
            metrics={},
            losses=np.array([[loss, 1]] * 4, np.float32),
        )
        ledger.record(trial, write_evaluation(ledger.store, trial, 1, measured, save))
        ledger.finish(trial, "complete", None)
    for trial, share in (("t0001", 0.25), ("t0002", 0.75)):
        answer(ledger, config, f"trials/{trial}/attempt-1/step-00000001", share)
    for way in ("validation/untuned", "validation/few_shot", "test/winner"):
        answer(ledger, config, f"baselines/{way}", 0.1)
    ledger.store.write_json("baselines.json", {"few_shot": {"val_loss": 3.0}})
    ledger.store.write_json("test.json", TEST)
    for name in ("forgetting",):
        ledger.store.write_json(
            f"{name}.json", {"trial": "t0002", "step": 1, "before": 1.0, "after": 1.0, "kl": 0.0}
        )
    return again(ledger)


def again(ledger):
    return Ledger(ledger.store.url).load()


def left(ledger, config):
    return [*Jobs(config, ledger, ledger.manifest(), print).left()]


def test_a_finished_sweep_has_nothing_left(ended):
    assert left(ended, configuration()) == []


def test_of_another_metric_all_that_answered_are_asked_again_and_then_the_test_split(ended):
    config = configuration("metrics=[exact_match, token_f1]")
    asked = ["answers of untuned", "answers of t0002 at step 1", "answers of t0001 at step 1"]
    assert left(ended, config) == ["baselines", *asked]
    for folder in ("trials/t0001", "trials/t0002"):
        answer(ended, config, f"{folder}/attempt-1/step-00000001", 0.5)
    for way in ("untuned", "few_shot"):
        answer(ended, config, f"baselines/validation/{way}", 0.1)
    assert left(again(ended), config) == ["test"]
    answer(ended, config, "baselines/test/winner", 0.1)
    assert left(again(ended), config) == []


def test_a_sweep_that_the_loss_chooses_asks_its_candidates_alone(ended):
    config = configuration("generation.rows=30", "selection.metric=null")
    asked = [name for name in left(ended, config) if name.startswith("answers")]
    assert asked == ["answers of untuned", "answers of t0002 at step 1"]


def test_what_was_compared_before_more_answers_is_compared_anew(ended):
    config = configuration()
    assert ended.select(config.selection)[0].trial == "t0002"
    for trial, share in (("t0001", 1.0), ("t0002", 0.0)):
        answer(ended, config, f"trials/{trial}/attempt-1/step-00000001", share, range(40))
        ended.note_answers(trial)
    winner, reason = ended.select(config.selection)
    assert winner.trial == "t0001", reason
    for trial, share in (("t0001", 0.0), ("t0002", 1.0)):
        answer(ended, config, f"trials/{trial}/attempt-1/step-00000001", share)
        ended.note_answers(trial)
    assert ended.select(config.selection)[0].trial == "t0002"


def test_rows_that_both_were_asked_are_compared(ended):
    """Over another base other rows may be cut."""
    config = configuration()
    for trial, share, rows in (("t0001", 0.8, range(2, 22)), ("t0002", 0.75, range(20))):
        answer(ended, config, f"trials/{trial}/attempt-1/step-00000001", share, rows)
        ended.note_answers(trial)
    winner, reason = ended.select(config.selection)
    assert winner.trial == "t0002" and "does not tell it from" in reason


@pytest.mark.parametrize(
    "override", ["generation.rows=30", "generation.temperature=1", "metrics=[token_f1]"]
)
def test_what_the_search_was_told_of_stays_as_it_was_asked(override):
    every = "generation.when=evaluations"
    former = configuration(every)
    if override.startswith("metrics"):
        config = replace(former, metrics=[{"exact_match": {"normalisation": "squad"}}])
    else:
        config = configuration(every, override)
    with pytest.raises(InputError, match="cannot change when a sweep is resumed: the search was"):
        check_resumable(former, config)
    check_resumable(former, configuration(every, "metrics=[exact_match, token_f1]"))
    check_resumable(configuration(), configuration("generation.rows=30"))
