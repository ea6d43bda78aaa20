"""Which processes a sweep consists of: how many of each kind, what they compute, and what memory they hold.

    python tests/benchmarks/processes.py --trials 16

One sweep of this platform with a Llama of 260,000 parameters on one slot, all trials at once. CPU seconds are those
from start to end, sampled: what a process did between its last sample and its end is missed. Memory is that of the
moment at which all processes together had most. A process is called as it calls itself (Ray does).
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from arms import DATA, MEMORY, environment, machine, require, run_arm
from throughput import most_at_once

MODEL = DATA / "models" / "stories260K"
TEXT = DATA / "text" / "tinyshakespeare.txt"

# what a process is by its title
KINDS = {
    r"-m sweeps run": "the command (Tune, search, ledger)",
    r"gcs_server|/raylet/raylet": "Ray's servers",
    r"dashboard|Agent|monitor|multiprocessing": "Ray's dashboard and agents",
    r"^ray::Slot": "the slot",
    r"^ray::(TrainController|SynchronizationActor|PlacementGroupCleaner|DatasetManager|PreemptionWatcher"
    r"|_AutoscalingCoordinatorActor)": "Ray Train around the slot",
    r"^ray::(Coordinator|processes-)": "the coordinator",  # by its class, or by the trial that it is asked for
    r"^ray::Trial": "Tune's actors of trials",
    r"^ray::IDLE|default_worker": "workers of Ray that never did anything",
}


def sweep_file(storage: Path, trials: int, epochs: int) -> str:
    return f"""
name: processes
task: causal_lm
storage: {storage}
model: {{name: {MODEL}}}
data: {{train: {TEXT}, validation: 0.005, max_length: 32, rows: 200}}
train: {{method: lora, epochs: {epochs}, batch_size: 20, evaluate_every: {200 * epochs}, rank: 4, alpha: 8, probe_rows: 32}}
search:
  trials: {trials}
  space: {{learning_rate: {{log_uniform: [1.0e-4, 1.0e-2]}}}}
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
tracking: {{wandb: "off"}}
cluster: {{slots: 1, resources_per_worker: {{CPU: 1}}, trials_per_slot: 16}}
"""


def kind_of(title: str) -> str:
    return next((kind for pattern, kind in KINDS.items() if re.search(pattern, title)), title[:60])


def table(processes: Sequence[tuple[str, float, int]]) -> str:
    """Markdown: a line for each kind of process, the largest first."""
    kinds: dict[str, list[tuple[float, int]]] = {}
    for title, seconds, held in processes:
        kinds.setdefault(kind_of(title), []).append((seconds, held))
    kinds["all"] = [(seconds, held) for _, seconds, held in processes]
    lines = [f"| process | at the peak | {MEMORY}, MiB | seen | CPU s |", "|---|---|---|---|---|"]
    for kind, found in sorted(kinds.items(), key=lambda each: -sum(held for _, held in each[1])):
        held = [held for _, held in found if held]
        cells = (
            len(held),
            f"{sum(held) / 2**20:.0f}",
            len(found),
            f"{sum(s for s, _ in found):.1f}",
        )
        lines.append(f"| {' | '.join([kind, *map(str, cells)])} |")
    return "\n".join(lines)


def measure(trials: int, epochs: int, work: Path) -> str:
    file = work / "processes.yaml"
    file.write_text(sweep_file(work / "runs", trials, epochs))
    clock, wall = run_arm(["-m", "sweeps", "run", str(file)], work / "log", environment(work, {}))
    (sweep,) = (work / "runs").iterdir()
    began = [json.loads(path.read_text())["started"] for path in sweep.glob("trials/*/trial.json")]
    ended = [json.loads(path.read_text())["ended"] for path in sweep.glob("trials/*/outcome.json")]
    first = min(
        path.stat().st_mtime for path in sweep.glob("trials/*/attempt-*/step-*/evaluation.json")
    )
    at_once = most_at_once(list(zip(sorted(began), sorted(ended), strict=True)))
    return (
        f"{at_once} of {trials} trials at once; {wall:.0f} s; CPU seconds up to the first evaluation: "
        f"{clock.at(first):.1f}\n\n{table(clock.processes())}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="at least 1 (default: 16)")
    parser.add_argument("--epochs", type=int, default=10, help="of 10 steps each (default: 10)")
    given = parser.parse_args(arguments)
    require(MODEL, TEXT)
    before = machine()
    work = Path(tempfile.mkdtemp(prefix="fsp", dir="/tmp"))  # short: Ray's socket paths are limited
    try:
        found = measure(given.trials, given.epochs, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{before}\n\n{found}")


if __name__ == "__main__":
    main(sys.argv[1:])
