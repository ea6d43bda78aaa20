"""Verdicts and the winner. Thresholds are powers of two here, so that the boundaries are exact."""

import dataclasses
import math
import random

import numpy as np
import pytest

from sweeps.selection.config import FinalistsConfig, LimitsConfig, SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.limits import limit_reason
from sweeps.selection.noise import curve_noise
from sweeps.selection.ranking import final_ranking, finalists, pareto, select
from sweeps.selection.statistics import (
    bootstrap_intervals,
    gain_interval,
    mean_interval,
    paired_difference,
    slice_intervals,
)
from sweeps.selection.verdicts import (
    best_point,
    candidates,
    diverged_reason,
    excluded_reason,
    overfit_reason,
    standing_verdict,
    verdict,
)
from trainables.evaluation.record import Evaluation

EXACT = SelectionConfig(
    overfit_rise=0.25,
    overfit_gap=0.5,
    improving=0.25,
    underfit=0.25,
    diverge_ratio=2.0,
    tie_standard_errors=1.0,
)
UNTUNED = Reference(val_loss=4.0, probe_loss=4.0, prior_loss=8.0)


def curve(*losses, id="t0001", status="complete", reason=None, parameters=100, kept=True):
    """A trial from (validation loss, probe loss) of each evaluation, ten samples apart; one number means both."""
    points = []
    for step, loss in enumerate(losses, start=1):
        val, probe = loss if isinstance(loss, tuple) else (loss, loss)
        folder = f"trials/{id}/attempt-1/step-{step:08d}"
        points.append(
            Evaluation(
                step=step,
                samples_seen=10 * step,
                epoch=float(step),
                val_loss=val,
                probe_loss=probe,
                trainable_parameters=parameters,
                checkpoint=f"{folder}/checkpoint" if kept else None,
                folder=folder,
            )
        )
    return Curve(id=id, status=status, points=tuple(points), reason=reason)


def no_losses(folder):
    return None


# --- verdicts ---


@pytest.mark.parametrize(
    ("losses", "word", "why"),
    [
        ([2.0], "too early to tell", "one evaluation, validation loss 2.0000 at 10 samples"),
        ([2.0, 2.0], "healthy", "lowest validation loss 2.0000, probe 2.0000 at 10 samples"),
        ([2.0, 1.75], "healthy", "lowest validation loss 1.7500"),
        (
            [2.0, 1.0],
            "still improving",
            "the last evaluation is the best, 50.0% below the one before",
        ),
        ([2.0, 1.0, 1.125], "healthy", "at 20 samples"),
        (
            [3.5, 3.5],
            "underfit",
            "best validation loss 3.5000 is not 25% below that of not fine-tuning (4.0000)",
        ),
        ([3.5], "too early to tell", "at 10 samples: best validation loss 3.5000 is not 25% below"),
        (
            [(2.0, 2.0), (2.75, 1.5)],
            "overfit",
            "validation loss rose 37.5% above its minimum (2.0000 at 10 samples",
        ),
        (
            [(2.0, 1.5), (1.9, 0.75)],
            "healthy",
            "; the training rows are memorised: probe loss 0.7500 is 60.5% below",
        ),
        (
            [(2.0, 1.5), (1.0, 0.25)],
            "still improving",
            "; the training rows are memorised: probe loss 0.2500 is 75.0% below",
        ),
        ([(3.9, 1.5), (3.8, 0.5)], "underfit", "; the training rows are memorised"),
        ([(2.0, 2.0), (2.75, 0.5)], "overfit", "; the training rows are memorised"),
        ([1.0, 9.0], "diverged", "validation loss 9.0000 and probe loss 9.0000 are above 2 times"),
        ([1.0, None], "diverged", "a loss was not finite at 20 samples"),
        ([(1.0, None)], "diverged", "a loss was not finite at 10 samples"),
    ],
)
def test_the_verdict_of_a_curve(losses, word, why):
    judged = verdict(curve(*losses), UNTUNED, EXACT)
    assert judged.word == word
    assert why in judged.reason


@pytest.mark.parametrize("status", ["running", "complete", "pruned"])
def test_the_verdict_is_that_of_the_curve_however_the_trial_ended(status):
    assert verdict(curve(2.0, 1.0, status=status), UNTUNED, EXACT).word == "still improving"


def test_the_verdict_of_a_trial_that_failed_never_started_or_was_dropped_as_diverged():
    judged = verdict(curve(2.0, status="failed", reason="out of memory"), UNTUNED, EXACT)
    assert (judged.word, judged.reason) == ("failed", "out of memory")
    assert verdict(curve(status="failed"), UNTUNED, EXACT).reason == "it failed"
    assert verdict(curve(status="running"), UNTUNED, EXACT).reason == "no evaluation yet"
    judged = verdict(curve(status="running"), UNTUNED, EXACT)
    assert (judged.word, judged.reason) == ("too early to tell", "no evaluation yet")
    judged = verdict(curve(status="pruned", reason="the time budget"), UNTUNED, EXACT)
    assert judged.word == "too early to tell"
    assert judged.reason == "it ended before its first evaluation: the time budget"
    judged = verdict(
        curve(2.0, status="pruned", reason="diverged: the loss is not finite"), UNTUNED, EXACT
    )
    assert (judged.word, judged.reason) == ("diverged", "the loss is not finite")


EXCELLENT = [
    (0.20, 0.19),
    (0.060, 0.0055),
    (0.050, 0.0040),
    (0.045, 0.0030),
]  # probe loss under a tenth from the second on


def test_a_gap_alone_is_told_and_excludes_nothing():
    trial, config = curve(*EXCELLENT), SelectionConfig()
    untuned = Reference(val_loss=0.7, probe_loss=0.7)
    assert len(candidates(trial, config)) == 4
    winner, _ = select([trial, curve((0.15, 0.14), id="t0002")], config, no_losses)
    assert (winner.trial, winner.point.val_loss) == ("t0001", 0.045)
    found = verdict(trial, untuned, config)
    assert found.word == "still improving"
    assert found.reason.endswith(
        "the training rows are memorised: probe loss 0.0030 is 93.3% below validation loss 0.0450"
    )
    for loss in (0.0447, 0.0452):  # no longer improving; a rise within tolerance
        found = verdict(curve(*EXCELLENT, (loss, 0.0020)), untuned, config)
        assert found.word == "healthy" and "memorised: probe loss 0.0020" in found.reason
    rose = curve(*EXCELLENT, (0.060, 0.0020), (0.080, 0.0010))
    assert (
        verdict(rose, untuned, config).word == "overfit"
        and best_point(rose, config).val_loss == 0.045
    )


# --- the verdict of what stands for a trial ---


@pytest.mark.parametrize(
    ("losses", "word", "later", "why"),
    [
        (
            [(2.0, 2.0), (1.0, 0.9), (1.5, 0.8)],
            "healthy",
            "overfit",
            "lowest validation loss 1.0000, probe 0.9000 at 20",
        ),
        (
            [(1.0, 0.9), (1.5, 0.8)],
            "healthy",
            "overfit",
            "at 10 samples; later it overfit: validation loss rose 50.0%",
        ),
        ([2.0, 1.0, 9.0], "healthy", "diverged", "later it diverged: validation loss 9.0000"),
        ([2.0, 1.0, None], "healthy", "diverged", "later it diverged: a loss was not finite"),
        (
            [(3.9, 3.0), (5.0, 2.0)],
            "underfit",
            "overfit",
            "best validation loss 3.9000 is not 25% below",
        ),
        ([9.0, 9.5], "diverged", None, "are above 2 times"),
        ([2.0, 1.0], "still improving", None, "more training may help"),
        ([2.0, 1.0, 1.1], "healthy", None, "at 20 samples"),
        ([2.0], "too early to tell", None, "one evaluation"),
        ([], "too early to tell", None, "ended without an evaluation"),
    ],
)
def test_the_verdict_of_what_stands_for_a_trial_is_not_what_befell_it_later(
    losses, word, later, why
):
    found = standing_verdict(curve(*losses), UNTUNED, EXACT)
    assert (found.word, found.later) == (word, later) and why in found.reason
    assert found.shown == (f"{word}, later {later}" if later else word)


