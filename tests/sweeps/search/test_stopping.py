"""Early stopping: worse trials at rungs in samples, overfit and diverged trials at once."""

import inspect
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.tune import Stopper
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import TrialScheduler

from sweeps.config.models import ModelsConfig
from sweeps.config.schema import EarlyStoppingConfig, SearchConfig, SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.search.events import EvaluationEvents
from sweeps.search.failures import common_cause
from sweeps.search.scheduler import InOrder, SampleAsha, make_scheduler
from sweeps.search.stopping import HopelessStopper, hopeless
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from trainables.data.config import DataConfig
from trainables.evaluation.record import Evaluation
from trainables.runtime.tune_dicts import TrialConfig

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
SELECTION = SelectionConfig(overfit_rise=0.25, overfit_gap=0.5, diverge_ratio=2.0)
UNTUNED = Reference(val_loss=4.0)
PARAMS = {
    "method": "full",
    "learning_rate": 1e-4,
    "batch_size": 10,
    "epochs": 9,
    "warmup_ratio": 0.0,
}


def curve(*losses, id="t0001", status="running", every=100, **params):
    """A trial from (validation loss, probe loss) of each evaluation, `every` samples apart; one number means both."""
    pairs = [loss if isinstance(loss, tuple) else (loss, loss) for loss in losses]
    points = tuple(
        Evaluation(step=step, samples_seen=every * step, epoch=step, val_loss=val, probe_loss=probe)
        for step, (val, probe) in enumerate(pairs, start=1)
    )
    return Curve(id=id, status=status, points=points, params=PARAMS | params)


def config(id, params, compared):
    return TrialConfig(
        id=id,
        label=id,
        params=params,
        coordinator="coordinator",
        namespace="sweep-quick",
        compared=compared,
    ).to_tune()


