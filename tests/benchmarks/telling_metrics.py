"""What it costs to tell Ray's metrics of a sweep of many trials: CPU seconds of a round, and series.

    .venv/bin/python tests/benchmarks/telling_metrics.py --trials 1000

In this process, without a cluster: the calls record into Ray's library, which exports what it has every 10 s beside. A
sweep does a round every 2 s.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sweeps.run.metrics import SweepMetrics
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from trainables.evaluation.record import Evaluation
from trainables.runtime.metrics import TELL_S, Exporter, Reading, SlotMeter
from trainables.runtime.protocol import Snapshot, TrialProgress


def curve(number: int, status: str, evaluations: int) -> Curve:
    points = [
        Evaluation(
            step=step,
            samples_seen=step * 1000,
            epoch=step,
            val_loss=1.0 + number / 1e4 + 1 / step,
            probe_loss=0.9 + 1 / step,
            checkpoint="somewhere",
            checkpoint_bytes=10**6,
        )
        for step in range(1, evaluations + 1)
    ]
    return Curve(id=f"t{number:04d}", status=status, points=points)


def rounds(
    trials: int, evaluations: int, running: int, count: int
) -> tuple[list[float], list[Reading]]:
    """CPU seconds of each round, and the readings of the last."""
    ended = [curve(number, "complete", evaluations) for number in range(trials - running)]
    on_slots = [curve(number, "running", evaluations) for number in range(trials - running, trials)]
    snapshot = Snapshot(
        slots={f"s-slot{number}": [each.id] for number, each in enumerate(on_slots)},
        lost={},
        quarantined={},
        progress={each.id: TrialProgress(samples_seen=1, samples_per_s=1.0) for each in on_slots},
        baseline=None,
        limits={},
        jobs={},
    )
    metrics = SweepMetrics(
        "s",
        trials=trials,
        selection=SelectionConfig(),
        rows={"": 1000},
        total_samples=lambda curve: 1000 * evaluations,
    )
    exporter, seconds, told = Exporter(print, sweep="s"), [], []
    for _ in range(count):
        began = time.process_time()
        told = list(metrics.readings([*ended, *on_slots], snapshot, Reference(val_loss=3.0)))
        exporter.tell(told)
        seconds.append(time.process_time() - began)
    return seconds, told


def of_a_step(count: int) -> float:
    """CPU seconds that a slot's step spends on its meter."""
    meter = SlotMeter()
    began = time.process_time()
    for _ in range(count):
        with meter.spends("waiting"):
            pass
        with meter.spends("training"):
            pass
    return (time.process_time() - began) / count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=10, help="of each trial")
    parser.add_argument("--running", type=int, default=16, help="trials at once")
    parser.add_argument("--rounds", type=int, default=100)
    asked = parser.parse_args(arguments)
    seconds, told = rounds(asked.trials, asked.evaluations, asked.running, asked.rounds)
    later = sum(seconds[1:]) / max(1, len(seconds) - 1)
    of_trials = Counter("trial" in each.labels for each in told)
    print("| measured | value |\n|---|---|")
    print(f"| the first round, CPU s | {seconds[0]:.4f} |")
    print(f"| a later round, CPU s | {later:.4f} |")
    print(f"| of one core, a round every {TELL_S:g} s | {later / TELL_S:.2%} |")
    print(f"| series of trials | {of_trials[True]} |")
    print(f"| other series | {of_trials[False]} |")
    print(f"| a step of a slot, CPU us | {of_a_step(20_000) * 1e6:.1f} |")


if __name__ == "__main__":
    main()