def averaged(*losses, **more):
    """A trial whose last evaluation is of its average."""
    trial = curve(*losses, **more)
    *trained, last = trial.points
    last = dataclasses.replace(last, averaged=3, samples_seen=trained[-1].samples_seen)
    return dataclasses.replace(trial, points=(*trained, last))


@pytest.mark.parametrize(
    "losses",
    [
        [2.0, 1.0],
        [2.0, 1.9, 1.8],
        [(2.0, 2.0), (1.5, 1.0), (2.5, 0.5)],
        [3.9, 3.8],
        [2.0, 9.0],
        [2.0],
    ],
)
@pytest.mark.parametrize("average", [0.5, 1.45, (2.5, 0.4), None])
def test_the_verdict_is_that_of_training_whatever_its_average_has(losses, average):
    alone = verdict(curve(*losses), UNTUNED, EXACT)
    found = verdict(averaged(*losses, average), UNTUNED, EXACT)
    assert found.word == alone.word and found.reason.startswith(alone.reason)
    told = "the average of the weights at its last 3 evaluations has validation loss"
    assert (told in found.reason) == (average is not None)


def test_an_average_may_win_and_is_excluded_as_any_other_is():
    overfit = [(2.0, 2.0), (1.5, 1.0), (2.5, 0.5)]
    trial = averaged(*overfit, (1.25, 0.75))
    assert best_point(trial, EXACT) is trial.points[-1]
    found = standing_verdict(trial, UNTUNED, EXACT)
    assert found.shown == "healthy"
    assert found.reason.startswith("lowest validation loss 1.2500, probe 0.7500 at 30 samples;")
    assert "in training it overfit: validation loss rose 66.7%" in found.reason
    worse = averaged(*overfit, (2.25, 0.75))
    assert best_point(worse, EXACT) is worse.points[1]
    assert excluded_reason(worse.points, 3, EXACT).startswith("validation loss rose 50.0%")
    tie = averaged(2.0, 1.5, 1.5)
    assert best_point(tie, EXACT) is tie.points[1]


def test_the_reason_of_a_winner_says_that_it_is_an_average():
    trial = averaged(2.0, 1.5, 1.25)
    winner, reason = select([trial], EXACT, no_losses)
    assert winner.point is trial.points[-1]
    assert (
        "its checkpoint is the average of the weights at its trial's last 3 evaluations" in reason
    )


def test_the_noise_of_a_curve_is_not_that_of_its_average():
    losses = [2.0, 1.8, 1.9, 1.6, 1.7, 1.5, 1.6]
    assert curve_noise(averaged(*losses, 0.5).points) == curve_noise(curve(*losses).points) > 0


def test_a_trial_that_was_dropped_as_diverged_has_its_sound_checkpoint_still():
    """The loss that was no number came between two evaluations."""
    dropped = curve(2.0, 1.0, status="pruned", reason="diverged: the loss is not finite at step 35")
    found = standing_verdict(dropped, UNTUNED, EXACT)
    assert (found.word, found.later) == ("healthy", "diverged")
    assert found.reason.endswith("later it diverged: the loss is not finite at step 35")
    found = standing_verdict(
        dataclasses.replace(dropped, points=dropped.points[:1]), UNTUNED, EXACT
    )
    assert (found.word, found.later) == ("too early to tell", "diverged")


def test_one_evaluation_at_the_majoritys_accuracy_is_not_healthy():
    (point,) = curve(0.69).points
    pruned = curve(status="pruned")
    for share in (0.95, 1.0):
        stopped = dataclasses.replace(
            pruned, points=(dataclasses.replace(point, majority_share=share),)
        )
        found = standing_verdict(
            stopped, Reference(val_loss=0.75, prior_loss=0.69), SelectionConfig()
        )
        assert found.word == "too early to tell"
        assert ("with one class" in found.reason) == (share == 1.0)
    lost = dataclasses.replace(pruned, points=curve(None).points)
    assert standing_verdict(lost, UNTUNED, EXACT).word == "diverged", (
        "a loss that is no number says enough"
    )


def test_the_winner_is_not_named_among_those_that_could_not_win():
    trial = curve((2.0, 2.0), (1.0, 0.9), (1.5, 0.8), id="t0002")
    _, reason = select([curve(1.75, id="t0001"), trial], EXACT, no_losses)
    assert (
        "later checkpoints of t0002 are overfit, and could not win" in reason
        and "win: t0002" not in reason
    )
    other = curve((2.0, 2.0), (1.1, 0.9), (1.5, 0.8), id="t0003")
    _, reason = select([trial, other], EXACT, no_losses)
    assert "1 other trial had overfit checkpoints, which could not win: t0003" in reason
    early = curve((2.0, 2.0), (3.0, 1.5), (1.0, 0.8), id="t0004")
    assert "earlier checkpoints of t0004 are overfit" in select([early], EXACT, no_losses)[1]
    both = curve((2.0, 2.0), (3.0, 1.5), (1.0, 0.8), (1.5, 0.7), id="t0004")
    assert "other checkpoints of t0004 are overfit" in select([both], EXACT, no_losses)[1]


@pytest.mark.parametrize(
    ("at_the_boundary", "beyond"),
    [
        # overfit by rise: from 2.0, a quarter up is 2.5; the probe loss must have fallen
        ([(2.0, 2.0), (2.5, 1.5)], [(2.0, 2.0), (2.5000001, 1.5)]),
        ([(2.0, 2.0), (2.6, 2.0)], [(2.0, 2.0), (2.6, 1.9999999)]),
    ],
)
def test_the_boundaries_of_overfit_are_exact(at_the_boundary, beyond):
    assert verdict(curve(*at_the_boundary), UNTUNED, EXACT).word == "healthy"
    assert verdict(curve(*beyond), UNTUNED, EXACT).word == "overfit"


def test_the_other_boundaries_are_exact():
    assert verdict(curve(2.0, 1.5), UNTUNED, EXACT).word == "healthy"  # 25% better, not more
    assert verdict(curve(2.0, 1.4999999), UNTUNED, EXACT).word == "still improving"
    assert verdict(curve(3.0, 3.0), UNTUNED, EXACT).word == "healthy"  # 25% below 4.0
    assert verdict(curve(3.0000001, 3.0000001), UNTUNED, EXACT).word == "underfit"
    assert (
        "memorised" not in verdict(curve(2.0, (2.0, 1.0)), UNTUNED, EXACT).reason
    )  # half, not more
    assert "memorised" in verdict(curve(2.0, (2.0, 0.9999999)), UNTUNED, EXACT).reason
    untuned = Reference(val_loss=4.0)
    assert (
        verdict(curve(1.0, 8.0), untuned, SelectionConfig()).word == "collapsed"
    )  # twice 4.0, not more
    assert verdict(curve(1.0, 8.0000001), untuned, SelectionConfig()).word == "diverged"


def test_underfit_and_diverged_compare_with_the_better_way_of_not_fine_tuning():
    prior = Reference(val_loss=2.0, prior_loss=4.0)
    assert verdict(curve(1.6, 1.6), prior, EXACT).word == "underfit"
    assert verdict(curve(1.5, 1.5), prior, EXACT).word == "healthy"
    assert verdict(curve(1.0, 5.0), prior, EXACT).word == "diverged"
    assert (
        verdict(curve(100.0, 100.0), Reference(), EXACT).word == "healthy"
    )  # nothing to compare with


def test_a_new_head_that_begins_far_above_the_best_single_answer_has_not_diverged():
    """Of many labels, of rare tags, or of numbers far from 0; training comes down from there."""
    far = Reference(val_loss=20.0, probe_loss=20.0, prior_loss=4.0)
    assert diverged_reason(curve(9.0).points[0], far, EXACT) is None
    assert verdict(curve(9.0, 3.0), far, EXACT).word == "still improving"
    assert verdict(curve(9.0, (3.9, 2.0)), far, EXACT).word == "underfit"
    assert verdict(curve(9.0, 41.0), far, EXACT).word == "diverged"
    unknown = Reference(prior_loss=4.0)  # nobody has looked at the untuned model yet
    assert diverged_reason(curve(9.0).points[0], unknown, EXACT) is not None


