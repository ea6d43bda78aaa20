"""How much of a cluster each of several sweeps holds that share it, against what is due to it.

    .venv/bin/python tests/benchmarks/sharing.py --slots 3 --priorities 2 1 --minutes 10

Starts a cluster of one node on loopback, with a core by name for each slot, and a sweep for each priority, one after
another; each has work for all slots. From when the last has its first slot, who holds how many slots is looked up every
second in Ray's own list of actors, not with the sweeps: a slot is held while its worker is alive. At the end the
sweeps are interrupted.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from arms import DATA, ROOT, environment, machine, require  # noqa: E402

from tests.ray_nodes import free_port, stop_node  # noqa: E402
from tests.sweeps.run.killing import wait_for  # noqa: E402

SAMPLE_S = 1.0
FILE = """
name: {name}
task: causal_lm
storage: {work}/runs
rehearse: false
model: {{name: {data}/models/stories260K}}
data: {{train: {data}/text/tinyshakespeare.txt, validation: 0.004, max_length: 64, rows: 320}}
train: {{method: lora, batch_size: 8, evaluate_every: epoch, probe_rows: 16, epochs: 1000}}
cluster:
  address: {address}
  resources_per_worker: {{CPU: 1}}
  trials_per_slot: 1
  priority: {priority}
  slice_minutes: {slice_minutes}
tracking: {{wandb: "off"}}
selection: {{baselines: false}}
search:
  trials: 64
  sampler: random
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space: {{learning_rate: {{log_uniform: [1.0e-5, 1.0e-4]}}}}
"""
HEAD = "| sweep | priority | slots held, mean | share of what all held | share due |"


def start_head(made: ExitStack, work: Path, slots: int, env: dict[str, str]) -> tuple[str, str]:
    """Its address, and its dashboard's."""
    port, dashboard = free_port(), free_port()
    log = work / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
            + ["--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={port}"]
            + ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
            + [f"--temp-dir={work / 'ray'}", f"--num-cpus={slots}", "--num-gpus=0"]
            + [f"--object-store-memory={100 * 2**20}"],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    made.callback(stop_node, process)
    wait_for(lambda: "Ray runtime started" in log.read_text(), process, log)
    return f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"


def interrupt(sweep: subprocess.Popen) -> None:
    sweep.terminate()
    sweep.wait()


def holding(dashboard: str) -> Counter[str]:
    """Workers of slots by job: Ray numbers the drivers that join it."""
    from ray.util.state import list_actors

    actors: Any = list_actors(
        address=dashboard,
        filters=[("class_name", "=", "Slot"), ("state", "=", "ALIVE")],
        limit=1000,
    )
    return Counter(each.job_id for each in actors)


def measure(slots: int, priorities: Sequence[float], minutes: float, slice_minutes: float) -> None:
    require(DATA / "models" / "stories260K")
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="sh", dir="/tmp"))  # short: Ray's sockets
    with ExitStack() as made:
        made.callback(shutil.rmtree, work, ignore_errors=True)
        env = environment(work, {})
        address, dashboard = start_head(made, work, slots, env)
        jobs: list[str] = []
        for number, priority in enumerate(priorities):
            file, log = work / f"{number}.yaml", work / f"{number}.log"
            file.write_text(
                FILE.format(
                    name=f"sweep{number}",
                    work=work,
                    data=DATA,
                    address=address,
                    priority=priority,
                    slice_minutes=slice_minutes,
                )
            )
            with log.open("w") as output:
                sweep = subprocess.Popen(
                    [sys.executable, "-m", "sweeps", "run", str(file)],
                    cwd=ROOT,
                    env=env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            made.callback(interrupt, sweep)
            wait_for(lambda: bool(holding(dashboard).keys() - {*jobs}), sweep, log)
            (job,) = holding(dashboard).keys() - {*jobs}
            jobs.append(job)
        held: Counter[str] = Counter()
        until, samples = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < until:
            held += holding(dashboard)
            samples += 1
            time.sleep(SAMPLE_S)
    print(f"{slots} slots, slices of {slice_minutes:g} min, {minutes:g} min, {samples} samples\n")
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    in_all = sum(held.values())
    for number, (job, priority) in enumerate(zip(jobs, priorities, strict=True)):
        mean, part = held[job] / samples, held[job] / in_all
        due = priority / sum(priorities)
        print(f"| {number + 1} | {priority:g} | {mean:.2f} | {part:.1%} | {due:.1%} |")
    print(f"\nslots held by all, mean: {in_all / samples:.2f} of {slots}; the rest changed hands")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--priorities", type=float, nargs="+", default=[1.0, 1.0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--slice-minutes", type=float, default=0.5)
    given = parser.parse_args()
    measure(given.slots, given.priorities, given.minutes, given.slice_minutes)


if __name__ == "__main__":
    main()