class Tuned:
    """A scheduler with Tune's part played."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def report(self, id, *results, compared=False, done=False, **params):
        """What the scheduler says to (samples seen, validation loss); `done`: with the last of them the trial has ended."""
        trial = SimpleNamespace(
            trial_id=f"tune-{id}",
            config=config(id, PARAMS | params, compared),
        )
        self.scheduler.on_trial_add(None, trial)
        said = []
        for samples, loss in results:
            result = {"samples_seen": samples, "val_loss": loss}
            if done and (samples, loss) == results[-1]:
                self.scheduler.on_trial_complete(None, trial, result)
            else:
                said.append(self.scheduler.on_trial_result(None, trial, result))
        return said[-1] if len(said) == 1 else said


def sweep(epochs=9, scheduler="asha", **config):
    search = {
        "space": {**PARAMS, "epochs": epochs},
        "scheduler": scheduler,
        "early_stopping": EarlyStoppingConfig(**config),
    }
    return SweepConfig(
        name="quick",
        model=ModelsConfig(name="tiny"),
        data=DataConfig(train="rows.csv"),
        search=SearchConfig(**search),
    )


def asha(*earlier, rows=100, max_epochs=9, **config):
    made = make_scheduler(sweep(max_epochs, **config), {"": rows}, list(earlier))
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


def test_who_has_only_an_average_to_come_goes_on_to_it_and_is_compared():
    tuned = asha()
    assert tuned.report("a", (900, 0.5), epochs=9) == CONTINUE
    more = {"epochs": 9, "average_last": 2}
    assert tuned.report("b", (900, 1.0), (900, 0.1), done=True, **more) == CONTINUE
    # of "b" what it came to in training, as of the others
    assert list(tuned.scheduler._rungs[900].peers(math.inf)) == [0.5, 1.0]


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
    trial = SimpleNamespace(trial_id="a", config=config("a", PARAMS, False))
    assert (
        tuned.scheduler.on_trial_result(
            None, trial, {"id": "t0001", "ended": "stopped", "done": True}
        )
        == CONTINUE
    )


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
    [
        (1, {}),
        (2, {"grace_epochs": 2}),
        (2, {"grace_epochs": 3}),
        (0.5, {}),
        (9, {"scheduler": "none"}),
    ],
)
def test_there_is_nothing_to_compare_where_trials_are_too_short_or_it_is_off(max_epochs, config):
    assert type(make_scheduler(sweep(max_epochs, **config), {"": 100}, [])) is InOrder


def test_after_a_restart_the_rungs_are_as_they_were():
    """The same trials, live and replayed: a newcomer hears the same at every rung, whatever its loss."""
    generator = random.Random(1)
    curves = []
    for number in range(12):
        epochs, schedule = (
            generator.randint(1, 9),
            generator.choice(["linear", "cosine", "constant"]),
        )
        losses = [generator.uniform(0.5, 2.0) for _ in range(generator.randint(1, epochs))]
        status = "complete" if len(losses) == epochs else "running"
        curves.append(
            curve(*losses, id=f"t{number:04d}", status=status, epochs=epochs, schedule=schedule)
        )
    curves.append(curve(1.0, None, 0.7, id="t0099", status="pruned"))
    heard = {}
    for loss in [0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 1.9, 2.5]:
        live, replayed, empty = asha(), asha(*curves), asha()
        for one in curves:
            for point in one.points:
                known = math.inf if point.val_loss is None else point.val_loss
                live.report(one.id, (point.samples_seen, known), **one.params)
        newcomer = [(100, loss), (300, loss), (900, loss)]
        expected = live.report("new", *newcomer)
        assert replayed.report("new", *newcomer) == expected
        assert empty.report("new", *newcomer) == [CONTINUE] * 3
        heard[loss] = expected
    assert heard[0.4] == [CONTINUE] * 3 and heard[2.5] == [STOP] * 3


def test_a_trial_that_goes_on_after_a_restart_is_not_judged_twice_at_one_rung():
    half = curve(1.0, id="t0001", status="running")
    tuned = asha(half)
    assert tuned.report("better", (100, 0.1)) == CONTINUE
    assert tuned.report("t0001", (200, 0.9)) == CONTINUE  # it had passed this rung
    assert tuned.report("better", (300, 0.05)) == CONTINUE
    assert tuned.report("t0001", (300, 0.8)) == STOP


# --- like with like ---


def toy(learnt, epoch, epochs, schedule):
    """Loss of a run that has learnt so much of what there is, and of the noise that its rate leaves (1 at the peak)."""
    down = {"linear": epoch / epochs, "constant": 0.0}[schedule]
    return 1.0 + math.exp(-learnt * epoch) + 0.5 * (1 - down)


def stopped(schedule, compare=asha):
    """The share of runs of each horizon that are stopped, of 600 in any order, and the share of the best of each that are."""
    generator, tuned, told = random.Random(0), compare(max_epochs=3), {}
    for number in range(600):
        epochs, learnt = generator.choice((1, 2, 3)), generator.uniform(0.1, 1.0)
        points = [(100 * e, toy(learnt, e, epochs, schedule)) for e in range(1, epochs + 1)]
        said = tuned.report(
            f"t{number}", points[0], done=epochs == 1, epochs=epochs, schedule=schedule
        )
        told.setdefault(epochs, []).append((learnt, said == STOP))
    best = {epochs: sorted(each, reverse=True)[: len(each) // 4] for epochs, each in told.items()}
    return [
        {epochs: sum(end for _, end in each) / len(each) for epochs, each in sorted(group.items())}
        for group in (told, best)
    ]


def test_a_run_is_not_stopped_because_its_rate_has_not_come_down_yet():
    everything, best = stopped("linear")
    assert (
        everything[1] == 0 and max(best.values()) < 0.05
    )  # a few come when hardly anybody else has
    assert everything[3] == pytest.approx(
        2 / 3, abs=0.07
    )  # compared with their like, two thirds are behind
    assert everything[2] <= everything[3]


def test_runs_at_a_constant_rate_are_compared_at_equal_samples():
    everything, best = stopped("constant")
    assert everything[2] == pytest.approx(2 / 3, abs=0.07) and everything[3] == pytest.approx(
        2 / 3, abs=0.07
    )
    assert max(best.values()) < 0.05


@pytest.mark.parametrize(
    ("own", "others", "said"),
    [
        ({"epochs": 3}, {"epochs": 1}, CONTINUE),  # a finished short run says nothing of a long one
        ({"epochs": 3}, {"epochs": 2}, CONTINUE),
        ({"epochs": 2}, {"epochs": 3}, STOP),  # behind those that have a longer way to go
        ({"epochs": 3}, {"epochs": 3}, STOP),
        ({"epochs": 8}, {"epochs": 7}, STOP),  # as good as alike
        ({"epochs": 3, "schedule": "constant"}, {"epochs": 3}, CONTINUE),
        ({"epochs": 3}, {"epochs": 3, "schedule": "constant"}, STOP),
        ({"epochs": 1.5, "schedule": "constant"}, {"epochs": 9, "schedule": "constant"}, STOP),
        (
            {"epochs": 5, "schedule": "cosine"},
            {"epochs": 5},
            CONTINUE,
        ),  # a cosine comes down later at first
        ({"epochs": 3}, {"epochs": 3, "schedule": "cosine"}, STOP),
        ({"epochs": 3, "warmup_ratio": 0.9}, {"epochs": 3}, CONTINUE),
    ],
)
def test_a_trial_is_compared_with_those_whose_rate_has_come_down_no_further(own, others, said):
    tuned = asha()
    for id in "abc":
        tuned.report(id, (100, 1.0), done=others["epochs"] == 1, **others)
    assert tuned.report("new", (100, 2.0), **own) == said


def test_finalists_raise_no_bar_for_a_search_that_is_extended():
    again = [
        replace(curve(0.1, id=f"t{n:04d}", status="complete"), finalist_of="t0001")
        for n in range(5, 8)
    ]
    tuned = asha(curve(1.0, id="t0001", status="complete"), *again)
    assert tuned.report("new", (100, 0.9)) == CONTINUE


# --- hopeless ---


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([], None),
        ([2.0], None),
        ([2.0, 1.0, 1.2], None),
        ([(2.0, 2.0), (2.5, 1.5)], None),  # at the limit of overfit_rise, not above
        ([(2.0, 2.0), (2.6, 1.5)], "overfit: validation loss rose 30.0%"),
        (
            [(2.0, 0.9)],
            None,
        ),  # the training rows are memorised, and validation loss is none the worse
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
    assert hopeless(rose, untuned, EarlyStoppingConfig(), config).startswith(
        "overfit: validation loss rose"
    )


def test_patience_counts_overfit_evaluations_in_a_row():
    patient = EarlyStoppingConfig(overfit_patience=2)
    up, down = (2.6, 1.5), (2.4, 1.4)
    assert hopeless(curve((2.0, 2.0), up), UNTUNED, patient, SELECTION) is None
    assert hopeless(curve((2.0, 2.0), up, down, up), UNTUNED, patient, SELECTION) is None
    assert hopeless(curve((2.0, 2.0), up, up), UNTUNED, patient, SELECTION).startswith("overfit: ")
    assert (
        hopeless(curve((2.0, 0.5)), UNTUNED, patient, SELECTION) is None
    )  # one evaluation is not two
    assert hopeless(curve(None), UNTUNED, patient, SELECTION).startswith(
        "diverged: "
    )  # patience is for overfitting


def test_each_kind_can_be_switched_off():
    overfit, diverged = curve((2.0, 2.0), (2.6, 1.5)), curve(2.0, None)
    assert hopeless(overfit, UNTUNED, EarlyStoppingConfig(overfit=False), SELECTION) is None
    assert hopeless(diverged, UNTUNED, EarlyStoppingConfig(overfit=False), SELECTION) is not None
    assert (
        hopeless(
            diverged, UNTUNED, EarlyStoppingConfig(diverged=False, overfit_patience=1), SELECTION
        )
        is None
    )
    assert (
        hopeless(
            overfit, UNTUNED, EarlyStoppingConfig(diverged=False, overfit_patience=1), SELECTION
        )
        is not None
    )


def test_without_a_baseline_only_what_is_not_finite_has_diverged():
    assert hopeless(curve(1.0, 1e6), Reference(), EarlyStoppingConfig(), SELECTION) is None
    assert hopeless(curve(1.0, None), Reference(), EarlyStoppingConfig(), SELECTION) is not None


# --- failures alike ---

OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate {} MiB. GPU {} has a total capacity of 79.1 GiB"


@pytest.mark.parametrize(
    ("reasons", "cause"),
    [
        ([], None),
        (["layers: the model has 5 layers, got 7"] * 2, None),
        (
            [f"layers: the model has 5 layers, got {n}" for n in (7, 8, 9)],
            "layers: the model has 5 layers, got 7",
        ),
        (
            [f"KeyError: 'x' (log: trials/t000{n}/log.txt)" for n in (1, 2, 3)],
            "KeyError: 'x' (log: trials/t0001/log.txt)",
        ),
        (
            [OOM.format(1.5e3, 0), "KeyError: 'x'", OOM.format(20, 1), OOM.format("3.25", 0)],
            OOM.format(1.5e3, 0),
        ),
        (["KeyError: 'x'", "KeyError: 'y'", "KeyError: 'z'"], None),
        (
            [f"OSError: /tmp/a{n}/t000{n}/x.bin is not there" for n in (1, 2, 3)],
            "OSError: /tmp/a1/t0001/x.bin is not there",
        ),
        (
            [f"ValueError: <Tensor at 0x7f{n}a> of trial t000{n}" for n in (1, 2, 3)],
            "ValueError: <Tensor at 0x7f1a> of trial t0001",
        ),
        (["a", "b"] * 2, None),
    ],
)
def test_failures_have_one_cause_whatever_is_each_trials_own(reasons, cause):
    assert common_cause(reasons) == cause


# --- the stopper that Tune asks ---


@pytest.fixture
def stopper(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.begin("t0001", {})
    stops = []
    hopeless = HopelessStopper(
        config=EarlyStoppingConfig(overfit_patience=1),
        selection=SELECTION,
        ledger=ledger,
        reference=lambda: UNTUNED,
        trains_on=lambda curve: curve.points[-1].samples_seen < 300,
        on_stop=lambda *told: stops.append(told),
    )
    made = EvaluationEvents(on_evaluation=ledger.record, stopper=hopeless)
    return SimpleNamespace(ask=made, ledger=ledger, stops=stops, stop_all=made.stop_all)


def result(step, val, probe, *, done=False):
    evaluation = Evaluation(
        step=step,
        samples_seen=100 * step,
        epoch=step,
        val_loss=val,
        probe_loss=probe,
        trainable_parameters=1,
        folder=f"trials/t0001/attempt-1/step-{step:08d}",
    )
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


def test_a_trial_that_has_only_its_average_to_come_is_not_stopped(stopper):
    assert not stopper.ask("tune-1", result(1, 2.0, 2.0))
    assert not stopper.ask("tune-1", result(3, 2.6, 1.5))
    assert stopper.stops == []


def test_a_result_without_an_evaluation_is_none_of_its_business(stopper):
    assert not stopper.ask(
        "tune-1", {"id": "t0001", "ended": "failed", "reason": "oom", "done": True}
    )
    assert stopper.ledger.curve("t0001").points == ()


def test_the_sweep_knows_of_an_evaluation_before_anybody_is_asked_about_it():
    order = []

    class Asked(Stopper):
        def __call__(self, trial_id, result):
            order.append(("stopper", result["evaluation"].step))
            return False

        def stop_all(self):
            return False

    events = EvaluationEvents(
        on_evaluation=lambda trial, evaluation: order.append((trial, evaluation.step)),
        stopper=Asked(),
    )
    events("tune-1", result(1, 2.0, 2.0))
    events("tune-1", result(2, 1.5, 1.4, done=True))
    assert order == [("t0001", 1), ("stopper", 1), ("t0001", 2), ("stopper", 2)]


def test_tune_hands_a_result_to_the_stopper_before_scheduler_searcher_and_callbacks():
    source = inspect.getsource(TuneController._process_trial_result)
    order = [
        source.index(call)
        for call in (
            "self._stopper(",
            "self._scheduler_alg.on_trial_result(",
            "self._search_alg.on_trial_result(",
            "self._callbacks.on_trial_result(",
        )
    ]
    assert order == sorted(order)