def test_what_has_the_very_loss_of_the_best_single_answer_has_collapsed():
    far = Reference(val_loss=20.0, prior_loss=4.0, prior="train's mean label")
    found = verdict(curve(9.0, 4.0), far, SelectionConfig())
    assert (
        found.word == "collapsed" and "those of train's mean label alone (4.0000)" in found.reason
    )
    assert verdict(curve(9.0, 1.0), Reference(prior_loss=0.0), EXACT).word != "collapsed"


def test_a_high_validation_loss_alone_is_overfitting_and_no_divergence():
    point = curve((100.0, 0.5)).points[0]
    assert diverged_reason(point, UNTUNED, EXACT) is None
    assert verdict(curve((1.0, 1.0), (100.0, 0.5)), UNTUNED, EXACT).word == "overfit"


def test_the_rise_is_measured_from_the_lowest_evaluation_before_it():
    trial = curve((2.0, 2.0), (1.0, 1.5), (3.0, 1.75), (1.3, 1.4), (0.9, 1.0))
    reasons = [overfit_reason(trial.points, index, EXACT) is not None for index in range(5)]
    # the third lies far above the minimum, but its probe loss rose too; the fourth is 30% above it with a lower probe
    assert reasons == [False, False, False, True, False]


def test_evaluations_that_are_not_finite_are_no_minimum_and_not_overfit():
    trial = curve(None, (2.0, 2.0), (None, 1.0), (3.0, 1.5))
    assert [overfit_reason(trial.points, index, EXACT) is not None for index in range(4)] == [
        False,
        False,
        False,
        True,
    ]


def test_a_validation_loss_of_zero_is_no_division_by_zero():
    assert overfit_reason(curve((0.0, 0.0)).points, 0, EXACT) is None
    trial = curve((0.0, 0.5), (1.0, 0.4), (0.0, 0.3))
    assert "rose inf%" in overfit_reason(trial.points, 1, SelectionConfig(overfit_gap=1.0))
    assert overfit_reason(trial.points, 2, EXACT) is None


# --- what may win ---


def overfit(loss, id):
    """A trial whose last evaluation, the only one with a checkpoint, is overfit: its loss is half above the one before."""
    trial = curve((loss / 1.5, loss / 1.5), (loss, loss / 2), id=id)
    first, last = trial.points
    return dataclasses.replace(trial, points=(dataclasses.replace(first, checkpoint=None), last))


def test_overfit_candidates_cannot_win_even_with_the_lowest_loss():
    """Its earlier checkpoint, which is not, is gone."""
    rose = overfit(0.5, id="t0001")
    honest = curve((2.0, 1.9), id="t0002")
    winner, reason = select([rose, honest], EXACT, no_losses)
    assert winner.trial == "t0002"
    assert "1 trial had overfit checkpoints, which could not win: t0001" in reason


def test_an_overfit_trial_can_win_with_its_own_earlier_minimum():
    trial = curve((2.0, 2.0), (1.0, 0.9), (1.5, 0.8), id="t0001")
    winner, reason = select([trial, curve(1.75, id="t0002")], EXACT, no_losses)
    assert (winner.trial, winner.point.step) == ("t0001", 2)
    assert (
        "its checkpoint is that of step 2 (epoch 2), not the trial's last, whose validation loss is 1.5000"
        in reason
    )


def test_what_is_not_finite_failed_or_without_a_checkpoint_cannot_win():
    assert [p.step for p in candidates(curve(None, 2.0, (1.0, None)), EXACT)] == [2]
    assert best_point(curve(1.0, status="failed"), EXACT) is None
    pruned, kept = curve(1.0, id="t0001", kept=False), curve(2.0, id="t0002")
    winner, _ = select([pruned, kept], EXACT, no_losses)
    assert winner.trial == "t0002"
    assert winner.point.checkpoint is not None
    assert select([pruned], EXACT, no_losses)[0] is None


def test_of_equal_losses_of_one_trial_the_earlier_evaluation_stands():
    assert best_point(curve(2.0, 1.0, 1.0), EXACT).step == 2


def test_trials_that_still_run_and_trials_that_were_stopped_may_win():
    for status in ("running", "pruned", "complete"):
        assert select([curve(1.0, status=status)], EXACT, no_losses)[0].trial == "t0001"


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ([], "Nothing may win: no trial has started."),
        ([curve(1.0, status="failed")], "Nothing may win: of 1 trial, 1 failed (t0001)."),
        (
            [curve((1.0, None), id="t0001"), curve(None, id="t0002")],
            "Nothing may win: of 2 trials, 2 overfit or not finite at every evaluation (t0001, t0002).",
        ),
        (
            [curve(status="running")],
            "Nothing may win: of 1 trial, 1 without an evaluation (t0001).",
        ),
        (
            [
                curve(status="failed", id="t0001"),
                curve(None, id="t0002"),
                curve(status="pruned", id="t0003"),
            ],
            "Nothing may win: of 3 trials, 1 failed (t0001); 1 overfit or not finite at every evaluation (t0002); "
            "1 without an evaluation (t0003).",
        ),
        ([curve(1.0, kept=False)], "Nothing may win: of 1 trial, none has a checkpoint."),
        (
            [curve(status="failed", id=f"t{n:04d}") for n in range(1, 8)],
            "Nothing may win: of 7 trials, 7 failed (t0001, t0002, t0003, t0004, t0005, …).",
        ),
    ],
)
def test_why_nothing_may_win(curves, words):
    winner, reason = select(curves, EXACT, no_losses)
    assert winner is None
    assert reason == words


# --- ties ---


def per_example(loss, *, rows=400, noise=0.0, seed=0):
    """Per-example losses [rows, 2] of mean `loss` exactly, one target each; `noise` is what differs between trials."""
    shared = np.random.default_rng(99).normal(0, 1, rows)  # how hard each row is, for every trial
    own = np.random.default_rng(seed).normal(0, noise, rows) if noise else np.zeros(rows)
    losses = loss + (shared - shared.mean()) + (own - own.mean())
    return np.stack([losses, np.ones(rows)], axis=1)


def judged(*trials, config=EXACT):
    """Select among (curve, per-example losses of its only evaluation)."""
    table = {trial.points[0].folder: losses for trial, losses in trials}
    return select([trial for trial, _ in trials], config, table.get)


CHEAPEST = dataclasses.replace(EXACT, prefer="cheapest")


def costing(trial, inference, megabytes=1):
    """The trial with what its checkpoints cost in use."""
    cost = {"inference_cost": inference, "checkpoint_bytes": int(megabytes * 1e6)}
    return dataclasses.replace(
        trial, points=tuple(dataclasses.replace(p, **cost) for p in trial.points)
    )


def test_of_two_trials_whose_difference_is_noise_the_lower_wins_and_the_tie_is_told():
    large, small = curve(1.0, id="t0001", parameters=1000), curve(1.01, id="t0002", parameters=10)
    rows = per_example(1.0, noise=0.5, seed=1), per_example(1.01, noise=0.5, seed=2)
    winner, reason = judged((large, rows[0]), (small, rows[1]))
    assert (winner.trial, winner.tied) == ("t0001", ("t0002",))
    assert reason.startswith("t0001 has the lowest validation loss, 1.0000, of 2 trials")
    assert "within 1 standard error of it: t0002" in reason
    assert "in use" not in reason, "trained parameters cost nothing once they are trained"
    dear, cheap = costing(large, 1.04), costing(small, 1.0)
    winner, reason = judged((dear, rows[0]), (cheap, rows[1]))
    assert winner.trial == "t0001"
    assert (
        "of these t0002 costs less in use (1.000 against 1.040 times the arithmetic of the untuned model)"
        in reason
    )
    winner, reason = judged((costing(large, 1.0), rows[0]), (costing(small, 1.04), rows[1]))
    assert winner.trial == "t0001" and "in use" not in reason


