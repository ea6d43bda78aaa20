"""Early stopping: worse trials at rungs in samples, overfit and diverged trials at once."""

import math
import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.config import EarlyStoppingConfig
from sweeps.ledger import Ledger
from sweeps.selection import Curve, Point, Reference, SelectionConfig
from sweeps.stopping import HopelessStopper, SampleAsha, hopeless, make_scheduler

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
SELECTION = SelectionConfig(overfit_rise=0.25, overfit_gap=0.5, diverge_ratio=2.0)
UNTUNED = Reference(val_loss=4.0)


def curve(*losses, id="t0001", status="running", every=100):
    """A trial from (validation loss, probe loss) of each evaluation, `every` samples apart; one number means both."""
    pairs = [loss if isinstance(loss, tuple) else (loss, loss) for loss in losses]
    points = tuple(
        Point(step=step, samples_seen=every * step, epoch=step, val_loss=val, probe_loss=probe)
        for step, (val, probe) in enumerate(pairs, start=1)
    )
    return Curve(id=id, status=status, points=points)


class Tuned:
    """A scheduler with Tune's part played: one trial after another is added and reports."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.added = set()

    def report(self, id, *results, compared=False):
        """What the scheduler says to (samples seen, validation loss); the trial is added at its first."""
        trial = SimpleNamespace(trial_id=id, config={"compared": compared})
        if id not in self.added:
            self.scheduler.on_trial_add(None, trial)
            self.added.add(id)
        said = []
        for samples, loss in results:
            said.append(self.scheduler.on_trial_result(None, trial, {"samples_seen": samples, "val_loss": loss}))
        return said[-1] if len(said) == 1 else said


def asha(*finished, rows=100, max_epochs=9, **config):
    made = make_scheduler(EarlyStoppingConfig(**config), rows, max_epochs, list(finished))
    assert isinstance(made, SampleAsha)
    return Tuned(made)


# --- behind the others ---


def test_the_worse_trials_are_stopped_at_a_rung():
    tuned = asha()
    assert tuned.report("a", (100, 1.0)) == CONTINUE  # nothing to compare with
    assert tuned.report("b", (100, 0.5)) == CONTINUE
    assert tuned.report("c", (100, 2.0)) == STOP
    assert tuned.report("d", (100, 0.4)) == CONTINUE
    assert tuned.report("e", (100, 0.9)) == STOP  # now behind the best third


def test_rungs_are_in_samples_and_not_in_evaluations():
    """One trial evaluates every 25 samples, the other every 100: they meet at 100, 300 and 900 samples."""
    tuned = asha()
    assert tuned.report("often", (25, 3.0), (50, 2.0), (75, 1.5), (100, 1.0)) == [CONTINUE] * 4
    assert tuned.report("seldom", (100, 1.1)) == STOP
    tuned = asha()
    assert tuned.report("good", (100, 1.0), (200, 0.9), (300, 0.5)) == [CONTINUE] * 3
    assert tuned.report("fair", (100, 0.9), (200, 0.8)) == [CONTINUE] * 2
    assert tuned.report("fair", (300, 0.6)) == STOP  # it was ahead at 100, and is behind at 300


def test_no_trial_is_stopped_before_its_grace():
    tuned = asha(grace_epochs=2)
    assert tuned.report("a", (100, 1.0), (200, 0.5)) == [CONTINUE] * 2
    assert tuned.report("b", (100, 9.0), (199, 9.0)) == [CONTINUE] * 2
    assert tuned.report("b", (200, 9.0)) == STOP


def test_a_loss_that_is_not_finite_is_the_worst():
    tuned = asha()
    tuned.report("a", (100, 1.0))
    assert tuned.report("b", (100, math.inf)) == STOP


def test_a_trial_that_reaches_the_end_is_left_to_end_by_itself():
    tuned = asha()
    assert tuned.report("a", (100, 1.0), (300, 0.9), (900, 0.8), (1000, 0.7)) == [CONTINUE] * 4


def test_what_others_are_compared_with_is_not_stopped_for_being_behind():
    tuned = asha()
    for id in "abc":
        tuned.report(id, (100, 1.0))
    assert tuned.report("default", (100, 9.0), compared=True) == CONTINUE
    assert tuned.report("other", (100, 9.0)) == STOP


def test_a_result_without_a_loss_is_no_reason_to_stop():
    tuned = asha()
    tuned.report("a", (100, 1.0))
    trial = SimpleNamespace(trial_id="a", config={"compared": False})
    assert tuned.scheduler.on_trial_result(None, trial, {"id": "t0001", "ended": "stopped", "done": True}) == CONTINUE


def test_half_go_on_with_a_reduction_factor_of_two():
    generator, stopped = random.Random(0), {}
    for factor in (2.0, 4.0):
        tuned = asha(reduction_factor=factor)
        said = [tuned.report(str(n), (100, generator.random())) for n in range(400)]
        stopped[factor] = said.count(STOP) / len(said)
    assert stopped[2.0] == pytest.approx(1 / 2, abs=0.06)
    assert stopped[4.0] == pytest.approx(3 / 4, abs=0.06)


@pytest.mark.parametrize(
    ("max_epochs", "config"),
    [(1, {}), (2, {"grace_epochs": 2}), (2, {"grace_epochs": 3}), (0.5, {}), (9, {"asha": False})],
)
def test_there_is_nothing_to_compare_where_trials_are_too_short_or_it_is_off(max_epochs, config):
    assert type(make_scheduler(EarlyStoppingConfig(**config), 100, max_epochs, [])) is FIFOScheduler


def test_after_a_restart_the_rungs_are_as_they_were():
    """The same trials, live and replayed: a newcomer hears the same at every rung, whatever its loss."""
    generator = random.Random(1)
    curves = []
    for number in range(12):
        losses = [generator.uniform(0.5, 2.0) for _ in range(generator.randint(1, 9))]
        curves.append(curve(*losses, id=f"t{number:04d}", status="complete"))
    curves.append(curve(1.0, None, 0.7, id="t0099", status="pruned"))
    heard = {}
    for loss in [0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 1.9, 2.5]:
        live, replayed, empty = asha(), asha(*curves), asha()
        for one in curves:
            for point in one.points:
                if point.val_loss is not None:
                    live.report(one.id, (point.samples_seen, point.val_loss))
        newcomer = [(100, loss), (300, loss), (900, loss)]
        expected = live.report("new", *newcomer)
        assert replayed.report("new", *newcomer) == expected
        assert empty.report("new", *newcomer) == [CONTINUE] * 3
        heard[loss] = expected
    assert heard[0.4] == [CONTINUE] * 3 and heard[2.5] == [STOP] * 3


# --- hopeless ---


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([], None),
        ([2.0], None),
        ([2.0, 1.0, 1.2], None),
        ([(2.0, 2.0), (2.5, 1.5)], None),  # at the limit of overfit_rise, not above
        ([(2.0, 2.0), (2.6, 1.5)], "overfit: validation loss rose 30.0%"),
        ([(2.0, 0.9)], None),  # the training rows are memorised, and validation loss is none the worse
        ([(2.0, 0.9), (1.9, 0.1)], None),
        ([2.0, None], "diverged: a loss was not finite at 200 samples"),
        ([(2.0, None)], "diverged: a loss was not finite at 100 samples"),
        ([2.0, 9.0], "diverged: validation loss 9.0000 and probe loss 9.0000 are above 2 times"),
        ([9.0, 2.0], None),  # it came back
    ],
)
def test_what_is_hopeless(losses, why):
    reason = hopeless(curve(*losses), UNTUNED, EarlyStoppingConfig(overfit_patience=1), SELECTION)
    assert reason is None if why is None else reason.startswith(why)


def test_a_gap_alone_stops_nothing():
    """Each is better than the one before; the probe loss is under a tenth of the validation loss from the second on."""
    excellent = [(0.20, 0.19), (0.060, 0.0055), (0.050, 0.0040), (0.045, 0.0030)]
    untuned, config = Reference(val_loss=0.7, probe_loss=0.7), SelectionConfig()
    assert hopeless(curve(*excellent), untuned, EarlyStoppingConfig(), config) is None
    rose = curve(*excellent, (0.060, 0.0020), (0.080, 0.0010))
    assert hopeless(rose, untuned, EarlyStoppingConfig(), config).startswith("overfit: validation loss rose")


def test_patience_counts_overfit_evaluations_in_a_row():
    patient = EarlyStoppingConfig(overfit_patience=2)
    up, down = (2.6, 1.5), (2.4, 1.4)
    assert hopeless(curve((2.0, 2.0), up), UNTUNED, patient, SELECTION) is None
    assert hopeless(curve((2.0, 2.0), up, down, up), UNTUNED, patient, SELECTION) is None
    assert hopeless(curve((2.0, 2.0), up, up), UNTUNED, patient, SELECTION).startswith("overfit: ")
    assert hopeless(curve((2.0, 0.5)), UNTUNED, patient, SELECTION) is None  # one evaluation is not two
    assert hopeless(curve(None), UNTUNED, patient, SELECTION).startswith("diverged: ")  # patience is for overfitting


def test_each_kind_can_be_switched_off():
    overfit, diverged = curve((2.0, 2.0), (2.6, 1.5)), curve(2.0, None)
    assert hopeless(overfit, UNTUNED, EarlyStoppingConfig(overfit=False), SELECTION) is None
    assert hopeless(diverged, UNTUNED, EarlyStoppingConfig(overfit=False), SELECTION) is not None
    assert hopeless(diverged, UNTUNED, EarlyStoppingConfig(diverged=False, overfit_patience=1), SELECTION) is None
    assert hopeless(overfit, UNTUNED, EarlyStoppingConfig(diverged=False, overfit_patience=1), SELECTION) is not None


def test_without_a_baseline_only_what_is_not_finite_has_diverged():
    assert hopeless(curve(1.0, 1e6), Reference(), EarlyStoppingConfig(), SELECTION) is None
    assert hopeless(curve(1.0, None), Reference(), EarlyStoppingConfig(), SELECTION) is not None


# --- the stopper that Tune asks ---


@pytest.fixture
def stopper(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.begin("t0001", {})
    stops = []
    made = HopelessStopper(
        config=EarlyStoppingConfig(overfit_patience=1),
        selection=SELECTION,
        ledger=ledger,
        reference=lambda: UNTUNED,
        on_evaluation=ledger.record,
        on_stop=lambda *told: stops.append(told),
    )
    return SimpleNamespace(ask=made, ledger=ledger, stops=stops, stop_all=made.stop_all)


def result(step, val, probe, *, done=False):
    evaluation = {
        "step": step,
        "samples_seen": 100 * step,
        "epoch": step,
        "val_loss": val,
        "probe_loss": probe,
        "metrics": {},
        "trainable_parameters": 1,
        "folder": f"trials/t0001/attempt-1/step-{step:08d}",
    }
    return {"id": "t0001", "done": done, "evaluation": evaluation}


def test_every_evaluation_enters_the_ledger_and_a_healthy_trial_goes_on(stopper):
    assert not stopper.ask("tune-1", result(1, 2.0, 2.0))
    assert not stopper.ask("tune-1", result(2, 1.5, 1.4))
    assert [point.val_loss for point in stopper.ledger.curve("t0001").points] == [2.0, 1.5]
    assert stopper.stops == []
    assert not stopper.stop_all()


def test_a_hopeless_trial_is_stopped_with_its_reason(stopper):
    assert not stopper.ask("tune-1", result(1, 2.0, 2.0))
    assert stopper.ask("tune-1", result(2, 2.6, 1.5))
    ((tune_id, reason),) = stopper.stops
    assert tune_id == "tune-1"
    assert reason.startswith("overfit: validation loss rose 30.0% above its minimum")


def test_a_trial_that_is_done_is_recorded_and_not_stopped(stopper):
    assert not stopper.ask("tune-1", result(1, None, None, done=True))
    assert len(stopper.ledger.curve("t0001").points) == 1
    assert stopper.stops == []


def test_a_result_without_an_evaluation_is_none_of_its_business(stopper):
    assert not stopper.ask("tune-1", {"id": "t0001", "ended": "failed", "reason": "oom", "done": True})
    assert stopper.ledger.curve("t0001").points == ()
