"""What a slot tells Ray's metrics: without Ray."""

import pytest

from trainables.runtime import metrics
from trainables.runtime.metrics import METRICS, Exporter, Reading, SlotMeter


def told(meter: SlotMeter, samples: int = 0, tokens: int = 0) -> dict[str, float | None]:
    """By metric, and by activity where it is one's."""
    found = list(meter.readings(samples, tokens))
    return {each.labels.get("activity", each.metric): each.value for each in found}


def test_time_is_of_the_innermost_activity_and_told_once() -> None:
    now = [100.0]
    meter = SlotMeter(lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    with meter.spends("waiting"):
        passes(3)
    assert meter.due
    passes(1)
    with pytest.raises(ArithmeticError), meter.spends("evaluating"):
        passes(5)
        with meter.spends("training"):
            passes(7)
        passes(2)
        raise ArithmeticError
    first = told(meter, samples=8, tokens=80)
    assert first == {
        "waiting": 3,
        "other": 1,
        "evaluating": 7,
        "training": 7,
        "sweeps_slot_samples": 8,
        "sweeps_slot_tokens": 80,
    }
    assert not meter.due
    passes(1.5)
    second = told(meter, samples=12, tokens=130)
    assert second == {"other": 1.5, "sweeps_slot_samples": 4, "sweeps_slot_tokens": 50}


def test_metrics_have_names_that_prometheus_takes() -> None:
    exported = [metric.exported(name) for name, metric in METRICS.items()]
    assert len({*exported}) == len(exported)
    assert all(name.startswith("ray_sweeps_") for name in exported)
    assert METRICS["sweeps_slot_tokens"].exported("sweeps_slot_tokens").endswith("_tokens_total")
    assert all(metric.words and "sweep" in metric.labels for metric in METRICS.values())


def test_a_failure_is_said_once_and_reaches_nobody() -> None:
    said: list[str] = []
    exporter = Exporter(said.append, sweep="s")
    for _ in range(2):
        exporter.tell([Reading("sweeps_nobody_knows", 1.0)])
    exporter.tell([Reading("sweeps_trial_val_loss", 1.0)])  # without the label of a trial
    assert len(said) == 1 and said[0].startswith("Ray's metrics are not whole: KeyError")


def test_what_is_not_finite_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, recorded = Exporter(print, sweep="s"), []
    monkeypatch.setattr(exporter, "_record", lambda *reading: recorded.append(reading))
    values = [None, float("nan"), float("inf"), 0.5]
    exporter.tell(Reading("sweeps_best_val_loss", value) for value in values)
    assert recorded == [("sweeps_best_val_loss", 0.5, {"sweep": "s"})]
    assert metrics.TELL_S < 10