def test_prefer_cheapest_lets_the_tied_one_win_that_costs_least_in_use():
    large, small = (
        costing(curve(1.0, id="t0001"), 1.04, 5),
        costing(curve(1.01, id="t0002"), 1.0, 400),
    )
    rows = per_example(1.0, noise=0.5, seed=1), per_example(1.01, noise=0.5, seed=2)
    winner, reason = judged((large, rows[0]), (small, rows[1]), config=CHEAPEST)
    assert (winner.trial, winner.tied) == ("t0002", ("t0001",))
    assert (
        "t0002 is tied with t0001, which has the lowest validation loss (1.0000): its 1.0100 is 0.0100 ± "
        in reason
    )
    assert (
        "of the tied it is the cheapest to use (1.000 times the untuned model's arithmetic, 400.0 MB on disk, 10 samples, "
        "against 1.040 times the untuned model's arithmetic, 5.0 MB on disk, 10 samples)" in reason
    )
    far = costing(curve(2.0, id="t0002"), 1.0)
    assert (
        judged((large, rows[0]), (far, per_example(2.0, noise=0.5, seed=2)), config=CHEAPEST)[
            0
        ].trial
        == "t0001"
    )


def test_a_clear_difference_is_no_tie_though_the_rows_differ_much_more():
    """Paired: every row is 0.01 worse, give or take 0.02, while rows differ from each other by 1.0."""
    large = curve(1.0, id="t0001", parameters=1000)
    small = curve(1.01, id="t0002", parameters=10)
    winner, reason = judged(
        (large, per_example(1.0, noise=0.01, seed=1)),
        (small, per_example(1.01, noise=0.01, seed=2)),
    )
    assert winner.trial == "t0001"
    assert winner.tied == ()
    assert "the next, t0002, is 0.0100 ± 0.000" in reason


def test_the_cheapest_is_so_by_arithmetic_then_size_on_disk_then_samples():
    early, late = curve(1.01, id="t0001", parameters=99), curve(2.0, 1.0, id="t0002")
    table = {
        early.points[0].folder: per_example(1.01, noise=0.5),
        late.points[1].folder: per_example(1.0, noise=0.5),
    }
    table[early.points[0].folder][:, 0] += np.random.default_rng(5).normal(0, 0.5, 400)

    def wins(of_early, of_late):
        return select([costing(early, *of_early), costing(late, *of_late)], CHEAPEST, table.get)[
            0
        ].trial

    assert (
        wins((1.0, 1), (1.0, 1)) == "t0001"
    )  # 10 samples against 20, however many parameters were trained
    assert wins((1.0, 1.1), (1.0, 1)) == "t0002"  # a smaller file, more samples
    assert wins((1.0, 900), (1.01, 1)) == "t0001"  # less arithmetic, a larger file


def test_the_tie_ends_at_its_limit():
    best, other = curve(1.0, id="t0001"), curve(1.01, id="t0002")
    losses = per_example(1.0, noise=0.2, seed=1), per_example(1.01, noise=0.2, seed=2)
    difference, error = paired_difference(*losses)
    assert 0 < difference < error
    within = dataclasses.replace(EXACT, tie_standard_errors=difference / error * 1.0001)
    beyond = dataclasses.replace(EXACT, tie_standard_errors=difference / error * 0.9999)
    assert judged((best, losses[0]), (other, losses[1]), config=within)[0].tied == ("t0002",)
    assert judged((best, losses[0]), (other, losses[1]), config=beyond)[0].tied == ()


def test_ties_are_with_the_lowest_loss_and_do_not_chain():
    """The third is within noise of the second but not of the first: it must not win through the second."""
    rows = np.arange(400)
    base = per_example(1.0)
    wide, narrow = np.where(rows % 2 == 0, 0.3, -0.3), np.where(rows % 2 == 0, 0.02, -0.02)
    second, third = base.copy(), base.copy()
    second[:, 0] += 0.01 + wide
    third[:, 0] += 0.02 + narrow
    assert paired_difference(base, second)[0] < paired_difference(base, second)[1]
    assert paired_difference(second, third)[0] < paired_difference(second, third)[1]
    assert paired_difference(base, third)[0] > paired_difference(base, third)[1]
    trials = [
        (costing(curve(1.0, id="t0001"), 1.2), base),
        (costing(curve(1.01, id="t0002"), 1.1), second),
        (costing(curve(1.02, id="t0003"), 1.0), third),
    ]
    winner, _ = judged(*trials, config=CHEAPEST)
    assert (winner.trial, winner.tied) == ("t0002", ("t0001",))
    winner, _ = judged(*trials)
    assert (winner.trial, winner.tied) == ("t0001", ("t0002",))


def test_without_per_example_losses_the_lowest_wins_and_equal_ones_go_to_the_cheaper():
    assert (
        select([curve(1.0, id="t0002"), curve(1.01, id="t0001", parameters=1)], EXACT, no_losses)[
            0
        ].trial
        == "t0002"
    )
    equal = [costing(curve(1.0, id="t0001"), 1.0, 9), costing(curve(1.0, id="t0002"), 1.0, 1)]
    assert select(equal, EXACT, no_losses)[0].trial == "t0002"
    assert (
        select([curve(1.0, id="t0002"), curve(1.0, id="t0001")], EXACT, no_losses)[0].trial
        == "t0001"
    )


def test_losses_over_other_rows_are_not_compared():
    trials = [curve(1.0, id="t0001", parameters=9), curve(1.0001, id="t0002", parameters=1)]
    winner, _ = judged(
        (trials[0], per_example(1.0, noise=0.5)), (trials[1], per_example(1.0001, rows=300))
    )
    assert winner.trial == "t0001"


def test_the_order_of_the_trials_does_not_matter():
    generator = random.Random(0)
    for case in range(100):
        curves, table = [], {}
        for number in range(1, generator.randint(2, 8)):
            losses = [
                (round(generator.uniform(0.9, 1.2), 2), round(generator.uniform(0.4, 1.2), 2))
                for _ in range(generator.randint(1, 4))
            ]
            made = curve(
                *losses,
                id=f"t{number:04d}",
                status=generator.choice(["complete", "complete", "pruned", "failed"]),
                parameters=generator.choice([1, 10]),
            )
            curves.append(made)
            for point in made.points:
                table[point.folder] = per_example(
                    point.val_loss, rows=30, noise=0.4, seed=generator.randrange(1000)
                )
        first, _ = select(curves, EXACT, table.get)
        for _ in range(5):
            generator.shuffle(curves)
            again, _ = select(curves, EXACT, table.get)
            assert again is first is None or (again.trial, again.point, again.tied) == (
                first.trial,
                first.point,
                first.tied,
            ), case


# --- the paired difference ---


def test_with_one_target_each_it_is_the_mean_difference_and_the_standard_error_of_the_paired_t_test():
    generator = np.random.default_rng(1)
    a, b = generator.exponential(1, (2, 300))
    ones = np.ones(300)
    difference, error = paired_difference(np.stack([a, ones], 1), np.stack([b, ones], 1))
    assert difference == pytest.approx((b - a).mean(), rel=1e-12)
    assert error == pytest.approx((b - a).std(ddof=1) / math.sqrt(300), rel=1e-12)


def unequal(rows=800):
    """Summed losses of two models whose rows have 1 to 40 targets; b is worse by half a nat a target and more on long rows."""
    generator = np.random.default_rng(2)
    targets = generator.integers(1, 41, rows).astype(float)
    rate = generator.gamma(4, 0.25, rows)
    a = targets * rate * np.exp(generator.normal(0, 0.05, rows))
    b = targets * (rate + 0.5 + 0.01 * targets) * np.exp(generator.normal(0, 0.05, rows))
    return np.stack([a, targets], 1), np.stack([b, targets], 1)


