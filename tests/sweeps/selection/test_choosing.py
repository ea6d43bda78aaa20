"""The winner where a metric chooses: beyond noise it wins over the loss, within noise the loss decides."""

import math

import numpy as np
import pytest

from sweeps.selection.choosing import Paired
from sweeps.selection.config import FinalistsConfig, SelectionConfig
from sweeps.selection.curves import Curve
from sweeps.selection.ranking import select
from sweeps.selection.resampling import paired
from sweeps.selection.verdicts import best_point, kept_points
from trainables.evaluation.record import Evaluation

ROWS = 200
CHOOSING = SelectionConfig(metric="f1", metric_mode="max")


def trial(name, *points):
    """points: (validation loss, f1) of each evaluation; f1 may be None."""
    return Curve(
        id=name,
        status="complete",
        points=tuple(
            Evaluation(
                step=step,
                samples_seen=10 * step,
                epoch=float(step),
                val_loss=loss,
                probe_loss=loss,
                metrics={} if f1 is None else {"f1": f1},
                checkpoint=f"trials/{name}/{step}/checkpoint",
                folder=f"trials/{name}/{step}",
            )
            for step, (loss, f1) in enumerate(points, start=1)
        ),
    )


def means(outcomes):
    return {"f1": float(outcomes[:, 0].mean())}


def comparing(rows):
    """Of per-row values [N] by folder, as a sweep compares."""

    def compare(leader, others):
        found = paired(
            rows[leader][:, None], {other: rows[other][:, None] for other in others}, means, "f1"
        )
        return [Paired(*found[other]) for other in others]

    return compare


def chosen(trials, rows, config=CHOOSING):
    return select(trials, config, lambda folder: None, None, comparing(rows))[0]


def right(share, seed):
    return (np.random.Generator(np.random.PCG64(seed)).random(ROWS) < share).astype(float)


def with_rows(losses, shares, seeds):
    """Trials of one evaluation each, whose metric is the mean of rows that are right or wrong."""
    rows = {
        f"trials/t{number}/1": right(share, seed)
        for number, (share, seed) in enumerate(zip(shares, seeds, strict=True))
    }
    trials = [
        trial(f"t{number}", (loss, float(rows[f"trials/t{number}/1"].mean())))
        for number, loss in enumerate(losses)
    ]
    return trials, rows


def test_the_metric_wins_over_a_lower_loss_where_it_tells_them_apart():
    trials, rows = with_rows([0.5, 0.9], [0.4, 0.8], [1, 2])
    winner = chosen(trials, rows)
    assert winner.trial == "t1" and winner.tied == ()
    assert winner.reason.startswith(f"t1 has the highest F1, {rows['trials/t1/1'].mean():.4f}")
    assert "95% interval -0." in winner.reason
    assert chosen(trials, rows, SelectionConfig()).trial == "t0"


def test_on_noise_the_loss_decides():
    """Of eight trials that are equally good the metric's best is a lucky one; over many draws it seldom wins by its luck."""
    wrong = 0
    for draw in range(200):
        trials, rows = with_rows(
            [0.5 + 0.01 * number for number in range(8)], [0.6] * 8, range(8 * draw, 8 * draw + 8)
        )
        wrong += chosen(trials, rows).trial != "t0"
    assert wrong <= 0.07 * 200  # 5% by its intervals, and three standard errors of them


def test_the_reason_says_what_the_metric_could_not_tell():
    trials, rows = with_rows([0.9, 0.5], [0.62, 0.58], [1, 2])
    winner = chosen(trials, rows)
    assert winner.trial == "t1" and winner.tied == ("t0",)
    assert "but F1 does not tell it from t1" in winner.reason
    assert "of those t1 has the lowest validation loss, 0.5000" in winner.reason


def test_less_is_better_of_an_error():
    trials, rows = with_rows([0.5, 0.9], [0.8, 0.2], [1, 2])
    errors = SelectionConfig(metric="f1", metric_mode="min")
    assert chosen(trials, rows, errors).trial == "t1"


