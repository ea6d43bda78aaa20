"""Answers at evaluations, scored on one worker of a slot, on all of them."""

from types import SimpleNamespace

import pytest

from trainables.errors import InputError
from trainables.evaluation.answered import Answered
from trainables.evaluation.record import MeasuredEvaluation
from trainables.runtime.answers import with_answers


def evaluation():
    return MeasuredEvaluation(
        step=1,
        samples_seen=10,
        epoch=1.0,
        val_loss=0.5,
        probe_loss=0.5,
        trainable_parameters=10,
        metrics={"perplexity": 1.6},
        losses=None,
    )


def of_both_workers(answered):
    """What rank 0 makes of it, and what the other worker does; an InputError as its words."""
    box = []

    def first(value):
        box.append(value)
        return value

    def never():
        raise AssertionError("scored on one worker alone")

    found = []
    for rank, share, each in ((0, first, answered), (1, lambda value: box[0], never)):
        try:
            found.append(
                with_answers(evaluation(), each, SimpleNamespace(from_rank_zero=share), rank)
            )
        except InputError as error:
            found.append(str(error))
    return found


def test_the_first_worker_adds_the_metrics_of_answers():
    written = Answered(rows=(3, 5), texts=("a", "b"), scores={"exact_match": (1.0, 0.0)})
    own, other = of_both_workers(lambda: written)
    assert own.metrics == {"perplexity": 1.6, "exact_match": 0.5} and own.answered is written
    assert other.metrics == {"perplexity": 1.6}
    assert [each.metrics for each in of_both_workers(lambda: None)] == [{"perplexity": 1.6}] * 2


def test_a_metric_that_fails_ends_the_trial_on_every_worker():
    def fails():
        raise InputError("metric mine:score: raised KeyError: 'x'")

    assert of_both_workers(fails) == ["metric mine:score: raised KeyError: 'x'"] * 2


def test_any_other_error_is_the_first_workers_own():
    def fails():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        of_both_workers(fails)