def test_with_unequal_targets_it_is_the_difference_of_the_losses_per_target():
    a, b = unequal()
    difference, _ = paired_difference(a, b)
    assert difference == pytest.approx(
        b[:, 0].sum() / b[:, 1].sum() - a[:, 0].sum() / a[:, 1].sum(), rel=1e-9
    )
    per_row = (b[:, 0] / b[:, 1] - a[:, 0] / a[:, 1]).mean()
    assert difference != pytest.approx(per_row, rel=1e-3)  # a mean of row means is another number


def test_its_standard_error_is_that_of_a_bootstrap_over_rows():
    a, b = unequal()
    _, error = paired_difference(a, b)
    generator = np.random.default_rng(3)
    drawn = generator.integers(0, len(a), (4000, len(a)))
    differences = (b[drawn, 0] - a[drawn, 0]).sum(1) / a[drawn, 1].sum(1)
    assert error == pytest.approx(
        differences.std(ddof=1), rel=0.05
    )  # 4,000 draws: good to about 1%


def test_it_is_antisymmetric_and_scales_with_the_losses():
    a, b = unequal()
    difference, error = paired_difference(a, b)
    assert paired_difference(b, a) == pytest.approx((-difference, error))
    twice = [np.stack([3 * losses[:, 0], losses[:, 1]], 1) for losses in (a, b)]
    assert paired_difference(*twice) == pytest.approx((3 * difference, 3 * error))


def test_targets_may_be_weights_and_their_sums_as_small_as_they_like():
    """Halving them all, and the losses with them, changes no mean and no interval."""
    a, b = unequal(rows=30)
    small_a, small_b = (each * 2.0**-16 for each in (a, b))
    assert small_a[:, 1].sum() < 1
    assert paired_difference(small_a, small_b) == paired_difference(a, b)
    assert bootstrap_intervals(small_a, [small_b]) == bootstrap_intervals(a, [b])
    assert gain_interval(small_a, [small_a], [small_b]) == gain_interval(a, [a], [b])


def test_one_row_says_nothing_and_equal_losses_are_tied():
    one = np.array([[1.0, 2.0]]), np.array([[3.0, 2.0]])
    assert paired_difference(*one) == (1.0, math.inf)
    a, _ = unequal()
    assert paired_difference(a, a) == (0.0, 0.0)


def test_losses_are_subtracted_in_double_precision():
    a = np.array([[1e-6, 1.0]] * 50, dtype=np.float32)
    b = np.array([[100.0, 1.0]] * 50, dtype=np.float32)
    assert paired_difference(a, b)[0] == pytest.approx(100.0 - float(a[0, 0]), rel=1e-12)


