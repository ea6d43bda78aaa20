"""Optuna gives enqueued trials first, whoever enqueued them, and need not look through all the others for them."""

import pytest
from optuna.storages.journal import JournalStorage
from optuna.trial import TrialState

from sweeps.config.schema import SearchConfig
from sweeps.search.study import STUDY, open_study

CONFIG = SearchConfig(sampler="random", trials=2)
LOW, HIGH = 0.0, 100.0


def opened(folder):
    return open_study(folder / STUDY, "s", CONFIG, 0)


def draw(study):
    """A trial's number and value, told."""
    asked = study.ask()
    value = asked.suggest_float("x", LOW, HIGH)
    study.tell(asked, value)
    return asked.number, value


def test_what_is_enqueued_comes_next_and_once(tmp_path):
    study = opened(tmp_path)
    study.enqueue_trial({"x": 1.0})
    study.enqueue_trial({"x": 2.0})
    assert [draw(study) for _ in range(2)] == [(0, 1.0), (1, 2.0)]
    assert draw(study)[0] == 2  # drawn
    study.enqueue_trial({"x": 3.0})
    assert draw(study) == (3, 3.0)
    assert draw(study)[0] == 4


def test_what_was_enqueued_before_a_restart_comes_after_it(tmp_path):
    opened(tmp_path).enqueue_trial({"x": 1.0})
    study = opened(tmp_path)
    assert draw(study) == (0, 1.0)
    study.enqueue_trial({"x": 2.0})
    again = opened(tmp_path)
    assert draw(again) == (1, 2.0)
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE] * 2


def test_what_another_process_enqueues_comes_next(tmp_path):
    study, other = opened(tmp_path), opened(tmp_path)
    assert draw(study)[0] == 0
    other.enqueue_trial({"x": 1.0})
    assert draw(study) == (1, 1.0)
    other.enqueue_trial({"x": 2.0})
    assert draw(other) == (2, 2.0)
    assert draw(study)[0] == 3


def test_waiting_trials_are_told_apart_by_study_and_all_others_are_listed_as_ever(tmp_path):
    import optuna

    study = opened(tmp_path)
    other = optuna.create_study(study_name="other", storage=study._storage)
    study.enqueue_trial({"x": 1.0})
    assert draw(study) == (0, 1.0)
    other.enqueue_trial({"x": 2.0})
    assert draw(study)[0] == 1 and draw(other) == (0, 2.0)
    study.enqueue_trial({"x": 3.0})
    assert [trial.number for trial in study.get_trials(states=(TrialState.WAITING,))] == [2]
    assert len(study.trials) == 3 and len(other.trials) == 1


def test_a_trial_is_drawn_without_looking_through_all(tmp_path, monkeypatch):
    study = opened(tmp_path)
    draw(study)
    monkeypatch.setattr(JournalStorage, "get_all_trials", lambda *_, **__: pytest.fail("all"))
    study.enqueue_trial({"x": 1.0})
    assert draw(study) == (1, 1.0)
    assert draw(study)[0] == 2
