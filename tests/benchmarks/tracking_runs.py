"""Tracking many trials in W&B: memory, time of a call, and the time that the end takes.

    .venv/bin/python tests/benchmarks/tracking_runs.py --trials 1000

Offline, and online against the tests' small server in a process of its own; trials come as fast as they can, which no
sweep's do. Memory is that of the tracking process and of wandb-core.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVE = "from wandb_stub import WandbServer; import time; print(WandbServer().url, flush=True); time.sleep(1e9)"


def measure(wandb: str, trials: int, evaluations: int) -> dict[str, float]:
    """In this process; prints JSON."""
    import psutil

    from sweeps.tracking.config import TrackingConfig
    from sweeps.tracking.protocol import BaseSource, SweepEnd, Table
    from sweeps.tracking.wandb import WandbTracker
    from trainables.evaluation.record import Evaluation

    folder = Path(tempfile.mkdtemp(prefix="tracking-")) / "many"
    (folder / "winner").mkdir(parents=True)
    (folder / "winner" / "model.safetensors").write_bytes(b"0" * 1_000_000)
    config = TrackingConfig(wandb=wandb)
    began, calls = time.perf_counter(), 0.0
    tracker = WandbTracker(
        config, "many", folder / "tracking", lambda line: print(line, file=sys.stderr)
    )
    for number in range(trials):
        trial, point = f"t{number:04}", None
        started = time.perf_counter()
        tracker.trial_started(trial, {"method": "lora", "learning_rate": 1e-3})
        for step in range(1, evaluations + 1):
            loss = 1.0 + number / trials + 1 / step
            point = Evaluation(
                step=step, samples_seen=step * 16, epoch=step / 10, val_loss=loss, probe_loss=loss
            )
            tracker.evaluation(trial, point)
        tracker.trial_finished(
            trial, status="complete", verdict="healthy", verdict_reason="", best=point
        )
        calls += time.perf_counter() - started
    rows = tuple((f"t{number:04}", number) for number in range(trials))
    table = Table(columns=("trial", "place"), rows=rows)
    end = SweepEnd(trial="t0000", reason="lowest", checkpoint=str(folder / "winner"), paragraph="",
                   tables={"leaderboard": table}, base=BaseSource(name="org/encoder"))  # fmt: skip
    while tracker._jobs.qsize():
        time.sleep(0.05)
    told, core = time.perf_counter() - began, 0
    for child in psutil.Process().children():
        core = max(core, child.memory_info().rss)
    started = time.perf_counter()
    tracker.sweep_finished(end)
    tracker.close(600)
    return {
        "a call, us": calls / (trials * (evaluations + 2)) * 1e6,
        "a trial in the background, s": told / trials,
        "the end, s": time.perf_counter() - started,
        "this process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "wandb-core, MB": core / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=10, help="of each trial")
    parser.add_argument("--child", choices=("offline", "online"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        print(json.dumps(measure(asked.child, asked.trials, asked.evaluations)))
        return
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'sweeps'}"
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_ERROR_REPORTING": "false"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        environment |= {
            "WANDB_BASE_URL": server.stdout.readline().strip(),
            "WANDB_API_KEY": "local-" + "a" * 40,
        }
        sizes = [f"--trials={asked.trials}", f"--evaluations={asked.evaluations}"]
        for way in ("offline", "online"):
            command = [sys.executable, __file__, f"--child={way}", *sizes]
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