# --- the thresholds ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("overfit_rise", -0.1, "selection.overfit_rise: must be 0 or more, got -0.1"),
        ("improving", -0.1, "selection.improving: must be 0 or more, got -0.1"),
        ("underfit", -0.1, "selection.underfit: must be 0 or more, got -0.1"),
        ("tie_standard_errors", -1.0, "selection.tie_standard_errors: must be 0 or more, got -1.0"),
        ("overfit_gap", 0.0, "selection.overfit_gap: must be above 0 and at most 1, got 0.0"),
        ("overfit_gap", 1.1, "selection.overfit_gap: must be above 0 and at most 1, got 1.1"),
        ("diverge_ratio", 1.0, "selection.diverge_ratio: must be above 1, got 1.0"),
        ("overfit_rise", math.nan, "selection.overfit_rise: must be 0 or more, got nan"),
        ("overfit_gap", math.nan, "selection.overfit_gap: must be above 0 and at most 1, got nan"),
        ("diverge_ratio", math.nan, "selection.diverge_ratio: must be above 1, got nan"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ValueError) as caught:
        SelectionConfig(**{field: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kl", 0.0, "selection.limits.kl: must be above 0, got 0.0"),
        ("kl", math.nan, "selection.limits.kl: must be above 0, got nan"),
        ("slice_loss", -1.0, "selection.limits.slice_loss: must be above 0, got -1.0"),
        ("slice_gap", 0.0, "selection.limits.slice_gap: must be above 0, got 0.0"),
        (
            "slice_accuracy",
            0.0,
            "selection.limits.slice_accuracy: must be above 0 and at most 1, got 0.0",
        ),
        (
            "slice_accuracy",
            1.5,
            "selection.limits.slice_accuracy: must be above 0 and at most 1, got 1.5",
        ),
        (
            "slice_accuracy",
            math.nan,
            "selection.limits.slice_accuracy: must be above 0 and at most 1, got nan",
        ),
        ("slice_rows", 0, "selection.limits.slice_rows: must be at least 1, got 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ValueError) as caught:
        LimitsConfig(**{field: value})
    assert str(caught.value) == message


def test_which_limits_there_are():
    none = LimitsConfig()
    assert not none.of_forgetting and not none.of_slices
    assert LimitsConfig(slice_rows=5) != none and not LimitsConfig(slice_rows=5).of_slices
    for name in ("forgetting", "kl"):
        limits = LimitsConfig(**{name: 0.5})
        assert limits.of_forgetting and not limits.of_slices
    for name in ("slice_loss", "slice_gap", "slice_accuracy"):
        limits = LimitsConfig(**{name: 0.5})
        assert limits.of_slices and not limits.of_forgetting
    # less than nothing may be asked of forgetting: that general text is told better than before
    assert (
        LimitsConfig(forgetting=0.0).of_forgetting and LimitsConfig(forgetting=-0.5).of_forgetting
    )


# --- limits ---


def slices(rows=30, **losses):
    """What an evaluation knows of its slices, from the loss of each, or (loss, accuracy)."""
    found = {}
    for value, loss in losses.items():
        loss, accuracy = loss if isinstance(loss, tuple) else (loss, 0.5)
        found[value] = {"rows": rows, "loss": loss, "accuracy": accuracy}
    return found


def measured(trial, *each):
    """The trial with more measured of each of its evaluations."""
    points = [
        dataclasses.replace(point, **more) for point, more in zip(trial.points, each, strict=True)
    ]
    return dataclasses.replace(trial, points=tuple(points))


def limited(**limits):
    return dataclasses.replace(EXACT, limits=LimitsConfig(**limits))


# (limit, what is just within it, what is beyond it, and in which words)
LIMITS = [
    (
        {"forgetting": 0.25},
        {"forgetting": 0.25},
        {"forgetting": 0.5},
        "its loss on general text rose by 0.5000 nats (limit 0.25)",
    ),
    (
        {"kl": 0.25},
        {"kl": 0.25},
        {"kl": 0.5},
        "its predictions on the task's prompts are from the base's by a KL of 0.5000 nats (limit 0.25)",
    ),
    (
        {"slice_loss": 2.0},
        {"slices": slices(fr=1.0, de=2.0, en=1.5)},
        {"slices": slices(fr=1.0, de=2.5, en=1.5)},
        "its loss on the slice 'de' is 2.5000 (limit 2)",
    ),
    (
        {"slice_gap": 1.0},
        {"slices": slices(fr=1.0, de=2.0, en=1.5)},
        {"slices": slices(fr=1.0, de=2.5, en=1.5)},
        "its losses on the slices 'de' and 'fr' are 1.5000 apart, 2.5000 and 1.0000 (limit 1)",
    ),
    (
        {"slice_accuracy": 0.5},
        {"slices": slices(fr=(2.0, 0.75), de=(1.0, 0.5), en=(1.5, 0.625))},
        {"slices": slices(fr=(2.0, 0.75), de=(1.0, 0.25), en=(1.5, 0.625))},
        "its accuracy on the slice 'de' is 0.2500 (at least 0.5 is asked)",
    ),
]
EACH_LIMIT = pytest.mark.parametrize(
    ("limit", "within", "beyond", "words"),
    LIMITS,
    ids=[name for limit, *_ in LIMITS for name in limit],
)


@EACH_LIMIT
def test_the_boundary_of_a_limit_is_exact_and_its_reason_is_in_words(limit, within, beyond, words):
    inside, outside = measured(curve(1.0, 1.0), within, beyond).points
    assert limit_reason(inside, LimitsConfig(**limit)) is None
    assert limit_reason(outside, LimitsConfig(**limit)) == words
    assert limit_reason(outside, LimitsConfig()) is None


@EACH_LIMIT
def test_a_better_checkpoint_beyond_a_limit_cannot_win(limit, within, beyond, words):
    better, worse = (
        measured(curve(1.0, id="t0001"), beyond),
        measured(curve(2.0, id="t0002"), within),
    )
    assert select([better, worse], EXACT, no_losses)[0].trial == "t0001"
    winner, reason = select([better, worse], limited(**limit), no_losses)
    assert winner.trial == "t0002"
    assert winner.lowest == worse.points[0].folder  # what the others are compared with may win too
    assert reason.startswith("t0002 has the lowest validation loss, 2.0000, of 1 trials")
    assert reason.endswith("1 trial had checkpoints beyond a limit, which could not win: t0001.")


@EACH_LIMIT
def test_an_earlier_checkpoint_of_the_same_trial_wins_where_the_best_is_beyond(
    limit, within, beyond, words
):
    trial = measured(curve(3.0, 2.0, 1.0), within, within, beyond)
    winner, reason = select(
        [trial, measured(curve(2.5, id="t0002"), within)], limited(**limit), no_losses
    )
    assert (winner.trial, winner.point.step) == ("t0001", 2)
    assert (
        "its checkpoint is that of step 2 (epoch 2), not the trial's last, whose validation loss is 1.0000"
        in reason
    )
    assert [p.step for p in candidates(trial, limited(**limit))] == [1, 2]


@EACH_LIMIT
def test_a_trial_of_which_nothing_keeps_to_the_limits_cannot_win(limit, within, beyond, words):
    trial = measured(curve(2.0, 1.0), beyond, beyond)
    assert best_point(trial, limited(**limit)) is None
    unfinished = measured(curve((1.0, None), id="t0002"), within)
    winner, reason = select([trial, unfinished], limited(**limit), no_losses)
    assert winner is None
    assert reason == (
        "Nothing may win: of 2 trials, 1 beyond a limit wherever not overfit (t0001); "
        f"1 overfit or not finite at every evaluation (t0002). Of those, 1.0000 is out because {words}."
    )


def test_a_trial_that_is_beyond_a_limit_before_it_overfits_is_counted_once():
    trial = measured(curve((2.0, 2.0), (3.0, 0.1), None), {"kl": 2.0}, {"kl": 0.5}, {"kl": 0.5})
    winner, reason = select([trial], limited(kl=1.0), no_losses)
    assert winner is None
    assert reason.startswith(
        "Nothing may win: of 1 trial, 1 beyond a limit wherever not overfit (t0001). Of those, 2.0000 is"
    )


def test_several_trials_beyond_a_limit_are_counted_apart_from_the_overfit():
    beyond = [measured(curve(1.0, id=f"t000{n}"), {"kl": 2.0}) for n in (1, 2)]
    rose = measured(overfit(1.0, id="t0003"), {"kl": 0.1}, {"kl": 0.1})
    good = measured(curve(3.0, id="t0004"), {"kl": 0.1})
    _, reason = select([*beyond, rose, good], limited(kl=1.0), no_losses)
    assert reason.endswith(
        "1 trial had overfit checkpoints, which could not win: t0003; "
        "2 trials had checkpoints beyond a limit, which could not win: t0001, t0002."
    )


@pytest.mark.parametrize(
    ("limit", "more", "words"),
    [
        ({"forgetting": 0.25}, {}, "its forgetting was not measured, and has a limit of 0.25"),
        ({"forgetting": -1.0}, {}, "its forgetting was not measured, and has a limit of -1"),
        ({"kl": 0.25}, {"forgetting": 0.0}, "its KL was not measured, and has a limit of 0.25"),
        (
            {"slice_loss": 2.0},
            {"slices": slices(a=1.0, b=None)},
            "its loss on the slice 'b' is inf (limit 2)",
        ),
        (
            {"slice_gap": 9.0},
            {"slices": slices(a=1.0, b=None)},
            "its losses on the slices 'b' and 'a' are inf apart, inf and 1.0000 (limit 9)",
        ),
        (
            {"slice_accuracy": 0.25},
            {"slices": slices(a=1.0, b=(1.0, None))},
            "its accuracy on the slice 'b' is 0.0000 (at least 0.25 is asked)",
        ),
        (
            {"slice_accuracy": 0.25},
            {"slices": {"a": {"rows": 30, "loss": 1.0}}},
            "its accuracy on the slice 'a' is 0.0000 (at least 0.25 is asked)",
        ),
    ],
)
def test_a_number_that_was_not_measured_is_beyond_its_limit(limit, more, words):
    (point,) = measured(curve(1.0), more).points
    assert limit_reason(point, LimitsConfig(**limit)) == words


def test_where_no_slice_has_a_loss_there_is_no_gap_within_a_limit():
    (point,) = measured(curve(1.0), {"slices": slices(a=None, b=None)}).points
    assert limit_reason(point, LimitsConfig(slice_gap=1.0)) is not None


@pytest.mark.parametrize(
    ("limit", "small"),
    [({"slice_loss": 2.0}, 9.0), ({"slice_gap": 1.0}, 9.0), ({"slice_accuracy": 0.5}, (1.0, 0.0))],
)
def test_small_slices_do_not_count(limit, small):
    large = slices(a=1.0, b=1.5)
    (point,) = measured(curve(1.0), {"slices": large | slices(rows=29, c=small)}).points
    assert limit_reason(point, LimitsConfig(**limit)) is None
    assert limit_reason(point, LimitsConfig(**limit, slice_rows=29)) is not None
    (point,) = measured(curve(1.0), {"slices": large | slices(rows=30, c=small)}).points
    assert limit_reason(point, LimitsConfig(**limit)) is not None


@pytest.mark.parametrize(
    "found", [{}, slices(rows=29, a=1.0)], ids=["no slices", "only small ones"]
)
@pytest.mark.parametrize(
    "limit", [{"slice_loss": 2.0}, {"slice_gap": 1.0}, {"slice_accuracy": 0.5}]
)
def test_where_no_slice_is_large_enough_nothing_wins(limit, found):
    trial = measured(curve(1.0), {"slices": found})
    assert (
        limit_reason(trial.points[0], LimitsConfig(**limit))
        == "no slice has the 30 rows that its limit asks for"
    )
    assert select([trial], limited(**limit), no_losses)[0] is None
    assert (
        select([trial], EXACT, no_losses)[0].trial == "t0001"
    )  # without a limit on slices none is needed


def test_one_slice_alone_has_no_gap():
    (point,) = measured(curve(1.0), {"slices": slices(a=1.0)}).points
    assert limit_reason(point, LimitsConfig(slice_gap=0.001)) is None


def test_every_limit_is_kept_at_once_and_overfitting_is_said_first():
    config = limited(forgetting=0.5, kl=0.5, slice_loss=2.0)
    good = {"forgetting": 0.1, "kl": 0.1, "slices": slices(a=1.0)}
    assert excluded_reason(measured(curve(1.0), good).points, 0, config) is None
    for wrong in ({"forgetting": 1.0}, {"kl": 1.0}, {"slices": slices(a=3.0)}):
        assert excluded_reason(measured(curve(1.0), good | wrong).points, 0, config) is not None
    both = measured(curve((1.0, 1.0), (1.5, 0.5)), good, good | {"kl": 1.0})
    assert "validation loss rose 50.0% above its minimum" in excluded_reason(both.points, 1, config)


def test_what_is_remembered_better_than_before_keeps_to_any_limit():
    (point,) = measured(curve(1.0), {"forgetting": -0.75, "kl": 0.0}).points
    assert limit_reason(point, LimitsConfig(forgetting=0.0, kl=0.001)) is None
    assert limit_reason(point, LimitsConfig(forgetting=-1.0)) == (
        "its loss on general text rose by -0.7500 nats (limit -1)"
    )


def test_finalists_are_chosen_among_those_within_the_limits():
    config = dataclasses.replace(limited(kl=1.0), finalists=FinalistsConfig(top=2))
    kls = {"a": (1.0, 2.0), "b": (1.5, 0.5), "c": (1.7, 0.5), "d": (1.6, 2.0)}
    curves = [measured(curve(loss, id=id), {"kl": kl}) for id, (loss, kl) in kls.items()]
    assert finalists(curves, config) == ["b", "c"]
    # a trial stands with what keeps to the limits: its best is beyond, an earlier one is not
    early = measured(curve(1.4, 0.5, id="e"), {"kl": 0.5}, {"kl": 2.0})
    assert finalists([*curves, early], config) == ["e", "b"]


def test_new_seeds_beyond_a_limit_have_failed():
    config = limited(kl=1.0)
    first, *seeds = curve(1.0, id="a"), *again("a", 0.5, 1.5, 1.25)
    kept = [
        measured(first, {"kl": 0.5}),
        *(measured(c, {"kl": kl}) for c, kl in zip(seeds, (2.0, 0.5, 0.5), strict=True)),
    ]
    (final,) = final_ranking(kept, config)
    assert (
        final.seeds == {"a-2": 1.5, "a-3": 1.25}
        and final.mean == 1.375
        and final.failed == ("a-1",)
    )
    assert select(kept, config, no_losses)[0].trial == "a-3"


def test_the_tied_are_those_within_the_limits():
    """The lowest is beyond; of the others the next leads, and where asked for the cheaper of those tied with it wins."""
    lowest, second, third = (
        measured(curve(loss, id=id), {"kl": kl, "inference_cost": cost})
        for id, loss, cost, kl in (
            ("t0001", 1.0, 1.0, 2.0),
            ("t0002", 1.01, 1.2, 0.5),
            ("t0003", 1.02, 1.1, 0.5),
        )
    )
    trials = [
        (lowest, per_example(1.0, noise=0.5, seed=1)),
        (second, per_example(1.01, noise=0.5, seed=2)),
        (third, per_example(1.02, noise=0.5, seed=3)),
    ]
    assert judged(*trials)[0].trial == "t0001"
    winner, _ = judged(*trials, config=limited(kl=1.0))
    assert (winner.trial, winner.tied, winner.lowest) == (
        "t0002",
        ("t0003",),
        second.points[0].folder,
    )
    winner, reason = judged(*trials, config=dataclasses.replace(limited(kl=1.0), prefer="cheapest"))
    assert (winner.trial, winner.tied, winner.lowest) == (
        "t0003",
        ("t0002",),
        second.points[0].folder,
    )
    assert set(winner.differences) == {"t0003"}
    assert reason.startswith(
        "t0003 is tied with t0002, which has the lowest validation loss (1.0100)"
    )


# --- slices ---


def test_every_slice_has_the_interval_of_its_own_rows():
    rng = np.random.default_rng(4)
    targets = rng.integers(1, 9, 90).astype(float)
    of_rows = np.repeat([2, 0], [60, 30])  # positions in the values; of the second there is no row
    level = np.where(of_rows == 2, 1.0, 3.0)
    losses = np.stack([targets * (level + rng.normal(0, 0.3, 90)), targets], 1)
    found = slice_intervals(losses, of_rows, ["de", "en", "fr"])
    assert set(found) == {"de", "fr"}
    assert found["de"] == mean_interval(losses[60:]) and found["fr"] == mean_interval(losses[:60])
    for value, rows in (("de", losses[60:]), ("fr", losses[:60])):
        low, high = found[value]
        assert low < rows[:, 0].sum() / rows[:, 1].sum() < high < low + 0.5
    assert all(
        type(bound) is float for bounds in found.values() for bound in bounds
    )  # they go into JSON


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_handful_of_rows_has_no_interval(rows):
    assert mean_interval(np.stack([np.linspace(2.5, 3.0, rows), np.ones(rows)], 1)) is None


@pytest.mark.parametrize("rows", [10, 11, 12])
def test_the_interval_of_few_rows_lies_among_their_losses(rows):
    """However often resampling leaves out all of them: no rows have no mean, and not that of 0."""
    losses = np.stack([np.linspace(2.5, 3.0, rows), np.ones(rows)], 1)
    low, high = mean_interval(losses)
    assert (
        2.4999 < low <= losses[:, 0].mean() + 1e-6 and losses[:, 0].mean() - 1e-6 <= high < 3.0001
    )


# --- the Pareto front ---

BY_SIZE = SelectionConfig(pareto="trainable_parameters")
BY_COST = SelectionConfig(pareto="inference_cost")


def test_the_pareto_front_has_what_none_beats_in_loss_and_size():
    curves = [
        curve(1.0, id="best", parameters=100),
        curve(1.0, id="as-good-but-larger", parameters=200),
        curve(1.5, id="worse-and-larger", parameters=150),
        curve(1.2, id="smaller", parameters=50),
        curve(2.0, id="smallest", parameters=5),
        curve(1.9, id="as-small-as-another", parameters=50),
    ]
    assert [c.id for c, _ in pareto(curves, BY_SIZE)] == ["best", "smaller", "smallest"]
    assert [c.id for c, _ in pareto(curves[::-1], BY_SIZE)] == ["best", "smaller", "smallest"]
    assert pareto(curves, SelectionConfig()) == []


def test_the_pareto_front_by_what_a_request_costs_is_another():
    costs = {
        "merged": (1.2, 900, 1.0),
        "adapter": (1.0, 100, 1.03),
        "prompt": (1.1, 5, 1.5),
        "dear": (1.3, 1, 1.6),
    }
    curves = [
        measured(curve(loss, id=id, parameters=size), {"inference_cost": cost})
        for id, (loss, size, cost) in costs.items()
    ]
    assert [(c.id, p.inference_cost) for c, p in pareto(curves, BY_COST)] == [
        ("adapter", 1.03),
        ("merged", 1.0),
    ]
    assert [c.id for c, _ in pareto(curves, BY_SIZE)] == ["adapter", "prompt", "dear"]


def test_of_two_that_tie_in_one_number_the_pareto_front_has_the_one_that_is_better_in_the_other():
    same_loss = [
        measured(curve(1.0, id="a-dear"), {"inference_cost": 1.2}),
        measured(curve(1.0, id="b-cheap"), {"inference_cost": 1.1}),
    ]
    assert [c.id for c, _ in pareto(same_loss, BY_COST)] == ["b-cheap"]
    same_cost = [
        measured(curve(loss, id=f"loss-{loss}"), {"inference_cost": 1.1}) for loss in (1.5, 1.0)
    ]
    assert [c.id for c, _ in pareto(same_cost, BY_COST)] == ["loss-1.0"]
    both = [measured(curve(1.0, id=id), {"inference_cost": 1.1}) for id in ("t0002", "t0001")]
    assert [c.id for c, _ in pareto(both, BY_COST)] == ["t0001"]


def test_the_pareto_front_has_only_what_may_win():
    curves = [
        measured(curve(1.0, id="beyond", parameters=1), {"kl": 2.0}),
        measured(overfit(0.5, id="rose"), {"kl": 0.1}, {"kl": 0.1}),
        measured(curve(1.0, id="gone", parameters=1, kept=False), {"kl": 0.1}),
        measured(curve(2.0, id="good", parameters=100), {"kl": 0.1}),
    ]
    config = dataclasses.replace(BY_SIZE, limits=LimitsConfig(kl=1.0))
    assert [c.id for c, _ in pareto(curves, config)] == ["good"]


# --- finalists ---


def again(first, *losses, config=None):
    """New seeds of the trial `first`, one evaluation each."""
    return [
        dataclasses.replace(curve(loss, id=f"{first}-{number}"), finalist_of=first)
        for number, loss in enumerate(losses, start=1)
    ]


def test_finalists_are_the_best_configurations_of_the_search():
    curves = [
        curve(2.0, id="a"),
        curve(1.0, id="b"),
        curve(3.0, id="c"),
        curve(1.5, id="d"),
        *again("b", 0.5),
    ]
    config = SelectionConfig(finalists=FinalistsConfig(top=2))
    assert finalists(curves, config) == ["b", "d"]
    assert finalists(curves, SelectionConfig()) == []


def test_the_lowest_mean_over_new_seeds_wins_and_not_the_lucky_one():
    lucky, steady = curve(0.9, id="lucky"), curve(1.0, id="steady")
    curves = [lucky, steady, *again("lucky", 1.2, 1.3, 1.25), *again("steady", 1.01, 1.0, 0.99)]
    winner, reason = select(curves, SelectionConfig(), no_losses)
    assert winner.trial == "steady-2" and winner.point.val_loss == 1.0, (
        "the median, not the luckiest of the new seeds"
    )
    assert winner.expected.mean == pytest.approx(1.0) and winner.expected.trial == "steady"
    assert (
        "what is handed over is the median of its new seeds, steady-2 with 1.0000; to expect is the mean"
        in reason
    )
    assert (
        "that of steady has the lowest mean validation loss over 3 new seeds, 1.0000 ± 0.0100"
        in reason
    )
    assert "the next, that of lucky, has 1.2500 ± 0.0500" in reason
    ranking = final_ranking(curves, SelectionConfig())
    assert [final.trial for final in ranking] == ["steady", "lucky"] and ranking[
        0
    ].mean == pytest.approx(1.0)


def test_neither_the_first_seed_nor_its_checkpoint_counts():
    """It was chosen because it was lucky."""
    curves = [
        curve(0.8, id="a"),
        curve(1.0, id="b"),
        *again("a", 0.92, 0.88, 0.9),
        *again("b", 1.0, 1.1),
    ]
    winner, _ = select(curves, SelectionConfig(), no_losses)
    assert final_ranking(curves, SelectionConfig())[0].mean == pytest.approx(0.9)
    assert winner.trial == "a-3" and winner.point.val_loss == 0.9
    assert winner.expected.mean == pytest.approx(0.9)


def test_of_configurations_that_their_seeds_cannot_tell_apart_the_lower_wins_or_if_asked_the_cheaper():
    first = curve(1.0, id="dear"), curve(1.1, id="cheap")
    seeds = [
        *(costing(c, 1.0) for c in again("cheap", 1.0, 1.2)),
        *(costing(c, 1.5) for c in again("dear", 0.95, 1.15)),
    ]
    winner, reason = select([*first, *seeds], SelectionConfig(), no_losses)
    assert (winner.trial, winner.tied) == ("dear-1", ("cheap-1",))
    assert (
        "also within 1 standard error: cheap; of these cheap-1 costs less in use (1.000 against 1.500"
        in reason
    )
    winner, reason = select([*first, *seeds], SelectionConfig(prefer="cheapest"), no_losses)
    assert (winner.trial, winner.tied) == ("cheap-1", ("dear-1",))
    assert "is tied with the lowest, 1.0500 ± 0.1414 of dear, and cheaper to use" in reason
    assert winner.expected.trial == "cheap" and winner.expected.mean == pytest.approx(1.1)


def broken(first, number, how):
    """A new seed of `first` that gave nothing which may win."""
    ends = {
        "failed": curve(id=f"{first}-{number}", status="failed", reason="it broke"),
        "failed late": curve(0.4, id=f"{first}-{number}", status="failed", reason="it broke"),
        "diverged": curve(
            None, id=f"{first}-{number}", status="pruned", reason="diverged: no number"
        ),
        "stopped": curve(id=f"{first}-{number}", status="pruned", reason="the time budget"),
    }
    return dataclasses.replace(ends[how], finalist_of=first)


@pytest.mark.parametrize("how", ["failed", "failed late", "diverged", "stopped"])
def test_failed_seeds_count_against_a_configuration(how):
    lone = [curve(0.5, id="a"), *again("a", 0.495), broken("a", 2, how), broken("a", 3, how)]
    sound = [curve(0.51, id="b"), *again("b", 0.5, 0.505, 0.51)]
    winner, reason = select([*lone, *sound], SelectionConfig(), no_losses)
    assert (
        winner.trial == "b-2" and winner.expected.mean == pytest.approx(0.505) and winner.tied == ()
    )
    assert (
        "2 of 3 new seeds of a gave no checkpoint that may win (a-2, a-3), so it wins over none whose seeds all ran"
        in reason
    )
    (_, final) = final_ranking([*lone, *sound], SelectionConfig())
    assert final.failed == ("a-2", "a-3") and dict(final.seeds) == {"a-1": 0.495}


def test_a_new_seed_that_still_runs_has_not_failed():
    running = dataclasses.replace(curve(id="a-2", status="running"), finalist_of="a")
    (final,) = final_ranking([curve(1.0, id="a"), *again("a", 1.0), running], SelectionConfig())
    assert final.failed == ()


def test_the_spread_of_a_single_seed_is_that_of_the_others_or_unknown():
    """Not 0: 1.01 alone may be 1.0 with another seed."""
    alone = [curve(1.0, id="a"), curve(1.1, id="b"), *again("a", 1.01), *again("b", 1.0)]
    winner, reason = select(alone, SelectionConfig(), no_losses)
    assert (winner.trial, winner.tied, winner.expected.spread) == ("b-1", (), None)
    assert "over 1 new seed, 1.0000 (one seed)" in reason
    beside = [*alone[:3], *again("b", 0.9, 1.0, 1.1)]
    winner, _ = select(beside, SelectionConfig(), no_losses)
    assert (winner.trial, winner.tied) == ("b-2", ("a-1",)), (
        "0.01 apart, where seeds of b differ by 0.1"
    )


def test_without_new_seeds_that_may_win_the_search_decides():
    """And what ran again and failed each time stands behind what never did."""
    failed = broken("a", 1, "failed")
    winner, _ = select(
        [curve(1.0, id="a"), curve(0.9, id="b"), failed], SelectionConfig(), no_losses
    )
    assert winner.trial == "b"
    winner, reason = select(
        [curve(0.8, id="a"), curve(0.9, id="b"), failed], SelectionConfig(), no_losses
    )
    assert winner.trial == "b" and winner.expected is None
    assert "1 of 1 new seeds of a gave no checkpoint that may win (a-1)" in reason
    assert select([curve(0.8, id="a"), failed], SelectionConfig(), no_losses)[0].trial == "a"


# --- intervals ---


def test_an_interval_covers_the_true_difference_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        easy = rng.exponential(1.0, 150)
        a = np.stack([easy, np.ones(150)], 1)
        b = np.stack([easy + 0.1 + rng.normal(0, 0.5, 150), np.ones(150)], 1)
        ((low, high),) = bootstrap_intervals(a, [b])
        covered += low < 0.1 < high
    assert 180 <= covered <= 198  # of 200, at 95%


def test_intervals_are_the_same_in_every_call_and_in_any_company():
    rng = np.random.default_rng(1)
    a, b, c = (np.stack([rng.exponential(1.0, 50), rng.integers(1, 9, 50)], 1) for _ in range(3))
    assert bootstrap_intervals(a, [b])[0] == pytest.approx(
        bootstrap_intervals(a, [c, b])[1], rel=1e-6
    )
    assert bootstrap_intervals(a, []) == []


def test_the_winner_knows_how_far_the_others_are_behind():
    rng = np.random.default_rng(2)
    easy = rng.exponential(1.0, 300)
    near = {"a": 0.0, "b": 0.001, "c": 0.5}
    rows = {
        id: np.stack([easy + gap + rng.normal(0, 0.2, 300), np.ones(300)], 1)
        for id, gap in near.items()
    }
    curves = [curve(float(rows[id][:, 0].mean()), id=id) for id in near]
    winner, _ = select(curves, SelectionConfig(), lambda folder: rows[folder.split("/")[1]])
    assert set(winner.differences) == set(near) - {min(near, key=lambda id: rows[id][:, 0].mean())}
    c = winner.differences["c"]
    assert c.low < c.mean < c.high and c.low > 0.4 and not c.tied
