"""Names in the dashboard, where this Ray can show them."""

import sys
from types import SimpleNamespace

from trainables.runtime import slot
from trainables.runtime.dashboard import worker_labels

INTERNALS = "ray.train.v2._internal.execution.callback"


def test_workers_are_named_by_the_ray_that_is_installed():
    assert len(worker_labels("s-slot0")) == 1


def test_a_slot_runs_without_names_where_ray_has_other_internals(monkeypatch):
    monkeypatch.setitem(sys.modules, INTERNALS, None)  # importing it raises ImportError
    assert worker_labels("s-slot0") == []
    started = []

    class Trainer:
        def __init__(self, loop, **settings):
            started.append(settings["run_config"])

        def fit(self):
            pass

    monkeypatch.setattr(slot, "SlotTrainer", Trainer)

    slot.run_slot(
        SimpleNamespace(slot="s-slot0"),
        workers=1,
        resources_per_worker={"CPU": 1.0},
        folder="/tmp/slots",
    )
    assert [config.callbacks for config in started] == [[]]