def test_what_is_overfit_cannot_win_by_its_metric():
    over = Curve(
        id="t1",
        status="complete",
        points=tuple(
            Evaluation(
                step=step,
                samples_seen=step,
                epoch=step,
                val_loss=val,
                probe_loss=probe,
                metrics={"f1": f1},
                checkpoint=f"trials/t1/{step}/checkpoint",
                folder=f"trials/t1/{step}",
            )
            for step, (val, probe, f1) in enumerate([(0.5, 0.5, 0.1), (0.9, 0.1, 0.99)], 1)
        ),
    )
    other = trial("t0", (0.6, 0.5))
    rows = {
        "trials/t1/1": right(0.1, 1),
        "trials/t1/2": right(0.99, 2),
        "trials/t0/1": right(0.5, 3),
    }
    assert chosen([over, other], rows).trial == "t0"


def test_a_trial_keeps_the_checkpoints_of_its_best_metric_and_of_its_lowest_loss():
    one = trial("t1", (0.500, 0.2), (0.505, 0.9), (0.508, 0.3))
    assert best_point(one, CHOOSING) is one.points[1]
    assert kept_points(one, CHOOSING) == [one.points[1], one.points[0]]
    assert kept_points(one, SelectionConfig()) == [one.points[0]] * 2


def test_within_one_trial_noise_leaves_the_lower_loss():
    one = trial("t1", (0.500, 0.60), (0.508, 0.61))
    rows = {"trials/t1/1": right(0.6, 1), "trials/t1/2": right(0.6, 2)}
    winner = chosen([one], rows)
    assert winner.point.step == 1 and winner.tied == ()


def test_of_too_few_rows_the_loss_decides():
    trials, _ = with_rows([0.5, 0.9], [0.1, 0.9], [1, 2])
    winner, reason = select(
        trials,
        CHOOSING,
        lambda folder: None,
        None,
        lambda leader, others: [Paired(-0.8, math.inf)] * len(others),
    )
    assert winner.trial == "t0" and "too few rows tell" in reason


@pytest.mark.parametrize("losses", [[0.5, 0.9, 0.7], [0.9, 0.5, 0.7]])
def test_what_was_measured_on_other_rows_is_not_told_from_the_leader(losses):
    """It neither wins nor loses by that: the loss decides, and the reason says why."""
    trials, rows = with_rows(losses, [0.5, 0.9, 0.2], [1, 2, 3])

    def compare(leader, others):
        found = dict(zip(others, comparing(rows)(leader, others), strict=True))
        return [None if other == "trials/t0/1" else found[other] for other in others]

    winner, reason = select(trials, CHOOSING, lambda folder: None, None, compare)
    assert winner.trial == ("t0" if losses[0] < losses[1] else "t1")
    assert winner.tied == (("t1",) if winner.trial == "t0" else ("t0",)), "t2 is told apart"
    assert "by F1 t0 cannot be compared with t1, which was measured on other rows" in reason


def test_without_the_metric_the_loss_chooses_and_says_so():
    winner, reason = select(
        [trial("t1", (0.5, None))], CHOOSING, lambda folder: None, None, comparing({})
    )
    assert winner.trial == "t1"
    assert "no checkpoint that may win has f1, so the loss chooses" in reason


def test_new_seeds_and_a_metric_do_not_go_together():
    with pytest.raises(ValueError, match="selection.metric: new seeds"):
        SelectionConfig(metric="f1", finalists=FinalistsConfig(top=2))


def test_answers_to_other_rows_leave_their_cells_of_a_table_empty():
    from sweeps.reporting.samples import Sample, Written, samples_table

    wins = Written(by="the winner, t1", text="b", scores={"exact_match": 1.0})
    untuned = Written(by="untuned", text="a", scores={"exact_match": 0.0})
    samples = [
        Sample(row=1, prompt="p", reference="r", answers=(wins,)),
        Sample(row=2, prompt="p", reference="r", answers=(untuned, wins)),
    ]
    columns, rows = samples_table(samples)
    assert columns[3:] == [
        "the winner, t1",
        "the winner, t1: exact_match",
        "untuned",
        "untuned: exact_match",
    ]
    assert [row[3:] for row in rows] == [["b", 1.0, None, None], ["b", 1.0, "a", 0.0]]
