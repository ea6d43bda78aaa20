"""Another tracker than W&B: a class of six methods, and one line."""

import csv

from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import (
    TRACKERS,
    BaseSource,
    SweepEnd,
    Table,
    Tracker,
    open_tracker,
)
from sweeps.tracking.wandb import WandbTracker
from trainables.evaluation.record import Evaluation


class CsvTracker:
    """Writes a line for all that it is told."""

    def __init__(self, config, sweep, folder, log, about):
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / "trials.csv").open("w", newline="")
        self._lines = csv.writer(self._stream)
        self._lines.writerow([sweep, about["task"]])

    def trial_started(self, trial, params):
        self._lines.writerow([trial, "started", params["method"]])

    def evaluation(self, trial, evaluation):
        self._lines.writerow([trial, evaluation.step, evaluation.val_loss])

    def noted(self, trial, words):
        self._lines.writerow([trial, "noted", words])

    def trial_finished(self, trial, *, status, verdict, verdict_reason, best):
        self._lines.writerow([trial, status, verdict, "" if best is None else best.val_loss])

    def sweep_finished(self, end):
        self._lines.writerow([end.trial, "won", end.checkpoint])
        for name, table in end.tables.items():
            self._lines.writerow([name, *table.columns, *table.rows[0]])

    def close(self, timeout_s=30):
        self._stream.close()


END = SweepEnd(
    trial="t0001",
    reason="lowest",
    checkpoint="runs/quick/winner",
    paragraph="**The winner is t0001**",
    tables={"samples": Table(columns=("row", "given"), rows=((3, "two plus two"),))},
    base=BaseSource(name="org/encoder"),
)


def told(tracker: Tracker):
    """What a sweep of one trial tells."""
    point = Evaluation(step=8, samples_seen=64, epoch=1.0, val_loss=0.5, probe_loss=0.4)
    tracker.trial_started("t0001", {"method": "lora"})
    tracker.evaluation("t0001", point)
    tracker.noted("t0001", "stopped by hand of ann@desk")
    tracker.trial_finished(
        "t0001", status="complete", verdict="healthy", verdict_reason="it is", best=point
    )
    tracker.sweep_finished(END)
    tracker.close(5)


def opened(tmp_path, **trackers):
    config = TrackingConfig(wandb="off")
    about = {"task": "classification"}
    return open_tracker(
        config, sweep="quick", folder=tmp_path, log=print, about=about, trackers=trackers
    )


LINES = [
    "quick,classification",
    "t0001,started,lora",
    "t0001,8,0.5",
    "t0001,noted,stopped by hand of ann@desk",
    "t0001,complete,healthy,0.5",
    "t0001,won,runs/quick/winner",
    "samples,row,given,3,two plus two",
]


def test_a_tracker_of_ones_own_is_told_everything(tmp_path):
    told(opened(tmp_path, csv=CsvTracker))
    assert (tmp_path / "trials.csv").read_text().splitlines() == LINES


def test_several_trackers_are_told_the_same(tmp_path):
    told(opened(tmp_path, **TRACKERS, own=CsvTracker))
    assert (tmp_path / "trials.csv").read_text().splitlines() == LINES


def test_wandb_is_the_one_that_ships(tmp_path):
    assert isinstance(opened(tmp_path, wandb=TRACKERS["wandb"]), WandbTracker)
