"""What Ray's metrics are told of a sweep and its trials: without Ray."""

from collections.abc import Sequence

from sweeps.run.metrics import MOST_ENDED, SweepMetrics
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from trainables.evaluation.record import Evaluation
from trainables.runtime.metrics import METRICS
from trainables.runtime.protocol import Snapshot, TrialProgress

NONE = Snapshot(slots={}, lost={}, quarantined={}, progress={}, baseline=None, limits={}, jobs={})

UNTOLD = Reference()


def evaluation(samples: int, val: float | None, kept: bool = True) -> Evaluation:
    return Evaluation(
        step=samples,
        samples_seen=samples,
        epoch=samples / 40,
        val_loss=val,
        probe_loss=None if val is None else val - 0.1,
        checkpoint_bytes=1000,
        checkpoint="somewhere" if kept else None,
    )


def of_sweep(trials: int = 8) -> SweepMetrics:
    return SweepMetrics(
        "s",
        trials=trials,
        selection=SelectionConfig(),
        rows={"": 40},
        total_samples=lambda curve: 80,
    )


def told(
    metrics: SweepMetrics,
    curves: Sequence[Curve],
    snapshot: Snapshot = NONE,
    reference: Reference = UNTOLD,
) -> dict[tuple[str, ...], float | None]:
    """By metric and the values of its labels but the sweep's; each has all its labels."""
    found: dict[tuple[str, ...], float | None] = {}
    for metric, value, labels in metrics.readings(curves, snapshot, reference):
        assert {"sweep", *labels} == {*METRICS[metric].labels}
        key = metric, *labels.values()
        assert key not in found
        found[key] = value
    return found


def test_sweep_slots_and_trials() -> None:
    curves = [
        Curve(id="t0", status="complete", points=[evaluation(40, 0.9, False), evaluation(80, 0.5)]),
        Curve(id="t1", status="running", points=[evaluation(40, 0.7)]),
        Curve(id="t2", status="running"),
        Curve(id="t3", status="failed", points=[evaluation(40, 0.1)]),
        Curve(id="t4", status="running", points=[evaluation(40, None)]),
    ]
    snapshot = Snapshot(
        slots={"s-slot0": ["t1", "t4"], "s-slot1": [], "s-slot2": []},
        lost={"s-slot3": "gone"},
        quarantined={"s-slot2": {"t3": "why"}},
        progress={
            "t1": TrialProgress(samples_seen=60, samples_per_s=12.5),
            "t4": TrialProgress(),
        },
        baseline=None,
        limits={},
        jobs={},
    )
    found = told(of_sweep(), curves, snapshot, Reference(val_loss=1.5))
    assert found == {
        ("sweeps_trials", "running"): 3,
        ("sweeps_trials", "complete"): 1,
        ("sweeps_trials", "pruned"): 0,
        ("sweeps_trials", "failed"): 1,
        ("sweeps_trials_planned",): 8,
        ("sweeps_evaluations",): 5,
        ("sweeps_best_val_loss",): 0.5,
        ("sweeps_untuned_val_loss",): 1.5,
        ("sweeps_checkpoint_bytes",): 4000,
        ("sweeps_slots", "running"): 2,
        ("sweeps_slots", "quarantined"): 1,
        ("sweeps_slots", "lost"): 1,
        ("sweeps_slot_trials", "slot0"): 2,
        ("sweeps_slot_trials", "slot1"): 0,
        ("sweeps_slot_trials", "slot2"): 0,
        **{("sweeps_trial_state", f"t{n}", curves[n].status): 1 for n in range(5)},
        **_of_trial("t0", val=0.5, probe=0.4, samples=80),
        **_of_trial("t1", val=0.7, probe=0.7 - 0.1, samples=60),
        ("sweeps_trial_samples_per_second", "t1", "slot0"): 12.5,
        ("sweeps_trial_samples", "t2"): 0,
        ("sweeps_trial_epochs", "t2"): 0,
        ("sweeps_trial_progress", "t2"): 0,
        **_of_trial("t3", val=0.1, probe=0.0, samples=40),
        **_of_trial("t4", val=None, probe=None, samples=40),
        ("sweeps_trial_samples_per_second", "t4", "slot0"): 0,
    }


def _of_trial(
    trial: str, *, val: float | None, probe: float | None, samples: int
) -> dict[tuple[str, ...], float | None]:
    return {
        ("sweeps_trial_val_loss", trial): val,
        ("sweeps_trial_probe_loss", trial): probe,
        ("sweeps_trial_samples", trial): samples,
        ("sweeps_trial_epochs", trial): samples / 40,
        ("sweeps_trial_progress", trial): samples / 80,
    }


def test_the_best_follows_evaluations_and_ends() -> None:
    metrics = of_sweep()
    best = ("sweeps_best_val_loss",)
    points = [evaluation(40, 0.7), evaluation(80, 0.4)]
    assert told(metrics, [])[best] is None
    assert told(metrics, [Curve(id="t0", status="running", points=points[:1])])[best] == 0.7
    assert told(metrics, [Curve(id="t0", status="running", points=points)])[best] == 0.4
    assert told(metrics, [Curve(id="t0", status="failed", points=points)])[best] is None


def test_of_a_thousand_trials_those_that_run_and_the_last_that_ended_are_told() -> None:
    metrics = of_sweep(1000)
    running = [Curve(id=f"t{n:04}", status="running") for n in range(1000)]
    states = [*running]
    for end in (0, 10, 500, 990):
        for n in range(end):
            states[n] = Curve(id=f"t{n:04}", status="complete", points=[evaluation(80, 0.5)])
        states[995] = Curve(id="t0995", status="pruned")  # the last begun may end first
        found = told(metrics, states)
        shown = {key[1] for key in found if key[0] == "sweeps_trial_state"}
        runs = {curve.id for curve in states if curve.status == "running"}
        assert runs <= shown and len(shown - runs) == min(MOST_ENDED, end + 1)
        if end == 500:
            assert "t0499" in shown and "t0995" not in shown and "t0001" not in shown
        assert found["sweeps_trials", "complete"] == end
