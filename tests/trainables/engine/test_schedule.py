"""How many steps a trial trains, and how many rows those see."""

import pytest

from trainables.engine.schedule import (
    averaged_steps,
    evaluated_at,
    is_due,
    last_step,
    learning_rate,
    samples_seen,
    total_steps,
    trained_samples,
)
from trainables.hyperparameters import parse


def params(batch_size, epochs, **more):
    return parse(
        {
            "method": "full",
            "learning_rate": 1e-4,
            "batch_size": batch_size,
            "epochs": epochs,
            **more,
        }
    )


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps", "samples"),
    [
        (80, 24, 0.3, 1, 24),  # as near to 24 rows as whole batches come
        (80, 24, 0.5, 2, 48),
        (80, 24, 0.9, 3, 72),
        (80, 24, 1, 4, 80),  # the last batch of an epoch is short
        (80, 24, 1.3, 5, 104),
        (80, 24, 2, 8, 160),
        (80, 24, 2.6, 10, 208),
        (95, 10, 1.1, 11, 105),
        (95, 10, 2.05, 20, 190),  # of a twentieth of an epoch the nearest number of batches is none
        (95, 10, 8.2, 82, 780),
        (100, 10, 1.1, 11, 110),  # 1.1 is a little more than 11 tenths in binary
        (100, 10, 0.7, 7, 70),
        (80, 24, 0.01, 1, 24),  # at least one step
        (80, 100, 0.5, 1, 80),  # a batch above the rows is a whole epoch
        (80, 100, 3, 3, 240),
        (1, 1, 1, 1, 1),
        (1000, 1, 0.2345, 234, 234),
    ],
)
def test_a_trial_trains_what_its_epochs_say(rows, batch_size, epochs, steps, samples):
    hp = params(batch_size, epochs)
    assert total_steps(rows, hp) == steps
    assert trained_samples(rows, hp) == samples == samples_seen(rows, hp, steps)


@pytest.mark.parametrize("rows", [1, 7, 80, 96, 97, 1000])
@pytest.mark.parametrize("batch_size", [1, 7, 24, 96, 2000])
def test_whole_epochs_are_whole_and_parts_are_within_half_a_batch(rows, batch_size):
    for epochs in (1, 2, 3, 7):
        assert trained_samples(rows, params(batch_size, epochs)) == epochs * rows
    for tenths in range(1, 40):
        trained = trained_samples(rows, params(batch_size, tenths / 10))
        first = min(batch_size, rows)  # at least one step
        assert trained == first or abs(trained - tenths / 10 * rows) <= batch_size / 2 + 1e-6


@pytest.mark.parametrize(
    ("epochs", "every", "last", "averaged"),
    [
        (3, 80, 2, [12, 8]),
        (3, 80, 9, [12, 8, 4]),  # no more than there are
        (2.6, 80, 2, [10, 8]),  # the last whether or not a count of samples is full
        (2, 10, 3, [8, 7, 6]),  # of two counts in one step one evaluation
        (0.5, 80, 2, [2]),
    ],
)
def test_an_average_is_one_step_more_that_trains_nothing(epochs, every, last, averaged):
    hp, plain = params(24, epochs, average_last=last), params(24, epochs)
    total = total_steps(80, hp)
    assert averaged_steps(80, hp, every) == averaged and averaged_steps(80, plain, every) == []
    assert (total, last_step(80, hp)) == (last_step(80, plain), total + 1)
    assert samples_seen(80, hp, total + 1) == trained_samples(80, hp) == trained_samples(80, plain)
    due = [step for step in range(1, total + 2) if is_due(80, hp, step, every)]
    assert due == [step for step in range(1, total + 1) if is_due(80, plain, step, every)] + [
        total + 1
    ]
    for step in range(total):
        assert learning_rate(hp, step, total) == learning_rate(plain, step, total)


@pytest.mark.parametrize("epochs", [0.4, 1, 2, 2.3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("every", [1, 5, 10, 25, 50, 1000])
def test_samples_at_evaluations_are_those_of_the_steps_that_are_due(epochs, batch_size, every):
    rows = 25
    hp = params(batch_size, epochs)
    steps = range(1, total_steps(rows, hp) + 1)
    due = [samples_seen(rows, hp, step) for step in steps if is_due(rows, hp, step, every)]
    assert evaluated_at(rows, hp, every) == due
